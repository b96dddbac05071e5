"""The normalisers of sentencepiece, which T5 and XLM-RoBERTa have before their Unigram: a table made in advance.

The table is one string of base64, 300 kB of it in those models. It holds a trie of what is to be replaced, as a double
array, and behind it the replacements, each with a zero byte at its end:

    bytes 0-3        how long the array is, in bytes
    the array        units of 32 bits
    the rest         "fi\\0" "IV\\0" ...      UTF-8

A trie is walked from byte to byte. In a double array all nodes lie in one row, and the child of node p for the byte b
is where p xor b says, if the unit there bears the label b. A unit has, from the lowest bit on: 8 bits of label; whether
a word ends here; how its offset is to be read; and 22 bits of offset, which lead to the children. At a word's end the
first child is a leaf, with the place of the replacement.

Source: Kudo and Richardson 2018 for the normaliser; Aoe 1989 for the double array; the package tokenizers, to which the
tests hold both classes.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass, field

import regex

_grapheme = regex.compile(r"\X")
_LONGEST = 5  # bytes of a grapheme that is looked up as a whole
_ASCII = [chr(code) for code in range(128)]


class DoubleArray:
    """A trie from byte strings to numbers, laid out in one row of 32-bit units.

    Args:
        units: the row.

    Raises:
        ValueError: by `shortest_prefix`, where the row leads outside itself.
    """

    def __init__(self, units: tuple[int, ...]) -> None:
        self.units = units

    def shortest_prefix(self, key: bytes) -> int | None:
        """The number of the shortest beginning of the key that is in the trie; None if there is none."""
        try:
            place = _offset(self.units[0])
            for byte in key:
                place ^= byte
                unit = self.units[place]
                if byte == 0 or unit & 0x800000FF != byte:
                    return None
                place ^= _offset(unit)
                if unit >> 8 & 1:
                    return self.units[place] & 0x7FFFFFFF
        except IndexError:
            raise ValueError(f"the trie of the precompiled_charsmap is damaged: {key!r} leads outside it") from None
        return None


@dataclass(frozen=True)
class Precompiled:
    """Replaces what a table says: with that of T5 and XLM-RoBERTa nearly what NFKC does, and spaces for line breaks.

    A text is taken grapheme by grapheme. What has up to five bytes is looked up as a whole, and if the table has it, or
    a beginning of it, the replacement stands for all of it; else it is looked up character by character. That is the
    way of the package tokenizers; sentencepiece's own looks for the longest match from each place on.

    Args:
        precompiled_charsmap: the table in base64, as it stands in a `tokenizer.json`.

    Raises:
        ValueError: it is no such table.
    """

    precompiled_charsmap: str
    _trie: DoubleArray = field(init=False, repr=False, compare=False)
    _replacements: bytes = field(init=False, repr=False, compare=False)
    _known: dict[str, str] = field(init=False, repr=False, compare=False)
    _ascii: dict[int, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            table = base64.b64decode(self.precompiled_charsmap, validate=True)
            (size,) = struct.unpack_from("<I", table)
            units = struct.unpack_from(f"<{size // 4}I", table, 4)
            replacements = table[4 + 4 * len(units) :]
            replacements.decode()
        except (binascii.Error, struct.error, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"precompiled_charsmap must be a table of sentencepiece in base64: {error}") from None
        object.__setattr__(self, "_trie", DoubleArray(units))
        object.__setattr__(self, "_replacements", replacements)
        object.__setattr__(self, "_known", {})
        object.__setattr__(self, "_ascii", {ord(character): self._normalised(character) for character in _ASCII})

    def __call__(self, text: str) -> str:
        """The text with its replacements."""
        if text.isascii() and "\r\n" not in text:  # the only grapheme of ASCII that has two characters
            return text.translate(self._ascii)
        known = self._known
        parts = []
        for grapheme in _grapheme.findall(text):
            part = known.get(grapheme)
            if part is None:
                part = known[grapheme] = self._normalised(grapheme)
            parts.append(part)
        return "".join(parts)

    def _normalised(self, grapheme: str) -> str:
        if len(grapheme.encode("utf-8", "surrogatepass")) <= _LONGEST:
            whole = self._replacement(grapheme)
            if whole is not None:
                return whole
        found = [(character, self._replacement(character)) for character in grapheme]
        return "".join(character if new is None else new for character, new in found)

    def _replacement(self, part: str) -> str | None:
        place = self._trie.shortest_prefix(part.encode("utf-8", "surrogatepass"))
        if place is None:
            return None
        end = self._replacements.find(b"\0", place)
        return self._replacements[place : end if end >= 0 else None].decode(errors="replace")


@dataclass(frozen=True)
class Nmt:
    """Without control characters; a plain space for line breaks, tabs, and what has no width.

    >>> Nmt()("a\\tb\\x01\\u200b!")
    'a b !'
    """

    def __call__(self, text: str) -> str:
        """The text without them."""
        return text.translate(_NMT)


_NMT: dict[int, str] = dict.fromkeys((*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F), "")
_NMT |= dict.fromkeys((0x09, 0x0A, 0x0C, 0x0D, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581), " ")
_NMT |= dict.fromkeys((0xFEFF, 0xFFFD), " ")


TABLE = {"Precompiled": Precompiled, "Nmt": Nmt}


def _offset(unit: int) -> int:
    """22 bits, or with bit 9 set 22 bits of which each counts 256."""
    return unit >> 10 << (8 if unit & 1 << 9 else 0)
