"""A learner's notebook, run with parameters and judged by the report of its check cell.

`run` returns a `Result`, whatever happens in the notebook: an exception, a cell that hangs, a kernel that dies, a file
that is no notebook. papermill does the running, each notebook in a kernel of its own. grading.py runs a folder of them.

The learner's file is only read. What was executed is a copy, kept where `output` says.

The kernel runs the learner's code with the rights of whoever starts it, and a report can be faked by code that
means to. This is a tool for learning; give it notebooks of strangers only inside a container.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient  # type: ignore[import-untyped]
from papermill.engines import NBClientEngine, papermill_engines  # type: ignore[import-untyped]
from papermill.exceptions import PapermillExecutionError  # type: ignore[import-untyped]
from papermill.execute import execute_notebook  # type: ignore[import-untyped]
from papermill.inspection import inspect_notebook  # type: ignore[import-untyped]

from llm_core.exercises import catalogue
from llm_core.exercises.kernels import ONE_THREAD, ForkServer, Kernel
from llm_core.exercises.notebook_files import KERNEL, Unusable, one_line, read
from llm_core.exercises.report import MIME
from llm_core.files import NotWritten, write_whole

Status = Literal["passed", "failed", "not started", "error", "timeout"]

CELL_TIMEOUT = 60.0  # seconds; a check takes one or two
OUTPUT_LIMIT = 1_000_000  # characters printed by one notebook; what goes beyond is dropped
FLOOD = 20 * OUTPUT_LIMIT  # characters after which the kernel is stopped: messages would wait in our own memory


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
        checks: for each check by its name the ids of what it found.
        findings: for each of these ids what it says.
        variants: how the variants asked for went, each 'passed', 'failed' or 'error'.
    """

    file: str
    exercise: str
    parameters: Mapping[str, Any]
    passed: int
    total: int
    status: Status
    message: str
    checks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)
    variants: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {**asdict(self), "variants": list(self.variants)}


def exercise_of(notebook: NotebookNode) -> str:
    """The name that the notebook's check cell gives to `check`; empty if it has none."""
    for cell in notebook.cells:
        if found := _CHECK.search(_code(cell)):
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


def defaults_of(notebook: NotebookNode) -> dict[str, Any]:
    """The values that the notebook's parameters cell gives, of those that are written as literals."""
    values = {}
    for name, entry in parameters_of(notebook).items():
        with suppress(ValueError):
            values[name] = literal(entry["default"])
    return values


