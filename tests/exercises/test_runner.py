"""Learners' notebooks in real kernels: what is right passes, and nothing that goes wrong goes further than its row."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from work import CHAPTERS, EXERCISES, PARAMETERS, handed_in, learners_notebook, names, wrong_solutions

from llm_core.exercises import catalogue, runner
from llm_core.exercises.catalogue import Exercise
from llm_core.exercises.report import MIME

DOT = catalogue.find("04/01_dot_product_attention")

# Stands for the package in notebooks that are about the runner: a kernel with torch takes seconds to start.
PRETEND = f'''
def check(name, **work):
    class Shown:
        def _repr_mimebundle_(self, include=None, exclude=None):
            report = dict(exercise=name, parameters=work, passed=1, total=1, status="passed", message="")
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


# --- the four exercises, from end to end ---


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_notebook_passes_with_the_solution_in_its_stub(exercise: Exercise, tmp_path: Path):
    path = handed_in(exercise, tmp_path / "mine.ipynb", exercise.solution)
    before = path.read_bytes()
    parameters = PARAMETERS[exercise.name][2]
    result = runner.run(path, {name: str(value) for name, value in parameters.items()}, output=tmp_path / "out.ipynb")
    assert (result.status, result.message) == ("passed", "")
    assert result.passed == result.total > 5
    assert result.parameters == parameters
    assert path.read_bytes() == before
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any(MIME in output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", ()))


def test_the_notebook_as_it_is_given_out_is_not_started_and_a_mutant_is_named(tmp_path: Path):
    handed_in(DOT, tmp_path / "ada.ipynb", wrong_solutions(DOT.name)["not_scaled"])
    path = DOT.notebook(CHAPTERS)
    assert path is not None
    (tmp_path / "ben.ipynb").write_bytes(path.read_bytes())
    ada, ben = runner.run_folder(tmp_path)
    assert (ada.file, ada.status, ada.passed, ada.total) == ("ada.ipynb", "failed", 1, 9)
    assert ada.message == "The scores are not divided by the square root of d_k."
    assert (ben.file, ben.status) == ("ben.ipynb", "not started")
    assert ben.parameters == PARAMETERS[DOT.name][0]


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


def test_whatever_goes_wrong_stays_in_its_row(tmp_path: Path):
    pids = tmp_path / "pids.txt"
    note_pid = f"import os\nwith open({str(pids)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    folder = tmp_path / "handed in"
    notebook(folder / "a fine one.ipynb", PRETEND, CHECK)
    notebook(folder / "crashed.ipynb", PRETEND, "seed = 1 / 0", CHECK)
    notebook(folder / "deep" / "also fine 好.ipynb", PRETEND, "report = " + CHECK, "report")
    notebook(
        folder / "hangs.ipynb",
        note_pid + "while True:\n    try:\n        pass\n    except KeyboardInterrupt:\n        pass",
        CHECK,
    )
    notebook(folder / "killed.ipynb", "import os\nos._exit(1)", CHECK)
    notebook(folder / "no exercise.ipynb", "1 + 1")
    notebook(folder / "no report.ipynb", PRETEND, "report = " + CHECK)
    notebook(folder / "prints for ever.ipynb", note_pid + "while True:\n    print('x' * 1000)", CHECK)
    notebook(folder / "syntax.ipynb", "def broken(:", CHECK)
    notebook(folder / "lost parameter.ipynb", PRETEND, CHECK, parameters="n: int = 1  # not a seed")
    (folder / "text.ipynb").write_text("this is not JSON")
    (folder / "empty.ipynb").write_bytes(b"")
    (folder / "binary.ipynb").write_bytes(bytes(range(256)))
    (folder / "list.ipynb").write_text("[1, 2]")
    (folder / "other.ipynb").write_text(json.dumps({"hello": "world"}))
    (folder / "cells.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}))
    (folder / "folder.ipynb").mkdir()
    notebook(folder / ".ipynb_checkpoints" / "a fine one-checkpoint.ipynb", PRETEND, CHECK)
    started = {path: path.read_bytes() for path in folder.rglob("*.ipynb") if path.is_file()}

    results = {
        Path(result.file).stem: result
        for result in runner.run_folder(folder, {"seed": "3"}, output=folder / "executed", timeout=6.0)
    }

    statuses = {name: result.status for name, result in results.items()}
    assert statuses == {
        "a fine one": "passed",
        "also fine 好": "passed",
        "binary": "error",
        "cells": "error",
        "crashed": "error",
        "empty": "error",
        "folder": "error",
        "hangs": "timeout",
        "killed": "error",
        "list": "error",
        "lost parameter": "error",
        "no exercise": "error",
        "no report": "error",
        "other": "error",
        "prints for ever": "timeout",
        "syntax": "error",
        "text": "error",
    }
    for name, message in {
        "crashed": "ZeroDivisionError in cell 4, `seed = 1 / 0`: division by zero",
        "empty": "empty.ipynb is not a notebook",
        "folder": "folder.ipynb cannot be read",
        "hangs": "still running after 6 s",
        "killed": "The kernel died",
        "lost parameter": "there is no parameter 'seed'. The notebook's parameters are n: int",
        "no exercise": "has no check cell",
        "no report": "shows no report",
        "syntax": "SyntaxError",
        "text": "text.ipynb is not a notebook",
    }.items():
        assert message in results[name].message
    assert all("\n" not in result.message and len(result.message) < 500 for result in results.values())
    assert results["a fine one"].parameters == {"seed": 3}
    assert results["also fine 好"].file == str(Path("deep") / "also fine 好.ipynb")

    # the learners' files are as they were; the copies lie where they were wanted, and are not run next time
    assert {path: path.read_bytes() for path in started} == started
    assert (folder / "executed" / "deep" / "also fine 好.ipynb").exists()
    assert (folder / "executed" / "crashed.ipynb").exists()
    assert os.path.getsize(folder / "executed" / "prints for ever.ipynb") < 3 * runner.OUTPUT_LIMIT
    assert not list(folder.rglob("*.part"))
    assert len(list(runner._notebooks(folder, folder / "executed"))) == len(results)

    # nothing that hung is still there
    for pid in map(int, pids.read_text().split()):
        for _ in range(50):
            if not alive(pid):
                break
            time.sleep(0.2)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_the_whole_notebook_has_a_deadline_too(tmp_path: Path):
    cells = ["import time\ntime.sleep(1.5)"] * 40
    begun = time.monotonic()
    result = runner.run(notebook(tmp_path / "slow.ipynb", *cells, CHECK), timeout=30.0, total_timeout=4.0)
    assert result.status == "timeout"
    assert "the notebook after 4 s" in result.message
    assert time.monotonic() - begun < 50  # forty cells would take a minute


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
    with pytest.raises(ValueError, match="cannot be written to"):
        runner.run_folder(tmp_path, output=path / "below a file")

    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if sys.platform == "win32" or os.geteuid() == 0:  # root may write everywhere: let the system say no

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(runner.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="locked cannot be written to: Permission denied"):
        runner.run(path, output=locked / "out.ipynb")
    with pytest.raises(ValueError, match="locked cannot be written to: Permission denied"):
        runner.run_folder(tmp_path, output=locked)


def test_a_full_disk_leaves_the_old_copy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy, output = tmp_path / "copy.ipynb", tmp_path / "out.ipynb"
    copy.write_text("new")
    output.write_text("old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ValueError, match=r"cannot be written to .*: No space left on device"):
            runner._keep(copy, output)
    assert output.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_timeout_is_a_positive_number(timeout: float, tmp_path: Path):
    with pytest.raises(ValueError, match="positive number of seconds"):
        runner.run(notebook(tmp_path / "x.ipynb", CHECK), timeout=timeout)


def test_a_folder_without_notebooks(tmp_path: Path):
    with pytest.raises(ValueError, match="no notebooks"):
        runner.run_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        runner.run_folder(tmp_path / "nowhere")
