"""A class's notebooks: nothing is lost, nothing is seen by another, and the table says what a teacher needs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from work import CHAPTERS, PARAMETERS, handed_in, wrong_solutions

from llm_core.exercises import catalogue, grading, runner
from llm_core.exercises.class_page import class_page
from llm_core.exercises.grading import Row, Submission, Variants, grade, submissions
from llm_core.exercises.kernels import ForkServer
from llm_core.exercises.report import MIME

DOT = catalogue.find("04/01_dot_product_attention")

# Stands for the package in notebooks that are about grading.
PRETEND = f'''
def check(name, **work):
    class Shown:
        def _repr_mimebundle_(self, include=None, exclude=None):
            report = dict(exercise=name, parameters=work, passed=1, total=2, status="failed", message="It is late.")
            report |= dict(checks=[dict(name="time", findings=["late"]), dict(name="place", findings=[])])
            report |= dict(findings=[dict(id="late", message="It is late.", hint="", checks=["time"])])
            if work["seed"] != 13:
                report |= dict(passed=2, status="passed", message="", findings=[])
                report["checks"][0]["findings"] = []
            return {{"text/plain": "fine", "{MIME}": report}}
    return Shown()
'''
CHECK = 'check("04/01_dot_product_attention", seed=seed)'
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a view of its own is Linux's")


@pytest.fixture(autouse=True)
def _without_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks that pretend need no torch, and a process that loads it takes seconds to start."""
    if "mistake_is_named" not in request.node.name:
        monkeypatch.setattr(ForkServer, "loaded", "")


def notebook(path: Path, *cells: str, parameters: str = "seed: int = 0  # where it starts") -> Path:
    """A notebook with a parameters cell and these cells."""
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Mine"), first, *map(new_code_cell, cells)]), path)
    return path


def graded(folder: Path, **options: Any) -> dict[str, Row]:
    """The rows of a folder by their files."""
    given = {name: options.pop(name) for name in ("parameters", "students", "seed_from_name") if name in options}
    report = options.pop("report", folder.with_name(f"{folder.name}.jsonl"))
    found = submissions(folder, given.pop("parameters", None), leave_out=options.get("output"), **given)
    return {row["file"]: row for row in grade(found, report, hidden=[folder], **options)}


# --- every file ends as a row ---


def test_the_notebook_as_it_is_given_out_is_not_started_and_a_mistake_is_named(tmp_path: Path):
    folder = tmp_path / "x"
    handed_in(DOT, folder / "ada.ipynb", wrong_solutions(DOT.name)["not_scaled"])
    handed_in(DOT, folder / "cyd.ipynb", DOT.solution)
    path = DOT.notebook(CHAPTERS)
    assert path is not None
    (folder / "ben.ipynb").write_bytes(path.read_bytes())
    rows = graded(folder, variants=Variants(1, "x"))
    assert {file: row["status"] for file, row in rows.items()} == {
        "ada.ipynb": "failed", "ben.ipynb": "not started", "cyd.ipynb": "passed",
    }  # fmt: skip
    assert rows["ada.ipynb"]["message"] == "The scores are not divided by the square root of d_k."
    assert "not_scaled" in rows["ada.ipynb"]["findings"]
    assert rows["cyd.ipynb"]["variants"] == ["passed"]
    assert rows["ben.ipynb"]["parameters"] == PARAMETERS[DOT.name][0]


