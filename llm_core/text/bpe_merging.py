"""Merging in byte-pair encoding, quickly: the same merges in the same order as the first rung, `bpe`.

A piece of a text is merged by the ranks of its pairs: in a list for short pieces, with a heap for long ones. Where
characters have several bytes, each of them is merged first (`CharactersFirst`).

Used by `bpe_fast`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise, repeat

from llm_core.text.byte_alphabet import utf8
from llm_core.text.remembered import Remembered

LONG = 200  # from this many bytes on, a heap finds the next merge faster than a search of the whole piece
_NO_MERGE = 1 << 62  # a rank behind that of any merge
_CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of a character after its first one, in UTF-8


def merge(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Merge neighbours, the pair of the lowest rank first and of equals the leftmost, until no merge is left."""
    found = list(map(ranks.get, pairwise(ids), repeat(_NO_MERGE)))  # found[i]: rank of (ids[i], ids[i + 1])
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


class CharactersFirst:
    """The ids of a piece's characters, each merged by itself: from these the merges go on as from the bytes.

    That is quicker, for a character of three bytes then takes no merges at all: its ids are looked up. It is the same
    wherever each merge joins what earlier ones have made, as it is in a vocabulary that was learned. A merge of whole
    characters then comes after those within them, and what happens within one character has no say in another. What
    would break it is a merge that joins a part of a character to what stands beside it, such as the last byte of one
    to all of the next. There are always some, and a piece where one of them may happen is merged from its bytes.

    Such a merge happens between c and d if, by the time of its rank, the bytes of c end in its left side and those of d
    begin with its right side. Both are worked out once for each character of the vocabulary.

    Args:
        tokens: the bytes of each id.
        encode: the ids of a character, by its bytes.
        byte_ids: the id of each byte.
        ranks: pair of ids -> rank.
        merged: rank -> the id of what the pair becomes.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes],
        encode: Callable[[str], list[int]],
        byte_ids: Sequence[int],
        ranks: Mapping[tuple[int, int], int],
        merged: Sequence[int],
    ) -> None:
        self._encode, self._byte_ids, self._ranks, self._merged = encode, byte_ids, ranks, merged
        # The merges that reach into a part of a character: their ranks, by the id on one side and by the character.
        self._left: dict[int | str, set[int]] = {}
        self._right: dict[int | str, set[int]] = {}
        for (left, right), rank in ranks.items():
            before, after = tokens[left], tokens[right]
            if after[0] in _CONTINUATION or (_is_text(before) and _is_text(after)):
                continue
            for side in (left, before.decode(errors="replace")[-1:]):
                self._left.setdefault(side, set()).add(rank)
            for side in (right, after.decode(errors="replace")[:1]):
                self._right.setdefault(side, set()).add(rank)
        self.works = _is_ordered(ranks, merged)
        """Whether each merge joins what earlier ones have made."""
        self._reaches: dict[str, set[int]] = {}  # character -> the merges that join its end to what follows
        self._reached: dict[str, set[int]] = {}  # character -> the merges that join its beginning to what is before
        self._ids = Remembered(self._learn, size=2**17, longest=1)
        for token in tokens.values() if self.works else ():
            for character in token.decode(errors="ignore"):
                if min(byte_ids[byte] for byte in utf8(character)) >= 0:
                    self._ids[character]

    def ids(self, piece: str) -> list[int] | None:
        """The ids of its characters; None where a merge may reach into a part of one.

        Raises:
            ValueError: as for `encode`.
        """
        if not self.works:
            return None
        ids = list(chain.from_iterable(map(self._ids.__getitem__, piece)))
        reaches, reached = self._reaches, self._reached
        if reached.keys().isdisjoint(piece) or reaches.keys().isdisjoint(piece):
            return ids
        for c, d in pairwise(piece):
            if c in reaches and d in reached and not reaches[c].isdisjoint(reached[d]):
                return None
        return ids

    def _learn(self, character: str) -> list[int]:
        """The ids of a character; on the way, which merges would reach into it or out of it."""
        ids = [self._byte_ids[byte] for byte in utf8(character)]
        reaches, reached = set(self._left.get(character, ())), set(self._right.get(character, ()))
        since, rank = -1, -1
        while rank < _NO_MERGE:
            found = [self._ranks.get(pair, _NO_MERGE) for pair in pairwise(ids)]
            rank = min(found, default=_NO_MERGE)
            reaches |= {other for other in self._left.get(ids[-1], ()) if since < other < rank}
            reached |= {other for other in self._right.get(ids[0], ()) if since < other < rank}
            if rank < _NO_MERGE:
                i, since = found.index(rank), rank
                ids[i : i + 2] = [self._merged[rank]]
        if reaches:
            self._reaches[character] = reaches
        if reached:
            self._reached[character] = reached
        return self._encode(character)


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_ordered(ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> bool:
    """Whether no merge takes what is made by it or by a later one."""
    made: dict[int, int] = {}
    for rank in ranks.values():
        made[merged[rank]] = max(rank, made.get(merged[rank], -1))
    return all(made.get(side, -1) < rank for pair, rank in ranks.items() for side in pair)
