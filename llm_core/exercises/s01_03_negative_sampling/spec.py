"""What exercise 01/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between


def frequencies(source: torch.Generator, V: int) -> Tensor:
    """Counts as a text has them, (V,): a few words often, most of them rarely, none never."""
    counts = (100 / torch.arange(1, V + 1) + 5 * torch.rand(V, generator=source)).long() + 1
    return counts[torch.randperm(V, generator=source)]


def pairs(source: torch.Generator, P: int, K: int, D: int, size: float = 1.0) -> Arguments:
    """Predictors (P, D), targets (P, D) and noise (P, K, D)."""

    def randn(*shape: int) -> Tensor:
        return size * torch.randn(shape, generator=source, dtype=torch.float64)

    return randn(P, D), randn(P, D), randn(P, K, D)


def _shares(source: torch.Generator, V: int) -> Arguments:
    return frequencies(source, V), 0.2 + float(torch.rand((), generator=source, dtype=torch.float64))


def far_off(source: torch.Generator) -> Arguments:
    """Scores of thousands, of either sign."""
    return pairs(source, 4, 3, 5, size=40.0)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_pairs": between(source, 1, 6),
        "n_noise": between(source, 1, 8),
        "d_model": between(source, 1, 9),
    }


_AUTOGRAD = ("torch.autograd.grad", "torch.autograd.backward", "torch.Tensor.backward")
_SIZES = {"P": (1, 2, 3, 5), "K": (1, 2, 4), "D": (1, 2, 3, 6)}

SPEC = Spec(
    functions=(
        Function(
            "noise_shares",
            _shares,
            {"V": (1, 2, 3, 7, 20)},
            cases={
                "a power of one": lambda s: (frequencies(s, 5), 1.0),
                "a power of zero": lambda s: (frequencies(s, 5), 0.0),
                "counts of billions": lambda s: (10**9 * frequencies(s, 5), 0.75),
            },
            gradients="never",
        ),
        Function(
            "sgns_loss",
            pairs,
            _SIZES,
            cases={
                "scores of thousands": far_off,
                "vectors of zeros": lambda s: tuple(0 * x for x in pairs(s, 2, 3, 4)),
                "the target among the noise": lambda s: _with_target(s),
            },
            rtol=1e-8,
            atol=1e-10,
        ),
        Function(
            "sgns_gradients",
            pairs,
            _SIZES,
            cases={
                "scores of thousands": far_off,
                "vectors of zeros": lambda s: tuple(0 * x for x in pairs(s, 2, 3, 4)),
            },
            returns="d_predictor, d_target, d_negatives",
            gradients="never",
            banned=_AUTOGRAD,
            rtol=1e-8,
            atol=1e-10,
        ),
    ),
    parameters=(
        {"seed": 0, "n_pairs": 4, "n_noise": 5, "d_model": 6},
        {"seed": 1, "n_pairs": 1, "n_noise": 1, "d_model": 1},
        {"seed": 2, "n_pairs": 30, "n_noise": 2, "d_model": 50},
        {"seed": 3, "n_pairs": 3, "n_noise": 20, "d_model": 3},
    ),
    drawn=_drawn,
)


def _with_target(source: torch.Generator) -> Arguments:
    predictor, target, negatives = pairs(source, 3, 2, 4)
    negatives[:, 0] = target
    return predictor, target, negatives
