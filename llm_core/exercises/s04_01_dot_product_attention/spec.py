"""What exercise 04/01 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _arguments(
    source: torch.Generator, B: int, H: int, T: int, S: int, d_k: int, d_v: int, size: float = 1.0
) -> Arguments:
    query = size * torch.randn(B, H, T, d_k, generator=source)
    key = size * torch.randn(B, H, d_k, S, generator=source).mT
    value = torch.randn(B, H, S, d_v, generator=source)
    mask = torch.rand(one_of(source, (T, S), (B, 1, 1, S), (S,), (B, H, T, S)), generator=source) > 0.4
    mask[..., between(source, 0, S - 1)] = True
    return query, key, value, one_of(source, None, mask, mask)


def _apart(source: torch.Generator, far: float, masked: bool = False) -> Arguments:
    """Scores of one row that are all far from those of another: a softmax has to look at each row by itself.

    Queries and keys are whole numbers and d_k is 4, so that no way of computing the scores rounds them.
    """
    query, key = (torch.randint(-2, 3, (n, 3), generator=source).float() for n in (3, 4))
    query, key = torch.cat([query, torch.tensor([[far], [-far], [0.0]])], 1), torch.cat([key, torch.ones(4, 1)], 1)
    mask = torch.eye(4, dtype=torch.bool)[torch.tensor([0, 2, 1])]  # one key for each query
    return query, key, torch.randn(4, 3, generator=source), mask if masked else None


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_tokens": between(source, 3, 9),
        "d_k": between(source, 2, 10),
        "d_v": between(source, 2, 10),
        "causal": one_of(source, True, False),
    }


SPEC = Spec(
    functions=(
        Function(
            "attention",
            _arguments,
            {"B": (1, 2, 3), "H": (1, 2, 5), "T": (1, 2, 4), "S": (1, 2, 3, 6), "d_k": (1, 2, 4), "d_v": (1, 3, 5)},
            cases={
                "scores of 200 in one row and -200 in the next": lambda s: _apart(s, 400.0),
                "scores of -20,000 under a mask": lambda s: _apart(s, 40_000.0, masked=True),
                "no batch": lambda s: tuple(
                    None if x is None else x[0, 0] for x in (*_arguments(s, 1, 1, 3, 5, 4, 2)[:3], None)
                ),
                "70 keys": lambda s: _arguments(s, 1, 2, 3, 70, 4, 4),
            },
            gradients="carried",
            banned=("torch.nn.functional.scaled_dot_product_attention",),
        ),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 4, "d_k": 4, "d_v": 3, "causal": False},
        {"seed": 1, "n_tokens": 1, "d_k": 1, "d_v": 1, "causal": True},
        {"seed": 2, "n_tokens": 6, "d_k": 4, "d_v": 16, "causal": True},
        {"seed": 3, "n_tokens": 50, "d_k": 64, "d_v": 64, "causal": True},
    ),
    drawn=_drawn,
)
