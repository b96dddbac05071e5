"""The runs of chapter 3.4: a small GPT, rightly trained and broken.

    python chapters/03_algorithms/studies/04_one_thing_broken.py

It writes `04_one_thing_broken.csv` beside this file: a row for each run,
three seeds of each. A run that the table holds is not run again, so the
script can be stopped and started. All of them take about ten minutes
on one core.

    losses      training loss, mean of ten steps each, bad batches left out
    norm        median length of the gradient before clipping
    bad_norm    the largest length at a bad batch
    held_out    loss of 2000 held-out pieces, as the run computes it
    honest      true loss of their last position alone
"""

from __future__ import annotations

import csv
import itertools
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from llm_core.data.corpora import load_text
from llm_core.layers.attention import fused_attention
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.text.characters import CharacterTokenizer
from llm_core.training import losses
from llm_core.training.batches import Batch, random_crops
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

TABLE = Path(__file__).with_name("04_one_thing_broken.csv")
STEPS, BATCH, LENGTH, WARMUP, PEAK = 600, 16, 32, 60, 0.01
BAD_STEPS = (STEPS * 2 // 5, STEPS * 3 // 5, STEPS * 4 // 5)
SEEDS = (0, 1, 2)


CROSS_ENTROPY = CrossEntropy()


class Forgetful(AdamW):
    """AdamW whose gradients are never set to zero."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave the old gradients where they are."""


class SoftmaxFirst(CrossEntropy):
    """The cross-entropy of probabilities that are taken for logits."""

    def total(self, model: Callable[..., Tensor], batch: Batch) -> Tensor:
        """The sum over the targets."""
        return super().total(lambda ids: model(ids).softmax(-1), batch)


def leaking(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    **options: object,
) -> Tensor:
    """Attention that sees one position too many."""
    return fused_attention(
        query, key, value, torch.ones_like(mask).tril(1), **options
    )  # type: ignore[arg-type]


def adamw(
    model: nn.Module, kind: type[AdamW] = AdamW
) -> torch.optim.Optimizer:
    """The chapter's optimizer."""
    return kind(decay_groups(model, 0.1), betas=(0.9, 0.95))


@dataclass(frozen=True)
class Setting:
    """One line of the table: what is not as it should be."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw
    peak: float = PEAK
    warmup: int = WARMUP
    constant: bool = False
    max_norm: float = 1.0
    bad_batches: bool = False
    shift: bool = True
    leak: bool = False
    loss: CrossEntropy = CROSS_ENTROPY
    steps: int = STEPS


RUNS = {
    "right": Setting(),
    "mask leaks": Setting(leak=True),
    "no shift": Setting(shift=False, steps=100),
    "no warm-up": Setting(warmup=0),
    "no zero_grad": Setting(partial(adamw, kind=Forgetful)),
    "softmax first": Setting(loss=SoftmaxFirst()),
    "no clipping": Setting(max_norm=math.inf),
    "bad batches": Setting(bad_batches=True),
    "no clipping, bad batches": Setting(
        max_norm=math.inf, bad_batches=True
    ),
    "no zero_grad, no clipping": Setting(
        partial(adamw, kind=Forgetful), max_norm=math.inf
    ),
    "constant 0.0001": Setting(peak=1e-4, constant=True),
    "a third of the peak, no warm-up": Setting(peak=PEAK / 3, warmup=0),
}


def run(
    setting: Setting,
    seed: int,
    train: Tensor,
    held_out: Tensor,
    tokenizer: CharacterTokenizer,
) -> dict[str, str]:
    """Train once; the row of the table."""
    z = tokenizer.encode("Z")[0]
    torch.manual_seed(seed)
    model = GPT(
        GPTConfig(
            tokenizer.vocab_size, LENGTH, n_layers=2, n_heads=4, d_model=64
        )
    )
    if setting.leak:
        for block in model.blocks:
            block.attention.attend = leaking  # type: ignore[union-attr, assignment]
    optimizer = setting.optimizer(model)
    draws = torch.Generator().manual_seed(seed)
    curve, norms, bad_norms = [], [], [math.nan]
    tens: list[float] = []
    for step in range(setting.steps):
        batch = random_crops(train, BATCH, LENGTH, generator=draws)
        bad = setting.bad_batches and step in BAD_STEPS
        if bad:
            nonsense = torch.full_like(batch.targets, z)
            batch = Batch((nonsense,), nonsense)
        if not setting.shift:
            batch = Batch(batch.inputs, batch.inputs[0])
        lr = setting.peak
        if not setting.constant:
            lr = warmup_cosine(
                step,
                peak=setting.peak,
                warmup=setting.warmup,
                total=setting.steps,
            )
        record = train_step(
            model,
            batch,
            optimizer,
            lr=lr,
            loss=setting.loss,
            max_norm=setting.max_norm,
        )
        (bad_norms if bad else norms).append(record.grad_norm)
        if not bad:
            tens.append(record.loss)
        if (step + 1) % 10 == 0:
            curve.append(statistics.mean(tens))
            tens.clear()

    pieces = random_crops(
        held_out, 2000, LENGTH, generator=torch.Generator().manual_seed(1)
    )
    asked = (
        pieces if setting.shift else Batch(pieces.inputs, pieces.inputs[0])
    )
    with torch.no_grad():
        logits = model(*pieces.inputs)
        reported = setting.loss.total(model, asked) / asked.targets.numel()
    honest = losses.cross_entropy(logits[:, -1], pieces.targets[:, -1])
    return {
        "losses": " ".join(f"{value:.3f}" for value in curve),
        "norm": f"{statistics.median(norms):.3g}",
        "bad_norm": f"{max(bad_norms[1:], default=math.nan):.3g}",
        "held_out": f"{reported:.3f}",
        "honest": f"{honest:.3f}",
    }


def main() -> None:
    """Run what the table does not hold yet."""
    torch.set_num_threads(1)
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    rows: list[dict[str, str]] = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    names = list(RUNS)
    done = {(row["run"], row["seed"]) for row in rows}
    for name, seed in itertools.product(RUNS, SEEDS):
        if (name, str(seed)) not in done:
            found = run(RUNS[name], seed, ids[:cut], ids[cut:], tokenizer)
            rows.append({"run": name, "seed": str(seed), **found})
            rows.sort(
                key=lambda row: (names.index(row["run"]), row["seed"])
            )
            with TABLE.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(
                    file, list(rows[0]), lineterminator="\n"
                )
                writer.writeheader()
                writer.writerows(rows)
            print(seed, name, found["held_out"], file=sys.stderr)


if __name__ == "__main__":
    main()
