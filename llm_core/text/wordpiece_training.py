"""Learning the pieces of WordPiece, quickly: the same pieces as the first rung, `wordpiece`.

Counts of pairs are kept up to date, instead of counted anew for each join; a heap finds the most frequent pair.

Used by `wordpiece_fast`.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise


def learn_pieces(
    words: Mapping[str, int], pieces: Sequence[str], size: int, *, continuation: str = "##", min_count: int = 1
) -> list[str]:
    """Grow a list of pieces to `size` by joining, again and again, the two neighbours that occur most often.

    Among pairs that occur equally often the one whose first piece stands earlier in the list wins, then the one whose
    second does. It ends early when no pair occurs `min_count` times.

    Args:
        words: how often each word occurs.
        pieces: the list to begin with. A character joins in where it stands here, as the first of a word or, with the
            continuation mark, as a later one; a character that does not is passed over.
        size: how many pieces the list shall have.
        continuation: the mark of a piece that goes on.
        min_count: a pair that is rarer is not joined.

    >>> learn_pieces({"low": 5, "lower": 2}, ["l", "##o", "##w", "##e", "##r"], 9)
    ['l', '##o', '##w', '##e', '##r', 'lo', 'low', '##er', 'lower']

    Source: Sennrich et al. 2016, algorithm 1, on characters that carry the mark.
    """
    joined = joins(words, pieces, continuation=continuation, min_count=min_count)
    return [*pieces, *(piece for piece, _ in islice(joined, max(0, size - len(pieces))))]


def joins(
    words: Mapping[str, int], pieces: Sequence[str], *, continuation: str = "##", min_count: int = 1
) -> Iterator[tuple[str, int]]:
    """The pieces that `learn_pieces` joins, one after another, each with how often its pair occurred: ever less often.

    Arguments are those of `learn_pieces`.

    >>> list(joins({"low": 5, "lower": 2}, ["l", "##o", "##w", "##e", "##r"]))
    [('lo', 7), ('low', 7), ('##er', 2), ('lower', 2)]
    """
    pieces = list(pieces)
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    spelled: list[list[int]] = []
    for word in words:
        symbols = [character if i == 0 else continuation + character for i, character in enumerate(word)]
        spelled.append([ids[symbol] for symbol in symbols if symbol in ids])
    counts = list(words.values())

    pair_counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, symbols_ in enumerate(spelled):
        for pair in pairwise(symbols_):
            pair_counts[pair] += counts[index]
            where[pair].add(index)
    # A heap of (-count, pair). Counts change after they are pushed: an entry that is out of date is pushed anew.
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    while queue:
        negative, pair = heapq.heappop(queue)
        count = pair_counts[pair]
        if -negative != count:
            if count > 0:
                heapq.heappush(queue, (-count, pair))
            continue
        if count < max(1, min_count):
            break
        left, right = pair
        joined = pieces[left] + pieces[right].removeprefix(continuation)
        # What is in the list already, a special token of that name for one, keeps its one id.
        new = ids.setdefault(joined, len(pieces))
        if new == len(pieces):
            pieces.append(joined)
            yield joined, count
        changed = set()
        for index, before, after in _join(spelled, where.pop(pair), pair, new):
            for old in pairwise(before):
                pair_counts[old] -= counts[index]
            for fresh in pairwise(after):
                pair_counts[fresh] += counts[index]
                if new in fresh:
                    where[fresh].add(index)
                    changed.add(fresh)
        for fresh in changed:
            heapq.heappush(queue, (-pair_counts[fresh], fresh))


def _join(
    spelled: list[list[int]], places: set[int], pair: tuple[int, int], new: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """In the words at these places every such pair becomes one symbol, from left to right: place, before, after."""
    left, right = pair
    for place in places:
        before, after, i = spelled[place], [], 0
        while i < len(before):
            if before[i] == left and i + 1 < len(before) and before[i + 1] == right:
                after.append(new)
                i += 2
            else:
                after.append(before[i])
                i += 1
        spelled[place] = after
        yield place, before, after
