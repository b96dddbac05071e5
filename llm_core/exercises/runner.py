"""A learner's notebook, run with parameters and judged by the report of its check cell.

`run` takes one notebook, `run_folder` all of a folder; both return a `Result` for each, whatever happens in
it: an exception, a cell that hangs, a kernel that dies, a file that is no notebook. papermill does the running,
each notebook in a kernel of its own.

The learner's file is only read. What was executed is a copy, kept where `output` says.

The kernel runs the learner's code with the rights of whoever starts it, and a report can be faked by code that
means to. This is a tool for learning; give it submissions of strangers only inside a container.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient  # type: ignore[import-untyped]
from papermill.engines import NBClientEngine, papermill_engines  # type: ignore[import-untyped]
from papermill.exceptions import PapermillExecutionError  # type: ignore[import-untyped]
from papermill.execute import execute_notebook  # type: ignore[import-untyped]
from papermill.inspection import inspect_notebook  # type: ignore[import-untyped]

from llm_core.exercises.report import MIME
from llm_core.files import NotWritten, write_whole

Status = Literal["passed", "failed", "not started", "error", "timeout"]

CELL_TIMEOUT = 60.0  # seconds; a check takes one or two
OUTPUT_LIMIT = 1_000_000  # characters printed by one notebook; what goes beyond is dropped
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Result:
    """What became of one notebook.

    Attributes:
        file: the learner's notebook, as it was named to the runner.
        exercise: the exercise that its check cell names; empty where none was found.
        parameters: the seed and sizes it was checked with.
        passed, total: checks, both 0 where there is no report.
        status: 'passed', 'failed' or 'not started' by the report; 'timeout'; 'error' for everything else.
        message: what is wrong, in one line; empty if it passed.
    """

    file: str
    exercise: str
    parameters: Mapping[str, Any]
    passed: int
    total: int
    status: Status
    message: str

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {**asdict(self), "parameters": dict(self.parameters)}


class Unusable(ValueError):
    """A file that is no notebook, or a notebook that is no exercise."""


def read(path: Path) -> NotebookNode:
    """The notebook in a file, with Python as its kernel whatever it was saved with.

    Raises:
        Unusable: the file cannot be read or is no notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:  # nbformat has no common base class for what a broken file can cause
        raise Unusable(f"{path.name} is not a notebook: {_one_line(error)}") from error
    if not isinstance(notebook.get("cells"), list):
        raise Unusable(f"{path.name} is not a notebook: it has no cells")
    # A notebook from Colab or from somebody's conda names a kernel that is not here, or none.
    notebook.metadata["kernelspec"] = NotebookNode(KERNEL)
    notebook.metadata["language_info"] = NotebookNode({"name": "python"})
    return notebook


def exercise_of(notebook: NotebookNode) -> str:
    """The name that the notebook's check cell gives to `check`; empty if it has none."""
    for cell in notebook.cells:
        found = re.search(r"^\s*(?:\w+\s*=\s*)?check\(\s*[\"']([^\"']+)[\"']", _code(cell), re.MULTILINE)
        if found:
            return found[1]
    return ""


def parameters_of(notebook: NotebookNode) -> dict[str, dict[str, str]]:
    """The notebook's parameters: for each name its type, default and help, as they are written."""
    found = inspect_notebook(notebook)
    return {
        name: {
            "type": entry["inferred_type_name"] if entry["inferred_type_name"] != "None" else "",
            "default": entry["default"],
            "help": entry["help"],
        }
        for name, entry in found.items()
    }


def typed(given: Mapping[str, str], notebook: NotebookNode) -> dict[str, Any]:
    """Parameters from the command line as values of the notebook's types.

    Raises:
        ValueError: the notebook has no such parameter, or the value is not of its type.

    """
    known = parameters_of(notebook)
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            names = ", ".join(f"{name}: {entry['type']}" for name, entry in known.items())
            raise ValueError(
                f"there is no parameter {name!r}. "
                + (f"The notebook's parameters are {names}" if known else "The notebook has no parameters")
            )
        kind = known[name]["type"] or type(literal(known[name]["default"])).__name__
        try:
            values[name] = _CONVERT.get(kind, literal)(text)
        except ValueError:
            raise ValueError(f"{name} must be {_KINDS.get(kind, kind)}, got {text!r}") from None
    return values


