"""Kernels that are ready in a tenth of a second: they are forked from one process that has torch loaded.

    with ForkServer(hidden=[submissions]) as server:        # in the process that grades
        manager = Kernel(server=server, scratch=folder)     # kernels.py; its command is server.command(...)

    server    `python forkserver.py serve ADDRESS checkers`; loads everything once, then forks a keeper for each kernel
    keeper    fences its kernel off, starts it, and ends it with whoever asked for it
    client    `python forkserver.py client ADDRESS FILE`; what Jupyter takes for the kernel's process: it passes
              interrupts on and ends with the kernel's status. It loads nothing but this file's imports.

The fence has two forms. On Linux a kernel gets its own VIEW of the machine, where the system allows that to an
ordinary user: every file system is read-only but for its scratch folder, what is named in `hidden` is empty, processes
other than its own do not exist, and it has no privileges to take that back. Where there is no such view and root
grades, as in a container, it becomes a USER of its own, who can open neither a folder of root nor another's scratch
folder. Either way a submission can neither read nor delete another's. It can still use the network and the processor;
a container keeps it from both. Where neither is possible (macOS, a hardened system), there is no fence: the scratch
folder is then a courtesy, and no protection.

Windows has no fork: kernels start as Jupyter starts them.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys

INTERRUPT = b"i"
VIEW, USER = "view", "user"
CHECKERS = "checkers"
FIRST_USER = 20_000  # numbers above this belong to nobody; a kernel's is made of its process's

# From Linux's headers; the same on all processors but for the last, which is a system call's number.
NEW_USER, NEW_PROCESSES, NEW_MOUNTS = 0x10000000, 0x20000000, 0x00020000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
READ_ONLY, AT_RECURSIVE, AT_HERE = 0x1, 0x8000, -100
DROP_BOUND, NO_NEW_PRIVILEGES = 24, 38
MOUNT_SETATTR = 442
LAST_CAPABILITY = 40


# --- the view of the machine that a kernel gets -----------------------------------------------------------


def _system(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _read_only(libc: ctypes.CDLL, path: str, on: bool) -> None:
    """Make the file systems at and below a path read-only, or a single one writable again."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]

    wanted = Attributes(set=READ_ONLY if on else 0, clear=0 if on else READ_ONLY)
    flags = AT_RECURSIVE if on else 0
    arguments = (path.encode(), flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _system(libc.syscall(MOUNT_SETATTR, AT_HERE, *arguments), f"making {path} read-only")


def own_view(scratch: str, hidden: list[str]) -> None:
    """Give this process, and what it forks from now on, a view of the machine without what others have.

    Raises:
        OSError: the system does not allow it; nothing has changed that would matter then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS | NEW_PROCESSES):  # root may; anybody else becomes a user of a world of its own first
        _system(libc.unshare(NEW_USER | NEW_MOUNTS | NEW_PROCESSES), "a view of its own")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _system(libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None), "a private view")
    for path in hidden:
        what, kind, flags = (b"none", b"tmpfs", 0) if os.path.isdir(path) else (b"/dev/null", None, BIND)
        _system(libc.mount(what, os.fsencode(path), kind, flags, None), f"hiding {path}")
    place = os.fsencode(scratch)
    _system(libc.mount(place, place, None, BIND, None), f"binding {scratch}")
    _read_only(libc, "/", True)
    _read_only(libc, scratch, False)


def own_processes() -> None:
    """The first process of a new view: its /proc shows itself and its children only, and it gives up all rights."""
    libc = ctypes.CDLL(None, use_errno=True)
    _system(libc.mount(b"proc", b"/proc", b"proc", 0, None), "a /proc of its own")
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(DROP_BOUND, capability, 0, 0, 0)
    _system(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this process
    _system(libc.capset(header, (ctypes.c_uint32 * 6)()), "giving up capabilities")


def own_user(scratch: str, *files: str) -> None:
    """Become a user whom nothing belongs to but the scratch folder and these files.

    Raises:
        OSError: only root can.
    """
    user = FIRST_USER + os.getpid() % 10_000
    for path in (scratch, *files):
        os.chown(path, user, user)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


# --- keeper and kernel --------------------------------------------------------------------------------------


def _request(connection: socket.socket) -> dict:
    text = b""
    while not text.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            raise EOFError
        text += more
    return json.loads(text)


def _kernel(request: dict) -> None:
    """Be a Jupyter kernel; does not return."""
    os.setsid()
    if request["fence"] == VIEW:
        own_processes()
    elif request["fence"] == USER:
        own_user(request["scratch"], request["file"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ.pop("JPY_PARENT_PID", None)  # the keeper ends it; its parent is not who Jupyter thinks
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    import random
    import tempfile

    tempfile.tempdir = None  # where it is depends on the environment, and that is another one now
    random.seed()  # or every kernel would draw what the server would have drawn
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=["-f", request["file"], *request["options"]])


def _keep(connection: socket.socket) -> None:
    """Start one kernel; end with it, or end it when who asked for it is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = _request(connection)
    if request["fence"] == VIEW:
        own_view(request["scratch"], request["hidden"])
    kernel = os.fork()
    if kernel == 0:
        connection.close()
        try:
            _kernel(request)
        finally:
            os._exit(1)
    while True:
        ended, status = os.waitpid(kernel, os.WNOHANG)
        if ended:
            connection.sendall(bytes([min(abs(os.waitstatus_to_exitcode(status)), 255)]))
            return
        ready, _, _ = select.select([connection], [], [], 0.05)
        if ready:
            word = connection.recv(1)
            try:
                if word == INTERRUPT:
                    os.kill(kernel, signal.SIGINT)
                else:  # the client is gone: the kernel goes too, with all that it started
                    os.killpg(kernel, signal.SIGKILL)
            except ProcessLookupError:
                pass


def serve(address: str, loaded: str) -> None:
    """Load everything, then fork a keeper for whoever connects, until standard input ends."""
    import ipykernel.kernelapp  # noqa: F401
    import IPython.core.interactiveshell  # noqa: F401

    if loaded == CHECKERS:
        import matplotlib.pyplot  # noqa: F401

        from llm_core.exercises import catalogue

        for exercise in catalogue.exercises():
            exercise.checker()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that grades; it ends this one
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                listener.close()
                try:
                    _keep(connection)
                except (EOFError, OSError):
                    pass
                finally:
                    os._exit(0)
            connection.close()


# --- client ---------------------------------------------------------------------------------------------------


def client(address: str, file: str, fence: str, scratch: str, hidden: str, *options: str) -> int:
    """Stand for the kernel in the eyes of Jupyter, which may add options for it; its exit status."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {
            "cwd": os.getcwd(),
            "env": dict(os.environ),
            "file": file,
            "fence": fence,
            "scratch": scratch,
            "hidden": json.loads(hidden),
            "options": options,
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        signal.signal(signal.SIGINT, lambda *_: connection.sendall(INTERRUPT))
        while True:
            ready, _, _ = select.select([connection], [], [], 1.0)
            if ready:
                status = connection.recv(1)
                return status[0] if status else 1
            if os.getppid() != parent:  # who asked for the kernel was killed
                return 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        sys.path.pop(0)  # this file's folder, in which modules have the names of others
        serve(*sys.argv[2:])
    else:
        sys.exit(client(*sys.argv[2:]))
