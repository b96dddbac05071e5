"""The runs of chapter 1.5: a small GPT learns to add four-digit numbers.

    python chapters/01_background/studies/05_addition.py

It writes `05_addition.csv` beside this file: loss and the share of right
digits of the sum, from the last digit to the first, every 25 steps, for
three seeds. A seed that the table holds is not run again. All of them take
about three minutes on one core.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from llm_core.models.gpt import GPT, GPTConfig

TABLE = Path(__file__).with_name("05_addition.csv")
SEEDS, STEPS, EVERY, WIDTH = (0, 1, 2), 1200, 25, 32
PLUS, EQUALS = 10, 11


def digits(number: Tensor, n: int) -> Tensor:
    """The n last digits of each number, the last one first."""
    return torch.stack([number // 10**place % 10 for place in range(n)], 1)


def sums(n: int, chance: torch.Generator) -> Tensor:
    """Rows "a + b = c" as ids, every number from its last digit on."""
    a, b = torch.randint(10_000, (2, n), generator=chance)
    sign = torch.ones(n, 1, dtype=torch.long)
    parts = [digits(a, 4), PLUS * sign, digits(b, 4), EQUALS * sign]
    return torch.cat([*parts, digits(a + b, 5)], 1)


def run(seed: int) -> list[dict[str, object]]:
    """One training, examined every 25 steps on 1,000 sums of its own."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    exam = sums(1000, torch.Generator().manual_seed(1000 + seed))
    model = GPT(GPTConfig(12, 14, 2, 4, WIDTH))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=4e-3, weight_decay=0.0
    )
    rows: list[dict[str, object]] = []
    for step in tqdm(range(STEPS + 1)):
        if step % EVERY == 0:
            with torch.no_grad():
                logits = model(exam[:, :-1])[:, -5:]
            loss = F.cross_entropy(
                logits.flatten(0, 1), exam[:, -5:].flatten()
            )
            right = (logits.argmax(-1) == exam[:, -5:]).float()
            row: dict[str, object] = {
                "seed": seed,
                "step": step,
                "loss": f"{loss:.4f}",
            }
            row |= {
                f"digit_{k}": f"{share:.3f}"
                for k, share in enumerate(right.mean(0).tolist(), 1)
            }
            rows.append(row | {"whole": f"{right.prod(1).mean():.3f}"})
        for group in optimizer.param_groups:
            group["lr"] = (
                4e-3 * min(1, (step + 1) / 50) * (1 - 0.9 * step / STEPS)
            )
        batch = sums(128, chance)
        logits = model(batch[:, :-1])[:, -5:]
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch[:, -5:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return rows


def main() -> None:
    """Make the runs that the table lacks."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {int(str(row["seed"])) for row in rows}
    for seed in SEEDS:
        if seed in done:
            continue
        rows += run(seed)
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
