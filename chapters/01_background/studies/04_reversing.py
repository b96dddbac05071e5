"""Strings turned round, with and without attention (chapter 1.4).

    python chapters/01_background/studies/04_reversing.py

An encoder-decoder of LSTMs reads a string of random letters and writes it
backwards. It learns from strings of 1 to 12 letters.
It writes `04_reversing.csv` beside this file, a row for each run. A run
that the table holds is not run again, so the script can be stopped and
started. All of them take about five minutes on one core.

    model      "fixed" (the encoder's last state is all), "attention"
    d_hidden   numbers in the state of each LSTM
    rate       peak of the learning rate: the best of three, see SEARCH
    seconds    processor time of the training, on one core
    len_...    share of 500 strings of this length that are wholly right
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import torch

from llm_core.models.seq2seq import (
    SequenceToSequence,
    SequenceToSequenceConfig,
)
from llm_core.training.batches import Batch
from llm_core.training.optimizer import AdamW
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

TABLE = Path(__file__).with_name("04_reversing.csv")
LETTERS, PAD, BOS, EOS = 26, 0, 1, 2  # the letters' ids are 3 ... 28
LONGEST, EXAMINED = 12, 20  # letters in training, and in the exam
BATCH, STRINGS = 64, 500
RATES = (0.005, 0.01, 0.02)
SEARCH = 500  # steps of the runs in which the rate is looked for, seed 99
SEEDS = (0, 1, 2)
Setting = tuple[str, int, int]  # model, d_hidden, steps
RUNS: tuple[Setting, ...] = (
    ("attention", 64, 500),
    ("fixed", 64, 500),
    ("fixed", 64, 2000),  # longer than attention takes
    ("fixed", 128, 2000),  # and with twice its weights
)


def strings(n: int, length: int, draws: torch.Generator) -> Batch:
    """n random strings, and what is to be written: each ends in EOS."""
    source = torch.randint(3, 3 + LETTERS, (n, length), generator=draws)
    answer = source.flip(1)
    begin, end = torch.full((n, 1), BOS), torch.full((n, 1), EOS)
    written = torch.cat([answer, end], dim=1)
    return Batch((source, torch.cat([begin, answer], dim=1)), written)


def train(
    model: str,
    d_hidden: int,
    steps: int,
    *,
    rate: float,
    seed: int,
) -> SequenceToSequence:
    """One model; each step has strings of one length, drawn anew."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    network = SequenceToSequence(
        SequenceToSequenceConfig(
            vocab_size=3 + LETTERS,
            d_model=32,
            d_hidden=d_hidden,
            attention=model == "attention",
        )
    )
    optimizer = AdamW(network.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        length = int(torch.randint(1, LONGEST + 1, (), generator=draws))
        batch = strings(BATCH, length, draws)
        lr = warmup_cosine(step, peak=rate, warmup=steps // 10, total=steps)
        train_step(network, batch, optimizer, lr=lr)
    return network.eval()


@torch.no_grad()
def wholly_right(
    network: SequenceToSequence, draws: torch.Generator
) -> list[float]:
    """For each length, the share of strings without a mistake.

    The decoder gets the right letters so far. Where it has made no mistake
    these are its own, so the share is that of strings written alone.
    """
    shares = []
    for length in range(1, EXAMINED + 1):
        batch = strings(STRINGS, length, draws)
        right = network(*batch.inputs).argmax(-1) == batch.targets
        shares.append(float(right.all(1).double().mean()))
    return shares


def main() -> None:
    """All runs that the table does not hold."""
    torch.set_num_threads(1)
    rows: list[dict[str, str]] = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))

    def run(setting: Setting, rate: float, seed: int) -> list[float]:
        names = ("model", "d_hidden", "steps", "rate", "seed")
        asked = {
            name: str(value)
            for name, value in zip(
                names, (*setting, rate, seed), strict=True
            )
        }
        for row in rows:
            if asked.items() <= row.items():
                return [float(row[key]) for key in row if key[:4] == "len_"]
        begin = time.process_time()
        network = train(*setting, rate=rate, seed=seed)
        seconds = time.process_time() - begin
        draws = torch.Generator().manual_seed(1000 + seed)
        shares = wholly_right(network, draws)
        rows.append(
            {
                **asked,
                "weights": str(network.n_parameters()),
                "seconds": f"{seconds:.1f}",
                **{
                    f"len_{i:02}": f"{s:.3f}"
                    for i, s in enumerate(shares, 1)
                },
            }
        )
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)
        print(rows[-1], file=sys.stderr)
        return shares

    best: dict[tuple[str, int], float] = {}
    for *kind, _ in RUNS:
        if tuple(kind) not in best:
            found = {
                rate: sum(run((*kind, SEARCH), rate, 99)[:LONGEST])
                for rate in RATES
            }
            best[tuple(kind)] = max(found, key=lambda rate: found[rate])
    for seed in SEEDS:
        for setting in RUNS:
            run(setting, best[setting[:2]], seed)


if __name__ == "__main__":
    main()
