"""What exercise 03/06 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


def _sentences(source: torch.Generator, B: int, n: int, same: bool = False) -> Arguments:
    pad, bos, eos, *words = torch.randperm(40, generator=source).tolist()
    if same or one_of(source, True, False, False):
        pad = eos
    lengths = [n, *(between(source, 0, n) for _ in range(B - 1))]
    order = torch.randperm(B, generator=source).tolist()
    return [[one_of(source, *words) for _ in range(lengths[k])] for k in order], bos, eos, pad


def _scored(source: torch.Generator, B: int, T: int, V: int, size: float = 2.0) -> Arguments:
    mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=source)
    mask[between(source, 0, B - 1)] = True
    targets = torch.randint(V, (B, T), generator=source)
    targets = torch.where(mask, targets, one_of(source, 0, V - 1))
    return size * torch.randn(B, V, T, generator=source).mT, targets, mask


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "batch_size": between(source, 2, 6),
        "max_length": between(source, 2, 9),
        "n_words": between(source, 2, 40),
    }


SPEC = Spec(
    functions=(
        Function(
            "make_batch",
            _sentences,
            {"B": (1, 2, 3, 5), "n": (0, 1, 2, 3, 6)},
            cases={"pad the same id as eos": lambda s: _sentences(s, 4, 5, same=True)},
            returns="the inputs, the targets, the mask",
            gradients="never",
        ),
        Function(
            "mean_loss",
            _scored,
            {"B": (1, 2, 3), "T": (1, 2, 4), "V": (1, 2, 3, 7)},
            cases={"logits of several thousand": lambda s: _scored(s, 3, 4, 5, size=3000.0)},
        ),
    ),
    parameters=(
        {"seed": 0, "batch_size": 3, "max_length": 5, "n_words": 12},
        {"seed": 1, "batch_size": 1, "max_length": 1, "n_words": 1},
        {"seed": 2, "batch_size": 8, "max_length": 2, "n_words": 3},
        {"seed": 3, "batch_size": 12, "max_length": 20, "n_words": 300},
    ),
    drawn=_drawn,
)
