"""Several processes that train together: how they start, find each other, and stop.

    torchrun --nproc-per-node 4 train.py        one process a GPU: what a real run is started with
    run_processes("train.py:work", 4)           the same from a notebook or a test, on the CPU, with the results back

Each process runs the same program. It learns from its environment who it is (RANK) of how many (WORLD_SIZE) and where
the others are to be met (MASTER_ADDR, MASTER_PORT); `init_from_environment` reads these and gives a `Worker`. All
that the processes do together from then on are collective operations, which every one of them must call, in the same
order: one that leaves out a call leaves the others waiting. So nothing here waits for ever: there is a timeout, and
the first process that fails stops the rest.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import importlib.util
import inspect
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from llm_core.checks import check_sizes
from llm_core.files import write_whole

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_POLL = 0.02  # seconds between two looks at the processes
_ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # a process that has others beside it takes one thread
_CAN_FORK = sys.platform == "linux"  # macOS has libraries that do not survive a fork, and Windows has no fork
_GRACE = 2.0  # seconds that processes have to end by themselves after the work is done or has failed


# Modules that the process from which others are forked imports once, for all of them. What is named here must start
# no thread; what changes while the program runs does not belong here.
PRELOAD: list[str] = []


@dataclass(frozen=True)
class Worker:
    """This process among the others.

    `rank` is 0 ... world - 1, `local_rank` the same counted on this machine alone. `mesh` is all processes in one
    row, named "data"; where they are to stand in a grid, build one with `init_device_mesh`.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh


class WorkerError(RuntimeError):
    """A process failed, or all of them took too long; `rank` is that of the first one that failed."""

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


@contextmanager
def init_from_environment(*, device: str | None = None, timeout: float | int = 600) -> Iterator[Worker]:
    """Meet the other processes that torchrun or `run_processes` has started; part from them at the end.

    Without any of torchrun's variables this is the only process, and all else works as it does with several.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL); "cuda" where each process of this machine can have a GPU of its own,
            unless given.
        timeout: seconds after which a collective operation that some process does not join is an error.

    Raises:
        ValueError: some of torchrun's variables are set and some are not, or are no numbers; this process already is
            in a group; or timeout is no number above 0.

    >>> with init_from_environment(device="cpu") as worker:
    ...     worker.rank, worker.world
    (0, 1)
    """
    _check_timeout(timeout)
    if dist.is_initialized():
        raise ValueError("this process already is in a group: leave that one first, its `with` block must end")
    given = [name for name in _VARIABLES if name in os.environ]
    missing = [name for name in _VARIABLES if name not in os.environ]
    if given and missing:
        raise ValueError(
            f"of the variables that torchrun sets, {given} are there and {missing} are not. Start the program with "
            "torchrun, or unset them all to run it as one process"
        )
    world, rank, local_rank = _whole("WORLD_SIZE", 1, 1), _whole("RANK", 0, 0), _whole("LOCAL_RANK", 0, 0)
    if rank >= world:
        raise ValueError(f"ranks run from 0 to WORLD_SIZE - 1: got RANK={rank}, WORLD_SIZE={world}")
    place = _device(device, local_rank)
    dist.init_process_group(
        "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=_meeting_place(timedelta(seconds=timeout)) if given else dist.HashStore(),  # alone: no port
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
        device_id=None if place.type == "cpu" else place,
    )
    try:
        yield Worker(rank, world, local_rank, place, init_device_mesh(place.type, (world,), mesh_dim_names=("data",)))
        # Nobody leaves while another still reads from it. After an error there is no waiting: they may be gone.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_processes(function: Callable[..., Any] | str, n: int, *args: Any, timeout: float | int = 300) -> list[Any]:
    """Call `function(worker, *args)` in `n` new processes on this machine's CPU; returns what each returned, by rank.

    The processes have one thread each, and meet at a port of 127.0.0.1 that this process holds open. What they print
    is part of an error's message and is dropped otherwise. On Linux they are forked from one that has torch loaded,
    which the first call starts; elsewhere each starts anew, which takes seconds.

    Args:
        function: a function of an importable module or of a script that is a file, or its place: "train.py:work".
        n: number of processes.
        args: given to every process; like the results, they are pickled. Numbers, strings, tensors on the CPU, and
            lists and dicts of these are safe.
        timeout: seconds for all of it, starting the processes included.

    Raises:
        ValueError: `n` is below 1; timeout is no number above 0; the arguments cannot be pickled; or new processes
            cannot find the function: one defined in a notebook's cell, or within another function, is in no file that
            they could read.
        WorkerError: a process raised an exception or died, or time ran out. The others have been stopped.
    """
    check_sizes(n=n)
    _check_timeout(timeout)
    place = _place(function)
    try:
        pickled = pickle.dumps(args)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the arguments go to other processes, and must be pickled for that: {error}. Give what they are made from"
        ) from error
    deadline = time.time() + timeout
    # The store lives here and takes a port that is free: no one can take it between a look and its use. The host's
    # name would do for 127.0.0.1, were it not for machines whose name leads to an address that they do not have.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="llm_core_") as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((place, sys.path, deadline, timeout)))
        # Apart from the call: to be read, it may need the modules that the call's path leads to.
        (folder / "args").write_bytes(pickled)
        environments = [_environment(rank, n, store.port) for rank in range(n)]
        processes: list[_Process] = []
        try:
            if _CAN_FORK:
                processes += _fork(folder, environments)
            else:
                for rank in range(n):
                    processes.append(_start(folder, rank, environments[rank]))
            _wait(folder, processes, deadline)
        finally:
            _stop(processes)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(n)]


