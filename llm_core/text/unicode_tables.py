"""Classes of characters as BERT's tokenizer has them: marks, punctuation, control characters, spaces, Chinese.

The library `tokenizers` knows the classes of Unicode 8, and so do we, whatever the version of Python: `LATER` lists
what has come since. Three things are Python's own and may differ from the library's: the lower case of letters that
are younger than Python's Unicode (55 of them in Python 3.11), the decomposition of such letters, and that of U+11938,
which Python takes apart and the library does not.

Used by `normalise` and `pretokenize`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cache

# Character sets, as they stand between the brackets of a regular expression; WHITESPACE is all its characters.
CONTROL_SPACES = "\x0b\x0c\x85"  # whitespace that `clean_text` removes as control characters
SPACES = "\t\n\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
CJK = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    # BERT's own list has U+2B820 here, the library's U+2B920. We follow the library.
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
ASCII_PUNCTUATION = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

# Ranges in which every mark, punctuation mark and format character is younger than Unicode 8.
LATER = (
    "5C8-5C9 61D 7FD 890-8E2 9FD-9FE A76 AFA-AFF B53-B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1AF0 "
    "1B4E-1B4F 1B7D-1B7F 1DF6-1DFB 2E43-2E63 A82C A8C5 A8FF A9BD 10D24-10F89 11070-11074 110C2-110CD 111CF "
    "1123E-11241 1133B 113BB-1145E 11660-1166C 116B9 1182F-11FFF 12FF1-1612F 16D6D-16F4F 16FE2-16FE4 1CF00-1D128 "
    "1D25B-1D25C 1E000-1E6F5 1E944-1E95F"
)
# What Unicode has put into another class since.
RECLASSIFIED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}

_bounds = [(int(first, 16), int(last or first, 16)) for first, _, last in (r.partition("-") for r in LATER.split())]
_starts = [first for first, _ in _bounds]


@cache
def category(character: str) -> str:
    """The general category of a character; "Cn", unassigned, for marks and punctuation younger than Unicode 8.

    >>> category("a"), category("\\u0301"), category("\\u2e52")  # the last one came with Unicode 13
    ('Ll', 'Mn', 'Cn')
    """
    if character in RECLASSIFIED:
        return RECLASSIFIED[character]
    found = unicodedata.category(character)
    if found == "Mn" or found == "Cf" or found[0] == "P":
        at = bisect_right(_starts, ord(character)) - 1
        if at >= 0 and ord(character) <= _bounds[at][1]:
            return "Cn"
    return found


@cache
def is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and every ASCII sign that is no letter, digit or space: "$" and "+" too.

    >>> [c for c in "a1 $+。€" if is_punctuation(c)]
    ['$', '+', '。']
    """
    return category(character)[0] == "P" or (
        character.isascii() and not character.isalnum() and " " < character < "\x7f"
    )


def is_surrogate(character: str) -> bool:
    """Whether this is half of a surrogate pair: Python allows it in a string, UTF-8 does not."""
    return "\ud800" <= character <= "\udfff"