def run(
    path: str | Path,
    parameters: Mapping[str, str] | None = None,
    *,
    output: Path | None = None,
    timeout: float = CELL_TIMEOUT,
    total_timeout: float | None = None,
    progress: bool = False,
) -> Result:
    """Run one notebook and judge it.

    Args:
        path: the learner's notebook; it is only read.
        parameters: values as text, as on a command line; the rest keeps its defaults.
        output: where the executed copy is kept; nowhere unless given.
        timeout: seconds that one cell may take.
        total_timeout: seconds that the whole notebook may take; three times `timeout` unless given.
        progress: whether to show a progress bar over the cells.

    Raises:
        ValueError: a parameter is unknown or of the wrong type, or `output` cannot be used.
    """
    path = Path(path)
    if timeout <= 0 or (total_timeout is not None and total_timeout <= 0):
        raise ValueError(
            f"a timeout must be a positive number of seconds, got {min(timeout, total_timeout or timeout)}"
        )
    if output is not None:
        check_output(output, path)
    try:
        notebook = read(path)
    except Unusable as error:
        return _result(path, "", "error", str(error))
    exercise = exercise_of(notebook)
    if not exercise:
        return _result(path, "", "error", 'This notebook has no check cell: check("NN/name", ...) is missing.')
    values = typed(parameters or {}, notebook)

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "executed.ipynb"
        trouble = execute(notebook, copy, values, path.parent, timeout, total_timeout or 3 * timeout, progress)
        executed = _reread(copy)
        result = _judge(path, exercise, values, executed, trouble)
        if output is not None and copy.exists():
            _keep(copy, output)
    return result


def run_folder(
    folder: str | Path,
    parameters: Mapping[str, str] | None = None,
    *,
    output: Path | None = None,
    timeout: float = CELL_TIMEOUT,
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> list[Result]:
    """Run every notebook below a folder; what goes wrong in one is its own row and stops no other.

    Args:
        folder: where the learners' notebooks are; checkpoints and hidden folders are left out.
        parameters: as for `run`; a notebook that does not know one of them is an error of that notebook.
        output: a folder for the executed copies, made if it is not there.
        timeout: seconds that one cell may take.
        progress: wraps the list of files, for a progress bar.

    Raises:
        ValueError: there is no such folder, no notebook in it, or `output` cannot be written to.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if output is not None:
        check_writable(output)
    files = sorted(_notebooks(folder, output))
    if not files:
        raise ValueError(f"there are no notebooks (*.ipynb) in {folder}")
    results = []
    for path in progress(files):
        name = path.relative_to(folder)
        kept = None if output is None else output / name
        try:
            result = run(path, parameters, output=kept, timeout=timeout)
        except ValueError as error:
            result = _result(path, "", "error", str(error))
        results.append(Result(**{**asdict(result), "file": str(name)}))
    return results


def check_output(output: Path, learners: Path) -> None:
    """See that the executed copy can be kept there, before any work is done.

    Raises:
        ValueError: it is the learner's own file or another notebook that nobody executed, or the folder
            cannot be written to.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder: give the file that the executed copy is to be kept in")
    if output.exists():
        if learners.exists() and output.samefile(learners):
            raise ValueError(f"the executed copy would overwrite {learners}: choose another place for it")
        try:
            executed = "papermill" in read(output).metadata
        except Unusable:
            executed = False
        if not executed:
            raise ValueError(f"{output} is there already and is not an executed copy: choose another place")
    check_writable(output.parent)


class _Engine(NBClientEngine):
    """papermill's engine with a deadline for the whole notebook and a kernel that keeps to itself."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, cell_timeout: float, deadline: float, **unused: Any
    ) -> Any:
        def seconds_left(cell: NotebookNode) -> float:
            return max(0.1, min(cell_timeout, deadline - time.monotonic()))

        client = _Client(nb_man, timeout_func=seconds_left, kernel_name=kernel_name, startup_timeout=60)
        # One thread a process: two kernels with two threads each on two cores stand in each other's way. The
        # kernel's own log is not for the learner.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return client.execute(
            env={**os.environ, **threads},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class _Client(PapermillNotebookClient):
    """Drops what a notebook prints beyond a limit: an endless loop of prints must not fill the memory."""

    printed = 0

    def process_message(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if msg["msg_type"] == "stream":
            self.printed += len(msg["content"]["text"])
            if self.printed > OUTPUT_LIMIT:
                return None
        return super().process_message(msg, *args, **kwargs)


papermill_engines.register("llm_core", _Engine)


def execute(
    notebook: NotebookNode,
    copy: Path,
    values: Mapping[str, Any],
    folder: Path,
    timeout: float,
    total_timeout: float,
    progress: bool,
) -> tuple[Status, str] | None:
    """Run the notebook into `copy`; what stopped it, if anything did."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        execute_notebook(
            notebook,
            str(copy),
            dict(values),
            engine_name="llm_core",
            kernel_name=KERNEL["name"],
            language=KERNEL["language"],
            progress_bar={"desc": "running", "leave": False, "disable": None} if progress else False,
            cwd=str(folder),
            cell_timeout=timeout,
            deadline=time.monotonic() + total_timeout,
        )
    except PapermillExecutionError as error:
        text = _one_line(error.evalue)
        line = _source_line(error)
        where = f" in cell {error.exec_count}" + (f", `{line}`" if line else "")
        return "error", f"The notebook stops with {error.ename}{where}" + (f": {text}" if text else ".")
    except CellTimeoutError:
        return (
            "timeout",
            f"A cell was still running after {timeout:g} s, or the notebook after {total_timeout:g} s; it was stopped.",
        )
    except DeadKernelError:
        return "error", "The kernel died: the notebook ended its process or ran out of memory."
    except Exception as error:  # whatever else one submission causes must not stop the others
        return "error", f"The notebook could not be run: {type(error).__name__}: {_one_line(error)}"
    return None


