"""Special tokens: they are found in a text before anything else is done with it, and are never taken apart.

So are other tokens that were added to a vocabulary by hand. Used by the quick tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llm_core.text.tokenizer import Vocabulary
from llm_core.text.unicode_tables import WHITESPACE


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary, and how it is found in a text.

    Args:
        content: the token.
        single_word: whether it is only found where no letter, digit or _ stands beside it.
        lstrip: whether it takes the whitespace before it with it.
        rstrip: whether it takes the whitespace behind it with it.
        normalized: whether it is looked for after the normaliser, in the form that the normaliser gives it.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class SpecialTokens:
    """The added tokens of a vocabulary: they are found in a text before anything else is done with it.

    Args:
        tokens: the special ones, by their names or with how they are found.
        always: tokens that are found in the same way, also in text from strangers: they mean nothing special.
        normalise: what is done to a text before the `normalized` ones are looked for, and before it is cut.

    Raises:
        ValueError: one is empty, or becomes so by the normaliser.

    >>> SpecialTokens(["[MASK]"]).split("a [MASK] day")
    ['a ', '[MASK]', ' day']
    """

    def __init__(
        self,
        tokens: Iterable[str | AddedToken],
        *,
        always: Iterable[str | AddedToken] = (),
        normalise: Callable[[str], str] | None = None,
    ) -> None:
        special, others = _by_name(tokens), _by_name(always)
        self.names, self.always = tuple(special), tuple(others)
        self.tokens = special | others
        """Each with how it is found."""
        self._normalise = normalise
        self._all = self._finders(self.tokens)

    def split(self, text: str, allowed: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The parts of a text: plain, special, plain, special, ..., plain. Plain ones are normalised, and may be empty.

        Args:
            text: any string.
            allowed: the special tokens that are looked for. Text from strangers is safe with ().

        Raises:
            ValueError: allowed names something that is no special token.
        """
        before, after = self._allowed(allowed)
        parts = before.split(text)
        if self._normalise is None and not after:
            return parts
        found: list[str] = []
        for i, part in enumerate(parts):
            if i % 2:
                found.append(part)
            else:
                found += after.split(part if self._normalise is None else self._normalise(part))
        return found

    def spans(self, text: str, allowed: Collection[str] | Literal["all"] = "all") -> list[tuple[str, int, int]]:
        """As `split`, each part with its place in the text, where no token is `normalized` and nothing normalises."""
        return self._allowed(allowed)[0].spans(text)

    @property
    def normalised(self) -> dict[str, str]:
        """The tokens that the normaliser gives another form, with that form."""
        normalise = self._normalise or str
        forms = {name: normalise(name) for name, token in self.tokens.items() if token.normalized}
        return {name: form for name, form in forms.items() if form != name}

    @property
    def found_at_once(self) -> bool:
        """Whether each is found once its last character is there, whatever follows, and before any normaliser."""
        return not any(token.single_word or token.rstrip or token.normalized for token in self.tokens.values())

    def with_more(self, names: Iterable[str], vocabulary: Vocabulary) -> More:
        """These and more special tokens: what `add_special_tokens` does in the package tokenizers.

        Args:
            names: tokens. One that is in the vocabulary becomes special under the id that it has; what is special
                already stays as it is.
            vocabulary: the tokens that there are.

        Raises:
            ValueError: one string is given.
        """
        if isinstance(names, str):
            raise ValueError(f"give a list of special tokens: got one string, {names!r}")
        special = dict.fromkeys((*self.names, *names))
        return More(
            [name for name in special if name not in vocabulary],
            [self.tokens[name] if name in self.names else AddedToken(name) for name in special],
            [self.tokens[name] for name in self.always if name not in special],
        )

    def _allowed(self, allowed: Collection[str] | Literal["all"]) -> tuple[_Finder, _Finder]:
        if allowed == "all":
            return self._all
        if isinstance(allowed, str):
            raise ValueError(f'allowed_special is "all" or a collection of special tokens: got {allowed!r}')
        for name in allowed:
            if name not in self.names:
                raise ValueError(f"{name!r} is no special token of this tokenizer: it has {[*self.names]}")
        return self._finders((*allowed, *self.always))

    def _finders(self, names: Iterable[str]) -> tuple[_Finder, _Finder]:
        """What finds the tokens in a text as it is, and after the normaliser."""
        tokens = [self.tokens[name] for name in names]
        normalise = self._normalise or str
        return (
            _Finder({token.content: token for token in tokens if not token.normalized}),
            _Finder({normalise(token.content): token for token in reversed(tokens) if token.normalized}),
        )


class More(NamedTuple):
    """What a vocabulary has once special tokens are added to it."""

    new: list[str]
    """Those that it had not: they get the ids after the last."""
    special: list[AddedToken]
    others: list[AddedToken]


def _by_name(tokens: Iterable[str | AddedToken]) -> dict[str, AddedToken]:
    return {token.content: token for token in (AddedToken(one) if isinstance(one, str) else one for one in tokens)}


class _Finder:
    """Finds tokens in a text: of two that begin at the same place, the longer one."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        if "" in tokens:
            raise ValueError("a special token cannot be empty: it would be found everywhere")
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        # (?!) is found nowhere.
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Without flags the parts are what the pattern gives.
        self._plain = all(
            written == token.content and not (token.single_word or token.lstrip or token.rstrip)
            for written, token in tokens.items()
        )

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: str) -> list[str]:
        return self.pattern.split(text) if self._plain else [part for part, _, _ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The parts, plain and special in turn, each with its place; a special one by its name."""
        parts: list[tuple[str, int, int]] = []
        end = 0
        for name, start, stop in self._found(text):
            start = max(start, end)
            parts += [(text[end:start], end, start), (name, start, stop)]
            end = stop
        return [*parts, (text[end:], end, len(text))]

    def _found(self, text: str) -> Iterator[tuple[str, int, int]]:
        for match in self.pattern.finditer(text):
            token = self._tokens[match.group()]
            start, stop = match.span()
            if token.single_word and (_WORD.match(text[stop:]) or _WORD.match(text[:start][-1:])):
                continue
            if token.lstrip:
                start = len(text[:start].rstrip(WHITESPACE))
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip(WHITESPACE))
            yield token.content, start, stop


_WORD = re.compile(r"\w")
