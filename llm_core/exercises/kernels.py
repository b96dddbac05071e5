"""Kernels for learners' notebooks: always this Python, whatever kernels are installed, and quick where it can fork.

Kernel          a kernel manager whose kernels are `sys.executable`
ForkServer      a process with torch loaded, from which such kernels are forked (forkserver.py)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from llm_core.exercises import forkserver

# One thread a process: two kernels with two threads each on two cores stand in each other's way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Kernel(AsyncKernelManager):
    """Starts kernels with the Python that runs this; `server` and `scratch` say how."""

    server: ForkServer | None = None
    scratch: Path | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        """Not looked up by name: on a hub, or beside conda, another Python may have the name python3."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        if self.server is not None:
            argv = self.server.command("{connection_file}", self.scratch)
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class ForkServer:
    """A process that has torch and the checkers loaded and forks kernels; a context manager.

    Args:
        hidden: folders and files that are empty in a kernel's view, where the system can do that.

    Attributes:
        loaded: what it has loaded: the checkers and, with them, torch; nothing but the kernel if empty.
        starts: how often the process was started; once, unless it was killed.
        fence: how kernels are kept from each other's files (forkserver.py); empty if they are not.
    """

    loaded = forkserver.CHECKERS

    def __init__(self, hidden: Sequence[Path] = ()) -> None:
        self.hidden = [str(path.resolve()) for path in hidden]
        self.fence = ""
        self.starts = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def possible() -> bool:
        """Whether this system can fork."""
        return hasattr(os, "fork") and sys.platform != "darwin"  # macOS's libraries do not survive a fork

    def __enter__(self) -> ForkServer:
        self._folder = tempfile.TemporaryDirectory(prefix="llm-core-")
        self.start()
        self.fence = self._possible_fence()
        return self

    def start(self) -> None:
        """Start the process, or another one in the place of one that was killed.

        Raises:
            RuntimeError: it does not come up.
        """
        assert self._folder is not None
        self.starts += 1
        address = Path(self._folder.name) / "socket"
        address.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, forkserver.__file__, "serve", str(address), self.loaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD, "MPLBACKEND": "agg"},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process from which kernels are forked did not start; its message stands above")

    def alive(self) -> bool:
        """Whether the process is still there."""
        return self._process is not None and self._process.poll() is None

    def command(self, connection_file: str, scratch: Path | None) -> list[str]:
        """What starts a kernel: a small program without torch that stands for it."""
        assert self._folder is not None
        address = str(Path(self._folder.name) / "socket")
        program = [sys.executable, "-I", "-S", forkserver.__file__, "client"]
        fence, place = (self.fence, str(scratch.resolve())) if scratch is not None else ("", "")
        return [*program, address, connection_file, fence, place, json.dumps(self.hidden)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._folder is not None
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        self._folder.cleanup()

    def _possible_fence(self) -> str:
        """The first kind of fence that this system allows, tried in a process of its own."""
        return next((kind for kind, program in _PROBES.items() if self._works(program)), "")

    def _works(self, program: str) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-S", "-c", program, str(Path(forkserver.__file__).parent), scratch]
            return subprocess.run([*command, *self.hidden], capture_output=True).returncode == 0


_PROBES = {
    forkserver.VIEW: """
import os, sys
sys.path.insert(0, sys.argv[1])
import forkserver
forkserver.own_view(sys.argv[2], sys.argv[3:])
child = os.fork()
if child == 0:
    try:
        forkserver.own_processes()
        os._exit(0)
    finally:
        os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
    forkserver.USER: """
import os, sys
sys.path.insert(0, sys.argv[1])
import forkserver
forkserver.own_user(sys.argv[2])
import decimal  # Python itself must be readable for this user
sys.exit(any(os.access(path, os.R_OK) for path in sys.argv[3:]))
""",
}
