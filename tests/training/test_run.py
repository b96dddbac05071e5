"""A run outlives what happens to runs: kill -9, Ctrl-C, a full disk, damage, NaN, a second run in its folder."""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import Batch, shift
from llm_core.training.checkpoint import CheckpointError, load_checkpoint
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW
from llm_core.training.run import Run, RunError, Stopped
from llm_core.training.step import NotFinite, train_step

PROGRAM = Path(__file__).with_name("a_run.py")
sys.path.insert(0, str(PROGRAM.parent))
a_run_module = importlib.import_module("a_run")
IDS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))


class Forked:
    """`a_run.py` in a process that was forked from one with torch loaded: as separate as any, and there at once."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.logs = [folder.parent / f"{folder.name}.{name}.{time.monotonic_ns()}" for name in ("out", "err")]
        target, arguments = a_run_module.as_a_program, [str(folder), *map(str, arguments)]
        self.process = FORKS.Process(target=target, args=(arguments, *map(str, self.logs)))
        self.process.start()
        self.kill = self.process.kill

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def finish(self) -> tuple[int, str, str]:
        self.process.join(240)
        assert self.process.exitcode is not None, "it is still running after four minutes"
        out, err = (log.read_text() for log in self.logs)
        return self.process.exitcode, out, err


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["llm_core.models.gpt", "llm_core.training.optimizer", "llm_core.training.run"])


@pytest.fixture(scope="module", autouse=True)
def server():
    """The process that forks has one thread: none is lost when it does."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    forkserver.ensure_running()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


def start(folder: Path, *arguments: object) -> Forked:
    return Forked(folder, *arguments)


def finish(process: Forked) -> tuple[int, str, str]:
    return process.finish()


def wait_for_records(folder: Path, n: int) -> None:
    records = folder / "records.jsonl"
    for _ in range(2400):
        if records.exists() and records.read_text().count("\n") >= n:
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} has no {n} records after two minutes")


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The last checkpoint's tensors, and the records without the time of day."""
    last = max((folder / "checkpoints").glob("step-*.safetensors"))
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"]
    return load_checkpoint(last).tensors, lines


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, torch.Tensor], list[dict]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, err = finish(start(folder, 22))
    assert (code, out) == (0, "begins at 0\n"), err
    return outcome(folder)


def assert_the_same(folder: Path, undisturbed) -> None:
    tensors, lines = outcome(folder)
    assert tensors.keys() == undisturbed[0].keys()
    assert all(torch.equal(tensor, undisturbed[0][name]) for name, tensor in tensors.items())
    assert lines == undisturbed[1]


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, undisturbed):
    process = start(tmp_path, 22, 0.1)
    wait_for_records(tmp_path, 10)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    # The steps after the last checkpoint are gone, and taken again.
    code, out, err = finish(start(tmp_path, 22))
    assert code == 0, err
    assert int(out.split()[-1]) % 4 == 0
    assert int(out.split()[-1]) >= 8
    assert_the_same(tmp_path, undisturbed)


def test_a_run_that_is_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(tmp_path, undisturbed):
    assert finish(start(tmp_path, 22, 0, 12))[0] == -signal.SIGKILL
    assert list((tmp_path / "checkpoints").glob("*.part"))
    code, out, err = finish(start(tmp_path, 22))
    assert (code, out) == (0, "begins at 8\n"), err
    assert not list((tmp_path / "checkpoints").glob("*.part"))
    assert_the_same(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_says_how_to_go_on_and_loses_nothing(number, tmp_path, undisturbed):
    process = start(tmp_path, 22, 0.1)
    wait_for_records(tmp_path, 6)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code != 0
    taken = len((tmp_path / "records.jsonl").read_text().splitlines())
    assert f"Stopped: stopped by {number.name} after step {taken} of 22; all is saved in" in err
    assert "Start the same program again to go on from there" in err
    code, out, err = finish(start(tmp_path, 22))
    assert (code, out) == (0, f"begins at {taken}\n"), err
    assert_the_same(tmp_path, undisturbed)


def test_a_program_started_anew_and_killed_goes_on_too(tmp_path, undisturbed):
    """Nothing forked: Python, torch and the program from the beginning, as on a cluster."""
    command = [sys.executable, str(PROGRAM), str(tmp_path), "22"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, "0", "12"], capture_output=True, env=environment, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    again = subprocess.run(command, capture_output=True, env=environment, timeout=240, text=True)
    assert (again.returncode, again.stdout) == (0, "begins at 8\n"), again.stderr
    assert_the_same(tmp_path, undisturbed)


def test_a_finished_run_has_nothing_left_to_do_and_a_longer_one_goes_on(tmp_path, undisturbed):
    assert finish(start(tmp_path, 14))[0] == 0
    assert finish(start(tmp_path, 14))[1] == "begins at 14\n"
    assert finish(start(tmp_path, 22))[1] == "begins at 14\n"
    assert_the_same(tmp_path, undisturbed)


def test_two_processes_cannot_be_in_one_folder(tmp_path):
    first = start(tmp_path, 10_000, 0.1)
    wait_for_records(tmp_path, 1)
    code, _, err = finish(start(tmp_path, 22))
    first.kill()
    finish(first)
    assert code == 1
    assert f"RunError: another run is at work in {tmp_path}" in err
    # The lock of a process that was killed is free.
    assert finish(start(tmp_path, 1))[0] == 0


def small(seed: int = 0) -> tuple[GPT, AdamW]:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=11, context=8, n_layers=1, n_heads=2, d_model=8))
    return model, AdamW(model.parameters())


