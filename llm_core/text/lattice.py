"""The cuts of a word into pieces with scores: the best, the n best, one by chance, the mean over all.

There are 2^(n-1) ways to cut n characters, and none of these needs more than one look at each piece at each place:
what can be said about the cuts of the first i characters holds for whatever comes after them.

    best cut    = the largest P                        Viterbi
    sampled cut = by chance, in proportion to P^alpha  forward filtering, backward sampling
    P(word)     = the sum of P over all cuts           forward algorithm

Used by `unigram_fast`. Source: Kudo 2018.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from heapq import nlargest

Edges = list[list[tuple[int, float]]]  # edges[start] = [(end, score), ...]: the pieces that begin there
Cut = list[tuple[int, int]]  # (start, end) of each piece


def edges_of(
    word: str, scores: Mapping[str, float], unknown: float | None = None, prefixes: Set[str] | None = None
) -> Edges:
    """The pieces that begin at each place of a word, the shortest first.

    Args:
        word: any string.
        scores: log p(x) of each piece.
        unknown: score of a character that is no piece. None: there is no such edge.
        prefixes: all beginnings of pieces (`prefixes_of`), to stop early.

    >>> edges_of("ab", {"a": -1.0, "ab": -2.0}, unknown=-9.0)
    [[(1, -1.0), (2, -2.0)], [(2, -9.0)]]
    """
    prefixes = prefixes_of(scores) if prefixes is None else prefixes
    edges: Edges = []
    for start in range(len(word)):
        here = []
        for end in range(start + 1, len(word) + 1):
            piece = word[start:end]
            if piece not in prefixes:
                break
            if piece in scores:
                here.append((end, scores[piece]))
        if unknown is not None and (not here or here[0][0] > start + 1):
            here.append((start + 1, unknown))
        edges.append(here)
    return edges


def prefixes_of(pieces: Iterable[str]) -> set[str]:
    """All beginnings of all pieces.

    >>> sorted(prefixes_of(["abc", "b"]))
    ['a', 'ab', 'abc', 'b']
    """
    return {piece[:end] for piece in pieces for end in range(1, len(piece) + 1)}


def best_cut(edges: Edges) -> Cut:
    """The cut with the highest score (Viterbi). Of two that tie the one whose last piece is longer.

    >>> best_cut(edges_of("abab", {"a": -1.0, "b": -1.0, "ab": -1.5, "aba": -1.9}))
    [(0, 3), (3, 4)]
    """
    score = [0.0] + [-math.inf] * len(edges)
    came_from = [-1] * len(score)
    for start, here in enumerate(edges):
        for end, gain in here:
            # Only what is better replaces: among ties the first found stays, which is the one from further left.
            if score[start] + gain > score[end]:
                score[end], came_from[end] = score[start] + gain, start
    cut, end = [], len(edges)
    while end:
        cut.append((came_from[end], end))
        end = came_from[end]
    return cut[::-1]


def best_cuts(edges: Edges, n: int) -> list[tuple[float, Cut]]:
    """The n cuts with the highest scores, or all where there are fewer, each with its score.

    The n best to a place are among the n best to the places before it, each with one piece more.
    """
    best: list[list[tuple[float, Cut]]] = [[] for _ in range(len(edges) + 1)]
    best[0] = [(0.0, [])]
    for start, here in enumerate(edges):
        best[start] = nlargest(n, best[start], key=_first)
        for end, gain in here:
            best[end] += [(score + gain, [*cut, (start, end)]) for score, cut in best[start]]
    return nlargest(n, best[-1], key=_first)


def forward_scores(edges: Edges, alpha: float = 1.0) -> list[float]:
    """At each place, the log of the summed P^alpha of all ways to get there; at the last one, of the whole word."""
    arriving: list[list[float]] = [[0.0]] + [[] for _ in edges]
    total = []
    for start, scores in enumerate(arriving):
        total.append(_log_sum(scores))
        for end, gain in edges[start] if start < len(edges) else []:
            arriving[end].append(total[start] + alpha * gain)
    return total


def sample_cut(edges: Edges, rng: random.Random, alpha: float = 1.0) -> Cut:
    """A cut drawn with probability in proportion to P^alpha.

    From the end backwards: a last piece is drawn by how likely all cuts together are that end with it, then the last
    piece of what is left of it.

    Source: Kudo 2018, section 3.3, where the best l cuts are drawn from; here l is all of them.
    """
    total = forward_scores(edges, alpha)
    ending: list[Cut] = [[] for _ in total]
    weights: list[list[float]] = [[] for _ in total]
    for start, here in enumerate(edges):
        for end, gain in here:
            ending[end].append((start, end))
            weights[end].append(math.exp(total[start] + alpha * gain - total[end]))
    cut, end = [], len(edges)
    while end:
        (piece,) = rng.choices(ending[end], weights[end])
        cut.append(piece)
        end = piece[0]
    return cut[::-1]


def expected_counts(word: str, scores: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """How often each piece is used, as a mean over all cuts by their probability; and log P(word).

    Raises:
        ValueError: there is no way to cut the word into these pieces.

    >>> counts, score = expected_counts("ab", {"a": math.log(0.5), "b": math.log(0.5), "ab": math.log(0.75)})
    >>> {piece: round(count, 4) for piece, count in counts.items()}, round(math.exp(score), 4)
    ({'a': 0.25, 'ab': 0.75, 'b': 0.25}, 1.0)
    """
    edges = edges_of(word, scores)
    forward = forward_scores(edges)
    if forward[-1] == -math.inf:
        raise ValueError(f"{word!r} cannot be cut into these {len(scores)} pieces: give each of its characters a score")
    backward = [-math.inf] * len(edges) + [0.0]
    for start in reversed(range(len(edges))):
        backward[start] = _log_sum([gain + backward[end] for end, gain in edges[start]])
    counts: defaultdict[str, float] = defaultdict(float)
    for start, here in enumerate(edges):
        for end, gain in here:
            counts[word[start:end]] += math.exp(forward[start] + gain + backward[end] - forward[-1])
    return dict(counts), forward[-1]


def _first(pair: tuple[float, Cut]) -> float:
    return pair[0]


def _log_sum(scores: list[float]) -> float:
    """log(sum(exp(scores))), the largest taken off first so that nothing overflows."""
    peak = max(scores, default=-math.inf)
    if peak == -math.inf:
        return peak
    return peak + math.log(sum(math.exp(score - peak) for score in scores))
