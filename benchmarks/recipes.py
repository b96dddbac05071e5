"""Two recipes for the same small budget: how far a model of characters gets in 2000 steps on a megabyte of Shakespeare.

    baseline   GPT-2's architecture, trained as nanoGPT trains it on a laptop: AdamW, a short warm-up, a cosine
    modern     what has been found since, in as many parameters: RoPE, RMSNorm, SwiGLU, QK-norm, short convolutions,
               and Muon with a higher learning rate that falls in a straight line to zero

Both see the same batches: 2000 of 12 pieces of 64 characters. The loss is that of the whole validation split, the last
tenth of the text, in nats a character. Run it with `python benchmarks/recipes.py`; each training takes some minutes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import side_by_side
import torch
import typer
from torch import nn

from llm_core.data.corpora import load_text
from llm_core.evaluation.perplexity import text_likelihood
from llm_core.layers.convolution import ShortConvolution
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.text.characters import CharacterTokenizer
from llm_core.training.batches import random_crops
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


def llama_with_convolutions(vocab_size: int) -> Llama:
    """Each norm's output is mixed with that of the three positions before it: a letter is read with its neighbours."""
    model = Llama(LlamaConfig(vocab_size, LENGTH, 4, 4, 4, 128, 344, qk_norm=True, rope_base=100.0))
    for block in model.blocks:
        block.attention_norm = nn.Sequential(block.attention_norm, ShortConvolution(128))
        block.feed_forward_norm = nn.Sequential(block.feed_forward_norm, ShortConvolution(128))
    return model


RECIPES = {
    "baseline": Recipe(
        "GPT-2; AdamW with beta2 0.99 and decay 0.1, peak 1e-3, 100 steps of warm-up, cosine down to 1e-4",
        model=lambda V: GPT(GPTConfig(V, LENGTH, n_layers=4, n_heads=4, d_model=128)),
        optimizer=lambda model: torch.optim.AdamW(decay_groups(model, 0.1), betas=(0.9, 0.99)),
        rate=partial(warmup_cosine, peak=1e-3, warmup=100, total=STEPS, floor=1e-4),
    ),
    "modern": Recipe(
        "Llama with QK-norm, F 344 for GPT-2's 512, short convolutions; Muon, peak 0.01, linear to zero",
        model=llama_with_convolutions,
        optimizer=lambda model: Muon(muon_groups(model, 0.1)),
        rate=partial(warmup_stable_decay, peak=0.01, warmup=100, decay=STEPS - 100, total=STEPS),
    ),
}


def data() -> tuple[CharacterTokenizer, torch.Tensor, torch.Tensor]:
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    return tokenizer, ids[:cut], ids[cut:]


def run(recipe: Recipe, seed: int) -> tuple[float, int]:
    """Validation loss in nats a character, and the number of parameters."""
    tokenizer, train, validation = data()
    torch.manual_seed(seed)
    model = recipe.model(tokenizer.vocab_size)
    optimizer = recipe.optimizer(model)
    draws = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        batch = random_crops(train, BATCH, LENGTH, generator=draws)
        train_step(model, batch, optimizer, lr=recipe.rate(step))
    loss = text_likelihood(model, validation, context=LENGTH, batch_size=64).nats_per_token
    return loss, sum(parameter.numel() for parameter in model.parameters())


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="baseline, modern; both if none is named")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    save: Annotated[bool, typer.Option(help="keep the losses in benchmarks/results")] = False,
) -> None:
    """Train a model of characters by each recipe and measure the loss of the validation split."""
    for name in recipes or RECIPES:
        if name not in RECIPES:
            raise typer.BadParameter(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
    if save and recipes:
        raise typer.BadParameter("a result holds all recipes: name none to keep it")
    scores = []
    for name in recipes or RECIPES:
        losses, sizes = zip(*(run(RECIPES[name], seed) for seed in range(seeds)), strict=True)
        score = Score(name, RECIPES[name].about, sizes[0], [round(loss, 4) for loss in losses])
        scores.append(score)
        low, mean, high = min(losses), statistics.mean(losses), max(losses)
        print(f"{name:10}{sizes[0]:10,} parameters {mean:8.3f} nats a character ({low:.3f} ... {high:.3f})", flush=True)
    if save:
        result = {
            "task": "shakespeare",
            "date": date.today().isoformat(),
            "machine": side_by_side.machine(torch.get_num_threads()),
            "scores": [asdict(score) for score in scores],
            "versions": {"torch": torch.__version__},
        }
        target = Path(__file__).parent / "results" / "recipes-shakespeare.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Score:
    """What one recipe came to, one loss a seed."""

    contender: str
    note: str
    parameters: int
    losses: list[float]


TASKS = {"shakespeare": RECIPES}

if __name__ == "__main__":
    typer.run(main)
