"""Normalisers of a `tokenizer.json`: what is done to a text before it is cut. Each is a function from text to text.

    NFC                  letters and marks composed (Qwen)
    Prepend, Replace     "a b" -> "▁a▁b" (Llama 2, Mistral)
    BertNormalizer       clean, space out Chinese, strip accents, lower-case (BERT), by the steps of `normalise`

Names and fields are those of the file; `components` reads and writes them.

Source: the package tokenizers, to which the tests hold every one.
"""

# A class says what its call does.
# ruff: noqa: D102
from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_core.text import normalise
from llm_core.text.pretokenize import Pattern
from llm_core.text.unicode_tables import WHITESPACE, category

Normaliser = Callable[[str], str]


@dataclass(frozen=True)
class NFC:
    """Letters and their marks composed, where there is a character for both."""

    def __call__(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class NFD:
    """Letters and their marks taken apart."""

    def __call__(self, text: str) -> str:
        return unicodedata.normalize("NFD", text)


@dataclass(frozen=True)
class NFKC:
    """As NFC, and characters that are only another form become the plain one: ① becomes 1."""

    def __call__(self, text: str) -> str:
        return unicodedata.normalize("NFKC", text)


@dataclass(frozen=True)
class NFKD:
    """As NFD, and characters that are only another form become the plain one."""

    def __call__(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text)


@dataclass(frozen=True)
class Lowercase:
    """Lower case, each character by itself."""

    def __call__(self, text: str) -> str:
        return normalise.lowercase(text)


@dataclass(frozen=True)
class StripAccents:
    """Without the marks that take no room; those that are one character with their letter stay."""

    def __call__(self, text: str) -> str:
        return "".join(character for character in text if category(character) != "Mn")


@dataclass(frozen=True)
class Strip:
    """Without the whitespace at the ends.

    >>> Strip(strip_left=True, strip_right=False)("  a ")
    'a '
    """

    strip_left: bool
    strip_right: bool

    def __call__(self, text: str) -> str:
        text = text.lstrip(WHITESPACE) if self.strip_left else text
        return text.rstrip(WHITESPACE) if self.strip_right else text


@dataclass(frozen=True)
class Prepend:
    """Something before a text; before an empty one, nothing."""

    prepend: str

    def __call__(self, text: str) -> str:
        return self.prepend + text if text else text


@dataclass(frozen=True)
class Replace:
    """Something else for each place where a pattern matches.

    Args:
        pattern: {"String": what stands there} or {"Regex": a pattern of Oniguruma}.
        content: what comes in its place, as it is.

    Raises:
        ValueError: as for `pretokenize.Pattern`.

    >>> Replace({"String": " "}, "▁")("a b")
    'a▁b'
    """

    pattern: dict[str, str]
    content: str
    _found: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", Pattern.of(self.pattern))

    def __call__(self, text: str) -> str:
        return self._found.replace(text, self.content)


@dataclass(frozen=True)
class BertNormalizer:
    """What BERT does to a text. Without a word about accents, they go when the text is lower-cased."""

    clean_text: bool
    handle_chinese_chars: bool
    strip_accents: bool | None
    lowercase: bool

    def __call__(self, text: str) -> str:
        text = normalise.clean_text(text) if self.clean_text else text
        text = normalise.space_cjk(text) if self.handle_chinese_chars else text
        if self.lowercase if self.strip_accents is None else self.strip_accents:
            text = normalise.strip_accents(text)
        return normalise.lowercase(text) if self.lowercase else text


@dataclass(frozen=True)
class InTurn:
    """One after the other."""

    steps: tuple[Normaliser, ...] = field(metadata={"key": "normalizers"})

    def __call__(self, text: str) -> str:
        for step in self.steps:
            text = step(text)
        return text


TABLE: dict[str, type] = {
    cls.__name__: cls
    for cls in (NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, BertNormalizer)
}
TABLE |= {"Sequence": InTurn}  # a Sequence is for Python what can be indexed