def _check_timeout(seconds: float | int) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout must be a number of seconds above 0: got {seconds}")


def _whole(variable: str, default: int, least: int) -> int:
    """The whole number that a variable of torchrun holds."""
    said = os.environ.get(variable, str(default))
    if not said.isdecimal() or int(said) < least:
        raise ValueError(f"{variable} must be a whole number from {least} on: got {said!r}. Let torchrun set it")
    return int(said)


def _meeting_place(timeout: timedelta) -> dist.Store:
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it starts a failed run again: the addresses that the killed processes left there
    # must not be taken for those of the new ones.
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _device(kind: str | None, local_rank: int) -> torch.device:
    if kind is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
        kind = "cuda" if 0 < here <= torch.cuda.device_count() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", the number of the GPU is the local rank: got {kind!r}')
    if kind == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            'Start fewer processes, or give device="cpu"'
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


# ---- the parent's side ----


def _place(function: Callable[..., Any] | str) -> tuple[str, str, str]:
    """(module, file, name) of a function, from which another process can load it."""
    if isinstance(function, str):
        file, _, name = function.rpartition(":")
        if not name.isidentifier() or not Path(file).is_file():
            raise ValueError(f'a function\'s place is "path/to/file.py:name", of a file that exists: got {function!r}')
        return "", str(Path(file).resolve()), name
    name, code = getattr(function, "__qualname__", repr(function)), getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not name.isidentifier() or not Path(code.co_filename).is_file():
        raise ValueError(
            f"new processes cannot find {name}: they read functions from files, and this one is in no file, or within "
            'another function or class. Write it to a file at its top level and give its place, as in "train.py:work"'
        )
    module = "" if function.__module__ == "__main__" else function.__module__
    return module, str(Path(code.co_filename).resolve()), name


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: rank 0 must not open one
        **_ALONE,
        "PYTHONPATH": _python_path(),
    }
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback:  # otherwise gloo asks what the host's name leads to
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return environment


def _python_path() -> str:
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _start(folder: Path, rank: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", "from llm_core.distributed import launch; launch._work()", str(folder)],
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=log,
            stderr=subprocess.STDOUT,
        )


