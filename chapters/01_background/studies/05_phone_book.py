"""The runs of chapter 1.5: networks of growing width learn a phone book.

    python chapters/01_background/studies/05_phone_book.py

It writes `05_phone_book.csv` beside this file: a row for each run, three
seeds of each width, and one seed with twice the steps. A run that the table
holds is not run again, so the script can be stopped and started. All of
them take about six minutes on one core.

    parameters  of the network
    stored      bits of the book that it holds
    digits      share of digits that are right, the ones before given
    first_k     share of numbers whose first k digits are right
"""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from llm_core.models.gpt import GPT, GPTConfig

TABLE = Path(__file__).with_name("05_phone_book.csv")
WIDTHS, SEEDS, STEPS = (8, 12, 16, 24, 32, 40, 48), (0, 1, 2), 800
DIGITS = 8  # of a number


def phone_book(seed: int, names: int = 32) -> Tensor:
    """Rows (first name, last name, eight digits), as ids."""
    chance = torch.Generator().manual_seed(seed)
    first = torch.arange(names).repeat_interleave(names)
    last = torch.arange(names).repeat(names)
    digits = torch.randint(10, (names**2, DIGITS), generator=chance)
    # Ids 0 to 9 are digits, then come the names.
    return torch.cat(
        [10 + first[:, None], 10 + names + last[:, None], digits], dim=1
    )


def train_on(book: Tensor, width: int, steps: int, seed: int) -> GPT:
    """A GPT of this width that has read the book again and again."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    vocabulary = int(book.max()) + 1
    model = GPT(GPTConfig(vocabulary, DIGITS + 2, 2, 2, width))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.01, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=steps
    )
    for _ in range(steps):
        order = torch.randperm(len(book), generator=chance)
        batch = book[order[:256]]
        logits = model(batch[:, :-1])[:, -DIGITS:, :10]  # digits only
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch[:, -DIGITS:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def examine(model: GPT, book: Tensor) -> tuple[float, float, list[float]]:
    """Bits stored, share of digits right, shares with first k right."""
    logits = model(book[:, :-1])[:, -DIGITS:, :10]
    digits = book[:, -DIGITS:]
    chosen = logits.log_softmax(-1).gather(-1, digits[..., None])
    stored = (math.log2(10) + chosen / math.log(2)).sum().item()
    right = logits.argmax(-1) == digits
    first_k = right.cumprod(dim=1).float().mean(dim=0)
    return stored, right.float().mean().item(), first_k.tolist()


def main() -> None:
    """Make the runs that the table lacks."""
    torch.set_num_threads(1)
    rows = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {
        (int(r["width"]), int(r["steps"]), int(r["seed"])) for r in rows
    }
    wanted = [(w, STEPS, s) for s, w in itertools.product(SEEDS, WIDTHS)]
    wanted += [(w, 2 * STEPS, 0) for w in WIDTHS]
    for width, steps, seed in tqdm(
        [run for run in wanted if run not in done]
    ):
        book = phone_book(seed)
        model = train_on(book, width, steps, seed)
        stored, share, first_k = examine(model, book)
        row: dict[str, object] = {
            "width": width,
            "steps": steps,
            "seed": seed,
            "parameters": model.n_parameters(),
        }
        row |= {"stored": f"{stored:.0f}", "digits": f"{share:.4f}"}
        row |= {
            f"first_{k}": f"{value:.4f}"
            for k, value in enumerate(first_k, 1)
        }
        rows.append(row)
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
