"""Learning the merges of byte-pair encoding, quickly: the same merges as the first rung, `bpe`.

Counts are never made anew. A merge of (a, b) into c changes only pairs beside it: x a b y has (x, a) and (b, y) once
less, and (x, c) and (c, y) once more. For each pair it is known in which words it stands, so only those are looked at.

Used by `bpe_fast`.
"""

from __future__ import annotations

import gc
import heapq
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

Pair = tuple[int, int]


def learn_merges(
    words: list[list[int]], frequencies: list[int], tokens: list[str], vocab_size: int, min_count: int
) -> list[Pair]:
    """The merges that words and their frequencies lead to: pairs of ids, the first learned first.

    Of pairs that are equally frequent the one with the smaller ids is merged first.

    Args:
        words: the ids of each word, before any merge; they are merged in place.
        frequencies: how often each word occurs.
        tokens: the token of each id; what the merges make is added.
        vocab_size: how many tokens there may be.
        min_count: how often a pair must be seen to be merged.
    """
    with _no_garbage_collection():
        return _learn_merges(words, frequencies, tokens, vocab_size, min_count)


def _learn_merges(
    words: list[list[int]], frequencies: list[int], tokens: list[str], vocab_size: int, min_count: int
) -> list[Pair]:
    ids = {token: id_ for id_, token in enumerate(tokens)}
    # A word stands in the list once for each time that the pair stands in it: the frequencies add up to the count.
    where: defaultdict[Pair, list[int]] = defaultdict(list)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            where[pair].append(i)
    counts: dict[Pair, int] = {}  # of the pairs that are frequent enough: after a pair's first step it only gets rarer
    heap: list[
        tuple[int, Pair, list[int]]
    ] = []  # (-count, pair, words): the largest count first, then the smallest ids
    for pair, places in where.items():
        count = sum(map(frequencies.__getitem__, places))
        if count >= min_count:
            counts[pair] = count
            heap.append((-count, pair, places))
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(tokens) < vocab_size:
        stale, pair, places = heap[0]
        count = counts[pair]
        # A count in the heap is not corrected when it falls, but here: it goes back with the right one.
        if count < min_count:
            heapq.heappop(heap)
        elif count < -stale:
            heapq.heapreplace(heap, (-count, pair, places))
        else:
            heapq.heappop(heap)
            del counts[pair]
            merges.append(pair)
            token = tokens[pair[0]] + tokens[pair[1]]
            id_ = ids.setdefault(token, len(tokens))  # a special token of that name keeps its id
            if id_ == len(tokens):
                tokens.append(token)
            for fallen, risen, changed in _replace(pair, id_, places, words):
                change = sum(map(frequencies.__getitem__, changed))
                if fallen in counts:
                    counts[fallen] -= change
                if change >= min_count:
                    counts[risen] = change
                    heapq.heappush(heap, (-change, risen, changed))
    return merges


def _replace(pair: Pair, c: int, places: list[int], words: list[list[int]]) -> list[tuple[Pair, Pair, list[int]]]:
    """Merge a pair in some words. Returns, for each neighbour: the pair that was, the pair that is, and where."""
    a, b = pair
    lefts: defaultdict[int, list[int]] = defaultdict(list)
    rights: defaultdict[int, list[int]] = defaultdict(list)
    between: list[int] = []  # words where the pair follows itself
    last = -1
    for i in places:
        if i == last:  # a word that holds the pair several times: once is enough
            continue
        last = i
        word = words[i]
        n, times = len(word), word.count(a)
        if times == 1:  # by far the most frequent case
            left = word.index(a)
            right = left + 1
            if right == n or word[right] != b:
                continue
            word[left] = c
            del word[right]
            if left > 0:
                lefts[word[left - 1]].append(i)
            if right < n - 1:
                rights[word[right]].append(i)
        elif times > 1:
            merged: list[int] = []
            just_merged, at = False, 0
            while at < n:
                if word[at] == a and at + 1 < n and word[at + 1] == b:
                    if just_merged:
                        between.append(i)
                    elif merged:
                        lefts[merged[-1]].append(i)
                    merged.append(c)
                    just_merged, at = True, at + 2
                else:
                    if just_merged:
                        rights[word[at]].append(i)
                    merged.append(word[at])
                    just_merged, at = False, at + 1
            words[i] = merged
    changes = [((x, a), (x, c), places) for x, places in lefts.items()]
    changes += [((b, x), (c, x), places) for x, places in rights.items()]
    if between:
        changes.append(((b, a), (c, c), between))
    return changes


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