def test_whatever_goes_wrong_stays_in_its_row(tmp_path: Path):
    folder = tmp_path / "handed in"
    notebook(folder / "a fine one.ipynb", PRETEND, CHECK)
    notebook(folder / "crashed.ipynb", PRETEND, "seed = 1 / 0", CHECK)
    notebook(folder / "deep" / "also fine 好.ipynb", PRETEND, "report = " + CHECK, "report")
    notebook(
        folder / "hangs.ipynb",
        "while True:\n    try:\n        pass\n    except KeyboardInterrupt:\n        pass",
        CHECK,
    )
    notebook(folder / "killed.ipynb", "import os\nos._exit(1)", CHECK)
    notebook(folder / "no exercise.ipynb", "1 + 1")
    notebook(folder / "no report.ipynb", PRETEND, "report = " + CHECK)
    notebook(folder / "prints for ever.ipynb", "while True:\n    print('x' * 1000)", CHECK)
    notebook(folder / "shows for ever.ipynb", "while True:\n    display('x' * 10000)", CHECK)
    notebook(folder / "syntax.ipynb", "def broken(:", CHECK)
    notebook(folder / "lost parameter.ipynb", PRETEND, CHECK, parameters="n: int = 1  # not a seed")
    (folder / "text.ipynb").write_text("this is not JSON")
    (folder / "empty.ipynb").write_bytes(b"")
    (folder / "binary.ipynb").write_bytes(bytes(range(256)))
    (folder / "list.ipynb").write_text("[1, 2]")
    (folder / "other.ipynb").write_text(json.dumps({"hello": "world"}))
    frame = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    cell = {"cell_type": "code", "metadata": {}, "source": CHECK, "outputs": [], "execution_count": None}
    (folder / "cells.ipynb").write_text(json.dumps({**frame, "cells": 3}))
    (folder / "no type.ipynb").write_text(json.dumps({**frame, "cells": [cell, {"source": "x", "metadata": {}}]}))
    (folder / "no tags.ipynb").write_text(json.dumps({**frame, "cells": [{**cell, "metadata": {"tags": None}}]}))
    old = {"cell_type": "code", "language": "python", "collapsed": False, "metadata": {}, "input": CHECK, "outputs": []}
    sheet = {"metadata": {}, "cells": [{**old, "prompt_number": 1}]}
    of_2013 = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [sheet]}
    (folder / "of 2013.ipynb").write_text(json.dumps(of_2013))
    (folder / "folder.ipynb").mkdir()
    (folder / "loop.ipynb").symlink_to("loop.ipynb")
    (folder / "nowhere.ipynb").symlink_to("gone.ipynb")
    notebook(folder / ".ipynb_checkpoints" / "a fine one-checkpoint.ipynb", PRETEND, CHECK)
    before = {path: path.read_bytes() for path in folder.rglob("*.ipynb") if path.is_file()}

    rows = graded(folder, parameters={"seed": "3"}, output=folder / "executed", timeout=6.0, jobs=2)

    statuses = {Path(file).stem: row["status"] for file, row in rows.items()}
    fine = {"a fine one": "passed", "also fine 好": "passed"}
    late = {"hangs": "timeout"}
    # A quick machine reaches the limit of what is printed before that of the time.
    flood = {name: statuses.pop(name) for name in ("prints for ever", "shows for ever")}
    assert set(flood.values()) <= {"timeout", "error"}
    broken = (
        "binary cells crashed empty folder killed list loop nowhere other syntax text,lost parameter,no exercise,"
        "no report,no tags,no type,of 2013"
    )
    names = [name for part in broken.split(",")[:1] for name in part.split()] + broken.split(",")[1:]
    assert statuses == {**fine, **late, **dict.fromkeys(names, "error")}
    for name, message in {
        "crashed": "ZeroDivisionError in cell 4, `seed = 1 / 0`: division by zero",
        "empty": "empty.ipynb is not a notebook",
        "folder": "folder.ipynb cannot be read",
        "hangs": "still running after 6 s",
        "killed": "The kernel died",
        "lost parameter": "there is no parameter 'seed'. The notebook's parameters are n: int",
        "no exercise": "has no check cell",
        "no report": "shows no report",
        "no type": "its cell 2 is neither code nor text",
        "syntax": "SyntaxError",
        "text": "text.ipynb is not a notebook",
    }.items():
        assert message in rows[f"{name}.ipynb"]["message"]
    assert all("\n" not in row["message"] and len(row["message"]) < 500 for row in rows.values())
    assert rows["a fine one.ipynb"]["parameters"] == {"seed": 3}

    # the learners' files are as they were; the copies lie where they were wanted, and are not run next time
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "executed" / "deep" / "also fine 好.ipynb").exists()
    assert (folder / "executed" / "crashed.ipynb").exists()
    for name in ("prints for ever", "shows for ever"):
        assert os.path.getsize(folder / "executed" / f"{name}.ipynb") < 3 * runner.OUTPUT_LIMIT
    assert len(submissions(folder, leave_out=folder / "executed")) == len(rows)


@linux
def test_what_a_notebook_shows_cannot_break_the_report(tmp_path: Path):
    """Half characters, and marks that end a line, in all that a learner's code can put into a row."""
    folder = tmp_path / "x"
    odd = PRETEND.replace("It is late.", "half \\ud800 and \\u2028 and \\x85").replace('name="time"', 'name="t\\ud800"')
    notebook(folder / "a.ipynb", odd, CHECK, parameters="seed: int = 13")
    notebook(folder / "b.ipynb", PRETEND, CHECK)
    (first, second), again = graded(folder).values(), graded(folder)
    assert (second["status"], len(again)) == ("passed", 2)
    assert first["status"] in ("failed", "error")
    json.dumps(list(again.values()), ensure_ascii=False).encode()
    assert again == {"a.ipynb": first, "b.ipynb": second}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a file that never ends is Unix's")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    folder = tmp_path / "x"
    folder.mkdir()
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "endless.ipynb").symlink_to("/dev/zero")
    assert {file: row["message"] for file, row in graded(folder).items()} == {
        name: f"{name} cannot be read: it is not a file" for name in ("endless.ipynb", "pipe.ipynb")
    }


