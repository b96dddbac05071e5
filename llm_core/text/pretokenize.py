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

import re
from dataclasses import dataclass, field

import regex

from llm_core.text.unicode_tables import CONTROL_SPACES, SPACES, is_punctuation


@dataclass(frozen=True)
class Split:
    """Cuts a text into pieces by a regular expression. Frozen: it can be shared, compared and printed.

    Args:
        pattern: in the syntax of the package `regex`; `^` and `$` stand for the ends of a line. None: no cut.
        covers: whether every character of every text lies in a match. Then there is nothing between two matches to
            look for, which is faster.

    Raises:
        ValueError: the pattern is no regular expression.

    >>> Split(r"-")("well-known")
    ['well', '-', 'known']
    """

    pattern: str | None
    covers: bool = False
    _compiled: regex.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            # MULTILINE: in the engine behind tokenizer.json, ^ and $ always stand for the ends of a line.
            compiled = None if self.pattern is None else regex.compile(self.pattern, regex.MULTILINE)
        except regex.error as error:
            raise ValueError(f"the pattern is no regular expression: {error}: got {self.pattern!r}") from None
        object.__setattr__(self, "_compiled", compiled)

    def __call__(self, text: str) -> list[str]:
        """The pieces of a text, none of them empty."""
        if self._compiled is None:
            return [text] if text else []
        if self.covers:
            return self._compiled.findall(text)
        pieces, end = [], 0
        for match in self._compiled.finditer(text):
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
        return [piece for piece in [*pieces, text[end:]] if piece]


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

GPT2 = Split(_GPT2, covers=True)
DIGITS_THEN_GPT2 = Split(_DIGITS_THEN_GPT2, covers=True)
CL100K = Split(_CL100K, covers=True)
O200K = Split(_O200K, covers=True)
WHITESPACE = Split(r"\s?\S+|\s+(?!\S)|\s+", covers=True)
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
