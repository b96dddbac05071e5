"""What exercise 02/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _padded(source: torch.Generator, B: int, T: int, pad: int) -> Tensor:
    """Ids of B texts, of which at least one fills all T places."""
    ids = torch.randint(1, 50, (B, T), generator=source)
    ids = torch.where(ids == pad, 50, ids)
    lengths = torch.randint(1, T + 1, (B, 1), generator=source)
    lengths[between(source, 0, B - 1)] = T
    return torch.where(torch.arange(T) < lengths, ids, pad)


def _one(source: torch.Generator, B: int, T: int) -> Arguments:
    pad = one_of(source, 0, 7)
    return _padded(source, B, T, pad), pad


def _two(source: torch.Generator, B: int, S: int, T: int) -> Arguments:
    pad = one_of(source, 0, 7)
    return _padded(source, B, S, pad), _padded(source, B, T, pad), pad


def _left(source: torch.Generator) -> Arguments:
    ids, pad = _one(source, 4, 6)
    return ids.flip(1), pad


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "batch_size": between(source, 2, 6),
        "source_length": between(source, 2, 9),
        "target_length": between(source, 2, 9),
    }


_SIZES = {"B": (1, 2, 4), "T": (1, 2, 5)}
_CASES = {"padding on the left": _left, "one long text": lambda source: _one(source, 1, 40)}

SPEC = Spec(
    functions=(
        Function("encoder_mask", _one, _SIZES, cases=_CASES, gradients="never", fresh=True),
        Function("decoder_mask", _one, _SIZES, cases=_CASES, gradients="never", fresh=True),
        Function(
            "cross_mask",
            _two,
            {**_SIZES, "S": (1, 2, 6)},
            cases={"a short text for a long one": lambda source: _two(source, 3, 30, 2)},
            gradients="never",
            fresh=True,
        ),
    ),
    parameters=(
        {"seed": 0, "batch_size": 3, "source_length": 6, "target_length": 4},
        {"seed": 1, "batch_size": 1, "source_length": 1, "target_length": 1},
        {"seed": 2, "batch_size": 5, "source_length": 2, "target_length": 7},
        {"seed": 3, "batch_size": 9, "source_length": 20, "target_length": 20},
    ),
    drawn=_drawn,
)
