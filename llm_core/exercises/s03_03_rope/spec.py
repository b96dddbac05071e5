"""What exercise 03/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _turning(source: torch.Generator, B: int, H: int, T: int, pairs: int) -> Arguments:
    x = torch.randn(B, T, H, 2 * pairs, generator=source).transpose(1, 2)
    return x, torch.randint(40, (T,), generator=source), one_of(source, 2.0, 100.0, 10_000.0)


def _far(source: torch.Generator) -> Arguments:
    return torch.randn(1, 3, 5, 4, generator=source), torch.tensor([0, 511, 512, 1024, 2000]), 10_000.0


def _sizes(source: torch.Generator, H: int, T: int, past: int) -> Arguments:
    return H, T, T + past


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_heads": one_of(source, 4, 8, 32),
        "n_tokens": between(source, 3, 9),
        "d_head": one_of(source, 4, 6, 10),
        "base": one_of(source, 7.0, 1000.0, 50_000.0),
    }


SPEC = Spec(
    functions=(
        Function(
            "rotate",
            _turning,
            {"B": (1, 2, 3), "H": (1, 2, 3, 5), "T": (1, 2, 4, 7), "pairs": (1, 2, 3, 4)},
            cases={
                "positions up to 2000": _far,
                "every position 0": lambda s: (
                    torch.randn(2, 1, 3, 4, generator=s),
                    torch.zeros(3, dtype=torch.long),
                    10.0,
                ),
                "a whole number as base": lambda s: (torch.randn(1, 2, 3, 6, generator=s), torch.arange(3) + 1, 500),
            },
            banned=(
                "llm_core.layers.positions.Rope",
                "llm_core.layers.positions.rotate_halves",
                "llm_core.layers.positions.rotate_neighbours",
            ),
            atol=5e-4,
        ),
        Function(
            "alibi_bias",
            _sizes,
            {"H": (1, 2, 4, 8, 16, 32), "T": (1, 2, 3, 5), "past": (0, 1, 2, 7)},
            cases={"600 keys": lambda _: (16, 2, 600)},
            gradients="never",
            banned=("llm_core.layers.positions.Alibi", "llm_core.layers.positions.alibi_slopes"),
        ),
    ),
    parameters=(
        {"seed": 0, "n_heads": 2, "n_tokens": 5, "d_head": 8, "base": 100.0},
        {"seed": 1, "n_heads": 1, "n_tokens": 1, "d_head": 2, "base": 2.0},
        {"seed": 2, "n_heads": 4, "n_tokens": 7, "d_head": 6, "base": 10000.0},
        {"seed": 3, "n_heads": 16, "n_tokens": 40, "d_head": 64, "base": 500000.0},
    ),
    drawn=_drawn,
)
