"""Learning the pieces of Unigram and their scores, quickly: the same pieces as the first rung, `unigram`.

Training begins with far too many pieces and turns by turns does two things. Expectation maximisation (EM) makes p(x)
the share of x among all pieces used, each cut counted by how likely it is; the text never becomes less likely by
that. Then the pieces go whose loss would cost the text the least.

Used by `unigram_fast`. Source: Kudo 2018.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llm_core.text.lattices import Lattices


def seed_pieces(words: Mapping[str, int], max_length: int = 16, limit: int = 1_000_000) -> dict[str, int]:
    """What training begins with, and how often it occurs: all characters, and the substrings that fill most text.

    A substring counts from two occurrences on. One that is always followed by the same character is left out in
    favour of the longer one. Of the others those stay whose length times count is largest.

    >>> seed_pieces({"banana": 1})
    {'a': 3, 'n': 2, 'b': 1, 'ana': 2, 'na': 2}
    """
    places = [(word, start) for word in words for start in range(len(word))]
    seeds: dict[str, int] = {}
    shorter: dict[str, int] = {}
    characters: Counter[str] = Counter()
    for length in range(1, max_length + 1):
        found: Counter[str] = Counter()
        for word, start in places:
            found[word[start : start + length]] += words[word]
        for piece, count in found.items():
            if shorter.get(piece[:-1]) == count:
                del shorter[piece[:-1]]
        seeds.update(shorter)
        if length == 1:
            characters = found
        shorter = {piece: count for piece, count in found.items() if count > 1 and length > 1}
        places = [(w, i) for w, i in places if i + length < len(w) and found[w[i : i + length]] > 1]
    seeds.update(shorter)
    ordered = sorted(seeds, key=lambda piece: (-seeds[piece] * len(piece), piece))
    first = sorted(characters, key=lambda piece: (-characters[piece], piece))
    return {piece: characters[piece] for piece in first} | {piece: seeds[piece] for piece in ordered[:limit]}


def learn_scores(
    words: Mapping[str, int], size: int, *, max_length: int = 16, seeds: int = 1_000_000, shrink: float = 0.75
) -> dict[str, float]:
    """The pieces and their log probabilities: EM and pruning in turns, until `size` pieces are left.

    A piece x that is used c(x) times in the mean costs c(x) (log p(x) - log P(x without x)) when it goes: its uses
    become the other cuts of x. Single characters never go, and count as used half a time at least.

    Args:
        words: how often each word occurs.
        size: how many pieces.
        max_length: characters of the longest piece.
        seeds: how many pieces of several characters to begin with.
        shrink: the share of the pieces that one round of pruning leaves.

    Raises:
        ValueError: there are more characters than `size`, or none.

    Source: Kudo 2018, section 3.2.
    """
    words = dict(sorted(words.items()))  # sums are rounded: only in the same order they are the same
    counts = seed_pieces(words, max_length, seeds)
    pieces = list(counts)
    n_characters = sum(len(piece) == 1 for piece in pieces)  # they stand first
    if not pieces:
        raise ValueError("a vocabulary cannot be made from no words: give at least one text with a word in it")
    if n_characters > size:
        raise ValueError(
            f"there must be room for all {n_characters} characters of the texts: got room for {size} pieces"
        )
    used = np.array([counts[piece] for piece in pieces], dtype=np.float64)
    occurrences = np.array(list(words.values()), dtype=np.float64)
    lattices = Lattices(list(words), pieces)
    without = Lattices(pieces[n_characters:], pieces, whole=False)
    while True:
        for _ in range(2):
            used, _ = lattices.expected_counts(_scores(used, n_characters), occurrences)
        if len(pieces) <= size:
            break
        scores = _scores(used, n_characters)
        loss = used[n_characters:] * (scores[n_characters:] - without.log_probabilities(scores))
        n_kept = max(size, int(shrink * len(pieces))) - n_characters
        kept = np.zeros(len(pieces), dtype=bool)
        kept[:n_characters] = True
        # Rounded, so that what ties stays a tie whatever the order of the sums: then the earlier piece stays.
        kept[n_characters + np.argsort(-loss.round(6), kind="stable")[:n_kept]] = True
        pieces = [piece for piece, stays in zip(pieces, kept, strict=True) if stays]
        used = used[kept]
        lattices.keep(kept)
        # The words of `without` are pieces themselves: those that go must go there too.
        without = Lattices(pieces[n_characters:], pieces, whole=False)
    return dict(zip(pieces, _scores(used, n_characters).tolist(), strict=True))


def _scores(used: NDArray[np.float64], n_characters: int) -> NDArray[np.float64]:
    """Log of the share of each piece, after what every piece must have."""
    floor = np.full(len(used), 1e-12)
    floor[:n_characters] = 0.5
    used = np.maximum(used, floor)
    return np.log(used / used.sum())
