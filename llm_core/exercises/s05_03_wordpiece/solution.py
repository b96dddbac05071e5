"""Reference solution of exercise 05/03: the likelihood of a text in pieces, what a join gains, and the join."""

from collections import Counter
from math import log


def log_likelihood(words: list[list[str]], counts: list[int]) -> float:
    """The sum of log p over all pieces, where p is the share of a piece among all of them."""
    pieces: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for piece in word:
            pieces[piece] += count
    total = pieces.total()
    return sum(n * log(n / total) for n in pieces.values())


def gain(made: int, left: int, right: int, total: int) -> float:
    """By how much the log-likelihood rises when `made` pairs of two pieces become one piece."""

    def f(n: int) -> float:
        return n * log(n) if n > 0 else 0.0

    new = f(made) + f(left - made) + f(right - made) - f(total - made)
    return new - (f(left) + f(right) - f(total))


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
