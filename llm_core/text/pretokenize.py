r"""Pre-tokenisation: a text is cut into pieces first, and no token crosses a cut.

Byte-pair encoding cuts by a pattern (`Split`), WordPiece around spaces and punctuation (`split_words`), Unigram before
each space (`split_at_spaces`).

A `Split` is a regular expression; its matches are the pieces, and so is what lies between two matches. Joined, the
pieces are the text again. What "I've 1024 cats" becomes, with _ for a space:

    GPT2               I  've  _1024  _cats              words with the space before them, numbers, the rest
    CL100K             I  've  _  102  4  _cats          numbers in groups of up to three digits (GPT-4, Llama 3)
    DIGITS_THEN_GPT2   I  've  _  1  0  2  4  _cats      one digit at a time (SmolLM2)
    WHITESPACE         I've  _1024  _cats                only cut before a space
    WHOLE              I've_1024_cats                    no cut at all

Three of the patterns are published: GPT-2's (Radford et al. 2019), and those of the encodings cl100k_base and
o200k_base of the package tiktoken.

Letters (\p{L}) and numbers (\p{N}) are those of the Unicode version that the package `regex` carries. An engine with
an older version cuts differently at characters that were added since, and only there.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Literal, get_args

import regex

from llm_core.text import ascii_sections
from llm_core.text.split_pattern import quoted, translate
from llm_core.text.unicode_tables import CONTROL_SPACES, SPACES, is_punctuation

Behaviour = Literal["isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)


class Pattern:
    """A regular expression of Oniguruma, compiled for the package `regex`, and asked as the package tokenizers asks.

    Args:
        pattern: in the syntax of tokenizer.json.

    Raises:
        ValueError: it is no regular expression, or holds what means something else in the package `regex`.
    """

    def __init__(self, pattern: str) -> None:
        self.translation = translate(pattern)
        self.compiled = _compiled(self.translation.text, pattern)

    @classmethod
    def of(cls, described: Mapping[str, str]) -> Pattern:
        """The pattern of a tokenizer.json: {"Regex": "a+"}, or {"String": "a+"} for just these two characters.

        Raises:
            ValueError: as for the class, or it is neither.
        """
        if list(described) == ["Regex"]:
            return cls(described["Regex"])
        if list(described) == ["String"]:
            return cls(quoted(described["String"]))
        raise ValueError(f'the kind of a pattern must be "Regex" or "String": got {described!r}')

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it matches in a text, one match after the other."""
        if not text:  # not even a pattern that may be empty matches here: so it is in the package tokenizers
            return
        if not self.translation.may_be_empty:
            yield from (match.span() for match in self.compiled.finditer(text))
            return
        at, last = 0, -1
        while at <= len(text) and (match := self.compiled.search(text, at)):
            start, at = match.span()
            if start == at == last:  # nothing, right behind the last match: look a character further on
                at += 1
            else:
                yield start, at
                last = at

    def replace(self, text: str, content: str) -> str:
        """A text with something else for each match."""
        parts, end = [], 0
        for start, stop in self.spans(text):
            parts += [text[end:start], content]
            end = stop
        return "".join(parts) + text[end:]


@cache
def _compiled(translated: str, pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(translated, regex.VERSION0)
    except regex.error as error:
        raise ValueError(f"the pattern is no regular expression: {error}: got {pattern!r}") from None


@dataclass(frozen=True)
class Split:
    r"""Cuts a text into pieces by a regular expression. Frozen: it can be shared, compared and printed.

    Args:
        pattern: in the syntax of tokenizer.json, that of Oniguruma: `^` and `$` stand for the ends of a line, for
            one; `split_pattern` says more. None: no cut.
        covers: whether every character of every text lies in a match. Then there is nothing between two matches to
            look for, which is faster.
        behaviour: what a match becomes: a piece ("isolated"), a part of the piece before or after it
            ("merged_with_previous", "merged_with_next"), one piece with its neighbours ("contiguous"), or nothing
            ("removed").
        invert: whether what lies between the matches is taken for them.

    Raises:
        ValueError: the pattern is no regular expression, or holds what means something else in the package `regex`;
            there is no such behaviour.

    >>> Split(r"-")("well-known")
    ['well', '-', 'known']
    >>> Split(r"-", behaviour="merged_with_next")("well-known")
    ['well', '-known']
    """

    pattern: str | None
    covers: bool = False
    behaviour: Behaviour = "isolated"
    invert: bool = False
    _pattern: Pattern | None = field(init=False, repr=False, compare=False)
    _twin: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"a split has one of the behaviours {', '.join(BEHAVIOURS)}: got {self.behaviour!r}")
        object.__setattr__(self, "_pattern", None if self.pattern is None else Pattern(self.pattern))
        object.__setattr__(self, "_twin", _TWINS.get(self.pattern))

    def __call__(self, text: str, at_start: bool = True) -> list[str]:
        """The pieces of a text. None is empty; joined they are the text, but for what is removed.

        Args:
            text: any text.
            at_start: whether nothing stands before it. A pattern does not ask.
        """
        if self._pattern is None:
            return [text] if text else []
        if self.covers and self.behaviour == "isolated":
            if self._twin is not None:
                return ascii_sections.pieces(text, self._twin, self._pattern.compiled)
            return self._pattern.compiled.findall(text)
        pieces: list[tuple[str, bool]] = []
        end = 0
        for start, stop in self._pattern.spans(text):
            if start > end:
                pieces.append((text[end:start], self.invert))
            pieces.append((text[start:stop], not self.invert))
            end = stop
        if end < len(text):
            pieces.append((text[end:], self.invert))
        return merged(pieces, self.behaviour)

    @property
    def oniguruma_only(self) -> tuple[str, ...]:
        """What of the pattern other engines would take for something else."""
        return () if self._pattern is None else self._pattern.translation.oniguruma_only


