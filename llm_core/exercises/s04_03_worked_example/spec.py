"""What exercise 04/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between


def _one(source: torch.Generator, T: int, S: int, d_k: int, d_v: int) -> Arguments:
    Q, K = torch.randn(T, d_k, generator=source), torch.randn(d_k, S, generator=source).T
    return Q, K, torch.randn(S, d_v, generator=source)


def _two(source: torch.Generator, T: int, D: int, E: int) -> Arguments:
    X, W_O = torch.randn(T, D, generator=source), torch.randn(2 * E, D, generator=source)
    return X, *(torch.randn(2, D, E, generator=source) for _ in range(3)), W_O


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {"seed": between(source, 10, 99), "n_tokens": between(source, 2, 7), "d_k": between(source, 2, 9)}


SPEC = Spec(
    functions=(
        Function(
            "one_head",
            _one,
            {"T": (1, 2, 4), "S": (1, 2, 3, 5), "d_k": (1, 2, 3, 6), "d_v": (1, 2, 4)},
            returns="the scores, the weights, the output",
            gradients="carried",
        ),
        Function("two_heads", _two, {"T": (1, 2, 4), "D": (1, 3, 4), "E": (1, 2, 3)}, gradients="carried"),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 3, "d_k": 4},
        {"seed": 1, "n_tokens": 1, "d_k": 1},
        {"seed": 2, "n_tokens": 5, "d_k": 9},
        {"seed": 3, "n_tokens": 12, "d_k": 2},
    ),
    drawn=_drawn,
)
