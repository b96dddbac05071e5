"""What exercise 04/06 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _model(source: torch.Generator, L: int, K: int, group: int, E: int) -> tuple[int, ...]:
    return between(source, 5, 90), L, K * group, K, K * group * E, between(source, 3, 80)


def _parameters(source: torch.Generator, L: int, K: int, group: int, E: int) -> Arguments:
    return _model(source, L, K, group, E)


def _flops(source: torch.Generator, L: int, K: int, group: int, E: int, T: int, past: int) -> Arguments:
    return *_model(source, L, K, group, E), T, T + past


def _cache(source: torch.Generator, L: int, K: int, group: int, E: int, S: int) -> Arguments:
    _, L, H, K, D, _ = _model(source, L, K, group, E)
    return L, H, K, D, S, one_of(source, 1, 2, 4, 8)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    K = between(source, 1, 4)
    H = K * between(source, 2, 3)
    return {
        "seed": between(source, 10, 99),
        "vocab_size": between(source, 20, 300),
        "n_layers": between(source, 2, 7),
        "n_heads": H,
        "n_kv_heads": K,
        "d_model": H * between(source, 2, 6),
        "d_ff": between(source, 10, 200),
    }


_SIZES = {"L": (1, 2, 5), "K": (1, 2, 3), "group": (1, 2, 4), "E": (1, 2, 5)}
_LLAMA_405B = (128_256, 126, 128, 8, 16_384, 53_248)

SPEC = Spec(
    functions=(
        Function(
            "n_parameters",
            _parameters,
            _SIZES,
            cases={"a model a thousand times as wide": lambda _: (10**6 + 1, 126, 128, 8, 2**24, 10**8 + 7)},
            gradients="never",
        ),
        Function(
            "forward_flops",
            _flops,
            {**_SIZES, "T": (1, 2, 7), "past": (0, 1, 5)},
            cases={"Llama 3 405B and a million tokens": lambda _: (*_LLAMA_405B, 999_999, 1_000_003)},
            gradients="never",
        ),
        Function(
            "cache_bytes",
            _cache,
            {**_SIZES, "S": (1, 2, 9)},
            cases={"a very long text": lambda _: (126, 128, 8, 16_384, 10**12 + 1, 2)},
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "vocab_size": 300, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "d_model": 64, "d_ff": 160},
        {"seed": 1, "vocab_size": 1, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 1, "d_ff": 1},
        {"seed": 2, "vocab_size": 50, "n_layers": 3, "n_heads": 5, "n_kv_heads": 5, "d_model": 15, "d_ff": 7},
        {"seed": 3, "vocab_size": 512, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "d_model": 288, "d_ff": 512},
    ),
    drawn=_drawn,
)
