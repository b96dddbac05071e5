r"""Split patterns: what a regular expression of a `tokenizer.json` means, in the syntax of the package `regex`.

The file's patterns are read by another engine, Oniguruma in its Ruby syntax, and the two disagree in silence:

    in the file      there it means                      written for `regex`
    \p{N}{1,3}+      one to three, again and again       (?:\p{N}{1,3})+        (regex: no way back into it)
    \h               a hexadecimal digit                 [0-9A-Fa-f]            (regex: a blank)
    a(?i)b|c         (?i) holds up to the group's end    a(?:[bB]|[cC])
    ^  $             the ends of a line                  lookarounds
    [a-z&&[^aeiou]]  what is in both                     (?=[a-z])[^aeiou]

So a pattern is read once, piece by piece, and written anew. What is not known to mean the same is refused by name.

Source: the syntax description of Oniguruma, `doc/RE`; the tests hold the pieces to the engine's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NoReturn

# Names of \p{...}, as Oniguruma reads them: without regard to case, spaces, - and _.
CATEGORIES = (
    "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf Co "
    "Letter Uppercase_Letter Lowercase_Letter Titlecase_Letter Modifier_Letter Other_Letter Mark Nonspacing_Mark "
    "Number Decimal_Number Letter_Number Other_Number Punctuation Symbol Math_Symbol Currency_Symbol Separator Control "
    "Alphabetic Uppercase Lowercase White_Space"
)
SCRIPTS = (
    "Han Hiragana Katakana Hangul Bopomofo Latin Cyrillic Greek Arabic Hebrew Thai Devanagari Bengali Tamil Telugu "
    "Gujarati Gurmukhi Kannada Malayalam Sinhala Lao Khmer Myanmar Tibetan Georgian Armenian Ethiopic Mongolian"
)
_PROPERTIES = {name.replace("_", "").lower(): name for name in f"{CATEGORIES} {SCRIPTS}".split()}

# What stands between brackets. Six small digits and fractions are part of a word in \w and \b, but not in [\w].
_IN_BRACKETS = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"
_WORD = _IN_BRACKETS + r"\xb2\xb3\xb9\xbc-\xbe"
_SHORT = {"d": r"\p{Nd}", "s": r"\s", "w": _WORD, "h": "0-9A-Fa-f"}
_POSIX = {
    "alnum": r"\p{Alphabetic}\p{Nd}",
    "alpha": r"\p{Alphabetic}",
    "ascii": r"\x00-\x7f",
    "blank": r"\p{Zs}\t",
    "cntrl": r"\p{Cc}",
    "digit": r"\p{Nd}",
    "lower": r"\p{Lowercase}",
    "punct": r"\p{P}\p{S}",
    "space": r"\s",
    "upper": r"\p{Uppercase}",
    "word": _IN_BRACKETS,
    "xdigit": "0-9A-Fa-f",
}
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
_BREAK = r"(?>\r\n|[\n-\r\x85\u2028\u2029])"
_ANCHORS = {
    "A": r"\A",
    "z": r"\Z",
    "Z": r"(?=\n?\Z)",
    "b": f"(?:(?<=[{_WORD}])(?![{_WORD}])|(?<![{_WORD}])(?=[{_WORD}]))",
    "B": f"(?:(?<=[{_WORD}])(?=[{_WORD}])|(?<![{_WORD}])(?![{_WORD}]))",
}
_LINE_START, _LINE_END = r"(?:\A|(?<=\n)(?!\Z))", r"(?=\n|\Z)"

_INTERVAL = re.compile(r"\{(?:(\d+)|(\d+),(\d*)|,(\d+))\}")
_CODE_POINT = re.compile(r"\\(?:x\{([0-9A-Fa-f]{1,6})\}|x([0-7][0-9A-Fa-f])|u([0-9A-Fa-f]{4}))")
_PROPERTY = re.compile(r"\\([pP])\{(\^?)([\w\- ]+)\}")
_POSIX_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
_NAMED_GROUP = re.compile(r"\(\?<[A-Za-z_]\w*>")
_MOST, _DEEPEST = 1000, 50  # repetitions of an interval, and groups within groups
# Two letters that, whatever their case, Oniguruma also finds as one character: ß, ﬆ, ﬀ, ﬁ, ﬂ.
_LIGATURES = {"ss", "st", "ff", "fi", "fl"}


@dataclass(frozen=True)
class Translation:
    """A pattern, written for the package `regex`.

    Args:
        text: the pattern, to be compiled without any option.
        may_be_empty: whether it may match nothing at all.
        oniguruma_only: what other engines, tiktoken's for one, would take for something else.
    """

    text: str
    may_be_empty: bool
    oniguruma_only: tuple[str, ...]


@cache
def translate(pattern: str) -> Translation:
    r"""What a pattern in Oniguruma's Ruby syntax is for the package `regex`.

    Raises:
        ValueError: it holds something that is not known to mean the same, or is no pattern. The message names it.

    >>> translate(r"\p{N}{1,3}+").text
    '(?:\\p{N}{1,3})+'
    """
    reader = _Reader(pattern)
    part = reader.alternatives(fold=False, depth=0)
    if reader.at < len(pattern):
        reader.refuse(")", "closes no group")
    return Translation(part.text, part.empty, tuple(dict.fromkeys(reader.own)))


def quoted(text: str) -> str:
    """The pattern that matches a text as it stands, and nothing else.

    >>> quoted("a+b")
    'a\\\\+b'
    """
    return re.sub(r"[\\.\[\]()*+?{}^$|]", r"\\\g<0>", text)


@dataclass(frozen=True)
class _Part:
    """A part of a pattern, rewritten."""

    text: str
    empty: bool = False  # whether it may match nothing
    whole: bool = True  # whether a quantifier behind it would take all of it
    repeatable: bool = True
    letter: str = ""  # a letter in either case, standing alone


class _Reader:
    """Reads a pattern from left to right; `at` is how far it has come."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.own: list[str] = []
        self.behind = False  # within a lookbehind

    def refuse(self, construct: str, why: str) -> NoReturn:
        raise ValueError(
            f"the pattern is no regular expression that is known to mean the same here and in tokenizer.json: it holds "
            f"{construct!r}, which {why}: got {self.pattern!r}"
        )

    def sees(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        """Whether this comes next; if so, it is passed."""
        if self.sees(text):
            self.at += len(text)
            return True
        return False

    def take_match(self, expected: re.Pattern[str]) -> re.Match[str] | None:
        found = expected.match(self.pattern, self.at)
        if found:
            self.at = found.end()
        return found

    # --- alternatives, sequences, repetitions ---

    def alternatives(self, fold: bool, depth: int) -> _Part:
        """What stands up to the end of a group: sequences with | between them."""
        if depth > _DEEPEST:
            self.refuse("(", f"is deeper than {_DEEPEST} groups within groups")
        parts = [self.sequence(fold, depth)]
        while self.take("|"):
            parts.append(self.sequence(fold, depth))
        return _Part("|".join(part.text for part in parts), any(part.empty for part in parts), whole=False)

    def sequence(self, fold: bool, depth: int) -> _Part:
        parts: list[_Part] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            if self.take("(?i)") or self.sees("(?-i)"):
                # Alone, an option holds up to the end of the group, through all alternatives that are left.
                fold = not self.take("(?-i)")
                self.own.append("(?i)")
                rest = self.alternatives(fold, depth + 1)
                parts.append(_Part(f"(?:{rest.text})", rest.empty))
                break
            parts.append(self.repeated(self.atom(fold, depth)))
        if fold:
            self.check_ligatures(parts)
        empty = all(part.empty for part in parts)
        return _Part("".join(part.text for part in parts), empty, whole=len(parts) == 1 and parts[0].whole)

    def check_ligatures(self, parts: list[_Part]) -> None:
        """In either case "st" is also the one character ﬆ there, and parts of it are found in strange ways."""
        for part, after in pairwise(parts):
            pair = part.letter + after.letter
            if pair in _LIGATURES or (part.letter in {"s", "f"} and not after.letter):
                self.refuse(pair, "under (?i) is also a single character, ß or a ligature, in Oniguruma: write [sS]")

    def repeated(self, part: _Part) -> _Part:
        """A part with the quantifiers behind it."""
        while self.at < len(self.pattern):
            start = self.at
            sign = self.pattern[self.at]
            if sign in "*+?":
                self.at += 1
                least = int(sign == "+")
                suffix = self.pattern[self.at] if self.sees("+") or self.sees("?") else ""
                self.at += len(suffix)
            elif sign == "{" and re.match(r"\{[\d,]", self.pattern[self.at : self.at + 2]):
                found = self.take_match(_INTERVAL)
                if found is None:
                    self.refuse(self.pattern[start : start + 8], "is no interval such as {1,3}")
                least, sign = self.interval(found)
                # {1,3}? takes as few as it can; but {3}? may be there or not, and {1,3}+ repeats the whole.
                suffix = "?" if found[1] is None and self.take("?") else ""
            else:
                break
            quantifier = self.pattern[start : self.at]
            if not part.repeatable:
                self.refuse(quantifier, "repeats what takes no room in a text")
            if part.empty:
                self.refuse(quantifier, "repeats what may be empty: engines end such a loop in different ways")
            if self.behind and not re.fullmatch(r"\{\d+\}", quantifier):
                self.refuse(quantifier, "has no fixed length, within a look behind")
            if part.letter in {"s", "f"}:
                self.refuse(part.letter + quantifier, "under (?i) may become ß or a ligature: write [sS]")
            inner = part.text if part.whole else f"(?:{part.text})"
            part = _Part(inner + sign + suffix, least == 0 or part.empty, whole=False)
            if sign[0] == "{" and (self.sees("+") or self.sees("?")):
                self.own.append(quantifier + self.pattern[self.at])
        return part

    def interval(self, found: re.Match[str]) -> tuple[int, str]:
        """The least that an interval asks for, and how it is written."""
        exactly, least, most, at_most = found.groups()
        low = int(exactly or least or 0)
        high = int(exactly or most or at_most) if exactly or most or at_most else None
        if high is not None and high < low:
            self.refuse(found[0], "has its bounds the wrong way round")
        if max(low, high or 0) > _MOST:
            self.refuse(found[0], f"asks for more than {_MOST}")
        return low, "{" + (f"{low}" if exactly else f"{low},{'' if high is None else high}") + "}"

    # --- what can be repeated ---

    def atom(self, fold: bool, depth: int) -> _Part:
        character = self.pattern[self.at]
        if character == "(":
            return self.group(fold, depth)
        if character == "[":
            return _Part(self.char_class(fold, depth))
        if character == "\\":
            return self.escaped(fold)
        if character in "*+?" or re.match(r"\{[\d,]", self.pattern[self.at : self.at + 2]):
            self.refuse(character, "repeats nothing")
        self.at += 1
        if character == ".":
            return _Part(".")
        if character in "^$":
            if self.behind:
                self.refuse(character, "may not stand in a look behind")
            self.own.append(character)
            return _Part(_LINE_START if character == "^" else _LINE_END, empty=True, repeatable=False)
        return self.literal(character, fold)

    def literal(self, character: str, fold: bool) -> _Part:
        if not fold:
            return _Part(_quoted(character))
        if not character.isascii():
            self.refuse(character, "under (?i) may have other forms than one engine knows: write them out")
        cases = _both_cases(character)
        if len(cases) == 1:
            return _Part(_quoted(character), letter=character)
        return _Part(f"[{cases}]", letter=character.lower())

    def group(self, fold: bool, depth: int) -> _Part:
        start = self.at
        kind = next((kind for kind in _GROUPS if self.sees(kind)), "")
        if kind:
            self.at += len(kind)
        elif self.take_match(_NAMED_GROUP) or (not self.sees("(?") and self.take("(")):
            kind = "("  # what a group matched is never asked for
        else:
            self.refuse(self.pattern[start : start + 4], "begins something that is not supported")
        fold = {"(?i:": True, "(?-i:": False}.get(kind, fold)
        looks_around = kind in _LOOKAROUNDS
        if self.behind and (looks_around or kind in {"(", "(?>"}):
            self.refuse(kind, "may not stand in a look behind")
        was_behind = self.behind
        self.behind = was_behind or kind in {"(?<=", "(?<!"}
        inner = self.alternatives(fold, depth + 1)
        self.behind = was_behind
        if kind in {"(?<=", "(?<!"} and inner.empty:
            self.refuse(kind, "looks behind at what may be empty")
        if not self.take(")"):
            self.refuse(self.pattern[start : start + 4], "is never closed")
        opening = kind if looks_around or kind == "(?>" else "(?:"
        return _Part(f"{opening}{inner.text})", inner.empty or looks_around, repeatable=not looks_around)

    def escaped(self, fold: bool) -> _Part:
        if character := self.code_point():
            return self.literal(character, fold)
        name = self.pattern[self.at + 1 : self.at + 2]
        if name in _ANCHORS and name:
            if self.behind:
                self.refuse("\\" + name, "may not stand in a look behind")
            self.at += 2
            if name in "Zz":
                self.own.append("\\" + name)
            return _Part(_ANCHORS[name], empty=True, repeatable=False)
        if self.sees("\\R") and self.behind:
            self.refuse("\\R", "may not stand in a look behind")
        if self.take("\\R"):
            return _Part(_BREAK)
        negated, inside = self.escaped_class(fold)
        if _named(inside):
            return _Part(_negated(inside) if negated else inside)
        return _Part(f"[{'^' * negated}{inside}]")

    # --- characters and classes of characters ---

    def code_point(self) -> str:
        r"""The character of \n, \x41, \u0041 or of a sign that is escaped; nothing where something else comes."""
        if found := self.take_match(_CODE_POINT):
            number = int(found[1] or found[2] or found[3], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                self.refuse(found[0], "is no character")
            return chr(number)
        name = self.pattern[self.at + 1 : self.at + 2]
        if name in _CONTROL or (name and not name.isalnum()):
            self.at += 2
            return _CONTROL.get(name, name)
        return ""

    def escaped_class(self, fold: bool) -> tuple[bool, str]:
        r"""What \s, \P{L} and the like stand for: whether it is negated, and what stands in the brackets."""
        if found := self.take_match(_PROPERTY):
            if fold:
                self.refuse(found[0], "has other members under (?i) in each engine")
            name = _PROPERTIES.get(re.sub(r"[_\- ]", "", found[3]).lower())
            if name is None:
                self.refuse(found[0], "is not among the properties that are known to be the same")
            return (found[1] == "P") != bool(found[2]), f"\\p{{{name}}}"
        name = self.pattern[self.at + 1 : self.at + 2]
        if name and name.lower() in _SHORT:
            if fold and name.lower() == "w":
                self.refuse("\\" + name, "has other members under (?i) in each engine")
            self.at += 2
            if name.lower() == "h":
                self.own.append("\\" + name)
            return name.isupper(), _SHORT[name.lower()]
        self.refuse("\\" + name, "is not known to mean the same in every engine")

    def char_class(self, fold: bool, depth: int) -> str:
        """A class in brackets, up to the closing one."""
        if depth > _DEEPEST:
            self.refuse("[", f"is deeper than {_DEEPEST} classes within classes")
        start = self.at
        self.at += 1
        negated = self.take("^")
        sets = [self.union(fold, depth)]
        while self.take("&&"):
            self.own.append("&&")
            sets.append(self.union(fold, depth))
        if not self.take("]"):
            self.refuse(self.pattern[start : start + 4], "is never closed")
        if len(sets) == 1 and sets[0].startswith("["):
            return f"[^{sets[0][1:]}" if negated else sets[0]
        both = "".join(f"(?={one})" for one in sets[:-1]) + sets[-1]
        return f"(?:(?!{both})[\\s\\S])" if negated else f"(?:{both})"

    def union(self, fold: bool, depth: int) -> str:
        """What stands in brackets up to && or the end: one plain class, or alternatives of them."""
        start = self.at
        inside, others = "", []
        while not self.sees("]") and not self.sees("&&"):
            if self.at >= len(self.pattern):
                self.refuse("[", "is never closed")
            if found := self.take_match(_POSIX_CLASS):
                if found[2] not in _POSIX or fold:
                    self.refuse(found[0], "is not known to mean the same in every engine")
                if found[1]:
                    others.append(f"[^{_POSIX[found[2]]}]")
                else:
                    inside += _POSIX[found[2]]
            elif self.sees("["):
                self.own.append("[ in brackets")
                others.append(self.char_class(fold, depth + 1))
            else:
                inside_, other = self.member(fold, first=self.at == start)
                inside += inside_
                others += [other] if other else []
        if self.at == start:
            self.refuse("[]", "is a class of no characters")
        if not others:
            return f"[{inside}]"
        plain = [f"[{inside}]"] if inside else []
        return f"(?:{'|'.join([*plain, *others])})"

    def member(self, fold: bool, first: bool) -> tuple[str, str]:
        """A character, a range or a class by name: what stands in the brackets, or a class of its own."""
        low = self.class_character(first)
        if not low:
            negated, inside = self.escaped_class(fold)
            inside = _IN_BRACKETS if inside == _WORD else inside
            if self.sees("-") and not self.sees("-]"):
                self.refuse("-", "stands between what is no range: write \\-")
            # Some engines do not take several characters for one name: \P{L} has a name, \W is a class of its own.
            if not negated:
                return inside, ""
            if _named(inside):
                return _negated(inside), ""
            return "", f"[^{inside}]"
        high = low
        if self.sees("-") and not self.sees("-]"):
            self.at += 1
            high = self.class_character(first=False)
            if not high or high < low:
                self.refuse(f"{low}-{high}", "is no range")
            if self.sees("-") and not self.sees("-]"):
                self.refuse("-", "stands behind a range: write \\-")
        if fold:
            if not (low + high).isascii():
                self.refuse(low, "under (?i) may have other forms than one engine knows: write them out")
            return "".join(map(_both_cases, map(chr, range(ord(low), ord(high) + 1)))), ""
        return _quoted_in_class(low) + (f"-{_quoted_in_class(high)}" if high != low else ""), ""

    def class_character(self, first: bool) -> str:
        """A single character of a class; nothing where a class by name comes."""
        if self.sees("\\"):
            return self.code_point()
        character = self.pattern[self.at : self.at + 1]
        if character in "[&" and self.sees("&&" if character == "&" else "["):
            return ""
        if character == "-" and not (first or self.sees("-]")):
            self.refuse("-", "stands neither first nor last in its class: write \\-")
        self.at += 1
        if character == "-" and self.sees("-") and not self.sees("-]"):
            self.refuse("--", "is a range or a difference, as the engine likes: write \\-")
        return character


_LOOKAROUNDS = ("(?=", "(?!", "(?<=", "(?<!")
_GROUPS = (*_LOOKAROUNDS, "(?:", "(?>", "(?i:", "(?-i:")


def _named(inside: str) -> bool:
    """Whether a class is a single name, which has a negated form."""
    return re.fullmatch(r"\\(s|p\{\w+\})", inside) is not None


def _negated(name: str) -> str:
    return name[0] + name[1].upper() + name[2:]


def _both_cases(character: str) -> str:
    """The forms of an ASCII character in either case, as they stand in brackets. Two of them are not ASCII: ſ and K."""
    if not character.isalpha():
        return _quoted_in_class(character)
    return character.lower() + character.upper() + {"s": "\u017f", "k": "\u212a"}.get(character.lower(), "")


def _quoted(character: str) -> str:
    """A character that stands for itself, outside of brackets."""
    if character in "\\.[]()*+?{}^$|#&-~":
        return "\\" + character
    return _quoted_control(character)


def _quoted_in_class(character: str) -> str:
    if character in "\\[]^-&~|":
        return "\\" + character
    return _quoted_control(character)


def _quoted_control(character: str) -> str:
    named = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\f": r"\f", "\v": r"\v"}
    return named.get(character) or (character if character.isprintable() else f"\\U{ord(character):08x}")
