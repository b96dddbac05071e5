"""Special tokens: they are found in a text before anything else is done with it, and are never taken apart.

Used by the quick tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal


class SpecialTokens:
    """The special tokens of a vocabulary: they are found in a text before anything else is done with it.

    Args:
        names: the tokens.

    Raises:
        ValueError: one is empty.

    >>> SpecialTokens(["[MASK]"]).split("a [MASK] day")
    ['a ', '[MASK]', ' day']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        if "" in self.names:
            raise ValueError("a special token cannot be empty: it would be found everywhere")
        self._pattern = _pattern(self.names)

    def split(self, text: str, allowed: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The parts of a text: plain, special, plain, special, ..., plain. Plain parts may be empty.

        Args:
            text: any string.
            allowed: the special tokens that are looked for. Text from strangers is safe with ().

        Raises:
            ValueError: allowed names something that is no special token.
        """
        if allowed == "all":
            return self._pattern.split(text)
        if isinstance(allowed, str):
            raise ValueError(f'allowed_special is "all" or a collection of special tokens: got {allowed!r}')
        for name in allowed:
            if name not in self.names:
                raise ValueError(f"{name!r} is no special token of this tokenizer: it has {[*self.names]}")
        return _pattern(allowed).split(text)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    # Of two that begin at the same place, the longer one. (?!) is found nowhere.
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
