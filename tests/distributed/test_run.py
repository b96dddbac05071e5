"""A run whose checkpoints several processes write together: it saves, prunes and goes on with the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import on, run_checks

from llm_core.distributed.checkpoint import ShardedStore, load_sharded
from llm_core.distributed.data_parallel import OverAllRanks, rows_of
from llm_core.distributed.sharded import clip_sharded, local, shard
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import random_crops
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW
from llm_core.training.run import Run, RunError, Stopped
from llm_core.training.step import train_step

TEXT = torch.randint(11, (200,), generator=torch.Generator().manual_seed(9))
LOSS = OverAllRanks(CrossEntropy())


class Training:
    """Dropout, drawn by each process for itself, and batches, drawn alike: what a resume could get wrong."""

    def __init__(self, worker, folder: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.worker = worker
        self.model = GPT(GPTConfig(vocab_size=11, context=8, n_layers=1, n_heads=2, d_model=8, dropout=0.2))
        shard(self.model, worker.mesh)
        self.optimizer, self.draws = AdamW(self.model.parameters()), torch.Generator().manual_seed(1)
        torch.manual_seed(7 + worker.rank)
        self.run = Run(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            generators={"batches": self.draws},
            store=ShardedStore(Path(folder) / "checkpoints"),
            **{"settings": {"seed": 0}} | options,
        )

    def take(self, total: int, *, until: int | None = None) -> int:
        """Where it began."""
        with self.run as run:
            began = run.step
            for step in run.steps(total, save_every=2):
                batch = rows_of(random_crops(TEXT, 4, 8, generator=self.draws), self.worker.rank, self.worker.world)
                run.log(train_step(self.model, batch, self.optimizer, lr=0.01, loss=LOSS, clip=clip_sharded))
                if step == until:
                    break
        return began

    def state(self) -> list[torch.Tensor]:
        moments = [v for p in self.model.parameters() for _, v in sorted(self.optimizer.state[p].items())]
        return [local(t.detach()).clone() for t in [*self.model.parameters(), *moments]] + [torch.get_rng_state()]


def names(folder: str) -> list[str]:
    dist.barrier()
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


@on(2)
def resumed(worker, folder):
    straight = Training(worker, f"{folder}/straight")
    straight.take(9)
    Training(worker, f"{folder}/broken").take(9, until=6)  # step 6 was taken, and is not saved
    left = names(f"{folder}/broken")
    again = Training(worker, f"{folder}/broken", keep=3)
    began = again.take(9)
    same = [torch.equal(a, b) for a, b in zip(straight.state(), again.state(), strict=True)]
    return {"began": began, "same": all(same), "left": left, "end": names(f"{folder}/broken")}


@on(2)
def damaged(worker, folder):
    place = f"{folder}/damaged"
    Training(worker, place).take(4)
    if worker.rank == 0:
        next((Path(place) / "checkpoints" / "step-00000004").glob("*.distcp")).write_bytes(b"")
        (Path(place) / "checkpoints" / "step-00000006.ab.part").mkdir()
    dist.barrier()
    with pytest.warns(UserWarning, match=r"going on from .*step-00000002"):
        began = Training(worker, place).take(5)
    return {"began": began, "end": names(place)}


@on(2)
def refused(worker, folder):
    place = f"{folder}/refused"
    Training(worker, place).take(2)
    with pytest.raises(RunError, match=r"other settings \(seed: 0 there, 1 here\)"):
        Training(worker, place, settings={"seed": 1}).take(2)
    with Training(worker, place).run, pytest.raises(RunError, match="another run is at work"):
        Training(worker, place).run.__enter__()
    return True


@on(2)
def interrupted(worker, folder):
    """One of them is told to stop; all of them stop after the same step."""
    training = Training(worker, f"{folder}/interrupted")
    with pytest.raises(Stopped) as caught, training.run as run:  # noqa: PT012
        for step in run.steps(9, save_every=100):
            if step == 3 and worker.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    return {"message": str(caught.value), "step": run.step, "end": names(f"{folder}/interrupted")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(folder) -> dict[str, list[Any]]:
    return run_checks(__file__, 2, str(folder))


def test_a_run_that_was_broken_off_ends_with_the_same_bits(two):
    for rank in two["resumed"]:
        assert rank["began"] == 6
        assert rank["same"]


def test_as_many_checkpoints_are_kept_as_were_asked_for(two, folder):
    for rank in two["resumed"]:
        assert rank["left"] == ["step-00000004", "step-00000006"]
        assert rank["end"] == ["step-00000006", "step-00000008", "step-00000009"]
    last = load_sharded(folder / "broken" / "checkpoints" / "step-00000009").gather()
    straight = load_sharded(folder / "straight" / "checkpoints" / "step-00000009").gather()
    assert (last.step, last.settings) == (9, {"seed": 0})
    assert all(torch.equal(tensor, straight.tensors[name]) for name, tensor in last.tensors.items())


def test_one_process_keeps_the_records(two, folder):
    lines = (folder / "broken" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(9))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(two):
    for rank in two["damaged"]:
        assert rank["began"] == 2
        assert rank["end"] == ["step-00000004", "step-00000004.damaged", "step-00000005"]


def test_other_settings_and_a_second_run_are_refused_in_all_processes(two):
    assert two["refused"] == [True, True]


def test_a_signal_to_one_stops_all_after_the_same_step(two):
    first, second = two["interrupted"]
    assert "stopped by another process after step 4 of 9" in first["message"]
    assert "stopped by SIGTERM after step 4 of 9" in second["message"]
    assert first["end"] == second["end"] == ["step-00000004"]
