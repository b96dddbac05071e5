"""Parameter studies: every point of a grid once, in real kernels; what fails is a row; nothing is run twice or lost."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from test_runner import notebook
from typer.testing import CliRunner
from work import CHAPTERS

from llm_core import cli
from llm_core.exercises import notebook_files, runner, study
from llm_core.exercises.study import RECORD as KEY
from llm_core.exercises.study import read_table, record, sweep, write_table

PARAMETERS = 'rate: float = 0.1  # how fast\nsize: int = 2  # how large\nname: str = "ada"  # whose'
# Stands for `record`: a kernel that imports the package takes seconds to start.
RECORD = f"""
from IPython.display import display
display({{"text/plain": ""}}, metadata={{"{KEY}": dict(loss=rate * size)}}, raw=True)
"""
STUDIES = sorted(CHAPTERS.glob("*_*/studies/*.ipynb"))


def a_study(folder: Path, *cells: str) -> Path:
    return notebook(folder / "study.ipynb", *(cells or (RECORD,)), parameters=PARAMETERS)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameters of every run from here on, in order."""
    seen: list[dict[str, Any]] = []
    execute = runner.execute

    def counted(notebook: Any, copy: Path, values: Any, *rest: Any, **options: Any) -> Any:
        seen.append(dict(values))
        return execute(notebook, copy, values, *rest, **options)

    monkeypatch.setattr(runner, "execute", counted)
    return seen


def test_every_combination_is_run_once_and_the_rest_keeps_its_defaults(tmp_path: Path, runs: list[dict[str, Any]]):
    table = tmp_path / "new folder" / "table.csv"
    rows = sweep(a_study(tmp_path), {"rate": ["1e-1", "0.5"], "size": ["3", "4"]}, table)
    assert runs == [{"rate": r, "size": s} for r in (0.1, 0.5) for s in (3, 4)]
    assert [(row["rate"], row["size"], row["name"]) for row in rows] == [
        ("0.1", "3", "ada"), ("0.1", "4", "ada"), ("0.5", "3", "ada"), ("0.5", "4", "ada"),
    ]  # fmt: skip
    assert [float(row["loss"]) for row in rows] == pytest.approx([0.3, 0.4, 1.5, 2.0])
    assert read_table(table) == rows
    assert table.read_text().splitlines()[0] == "rate,size,name,loss"
    assert [file.name for file in table.parent.iterdir()] == ["table.csv"]


def test_what_the_table_holds_is_not_run_again(tmp_path: Path, runs: list[dict[str, Any]]):
    path, table = a_study(tmp_path), tmp_path / "table.csv"
    sweep(path, {"size": ["3"]}, table)
    runs.clear()
    rows = sweep(path, {"size": ["3", "5"], "rate": ["0.100", "0.2"]}, table)  # 0.100 is the default, 0.1
    assert runs == [{"size": 3, "rate": 0.2}, {"size": 5, "rate": 0.1}, {"size": 5, "rate": 0.2}]
    assert len(rows) == 4
    runs.clear()
    assert sweep(path, {}, table)[-1]["size"] == "2"  # no grid: the defaults
    assert runs == [{}]


def test_a_sweep_that_is_interrupted_goes_on_where_it_was(tmp_path: Path, runs: list[dict[str, Any]]):
    path, table, grid = a_study(tmp_path), tmp_path / "table.csv", {"size": ["3", "4", "5"]}

    def interrupted(points: list[study.Row]) -> Any:
        yield points[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(path, grid, table, progress=interrupted)
    assert [row["size"] for row in read_table(table)] == ["3"]
    sweep(path, grid, table)
    assert [run["size"] for run in runs] == [3, 4, 5]


def test_a_run_that_fails_is_a_row_and_is_tried_again(tmp_path: Path, runs: list[dict[str, Any]]):
    table, grid = tmp_path / "table.csv", {"size": ["3", "0", "4"]}
    path = a_study(tmp_path, "1 / size", RECORD)
    rows = sweep(path, grid, table)
    assert [row.get("error", "") == "" for row in rows] == [True, False, True]
    assert "ZeroDivisionError" in rows[1]["error"]
    assert read_table(table)[1]["loss"] == ""
    a_study(tmp_path)  # mended
    runs.clear()
    rows = sweep(path, grid, table)
    assert runs == [{"size": 0}]
    assert [row["size"] for row in rows] == ["3", "4", "0"]
    assert "error" not in table.read_text()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1", r"recorded nothing: record\(\.\.\.\) is missing"),
        (RECORD.replace("loss=", "size="), "under the name of a parameter: size"),
        ("import time; time.sleep(60)", "was stopped"),
    ],
)
def test_a_run_without_a_result_says_why(tmp_path: Path, cell: str, message: str):
    (row,) = sweep(a_study(tmp_path, cell), {}, tmp_path / "table.csv", timeout=8.0)
    assert row["size"] == "2"
    assert re.search(message, row["error"])


