"""The filters: each rule of Gopher at its edge, and languages told apart."""

from __future__ import annotations

import pytest

from llm_core.data.filters import GopherRules, language

PROSE = "The cat sat on the mat and looked at the bird that was singing in the tree. " * 5
RULES = GopherRules()


def test_prose_breaks_no_rule():
    assert RULES.why_not(PROSE) is None


@pytest.mark.parametrize(
    ("fine", "refused", "why"),
    [
        ("the of " + "word " * 48, "the of " + "word " * 47, "fewer than 50 words"),
        ("that with " * 50_000, "that with " * 50_000 + "one", "more than 100,000 words"),
        ("the and " + "abc " * 60, "the and of " + "abc " * 60, "words too short or too long"),
        ("the of " + "abcdefghij " * 60, "the of " + "abcdefghijk " * 90, "words too short or too long"),
        (PROSE + "# " * 9, PROSE + "# " * 10, "too many # or ellipses"),
        ("... " * 9 + PROSE, "... " * 10 + PROSE, "too many # or ellipses"),
        (
            "\n".join(["- with that house there"] * 18 + ["the end", "of it"]),
            "\n".join(["- with that house there"] * 19 + ["the end"]),
            "too many bullets",
        ),
        (
            "\n".join(["the cat is at home of late and sleeps ..."] * 3 + ["and the dog of the house was out too"] * 7),
            "\n".join(["the cat is at home of late and sleeps ..."] * 4 + ["and the dog of the house was out too"] * 6),
            "too many lines that break off",
        ),
        (PROSE + "1234 " * 21, PROSE + "1234 " * 22, "too few words with letters"),
        ("the of " + "word " * 60, "the " + "word " * 60, "too few common words"),
    ],
)
def test_each_rule_holds_up_to_its_edge(fine, refused, why):
    assert RULES.why_not(fine) is None
    assert RULES.why_not(refused) == why


def test_the_empty_text_is_too_short():
    assert RULES.why_not("") == "fewer than 50 words"
    assert RULES.why_not(" \n ") == "fewer than 50 words"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, "en"),
        ("Die Katze saß auf der Matte und sah den Vogel, der in dem Baum sang, und die Sonne schien. " * 3, "de"),
        ("Le chat était sur le tapis et regardait les oiseaux qui chantaient dans un arbre du jardin. " * 3, "fr"),
        ("猫坐在垫子上，看着树上唱歌的鸟。" * 5, "zh"),
        ("", None),
        ("123 456 789", None),
    ],
)
def test_a_language_is_told(text, expected):
    assert language(text) == expected
