"""What exercise 03/05 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _logits(source: torch.Generator, B: int, V: int) -> Arguments:
    logits = 2 * torch.randn(V, B, generator=source).T
    top_k = one_of(source, None, 1, 2, max(1, V - 1), V, V + 3)
    return logits, one_of(source, 0.3, 0.9, 1, 1.7), top_k, one_of(source, None, 0.15, 0.5, 0.9, 0.99)


def _far_apart(source: torch.Generator) -> Arguments:
    return torch.randn(3, 6, generator=source) + torch.tensor([[900.0], [0.0], [-900.0]]), 0.5, 4, 0.9


def _pairs(source: torch.Generator, B: int, V: int) -> Arguments:
    p, q = (2 * torch.randn(B, V, generator=source) for _ in range(2))
    return p.softmax(-1), q.softmax(-1), torch.randint(V, (B,), generator=source)


def _some_equal(source: torch.Generator) -> Arguments:
    p, q, tokens = _pairs(source, 4, 5)
    q[2] = p[2]
    return p, q, tokens


def _zeros(source: torch.Generator) -> Arguments:
    """Tokens that top-k has ruled out in one of the two, or in both."""
    p, q = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]]), torch.tensor([[0.0, 0.6, 0.4, 0.0]] * 2)
    return p, q, torch.tensor([2, 1])


def _drawn(source: torch.Generator) -> dict[str, Any]:
    V = between(source, 5, 20)
    return {
        "seed": between(source, 10, 99),
        "batch_size": between(source, 2, 6),
        "vocab_size": V,
        "temperature": one_of(source, 0.5, 1.4),
        "top_k": one_of(source, 2, V - 1, V),
        "top_p": one_of(source, 0.35, 0.6, 0.8),
    }


SPEC = Spec(
    functions=(
        Function(
            "next_token_probabilities",
            _logits,
            {"B": (1, 2, 3, 5), "V": (1, 2, 3, 5, 9, 30)},
            cases={
                "rows that are far apart": _far_apart,
                "logits of 1e5 and a temperature of 0.01": lambda s: (
                    1e5 * torch.randn(2, 5, generator=s),
                    0.01,
                    None,
                    None,
                ),
                "top_k = 1": lambda s: (torch.randn(3, 5, generator=s), 1.0, 1, None),
                "top_k = V - 1": lambda s: (torch.randn(3, 5, generator=s), 1.0, 4, None),
                "a very small top_p": lambda s: (torch.randn(3, 5, generator=s), 1.0, None, 1e-6),
                "top_p = 1": lambda s: (torch.randn(3, 5, generator=s), 1.0, None, 1.0),
                "ties": lambda _: (torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0], [0.0, 3.0, 3.0, 1.0, 0.0]]), 1.0, 2, None),
                "probabilities that fall off fast": lambda _: (
                    torch.tensor([[0.0, -20.0, -40.0, -9.0]]),
                    1.0,
                    None,
                    0.99995,
                ),
            },
            gradients="never",
        ),
        Function(
            "judge",
            _pairs,
            {"B": (1, 2, 3, 6), "V": (1, 2, 3, 7)},
            cases={"a row of p and q that is the same": _some_equal, "probabilities of zero": _zeros},
            returns="keep, residual",
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "batch_size": 3, "vocab_size": 8, "temperature": 0.8, "top_k": 5, "top_p": 0.9},
        {"seed": 1, "batch_size": 1, "vocab_size": 1, "temperature": 1.0, "top_k": 1, "top_p": 1.0},
        {"seed": 2, "batch_size": 2, "vocab_size": 5, "temperature": 2.0, "top_k": 4, "top_p": 0.5},
        {"seed": 3, "batch_size": 16, "vocab_size": 200, "temperature": 0.3, "top_k": 50, "top_p": 0.95},
    ),
    drawn=_drawn,
)
