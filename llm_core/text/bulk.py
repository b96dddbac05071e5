"""Bulk work: a vocabulary trained here, on the engine of the package tokenizers.

The tokenizers of this package are Python on one core. For gigabytes of text the same vocabulary runs on the library's
engine, which uses all cores. It gives the same ids. What goes from one to the other is `tokenizer.json`.

    tokenizer = BPETokenizer.load("tokenizer.json")     Python, one core
    bulk = BulkTokenizer(tokenizer)                     the same ids
    ids = bulk.encode_batch(texts)                      on all cores
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from llm_core.text.tokenizer import Vocabulary


@runtime_checkable
class HasJson(Protocol):
    """A tokenizer that can write itself down."""

    def to_json(self) -> str:
        """What a `tokenizer.json` of it holds."""


class BulkTokenizer:
    """The tokenizer that a `tokenizer.json` describes, on the engine of the package tokenizers.

    Special tokens in a text are recognised. No special tokens are added to it.

    Args:
        tokenizer: a tokenizer with `to_json()`; a `BPETokenizer`, for one.

    Raises:
        ImportError: the package tokenizers is not installed.
    """

    def __init__(self, tokenizer: HasJson) -> None:
        self._engine = _engine(tokenizer.to_json())
        # Padding to the longest text of a batch would give a text other ids than it has by itself.
        padding = self._engine.padding
        self._fills_a_batch = padding is not None and padding["length"] is None
        self.vocabulary = Vocabulary(self._engine.get_vocab(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """The largest id and one."""
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self._engine.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts. The texts are shared out among the cores, so give many at once.

        The environment variable RAYON_NUM_THREADS says how many cores.
        """
        if self._fills_a_batch:
            return list(map(self.encode, texts))
        # _fast leaves out the places of the tokens in the text, which ids do not need.
        return [encoding.ids for encoding in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids, special tokens included.

        Raises:
            UnknownTokenError: there is no token with such an id; the library alone would leave it out.
        """
        numbers = list(ids)
        self.vocabulary.tokens_of(numbers)
        return self._engine.decode(numbers, skip_special_tokens=False)


def _engine(text: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(
            "bulk work runs on the package tokenizers, which is not installed: run `pip install tokenizers`, "
            "or use the tokenizer as it is, which gives the same ids"
        ) from None
    return Tokenizer.from_str(text)
