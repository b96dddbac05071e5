"""Reference solution of exercise 05/03: the likelihood of a spelling, one join, and the pair that gains most."""

from collections import Counter
from itertools import pairwise
from math import log


def log_likelihood(words: list[list[str]], counts: list[int]) -> float:
    """The sum of log p over all pieces, where p is the share of a piece among all of them."""
    pieces: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for piece in word:
            pieces[piece] += count
    total = pieces.total()
    return sum(n * log(n / total) for n in pieces.values())


def join(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with each such pair as one piece, from left to right."""
    joined = pair[0] + pair[1].removeprefix("##")
    pieces: list[str] = []
    for piece in word:
        if pieces and (pieces[-1], piece) == pair:
            pieces[-1] = joined
        else:
            pieces.append(piece)
    return pieces


def best_pair(words: list[list[str]], counts: list[int]) -> tuple[str, str]:
    """The pair after whose join the words are likeliest."""
    pairs = dict.fromkeys(pair for word in words for pair in pairwise(word))
    return max(pairs, key=lambda pair: log_likelihood([join(word, pair) for word in words], counts))
