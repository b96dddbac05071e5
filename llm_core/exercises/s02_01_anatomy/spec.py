"""What exercise 02/01 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between


def _decoder(source: torch.Generator, L: int, D: int) -> Arguments:
    return between(source, 5, 90), between(source, 3, 80), L, D


def _encoder(source: torch.Generator, L: int, D: int) -> Arguments:
    return *_decoder(source, L, D), between(source, 3, 80)


def _encoder_decoder(source: torch.Generator, L: int, D: int) -> Arguments:
    return between(source, 5, 90), L, D, between(source, 3, 80)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "vocab_size": between(source, 20, 300),
        "context": between(source, 5, 90),
        "n_layers": between(source, 2, 7),
        "d_model": 2 * between(source, 2, 30),
        "d_ff": between(source, 10, 200),
    }


_SIZES = {"L": (1, 2, 5), "D": (2, 4, 10)}

SPEC = Spec(
    functions=(
        Function(
            "decoder_parameters",
            _decoder,
            _SIZES,
            cases={"a model a thousand times as wide": lambda _: (10**6 + 1, 10**5 + 3, 126, 2**24)},
            gradients="never",
        ),
        Function(
            "encoder_parameters",
            _encoder,
            _SIZES,
            cases={"a model a thousand times as wide": lambda _: (10**6 + 1, 10**5 + 3, 126, 2**24, 10**8 + 7)},
            gradients="never",
        ),
        Function(
            "encoder_decoder_parameters",
            _encoder_decoder,
            _SIZES,
            cases={"a model a thousand times as wide": lambda _: (10**6 + 1, 126, 2**24, 10**8 + 7)},
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "vocab_size": 300, "context": 40, "n_layers": 4, "d_model": 64, "d_ff": 160},
        {"seed": 1, "vocab_size": 1, "context": 1, "n_layers": 1, "d_model": 2, "d_ff": 1},
        {"seed": 2, "vocab_size": 50, "context": 7, "n_layers": 3, "d_model": 14, "d_ff": 5},
        {"seed": 3, "vocab_size": 512, "context": 200, "n_layers": 12, "d_model": 96, "d_ff": 384},
    ),
    drawn=_drawn,
)
