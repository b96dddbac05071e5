"""Learning the merges of byte-pair encoding, quickly: the same merges as the first rung, `bpe`.

Counts are never made anew. A merge of (a, b) into c changes only pairs beside it: x a b y has (x, a) and (b, y) once
less, and (x, c) and (c, y) once more. For each pair it is known where it stands, so only those places are looked at.

All words stand in one row, with a mark between them, and each token knows its neighbours:

    row      | l  o  w | l  o  w  e  r |        merge (l, o), which stands at 1 and at 5
    row      | lo .  w | lo .  w  e  r |        the o is dead, and the neighbour after lo is w

So a place costs the same wherever it is. The work of a training is in proportion to the length of the words, also when
they are long: a line of base64, a genome, a language without spaces.

Used by `bpe_fast`.
"""

from __future__ import annotations

import gc
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from llm_core.text.byte_alphabet import from_alphabet

Pair = tuple[int, int]
Change = tuple[Pair, Pair, list[int]]  # the pair that was, the pair that is, and where
Ties = Callable[[list[str], Pair], Any]

_MARK, _DEAD = -1, -2  # in the place of an id: between two words, and where a token was merged into the one before


def smallest_ids(tokens: list[str], pair: Pair) -> Pair:
    """Of equally frequent pairs the one with the smaller ids, as in the package tokenizers."""
    return pair


def greatest_bytes(tokens: list[str], pair: Pair) -> tuple[tuple[int, ...], ...]:
    """Of equally frequent pairs the one with the greater bytes: the greatest first token, then the greatest second.

    This is the rule of Stanford's course CS336. It does not depend on which ids the bytes have.

    >>> greatest_bytes(["a", "b", "ab"], (2, 0)) < greatest_bytes(["a", "b", "ab"], (0, 1))
    True
    """
    # What comes first is smaller, so the bytes are negated; a token comes before its own beginning, which is shorter.
    return tuple((*(-byte for byte in from_alphabet(tokens[id_])), 1) for id_ in pair)


def learn_merges(
    words: list[list[int]],
    frequencies: list[int],
    tokens: list[str],
    vocab_size: int,
    min_count: int,
    ties: Ties = smallest_ids,
) -> list[Pair]:
    """The merges that words and their frequencies lead to: pairs of ids, the first learned first.

    Args:
        words: the ids of each word, before any merge.
        frequencies: how often each word occurs.
        tokens: the token of each id; what the merges make is added.
        vocab_size: how many tokens there may be.
        min_count: how often a pair must be seen to be merged.
        ties: which of equally frequent pairs is merged first: the one for which this gives the least.
    """
    with _no_garbage_collection():
        return _learn_merges(_Row(words, frequencies), tokens, vocab_size, min_count, ties)


class _Row:
    """All words in a row, each token linked to its neighbours."""

    def __init__(self, words: list[list[int]], frequencies: list[int]) -> None:
        self.ids = [_MARK]
        self.weight = [0]  # how often the word occurs that a token belongs to
        for word, frequency in zip(words, frequencies, strict=True):
            self.ids += [*word, _MARK]
            self.weight += [*[frequency] * len(word), 0]
        n = len(self.ids)
        self.before, self.after = list(range(-1, n - 1)), list(range(1, n + 1))

    def pairs(self) -> dict[Pair, list[int]]:
        """Each pair of neighbours, and the places of its first token, from left to right."""
        where: defaultdict[Pair, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairwise(self.ids)):
            where[pair].append(i)
        return {pair: places for pair, places in where.items() if _MARK not in pair}

    def count(self, places: list[int]) -> int:
        return sum(map(self.weight.__getitem__, places))

    def merge(self, pair: Pair, c: int, places: list[int]) -> list[Change]:
        """Merge a pair into c, at those of the places where it still stands; returns what became of its neighbours."""
        a, b = pair
        ids, before, after = self.ids, self.before, self.after
        lefts: defaultdict[int, list[int]] = defaultdict(list)
        rights: defaultdict[int, list[int]] = defaultdict(list)
        between: list[int] = []  # where the pair follows itself
        last = -1  # the place that was merged before this one
        for i in places:
            j = after[i]
            if ids[i] != a or ids[j] != b:
                continue
            left, right = before[i], after[j]
            ids[i], ids[j] = c, _DEAD
            after[i], before[right] = right, i
            if left == last:
                between.append(left)
            else:
                lefts[ids[left]].append(left)
            last = i
            if ids[right] != a or ids[after[right]] != b:  # else the next place has it between
                rights[ids[right]].append(i)
        lefts.pop(_MARK, None)
        rights.pop(_MARK, None)
        changes = [((x, a), (x, c), where) for x, where in lefts.items()]
        changes += [((b, x), (c, x), where) for x, where in rights.items()]
        return [*changes, ((b, a), (c, c), between)] if between else changes


def _learn_merges(row: _Row, tokens: list[str], vocab_size: int, min_count: int, ties: Ties) -> list[Pair]:
    ids = {token: id_ for id_, token in enumerate(tokens)}
    counts: dict[Pair, int] = {}  # of the pairs that are frequent enough: after a pair's first step it only gets rarer
    heap: list[tuple[int, Any, Pair, list[int]]] = []  # (-count, ties, pair, places): the largest count first
    for pair, places in row.pairs().items():
        count = row.count(places)
        if count >= min_count:
            counts[pair] = count
            heap.append((-count, ties(tokens, pair), pair, places))
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(tokens) < vocab_size:
        stale, tie, pair, places = heap[0]
        count = counts[pair]
        # A count in the heap is not corrected when it falls, but here: it goes back with the right one.
        if count < min_count:
            heapq.heappop(heap)
        elif count < -stale:
            heapq.heapreplace(heap, (-count, tie, pair, places))
        else:
            heapq.heappop(heap)
            del counts[pair]
            merges.append(pair)
            token = tokens[pair[0]] + tokens[pair[1]]
            id_ = ids.setdefault(token, len(tokens))  # a special token of that name keeps its id
            if id_ == len(tokens):
                tokens.append(token)
            for fallen, risen, changed in row.merge(pair, id_, places):
                change = row.count(changed)
                if fallen in counts:
                    counts[fallen] -= change
                if change >= min_count:
                    counts[risen] = change
                    heapq.heappush(heap, (-change, ties(tokens, risen), risen, changed))
    return merges


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Training makes millions of small lists and no cycles: looking for cycles among them takes half of its time.
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
