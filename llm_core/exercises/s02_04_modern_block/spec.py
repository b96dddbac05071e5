"""What exercise 02/04 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _vectors(source: torch.Generator, N: int, D: int) -> Arguments:
    x = 2.0 * torch.randn(D, N, generator=source).T + 1.0
    return x, torch.randn(D, generator=source) + 2.0, one_of(source, 1e-5, 0.1)


def _matrices(source: torch.Generator, D: int, F: int) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = (torch.randn(F, D, generator=source) / D**0.5 for _ in range(2))
    return gate, up, torch.randn(D, F, generator=source) / F**0.5


def _widened(source: torch.Generator, N: int, D: int, F: int) -> Arguments:
    return 2.0 * torch.randn(N, D, generator=source), *_matrices(source, D, F)


def _stream(source: torch.Generator, N: int, D: int, F: int) -> Arguments:
    return *_vectors(source, N, D), *_matrices(source, D, F)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_tokens": between(source, 2, 9),
        "d_model": between(source, 3, 11),
        "d_ff": between(source, 3, 17),
    }


SPEC = Spec(
    functions=(
        Function(
            "rms_norm",
            _vectors,
            {"N": (1, 2, 3, 5), "D": (1, 2, 3, 4, 7)},
            cases={
                "zeros": lambda _: (torch.zeros(2, 3), torch.ones(3), 1e-3),
                "four dimensions": lambda s: (
                    torch.randn(2, 3, 4, 5, generator=s),
                    torch.randn(5, generator=s),
                    0.01,
                ),
                "one vector": lambda s: (torch.randn(6, generator=s), torch.randn(6, generator=s), 0.01),
                "a very small eps": lambda s: (
                    1e-4 * torch.randn(3, 5, generator=s),
                    torch.randn(5, generator=s),
                    1e-10,
                ),
            },
            banned=("torch.nn.functional.rms_norm", "torch.rms_norm"),
        ),
        Function(
            "swiglu",
            _widened,
            {"N": (1, 2, 3), "D": (1, 2, 4), "F": (1, 3, 5)},
            cases={
                "three dimensions": lambda s: (torch.randn(2, 3, 4, generator=s), *_matrices(s, 4, 6)),
                "large numbers": lambda s: (300.0 * torch.randn(2, 3, generator=s), *_matrices(s, 3, 4)),
                "one vector": lambda s: (torch.randn(4, generator=s), *_matrices(s, 4, 6)),
            },
        ),
        Function(
            "half_block",
            _stream,
            {"N": (1, 2, 3), "D": (1, 2, 4), "F": (1, 3, 5)},
            cases={
                "three dimensions": lambda s: (
                    torch.randn(2, 3, 4, generator=s),
                    torch.randn(4, generator=s),
                    0.01,
                    *_matrices(s, 4, 6),
                )
            },
        ),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 4, "d_model": 6, "d_ff": 16},
        {"seed": 1, "n_tokens": 1, "d_model": 1, "d_ff": 1},
        {"seed": 2, "n_tokens": 7, "d_model": 9, "d_ff": 5},
        {"seed": 3, "n_tokens": 40, "d_model": 64, "d_ff": 170},
    ),
    drawn=_drawn,
)
