"""Three recipes for one small budget: how far a model of characters gets in 2000 steps on a megabyte of Shakespeare.

    baseline   GPT-2's architecture, trained as nanoGPT trains it on a laptop: AdamW, a short warm-up, a cosine; each
               step reads 12 pieces of 64 characters from random places
    modern     what has been found since, in no more parameters: the model of reader.py, trained by Muon with a higher
               learning rate that falls in a straight line to zero; from the same pieces
    memory     the same, but each step reads the next 64 characters of 12 places, and the 64 before stay in sight

All learn from as many characters in as many steps. The loss is that of the whole validation split, the last tenth of
the text, in nats a character. It is taken in two ways, as a model that starts afresh every 64 characters is often short
of context, and one with a memory never is:

    pieces     cut into pieces of 64, each read on its own: how nanoGPT measures
    reading    with what came before: in overlapping windows, where each character has 48 before it at least; or, with
               a memory, from beginning to end

Run it with `python benchmarks/recipes.py`; each training takes some minutes on one core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import side_by_side
import torch
import typer
from reader import Reader
from torch import Tensor, nn

from llm_core.data.corpora import load_text
from llm_core.evaluation.perplexity import text_likelihood, token_nats
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.text.characters import CharacterTokenizer
from llm_core.training.batches import Batch, random_crops, shift
from llm_core.training.muon import Muon, muon_groups
from llm_core.training.optimizer import decay_groups
from llm_core.training.schedule import warmup_cosine, warmup_stable_decay
from llm_core.training.step import train_step

STEPS, BATCH, LENGTH = 2000, 12, 64


@dataclass(frozen=True)
class Recipe:
    """A model, an optimizer and a schedule."""

    about: str
    model: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    rate: Callable[[int], float]


def modern(about: str, memory: int | None) -> Recipe:
    return Recipe(
        about,
        model=lambda V: Reader(
            V, context=LENGTH, n_layers=4, n_heads=4, d_model=128, d_ff=344, memory=memory
        ),  # F 344 for GPT-2's 512: SwiGLU has three matrices
        optimizer=lambda model: Muon(muon_groups(model, 0.1), momentum=0.9),
        rate=partial(warmup_stable_decay, peak=0.006, warmup=100, decay=STEPS - 100, total=STEPS),
    )


RECIPES = {
    "baseline": Recipe(
        "GPT-2; AdamW with beta2 0.99 and decay 0.1, peak 1e-3, 100 steps of warm-up, cosine down to 1e-4",
        model=lambda V: GPT(GPTConfig(V, LENGTH, n_layers=4, n_heads=4, d_model=128)),
        optimizer=lambda model: torch.optim.AdamW(decay_groups(model, 0.1), betas=(0.9, 0.99)),
        rate=partial(warmup_cosine, peak=1e-3, warmup=100, total=STEPS, floor=1e-4),
    ),
    "modern": modern(
        "RoPE, QK-norm, SwiGLU, short convolutions, value and embedding residuals; Muon with momentum 0.9, 0.006 to 0",
        memory=None,
    ),
    "memory": modern("the same, reading on from step to step, with a memory of 64 positions", memory=LENGTH),
}


def data() -> tuple[CharacterTokenizer, Tensor, Tensor]:
    """The tokenizer, and the ids of the training and of the validation split."""
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    return tokenizer, ids[:cut], ids[cut:]


def next_pieces(ids: Tensor, step: int, *, seed: int) -> Batch:
    """The batch of a step for a model that reads on: 12 rows, spread evenly over the text, each where it had stopped.

    At the end of the text a row goes on at the beginning. The seed moves all the rows.
    """
    starts = torch.arange(BATCH) * (len(ids) // BATCH) + 1009 * seed + step * LENGTH
    return shift(ids[(starts[:, None] + torch.arange(LENGTH + 1)) % len(ids)])


@torch.no_grad()
def nats_in_order(model: Reader, ids: Tensor) -> float:
    """Nats a character of a text that is read piece by piece, from beginning to end; its first one is no target."""
    model.forget()
    total = 0.0
    for start in range(0, len(ids) - 1, LENGTH):
        batch = shift(ids[None, start : start + LENGTH + 1])
        total += token_nats(model(*batch.inputs), batch.targets).sum().item()
    model.forget()
    return total / (len(ids) - 1)


def run(name: str, seed: int) -> tuple[dict[str, float], int]:
    """Validation losses in nats a character, and the number of parameters."""
    torch.set_num_threads(1)  # others run beside it
    recipe = RECIPES[name]
    tokenizer, train, validation = data()
    torch.manual_seed(seed)
    model = recipe.model(tokenizer.vocab_size)
    optimizer = recipe.optimizer(model)
    reads_on = isinstance(model, Reader) and model.size is not None
    draws = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        batch = next_pieces(train, step, seed=seed) if reads_on else random_crops(train, BATCH, LENGTH, generator=draws)
        train_step(model, batch, optimizer, lr=recipe.rate(step))
    if reads_on:
        losses = {"reading": nats_in_order(model, validation)}
    else:
        strides = {"pieces": LENGTH, "reading": LENGTH // 4}
        losses = {
            way: text_likelihood(model, validation, context=LENGTH, stride=stride, batch_size=64).nats_per_token
            for way, stride in strides.items()
        }
    return losses, sum(parameter.numel() for parameter in model.parameters())


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="baseline, modern, memory; all if none is named")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="trainings at a time, one core each")] = os.cpu_count() or 1,
    save: Annotated[bool, typer.Option(help="keep the losses in benchmarks/results")] = False,
) -> None:
    """Train a model of characters by each recipe and measure the loss of the validation split."""
    for name in recipes or RECIPES:
        if name not in RECIPES:
            raise typer.BadParameter(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
    if save and recipes:
        raise typer.BadParameter("a result holds all recipes: name none to keep it")
    wanted = [(name, seed) for name in recipes or RECIPES for seed in range(seeds)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = dict(zip(wanted, pool.map(run, *zip(*wanted, strict=True)), strict=True))
    scores = []
    for name in recipes or RECIPES:
        runs, sizes = zip(*(done[name, seed] for seed in range(seeds)), strict=True)
        losses = {way: [round(one[way], 4) for one in runs] for way in runs[0]}
        scores.append(Score(name, RECIPES[name].about, sizes[0], losses))
        for way, of_way in losses.items():
            low, mean, high = min(of_way), statistics.mean(of_way), max(of_way)
            print(f"{name:10}{sizes[0]:10,} parameters {way:10}{mean:8.3f} nats a character ({low:.3f} ... {high:.3f})")
    if save:
        result = {
            "task": "shakespeare",
            "date": date.today().isoformat(),
            "machine": side_by_side.machine(1),
            "scores": [asdict(score) for score in scores],
            "versions": {"torch": torch.__version__},
        }
        target = Path(__file__).parent / "results" / "recipes-shakespeare.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Score:
    """What one recipe came to: for each way of reading the validation split one loss a seed."""

    contender: str
    note: str
    parameters: int
    losses: dict[str, list[float]]


TASKS = {"shakespeare": RECIPES}

if __name__ == "__main__":
    typer.run(main)
