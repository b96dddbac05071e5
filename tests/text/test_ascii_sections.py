"""Text of ASCII is cut by twins of the published patterns, into the pieces of the patterns themselves."""

from __future__ import annotations

import itertools
import random

import pytest
from corpus import AWKWARD, chinese, code, english, mixed_text

from llm_core.text import ascii_sections
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, Split

SPLITS = {
    "gpt2": GPT2,
    "digits": DIGITS_THEN_GPT2,
    "cl100k": CL100K,
    "o200k": O200K,
    "whitespace": WHITESPACE,
}
ASCII = "".join(map(chr, range(128)))
ENDINGS = ["'s", "'S", "'t", "'re", "'RE", "'vE", "'ll", "'Ll", "'d", "'M", "'x", "''s", "r'e"]


def by_pattern(split: Split, text: str) -> list[str]:
    return split._pattern.compiled.findall(text)


@pytest.mark.parametrize("name", SPLITS)
def test_pieces_of_ascii_are_those_of_the_pattern(name):
    split, draw = SPLITS[name], random.Random(0)
    assert split._twin is not None
    for a, b in itertools.product(ASCII, repeat=2):
        assert split(a + b) == by_pattern(split, a + b)
    few = [*" \n\r\t\x0b\x1c\x1faZb09.-/'!", *ENDINGS]
    for letters in (few, [*ASCII, *ENDINGS]):
        for _ in range(4000):
            text = "".join(draw.choices(letters, k=draw.randrange(14)))
            assert split(text) == by_pattern(split, text), text


@pytest.mark.parametrize("name", SPLITS)
def test_pieces_of_sections_are_those_of_the_whole(name):
    split, draw = SPLITS[name], random.Random(0)
    parts = [
        *" \n\t\x1c.'",
        "word ",
        "and more, " * 8,
        "é",
        "中文",
        "\u00a0",
        "\u3000",
        "e\u0301",
        " x",
        "'s",
        "٣",
        "\u2028",
        "\x85",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(parts, k=draw.randrange(12)))
        assert split(text) == by_pattern(split, text), text
    for text in [*AWKWARD, english()[:50_000], chinese()[:20_000], code()[:50_000], mixed_text()[:100_000]]:
        assert split(text) == by_pattern(split, text), text[:50]


def test_sections_are_the_text_and_most_of_it_is_ascii():
    text = ("nothing but ASCII in this line, and again: " * 20 + "naïve ") * 50
    sections = ascii_sections._SECTION.findall(text)
    assert "".join(sections) == text
    assert sum(len(section) for section in sections if section.isascii()) > 0.9 * len(text)


@pytest.mark.parametrize("text", ["a" * 200_000 + "é", ("é" + "a" * 70) * 3000, "é " * 100_000, " " * 200_000 + "é"])
def test_the_work_is_in_proportion_to_the_text(text):
    # Quadratic, these would take minutes.
    assert "".join(GPT2(text)) == text