def test_a_name_that_is_no_text_is_a_row_too(tmp_path: Path):
    folder = tmp_path / "handed in"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/Mu\xf1oz.ipynb"))).write_text("hello")
    (row,) = graded(folder).values()
    assert (row["file"], row["student"], row["status"]) == (r"Mu\xf1oz.ipynb", r"Mu\xf1oz", "error")
    json.dumps(row, ensure_ascii=False).encode()


# --- one is kept from another ---


@linux
def test_a_notebook_cannot_see_or_delete_anothers_file(tmp_path: Path):
    folder = tmp_path / "handed in"
    secret = notebook(folder / "ada.ipynb", PRETEND, CHECK)
    look = (
        "import os, glob, subprocess\n"
        f"seen = os.listdir({str(folder)!r}) + open({str(tmp_path / 'r.jsonl')!r}).readlines()\n"
        f"for place in ({str(tmp_path)!r}, '/tmp'):\n"
        "    try:\n"
        "        open(place + '/left behind', 'w')\n"
        "        seen.append(place)\n"
        "    except OSError:\n"
        "        pass\n"
        f"undone = subprocess.run(['umount', {str(folder)!r}], capture_output=True).returncode\n"
        f"seen += os.listdir({str(folder)!r}) + [p for p in os.listdir('/proc') if p.isdigit() and int(p) > 99]\n"
        "open('mine', 'w').close()\n"
        "assert not seen and undone, seen"
    )
    notebook(folder / "eve.ipynb", PRETEND, look, CHECK)
    rows = graded(folder, report=tmp_path / "r.jsonl")
    if not rows["eve.ipynb"]["fenced"]:
        pytest.skip("this system gives an ordinary process no view of its own")
    assert (rows["eve.ipynb"]["message"], rows["ada.ipynb"]["status"]) == ("", "passed")
    assert secret.exists()


@linux
def test_a_kernel_from_elsewhere_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = tmp_path / "hub" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "hub"))
    path = notebook(tmp_path / "x" / "a.ipynb", PRETEND, f"import sys\nassert sys.prefix == {sys.prefix!r}", CHECK)
    assert runner.run(path).status == "passed"
    assert graded(path.parent)["a.ipynb"]["status"] == "passed"


def test_kernels_do_not_share_their_random_numbers(tmp_path: Path):
    show = "import random\nassert False, random.random()"
    for name in "ab":
        notebook(tmp_path / "x" / f"{name}.ipynb", show, CHECK)
    a, b = graded(tmp_path / "x").values()
    assert a["message"] != b["message"]


# --- nothing is lost ---


def test_what_the_report_holds_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "x"
    for name in "ab":
        notebook(folder / f"{name}.ipynb", PRETEND, CHECK)
    first = graded(folder)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"key": "cut o')  # what a kill leaves
    ran: list[Path] = []
    run = runner.run

    def counted(path: Path, *arguments: Any, **options: Any) -> runner.Result:
        ran.append(path)
        return run(path, *arguments, **options)

    monkeypatch.setattr(grading.runner, "run", counted)
    assert graded(folder) == first
    assert ran == []
    notebook(folder / "b.ipynb", PRETEND, "1 + 1", CHECK)
    assert graded(folder)["a.ipynb"] == first["a.ipynb"]
    assert [path.name for path in ran] == ["b.ipynb"]
    graded(folder, parameters={"seed": "5"})
    assert len(ran) == 3
    graded(folder, again=True)
    assert len(ran) == 5