def check_timeout(seconds: float) -> None:
    """Refuse a time limit that is none.

    Raises:
        ValueError: it is not a positive number, or infinite.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"a timeout must be a positive number of seconds, got {seconds}")


def check_range(exercise: str, values: Mapping[str, Any]) -> None:
    """Refuse parameters that the exercise cannot be checked with, before a kernel starts.

    Raises:
        ValueError: the checker refuses them.
    """
    known = {found.name: found for found in catalogue.exercises()}
    if exercise not in known:
        return
    functions = [function.name for function in known[exercise].spec.functions]
    wanted = inspect.signature(known[exercise].checker().examine).parameters
    if set(wanted) != {*functions, *values}:
        return  # a check cell of the learner's own; the check itself will say what it thinks of it

    def reached(*arguments: Any, **options: Any) -> Any:
        raise _Reached

    with suppress(_Reached):  # the checker has nothing against them: it has got as far as calling a function
        catalogue.check(exercise, **dict.fromkeys(functions, reached), **values)


class _Reached(BaseException):
    """Goes through every `except Exception`."""


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
    variants: Sequence[Mapping[str, Any]] = (),
    scratch: Path | None = None,
    server: ForkServer | None = None,
) -> Result:
    """Run one notebook and judge it.

    Args:
        path: the learner's notebook; it is only read.
        parameters: values as text, as on a command line; the rest keeps its defaults.
        output: where the executed copy is kept; nowhere unless given.
        timeout: seconds that one cell may take.
        total_timeout: seconds that the whole notebook may take; three times `timeout` unless given.
        progress: whether to show a progress bar over the cells.
        variants: parameters to run the check cell with once more each, after the notebook; the learner's
            functions have to pass these too.
        scratch: the folder that the notebook runs in, and whose home it is; its own folder unless given.
        server: where its kernel is forked from; it is started as any kernel unless given.

    Raises:
        ValueError: a parameter is unknown, of the wrong type or out of its range, or `output` cannot be used.
    """
    path = Path(path)
    check_timeout(timeout)
    if total_timeout is not None:
        check_timeout(total_timeout)
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
    if values:
        check_range(exercise, {**defaults_of(notebook), **values})
    n_cells = len(notebook.cells)
    for cell in notebook.cells:
        cell.metadata.pop("llm_core", None)  # an executed copy that is handed in has marks of another run
    for variant in variants:
        notebook.cells.append(_again(notebook, variant))

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "executed.ipynb"
        place = scratch or path.parent
        trouble = execute(
            notebook, copy, values, place, timeout, total_timeout or 3 * timeout, progress, scratch, server
        )
        executed = _reread(copy)
        result = _judge(path, exercise, values, executed, trouble, n_cells, variants)
        if output is not None and executed is not None:
            _keep(executed, output)
    return result


def _again(notebook: NotebookNode, variant: Mapping[str, Any]) -> NotebookNode:
    """A cell that checks the learner's functions with other parameters."""
    check = next(cell for cell in notebook.cells if _CHECK.search(_code(cell)))
    settings = "\n".join(f"{name} = {value!r}" for name, value in variant.items())
    return nbformat.v4.new_code_cell(f"{settings}\n{check.source}", metadata={"llm_core": {"variant": dict(variant)}})


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
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        cell_timeout: float,
        deadline: float,
        folder: Path,
        scratch: Path | None,
        server: ForkServer | None,
        **unused: Any,
    ) -> Any:
        def seconds_left(cell: NotebookNode) -> float:
            return max(0.1, min(cell_timeout, deadline - time.monotonic()))

        client = _Client(nb_man, timeout_func=seconds_left, kernel_name=kernel_name, startup_timeout=60)
        client.server, client.scratch = server, scratch
        home = {} if scratch is None else dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR"), str(scratch))
        # The kernel's own log is not for the learner.
        # papermill's own `cwd` would be that of this whole process, in which other notebooks run beside this one.
        return client.execute(
            cwd=str(folder),
            env={**os.environ, **ONE_THREAD, **home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class _Client(PapermillNotebookClient):
    """Starts our own kernels, drops what a notebook shows beyond a limit, and stops one that shows far more.

    An endless loop that prints, or displays, must not fill the memory: it writes faster than anybody can read.
    """

    server: ForkServer | None = None
    scratch: Path | None = None
    shown = 0
    stopping: asyncio.Future[Any] | None = None

    def create_kernel_manager(self) -> Kernel:
        self.km = Kernel(config=self.config)
        self.km.server, self.km.scratch = self.server, self.scratch
        if self.scratch is not None:  # the folder of Jupyter's own is for this user alone
            self.km.connection_file = str(self.scratch / ".kernel.json")
        return self.km

    def process_message(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if msg["msg_type"] in ("stream", "display_data", "update_display_data", "execute_result", "error"):
            self.shown += len(str(msg["content"]))
            if self.shown > FLOOD and self.stopping is None and self.km.provisioner is not None:
                self.stopping = asyncio.ensure_future(self.km.provisioner.kill())
            if self.shown > OUTPUT_LIMIT:
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
    scratch: Path | None = None,
    server: ForkServer | None = None,
) -> tuple[Status, str] | None:
    """Run the notebook into `copy`; what stopped it, if anything did."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what counts is what this run shows
            cell["outputs"], cell["execution_count"] = [], None
    try:
        execute_notebook(
            notebook,
            str(copy),
            dict(values),
            engine_name="llm_core",
            kernel_name=KERNEL["name"],
            language=KERNEL["language"],
            progress_bar={"desc": "running", "leave": False, "disable": None} if progress else False,
            folder=folder,
            cell_timeout=timeout,
            deadline=time.monotonic() + total_timeout,
            scratch=scratch,
            server=server,
        )
    except PapermillExecutionError as error:
        text = one_line(error.evalue)
        line = _source_line(error)
        where = f" in cell {error.exec_count}" + (f", `{line}`" if line else "")
        return "error", f"The notebook stops with {error.ename}{where}" + (f": {text}" if text else ".")
    except CellTimeoutError:
        return (
            "timeout",
            f"A cell was still running after {timeout:g} s, or the notebook after {total_timeout:g} s; it was stopped.",
        )
    except DeadKernelError:
        return (
            "error",
            "The kernel died: the notebook ended its process, ran out of memory, or was stopped because it had shown "
            f"more than {FLOOD // 1_000_000} million characters.",
        )
    except Exception as error:  # whatever else one submission causes must not stop the others
        return "error", f"The notebook could not be run: {type(error).__name__}: {one_line(error)}"
    return None


def _judge(
    path: Path,
    exercise: str,
    values: Mapping[str, Any],
    executed: NotebookNode | None,
    trouble: tuple[Status, str] | None,
    n_cells: int,
    variants: Sequence[Mapping[str, Any]],
) -> Result:
    cells = executed.cells if executed is not None else []
    # Where parameters were injected there is one cell more; the variants' cells are the last ones.
    own = [cell for cell in cells if "variant" not in cell.metadata.get("llm_core", {})]
    reports = [report for cell in own for report in _reports(cell)]
    stopped_later = trouble is not None and len(own) >= n_cells and _ran(own) and reports
    if trouble is not None and not stopped_later:
        return _result(path, exercise, *trouble)
    if not reports:
        return _result(path, exercise, "error", "The check cell shows no report: check(...) has to be its last line.")
    report = reports[-1]
    ignored = [name for name, value in values.items() if report["parameters"].get(name) != value]
    if report["exercise"] != exercise or ignored:
        what = f"the parameters {', '.join(ignored)}" if ignored else f"the exercise {exercise}"
        return _result(path, exercise, "error", f"The report is not about {what}: the check cell was changed.")
    went = []
    for variant, cell in zip(variants, [cell for cell in cells if cell not in own], strict=False):
        about = [r for r in _reports(cell) if all(r["parameters"].get(name) == v for name, v in variant.items())]
        went.append(about[-1]["status"] if about else "error")
    went += ["error"] * (len(variants) - len(went))
    status, message = report["status"], report["message"]
    if status == "passed" and any(outcome != "passed" for outcome in went):
        status = "failed"
        message = "The functions pass with the notebook's parameters, and fail with other ones."
    return Result(
        str(path),
        exercise,
        report["parameters"],
        report["passed"],
        report["total"],
        status,
        message,
        {check["name"]: list(check["findings"]) for check in report["checks"]},
        {finding["id"]: finding["message"] for finding in report["findings"]},
        went,
    )


def _ran(cells: Sequence[NotebookNode]) -> bool:
    """Whether every code cell that holds anything came to its end."""
    return all(
        cell.execution_count is not None and not any(output.output_type == "error" for output in cell.outputs)
        for cell in cells
        if _code(cell).strip()
    )


def _reports(cell: NotebookNode) -> Iterator[dict[str, Any]]:
    """The reports that a cell shows; what has their type and not their form is none."""
    for output in cell.get("outputs", []):
        report = output.get("data", {}).get(MIME)
        if _has(report, _REPORT) and report["status"] in get_args(Status):
            checks, findings = report["checks"], report["findings"]
            if all(_has(check, _CHECKED) for check in checks) and all(_has(finding, _FOUND) for finding in findings):
                yield report


def _has(entry: Any, form: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in form.items())


def _result(path: Path, exercise: str, status: Status, message: str) -> Result:
    return Result(str(path), exercise, {}, 0, 0, status, message)


def _reread(copy: Path) -> NotebookNode | None:
    try:
        return read(copy)
    except Unusable:
        return None


def _keep(executed: NotebookNode, output: Path) -> None:
    """Put the executed copy in its place, whole or not at all."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(output, error.strerror or str(error)) from error
    write_whole(output, nbformat.writes(executed))


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


_CHECK = re.compile(r"^\s*(?:\w+\s*=\s*)?check\(\s*[\"']([^\"']+)[\"']", re.MULTILINE)
_REPORT = {"exercise": str, "parameters": dict, "passed": int, "total": int, "status": str, "message": str}
_REPORT |= {"checks": list, "findings": list}
_CHECKED = {"name": str, "findings": list}
_FOUND = {"id": str, "message": str}


def _code(cell: NotebookNode) -> str:
    return str(cell.get("source", "")) if cell.get("cell_type") == "code" else ""


def _source_line(error: PapermillExecutionError) -> str:
    """The line of the cell at which it stopped, from the arrow in IPython's traceback."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    found = re.search(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)
    return found[1].strip() if found else ""


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
