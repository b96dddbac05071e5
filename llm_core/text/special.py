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
        always: tokens that are found in the same way, also in text from strangers: they mean nothing special.

    Raises:
        ValueError: one is empty.

    >>> SpecialTokens(["[MASK]"]).split("a [MASK] day")
    ['a ', '[MASK]', ' day']
    """

    def __init__(self, names: Iterable[str], *, always: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.always = tuple(dict.fromkeys(always))
        if "" in (*self.names, *self.always):
            raise ValueError("a special token cannot be empty: it would be found everywhere")
        self._pattern = _pattern((*self.names, *self.always))

    def split(self, text: str, allowed: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The parts of a text: plain, special, plain, special, ..., plain. Plain parts may be empty.

        Args:
            text: any string.
            allowed: the special tokens that are looked for. Text from strangers is safe with ().

        Raises:
            ValueError: allowed names something that is no special token.
        """
        return self.pattern(allowed).split(text)

    def pattern(self, allowed: Collection[str] | Literal["all"] = "all") -> re.Pattern[str]:
        """What finds them in a text. Arguments and errors are those of `split`."""
        if allowed == "all":
            return self._pattern
        if isinstance(allowed, str):
            raise ValueError(f'allowed_special is "all" or a collection of special tokens: got {allowed!r}')
        for name in allowed:
            if name not in self.names:
                raise ValueError(f"{name!r} is no special token of this tokenizer: it has {[*self.names]}")
        return _pattern((*allowed, *self.always))


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    # Of two that begin at the same place, the longer one. (?!) is found nowhere.
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
