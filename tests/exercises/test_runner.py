"""Learners' notebooks in real kernels: what is right passes, and nothing that goes wrong goes further than its row."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from work import EXERCISES, PARAMETERS, handed_in, learners_notebook, names

from llm_core.exercises import catalogue, runner
from llm_core.exercises.catalogue import Exercise
from llm_core.exercises.kernels import ForkServer
from llm_core.exercises.report import MIME

DOT = catalogue.find("04/01_dot_product_attention")

# Stands for the package in notebooks that are about the runner: a kernel with torch takes seconds to start.
PRETEND = f'''
def check(name, **work):
    class Shown:
        def _repr_mimebundle_(self, include=None, exclude=None):
            report = dict(exercise=name, parameters=work, passed=1, total=1, status="passed", message="")
            report |= dict(checks=[dict(name="all of it", findings=[])], findings=[])
            return {{"text/plain": "fine", "{MIME}": report}}
    return Shown()
'''
CHECK = 'check("04/01_dot_product_attention", seed=seed)'


def notebook(path: Path, *cells: str, parameters: str = "seed: int = 0  # where it starts") -> Path:
    """A notebook with a parameters cell and these cells."""
    made = new_notebook(
        cells=[
            new_markdown_cell("# Mine"),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, cells),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


# --- every exercise, from end to end ---


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer | None]:
    """Kernels with torch at once, as a class is graded, where the system can fork."""
    if ForkServer.possible():
        with ForkServer() as running:
            yield running
    else:
        yield None


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_notebook_passes_with_the_solution_in_its_stub(exercise: Exercise, tmp_path: Path, server: Any):
    path = handed_in(exercise, tmp_path / "mine.ipynb", exercise.solution)
    before = path.read_bytes()
    parameters = PARAMETERS[exercise.name][2]
    texts = {name: str(value) for name, value in parameters.items()}
    server = None if exercise is EXERCISES[0] else server  # one as a learner runs it, in a kernel that starts anew
    result = runner.run(path, texts, output=tmp_path / "out.ipynb", server=server)
    assert (result.status, result.message) == ("passed", "")
    assert result.passed == result.total > 5
    assert result.parameters == parameters
    assert path.read_bytes() == before
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any(MIME in output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", ()))


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_learners_notebook_has_what_the_runner_needs(exercise: Exercise):
    made = learners_notebook(exercise)
    assert runner.exercise_of(made) == exercise.name
    known = runner.parameters_of(made)
    assert {name: runner.typed({name: entry["default"]}, made)[name] for name, entry in known.items()} == PARAMETERS[
        exercise.name
    ][0]
    assert all(entry["help"] and entry["type"] for entry in known.values())
    assert [cell.metadata.get("tags") for cell in made.cells if cell.metadata.get("tags")] == [["parameters"], ["stub"]]
    everything = "\n".join(cell.source for cell in made.cells)
    body = exercise.solution.splitlines()[-1].strip()
    assert body not in everything


# --- what goes wrong in one notebook ---


def test_the_whole_notebook_has_a_deadline_too(tmp_path: Path):
    cells = ["import time\ntime.sleep(1.5)"] * 40
    begun = time.monotonic()
    result = runner.run(notebook(tmp_path / "slow.ipynb", *cells, CHECK), timeout=30.0, total_timeout=4.0)
    assert result.status == "timeout"
    assert "the notebook after 4 s" in result.message
    assert time.monotonic() - begun < 50  # forty cells would take a minute


@pytest.mark.parametrize("show", ["print", "display"])
def test_a_notebook_that_shows_without_end_is_stopped(show: str, tmp_path: Path):
    """Long before its time is up, and before its messages fill the memory."""
    begun = time.monotonic()
    without_end = f'import time\nwhile time.sleep(1e-3) is None:\n    {show}("x" * 100_000)'
    flood = notebook(tmp_path / "flood.ipynb", without_end, CHECK)
    result = runner.run(flood, timeout=90.0, output=tmp_path / "executed.ipynb")
    assert result.status == "error"
    assert "more than 20 million characters" in result.message
    assert time.monotonic() - begun < 80
    assert (tmp_path / "executed.ipynb").stat().st_size < 3 * runner.OUTPUT_LIMIT


def test_one_kernel_is_one_thread(tmp_path: Path):
    code = "import os\nassert os.environ['OMP_NUM_THREADS'] == '1'"
    assert runner.run(notebook(tmp_path / "x.ipynb", PRETEND, code, CHECK)).status == "passed"
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"]


def test_a_kernel_from_elsewhere_is_replaced(tmp_path: Path):
    """Colab's notebooks and those of a conda environment name a kernel that is not here; some name none."""
    path = notebook(tmp_path / "colab.ipynb", PRETEND, CHECK)
    saved = json.loads(path.read_text())
    saved["metadata"] = {"kernelspec": {"name": "conda-env-mine", "display_name": "mine"}, "colab": {"provenance": []}}
    path.write_text(json.dumps(saved))
    assert runner.run(path).status == "passed"


