"""Characters as tokens: the smallest vocabulary that loses nothing of the text it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from llm_core.text.tokenizer import UnknownTokenError, Vocabulary


class CharacterTokenizer:
    """One id for each distinct character of a text, in the order of their code points.

    Args:
        characters: the vocabulary, in the order of the ids.

    Raises:
        ValueError: a character stands twice.

    >>> tokenizer = CharacterTokenizer.train("abba")
    >>> tokenizer.encode("bab")
    [1, 0, 1]
    >>> tokenizer.decode([0, 1])
    'ab'
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.vocabulary = Vocabulary(list(characters))

    @classmethod
    def train(cls, text: str) -> CharacterTokenizer:
        """The vocabulary of a text.

        Raises:
            ValueError: the text is empty.
        """
        if not text:
            raise ValueError("a vocabulary cannot be made from an empty text: give at least one character")
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """Number of distinct characters."""
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """The ids of a text, one for each character.

        Raises:
            UnknownTokenError: a character is not in the vocabulary.
        """
        try:
            return [self.vocabulary.ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UnknownTokenError(
                f"the character {character!r} (U+{ord(character):04X}), at position {text.index(character)} of the "
                f"text, is not among the {self.vocab_size} characters that this tokenizer was made from"
            ) from None

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """The ids of a text that comes bit by bit, such as an open file: what `encode` gives for all of it, joined."""
        return chain.from_iterable(map(self.encode, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        return "".join(self.vocabulary.tokens_of(ids))
