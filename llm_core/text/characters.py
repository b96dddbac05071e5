"""Characters as tokens: the smallest vocabulary that loses nothing of the text it was made from."""

from __future__ import annotations

from collections.abc import Iterable

from llm_core.text.tokenizer import UnknownTokenError


class CharacterTokenizer:
    """One id for each distinct character of a text, in the order of their code points.

    >>> tokenizer = CharacterTokenizer.train("abba")
    >>> tokenizer.encode("bab")
    [1, 0, 1]
    >>> tokenizer.decode([0, 1])
    'ab'
    """

    def __init__(self, characters: str) -> None:
        if len(set(characters)) != len(characters):
            raise ValueError(f"each character may stand in the vocabulary once: got {characters!r}")
        self.characters = characters
        self._ids = {character: id_ for id_, character in enumerate(characters)}

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
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, one for each character.

        Raises:
            UnknownTokenError: a character is not in the vocabulary.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UnknownTokenError(
                f"the character {character!r} (U+{ord(character):04X}), at position {text.index(character)} of the "
                f"text, is not among the {self.vocab_size} characters that this tokenizer was made from"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        return "".join(self._character(id_) for id_ in ids)

    def _character(self, id_: int) -> str:
        if not 0 <= id_ < self.vocab_size:
            raise UnknownTokenError(f"ids run from 0 to {self.vocab_size - 1}: got {id_}")
        return self.characters[id_]
