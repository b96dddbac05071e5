"""What exercise 03/01 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _arguments(source: torch.Generator, B: int, T: int, H: int, E: int, size: float = 1.0) -> Arguments:
    D = H * E
    x = torch.randn(T, B, D, generator=source).transpose(0, 1)
    weights = [1.5 * size * torch.randn(D, D, generator=source) / D**0.5 for _ in range(4)]
    return x, *weights, H


def _strongly_negative(source: torch.Generator) -> Arguments:
    """Scores of about -45,000: whatever stands for "may not read" has to be smaller.

    They are whole numbers of heads of width 4, and one of each row is far above the others, so that no way of computing
    them rounds.
    """
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0] * 2, [2.0, 1.0, 0.0, 0.0] * 2])
    w_v, w_o = (0.3 * torch.randn(8, 8, generator=source) for _ in range(2))
    return torch.stack([x, -x]), 150 * torch.eye(8), -150 * torch.eye(8), w_v, w_o, 2


def _drawn(source: torch.Generator) -> dict[str, Any]:
    H = between(source, 2, 4)
    d_model = H * one_of(source, 3, 5)
    return {"seed": between(source, 10, 99), "n_tokens": between(source, 4, 9), "d_model": d_model, "n_heads": H}


SPEC = Spec(
    functions=(
        Function(
            "self_attention",
            _arguments,
            {"B": (1, 2, 3), "T": (1, 2, 3, 5, 8), "H": (1, 2, 3, 4), "E": (1, 2, 3)},
            cases={
                "scores in the tens": lambda source: _arguments(source, 2, 5, 2, 4, size=2.5),
                "scores of -45,000": _strongly_negative,
                "70 tokens": lambda source: _arguments(source, 1, 70, 2, 2),
            },
        ),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 5, "d_model": 8, "n_heads": 2},
        {"seed": 1, "n_tokens": 1, "d_model": 1, "n_heads": 1},
        {"seed": 2, "n_tokens": 7, "d_model": 12, "n_heads": 3},
        {"seed": 3, "n_tokens": 17, "d_model": 32, "n_heads": 8},
    ),
    drawn=_drawn,
)
