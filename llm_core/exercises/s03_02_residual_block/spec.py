"""What exercise 03/02 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


class _Part:
    """A function from (B, T, D) to (B, T, D) that has weights, and counts nothing."""

    def __init__(self, function: Callable[..., Tensor], **weights: Tensor) -> None:
        self.function, self.weights = function, weights

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, **self.weights)


class _Drop:
    """Dropout: another pattern at every call, as in training."""

    def __init__(self, *keep: Tensor) -> None:
        self.keep, self.calls = keep, 0

    def __call__(self, x: Tensor) -> Tensor:
        keep = self.keep[self.calls % len(self.keep)]
        self.calls += 1
        return x * keep / 0.7


def _attend(x: Tensor, mix: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True) @ mix


def _feed(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.gelu(x @ up) @ down


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gain, bias)


def _vectors(source: torch.Generator, N: int, D: int) -> Arguments:
    x = 2.0 * torch.randn(D, N, generator=source).T + 1.0
    gain, bias = torch.randn(D, generator=source) + 2.0, torch.randn(D, generator=source) + 1.0
    return x, gain, bias, one_of(source, 1e-5, 0.1)


def _numbers(source: torch.Generator, N: int, D: int) -> Arguments:
    p = one_of(source, 0.0, 0.1, 0.3, 0.9)
    x = torch.randn(N, D, generator=source) + 3.0
    return x, torch.rand(N, D, generator=source) >= p, p, True


def _stream(source: torch.Generator, B: int, T: int, D: int) -> Arguments:
    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    attention = _Part(_attend, mix=1.5 * randn(D, D) / D**0.5)
    feed_forward = _Part(_feed, up=1.5 * randn(D, D) / D**0.5, down=1.5 * randn(D, D) / D**0.5)
    norms = tuple(_Part(_norm, gain=randn(D) + 2.0, bias=randn(D)) for _ in range(2))
    keep = (torch.rand(B, T, D, generator=source) >= 0.3 for _ in range(2))
    return 2.0 * randn(B, T, D) + 0.5, attention, feed_forward, norms, _Drop(*keep)


def _tracked(given: Arguments) -> dict[str, Tensor]:
    x, attention, feed_forward, norms, _ = given
    of_norms = {f"the {name} of norms[{k}]": w for k, norm in enumerate(norms) for name, w in norm.weights.items()}
    return {"x": x, **attention.weights, **feed_forward.weights, **of_norms}


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_tokens": between(source, 2, 9),
        "d_model": between(source, 3, 11),
        "p": one_of(source, 0.15, 0.4, 0.7),
    }


SPEC = Spec(
    functions=(
        Function(
            "layer_norm",
            _vectors,
            {"N": (1, 2, 3, 5), "D": (1, 2, 3, 4, 7)},
            cases={
                "numbers that are all equal": lambda _: (torch.full((2, 3), 4.0), *torch.ones(2, 3), 1e-3),
                "four dimensions": lambda s: (
                    torch.randn(2, 3, 4, 5, generator=s),
                    *torch.randn(2, 5, generator=s),
                    0.01,
                ),
                "one vector": lambda s: (torch.randn(6, generator=s), *torch.randn(2, 6, generator=s), 0.01),
                "a very small eps": lambda s: (
                    1e-4 * torch.randn(3, 5, generator=s),
                    *torch.randn(2, 5, generator=s),
                    1e-10,
                ),
            },
            banned=(
                "torch.nn.functional.layer_norm",
                "torch.layer_norm",
                "torch.native_layer_norm",
            ),
        ),
        Function(
            "dropout",
            _numbers,
            {"N": (1, 2, 4), "D": (1, 3, 5)},
            cases={
                "training False": lambda s: (
                    torch.randn(3, 4, generator=s),
                    torch.rand(3, 4, generator=s) > 0.5,
                    0.5,
                    False,
                ),
                "training False and p = 0.2": lambda s: (torch.randn(5, generator=s), torch.arange(5) > 1, 0.2, False),
                "everything dropped": lambda s: (
                    torch.randn(2, 3, generator=s),
                    torch.zeros(2, 3, dtype=torch.bool),
                    0.4,
                    True,
                ),
                "three dimensions": lambda s: (
                    torch.randn(2, 3, 4, generator=s),
                    torch.rand(2, 3, 4, generator=s) > 0.2,
                    0.2,
                    True,
                ),
            },
        ),
        Function("pre_norm_block", _stream, {"B": (1, 2, 3), "T": (1, 2, 4), "D": (1, 3, 5)}, tracked=_tracked),
    ),
    parameters=(
        {"seed": 0, "n_tokens": 4, "d_model": 6, "p": 0.25},
        {"seed": 1, "n_tokens": 1, "d_model": 1, "p": 0.0},
        {"seed": 2, "n_tokens": 7, "d_model": 9, "p": 0.5},
        {"seed": 3, "n_tokens": 40, "d_model": 64, "p": 0.9},
    ),
    drawn=_drawn,
)
