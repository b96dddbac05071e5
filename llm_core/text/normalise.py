"""BERT's normaliser: what is done to a text before it is cut into words. Each step is a function.

    text             "The\\tCafés 中文"
    clean_text       "The Cafés 中文"          plain spaces, no control characters
    space_cjk        "The Cafés  中  文 "      a Chinese character is a word
    strip_accents    "The Cafes  中  文 "
    lowercase        "the cafes  中  文 "

Source: Devlin et al. 2019, in the version of the library `tokenizers`: same characters, same places.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from llm_core.text.unicode_tables import CJK, CONTROL_SPACES, SPACES, category

_not_space = re.compile(f"[^{SPACES}{CONTROL_SPACES}]+")
_cjk = re.compile(f"[{CJK}]")


def clean_text(text: str) -> str:
    """Every whitespace a plain space; no control character, no replacement character, no lone surrogate.

    >>> clean_text("a\\tb\\u00a0c\\x00d\\ufffd\\ud800")
    'a b cd'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_cleaned, text))


def space_cjk(text: str) -> str:
    """A space on both sides of every Chinese character: each becomes a word. Kana and Hangul stay as they are.

    >>> space_cjk("a中文かな")
    'a 中  文 かな'
    """
    return text if text.isascii() else _cjk.sub(r" \g<0> ", text)


def strip_accents(text: str) -> str:
    """Decompose the characters (NFD) and drop the marks that take no room of their own.

    >>> strip_accents("Café, ÅÑü")
    'Cafe, ANu'
    """
    if text.isascii():
        return text
    return "".join(character for character in unicodedata.normalize("NFD", text) if category(character) != "Mn")


def lowercase(text: str) -> str:
    """Lower case, each character by itself: Python alone would write the last sigma of a word in another way.

    >>> lowercase("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower()


@cache
def _cleaned(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return character if _not_space.match(character) else " "