class _Forked:
    """One of the processes that were forked for a call, with what `Popen` offers of one that was started.

    Their keeper says on a socket when one has ended, and ends them all when the socket is closed.
    """

    def __init__(self, rank: int, keeper: socket.socket, codes: dict[int, int], stdin: BinaryIO) -> None:
        self.rank, self.keeper, self.codes, self.stdin = rank, keeper, codes, stdin

    @property
    def returncode(self) -> int | None:
        return self.codes.get(self.rank)

    def poll(self) -> int | None:
        while self.returncode is None and select.select([self.keeper], [], [], 0)[0]:
            words = self.keeper.recv(64).split()
            if not words:  # the keeper is gone, and they with it
                self.codes.setdefault(self.rank, -signal.SIGKILL)
                break
            self.codes[int(words[0])] = int(words[1])
        return self.returncode

    def wait(self, timeout: float | int | None = None) -> int:
        deadline = None if timeout is None else time.time() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.time() > deadline:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            time.sleep(_POLL)
        return code

    def kill(self) -> None:
        with suppress(OSError):  # the keeper may be gone
            self.keeper.shutdown(socket.SHUT_WR)


_Process = subprocess.Popen[bytes] | _Forked


class _Template:
    """A process that has torch loaded, has one thread and is in no group: what others are forked from."""

    def __init__(self) -> None:
        self.owner, self.preload = os.getpid(), tuple(PRELOAD)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = "from llm_core.distributed import launch; launch._serve()"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), *self.preload],
                env={**os.environ, **_ALONE, "PYTHONPATH": _python_path()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the process that calls, which then ends the others
            )
        atexit.register(self.close)

    def close(self) -> None:
        self.channel.close()
        if self.owner == os.getpid():
            self.process.wait()


_template: _Template | None = None


def _fork(folder: Path, environments: Sequence[Mapping[str, str]]) -> list[_Forked]:
    global _template
    (folder / "environments").write_bytes(pickle.dumps((os.getcwd(), list(environments))))
    for rank in range(len(environments)):
        (folder / f"{rank}.log").touch()
    t = _template
    if t is None or t.owner != os.getpid() or t.preload != tuple(PRELOAD) or t.process.poll() is not None:
        _template = t = _Template()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    stdin = os.fdopen(write, "wb")  # closes when this process ends, however it ends
    try:
        socket.send_fds(t.channel, [str(folder).encode()], [theirs.fileno(), read])
    finally:
        theirs.close()
        os.close(read)
    codes: dict[int, int] = {}
    return [_Forked(rank, ours, codes, stdin) for rank in range(len(environments))]


def _wait(folder: Path, processes: Sequence[_Process], deadline: float) -> None:
    """Until every process has written its result. What counts is that, and not how it then ends."""
    while True:
        ended = [process.poll() is not None for process in processes]  # before the look at the files
        results = [(folder / f"{rank}.result").exists() for rank in range(len(processes))]
        if all(results):
            return
        errors = [(folder / f"{rank}.error").exists() for rank in range(len(processes))]
        if any(errors) or any(end and not result for end, result in zip(ended, results, strict=True)):
            raise _failure(folder, processes)
        # A second more than the processes have: their own clocks make them write down where they wait.
        if time.time() > deadline + 1:
            waiting = [rank for rank, result in enumerate(results) if not result]
            logs = "\n".join(f"--- process {rank} ---\n{_log(folder, rank)}" for rank in waiting)
            raise WorkerError(
                f"time ran out: of {len(processes)} processes, {waiting} were still at work. Give more, or look where "
                f"they wait for each other: all must call the same collective operations in the same order\n{logs}",
                rank=waiting[0],
            )
        time.sleep(_POLL)


