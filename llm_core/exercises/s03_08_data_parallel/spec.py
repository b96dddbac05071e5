"""What exercise 03/08 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _workers(source: torch.Generator, W: int, n: int) -> Arguments:
    counts = torch.randint(0, 9, (W,), generator=source).float()
    counts[between(source, 0, W - 1)] += 2
    return torch.randn(n, W, generator=source).T, counts


def _matrices(source: torch.Generator) -> Arguments:
    return torch.randn(3, 2, 4, 5, generator=source), torch.tensor([7.0, 0.0, 3.0])


def _bytes(source: torch.Generator, workers: int) -> Arguments:
    return between(source, 1, 10**6), workers


def _scaled(source: torch.Generator, n: int, norm: float = 0.0, max_norm: float = 0.0) -> Arguments:
    scale, interval = one_of(source, 0.5, 2.0, 64.0, 65536.0), between(source, 1, 5)
    direction = torch.randn(n, generator=source)
    length = norm or one_of(source, 0.1, 1.5, 30.0)
    gradient = scale * length * direction / direction.norm()
    return gradient, scale, between(source, 0, interval - 1), max_norm or one_of(source, 0.3, 1.0, 8.0), interval


def _spoilt(*values: float) -> Callable[[torch.Generator], Arguments]:
    def make(source: torch.Generator) -> Arguments:
        gradient, *rest = _scaled(source, 6)
        gradient[: len(values)] = torch.tensor(values)
        return gradient.flip(0), *rest

    return make


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_workers": between(source, 2, 9),
        "n_weights": between(source, 2, 12),
    }


SPEC = Spec(
    functions=(
        Function(
            "all_reduce_mean",
            _workers,
            {"W": (1, 2, 3, 6), "n": (1, 2, 5)},
            cases={"weights of three dimensions": _matrices},
            gradients="never",
        ),
        Function(
            "ring_bytes",
            _bytes,
            {"workers": (1, 2, 3, 7, 64)},
            cases={"1001 bytes and 7 workers": lambda _: (1001, 7), "5 bytes and 3 workers": lambda _: (5, 3)},
            gradients="never",
            rtol=1e-9,
            atol=1e-6,
        ),
        Function(
            "scaled_step",
            _scaled,
            {"n": (1, 2, 6)},
            cases={
                "the last good step of a row": lambda s: (torch.randn(4, generator=s), 8.0, 2, 1.0, 3),
                "an interval of 1": lambda s: (torch.randn(4, generator=s), 8.0, 0, 1.0, 1),
                "nothing but zeros": lambda _: (torch.zeros(3), 16.0, 1, 1.0, 5),
                "an infinite number": _spoilt(math.inf),
                "a number that is minus infinity": _spoilt(-math.inf),
                "NaN": _spoilt(math.nan),
                "infinities of both signs": _spoilt(math.inf, -math.inf),
                "an overflow just before the row is complete": lambda _: (
                    torch.tensor([math.inf, 1.0]),
                    32.0,
                    4,
                    1.0,
                    5,
                ),
                "nothing but infinities": lambda _: (torch.full((3,), math.inf), 4.0, 1, 1.0, 5),
            },
            returns="the gradient, the next scale, the good steps",
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_workers": 4, "n_weights": 6},
        {"seed": 1, "n_workers": 1, "n_weights": 1},
        {"seed": 2, "n_workers": 2, "n_weights": 3},
        {"seed": 3, "n_workers": 16, "n_weights": 200},
    ),
    drawn=_drawn,
)
