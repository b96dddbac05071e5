"""What tokenizers share: special tokens that a text may name, and the file `tokenizer.json`.

Used by `bpe`, `wordpiece` and `unigram`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token; ours have none of them


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


def is_surrogate(character: str) -> bool:
    """Whether this is half of a surrogate pair: Python allows it in a string, UTF-8 does not."""
    return "\ud800" <= character <= "\udfff"


# --- tokenizer.json ---


def as_json(ids: Mapping[str, int], special: SpecialTokens, components: Mapping[str, Any]) -> str:
    """The text of a `tokenizer.json`: the components, and the special tokens with their ids."""
    names = sorted(special.names, key=ids.__getitem__)
    added = [{"id": ids[name], "content": name, "special": True} | dict.fromkeys(FLAGS, False) for name in names]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **components}
    return json.dumps(content, ensure_ascii=False, indent=2)


def from_json(text: str, **types: str | None) -> tuple[dict[str, Any], dict[str, int]]:
    """The components of a `tokenizer.json`, and the ids of its special tokens.

    Args:
        text: what the file holds.
        **types: the type that each component must have; None: it must not be there.

    Raises:
        ValueError: it is no such file, a component has another type, or an added token is not a special one that is
            looked for in the text as it stands.
    """
    try:
        content = json.loads(text)
        found = {name: (content.get(name) or {}).get("type") for name in types}
        added = list(content.get("added_tokens") or [])
        special = {token["content"]: token["id"] for token in added}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no tokenizer.json: {type(error).__name__}: {error}") from None
    for name, expected in types.items():
        expect(f"{name}.type", found[name], [expected])
    for token in added:
        expect(f"special of the added token {token['content']!r}", token.get("special"), [True])
        for flag in FLAGS:
            expect(f"{flag} of the added token {token['content']!r}", token.get(flag, False), [False])
    return content, special


def expect(name: str, value: Any, supported: Collection[Any]) -> None:
    """Raise a ValueError unless a setting of a `tokenizer.json` is among those that are supported."""
    if value not in supported:
        choice = " or ".join(json.dumps(one, ensure_ascii=False) for one in supported)
        raise ValueError(
            f"tokenizer.json asks for something that this class does not do: {name} must be {choice}, "
            f"got {json.dumps(value, ensure_ascii=False)}. The package tokenizers can read the file"
        )
