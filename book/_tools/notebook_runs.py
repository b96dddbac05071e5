"""Running notebooks: in place, or held against their stored outputs, with time and memory measured.

Every run happens in the same surroundings: the environment's own kernel, started in the notebook's
folder, the given number of threads, no network beyond this machine, no settings of this person.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import notebook_rules as rules
import psutil

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).resolve().parent
REPORTS = ROOT / "_build" / "reports"

# A notebook's budget on two cores. Memory is a limit. Time is reported, each notebook's and what all take on average,
# and only a run that is far beyond it is ended, because a test must not fail on a busy machine.
SECONDS = 90.0
AVERAGE_SECONDS = 30.0
MEGABYTES = 3000.0
HARD_SECONDS = 600.0

# What the tests set to stand in for another processor: kernels of torch and oneDNN that use other
# instructions, and so round differently.
OTHER_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def surroundings(
    threads: int = 1, *, portable: bool = False, perturbed: bool = False, ipython: str | None = None
) -> dict[str, str]:
    """The environment variables that a notebook runs with.

    Args:
        threads: threads of every numerical library. Two busy processes with two threads each can be
            twenty times slower than with one, so runs side by side take one.
        portable: stand in for another processor, see OTHER_PROCESSOR.
        perturbed: every matrix product of torch a few units off in its last place, see perturbed/sitecustomize.py.
        ipython: an empty folder for IPython's profile and history.
    """
    env = {name: value for name, value in os.environ.items() if name not in OTHER_PROCESSOR}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        env[name] = str(threads)
    env.pop("PYTHONHOME", None)
    env.pop("PYTHONWARNINGS", None)
    env["PYTHONPATH"] = os.pathsep.join(str(TOOLS / name) for name in ("offline", *["perturbed"] * perturbed))
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    env["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    env["HF_HUB_OFFLINE"] = "1"
    # A person watches tqdm's bars; a stored output and a test must not depend on how fast they moved.
    env["TQDM_DISABLE"] = "1"
    if ipython is not None:
        env["IPYTHONDIR"] = ipython
    if portable:
        env.update(OTHER_PROCESSOR)
    return env


class Watch:
    """Watches the descendants of a process; a `with` block measures what runs in it.

    `megabytes` is the largest sum of resident memory seen over all descendants of `pid` at one moment.
    Where they exceed `limit`, or a child of `pid` has died and nobody took note (nbval waits for a dead
    kernel as for a busy one), they are ended, `stop` is called, and `trouble` says why.
    """

    def __init__(
        self, pid: int, limit: float, stop: Callable[[], None] | None = None, every: float = 0.1, patience: int = 50
    ) -> None:
        self.pid, self.limit, self.stop, self.every, self.patience = pid, limit, stop, every, patience
        self.megabytes = 0.0
        self.trouble = ""
        self._dead = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            with contextlib.suppress(psutil.Error):
                self._look()

    def _look(self) -> None:
        family = psutil.Process(self.pid).children(recursive=True)
        total = 0.0
        dead = False
        for process in family:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss / 1e6
                dead = dead or process.status() == psutil.STATUS_ZOMBIE
        self.megabytes = max(self.megabytes, total)
        self._dead = self._dead + 1 if dead else 0
        if self.trouble:
            return
        if total > self.limit:
            self.trouble = f"it took {total:.0f} MB; a notebook may take {self.limit:.0f} MB"
        elif self.stop is not None and self._dead > self.patience:
            self.trouble = "its kernel died"
        if self.trouble:
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if self.stop is not None:
                self.stop()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


@dataclass
class Run:
    """What one run of one notebook came to."""

    notebook: str
    ok: bool
    seconds: float
    megabytes: float
    cells: int = 0
    problems: list[str] = field(default_factory=list)
    output: str = ""


def warm_up() -> None:
    """Let matplotlib build its font cache, which it announces on stderr, before a notebook would."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, timeout=300)


