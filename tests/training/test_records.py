"""A line of the records that is none stops no run, and is not lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from llm_core.training.optimizer import AdamW
from llm_core.training.records import append_record, cut_records, read_records
from llm_core.training.run import Run, RunError


def a_run(folder: Path) -> Run:
    net = nn.Linear(2, 2)
    return Run(folder, model=net, optimizer=AdamW(net.parameters()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with a_run(tmp_path / "run") as run:
        for _ in run.steps(4, save_every=2):
            run.log({"loss": 1.0})
    return run.folder


BAD = [b"\xff", b"null", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"7", b"[" * 100_000, b"", b'{"step": 1']


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_line_that_is_no_record_is_moved_aside_and_named(line, place, folder: Path):
    whole = (folder / "records.jsonl").read_bytes().splitlines()
    lines = [*whole[:place], line, *whole[place:]]
    (folder / "records.jsonl").write_bytes(b"".join(one + b"\n" for one in lines))
    run = a_run(folder)
    with pytest.warns(UserWarning, match="lines that are no records") as warned:
        run.__enter__()
    run.__exit__(None, None, None)
    assert f"{folder / 'records.jsonl'} has lines" in str(warned[0].message)
    assert f"step: {place + 1}. They were moved to records.jsonl.damaged" in str(warned[0].message)
    assert run.step == 4
    assert [record["step"] for record in run.history()] == [0, 1, 2, 3]
    assert (folder / "records.jsonl").read_bytes().splitlines() == whole
    assert (folder / "records.jsonl.damaged").read_bytes() == line + b"\n"


def test_steps_out_of_order_keep_their_order_and_a_line_after_a_torn_one_is_its_own(folder: Path):
    path = folder / "records.jsonl"
    path.write_bytes(b'{"step": 3}\n{"step": 0}\n{"step": 9}\n{"st')
    append_record(path, {"step": 1})
    assert [record["step"] for record in read_records(path)] == [3, 0, 9, 1]
    run = a_run(folder)
    with pytest.warns(UserWarning, match=r"step: 4\. They were moved"):
        run.__enter__()
    run.__exit__(None, None, None)
    assert [record["step"] for record in run.history()] == [3, 0, 1]
    assert path.with_name("records.jsonl.damaged").read_bytes() == b'{"st\n'


@pytest.mark.parametrize("name", ["", "lock", "checkpoints", "records.jsonl"])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_thing_of_another_kind_is_named(name, kind, tmp_path: Path):
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    if kind == "dangling link":
        path.symlink_to("nowhere")
    elif (kind == "folder") == (name in ("", "checkpoints")):
        return  # that is what belongs there
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
    with pytest.raises(RunError, match=rf"{path} is (a link to nothing|a folder|no folder).*(remove|move)"):
        a_run(tmp_path / "run").__enter__()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_cannot_be_is_named(name, tmp_path: Path):
    with pytest.raises(RunError, match="the run cannot begin in"):
        a_run(tmp_path / name).__enter__()


@pytest.mark.parametrize("call", ["open", "mkdir"])
def test_a_folder_without_the_right_to_write_is_named(call, tmp_path: Path, monkeypatch):
    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        with pytest.raises(RunError, match=r"Permission denied.*Give a folder"):
            a_run(tmp_path / "run").__enter__()
    with a_run(tmp_path / "run"):
        pass


def test_a_record_that_json_cannot_hold_names_step_and_file(folder: Path):
    with a_run(folder) as run, pytest.raises(ValueError, match=r"step 4 cannot be written to .*records\.jsonl.*item"):
        run.log({"loss": object()})


SECOND = """
import sys
from pathlib import Path
from llm_core.training.lock import FolderLock
sys.exit(0 if FolderLock(Path(sys.argv[1])).acquire() else 7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a file that is locked cannot be deleted")
def test_deleting_the_lock_lets_no_second_run_in(folder: Path):
    command = [sys.executable, "-c", SECOND, str(folder)]
    with a_run(folder):
        (folder / "lock").unlink()
        with pytest.raises(RunError, match="another run is at work"):
            a_run(folder).__enter__()
        assert subprocess.run(command, timeout=120).returncode == 7
    assert subprocess.run(command, timeout=120).returncode == 0


def test_the_records_of_a_step_that_is_taken_again_are_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    for step in range(5):
        append_record(path, {"step": step, "loss": 1.0})
    cut_records(path, 3)
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
