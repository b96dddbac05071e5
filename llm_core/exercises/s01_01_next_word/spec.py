"""What exercise 01/01 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between


def text(source: torch.Generator, T: int, V: int) -> Tensor:
    """A text of T words as their ids, (T,)."""
    return torch.randint(V, (T,), generator=source)


def network(source: torch.Generator, N: int, n: int, D: int, V: int) -> Arguments:
    """Contexts (N, n), and a network's table (V, D), mixing weights (n D, D) and bias (V,)."""
    contexts = torch.randint(V, (N, n), generator=source)
    return (
        contexts,
        torch.randn(V, D, generator=source),
        torch.randn(n * D, D, generator=source) / (n * D) ** 0.5,
        torch.randn(V, generator=source),
    )


def logarithms(source: torch.Generator, T: int) -> tuple[Tensor, Tensor]:
    """What two models give the words of a text, as logarithms, (T,) each."""
    first, second = -6 * torch.rand(2, T, generator=source).sqrt()
    return first, second


def _windows(source: torch.Generator, n: int, more: int) -> Arguments:
    return text(source, n + more, 9), n


def _sure(source: torch.Generator) -> Arguments:
    contexts, table, mix, bias = network(source, 3, 2, 4, 5)
    return contexts, 100 * table, mix, bias  # all but one probability are zero in float32, their logarithms are not


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "window": between(source, 1, 5),
        "width": between(source, 2, 12),
        "vocab_size": between(source, 3, 30),
    }


SPEC = Spec(
    functions=(
        Function(
            "windows",
            _windows,
            {"n": (1, 2, 3, 5), "more": (1, 2, 7)},
            cases={"one word again and again": lambda _: (torch.full((6,), 4), 2)},
            returns="contexts, words",
            gradients="never",
        ),
        Function(
            "log_probabilities",
            network,
            {"N": (1, 2, 5), "n": (1, 2, 3), "D": (1, 2, 4), "V": (2, 3, 7)},
            cases={"logits of some hundred": _sure},
        ),
        Function(
            "mean_model",
            logarithms,
            {"T": (1, 2, 5)},
            cases={
                "probabilities below float32": lambda _: (
                    torch.tensor([-300.0, -900.0]),
                    torch.tensor([-310.0, -899.0]),
                ),
                "one model is certain": lambda _: (torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0])),
            },
        ),
    ),
    parameters=(
        {"seed": 0, "window": 3, "width": 4, "vocab_size": 9},
        {"seed": 1, "window": 1, "width": 1, "vocab_size": 2},
        {"seed": 2, "window": 2, "width": 16, "vocab_size": 40},
        {"seed": 3, "window": 8, "width": 3, "vocab_size": 300},
    ),
    drawn=_drawn,
)
