"""What exercise 04/05 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _logits(source: torch.Generator, B: int, T: int, V: int, size: float = 2.0) -> Arguments:
    return size * torch.randn(B, V, T, generator=source).mT, torch.randint(V, (B, T), generator=source)


def _batches(source: torch.Generator, batches: int, most: int) -> list[list[float]]:
    lengths = [most, *(between(source, 0, most) for _ in range(batches - 1))]
    return [(6 * torch.rand(n, generator=source, dtype=torch.float64) ** 2).tolist() for n in lengths]


def _losses(source: torch.Generator, batches: int, most: int) -> Arguments:
    return (_batches(source, batches, most),)


def _text(source: torch.Generator, batches: int, most: int, n: int) -> Arguments:
    characters = ["a", "B", " ", "\n", "é", "語", "🙂", "\u0301"]
    return _batches(source, batches, most), "".join(one_of(source, *characters) for _ in range(n))


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_tokens": between(source, 2, 9),
        "vocab_size": between(source, 3, 30),
        "n_batches": between(source, 2, 6),
    }


SPEC = Spec(
    functions=(
        Function(
            "token_losses",
            _logits,
            {"B": (1, 2, 3), "T": (1, 2, 5), "V": (1, 2, 3, 7)},
            cases={"logits of several thousand": lambda s: _logits(s, 2, 3, 5, size=3000.0)},
            gradients="carried",
        ),
        Function(
            "perplexity",
            _losses,
            {"batches": (1, 2, 4), "most": (1, 2, 7)},
            cases={
                "an empty batch at the start": lambda _: ([[], [1.0, 2.5], [0.5]],),
                "an empty batch at the end": lambda _: ([[1.0], [0.25, 3.0], []],),
                "whole numbers": lambda _: ([[1, 2], [4]],),
            },
            gradients="never",
        ),
        Function(
            "bits_per_byte",
            _text,
            {"batches": (1, 2, 4), "most": (1, 3, 7), "n": (1, 2, 5, 9)},
            cases={
                "blanks around the text": lambda _: ([[1.0, 2.0], [0.5]], "  \tab c\n\n"),
                "an empty batch": lambda _: ([[1.0], []], "語"),
                "a line end of Windows": lambda _: ([[1.0]], "a\r\nb\r\n"),
            },
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 5, "vocab_size": 8, "n_batches": 3},
        {"seed": 1, "n_tokens": 1, "vocab_size": 2, "n_batches": 1},
        {"seed": 2, "n_tokens": 2, "vocab_size": 50, "n_batches": 2},
        {"seed": 3, "n_tokens": 40, "vocab_size": 300, "n_batches": 12},
    ),
    drawn=_drawn,
)
