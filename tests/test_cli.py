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
from llm_core.exercises import catalogue, grading, runner

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


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows that `grade` will give, in place of kernels."""
    rows: list[dict[str, Any]] = []

    def row(student: str, status: str = "passed", message: str = "", **changed: Any) -> dict[str, Any]:
        found = {} if status == "passed" else {"not_scaled": message}
        own = {"student": student, "file": f"{student}.ipynb", "exercise": NAMES[0], "parameters": {"seed": 3}}
        own |= {"status": status, "message": message, "passed": 7 - len(found), "total": 7, "variants": []}
        own |= {"checks": {"your numbers": list(found), "a single token": []}, "findings": found, "seconds": 1.25}
        return {**own, "points": 7.0 - len(found), "of": 7.0, "fenced": True, **changed}

    rows += [row("ben"), row("李雷", "failed", 'He said "no", twice,\nin two lines'), row("ada", parameters={"n": 4})]
    monkeypatch.setattr(grading, "submissions", lambda *arguments, **options: [None] * len(rows))
    monkeypatch.setattr(grading, "grade", lambda *arguments, **options: iter(rows))
    return rows


def test_report_writes_a_table_csv_or_json(graded: list[dict[str, Any]], tmp_path: Path):
    table = call("exercise", "report", tmp_path)
    assert table.exit_code == 1
    lines = table.stdout.splitlines()
    assert lines[0].split()[:5] == ["student", "file", "exercise", "status", "points"]
    assert [line.split()[0] for line in lines[1:4]] == ["ada", "ben", "李雷"]
    assert "The most frequent mistakes" in lines
    assert lines[-1].startswith("2 of 3 notebooks passed.")
    # Chinese characters take two columns each, and the table knows
    assert lines[3].index(NAMES[0]) == lines[1].index(NAMES[0]) - 4

    from_csv = list(csv.DictReader(io.StringIO(call("exercise", "report", tmp_path, "--format", "csv").stdout)))
    assert [line["student"] for line in from_csv] == ["ada", "ben", "李雷"]
    assert from_csv[2]["message"] == 'He said "no", twice, in two lines'
    assert [line["your numbers"] for line in from_csv] == ["ok", "ok", "not_scaled"]
    assert [(line["seed"], line["n"]) for line in from_csv] == [("", "4"), ("3", ""), ("3", "")]
    from_json = json.loads(call("exercise", "report", tmp_path, "--format", "json").stdout)
    assert from_json[2]["file"] == "李雷.ipynb"
    assert from_json[1]["parameters"] == {"seed": 3}

    graded.pop(1)
    assert call("exercise", "report", tmp_path).exit_code == 0


def test_report_says_when_notebooks_were_not_fenced_off(graded: list[dict[str, Any]], tmp_path: Path):
    assert "fenced" not in call("exercise", "report", tmp_path).output
    graded[1]["fenced"] = False
    assert "Containerfile" in call("exercise", "report", tmp_path).stderr


def test_report_writes_a_page_about_the_class(graded: list[dict[str, Any]], tmp_path: Path):
    page = tmp_path / "class.html"
    call("exercise", "report", tmp_path, "--page", page)
    text = page.read_text(encoding="utf-8")
    assert "李雷" in text
    assert "He said &quot;no&quot;" in text
    assert "src=" not in text
    assert "http" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "there are no notebooks"),
        (["nowhere"], "there is no folder"),
        ([".", "--weight", "dot_product=much"], "the weight of dot_product must be a number from 0 on"),
        ([".", "--students", "nobody.csv"], "nobody.csv cannot be read"),
    ],
)
def test_report_that_cannot_begin_ends_with_2(arguments: list[str], message: str, tmp_path: Path):
    if len(arguments) > 1:
        (tmp_path / "x.ipynb").write_text("hello")
    result = call("exercise", "report", tmp_path / arguments[0], *arguments[1:])
    assert result.exit_code == 2
    assert message in result.stderr


def test_report_on_files_that_are_no_notebooks(tmp_path: Path):
    """No kernel is needed for these, and none of them is a crash."""
    folder = tmp_path / "handed in"
    folder.mkdir()
    (folder / "text.ipynb").write_text("hello")
    (folder / "empty.ipynb").write_text("")
    result = call("exercise", "report", folder, "--format", "json")
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
