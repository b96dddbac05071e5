"""What every tokenizer of this package can do: turn text into ids and ids back into text, by a `Vocabulary`.

    tokenizer.encode(text)         ids
    tokenizer.decode(ids)          text
    tokenizer.vocabulary           its tokens
    tokenizer.vocabulary[id]       the token of an id
    tokenizer.vocabulary.ids       a dict: the id of each token
    tokenizer.vocab_size           the largest id and one

Characters, words, byte-pair encoding, WordPiece and Unigram all have these, with the same meaning.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, SupportsIndex, runtime_checkable


class UnknownTokenError(ValueError):
    """A text holds something that the vocabulary does not, or an id is outside the vocabulary."""


class Vocabulary:
    """The tokens that a tokenizer has, each with its id. It does not change.

    A token is a string, in the way that the tokenizer writes it: with ## where a WordPiece goes on, with ▁ for a
    space in Unigram, in GPT-2's alphabet of bytes in byte-pair encoding.

    Args:
        tokens: the tokens in the order of their ids, from 0 on; or token -> id, where ids may have gaps.

    Raises:
        ValueError: a token stands twice, an id is given twice or is negative, or one string is given.

    >>> vocabulary = Vocabulary(["a", "b", "ab"])
    >>> vocabulary[2], vocabulary.ids["b"], list(vocabulary), len(vocabulary)
    ('ab', 1, ['a', 'b', 'ab'], 3)
    >>> "ab" in vocabulary, Vocabulary({"a": 5}).size
    (True, 6)
    """

    def __init__(self, tokens: Iterable[str] | Mapping[str, int]) -> None:
        if isinstance(tokens, str):
            raise ValueError(f"give a list of tokens: got one string, {tokens!r}")
        if isinstance(tokens, Vocabulary):
            tokens = tokens.ids
        if isinstance(tokens, Mapping):
            pairs = sorted(tokens.items(), key=operator.itemgetter(1))
        else:
            pairs = [(token, id_) for id_, token in enumerate(tokens)]
        self.ids: dict[str, int] = dict(pairs)
        """Token -> id, in the order of the ids."""
        self._tokens: dict[int, str] = {}
        for token, id_ in pairs:
            if id_ < 0 or id_ in self._tokens:
                raise ValueError(f"each token needs an id of its own, 0 or more: got {id_} for {token!r}")
            if self.ids[token] != id_:
                raise ValueError(f"each token may stand in the vocabulary once: got {token!r} more than once")
            self._tokens[id_] = token
        self.size = max(self._tokens, default=-1) + 1
        """The largest id and one; gaps between the ids are counted, which `len` does not do."""

    def __getitem__(self, id_: SupportsIndex) -> str:
        return self.tokens_of([id_])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    def __eq__(self, other: object) -> bool:
        return self.ids == other.ids if isinstance(other, Vocabulary) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(f"{token!r}: {id_}" for token, id_ in list(self.ids.items())[:4])
        return f"Vocabulary of {len(self)} tokens: {first}{', ...' if len(self) > 4 else ''}"

    def id_of(self, token: str) -> int:
        """The id of a token.

        Raises:
            UnknownTokenError: it is not in the vocabulary.
        """
        try:
            return self.ids[token]
        except KeyError:
            raise UnknownTokenError(f"{token!r} is not among the {len(self)} tokens of the vocabulary") from None

    def tokens_of(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """The tokens of a sequence of ids.

        Raises:
            UnknownTokenError: there is no token with such an id.
            ValueError: what is given are no ids, but tokens, for one.
        """
        try:
            # index: whole numbers of NumPy and torch count too.
            return list(map(self._tokens.__getitem__, map(operator.index, ids)))
        except KeyError as error:
            raise self.unknown(error.args[0]) from None
        except TypeError as error:
            raise ValueError(f"ids are whole numbers ({error}): the id of a token is vocabulary.ids[token]") from None

    def unknown(self, id_: int) -> UnknownTokenError:
        """The error that says that there is no token with such an id."""
        gaps = "" if len(self) == self.size else ", with gaps"
        return UnknownTokenError(f"ids run from 0 to {self.size - 1}{gaps}: got {id_}")


@runtime_checkable
class Tokenizer(Protocol):
    """The call shape that the rest of the package relies on."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens with their ids."""

    @property
    def vocab_size(self) -> int:
        """`vocabulary.size`: ids run from 0 to vocab_size - 1."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids."""