def test_a_run_may_record_several_times(tmp_path: Path):
    (row,) = sweep(a_study(tmp_path, RECORD, RECORD.replace("loss=", "more=")), {}, tmp_path / "table.csv")
    assert (row["loss"], row["more"]) == ("0.2", "0.2")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sise": ["1"]}, "there is no parameter 'sise'"),
        ({"size": ["1", "x"]}, "size must be a whole number, got 'x'"),
        ({"size": []}, "needs at least one value, each once"),
        ({"rate": ["0.1", "1e-1"]}, r"needs at least one value, each once: got 0\.1, 1e-1"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, runs: list[dict[str, Any]], grid: dict[str, list[str]], message: str
):
    with pytest.raises(ValueError, match=message):
        sweep(a_study(tmp_path), grid, tmp_path / "table.csv")
    assert not runs
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "is of another study: it has no column rate, size, name"),
        ("rate,size,name,loss\n0.1,2\n", "line 2 of .* has not as many values"),
        ("rate,size,name,loss\n0.1,2,ada,1,5\n", "line 2 of .* has not as many values"),
        (b"\xff\xfe\x00", "cannot be read: it is not in UTF-8"),
        ("my only line of notes\n", "is of another study: it has no column rate, size, name"),
        ("rate,rate,size,name,loss\n0.1,0.2,2,ada,1\n", "each column once, with a name: .* has rate twice"),
        ("rate,,size,name,loss\n0.1,x,2,ada,1\n", "each column once, with a name"),
        ("rate;size;name;loss\n0,1;2;ada;1\n", "line 2 of .*: rate must be a number, got '0,1'"),
        ("rate,size,name,loss\n0.1,2.5,ada,1\n", "line 2 of .*: size must be a whole number, got '2.5'"),
        ("rate,size,name,loss\n0.1,2,ada,1\n1e-1,2.0,ada,1\n", "lines 2 and 3 of .* have the same parameters"),
    ],
)
def test_a_file_that_is_no_table_of_the_study_is_left_alone(
    tmp_path: Path, runs: list[dict[str, Any]], content: str | bytes, message: str
):
    table = tmp_path / "table.csv"
    before = content if isinstance(content, bytes) else content.encode()
    table.write_bytes(before)
    with pytest.raises(ValueError, match=message):
        sweep(a_study(tmp_path), {}, table)
    assert not runs
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    "edited",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", ",,\n") + ",,,,,,\n\n",
        lambda text: "\n".join(",".join(f'"{v}"' for v in line.split(",")) for line in text.splitlines()),
        lambda text: text.replace("0.001", "1.00E-03").replace("1000000", "1E+06").replace("True", "TRUE"),
        lambda text: text.replace("rate,", " rate ,").replace("3,", "3.0,"),
    ],
)
def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path: Path, runs: list[dict[str, Any]], edited: Any):
    path = notebook(tmp_path / "study.ipynb", "1", parameters="rate: float = 1\nsize: int = 3\nflag: bool = True")
    table = tmp_path / "table.csv"
    text = "rate,size,flag,loss\n0.001,3,True,1.5\n0.001,1000000,True,2.5\n1.0,3,True,4\n"
    table.write_text(edited(text), encoding="utf-8", newline="")
    rows = sweep(path, {"rate": ["1e-3"], "size": ["3", "1000000"]}, table)
    assert sweep(path, {}, table) == rows
    assert not runs
    assert [(row["rate"], row["size"], row["flag"], float(row["loss"])) for row in rows] == [
        ("0.001", "3", "True", 1.5), ("0.001", "1000000", "True", 2.5), ("1.0", "3", "True", 4.0),
    ]  # fmt: skip


