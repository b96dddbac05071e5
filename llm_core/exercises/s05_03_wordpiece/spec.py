"""What exercise 05/03 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between

LETTERS = "abcd"
Words = tuple[list[list[str]], list[int]]


def word(source: torch.Generator, length: int, n_letters: int) -> list[str]:
    """A word of so many pieces, each a letter or two; those that go on are marked."""
    pieces = []
    for i in range(length):
        letters = "".join(LETTERS[between(source, 0, n_letters - 1)] for _ in range(between(source, 4, 9) // 4))
        pieces.append("##" + letters if i else letters)
    return pieces


def text(source: torch.Generator, n_words: int, n_letters: int) -> Words:
    """Words of up to five pieces, the last with a pair in it, and how often each comes."""
    words = [word(source, between(source, 1, 5), n_letters) for _ in range(n_words - 1)]
    words.append(word(source, between(source, 2, 5), n_letters))
    return words, [between(source, 1, 40) for _ in words]


def places(pieces: list[str], pair: tuple[str, str]) -> int:
    """How often a pair is joined in a word, from left to right; of a a a the last one stays."""
    n, i = 0, 0
    while i + 1 < len(pieces):
        found = (pieces[i], pieces[i + 1]) == pair
        n, i = n + found, i + 1 + found
    return n


def decided(source: torch.Generator, n_words: int, n_letters: int) -> Words:
    """Such words, of which one pair gains clearly more than every other, so that rounding decides nothing."""
    while True:
        words, counts = text(source, n_words, n_letters)
        gains = sorted(gains_of(words, counts).values(), reverse=True)
        if len(gains) == 1 or gains[0] > gains[1] + 1e-4:
            return words, counts


def gains_of(words: list[list[str]], counts: list[int]) -> dict[tuple[str, str], float]:
    """By how much the join of each pair raises the log-likelihood, from counts alone."""
    pieces: Counter[str] = Counter()
    for spelled, count in zip(words, counts, strict=True):
        for piece in spelled:
            pieces[piece] += count
    pairs = dict.fromkeys(pair for spelled in words for pair in pairwise(spelled))
    return {pair: gain(words, counts, pieces, pair) for pair in pairs}


def gain(words: list[list[str]], counts: list[int], pieces: Counter[str], pair: tuple[str, str]) -> float:
    """By how much the join of one pair raises the log-likelihood."""
    made = sum(count * places(spelled, pair) for spelled, count in zip(words, counts, strict=True))
    joined = pair[0] + pair[1].removeprefix("##")
    change = Counter({joined: made})
    for piece in pair:
        change[piece] -= made
    touched = sum(_xlogx(pieces[piece] + n) - _xlogx(pieces[piece]) for piece, n in change.items())
    total = pieces.total()
    return touched - _xlogx(total - made) + _xlogx(total)


def _xlogx(n: int) -> float:
    x = torch.tensor(float(n), dtype=torch.float64)
    return float(torch.special.xlogy(x, x))


def joining(source: torch.Generator, length: int, n_letters: int) -> tuple[list[str], tuple[str, str]]:
    """A word of so many pieces, and a pair that stands in it if it has two."""
    spelled = word(source, length, n_letters)
    at = between(source, 0, max(0, length - 2))
    left, right = spelled[at : at + 2] if length > 1 else ("a", "##b")
    return spelled, (left, right)


def _text(source: torch.Generator, n_words: int, n_letters: int) -> Arguments:
    return text(source, n_words, n_letters)


def _decided(source: torch.Generator, n_words: int, n_letters: int) -> Arguments:
    return decided(source, n_words, n_letters)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {"seed": between(source, 10, 99), "n_words": between(source, 2, 15), "length": between(source, 3, 9)}


# A frequent pair of frequent pieces, and a rare pair of pieces that come together only.
RARE = ([["a", "##b"], ["c", "##b"], ["x", "##y"]], [10, 9, 2])
# Where a a a is counted as two pairs, another one seems to gain most.
RUN = ([["a", "##b", "##b", "##b", "##b", "##b"], ["a", "##c"], ["d", "##c"]], [5, 12, 3])

SPEC = Spec(
    functions=(
        Function(
            "log_likelihood",
            _text,
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
            "join",
            joining,
            {"length": (1, 2, 3, 6), "n_letters": (1, 2, 3)},
            cases={
                "no pieces": lambda _: ([], ("a", "##b")),
                "a pair of equals": lambda _: (["a", "##a", "##a", "##a", "##a", "##b"], ("##a", "##a")),
                "a pair that stands twice": lambda _: (["a", "##b", "##c", "##b", "##c"], ("##b", "##c")),
                "a pair the other way round": lambda _: (["a", "##b", "##a", "##b"], ("##b", "##a")),
                "a pair that is not there": lambda _: (["a", "##b", "##a"], ("##a", "##a")),
                "a first piece that has no mark": lambda _: (["ab", "##cd", "##ab", "##cd"], ("ab", "##cd")),
                "a sign in a word": lambda _: (["#", "###", "##a"], ("#", "###")),
            },
            gradients="never",
        ),
        Function(
            "best_pair",
            _decided,
            {"n_words": (1, 2, 5, 12), "n_letters": (2, 3, 4)},
            cases={
                "a rare pair of rare pieces": lambda _: RARE,
                "a pair of equals": lambda _: RUN,
                "words of one piece": lambda _: ([["a"], ["b"], ["a", "##b"], ["##b"]], [9, 9, 1, 9]),
                "one frequent word": lambda _: ([["a", "##b"], ["a", "##c"], ["d", "##c"]], [40, 1, 30]),
                "nothing to gain": lambda _: ([["a", "##b"], ["a", "##c"], ["d", "##b"]], [1, 50, 40]),
            },
            returns="left, right",
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_words": 6, "length": 6},
        {"seed": 1, "n_words": 1, "length": 1},
        {"seed": 2, "n_words": 12, "length": 9},
        {"seed": 3, "n_words": 40, "length": 14},
    ),
    drawn=_drawn,
)
