"""The `llm-core` command: what it prints, and the status it ends with."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llm_core import __version__, cli
from llm_core.exercises import catalogue, runner

NAMES = [exercise.name for exercise in catalogue.exercises()]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def outcome(status: str = "passed", **changed: Any) -> runner.Result:
    message = "" if status == "passed" else "The scores are not divided."
    values: dict[str, Any] = {
        "file": "ada.ipynb",
        "exercise": "04/01_dot_product_attention",
        "parameters": {"seed": 3, "causal": True},
        "passed": 7 if status == "passed" else 1,
        "total": 7,
        "status": status,
        "message": message,
    }
    return runner.Result(**{**values, **changed})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command hands to the runner, without starting a kernel."""
    seen: list[dict[str, Any]] = []

    def run(path: Path, parameters: dict[str, str], **options: Any) -> runner.Result:
        seen.append({"path": path, "parameters": parameters, **options})
        return outcome("failed" if parameters.get("seed") == "13" else "passed")

    monkeypatch.setattr(runner, "run", run)
    return seen


def test_list_shows_every_exercise_with_its_parameters():
    result = call("exercise", "list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["exercise", *NAMES]
    assert "Exercise: attention from its formula" in result.stdout
    assert "seed=0 n_tokens=4 d_k=4 d_v=3 causal=False" in result.stdout
    rows = json.loads(call("exercise", "list", "--format", "json").stdout)
    assert [row["exercise"] for row in rows] == NAMES
    assert all(Path(row["notebook"]).is_file() for row in rows)


def test_run_takes_a_name_or_a_part_of_it_or_a_file(calls: list[dict[str, Any]], tmp_path: Path):
    copy = tmp_path / "mine.ipynb"
    copy.write_text("{}")
    for name in ("04/01_dot_product_attention", "dot_product", copy):
        assert call("exercise", "run", name, "-p", "n_tokens=6", "-p", "causal = true").exit_code == 0
    assert [seen["path"].name for seen in calls] == ["01_dot_product_attention.ipynb"] * 2 + ["mine.ipynb"]
    assert calls[0]["parameters"] == {"n_tokens": "6", "causal": "true"}


def test_run_shows_the_result_and_ends_with_its_status(calls: list[dict[str, Any]]):
    passed = call("exercise", "run", "dot_product")
    assert passed.exit_code == 0
    assert "04/01_dot_product_attention: passed. 7 of 7 checks passed (seed=3, causal=True)" in passed.stdout
    failed = call("exercise", "run", "dot_product", "-p", "seed=13")
    assert failed.exit_code == 1
    assert "The scores are not divided." in failed.stdout
    row = json.loads(call("exercise", "run", "dot_product", "--format", "json").stdout)[0]
    assert (row["status"], row["parameters"]) == ("passed", {"seed": 3, "causal": True})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dot_product", "-p", "n_heads=4"],
            "there is no parameter 'n_heads'. The notebook's parameters are seed: int",
        ),
        (["dot_product", "-p", "n_tokens=four"], "n_tokens must be a whole number, got 'four'"),
        (["dot_product", "-p", "causal=perhaps"], "causal must be true or false"),
        (["dot_product", "-p", "n_tokens"], "a parameter is written NAME=VALUE, got 'n_tokens'"),
        (["04/99_nothing"], "there is no exercise '04/99_nothing'"),
        (["04/"], "could be any of 04/01_dot_product_attention, 04/02_multi_head, 04/03_worked_example"),
        (["nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
        (["dot_product", "--timeout", "0"], "positive number of seconds"),
        (["dot_product", "--output", "."], "is a folder"),
        (["dot_product", "--output", "/dev/null/x.ipynb"], "cannot be written to"),
    ],
)
def test_a_call_that_cannot_work_ends_with_2_and_says_why(arguments: list[str], message: str):
    """The real runner, which finds all of these before it starts a kernel."""
    result = call("exercise", "run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["exercise", "run"],
        ["exercise", "nothing"],
        ["exercise", "run", "x", "--nothing"],
        ["exercise", "list", "--format", "x"],
    ],
)
def test_what_typer_refuses_ends_with_2(arguments: list[str]):
    assert call(*arguments).exit_code == 2


def test_report_writes_a_table_csv_or_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rows = [
        outcome(),
        outcome("failed", file="李雷.ipynb", message='He said "no", twice,\nin two lines'),
        outcome("timeout", file="c.ipynb", passed=0, total=0, parameters={}),
    ]
    monkeypatch.setattr(runner, "run_folder", lambda folder, parameters, **options: rows)
    table = call("exercise", "report", tmp_path)
    assert table.exit_code == 1
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["file", "exercise", "parameters", "passed", "total", "status", "message"]
    assert "seed=3 causal=True" in lines[1]
    assert lines[-1] == "1 of 3 notebooks passed."
    # Chinese characters take two columns each, and the table knows
    assert lines[2].index("04/01") == lines[1].index("04/01") - 2

    from_csv = list(csv.DictReader(io.StringIO(call("exercise", "report", tmp_path, "--format", "csv").stdout)))
    assert from_csv[1]["message"] == 'He said "no", twice, in two lines'
    assert [row["status"] for row in from_csv] == ["passed", "failed", "timeout"]
    from_json = json.loads(call("exercise", "report", tmp_path, "--format", "json").stdout)
    assert from_json[1]["file"] == "李雷.ipynb"
    assert from_json[0]["parameters"] == {"seed": 3, "causal": True}

    rows[:] = [outcome()]
    assert call("exercise", "report", tmp_path).exit_code == 0


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_report_on_a_folder_without_notebooks_ends_with_2(folder: str, tmp_path: Path):
    result = call("exercise", "report", tmp_path / folder)
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr or "there are no notebooks" in result.stderr


def test_report_on_files_that_are_no_notebooks(tmp_path: Path):
    """No kernel is needed for these, and none of them is a crash."""
    (tmp_path / "text.ipynb").write_text("hello")
    (tmp_path / "empty.ipynb").write_text("")
    result = call("exercise", "report", tmp_path, "--format", "json")
    assert result.exit_code == 1
    assert [row["status"] for row in json.loads(result.stdout)] == ["error", "error"]


def test_solution_prints_code_that_runs():
    result = call("exercise", "solution", "worked_example")
    assert result.exit_code == 0
    assert result.stdout == catalogue.find("04/03_worked_example").solution
    compile(result.stdout, "solution", "exec")
    assert call("exercise", "solution", "nothing").exit_code == 2


def test_without_the_chapters_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A package installed by pip has the checkers but not the notebooks."""
    monkeypatch.setattr(cli.llm_core, "__file__", str(tmp_path / "site-packages" / "llm_core" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    result = call("exercise", "run", "dot_product")
    assert result.exit_code == 2
    assert "clone of the repository" in result.stderr
    listed = call("exercise", "list")
    assert listed.exit_code == 0
    assert NAMES[0] in listed.stdout
    assert "clone of the repository" in listed.stderr


def test_a_clone_around_us_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[dict[str, Any]]):
    monkeypatch.setattr(cli.llm_core, "__file__", str(tmp_path / "site-packages" / "llm_core" / "__init__.py"))
    path = tmp_path / "clone" / "chapters" / "04_mathematics" / "exercises" / "01_dot_product_attention.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.chdir(path.parent)
    assert call("exercise", "run", "dot_product").exit_code == 0
    assert calls[0]["path"] == path


def test_the_command_runs_as_a_program():
    program = [sys.executable, "-c", "from llm_core.cli import app; app()", "version"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"
