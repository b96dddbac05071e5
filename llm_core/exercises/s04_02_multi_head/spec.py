"""What exercise 04/02 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between


def _whole(source: torch.Generator, B: int, T: int, H: int, E: int) -> Arguments:
    return torch.randn(T, B, H * E, generator=source).transpose(0, 1), H


def _heads(source: torch.Generator, B: int, T: int, H: int, E: int) -> Arguments:
    return (torch.randn(B, T, H, E, generator=source).transpose(1, 2),)


def _projected(source: torch.Generator, B: int, T: int, H: int, E: int, D: int) -> Arguments:
    return *_heads(source, B, T, H, E), torch.randn(D, H * E, generator=source).T


def _drawn(source: torch.Generator) -> dict[str, Any]:
    H = between(source, 2, 5)
    return {
        "seed": between(source, 10, 99),
        "batch_size": between(source, 1, 4),
        "n_tokens": between(source, 2, 7),
        "d_model": H * between(source, 2, 4),
        "n_heads": H,
    }


_SIZES = {"B": (1, 2, 3), "T": (1, 2, 5), "H": (1, 2, 3, 4), "E": (1, 2, 3, 6)}

SPEC = Spec(
    functions=(
        Function("split_heads", _whole, _SIZES),
        Function("join_heads", _heads, _SIZES),
        Function("head_contributions", _projected, {**_SIZES, "D": (1, 2, 5, 7)}),
    ),
    parameters=(
        {"seed": 0, "batch_size": 2, "n_tokens": 5, "d_model": 12, "n_heads": 3},
        {"seed": 1, "batch_size": 1, "n_tokens": 1, "d_model": 1, "n_heads": 1},
        {"seed": 2, "batch_size": 3, "n_tokens": 4, "d_model": 7, "n_heads": 7},
        {"seed": 3, "batch_size": 8, "n_tokens": 20, "d_model": 96, "n_heads": 12},
    ),
    drawn=_drawn,
)
