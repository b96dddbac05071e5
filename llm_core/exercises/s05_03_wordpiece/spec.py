"""What exercise 05/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Function, Spec, between

LETTERS = "abcd"


def word(source: torch.Generator, length: int, n_letters: int) -> list[str]:
    """A word of so many pieces, each a letter or two; those that go on are marked."""
    pieces = []
    for i in range(length):
        letters = "".join(LETTERS[between(source, 0, n_letters - 1)] for _ in range(between(source, 4, 9) // 4))
        pieces.append("##" + letters if i else letters)
    return pieces


def text(source: torch.Generator, n_words: int, n_letters: int) -> tuple[list[list[str]], list[int]]:
    """Words of up to five pieces, the last with a pair in it, and how often each comes."""
    words = [word(source, between(source, 1, 5), n_letters) for _ in range(n_words - 1)]
    words.append(word(source, between(source, 2, 5), n_letters))
    return words, [between(source, 1, 40) for _ in words]


def numbers(source: torch.Generator, largest: int) -> tuple[int, int, int, int]:
    """How often a pair is met, each of its two pieces, and all pieces of a text."""
    made = between(source, 1, largest)
    left, right = (made + between(source, 0, largest) for _ in range(2))
    return made, left, right, left + right + between(source, 0, 3 * largest)


def joining(source: torch.Generator, length: int, n_letters: int) -> tuple[list[str], tuple[str, str]]:
    """A word of so many pieces, and a pair that stands in it if it has two."""
    spelled = word(source, length, n_letters)
    at = between(source, 0, max(0, length - 2))
    left, right = spelled[at : at + 2] if length > 1 else ("a", "##b")
    return spelled, (left, right)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {"seed": between(source, 10, 99), "n_words": between(source, 2, 15), "length": between(source, 3, 9)}


SPEC = Spec(
    functions=(
        Function(
            "log_likelihood",
            text,
            {"n_words": (1, 2, 5, 12), "n_letters": (1, 2, 4)},
            cases={
                "one piece": lambda _: ([["a"]], [3]),
                "the same piece with the mark and without": lambda _: ([["a", "##a"], ["a"]], [4, 3]),
                "the same word twice": lambda _: ([["a", "##b"], ["a", "##b"], ["c"]], [2, 5, 1]),
                "large counts": lambda _: ([["a", "##b"], ["a", "##c"]], [10**9, 3]),
            },
            gradients="never",
            rtol=1e-7,
        ),
        Function(
            "gain",
            numbers,
            {"largest": (1, 3, 20, 1000)},
            cases={
                "a left piece that is used up": lambda _: (4, 4, 9, 30),
                "a right piece that is used up": lambda _: (4, 9, 4, 30),
                "two pieces that come together only": lambda _: (4, 4, 4, 30),
                "a text that is one pair, again and again": lambda _: (6, 6, 6, 12),
                "a text that is one pair": lambda _: (1, 1, 1, 2),
                "a loss": lambda _: (1, 50, 60, 120),
                "large numbers": lambda _: (1000, 20_000, 30_000, 500_000),
            },
            gradients="never",
            rtol=1e-7,
        ),
        Function(
            "join",
            joining,
            {"length": (1, 2, 3, 6), "n_letters": (1, 2, 3)},
            cases={
                "no pieces": lambda _: ([], ("a", "##b")),
                "a pair of equals": lambda _: (["a", "##a", "##a", "##a", "##a", "##b"], ("##a", "##a")),
                "a pair that stands twice": lambda _: (["a", "##b", "##c", "##b", "##c"], ("##b", "##c")),
                "a pair the other way round": lambda _: (["a", "##c", "##b", "##c"], ("##b", "##c")),
                "a pair that is not there": lambda _: (["a", "##b", "##a"], ("##a", "##a")),
                "a first piece that has no mark": lambda _: (["ab", "##cd", "##ab", "##cd"], ("ab", "##cd")),
                "a sign in a word": lambda _: (["#", "###", "##a"], ("#", "###")),
            },
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_words": 6, "length": 6, "largest": 50},
        {"seed": 1, "n_words": 1, "length": 1, "largest": 1},
        {"seed": 2, "n_words": 12, "length": 9, "largest": 300},
        {"seed": 3, "n_words": 40, "length": 14, "largest": 512},
    ),
    drawn=_drawn,
)
