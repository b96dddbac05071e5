r"""Text of ASCII characters is cut by Python's own `re`, in a third of the time that the package `regex` takes.

The published patterns ask for letters and numbers of all scripts, which `re` does not know. In ASCII these are A-Z, a-z
and 0-9, so a pattern has a twin that gives the same pieces there. A text with other characters is cut into sections
first, where each of the patterns has a cut whatever follows: before a space that stands behind something else.

    She said "naïve" and went on, for ...      text
    She said| "naïve"| and went on, for ...    re | regex | re

Used by `pretokenize`, where the patterns and their twins are.
"""

from __future__ import annotations

import re

import regex

# Sections of ASCII end before their last such space. Others end where enough of ASCII follows for a section.
_SECTION = re.compile(r"[\x00-\x7f]+(?:(?<=\S)(?= )|\Z)|[\s\S]+?(?:(?<=\S)(?= [\x00-\x7f]{64})|\Z)")


def pieces(text: str, twin: re.Pattern[str], pattern: regex.Pattern[str]) -> list[str]:
    """The matches of a pattern in a text, of which its twin finds those in sections of ASCII.

    >>> pieces("two cafés", re.compile(" ?[a-z]+"), regex.compile(r" ?\\p{L}+"))
    ['two', ' cafés']
    """
    if text.isascii():
        return twin.findall(text)
    found: list[str] = []
    for section in _SECTION.findall(text):
        found += twin.findall(section) if section.isascii() else pattern.findall(section)
    return found