def _judge(
    path: Path,
    exercise: str,
    values: Mapping[str, Any],
    executed: NotebookNode | None,
    trouble: tuple[Status, str] | None,
) -> Result:
    reports = list(_reports(executed)) if executed is not None else []
    if trouble is not None:
        return _result(path, exercise, *trouble)
    if not reports:
        return _result(path, exercise, "error", "The check cell shows no report: check(...) has to be its last line.")
    report = reports[-1]
    ignored = [name for name, value in values.items() if report["parameters"].get(name) != value]
    if report["exercise"] != exercise or ignored:
        what = f"the parameters {', '.join(ignored)}" if ignored else f"the exercise {exercise}"
        return _result(path, exercise, "error", f"The report is not about {what}: the check cell was changed.")
    return Result(
        str(path),
        exercise,
        report["parameters"],
        report["passed"],
        report["total"],
        report["status"],
        report["message"],
    )


def _reports(executed: NotebookNode) -> Iterator[dict[str, Any]]:
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            if MIME in output.get("data", {}):
                yield output["data"][MIME]


def _result(path: Path, exercise: str, status: Status, message: str) -> Result:
    return Result(str(path), exercise, {}, 0, 0, status, message)


def _reread(copy: Path) -> NotebookNode | None:
    try:
        return read(copy)
    except Unusable:
        return None


def _keep(copy: Path, output: Path) -> None:
    """Put the executed copy in its place, whole or not at all."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(output, error.strerror or str(error)) from error
    write_whole(output, copy.read_bytes())


def check_writable(folder: Path) -> None:
    """See that files can be made in the folder; it is made if it is not there.

    Raises:
        ValueError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be written to: {error.strerror}") from error


def _notebooks(folder: Path, output: Path | None) -> Iterator[Path]:
    for path in folder.rglob("*.ipynb"):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside):
            continue
        if output is not None and output.resolve() in path.resolve().parents:
            continue  # executed copies of an earlier run
        yield path


def _code(cell: NotebookNode) -> str:
    return str(cell.get("source", "")) if cell.get("cell_type") == "code" else ""


def _source_line(error: PapermillExecutionError) -> str:
    """The line of the cell at which it stopped, from the arrow in IPython's traceback."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    found = re.search(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)
    return found[1].strip() if found else ""


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else text[:297] + "..."


def literal(text: str) -> Any:
    """The value that a text stands for in Python.

    Raises:
        ValueError: it is no literal.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise ValueError(text) from None


def _boolean(text: str) -> bool:
    meanings = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in meanings:
        raise ValueError(text)
    return meanings[text.lower()]


_CONVERT: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _boolean, "str": str}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
