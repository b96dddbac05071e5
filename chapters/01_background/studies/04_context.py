"""How much of its past does a model use? The long runs of chapter 1.4.

    python chapters/01_background/studies/04_context.py [SEED ...]

LSTM, Transformer and counts with modified Kneser-Ney smoothing read eight
tenths of nine plays, character by character. The peak learning rate of each
network is the best of three on the ninth tenth; all of them are then held
against the last tenth. It writes `04_context.csv` beside this file, a row
for each run, and `04_context.json`, what the longest run writes. A run that
the table holds is not run again, so the script can be stopped and started,
and seeds can run side by side. All of them take a quarter of an hour on one
core.

    model       one of MODELS, or "n-gram"
    weights     numbers that were learned; of counts, how many there are
    rate        peak of the learning rate; of counts, n
    seconds     processor time of the training, on one core
    tune, test  loss on the two tenths, in nats a character
    at_...      loss of the same characters of the last tenth, each after so
                many characters before it and no more
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llm_core.data.corpora import load_text
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.models.ngram import ModifiedKneserNey, NGramModel
from llm_core.models.recurrent import RecurrentConfig, RecurrentLM
from llm_core.text.characters import CharacterTokenizer
from llm_core.training.batches import random_crops
from llm_core.training.optimizer import AdamW
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

TABLE = Path(__file__).with_name("04_context.csv")
SAMPLES = Path(__file__).with_name("04_context.json")
BATCH, WINDOW = 16, 128
EXAMINED = 64_000  # characters of a tenth that are examined
TARGETS = 1500  # characters whose context is cut short
RATES = (0.005, 0.01, 0.02)
SEARCH = 300  # steps of each run in which the learning rate is looked for
SEEDS = (0, 1, 2)
ORDERS = range(1, 9)
CONTEXTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SAMPLED = (0, 2400)  # seed and steps of who writes a text
PROMPT, WRITTEN, TEMPERATURE = "ROMEO:\n", 240, 0.8

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "LSTM": lambda V: RecurrentLM(RecurrentConfig(V, 64, 128)),
    "Transformer": lambda V: GPT(
        GPTConfig(V, WINDOW, n_layers=2, n_heads=4, d_model=64)
    ),
    "LSTM, two layers": lambda V: RecurrentLM(
        RecurrentConfig(V, 64, 80, n_layers=2)
    ),
    "Transformer, rotary": lambda V: Llama(
        LlamaConfig(
            vocab_size=V,
            context=WINDOW,
            n_layers=2,
            n_heads=4,
            n_kv_heads=4,
            d_model=64,
            d_ff=176,
        )
    ),
}
# A step of the LSTM takes half as long as one of the Transformer, so its
# 1200 steps and the other's 600 are equal time; 600 and 600 are equal
# text. The Transformer's 1200 and the LSTM's 2400 double the budget.
RUNS = (
    # model, steps, how many seeds
    ("LSTM", 1200, 3),
    ("Transformer", 600, 3),
    ("Transformer, rotary", 600, 1),
    ("Transformer", 1200, 3),
    ("LSTM", 600, 1),
    ("LSTM", 2400, 1),
)


def tenths() -> tuple[CharacterTokenizer, Tensor, Tensor, Tensor]:
    """Tokenizer, and the ids that are read, tuned on and examined on."""
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    tenth = len(ids) // 10
    return (
        tokenizer,
        ids[: 8 * tenth],
        ids[8 * tenth : 9 * tenth],
        ids[9 * tenth :],
    )


def unfinished(name: str, steps: int, rate: float, seed: int) -> Path:
    """Where a run is kept until its row is in the table."""
    file = f"04_context-{name}-{steps}-{rate}-{seed}.pt"
    return Path(tempfile.gettempdir()) / file


def train(
    name: str, ids: Tensor, V: int, *, steps: int, rate: float, seed: int
) -> tuple[nn.Module, float]:
    """One of MODELS, trained, and the processor time that it took.

    What is there after every 50 steps is kept in a file, so that a run that
    was stopped goes on where it was.
    """
    torch.manual_seed(seed)
    model = MODELS[name](V)
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.99))
    draws = torch.Generator().manual_seed(seed)
    begin, seconds = 0, 0.0
    kept = unfinished(name, steps, rate, seed)
    if kept.exists():
        state = torch.load(kept)
        begin, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        draws.set_state(state["draws"])
    started = time.process_time() - seconds
    for step in range(begin, steps):
        lr = warmup_cosine(step, peak=rate, warmup=steps // 10, total=steps)
        batch = random_crops(ids, BATCH, WINDOW, generator=draws)
        train_step(model, batch, optimizer, lr=lr)
        if (step + 1) % 50 == 0:
            state = {
                "step": step + 1,
                "seconds": time.process_time() - started,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "draws": draws.get_state(),
            }
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
    return model.eval(), time.process_time() - started


@torch.no_grad()
def losses(model: nn.Module, windows: Tensor) -> Tensor:
    """The loss of each character of some windows but their first."""
    found = []
    for part in windows.split(128):
        logits = model(part[:, :-1]).flatten(0, 1)
        targets = part[:, 1:]
        loss = nn.functional.cross_entropy(
            logits, targets.flatten(), reduction="none"
        )
        found.append(loss.view(targets.shape))
    return torch.cat(found)


def mean_loss(model: nn.Module, ids: Tensor) -> str:
    """Over windows that lie side by side."""
    windows = ids[:EXAMINED].unfold(0, WINDOW + 1, WINDOW)
    return f"{losses(model, windows).mean():.4f}"


def targets(ids: Tensor) -> Tensor:
    """Places of the characters whose context is cut short."""
    return torch.linspace(WINDOW, len(ids) - 1, TARGETS).long()


def by_context(model: nn.Module, ids: Tensor) -> dict[str, str]:
    """The mean loss of the same characters after 1, 2, ... before them."""
    means = {}
    for context in CONTEXTS:
        starts = targets(ids) - context
        windows = ids[starts[:, None] + torch.arange(context + 1)]
        means[f"at_{context:03}"] = (
            f"{losses(model, windows)[:, -1].mean():.4f}"
        )
    return means


class Table:
    """The rows so far, written after each run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def rows(self) -> list[dict[str, str]]:
        """All of them, read anew: another process may have added some."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def find(self, **wanted: object) -> list[dict[str, str]]:
        """The rows that say all of this."""
        return [
            row
            for row in self.rows
            if all(row[key] == str(value) for key, value in wanted.items())
        ]

    def add(self, row: dict[str, object]) -> None:
        """One more row."""
        rows = [*self.rows, {key: str(value) for key, value in row.items()}]
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(rows[-1], file=sys.stderr)


def count_all(table: Table, parts: tuple[Tensor, ...], V: int) -> None:
    """The rows of the n-gram models; they have no seed and no rate."""
    read, tune, test = (ids.numpy() for ids in parts)
    places = targets(parts[2]).numpy()
    after: dict[int, float] = {}  # n - 1 characters, the most that n uses
    for n in ORDERS:
        begin = time.process_time()
        model = NGramModel(
            [read], n, vocab_size=V, smoothing=ModifiedKneserNey()
        )
        seconds = time.process_time() - begin
        loss = -model.token_log_probabilities(test)
        after[n - 1] = loss[places].mean()
        table.add(
            {
                "model": "n-gram",
                "weights": sum(len(grams.codes) for grams in model.grams),
                "rate": n,
                "steps": 0,
                "seed": 0,
                "seconds": f"{seconds:.1f}",
                "tune": f"{mean_of(model, tune):.4f}",
                "test": f"{mean_of(model, test):.4f}",
                **{
                    f"at_{context:03}": f"{after[min(context, n - 1)]:.4f}"
                    for context in CONTEXTS
                },
            }
        )


def mean_of(model: NGramModel, ids: np.ndarray) -> float:
    """The mean loss of counts, over what `mean_loss` examines."""
    return -float(model.token_log_probabilities(ids[:EXAMINED]).mean())


def sample(model: nn.Module, tokenizer: CharacterTokenizer) -> str:
    """What a model writes, each character from the last WINDOW ones."""
    draw = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(PROMPT)
    with torch.no_grad():
        for _ in range(WRITTEN):
            logits = model(torch.tensor([ids[-WINDOW:]]))[0, -1]
            shares = (logits / TEMPERATURE).softmax(-1)
            ids.append(int(torch.multinomial(shares, 1, generator=draw)))
    return tokenizer.decode(ids)


def keep(name: str, text: str) -> None:
    """Put what a model has written beside what others have."""
    written: dict[str, str] = {}
    if SAMPLES.exists():
        written = json.loads(SAMPLES.read_text(encoding="utf-8"))
    written[name] = text
    SAMPLES.write_text(
        json.dumps(written, indent=1) + "\n", encoding="utf-8"
    )


def main() -> None:
    """All runs that the table does not hold."""
    torch.set_num_threads(1)
    tokenizer, *parts = tenths()
    read, tune, test = parts
    V = tokenizer.vocab_size
    table = Table(TABLE)

    def run(
        name: str, steps: int, rate: float, seed: int
    ) -> nn.Module | None:
        if table.find(model=name, steps=steps, rate=rate, seed=seed):
            return None
        model, seconds = train(
            name, read, V, steps=steps, rate=rate, seed=seed
        )
        table.add(
            {
                "model": name,
                "weights": sum(p.numel() for p in model.parameters()),
                "rate": rate,
                "steps": steps,
                "seed": seed,
                "seconds": f"{seconds:.1f}",
                "tune": mean_loss(model, tune),
                "test": mean_loss(model, test),
                **by_context(model, test),
            }
        )
        unfinished(name, steps, rate, seed).unlink(missing_ok=True)
        return model

    def best(name: str) -> float:
        found = [
            row
            for rate in RATES
            for row in table.find(
                model=name, steps=SEARCH, rate=rate, seed=0
            )
        ]
        return float(min(found, key=lambda row: float(row["tune"]))["rate"])

    if not table.find(model="n-gram"):
        count_all(table, (read, tune, test), V)
    for name in MODELS:
        for rate in RATES:
            run(name, SEARCH, rate, 0)
    for seed in [int(seed) for seed in sys.argv[1:]] or SEEDS:
        for name, steps, seeds in RUNS:
            if seed >= seeds:
                continue
            model = run(name, steps, best(name), seed)
            if model is not None and (seed, steps) == SAMPLED:
                keep(f"{name}, {steps}", sample(model, tokenizer))


if __name__ == "__main__":
    main()
