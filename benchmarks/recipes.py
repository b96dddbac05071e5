"""Four recipes for one small budget: how far a model of characters gets in 2000 steps on a megabyte of Shakespeare.

    baseline   GPT-2's architecture, trained as nanoGPT trains it on a laptop: AdamW, a short warm-up, a cosine; each
               step reads 12 pieces of 64 characters from random places
    modern     what has been found since, in no more parameters: the model of reader.py, trained by Muon with a higher
               learning rate that falls in a straight line to zero; no piece comes twice before each has come once
    taught     the same, but half of each target is what a model of counts expects there (teacher.py): a 7-gram model
               of the same training text, which takes half a minute to make
    memory     the same, but each step reads the next 64 characters of 12 places, and the 64 before stay in sight

All learn from as many characters of the same text in as many steps. The loss is that of the whole validation split, the
last tenth of the text, in nats a character. It is taken in two ways, as a model that starts afresh every 64 characters
is often short of context, and one with a memory never is. The two do not compare:

    pieces     cut into pieces of 64, each read on its own: how nanoGPT measures
    reading    with what came before: in overlapping windows, where each character has 48 before it at least; or, with
               a memory, from beginning to end

The counts alone are measured too. They are no fifth recipe, as a table of counts has more numbers than any model here.

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
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import side_by_side
import teacher
import torch
import typer
from reader import Reader
from torch import Tensor, nn

from llm_core.data.corpora import load_text
from llm_core.evaluation.perplexity import text_likelihood, token_nats
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.ngram import ModifiedKneserNey, NGramModel
from llm_core.text.characters import CharacterTokenizer
from llm_core.training.batches import Batch, random_crops, shift
from llm_core.training.losses import CrossEntropy, SoftCrossEntropy
from llm_core.training.muon import Muon, muon_groups
from llm_core.training.optimizer import decay_groups
from llm_core.training.schedule import warmup_cosine, warmup_stable_decay
from llm_core.training.step import train_step
from llm_core.training.windows import WindowSampler

STEPS, BATCH, LENGTH = 2000, 12, 64
GRAMS = 7  # of the teacher; with one character more or fewer its counts predict the validation split less well


# Of a text of N characters and for a seed: step -> the places that are read (B, T), and those of their targets.
Order = Callable[[int, int], Callable[[int], Batch]]


def random_places(n: int, seed: int) -> Callable[[int], Batch]:
    """12 pieces from random places at each step."""
    places, draws = torch.arange(n), torch.Generator().manual_seed(seed)
    return lambda step: random_crops(places, BATCH, LENGTH, generator=draws)


def each_once(n: int, seed: int) -> Callable[[int], Batch]:
    """The text cut into pieces, in random order; another order when all have come."""
    sampler = WindowSampler(torch.arange(n), batch_size=BATCH, length=LENGTH, seed=seed)
    return sampler.batch


def reading_on(n: int, seed: int) -> Callable[[int], Batch]:
    """12 rows, spread evenly over the text, each where it had stopped; at the end of the text it begins again.

    The seed moves all the rows.
    """
    starts = torch.arange(BATCH) * (n // BATCH) + 1009 * seed
    return lambda step: shift((starts[:, None] + step * LENGTH + torch.arange(LENGTH + 1)) % n)


@dataclass(frozen=True)
class Recipe:
    """A model, an optimizer, a schedule, the order in which the text is read, and the teacher's share of a target."""

    about: str
    model: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    rate: Callable[[int], float]
    order: Order
    taught: float = 0.0


def modern(about: str, *, order: Order = each_once, taught: float = 0.0, memory: int | None = None) -> Recipe:
    return Recipe(
        about,
        model=lambda V: Reader(
            V, context=LENGTH, n_layers=4, n_heads=4, d_model=128, d_ff=344, memory=memory
        ),  # F 344 for GPT-2's 512: SwiGLU has three matrices
        optimizer=lambda model: Muon(muon_groups(model, 0.1), momentum=0.9),
        rate=partial(warmup_stable_decay, peak=0.006, warmup=100, decay=STEPS - 100, total=STEPS),
        order=order,
        taught=taught,
    )