def test_a_check_cell_that_ignores_the_parameters_is_noticed(tmp_path: Path):
    path = notebook(tmp_path / "fixed.ipynb", PRETEND, CHECK.replace("seed=seed", "seed=0"))
    result = runner.run(path, {"seed": "5"})
    assert result.status == "error"
    assert "not about the parameters seed" in result.message


# --- parameters ---


def typed(parameters: str, **given: str) -> dict[str, Any]:
    cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    made = new_notebook(cells=[cell])
    made.metadata["kernelspec"] = dict(runner.KERNEL)
    return runner.typed(given, made)


@pytest.mark.parametrize(
    ("cell", "text", "value"),
    [
        ("n: int = 4  # help", "7", 7),
        ("n: int = 4  # help", "-7", -7),
        ("n: float = 4.0  # help", "7", 7.0),
        ("n: float = 4.0  # help", "1e-3", 1e-3),
        ("n: bool = True  # help", "false", False),
        ("n: bool = True  # help", "Yes", True),
        ("n: str = 'a'  # help", "7", "7"),
        ("n = 4", "7", 7),
        ("n = 'a'", "7", "7"),
        ("n: list = [1]  # help", "[2, 3]", [2, 3]),
    ],
)
def test_a_value_gets_the_type_of_its_parameter(cell: str, text: str, value: Any):
    got = typed(cell, n=text)["n"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("cell", "given", "message"),
    [
        ("n: int = 4  # help", {"n": "four"}, "n must be a whole number, got 'four'"),
        ("n: int = 4  # help", {"n": "4.5"}, "n must be a whole number, got '4.5'"),
        ("n: int = 4  # help", {"n": ""}, "n must be a whole number, got ''"),
        ("n: float = 4  # help", {"n": "x"}, "n must be a number, got 'x'"),
        ("n: bool = True  # help", {"n": "maybe"}, "n must be true or false, got 'maybe'"),
        ("n: list = [1]  # help", {"n": "open(1)"}, "n must be list, got 'open(1)'"),
        (
            "n: int = 4  # help\nm: bool = True  # help",
            {"k": "1"},
            "no parameter 'k'. The notebook's parameters are n: int, m: bool",
        ),
        ("# none", {"k": "1"}, "The notebook has no parameters"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(cell: str, given: dict[str, str], message: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared as it is, below
        typed(cell, **given)
    assert message in str(error.value)


def test_parameters_out_of_range_are_refused_before_a_kernel_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(runner, "execute", lambda *a: pytest.fail("it was run"))
    for exercise in EXERCISES:
        path = handed_in(exercise, tmp_path / "x.ipynb", exercise.solution)
        with pytest.raises(ValueError, match="seed must be a whole number from 0 on, got -1"):
            runner.run(path, {"seed": "-1"})
        defaults = PARAMETERS[exercise.name][0]
        runner.check_range(exercise.name, defaults)
        size = next(name for name in defaults if isinstance(defaults[name], int) and name != "seed")
        with pytest.raises(ValueError, match=size):
            runner.run(path, {size: "0"})


# --- where the executed copy goes ---


def test_the_learners_own_file_is_never_overwritten(tmp_path: Path):
    path = notebook(tmp_path / "mine.ipynb", PRETEND, CHECK)
    (tmp_path / "link.ipynb").symlink_to(path)
    before = path.read_bytes()
    for output in (path, tmp_path / "x" / ".." / "mine.ipynb", tmp_path / "link.ipynb"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"would overwrite .*mine\.ipynb"):
            runner.run(path, output=output)
    assert path.read_bytes() == before


def test_another_notebook_is_not_overwritten_but_an_executed_copy_is(tmp_path: Path):
    path = notebook(tmp_path / "mine.ipynb", PRETEND, CHECK)
    other = notebook(tmp_path / "other.ipynb", "1")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for output in (other, notes):
        with pytest.raises(ValueError, match="is not an executed copy"):
            runner.run(path, output=output)
    output = tmp_path / "out.ipynb"
    for seed in ("1", "2"):
        assert runner.run(path, {"seed": seed}, output=output).parameters == {"seed": int(seed)}
    assert "seed = 2" in output.read_text()


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = notebook(tmp_path / "mine.ipynb", PRETEND, CHECK)
    monkeypatch.setattr(runner, "execute", lambda *a: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="is a folder"):
        runner.run(path, output=tmp_path)
    with pytest.raises(ValueError, match="cannot be written to"):
        runner.run(path, output=path / "below a file.ipynb")

    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if sys.platform == "win32" or os.geteuid() == 0:  # root may write everywhere: let the system say no

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(runner.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="locked cannot be written to: Permission denied"):
        runner.run(path, output=locked / "out.ipynb")


def test_a_full_disk_leaves_the_old_copy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "out.ipynb"
    output.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match=r"out\.ipynb cannot be written: No space left on device"):
            runner._keep(new_notebook(), output)
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf])
def test_a_timeout_is_a_positive_number(timeout: float, tmp_path: Path):
    path = notebook(tmp_path / "x.ipynb", CHECK)
    for limits in ({"timeout": timeout}, {"total_timeout": timeout}):
        with pytest.raises(ValueError, match="positive number of seconds"):
            runner.run(path, **limits)


# --- variants, and reports that are none ---


def test_variants_check_the_same_functions_with_other_parameters(tmp_path: Path):
    answers = PRETEND.replace('status="passed"', 'status="passed" if work["seed"] < 10 else "failed"')
    result = runner.run(notebook(tmp_path / "x.ipynb", answers, CHECK), variants=[{"seed": 3}, {"seed": 11}])
    assert result.variants == ["passed", "failed"]
    assert result.status == "failed"
    assert result.parameters == {"seed": 0}
    assert "fail with other ones" in result.message


def test_a_check_that_ignores_its_variant_has_not_passed_it(tmp_path: Path):
    path = notebook(tmp_path / "x.ipynb", PRETEND, CHECK.replace("seed=seed", "seed=0"))
    result = runner.run(path, variants=[{"seed": 3}])
    assert (result.status, result.variants) == ("failed", ["error"])


def test_a_variant_that_raises_leaves_the_report_as_it_was(tmp_path: Path):
    answers = PRETEND.replace("    class Shown", "    1 / work['weight']\n    class Shown")
    path = notebook(tmp_path / "x.ipynb", answers, 'check("04/01_dot_product_attention", weight=weight)',
                    parameters="weight: int = 1  # of it")  # fmt: skip
    result = runner.run(path, variants=[{"weight": 0}, {"weight": 2}])
    assert (result.passed, result.total) == (1, 1)
    assert result.variants == ["error", "error"]


@pytest.mark.parametrize("shown", ["'text'", "{}", "dict(exercise=1)", "None", "[1]", "dict(whole, passed='many')",
                                   "dict(whole, checks=[{}])", "dict(whole, status='fine')"])  # fmt: skip
def test_what_only_has_a_reports_type_is_none(shown: str, tmp_path: Path):
    whole = f"whole = dict(exercise={DOT.name!r}, parameters=dict(seed=0), passed=1, total=1, status='passed')\n"
    whole += "whole |= dict(message='', checks=[], findings=[])\n"
    cell = whole + f"from IPython.display import display\ndisplay({{'{MIME}': {shown}}}, raw=True)"
    result = runner.run(notebook(tmp_path / "x.ipynb", cell, "check = lambda *a, **k: None\n" + CHECK))
    assert result.status == "error"
    assert "shows no report" in result.message


def test_an_executed_copy_that_is_handed_in_has_no_variants_of_its_own(tmp_path: Path):
    path = notebook(tmp_path / "x.ipynb", PRETEND, CHECK)
    copy = tmp_path / "copy.ipynb"
    runner.run(path, variants=[{"seed": 3}], output=copy)
    result = runner.run(copy, variants=[{"seed": 4}])
    assert (result.status, result.variants, result.parameters) == ("passed", ["passed"], {"seed": 3})


def test_a_stored_report_does_not_count(tmp_path: Path):
    report = {"exercise": DOT.name, "parameters": {"seed": 0}, "passed": 7, "total": 7, "status": "passed"}
    report |= {"message": "", "checks": [], "findings": []}
    path = notebook(tmp_path / "x.ipynb", "check = lambda *a, **k: None\n" + CHECK)
    made = nbformat.read(path, as_version=4)
    made.cells[-1].outputs = [nbformat.v4.new_output("display_data", {MIME: report})]
    nbformat.write(made, path)
    assert runner.run(path).status == "error"
