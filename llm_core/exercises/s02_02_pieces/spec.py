"""What exercise 02/02 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch

from llm_core.exercises.spec import Arguments, Function, Spec, between

LETTERS = "abcd"


def text(source: torch.Generator, n_words: int, n_ids: int) -> tuple[list[list[int]], list[int]]:
    """Words of up to six ids, and how often each comes. Ids are few and counts small, so that there are ties."""
    words = [_ids(source, between(source, 1, 6), n_ids) for _ in range(n_words - 1)]
    words.append(_ids(source, between(source, 2, 6), n_ids))  # with a pair in it
    return words, [between(source, 1, 3) for _ in words]


def tied(source: torch.Generator) -> tuple[list[list[int]], list[int]]:
    """Six words of two ids, all different pairs, all as frequent: the smallest stands neither first nor last."""
    pairs = [[3, 1], [2, 5], [2, 1], [1, 4], [2, 0], [5, 2]]
    return pairs, [between(source, 2, 9)] * len(pairs)


def _ids(source: torch.Generator, length: int, n_ids: int) -> list[int]:
    return torch.randint(n_ids, (length,), generator=source).tolist()


def merging(source: torch.Generator, length: int, n_ids: int) -> tuple[list[int], tuple[int, int], int]:
    """A word, a pair that stands in it if it has two ids, and the id of what it becomes."""
    word = _ids(source, length, n_ids)
    at = between(source, 0, max(0, length - 2))
    left, right = word[at : at + 2] if length > 1 else _ids(source, 2, n_ids)
    return word, (left, right), n_ids + between(source, 0, 40)


def vocabulary(source: torch.Generator, word: str) -> dict[str, int]:
    """Pieces with ids: some of the strings in a word, with the mark and without it, [UNK], and strings beside it."""
    strings = {word[a:b] for a in range(len(word)) for b in range(a + 1, len(word) + 1)}
    marked = sorted([*strings, *("##" + string for string in strings)])
    kept = [s for s in marked if torch.rand((), generator=source) < (0.85 if len(s.removeprefix("##")) < 2 else 0.3)]
    pieces = [*dict.fromkeys(["[UNK]", "ab", "##ba", "x", *kept])]
    order = torch.randperm(len(pieces), generator=source).tolist()
    return {pieces[place]: id_ for id_, place in enumerate(order, 3)}


def matching(source: torch.Generator, length: int) -> tuple[str, dict[str, int]]:
    """A word of so many letters, and a vocabulary."""
    word = "".join(LETTERS[i] for i in _ids(source, length, len(LETTERS)))
    return word, vocabulary(source, word)


def _text(source: torch.Generator, n_words: int, n_ids: int) -> Arguments:
    return text(source, n_words, n_ids)


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {"seed": between(source, 10, 99), "n_words": between(source, 2, 20), "length": between(source, 4, 12)}


AFFABLE = {"[UNK]": 7, "un": 1, "una": 2, "##aff": 3, "##ff": 4, "##able": 5, "##a": 6, "able": 9}

ABLE = {"[UNK]": 0, "a": 1, "##b": 2, "##l": 3, "##e": 4, "able": 5, "##able": 6, "un": 7, "##un": 8}

SPEC = Spec(
    functions=(
        Function(
            "best_pair",
            _text,
            {"n_words": (1, 2, 5, 12), "n_ids": (2, 3, 6)},
            cases={
                "pairs that are equally frequent": tied,
                "a word with the same pair three times": lambda _: ([[1, 1, 1, 1], [0, 2]], [2, 5]),
                "words of one token": lambda _: ([[4], [3], [4, 3], [3]], [9, 9, 1, 9]),
                "one frequent word, many rare ones": lambda _: ([[0, 1], [0, 2], [0, 2], [0, 2]], [9, 1, 1, 1]),
                "a large count": lambda _: ([[5, 6], [1, 2]], [10**12 + 1, 10**12]),
            },
            returns="left, right",
            gradients="never",
        ),
        Function(
            "merge",
            merging,
            {"length": (0, 1, 2, 5, 12), "n_ids": (1, 2, 4)},
            cases={
                "a pair of equals": lambda _: ([1, 1, 1, 0, 1, 1], (1, 1), 9),
                "the pair the other way round": lambda _: ([2, 1, 2, 1], (1, 2), 9),
                "a pair that is not there": lambda _: ([3, 1, 3], (1, 1), 9),
            },
            gradients="never",
        ),
        Function(
            "longest_match",
            matching,
            {"length": (1, 2, 4, 8)},
            cases={
                "a word that ends in nothing known": lambda _: ("unaffablex", AFFABLE),
                "a shorter piece that would have led on": lambda _: ("unaffable", {**AFFABLE, "##aff": 3}),
                "no way at all": lambda _: ("ab", {"[UNK]": 4, "b": 1, "##a": 2}),
                "a piece that is known without the mark only": lambda _: ("unable", {"un": 0, "able": 1, "[UNK]": 2}),
                "a piece that is known with the mark only": lambda _: ("able", {"##able": 0, "[UNK]": 2}),
                "the whole word": lambda _: ("able", AFFABLE),
            },
            gradients="never",
        ),
    ),
    parameters=(
        {"seed": 0, "n_words": 6, "length": 7},
        {"seed": 1, "n_words": 1, "length": 1},
        {"seed": 2, "n_words": 12, "length": 9},
        {"seed": 3, "n_words": 60, "length": 14},
    ),
    drawn=_drawn,
)
