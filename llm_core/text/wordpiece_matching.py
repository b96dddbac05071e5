"""The pieces of a word, the longest first, and how much of two texts fits together.

Used by `wordpiece_fast`.
"""

from __future__ import annotations

from collections.abc import Mapping


def longest_match(
    word: str, vocabulary: Mapping[str, int], continuation: str = "##", longest: int | None = None
) -> list[str] | None:
    """The pieces of a word, each the longest of the vocabulary that fits; None where at some point none fits.

    Args:
        word: a word without spaces.
        vocabulary: the pieces, those that go on with `continuation` before them.
        continuation: the mark of a piece that goes on.
        longest: characters of the longest piece, to save looking for longer ones.

    >>> longest_match("unaffable", {"un": 0, "una": 1, "##aff": 2, "##ff": 3, "##able": 4})
    ['una', '##ff', '##able']
    >>> longest_match("unaffable", {"un": 0, "una": 1, "##aff": 2}) is None  # "un ##aff" was never tried
    True

    Source: Devlin et al. 2019; Wu et al. 2016, section 4.1, for the ## the other way round.
    """
    pieces, start = [], 0
    longest = len(word) + len(continuation) if longest is None else longest
    while start < len(word):
        mark = continuation if start else ""
        for end in range(min(len(word), start + longest), start, -1):
            piece = mark + word[start:end]
            if piece in vocabulary:
                pieces.append(piece)
                start = end
                break
        else:
            return None
    return pieces


def truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts to keep so that together they have `room`: the longer one loses first.

    As if one token at a time were taken off the end of the longer text. An odd one is left to the longer text, or to
    the second.

    >>> truncate_pair(10, 3, 8), truncate_pair(10, 9, 7), truncate_pair(2, 3, 8)
    ((5, 3), (4, 3), (2, 3))
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