@linux
def test_a_grading_that_is_killed_goes_on_where_it_was(tmp_path: Path):
    folder, report = tmp_path / "x", tmp_path / "report.jsonl"
    for number in range(4):
        notebook(folder / f"{number}.ipynb", PRETEND, "import time\ntime.sleep(0.5)", CHECK)
    program = [sys.executable, "-c", "from llm_core.cli import app; app()", "exercise", "report", folder]
    grader = subprocess.Popen([*program, "--results", report], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while grader.poll() is None and (not report.exists() or report.read_text().count("\n") < 2):
        time.sleep(0.02)
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    done = report.read_text().count("\n")
    assert 2 <= done < 4
    rows = graded(folder, report=report)
    assert [row["status"] for row in rows.values()] == ["passed"] * 4
    assert report.read_text().count("\n") == 4


def test_a_report_of_something_else_is_refused(tmp_path: Path):
    notebook(tmp_path / "x" / "a.ipynb", PRETEND, CHECK)
    report = tmp_path / "list.txt"
    for text in ("milk", "milk\nbread\n"):
        report.write_text(text)
        with pytest.raises(ValueError, match=r"line 1 of .*list\.txt is no row of a report"):
            graded(tmp_path / "x", report=report)
    with pytest.raises(ValueError, match="cannot be written to"):
        graded(tmp_path / "x", report=report / "below a file")
    assert report.read_text() == "milk\nbread\n"


# --- students, parameters, variants, points ---


def test_students_have_parameters_of_their_own(tmp_path: Path):
    folder = tmp_path / "x"
    notebook(folder / "ada.ipynb", PRETEND, CHECK)
    notebook(folder / "ben" / "mine.ipynb", PRETEND, CHECK)
    table = tmp_path / "students.csv"
    table.write_text("student,seed\nada,13\nben,\n", encoding="utf-8-sig")
    ada, ben = submissions(folder, {"seed": "2"}, students=table)
    assert (ada.student, ada.parameters) == ("ada", {"seed": "13"})
    assert (ben.student, ben.parameters) == ("ben", {"seed": "2"})
    ada, ben = submissions(folder, seed_from_name=True)
    assert ada.parameters["seed"] == str(grading.seed_of("ada")) != ben.parameters["seed"]
    for text, message in {
        "student,seed\nada,1\n": "'ben', for whom",
        "name,seed\nada,1\n": "needs a column `student`",
        "student,seed\nada,1\nada,2\n": "two lines for 'ada'",
        "student,seed\nada\nben,1\n": "line 2 .* not as many values",
    }.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            submissions(folder, students=table)


def test_hidden_variants_are_the_students_own_and_count(tmp_path: Path):
    a, b = (Submission(tmp_path, "f", name) for name in "ab")
    assert Variants(3, "x").of(a) == Variants(3, "x").of(a) != Variants(3, "x").of(b)
    assert Variants(3, "x").of(a) != Variants(3, "y").of(a)
    only_zero = PRETEND.replace('work["seed"] != 13', 'work["seed"] == 0')
    notebook(tmp_path / "x" / "a.ipynb", only_zero, CHECK)
    row = graded(tmp_path / "x", variants=Variants(3, "x"))["a.ipynb"]
    assert (row["status"], row["variants"]) == ("failed", ["failed"] * 3)
    assert (row["points"], row["of"]) == (0.5, 2.0)  # a quarter of two: its own numbers, and none of three others


def test_points_weights_and_columns(tmp_path: Path):
    folder = tmp_path / "x"
    notebook(folder / "ada" / "1.ipynb", PRETEND, CHECK)
    notebook(folder / "ada" / "2.ipynb", PRETEND, CHECK.replace("04/01_dot_product_attention", "04/02_multi_head"))
    notebook(folder / "ben.ipynb", PRETEND, CHECK, parameters="seed: int = 13  # a bad one")
    rows = list(graded(folder, points=10.0, weights={"04/02_multi_head": 2.0}).values())
    assert [(row["points"], row["of"]) for row in rows] == [(10, 10), (20, 20), (5, 10)]
    assert grading.totals(rows) == [("ada", 30.0, 30.0), ("ben", 5.0, 10.0)]
    (common,) = grading.mistakes(rows)
    assert (common.finding, common.message, common.students) == ("late", "It is late.", ("ben",))
    lines = grading.columns(rows)
    assert [(line["time"], line["place"], line["seed"]) for line in lines] == [
        ("ok", "ok", "0"), ("ok", "ok", "0"), ("late", "ok", "13"),
    ]  # fmt: skip
    page = class_page(rows, "<b>A class</b>")
    assert "&lt;b&gt;A class" in page
    assert page.count("<tr>") == 1 + 1 + 1 + 2 + 1 + 3
    assert 'class="bar" style="width: 70%"' in page


def test_a_submission_that_kills_the_server_costs_only_itself(tmp_path: Path):
    """Where the system gives it no view of its own, it can; the others are graded all the same."""
    folder = tmp_path / "x"
    kill = "import os, signal\nfor name in os.listdir('/proc'):\n"
    kill += "    if name.isdigit() and b'forkserver.py\\0serve' in open(f'/proc/{name}/cmdline', 'rb').read():\n"
    kill += "        os.kill(int(name), signal.SIGKILL)\n"
    notebook(folder / "eve.ipynb", kill if sys.platform.startswith("linux") else "1", "import os\nos._exit(1)", CHECK)
    for name in "abc":
        notebook(folder / f"{name}.ipynb", PRETEND, CHECK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading.ForkServer, "_possible_fence", lambda self: "")
        rows = graded(folder, jobs=2)
    assert {file: row["status"] for file, row in rows.items()} == {
        "a.ipynb": "passed", "b.ipynb": "passed", "c.ipynb": "passed", "eve.ipynb": "error",
    }  # fmt: skip
    assert not any(row["fenced"] for row in rows.values())


def test_students_table_is_plain_csv(tmp_path: Path):
    """What `columns` gives is what the csv module writes and reads again."""
    notebook(tmp_path / "x" / "a.ipynb", PRETEND, CHECK)
    lines = grading.columns(list(graded(tmp_path / "x").values()))
    path = tmp_path / "out.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == lines
