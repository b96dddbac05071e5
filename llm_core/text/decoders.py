"""Decoders of a `tokenizer.json`: how tokens become text again. Each is a function from tokens to strings.

What a decoder gives is joined. Llama 2's, on "▁a <0xE4> <0xB8> <0xAD>", step by step:

    Replace         " a" "<0xE4>" "<0xB8>" "<0xAD>"        a space for each ▁
    ByteFallback    " a" "中"                               bytes to characters
    Fuse            " a中"                                  one string
    Strip           "a中"                                   without the space at its beginning

Names and fields are those of the file; `components` reads and writes them.

Source: the package tokenizers, to which the tests hold every one.
"""

# A class says what its call does.
# ruff: noqa: D102
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from llm_core.text.byte_alphabet import from_alphabet, utf8
from llm_core.text.pretokenize import Pattern

Decoder = Callable[[list[str]], list[str]]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def as_text(tokens: list[str], decoder: Decoder | None) -> str:
    """The text of some tokens. Where there is no decoder, they stand with spaces between them."""
    return "".join((decoder or with_spaces)(tokens))


def with_spaces(tokens: list[str]) -> list[str]:
    """What is done where a file has no decoder: a space between two tokens."""
    return [" ".join(tokens)]


@dataclass(frozen=True)
class ByteLevel:
    """Tokens in GPT-2's alphabet to bytes, and bytes to text. Tokens with other characters are text already."""

    add_prefix_space: bool
    trim_offsets: bool
    use_regex: bool = True

    def __call__(self, tokens: list[str]) -> list[str]:
        return [b"".join(map(_bytes_of, tokens)).decode(errors="replace")]


@dataclass(frozen=True)
class WordPiece:
    """A space before each token that does not go on; with `cleanup`, none before punctuation and English endings.

    >>> as_text(["do", "##n", "'", "t", "go", "."], WordPiece("##", cleanup=True))
    "don ' t go."
    """

    prefix: str
    cleanup: bool

    def __call__(self, tokens: list[str]) -> list[str]:
        texts = tokens[:1]
        for token in tokens[1:]:
            texts.append(token[len(self.prefix) :] if token.startswith(self.prefix) else " " + token)
        return list(map(clean_up, texts)) if self.cleanup else texts


@dataclass(frozen=True)
class Metaspace:
    """A space for each ▁, but none for those of the first token where a text begins with one anyway."""

    replacement: str
    prepend_scheme: Literal["first", "never", "always"] = "always"
    split: bool = True

    def __post_init__(self) -> None:
        if len(self.replacement) != 1:
            raise ValueError(f"replacement must be one character: got {self.replacement!r}")

    def __call__(self, tokens: list[str]) -> list[str]:
        first = " " if self.prepend_scheme == "never" else ""
        return [token.replace(self.replacement, " " if i else first) for i, token in enumerate(tokens)]


@dataclass(frozen=True)
class BPEDecoder:
    """A space for each mark of a word's end, but none for that of the last token."""

    suffix: str

    def __call__(self, tokens: list[str]) -> list[str]:
        last = len(tokens) - 1
        return [token.replace(self.suffix, " " if i < last else "") for i, token in enumerate(tokens)]


@dataclass(frozen=True)
class ByteFallback:
    """Tokens <0x00> ... <0xFF> to characters; a run of them that is no UTF-8 to as many U+FFFD."""

    def __call__(self, tokens: list[str]) -> list[str]:
        texts: list[str] = []
        run = bytearray()
        for token in tokens:
            if found := _BYTE.fullmatch(token):
                run.append(int(found[1], 16))
                continue
            texts += [*_characters(run), token]
            run = bytearray()
        return texts + _characters(run)


@dataclass(frozen=True)
class Fuse:
    """One string."""

    def __call__(self, tokens: list[str]) -> list[str]:
        return ["".join(tokens)]


@dataclass(frozen=True)
class Strip:
    """Each token without a character at its ends: at most `start` of them at the beginning and `stop` at the end."""

    content: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if len(self.content) != 1:
            raise ValueError(f"content must be one character: got {self.content!r}")

    def __call__(self, tokens: list[str]) -> list[str]:
        return [self._stripped(token) for token in tokens]

    def _stripped(self, token: str) -> str:
        first = sum(1 for _ in takewhile(self.content.__eq__, token[: self.start]))
        last = sum(1 for _ in takewhile(self.content.__eq__, token[::-1][: self.stop]))
        return token[first : len(token) - last]


@dataclass(frozen=True)
class Replace:
    """In each token, something else for each place where a pattern matches: see `normalisers.Replace`."""

    pattern: dict[str, str]
    content: str
    _found: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", Pattern.of(self.pattern))

    def __call__(self, tokens: list[str]) -> list[str]:
        return [self._found.replace(token, self.content) for token in tokens]


@dataclass(frozen=True)
class InTurn:
    """One after the other."""

    steps: tuple[Decoder, ...] = field(metadata={"key": "decoders"})

    def __call__(self, tokens: list[str]) -> list[str]:
        for step in self.steps:
            tokens = step(tokens)
        return tokens


TABLE: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        ByteLevel, WordPiece, Metaspace, BPEDecoder, ByteFallback, Fuse, Strip, Replace,
    )
}  # fmt: skip
TABLE |= {"Sequence": InTurn}  # a Sequence is for Python what can be indexed


def clean_up(text: str) -> str:
    """Without the spaces before punctuation and before English endings that are a token.

    >>> clean_up(" ."), clean_up(" n't")
    ('.', "n't")
    """
    for spaced, tight in _TIGHT:
        text = text.replace(spaced, tight)
    return text


_TIGHT = (
    *((" " + sign, sign) for sign in ".?!,"), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _bytes_of(token: str) -> bytes:
    try:
        return from_alphabet(token)
    except ValueError:
        return utf8(token)


def _characters(run: bytearray) -> list[str]:
    if not run:
        return []
    try:
        return [run.decode()]
    except UnicodeDecodeError:
        return ["\ufffd"] * len(run)
