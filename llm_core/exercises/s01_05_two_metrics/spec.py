"""What exercise 01/05 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def predictions(
    source: torch.Generator, B: int, T: int, V: int, *, right: float = 0.8, size: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V) of which about this share is right, targets and mask (B, T); the first row is all answer.

    An answer stands anywhere in its row, as it does after questions of different lengths. Beside it the predictions
    are as often right as wrong.
    """
    logits = size * torch.randn(B, T, V, generator=source)
    targets = torch.randint(V, (B, T), generator=source)
    hit = torch.rand(B, T, generator=source) < right
    logits = logits.scatter_add(-1, targets[..., None], (6.0 * size * hit)[..., None].to(logits.dtype))
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0] = True
    for row in range(1, B):
        first = between(source, 0, T)
        mask[row, first : between(source, first, T)] = True
    return logits, targets, mask


def _with_choices(source: torch.Generator, B: int, T: int, V: int, size: float = 2.0) -> Arguments:
    return *predictions(source, B, T, V, size=size), one_of(source, 2, 10, V + 3)


def _all_right(source: torch.Generator) -> Arguments:
    return predictions(source, 3, 4, 5, right=2.0)


def _all_wrong(source: torch.Generator) -> Arguments:
    logits, targets, mask = predictions(source, 3, 4, 5, right=-1.0)
    return -50.0 * torch.nn.functional.one_hot(targets, 5) + logits, targets, mask


def _empty_rows(source: torch.Generator) -> Arguments:
    logits, targets, mask = predictions(source, 4, 3, 5, right=0.5)
    mask[1:3] = False
    return logits, targets, mask


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_answers": between(source, 2, 30),
        "n_tokens": between(source, 2, 9),
        "vocab_size": between(source, 3, 20),
    }


SIZES = {"B": (1, 2, 3, 9), "T": (1, 2, 5), "V": (2, 3, 7)}
CASES = {
    "every token right": _all_right,
    "every token wrong": _all_wrong,
    "rows without an answer": _empty_rows,
}
SPEC = Spec(
    functions=(
        Function("token_share", predictions, SIZES, cases=CASES, gradients="never"),
        Function("whole_share", predictions, SIZES, cases=CASES, gradients="never"),
        Function(
            "bits_learned",
            _with_choices,
            SIZES,
            cases={
                "logits of several thousand": lambda s: _with_choices(s, 2, 3, 5, size=500.0),
                "rows without an answer": lambda s: (*_empty_rows(s), 10),
            },
            gradients="carried",
        ),
    ),
    parameters=(
        {"seed": 0, "n_answers": 20, "n_tokens": 8, "vocab_size": 10},
        {"seed": 1, "n_answers": 1, "n_tokens": 1, "vocab_size": 2},
        {"seed": 2, "n_answers": 2, "n_tokens": 2, "vocab_size": 50},
        {"seed": 3, "n_answers": 60, "n_tokens": 20, "vocab_size": 300},
    ),
    drawn=_drawn,
)