# --- what becomes of matches: (piece, whether it matches) for each piece ---

Pieces = Sequence[tuple[str, bool]]


def merged(pieces: Pieces, behaviour: Behaviour) -> list[str]:
    """What becomes of the pieces of a text, each with whether it matches, by a behaviour of `Split`."""
    return [piece for piece in _BEHAVIOURS[behaviour](pieces) if piece]


def _isolated(pieces: Pieces) -> list[str]:
    return [piece for piece, _ in pieces]


def _removed(pieces: Pieces) -> list[str]:
    return [piece for piece, matches in pieces if not matches]


def _contiguous(pieces: Pieces) -> list[str]:
    return ["".join(piece for piece, _ in group) for _, group in groupby(pieces, key=operator.itemgetter(1))]


def _merged_with_previous(pieces: Pieces) -> list[str]:
    joined: list[str] = []
    after_match = False
    for piece, matches in pieces:
        if matches and not after_match and joined:
            joined[-1] += piece
        else:
            joined.append(piece)
        after_match = matches
    return joined


def _merged_with_next(pieces: Pieces) -> list[str]:
    joined: list[str] = []
    before_match = False
    for piece, matches in reversed(pieces):
        if matches and not before_match and joined:
            joined[-1] = piece + joined[-1]
        else:
            joined.append(piece)
        before_match = matches
    return joined[::-1]


_BEHAVIOURS = {
    "isolated": _isolated,
    "removed": _removed,
    "contiguous": _contiguous,
    "merged_with_previous": _merged_with_previous,
    "merged_with_next": _merged_with_next,
}


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# First every digit is cut off, then GPT-2's pattern cuts what lies between. In one pattern: no number is longer than
# one digit, none takes the space before it, and a space before one counts as the last of its piece, so that GPT-2's
# "spaces, but not the last one before something else" must not mind a digit.
_DIGITS_THEN_GPT2 = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_WHITESPACE = r"\s?\S+|\s+(?!\S)|\s+"

# What they say about text of ASCII, for `re`, which knows other spaces there. Words come first, since most pieces are
# words, and with the space before them apart, which is quicker; "'" begins no word, so nothing else changes.
_SPACE = r"\t-\r "
_SHORT = "'(?:[stmd]|re|ve|ll)"
_ENDS_OF_WORDS = "'(?:[stmdSTMD]|[rR][eE]|[vV][eE]|[lL][lL])"
_SPACES = rf"[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
_TWINS: dict[str | None, re.Pattern[str]] = {
    pattern: re.compile(twin)
    for pattern, twin in {
        _GPT2: rf"[A-Za-z]+| [A-Za-z]+|{_SHORT}|[0-9]+| [0-9]+| ?[^{_SPACE}A-Za-z0-9]+|{_SPACES}",
        _DIGITS_THEN_GPT2: (
            rf"[A-Za-z]+| [A-Za-z]+|{_SHORT}|[0-9]| ?[^{_SPACE}A-Za-z0-9]+"
            rf"|[{_SPACE}]+(?![^{_SPACE}0-9])|[{_SPACE}]+"
        ),
        _CL100K: (
            rf"[A-Za-z]+| [A-Za-z]+|{_ENDS_OF_WORDS}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{{1,3}}"
            rf"| ?[^{_SPACE}A-Za-z0-9]+[\r\n]*|[{_SPACE}]*[\r\n]+|{_SPACES}"
        ),
        _O200K: (
            rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+(?:{_ENDS_OF_WORDS})?|[^\r\nA-Za-z0-9]?[A-Z]+(?:{_ENDS_OF_WORDS})?"
            rf"|[0-9]{{1,3}}| ?[^{_SPACE}A-Za-z0-9]+[\r\n/]*|[{_SPACE}]*[\r\n]+|{_SPACES}"
        ),
        _WHITESPACE: rf"[{_SPACE}]?[^{_SPACE}]+|{_SPACES}",
    }.items()
}

GPT2 = Split(_GPT2, covers=True)
DIGITS_THEN_GPT2 = Split(_DIGITS_THEN_GPT2, covers=True)
CL100K = Split(_CL100K, covers=True)
O200K = Split(_O200K, covers=True)
WHITESPACE = Split(_WHITESPACE, covers=True)
WHOLE = Split(None)


# --- words ---

SPACE = "▁"
_not_space = re.compile(f"[^{SPACES}{CONTROL_SPACES}]+")


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words begin and end: cut at whitespace, and around each punctuation mark.

    >>> split_words("don't  go")
    [(0, 3), (3, 4), (4, 5), (7, 9)]
    """
    spans = []
    for run in _not_space.finditer(text):
        start = run.start()
        for position in range(*run.span()):
            if is_punctuation(text[position]):
                spans += [(start, position), (position, position + 1)]
                start = position + 1
        spans.append((start, run.end()))
    return [(start, end) for start, end in spans if start < end]


def split_at_spaces(text: str, *, prepend: bool = True) -> list[str]:
    """The words of a text, each with the space before it, written ▁. With `prepend`, a space is put before the text.

    Only the plain space separates: a line break is a character like any other. A text that begins with a space gets
    none.

    >>> split_at_spaces("to be  or")
    ['▁to', '▁be', '▁', '▁or']
    """
    text = text.replace(" ", SPACE)
    if prepend and text and not text.startswith(SPACE):
        text = SPACE + text
    return re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text)
