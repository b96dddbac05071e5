"""The cuts of very many words at once: what `lattice` says of one word, for all of them with a few NumPy calls.

Used by `unigram_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llm_core.text.lattice import prefixes_of


class Lattices:
    """The cuts of many words at once: `expected_counts` for all of them with a few numpy calls.

    A node is a place in a word, an edge a piece between two nodes. Nodes are numbered so that the first places of
    all words come first, then the second ones: all that a place needs is known once the places before it are done,
    in all words at the same time.

    Args:
        words: the words.
        pieces: the pieces; the index of a piece is its number.
        whole: whether a word that is a piece may stay whole. False: only the ways to do without it.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[str], *, whole: bool = True) -> None:
        numbers = {piece: number for number, piece in enumerate(pieces)}
        prefixes = prefixes_of(pieces)
        starts, ends, used, owners = [], [], [], []
        for index, word in enumerate(words):
            for start in range(len(word)):
                for end in range(start + 1, len(word) + 1):
                    piece = word[start:end]
                    if piece not in prefixes:
                        break
                    if piece in numbers and (whole or end - start < len(word)):
                        starts.append(start)
                        ends.append(end)
                        used.append(numbers[piece])
                        owners.append(index)
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        # Longest words first, so that the words which have a place p are those before some point, and a place's
        # number is that of the first place p plus the word's rank.
        order = np.argsort(-lengths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        longest = int(lengths.max(initial=0))
        reaching = len(words) - np.searchsorted(np.sort(lengths), np.arange(longest + 1))
        self.first = np.concatenate([[0], np.cumsum(reaching)])
        owner = np.array(owners, dtype=np.int64)
        start_node = self.first[np.array(starts, dtype=np.int64)] + rank[owner]
        end_node = self.first[np.array(ends, dtype=np.int64)] + rank[owner]
        self.last_node = self.first[lengths] + rank
        self._set(start_node, end_node, np.array(used, dtype=np.int64), owner)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Take the edges out whose piece is not kept, and number the pieces that are anew."""
        edges = kept[self.piece]
        number = np.cumsum(kept) - 1
        self._set(self.start[edges], self.end[edges], number[self.piece[edges]], self.owner[edges])

    def forward(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log of the summed probability of all ways to get to each node."""
        total = np.full(self.first[-1], -np.inf)
        total[: self.first[1]] = 0.0
        gains = scores[self.piece]
        for edges, groups, nodes in self._forward_plan:
            total[nodes] = np.logaddexp.reduceat(total[self.start[edges]] + gains[edges], groups)
        return total

    def log_probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """log P of each word."""
        return self.forward(scores)[self.last_node]

    def expected_counts(
        self, scores: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """How often each piece is used in all words, each word `counts` times; and the log probability of them all.

        Raises:
            ValueError: there is a word that cannot be cut into the pieces.
        """
        forward = self.forward(scores)
        word_scores = forward[self.last_node]
        if np.isneginf(word_scores).any():
            raise ValueError("every word must be one that can be cut into the pieces: give each character a score")
        backward = np.full(self.first[-1], -np.inf)
        backward[self.last_node] = 0.0
        gains = scores[self.piece]
        for places, groups, nodes in self._backward_plan:
            edges = self._by_start[places]
            backward[nodes] = np.logaddexp.reduceat(backward[self.end[edges]] + gains[edges], groups)
        share = np.exp(forward[self.start] + gains + backward[self.end] - word_scores[self.owner])
        used = np.bincount(self.piece, share * counts[self.owner], minlength=len(scores)).astype(np.float64)
        return used, float(counts @ word_scores)

    def _set(
        self,
        start: NDArray[np.int64],
        end: NDArray[np.int64],
        piece: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> None:
        order = np.argsort(end, kind="stable")
        self.start, self.end, self.piece, self.owner = start[order], end[order], piece[order], owner[order]
        self._by_start = np.argsort(self.start, kind="stable")
        self._forward_plan = _levels(self.end, self.first)
        self._backward_plan = _levels(self.start[self._by_start], self.first)[::-1]


def _levels(
    nodes: NDArray[np.int64], first: NDArray[np.int64]
) -> list[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """For each place: the run of its edges in `nodes` (sorted), where in the run a new node begins, and the nodes."""
    levels = []
    for begin, end in pairwise(np.searchsorted(nodes, first).tolist()):
        if begin < end:
            run = nodes[begin:end]
            groups = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
            levels.append((slice(begin, end), groups, run[groups]))
    return levels
