"""Faults at random moments of a run: it ends with the weights and the records of a run that had none.

Each process is forked from one that has torch loaded. Which faults come is fixed by the seed; where in the run a signal
arrives is up to the machine, since it is sent after a random time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_core.training.checkpoint import load_checkpoint

PROGRAM = Path(__file__).with_name("a_run.py")
sys.path.insert(0, str(PROGRAM.parent))
a_run = importlib.import_module("a_run")
FORKS = multiprocessing.get_context("forkserver")
# torch._dynamo takes seconds, and torch imports it when the first optimizer is made.
FORKS.set_forkserver_preload(["torch._dynamo", "llm_core.models.gpt", "llm_core.training.run"])
TOTAL = 14
KINDS = ["kill"] * 5 + ["stop", "interrupt", "flip", "cut", "spoiled record", "full disk", "two"]


def with_room_for(room: int, arguments: list[str], out: str, err: str) -> None:
    """A run whose files cannot grow beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    a_run.as_a_program(arguments, out, err)


def started(folder: Path, sleep: float = 0.0, room: int | None = None):
    now = time.monotonic_ns()
    logs = [str(folder.parent / f"{folder.name}.{now}.{name}") for name in ("out", "err")]
    more = ([str(folder), str(TOTAL), str(sleep)], *logs)
    process = FORKS.Process(
        target=a_run.as_a_program if room is None else with_room_for, args=more if room is None else (room, *more)
    )
    process.start()
    return process, Path(logs[1])


def printed(err: Path) -> str:
    """What a run has printed so far, by the name of its log of errors."""
    out = err.with_suffix(".out")
    return out.read_text() if out.exists() else ""


def ended(folder: Path) -> None:
    process, err = started(folder)
    process.join(240)
    assert process.exitcode == 0, err.read_text()


def outcome(folder: Path) -> tuple[str, list[dict]]:
    """The digest of the last checkpoint's tensors, and the records without the time of day."""
    digest = hashlib.sha256()
    last = max((folder / "checkpoints").glob("step-*.safetensors"))
    for name, tensor in sorted(load_checkpoint(last).tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return digest.hexdigest(), [{key: line[key] for key in line if key != "time"} for line in lines]


def signalled(folder: Path, number: int, draw: random.Random) -> bool:
    """Send a signal at some moment of the run; whether it came in time."""
    process, err = started(folder, 0.004)
    wanted = draw.randrange(TOTAL)
    records = folder / "records.jsonl"
    # Once the program has begun: where a run goes on, its records may be there before.
    while process.is_alive() and not (
        err.exists() and records.exists() and records.read_bytes().count(b"\n") >= wanted
    ):
        time.sleep(0.001)
    time.sleep(draw.random() * 0.02)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(240)
    assert process.exitcode in (0, 1, -number, -signal.SIGKILL), process.exitcode
    if not err.exists():
        return False  # it came before the program had begun
    if process.exitcode == 1:
        assert "Stopped: stopped by" in err.read_text() or "KeyboardInterrupt" in err.read_text(), err.read_text()
    return process.exitcode != 0


def fault(kind: str, folder: Path, draw: random.Random) -> bool:
    """Do one fault to a run; whether it took place."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    if kind in ("kill", "stop", "interrupt"):
        number = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "interrupt": signal.SIGINT}[kind]
        return signalled(folder, number, draw)
    if kind in ("flip", "cut"):
        content = bytearray(checkpoints[-1].read_bytes())
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8)
        checkpoints[-1].write_bytes(content if kind == "flip" else content[:place])
    elif kind == "spoiled record":
        with (folder / "records.jsonl").open("ab") as file:
            file.write(draw.choice([b"\xff\n", b"null\n", b'{"loss": 1}\n', b'{"step": 1', b"\0" * 50]))
    elif kind == "full disk":
        room = draw.randrange(1, 9000)
        process, err = started(folder, room=room)
        process.join(240)
        assert process.exitcode != 0
        said = err.read_bytes()  # which has no more room than any other file
        assert len(said) >= room or b"cannot be written" in said or b"cannot begin" in said, said
        assert not list(folder.rglob("*.part"))
    else:
        first, first_err = started(folder, 60.0)  # so slow that it is at work until it is killed
        while "begins at" not in printed(first_err):
            assert first.is_alive(), first_err.read_text()
            time.sleep(0.002)
        (folder / "lock").unlink()
        second, err = started(folder)
        second.join(240)
        first.kill()
        first.join()
        assert "another run is at work" in err.read_text(), err.read_text()
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[str, list[dict]]:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    ended(folder)
    return outcome(folder)


def finished(folder: Path) -> bool:
    return bool(list(folder.glob(f"checkpoints/step-{TOTAL:08d}.safetensors")))


def ready_for(kind: str, folder: Path) -> bool:
    """Whether the run has got as far as this fault needs it."""
    if kind in ("flip", "cut"):
        return len(list(folder.glob("checkpoints/step-*.safetensors"))) > 1
    return folder.exists() or kind not in ("spoiled record", "two")


def survive(faults: int, seed: int, tmp_path: Path, undisturbed) -> Counter:
    """Runs with five faults each, or until they end, one after another, until there have been so many."""
    draw, done, runs = random.Random(seed), Counter(), 0
    plan = [KINDS[i % len(KINDS)] for i in range(faults)]
    draw.shuffle(plan)
    folder, suffered = tmp_path / "0", 0
    for kind in plan:
        for _ in range(20):  # a signal may come too late: then again, in a new run
            if suffered >= 5 or finished(folder):
                ended(folder)
                assert outcome(folder) == undisturbed, (folder, seed, done)
                runs += 1
                folder, suffered = tmp_path / str(runs), 0
            now = kind if ready_for(kind, folder) else "kill"
            if not fault(now, folder, draw):
                continue
            suffered += 1
            done[now] += 1
            done["of them in the midst of a write"] += any(folder.rglob("*.part"))
            if now == kind:
                break
        else:
            pytest.fail(f"{kind} did not take place in 20 attempts: {done}")
    ended(folder)
    assert outcome(folder) == undisturbed, (folder, seed, done)
    print(f"{sum(done[kind] for kind in set(KINDS))} faults in {runs + 1} runs: {dict(done)}")
    return done


def test_forty_faults_lose_nothing(tmp_path, undisturbed):
    done = survive(40, 0, tmp_path, undisturbed)
    assert sum(done[kind] for kind in set(KINDS)) >= 40


@pytest.mark.full
def test_two_hundred_faults_lose_nothing(tmp_path, undisturbed):
    done = survive(200, 1, tmp_path, undisturbed)
    assert sum(done[kind] for kind in set(KINDS)) >= 200
