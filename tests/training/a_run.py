"""A training run for the tests to kill: python a_run.py FOLDER TOTAL [SLEEP [KILL_AT]].

Dropout, a generator for the batches, warm-up: everything that a resume could get wrong. KILL_AT kills it with SIGKILL
in the middle of the checkpoint of that step, when half of the file is written.
"""

import os
import signal
import sys
import time

import torch

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training import checkpoint
from llm_core.training.batches import random_crops
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.run import Run
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

TEXT = torch.randint(11, (200,), generator=torch.Generator().manual_seed(9))


def half_a_file(folder: str, content: bytes, kill_at: int, step: int) -> None:
    if step == kill_at:
        with open(f"{folder}/checkpoints/step-{step:08d}.safetensors.abcd.part", "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, total: int, sleep: float = 0.0, kill_at: int = -1) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, context=8, n_layers=1, n_heads=2, d_model=8, dropout=0.2))
    optimizer, draws = AdamW(decay_groups(model, 0.1)), torch.Generator().manual_seed(1)
    write = checkpoint.write_whole
    with Run(folder, model=model, optimizer=optimizer, generators={"batches": draws}, settings={"seed": 0}) as run:
        checkpoint.write_whole = lambda path, content: (
            half_a_file(folder, content, kill_at, run.step),
            write(path, content),
        )
        print("begins at", run.step, flush=True)
        for step in run.steps(total, save_every=4):
            lr = warmup_cosine(step, peak=0.02, warmup=3, total=40)
            run.log(train_step(model, random_crops(TEXT, 4, 8, generator=draws), optimizer, lr=lr))
            time.sleep(sleep)


def run(arguments: list[str]) -> None:
    folder, total, *more = arguments
    main(folder, int(total), *(float(x) for x in more[:1]), *(int(x) for x in more[1:2]))


def as_a_program(arguments: list[str], out: str, err: str) -> None:
    """What a forked process does: what it prints goes to two files."""
    for number, name in enumerate((out, err), start=1):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    run(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
