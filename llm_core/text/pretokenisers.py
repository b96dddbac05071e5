"""Pre-tokenisers of a `tokenizer.json`: how a text is cut into pieces. Each is a function from a text to its pieces.

    ByteLevel            GPT-2's pattern, or no cut at all; the pieces become bytes afterwards
    Split, Digits        a pattern; digits (in a Sequence before ByteLevel: Llama 3, Qwen, SmolLM2)
    Metaspace            before each space, which becomes ▁ (Llama 2, Mistral)
    BertPreTokenizer     whitespace and punctuation (BERT)

Names and fields are those of the file; `components` reads and writes them. `at_start` says whether nothing stands
before the text that is cut: some put a space there, and only there.

Source: the package tokenizers, to which the tests hold every one.
"""

# A class says what its call does.
# ruff: noqa: D102
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import regex

from llm_core.text import pretokenize
from llm_core.text.pretokenize import GPT2, Pattern, split_words
from llm_core.text.split_pattern import quoted
from llm_core.text.unicode_tables import WHITESPACE, is_punctuation

Behavior = Literal["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"]
BEHAVIOURS: dict[Behavior, pretokenize.Behaviour] = {
    "Isolated": "isolated",
    "Removed": "removed",
    "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
}


@runtime_checkable
class PreTokeniser(Protocol):
    """The call shape of all of them, and of `pretokenize.Split`."""

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        """The pieces of a text."""


@dataclass(frozen=True)
class ByteLevel:
    """A space before the text, if asked for, and GPT-2's pattern, if asked for."""

    add_prefix_space: bool
    trim_offsets: bool
    use_regex: bool = True

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        if self.add_prefix_space and not text.startswith(" "):
            text = " " + text
        return GPT2(text) if self.use_regex else [text]


@dataclass(frozen=True)
class Split:
    """A pattern, and what becomes of its matches: `pretokenize.Split` in the file's words."""

    pattern: dict[str, str]
    behavior: Behavior
    invert: bool
    split: pretokenize.Split = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Pattern.of(self.pattern)  # its errors
        pattern = self.pattern["Regex"] if "Regex" in self.pattern else quoted(self.pattern["String"])
        split = pretokenize.Split(pattern, behaviour=BEHAVIOURS[self.behavior], invert=self.invert)
        object.__setattr__(self, "split", split)

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return self.split(text)


@dataclass(frozen=True)
class Digits:
    """Numbers by themselves: digit by digit, or all that stand together.

    >>> Digits(individual_digits=True)("a12b"), Digits(individual_digits=False)("a12b")
    (['a', '1', '2', 'b'], ['a', '12', 'b'])
    """

    individual_digits: bool

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return (_DIGIT if self.individual_digits else _NUMBER)(text)


@dataclass(frozen=True)
class Metaspace:
    """▁ for each space, one before the text if asked for, and a cut before each.

    >>> Metaspace("▁")("to be")
    ['▁to', '▁be']
    """

    replacement: str
    prepend_scheme: Literal["first", "never", "always"] = "always"
    split: bool = True

    def __post_init__(self) -> None:
        if len(self.replacement) != 1:
            raise ValueError(f"replacement must be one character: got {self.replacement!r}")

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        text = text.replace(" ", self.replacement)
        if self.prepend_scheme == "always" or (self.prepend_scheme == "first" and at_start):
            text = text if text.startswith(self.replacement) else self.replacement + text
        if not self.split:
            return [text]
        mark = re.escape(self.replacement)
        return re.findall(f"{mark}[^{mark}]*|[^{mark}]+", text)


@dataclass(frozen=True)
class Whitespace:
    """Words and what is neither word nor whitespace."""

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return _WORDS.findall(text)


@dataclass(frozen=True)
class WhitespaceSplit:
    """What stands between whitespace."""

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return _NO_WHITESPACE.findall(text)


@dataclass(frozen=True)
class Punctuation:
    """Punctuation marks, and what becomes of them: see `Split`."""

    behavior: Behavior = "Isolated"

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        marks = [(character, is_punctuation(character)) for character in text]
        joined: list[tuple[str, bool]] = []
        for character, is_mark in marks:
            if joined and not is_mark and not joined[-1][1]:
                joined[-1] = (joined[-1][0] + character, False)
            else:
                joined.append((character, is_mark))
        return pretokenize.merged(joined, BEHAVIOURS[self.behavior])


@dataclass(frozen=True)
class CharDelimiterSplit:
    """What stands between two of a character, which goes."""

    delimiter: str

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character: got {self.delimiter!r}")

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return [piece for piece in text.split(self.delimiter) if piece]


@dataclass(frozen=True)
class BertPreTokenizer:
    """BERT's words: cut at whitespace and around each punctuation mark."""

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        return [text[start:end] for start, end in split_words(text)]


@dataclass(frozen=True)
class InTurn:
    """One after the other: each cuts the pieces of the one before."""

    steps: tuple[PreTokeniser, ...] = field(metadata={"key": "pretokenizers"})

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        pieces = [text] if text else []
        for step in self.steps:
            pieces = [piece for i, one in enumerate(pieces) for piece in step(one, at_start and i == 0)]
        return pieces


TABLE: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        ByteLevel, Split, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation, CharDelimiterSplit,
        BertPreTokenizer,
    )
}  # fmt: skip
TABLE |= {"Sequence": InTurn}  # a Sequence is for Python what can be indexed

_DIGIT, _NUMBER = pretokenize.Split(r"\p{N}"), pretokenize.Split(r"\p{N}+")
_WORDS = regex.compile(
    r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d\s]+"
)
_NO_WHITESPACE = re.compile(f"[^{WHITESPACE}]+")