def short(path: Path) -> str:
    """A notebook's path as the reports name it."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(ROOT).as_posix()
    return path.name


def execute(notebook: Any, path: Path, *, threads: int = 1, timeout: float = HARD_SECONDS) -> tuple[float, float]:
    """Run every cell of a notebook in a kernel of its own, in the notebook's folder.

    Returns seconds and peak megabytes; the outputs are stored in `notebook`.
    Raises nbclient's CellExecutionError when a cell raises, CellTimeoutError when one takes too long,
    and MemoryError when the notebook takes more than MEGABYTES.
    """
    import nbclient

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Watch(os.getpid(), MEGABYTES) as watch:
        client = nbclient.NotebookClient(
            notebook,
            timeout=timeout,
            startup_timeout=120,
            kernel_name="python3",
            # ipykernel 7 warns on the terminal that it talks over TCP, here from and to this machine only.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(path.resolve().parent)}},
        )
        try:
            client.execute(env=surroundings(threads, ipython=folder))
        except Exception as error:
            if watch.trouble:  # to nbclient only a dead kernel
                raise MemoryError(watch.trouble) from error
            raise
    return time.monotonic() - started, watch.megabytes


def validate(
    path: Path,
    *,
    threads: int = 1,
    portable: bool = False,
    perturbed: bool = False,
    limit: float = MEGABYTES,
    timeout: float = HARD_SECONDS,
) -> Run:
    """Run a notebook with nbval in a process of its own, and hold fresh outputs against stored ones.

    `portable` and `perturbed` are those of `surroundings`; a perturbed run leaves the cells tagged UNDISTURBED
    uncompared.
    """
    command = [sys.executable, str(TOOLS / "nbval_run.py"), "--nbval", "--nbval-current-env"]
    command += ["-c", str(TOOLS / "nbval.ini")]
    command += [f"--nbval-cell-timeout={timeout:.0f}", "--nbval-kernel-startup-timeout=120"]
    command += ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "nbval.plugin"]
    command += [f"--leave-out-tag={rules.UNDISTURBED}"] if perturbed else []
    command += [f"--rootdir={path.resolve().parent}", str(path.resolve())]
    started = time.monotonic()
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        env = surroundings(threads, portable=portable, perturbed=perturbed, ipython=folder)
        for name in [name for name in env if name.startswith(("PYTEST_", "COV_"))]:
            del env[name]  # this pytest is not part of the one that asks
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # it needs nothing else that is installed, and starts sooner
        # A session of its own, so that ending it ends the kernel too.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, env=env, start_new_session=True,
        )  # fmt: skip
        with Watch(process.pid, limit, stop=lambda: end(process)) as watch:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                problems.append(f"it was ended after {timeout:.0f} s (a notebook's budget is {SECONDS:.0f} s)")
                end(process)
                output, _ = process.communicate()
            except BaseException:
                end(process)
                raise
    seconds = time.monotonic() - started
    if watch.trouble:
        problems.append(watch.trouble)
    counted = re.search(r"(\d+) passed", output)
    cells = int(counted[1]) if counted else 0
    if process.returncode != 0 and not problems:
        problems.append("its fresh outputs are not the stored ones, or a cell failed (below)")
    if process.returncode == 0 and cells == 0:
        problems.append("nbval found no cell to run")
    return Run(short(path), not problems, round(seconds, 1), round(watch.megabytes), cells, problems, output)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and everything it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


# --- the report -------------------------------------------------------------------------------------


def record(run: Run, folder: Path = REPORTS / "notebooks") -> None:
    """Keep a run for the report: one file each, because runs happen in several processes."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in asdict(run).items() if key != "output"}
    name = re.sub(r"[^A-Za-z0-9]+", "-", run.notebook).strip("-")
    (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def recorded(folder: Path = REPORTS / "notebooks") -> Iterator[dict[str, Any]]:
    """The kept runs, in the book's order."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    yield from sorted(runs, key=lambda run: run["notebook"])


def table(runs: list[dict[str, Any]], labels: dict[str, tuple[float, float]] | None = None) -> str:
    """The runs as a table of text; `labels` are the costs that the chapters promise."""
    lines = [f"{'notebook':58} {'cells':>5} {'seconds':>8} {'left':>6} {'peak MB':>8}   promised"]
    for run in runs:
        promised = (labels or {}).get(run["notebook"])
        note = f"{promised[0]:.0f} s, {promised[1]:.0f} MB" if promised else "-"
        if promised and (run["seconds"] > 2 * promised[0] + 10 or run["megabytes"] > 1.25 * promised[1]):
            note += "  (took more)"
        if run["seconds"] > SECONDS:
            note += f"  over {SECONDS:.0f} s"
        if not run["ok"]:
            note += "  FAILED"
        left = SECONDS - run["seconds"]
        lines.append(
            f"{run['notebook']:58} {run['cells']:5d} {run['seconds']:8.1f} {left:6.0f} {run['megabytes']:8.0f}   {note}"
        )
    seconds = sum(run["seconds"] for run in runs)
    average = seconds / max(1, len(runs))
    largest = max((run["megabytes"] for run in runs), default=0)
    lines.append(
        f"{f'{len(runs)} notebooks':58} {'':5} {seconds:8.1f} {'':6} {largest:8.0f}   "
        f"{average:.1f} s on average (budget: {AVERAGE_SECONDS:.0f} s)"
    )
    return "\n".join(lines)
