"""What exercise 01/04 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between


def layer(source: torch.Generator, Q: int, N: int, A: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights (A, Q) and (A, N), the bias and the vector (A,) of an additive attention."""
    w_query, w_state = torch.randn(A, Q, generator=source), torch.randn(A, N, generator=source)
    bias, vector = torch.randn(2, A, generator=source)
    return w_query, w_state, bias, vector


def padded(source: torch.Generator, B: int, S: int) -> Tensor:
    """Lengths of B sources, 1 ... S, one of them S."""
    lengths = torch.randint(1, S + 1, (B,), generator=source)
    lengths[between(source, 0, B - 1)] = S
    return lengths


def _scores(source: torch.Generator, B: int, T: int, S: int, Q: int, N: int, A: int) -> Arguments:
    query, states = torch.randn(B, T, Q, generator=source), torch.randn(B, S, N, generator=source)
    return query, states, *layer(source, Q, N, A)


def _weights(source: torch.Generator, B: int, T: int, S: int, size: float = 2.0) -> Arguments:
    return size * torch.randn(B, T, S, generator=source), padded(source, B, S)


def _read(source: torch.Generator, B: int, T: int, S: int, N: int) -> Arguments:
    scores = torch.randn(B, T, S, generator=source)
    return scores.softmax(-1), torch.randn(B, S, N, generator=source)


def _apart(source: torch.Generator, far: float) -> Arguments:
    """Scores of one row far from those of the next, and larger ones on the padding."""
    scores = torch.randn(2, 3, 5, generator=source)
    scores[:, 0] += far
    scores[:, 1] -= far
    scores[0, :, 3:] += far
    return scores, torch.tensor([3, 5])


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_sources": between(source, 2, 5),
        "longest": between(source, 3, 9),
        "d_state": between(source, 2, 8),
    }


SIZES = {"B": (1, 2, 3), "T": (1, 2, 4), "S": (1, 2, 3, 6)}

SPEC = Spec(
    functions=(
        Function("scores", _scores, {**SIZES, "Q": (1, 2, 5), "N": (1, 3, 4), "A": (1, 2, 6)}),
        Function(
            "weights",
            _weights,
            SIZES,
            cases={
                "scores of 200 in one row and -200 in the next": lambda s: _apart(s, 200.0),
                "a source of one letter": lambda s: (torch.randn(2, 2, 4, generator=s), torch.tensor([1, 4])),
                "no padding": lambda s: (torch.randn(2, 3, 4, generator=s), torch.tensor([4, 4])),
            },
        ),
        Function("read", _read, {**SIZES, "N": (1, 2, 5)}),
    ),
    parameters=(
        {"seed": 0, "n_sources": 3, "longest": 5, "d_state": 4},
        {"seed": 1, "n_sources": 1, "longest": 1, "d_state": 1},
        {"seed": 2, "n_sources": 5, "longest": 8, "d_state": 6},
        {"seed": 3, "n_sources": 8, "longest": 30, "d_state": 16},
    ),
    drawn=_drawn,
)