RECIPES = {
    "baseline": Recipe(
        "GPT-2; AdamW with beta2 0.99 and decay 0.1, peak 1e-3, 100 steps of warm-up, cosine down to 1e-4",
        model=lambda V: GPT(GPTConfig(V, LENGTH, n_layers=4, n_heads=4, d_model=128)),
        optimizer=lambda model: torch.optim.AdamW(decay_groups(model, 0.1), betas=(0.9, 0.99)),
        rate=partial(warmup_cosine, peak=1e-3, warmup=100, total=STEPS, floor=1e-4),
        order=random_places,
    ),
    "modern": modern(
        "RoPE, QK-norm, SwiGLU, short convolutions, value and embedding residuals; Muon with momentum 0.9, 0.006 to 0"
    ),
    "taught": modern("the same, with targets that are half a 7-gram model's", taught=0.5),
    "memory": modern(
        "the same, reading on from step to step, with a memory of 64 positions",
        order=reading_on,
        taught=0.5,
        memory=LENGTH,
    ),
}


def data() -> tuple[CharacterTokenizer, Tensor, Tensor]:
    """The tokenizer, and the ids of the training and of the validation split."""
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    return tokenizer, ids[:cut], ids[cut:]


def batch_at(places: Batch, ids: Tensor, expected: Tensor | None, share: float) -> Batch:
    """What stands at these places. With a teacher a target is (1 - share) what came + share what it expected there."""
    came = Batch((ids[places.inputs[0]],), ids[places.targets])
    if expected is None:
        return came
    targets = share * expected[places.inputs[0]].float()  # its row for a place is about the next
    targets.scatter_add_(-1, came.targets[..., None], torch.full((*came.targets.shape, 1), 1 - share))
    return Batch(came.inputs, targets)


@cache
def expected_by_counts() -> Tensor:
    """The teacher's rows for the training split: once a process, as it takes half a minute."""
    tokenizer, train, _ = data()
    return teacher.expectations(train, vocab_size=tokenizer.vocab_size, n=GRAMS)


def loss_of_counts() -> float:
    """The validation loss of the counts of the whole training split, read from beginning to end."""
    tokenizer, train, validation = data()
    counts = NGramModel([train.numpy()], GRAMS, vocab_size=tokenizer.vocab_size, smoothing=ModifiedKneserNey())
    return float(-counts.token_log_probabilities(validation.numpy())[1:].mean())


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
    places = recipe.order(len(train), seed)
    expected = expected_by_counts() if recipe.taught else None
    loss = SoftCrossEntropy() if recipe.taught else CrossEntropy()
    for step in range(STEPS):
        batch = batch_at(places(step), train, expected, recipe.taught)
        train_step(model, batch, optimizer, lr=recipe.rate(step), loss=loss)
    if isinstance(model, Reader) and model.size is not None:
        losses = {"reading": nats_in_order(model, validation)}
    else:
        strides = {"pieces": LENGTH, "reading": LENGTH // 4}
        losses = {
            way: text_likelihood(model, validation, context=LENGTH, stride=stride, batch_size=64).nats_per_token
            for way, stride in strides.items()
        }
    return losses, sum(parameter.numel() for parameter in model.parameters())


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help=", ".join(RECIPES) + "; all if none is named")] = None,
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
        counts = pool.submit(loss_of_counts)
        done = dict(zip(wanted, pool.map(run, *zip(*wanted, strict=True)), strict=True))
    scores = []
    for name in recipes or RECIPES:
        runs, sizes = zip(*(done[name, seed] for seed in range(seeds)), strict=True)
        losses = {way: [round(one[way], 4) for one in runs] for way in runs[0]}
        scores.append(Score(name, RECIPES[name].about, sizes[0], losses))
        for way, of_way in losses.items():
            low, mean, high = min(of_way), statistics.mean(of_way), max(of_way)
            print(f"{name:10}{sizes[0]:10,} parameters {way:10}{mean:8.3f} nats a character ({low:.3f} ... {high:.3f})")
    print(f"{'counts':10}{f'{GRAMS}-grams':>21} reading   {counts.result():8.3f} nats a character")
    if save:
        result = {
            "task": "shakespeare",
            "date": date.today().isoformat(),
            "machine": side_by_side.machine(1),
            "counts": round(counts.result(), 4),
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