def a_run(folder: Path, **changes) -> Run:
    model, optimizer = small()
    return Run(folder, **{"model": model, "optimizer": optimizer, "settings": {"lr": 0.01}} | changes)


def train(run: Run, total: int, *, save_every: int = 2) -> None:
    for _ in run.steps(total, save_every=save_every):
        run.log(train_step(run.model, shift(IDS), run.optimizer, lr=0.01))


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("step-*.safetensors"))


def test_the_last_checkpoints_are_kept_and_the_last_step_is_saved(tmp_path):
    with a_run(tmp_path, keep=3) as run:
        train(run, 11)
    assert saved_steps(tmp_path) == [8, 10, 11]
    assert [record["step"] for record in run.history()] == list(range(11))


def test_a_record_has_what_the_step_did_and_what_else_is_known(tmp_path):
    with a_run(tmp_path) as run:
        for _ in run.steps(1, save_every=1):
            record = train_step(run.model, shift(IDS), run.optimizer, lr=0.01)
            run.log(record, validation_loss=2.5)
            run.log({"note": "a mapping"})
    first, second = run.history()
    assert {k: first[k] for k in ("step", "loss", "grad_norm", "lr")} == {
        "step": 0,
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "lr": 0.01,
    }
    assert first["validation_loss"] == 2.5
    assert second["note"] == "a mapping"


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(damage, tmp_path):
    with a_run(tmp_path) as run:
        train(run, 4)
    newest = tmp_path / "checkpoints" / "step-00000004.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-10] ^= 1
    newest.write_bytes({"cut": content[:-100], "flipped": content, "emptied": b""}[damage])
    run = a_run(tmp_path)
    with pytest.warns(UserWarning, match=r"going on from .*step-00000002.*step-00000004") as warned, run:  # noqa: PT031
        assert run.step == 2
        assert [record["step"] for record in run.history()] == [0, 1]
        train(run, 3)
        assert saved_steps(tmp_path) == [2, 3]  # the damaged one is not one of those to keep
        train(run, 4)
    assert "damaged" in str(warned[0].message) or "cut short" in str(warned[0].message)
    assert saved_steps(tmp_path) == [3, 4]
    with a_run(tmp_path) as again:
        assert again.step == 4


def test_if_all_are_damaged_nothing_is_begun_anew_behind_the_readers_back(tmp_path):
    with a_run(tmp_path) as run:
        train(run, 4)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*Move them away to begin at step 0"):
        a_run(tmp_path).__enter__()
    assert len(saved_steps(tmp_path)) == 2


def test_other_settings_are_refused_with_their_names(tmp_path):
    with a_run(tmp_path) as run:
        train(run, 2)
    with pytest.raises(RunError, match=r"other settings \(depth: None there, 3 here; lr: 0\.01 there, 0\.02 here\)"):
        (refused := a_run(tmp_path, settings={"lr": 0.02, "depth": 3})).__enter__()
    with a_run(tmp_path) as run:  # and the lock was given back, though `refused` is still there
        assert run.step == 2
    assert refused.step == 0


def test_settings_come_back_as_they_went_though_json_has_no_tuples(tmp_path):
    for _ in range(2):
        with a_run(tmp_path, settings={"betas": (0.9, 0.95)}) as run:
            train(run, 1)


def test_a_second_run_in_the_same_process_is_refused_too(tmp_path):
    with a_run(tmp_path), pytest.raises(RunError, match="another run is at work"):
        a_run(tmp_path).__enter__()
    with a_run(tmp_path):
        pass


