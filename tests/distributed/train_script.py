"""A training script, as one would write it: `torchrun --nproc-per-node 2 train_script.py folder [when rank to die]`.

It goes on from the last checkpoint of the folder. For the tests it can be told to die, once: `rank` kills itself in
the middle of step 5 ("step"), or while the checkpoint after it is written ("save").
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from llm_core.distributed import checkpoint
from llm_core.distributed.checkpoint import ShardedStore, save_sharded
from llm_core.distributed.data_parallel import OverAllRanks, rows_of
from llm_core.distributed.launch import Worker, init_from_environment
from llm_core.distributed.sharded import clip_sharded, shard
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import random_crops
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step
from llm_core.training.store import latest

TEXT = torch.randint(11, (200,), generator=torch.Generator().manual_seed(9))
STEPS, SAVE_EVERY = 8, 3


def train(worker: Worker, folder: str, when: str = "", who: int = -1) -> list[float]:
    """Train; returns the losses of this process' part of the batch from where it began."""
    torch.manual_seed(worker.rank)  # dropout should differ
    model = GPT(GPTConfig(vocab_size=11, context=8, n_layers=1, n_heads=2, d_model=8, dropout=0.2))
    shard(model, worker.mesh)
    optimizer = AdamW(model.parameters())
    generators = {"batches": torch.Generator().manual_seed(1)}  # the same everywhere: it draws the whole batch
    found = latest(ShardedStore(folder))
    start = found.restore(model, optimizer, generators) if found else 0
    losses = []
    for step in range(start, STEPS):
        batch = random_crops(TEXT, 4, 8, generator=generators["batches"])
        dies = worker.rank == who and step == 5 and not (Path(folder) / "died").exists()
        if dies:
            (Path(folder) / "died").touch()
        if dies and when == "step":
            os.kill(os.getpid(), signal.SIGKILL)
        part = rows_of(batch, worker.rank, worker.world)
        loss = OverAllRanks(CrossEntropy())
        losses.append(train_step(model, part, optimizer, lr=0.01, loss=loss, clip=clip_sharded).loss)
        if dies and when == "save":  # the tensors are written by then, and the manifest is not
            checkpoint._describe = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            save_sharded(folder, step=step + 1, model=model, optimizer=optimizer, generators=generators)
    return losses


if __name__ == "__main__":
    with init_from_environment(device="cpu", timeout=120) as worker:
        train(worker, sys.argv[1], *(sys.argv[2:3]), *map(int, sys.argv[3:4]))
