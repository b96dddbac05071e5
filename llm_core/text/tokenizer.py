"""What every tokenizer of this package can do: turn text into ids, and ids back into text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """The call shape that the rest of the package relies on."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are: 0 ... vocab_size - 1."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids."""


class UnknownTokenError(ValueError):
    """A text holds something that the vocabulary does not, or an id is outside the vocabulary."""
