"""What exercise 01/02 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between


def table(source: torch.Generator, V: int) -> Tensor:
    """Counts as a text leaves them, (V, V): most pairs never, some often, and some words that nothing follows."""
    counts = (-2.5 * torch.rand(V, V, generator=source).log()).floor().long()
    counts *= torch.rand(V, V, generator=source) < 0.6
    counts[torch.rand(V, generator=source) < 0.2] = 0
    counts[0, V - 1] += 1  # at least one
    return counts


def every_count(source: torch.Generator, V: int) -> Tensor:
    """The same, with ones, twos, threes and fours in it. V is at least 3."""
    counts = table(source, V)
    places = torch.randperm(V * V, generator=source)[:7]
    counts.view(-1)[places] = torch.tensor([1, 1, 2, 3, 4, 1, 2])
    return counts


def _counts(source: torch.Generator, V: int) -> Arguments:
    return (table(source, V),)


def _discounted(source: torch.Generator, V: int) -> Arguments:
    return table(source, V), float(torch.rand((), generator=source, dtype=torch.float64))


def _every(source: torch.Generator, V: int) -> Arguments:
    return (every_count(source, V),)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "vocab_size": between(source, 3, 30),
        "discount": round(0.1 + 0.8 * float(torch.rand((), generator=source)), 2),
    }


ONE_WORD = torch.tensor([[0, 3, 1], [0, 0, 0], [0, 2, 0]])

SPEC = Spec(
    functions=(
        Function(
            "continuation",
            _counts,
            {"V": (1, 2, 3, 7, 20)},
            cases={"a word that came often, after one word alone": lambda _: (torch.tensor([[0, 90], [1, 0]]),)},
            gradients="never",
        ),
        Function(
            "kneser_ney",
            _discounted,
            {"V": (1, 2, 3, 7, 20)},
            cases={
                "a context that never came": lambda _: (ONE_WORD, 0.75),
                "a discount of zero": lambda _: (ONE_WORD, 0.0),
                "a discount of one": lambda _: (ONE_WORD, 1.0),
                "large counts": lambda s: (1000 * table(s, 5), 0.5),
            },
            gradients="never",
        ),
        Function(
            "discounts",
            _every,
            {"V": (3, 4, 7, 20)},
            cases={"no count above four": lambda _: (torch.tensor([[1, 2, 3], [4, 1, 0], [1, 2, 0]]),)},
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "vocab_size": 6, "discount": 0.75},
        {"seed": 1, "vocab_size": 3, "discount": 0.1},
        {"seed": 2, "vocab_size": 40, "discount": 0.9},
        {"seed": 3, "vocab_size": 200, "discount": 0.5},
    ),
    drawn=_drawn,
)