def test_marks_that_end_a_line_elsewhere_stay_in_their_value(tmp_path: Path):
    rows = [{"a": "1", "b": "one\u2028two\x85three\x0bfour"}, {"a": "2", "b": 'x;y;z"'}]
    write_table(rows, ["a"], tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == rows
    (tmp_path / "empty.csv").write_bytes(b"")
    assert read_table(tmp_path / "empty.csv") == []


def test_a_default_that_is_no_plain_value_is_named(tmp_path: Path):
    path = notebook(tmp_path / "study.ipynb", RECORD, parameters="rate: float = 2 * 3\nsize: int = 1")
    with pytest.raises(ValueError, match=r"the notebook's parameter rate must have a plain value .* got 2 \* 3"):
        sweep(path, {"size": ["1"]}, tmp_path / "table.csv")


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf])
def test_a_timeout_is_a_positive_number(timeout: float, tmp_path: Path):
    with pytest.raises(ValueError, match="positive number of seconds"):
        sweep(a_study(tmp_path), {}, tmp_path / "table.csv", timeout=timeout)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = tmp_path / "table.csv"
    write_table([{"a": "1", "b": "x, y\nz"}], ["a"], table)
    assert read_table(table) == [{"a": "1", "b": "x, y\nz"}]
    before = table.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"table\.csv cannot be written: No space left"):
        write_table([{"a": "2"}], ["a"], table)
    assert table.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_record_is_seen_by_the_sweep_and_by_the_reader(monkeypatch: pytest.MonkeyPatch):
    shown: list[Any] = []
    monkeypatch.setattr(study, "display", lambda data, metadata, raw: shown.append((data, metadata)))
    record(loss=1.5, name="ada")
    assert shown == [({"text/plain": "loss = 1.5, name = ada"}, {KEY: {"loss": 1.5, "name": "ada"}})]
    for values in ({}, {"error": 1}):
        with pytest.raises(ValueError, match="record at least one value"):
            record(**values)


# --- the command, and the book's own studies ---


def test_the_command_runs_a_study_and_shows_its_table(tmp_path: Path):
    path = a_study(tmp_path)
    table = tmp_path / "table.csv"
    arguments = ["study", "run", str(path), "--table", str(table), "-p", "size=3, 4", "-p", "rate=2"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["rate", "size", "name", "loss"], ["2.0", "3", "ada", "6.0"], ["2.0", "4", "ada", "8.0"],
    ]  # fmt: skip
    a_study(tmp_path, "1 / 0")
    result = CliRunner().invoke(cli.app, [*arguments[:-3], "size=9"])
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["03/no_such"], "there is no study '03/no_such'; there are: 01/03_amount_of_text, 02/02_numbers, "),
        (["no_such.ipynb"], "cannot be read"),
        (["03/04_learning_rate", "-p", "rate"], "a parameter is written NAME=VALUE"),
    ],
)
def test_what_the_command_cannot_do_is_an_error_of_use(tmp_path: Path, arguments: list[str], message: str):
    result = CliRunner().invoke(cli.app, ["study", "run", *arguments, "--table", str(tmp_path / "t.csv")])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_list_names_every_study():
    result = CliRunner().invoke(cli.app, ["study", "list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [cli._study_name(path) for path in STUDIES]
    assert len(STUDIES) >= 2


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_table_of_a_study_is_one_that_its_notebook_makes(path: Path):
    rows = read_table(path.with_suffix(".csv"))
    known = runner.parameters_of(notebook_files.read(path))
    defaults = {name: str(runner.literal(entry["default"])) for name, entry in known.items()}
    assert list(rows[0])[: len(defaults)] == list(defaults)
    assert len({tuple(row[name] for name in defaults) for row in rows}) == len(rows) > 20
    assert study.ERROR not in rows[0]
    # The notebook was run at its defaults, and that is a point of the table.
    (row,) = [row for row in rows if all(row[name] == value for name, value in defaults.items())]
    outputs = [output for cell in notebook_files.read(path).cells for output in cell.get("outputs", [])]
    (recorded,) = [output.metadata[KEY] for output in outputs if KEY in output.get("metadata", {})]
    assert {name: float(row[name]) for name in recorded} == pytest.approx(recorded, abs=0.1)
