"""What exercise 04/04 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between


def _randn(source: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=source, dtype=torch.float64)


def _softmax(source: torch.Generator, B: int, T: int, S: int, size: float = 2.0) -> Arguments:
    return (size * _randn(source, B, S, T).mT).softmax(-1), _randn(source, B, T, S)


def _loss(source: torch.Generator, N: int, V: int, size: float = 2.0) -> Arguments:
    return size * _randn(source, V, N).T, torch.randint(V, (N,), generator=source)


def _attention(source: torch.Generator, B: int, H: int, T: int, S: int, d_k: int, d_v: int) -> Arguments:
    query, key, value = _randn(source, B, H, T, d_k), _randn(source, B, H, d_k, S).mT, _randn(source, B, H, S, d_v)
    weights = (2 * _randn(source, B, H, T, S)).masked_fill(torch.rand(T, S, generator=source) < 0.2, -torch.inf)
    return query, key, value, weights.softmax(-1).nan_to_num(1 / S), _randn(source, B, H, T, d_v)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_tokens": between(source, 2, 7),
        "n_heads": between(source, 1, 4),
        "d_head": between(source, 2, 7),
        "vocab_size": between(source, 3, 20),
    }


_AUTOGRAD = ("torch.autograd.grad", "torch.autograd.backward", "torch.Tensor.backward")

SPEC = Spec(
    functions=(
        Function(
            "softmax_backward",
            _softmax,
            {"B": (1, 2, 3), "T": (1, 2, 4), "S": (1, 2, 3, 5)},
            cases={"a single row": lambda s: tuple(x[0, 0] for x in _softmax(s, 1, 1, 5))},
            gradients="never",
            banned=_AUTOGRAD,
            rtol=1e-9,
            atol=1e-12,
        ),
        Function(
            "cross_entropy_backward",
            _loss,
            {"N": (1, 2, 5), "V": (1, 2, 3, 8)},
            cases={
                "logits of several thousand": lambda s: _loss(s, 4, 6, size=3000.0),
                "the same target in every row": lambda s: (_randn(s, 3, 4), torch.tensor([3, 3, 3])),
            },
            gradients="never",
            banned=_AUTOGRAD,
            rtol=1e-9,
            atol=1e-12,
        ),
        Function(
            "attention_backward",
            _attention,
            {"B": (1, 2), "H": (1, 3), "T": (1, 2, 4), "S": (1, 2, 3, 5), "d_k": (1, 2, 6), "d_v": (1, 3, 4)},
            cases={"no batch": lambda s: tuple(x[0, 0] for x in _attention(s, 1, 1, 3, 4, 5, 2))},
            returns="d_query, d_key, d_value",
            gradients="never",
            banned=_AUTOGRAD,
            rtol=1e-9,
            atol=1e-12,
        ),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 5, "n_heads": 2, "d_head": 4, "vocab_size": 8},
        {"seed": 1, "n_tokens": 1, "n_heads": 1, "d_head": 1, "vocab_size": 1},
        {"seed": 2, "n_tokens": 3, "n_heads": 4, "d_head": 7, "vocab_size": 2},
        {"seed": 3, "n_tokens": 40, "n_heads": 8, "d_head": 16, "vocab_size": 300},
    ),
    drawn=_drawn,
)