class Full:
    """A disk that is full while `on`: half of what is written arrives."""

    def __init__(self, monkeypatch):
        self.on = True
        real = os.fsync

        def fsync(number):
            if self.on:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(number)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_is_a_warning_and_the_next_save_is_tried(tmp_path, monkeypatch):
    with a_run(tmp_path) as run:
        train(run, 2)
        full = Full(monkeypatch)
        with pytest.warns(UserWarning, match=r"step 4 was not saved, and training goes on.*No space left on device"):  # noqa: PT031
            for step in run.steps(8, save_every=2):
                run.log(train_step(run.model, shift(IDS), run.optimizer, lr=0.01))
                full.on = step < 5
        assert saved_steps(tmp_path) == [6, 8]
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_full_disk_at_the_last_step_is_an_error_and_leaves_what_was_saved(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    with run:
        train(run, 2)
        Full(monkeypatch)
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(run, 3, save_every=100)
    assert saved_steps(tmp_path) == [2]
    monkeypatch.undo()
    with a_run(tmp_path) as again:
        assert again.step == 2


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path):
    with a_run(tmp_path) as run:
        run.records.mkdir()
        with pytest.warns(UserWarning, match="step 0 was not recorded"):
            run.log({"loss": 1.0})


class Poisoned(CrossEntropy):
    def total(self, model, batch):
        return super().total(model, batch) * float("nan")


def test_a_loss_that_is_not_a_number_names_step_batch_and_last_good_checkpoint(tmp_path):
    run = a_run(tmp_path)
    with pytest.raises(NotFinite) as error, run:  # noqa: PT012 (the notes are added on the way out)
        for step in run.steps(9, save_every=2):
            loss = Poisoned() if step == 5 else CrossEntropy()
            run.log(train_step(run.model, [shift(IDS), shift(IDS[:1])], run.optimizer, lr=0.01, loss=loss))
    report = tmp_path / "not-finite-step-00000005.json"
    good = tmp_path / "checkpoints" / "step-00000004.safetensors"
    assert error.value.__notes__ == [
        f"This was step 5; the batch's ids are in {report}; the last good checkpoint is {good}."
    ]
    parts = json.loads(report.read_text())["batch"]
    assert [part["inputs"][0] for part in parts] == [IDS[:, :-1].tolist(), IDS[:1, :-1].tolist()]
    assert parts[1]["targets"] == IDS[:1, 1:].tolist()
    assert load_checkpoint(good).step == 4
    with a_run(tmp_path) as again:
        assert again.step == 4


def test_without_a_checkpoint_it_says_so(tmp_path):
    run = a_run(tmp_path)
    with pytest.raises(NotFinite) as error, run:
        train_step(run.model, shift(IDS), run.optimizer, lr=0.01, loss=Poisoned())
    assert "there is no checkpoint yet" in error.value.__notes__[0]


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path):
    run = a_run(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as error, run:  # noqa: PT012
        for _ in run.steps(9, save_every=100):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert not isinstance(error.value, Stopped)
    assert saved_steps(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_last_step_lets_the_run_end(tmp_path):
    with a_run(tmp_path) as run:
        for step in run.steps(3, save_every=100):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
    assert saved_steps(tmp_path) == [3]


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    results = []

    def work():
        with a_run(tmp_path) as run:
            train(run, 2)
            results.append(run.step)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [2]


def test_the_bar_begins_where_the_run_does_and_is_closed(tmp_path):
    calls = []

    class Bar:
        def __init__(self, **settings):
            calls.append(settings)

        def update(self):
            calls.append("update")

        def set_postfix(self, **values):
            calls.append(values["loss"])

        def close(self):
            calls.append("close")

    with a_run(tmp_path) as run:
        train(run, 2)
    with a_run(tmp_path) as run:
        for _ in run.steps(3, save_every=1, bar=Bar):
            run.log({"loss": 1.23456})
    assert calls == [{"total": 3, "initial": 2, "unit": "step"}, "1.2346", "update", "close"]


def test_what_a_run_cannot_be_asked_for(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1: got 0"):
        a_run(tmp_path, keep=0)
    with a_run(tmp_path) as run, pytest.raises(ValueError, match="save_every=0"):
        next(run.steps(3, save_every=0))


def test_a_checkpoint_of_another_model_is_refused_and_stays(tmp_path):
    with a_run(tmp_path) as run:
        train(run, 2)
    with pytest.raises(CheckpointError, match="is of another model"):
        a_run(tmp_path, model=nn.Linear(2, 2)).__enter__()
    assert saved_steps(tmp_path) == [2]


def test_a_batch_with_several_inputs_is_reported_whole(tmp_path):
    run = a_run(tmp_path)
    batch = Batch((IDS, IDS + 1), IDS)
    with pytest.raises(NotFinite), run:
        raise NotFinite("loss", float("inf"), [batch])
    report = json.loads((tmp_path / "not-finite-step-00000000.json").read_text())
    assert report["batch"][0]["inputs"] == [IDS.tolist(), (IDS + 1).tolist()]