def _failure(folder: Path, processes: Sequence[_Process]) -> WorkerError:
    """The error of the process that failed first; the others' tell only that they lost it."""
    time.sleep(5 * _POLL)  # the others may know of a process' death before the system tells its parent
    dead = [
        rank
        for rank, process in enumerate(processes)
        if process.poll() is not None and not any((folder / f"{rank}.{end}").exists() for end in ("result", "error"))
    ]
    reports = [path for path in folder.glob("*.error") if path.name.removesuffix(".error").isdigit()]
    # One that died without a word took the others with it. Had it lost another first, it would have said so.
    if dead:
        rank = dead[0]
        code = processes[rank].poll() or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return WorkerError(f"process {rank} of {len(processes)} {how}\n{_log(folder, rank)}", rank=rank)
    first = min(reports, key=lambda path: path.stat().st_mtime_ns)
    rank = int(first.stem)
    return WorkerError(f"process {rank} of {len(processes)} failed\n{first.read_text()}{_log(folder, rank)}", rank=rank)


def _log(folder: Path, rank: int) -> str:
    return (folder / f"{rank}.log").read_text(errors="replace")[-4000:]


def _stop(processes: Sequence[_Process]) -> None:
    """End those that do not end by themselves, and leave none behind as a zombie."""
    deadline = time.time() + _GRACE
    for process in processes:
        try:
            process.wait(max(deadline - time.time(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        if isinstance(process, _Forked):
            process.keeper.close()


# ---- a new process' side ----


def _serve() -> None:
    """What the template runs: at each message, naming a folder, it forks a keeper of that call's processes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the keepers have ended
    while True:
        folder, descriptors, _, _ = socket.recv_fds(channel, 4096, 2)
        if not folder:  # the process that started this one is gone
            return
        if os.fork() == 0:
            channel.close()
            try:
                _keep(Path(folder.decode()), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(folder: Path, control: int, stdin: int) -> None:
    """Fork the processes of a call, say of each that it has ended, and end them when no one listens any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    place, environments = pickle.loads((folder / "environments").read_bytes())
    ranks = {}
    for rank, environment in enumerate(environments):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(control)
                log = os.open(folder / f"{rank}.log", os.O_WRONLY)
                for number, descriptor in enumerate([stdin, log, log]):
                    os.dup2(descriptor, number)
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(place)
                np.random.seed()  # noqa: NPY002 (of its own, as in a new process: all others do that by themselves)
                sys.argv = ["-c", str(folder)]
                _work()
            finally:
                os._exit(1)
        ranks[pid] = rank
    os.close(stdin)
    with socket.socket(fileno=control) as parent:
        while ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                parent.send(f"{ranks.pop(pid)} {os.waitstatus_to_exitcode(status)}".encode())
            elif select.select([parent], [], [], _POLL)[0]:  # nothing is ever sent this way: it was closed
                for pid in ranks:
                    os.kill(pid, signal.SIGKILL)


def _work() -> None:
    """What a new process runs: the call that it finds in the folder that it is given."""
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        (module, file, name), sys.path[:], deadline, timeout = pickle.loads((folder / "call").read_bytes())
        faulthandler.dump_traceback_later(max(deadline - time.time(), 0.01))
        args = pickle.loads((folder / "args").read_bytes())
        function = _load(module, file, name)
        # Longer than the whole call may take: when time runs out, the starting process says so, and who still waits.
        with init_from_environment(device="cpu", timeout=timeout + 60) as worker:
            try:
                write_whole(folder / f"{rank}.result", pickle.dumps(function(worker, *args)))
            except BaseException:
                # Before the group is left: the others fail when they see this one gone, and this was first.
                write_whole(folder / f"{rank}.error", traceback.format_exc().encode())
                raise
    except BaseException:
        if not (folder / f"{rank}.error").exists():
            write_whole(folder / f"{rank}.error", traceback.format_exc().encode())
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. Python's own way out ends torch's threads in no order, and now and then that aborts.
    os._exit(0)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: this returns when the parent is gone
    os._exit(1)


def _load(module: str, file: str, name: str) -> Callable[..., Any]:
    # By its name, if that leads to the same file: a module must not be there twice, with two of each class.
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == Path(file):
        return getattr(importlib.import_module(module), name)
    sys.path.insert(0, str(Path(file).parent))  # as for any script
    spec = importlib.util.spec_from_file_location("_work_of_a_script", file)  # its own name might hide a library's
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be read as a Python module: its name should end in .py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)
