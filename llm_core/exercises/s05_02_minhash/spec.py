"""What exercise 05/02 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between

P = 10_007


def numbers(source: torch.Generator, n: int, below: int) -> list[int]:
    """So many whole numbers from 0 on, below a limit."""
    return torch.randint(below, (n,), generator=source).tolist()


def hashing(source: torch.Generator, n_shingles: int, n_ways: int) -> Arguments:
    """Numbers of shingles, ways to number them anew, and the prime."""
    ways = [(between(source, 1, P - 1), between(source, 0, P - 1)) for _ in range(n_ways)]
    return numbers(source, n_shingles, 1 << 30), ways, P


def pair(source: torch.Generator, n_bands: int, rows: int, below: int = 3) -> tuple[list[int], list[int]]:
    """Two signatures of so many bands; they agree in many places."""
    n = n_bands * rows
    return numbers(source, n, below), numbers(source, n, below)


def _pair(source: torch.Generator, n_bands: int, rows: int) -> Arguments:
    return pair(source, n_bands, rows)


def _banded(source: torch.Generator, n_bands: int, rows: int) -> Arguments:
    return *pair(source, n_bands, rows, 2), n_bands


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_shingles": between(source, 2, 40),
        "n_bands": between(source, 2, 6),
        "rows": between(source, 2, 5),
    }


SPEC = Spec(
    functions=(
        Function(
            "signature",
            hashing,
            {"n_shingles": (1, 2, 7, 30), "n_ways": (1, 2, 6)},
            cases={
                "numbers above p": lambda _: ([20_014, 20_015, 7], [(1, 0), (3, 5)], P),
                "a number that becomes 0": lambda _: ([5, 8, 1], [(2, 4)], 7),
                "large numbers": lambda _: ([2**40 + 3, 2**31], [(2**20, 1), (1, 2**40)], (1 << 61) - 1),
            },
            gradients="never",
        ),
        Function(
            "similarity",
            _pair,
            {"n_bands": (1, 2, 5), "rows": (1, 2, 3)},
            cases={
                "equal": lambda _: ([1, 2, 3], [1, 2, 3]),
                "the same numbers in other places": lambda _: ([1, 2, 3, 4], [2, 1, 3, 5]),
                "nothing in common": lambda _: ([1, 2], [3, 4]),
            },
            gradients="never",
        ),
        Function(
            "meet",
            _banded,
            {"n_bands": (1, 2, 3, 5), "rows": (1, 2, 3)},
            cases={
                "the first band": lambda _: ([1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9], 3),
                "the last band": lambda _: ([1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 5, 6], 3),
                "a run across two bands": lambda _: ([1, 2, 3, 4], [9, 2, 3, 9], 2),
                "the same band in another place": lambda _: ([1, 2, 3, 4], [3, 4, 1, 2], 2),
                "half of each band": lambda _: ([1, 2, 3, 4], [1, 9, 3, 9], 2),
                "one band, and all but one number": lambda _: ([1, 2, 3, 4], [1, 2, 3, 5], 1),
            },
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_shingles": 12, "n_bands": 4, "rows": 2},
        {"seed": 1, "n_shingles": 1, "n_bands": 1, "rows": 1},
        {"seed": 2, "n_shingles": 40, "n_bands": 6, "rows": 3},
        {"seed": 3, "n_shingles": 200, "n_bands": 16, "rows": 8},
    ),
    drawn=_drawn,
)
