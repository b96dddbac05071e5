"""Byte-pair encoding of characters: what Llama 2 and Mistral do where GPT-2 merges bytes.

    piece    "▁né"          characters that are tokens; of others, the bytes of their UTF-8, or the unknown token
    before   ▁ n <0xC3> <0xA9>
    after    ▁n <0xC3> <0xA9>

From there on the merges are the same. Used by `bpe_fast`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llm_core.text.byte_alphabet import utf8
from llm_core.text.tokenizer import UnknownTokenError


@dataclass(frozen=True)
class Characters:
    """What a piece becomes before the merges, in a vocabulary of characters. The fields are those of a tokenizer.json.

    Args:
        unk_token: what a character becomes that is no token; None: that is an error.
        fuse_unk: whether unknown characters beside each other become one.
        byte_fallback: whether such a character becomes its bytes, <0x00> ... <0xFF>, where these are tokens.
        continuing_subword_prefix: what stands before each character of a piece but the first.
        end_of_word_suffix: what stands behind the last character of a piece.

    >>> Characters("?", fuse_unk=True).ids("abca", {"?": 0, "a": 1})
    [1, 0, 1]
    """

    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None

    def ids(self, piece: str, vocabulary: Mapping[str, int]) -> list[int]:
        """The ids of the characters of a piece.

        Raises:
            UnknownTokenError: a character is no token, and there is no unknown token.
            ValueError: the piece holds half a surrogate pair.
        """
        ids: list[int] = []
        pending = False  # an unknown token that is not there yet: others may be one with it
        for i, character in enumerate(piece):
            token = (self.continuing_subword_prefix or "") * (i > 0) + character
            token += (self.end_of_word_suffix or "") * (i == len(piece) - 1)
            if token in vocabulary:
                ids += self._unknown(vocabulary, pending)
                ids.append(vocabulary[token])
                pending = False
                continue
            names = [f"<0x{byte:02X}>" for byte in utf8(token)]
            if self.byte_fallback and all(name in vocabulary for name in names):
                ids += [vocabulary[name] for name in names]
                continue
            if self.unk_token is None:
                raise UnknownTokenError(f"{token!r} of {piece[:50]!r} is not in the vocabulary: no token is unk_token")
            ids += self._unknown(vocabulary, pending and not self.fuse_unk)
            pending = True
        return ids + self._unknown(vocabulary, pending)

    def joined(self, left: str, right: str) -> str:
        """The token that a merge makes.

        Raises:
            ValueError: the right token has not the mark of those that go on.
        """
        prefix = self.continuing_subword_prefix or ""
        if not right.startswith(prefix):
            raise ValueError(f"the merge of {left!r} and {right!r}: what goes on begins with {prefix!r}")
        return left + right[len(prefix) :]

    def _unknown(self, vocabulary: Mapping[str, int], pending: bool) -> list[int]:
        if not pending or self.unk_token is None:
            return []
        if self.unk_token not in vocabulary:
            raise UnknownTokenError(f"unk_token is {self.unk_token!r}, which is not in the vocabulary")
        return [vocabulary[self.unk_token]]
