"""Merging in byte-pair encoding, quickly: the same merges in the same order as the first rung, `bpe`.

A piece of a text is merged by the ranks of its pairs: in a list for short pieces, with a heap for long ones. And a
piece of a language without spaces is cut further first, where no token reaches across (`Joints`).

Used by `bpe_fast`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from llm_core.text.byte_alphabet import utf8

LONG = 200  # from this many bytes on, a heap finds the next merge faster than a search of the whole piece
_NO_MERGE = 1 << 62  # a rank behind that of any merge
_CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of a character after its first one, in UTF-8


def merge(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Merge neighbours, the pair of the lowest rank first and of equals the leftmost, until no merge is left."""
    found = [ranks.get(pair, _NO_MERGE) for pair in pairwise(ids)]  # found[i]: rank of (ids[i], ids[i + 1])
    while found:
        rank = min(found)
        if rank == _NO_MERGE:
            break
        i = found.index(rank)
        ids[i] = merged[rank]
        del ids[i + 1], found[i]
        if i > 0:
            found[i - 1] = ranks.get((ids[i - 1], ids[i]), _NO_MERGE)
        if i < len(found):
            found[i] = ranks.get((ids[i], ids[i + 1]), _NO_MERGE)
    return ids


def merge_long(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """`merge` for long pieces: a heap finds the next pair, and neighbours are linked, so that nothing moves."""
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        # An entry may be out of date: a neighbour was merged with something else since. -1 has no rank.
        if j == n or ranks.get((ids[i], ids[j])) != rank:
            continue
        ids[i], ids[j] = merged[rank], -1
        after[i] = after[j]
        if after[i] < n:
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < n and (ids[left], ids[right]) in ranks:
                heapq.heappush(heap, (ranks[ids[left], ids[right]], left))
    return [id_ for id_ in ids if id_ >= 0]


class Joints:
    """Where a piece can be cut further, because no token reaches from one character to the next.

    What lies between two such cuts is encoded by itself, with the same result. In languages that put no spaces between
    words, pieces are whole clauses and hardly ever come twice; these parts are a character or two, and come again.

    A token reaches from c to d if it holds both (cd), the end of c and all of d (.d), all of c and the beginning of d
    (c.), or the end of one and the beginning of the other. The last kind is looked up by the two bytes that meet.
    """

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._pairs: set[str] = set()
        self._after_part: set[str] = set()
        self._before_part: set[str] = set()
        self._meeting: defaultdict[int, set[int]] = defaultdict(set)
        for token in tokens:
            whole = token.lstrip(_CONTINUATION)
            text = whole.decode(errors="ignore")
            has_head, has_tail = len(whole) < len(token), len(text.encode()) < len(whole)
            self._pairs.update(map("".join, pairwise(text)))
            if text:
                self._after_part.update(text[:1] * has_head)
                self._before_part.update(text[-1:] * has_tail)
            elif has_head and has_tail:
                self._meeting[token[-len(whole) - 1] & 0x3F].add(whole[0])

    def cut(self, piece: str) -> list[str]:
        """The parts of a piece."""
        pairs, after_part, before_part, meeting = self._pairs, self._after_part, self._before_part, self._meeting
        parts, start = [], 0
        for i, (c, d) in enumerate(pairwise(piece), 1):
            if c + d in pairs or d in after_part or c in before_part:
                continue
            # The last six bits of a character are those of its last byte: a quick look before the exact one.
            if ord(c) & 0x3F in meeting and utf8(d)[0] in meeting[ord(c) & 0x3F]:
                continue
            parts.append(piece[start:i])
            start = i
        return [*parts, piece[start:]]
