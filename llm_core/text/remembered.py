"""Ids of what has been encoded before: text repeats itself so much that looking up beats working out.

Used by the quick tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Remembered(dict[str, tuple[int, ...]]):
    """Part of a text -> ids, worked out when the part is first asked for.

    Tuples, because Python's garbage collector passes over tuples of numbers, and would look into every list.

    Args:
        encode: what works the ids out.
        size: how many parts are remembered; then it begins anew.
        longest: characters of a part that is remembered: what is longer hardly comes twice.

    >>> ids = Remembered(lambda part: map(ord, part), size=1000, longest=20)
    >>> ids["ab"], "ab" in ids
    ((97, 98), True)
    """

    def __init__(self, encode: Callable[[str], Iterable[int]], *, size: int, longest: int) -> None:
        super().__init__()
        self._encode = encode
        self.size = size
        self.longest = longest

    def __missing__(self, part: str) -> tuple[int, ...]:
        ids = tuple(self._encode(part))
        if len(part) <= self.longest:
            if len(self) >= self.size:
                self.clear()
            self[part] = ids
        return ids
