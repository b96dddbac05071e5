"""Split patterns mean here what they mean to Oniguruma, or are refused by name."""

from __future__ import annotations

import random

import pytest
from published import QWEN
from tokenizers import Regex, pre_tokenizers

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.bulk import BulkTokenizer
from llm_core.text.pretokenize import BEHAVIOURS, CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split

ATOMS = (
    "a", "b", "s", "st", "'", "1", " ", r"\n", "é", "中", ".", r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\H",
    r"\p{L}", r"\P{L}", r"\p{^L}", r"\P{^L}", r"\p{N}", r"\p{Lu}", r"\p{han}", r"\p{P}", r"\p{M}", r"\R", "[ab]",
    "[^ab]", "[a-z]", r"[^\r\n\p{L}\p{N}]", "[a-z&&[^aeiou]]", "[^a-z&&[^aeiou]]", r"[\w&&\S&&[^b]]", "[a[b1]]",
    "[^a[b1]]", "[[:alpha:]]", "[[:^alpha:]_]", "[[:punct:][:digit:]]", "[^[:upper:]]", r"[\W\d]", r"[^\S]", r"[\h]",
    "[-a]", "[a-]", r"[a\-b]", "(?i:a)", "(?i:'s|'t|'re)", "(?i:[a-c])", "(?i:[^a-k])", "(?i:b(?-i:a)b)", r"\x41",
    r"\u00e9", r"\x{4e2d}", "(?>a+)", "(?>ab|a)", "(?<n>a|b)", r"\N", r"\X", "(?~a)", "}", "]", "-", "--", "[a-c--b]",
    "&", "~", "#", "|",
)  # fmt: skip
PLACES = ("^", "$", r"\A", r"\z", r"\Z", r"\b", r"\B", "(?=a)", "(?!a)", "(?<=a)", r"(?<!\s)", "(?<=a|bb)", "(?i)")
QUANTIFIERS = (
    *[""] * 6, "*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,3}", "{1,}", "{,2}", "{1,3}?", "{1,3}+",
    "{2}+", "{2}?", "{1,2}{2}",
)  # fmt: skip
LETTERS = "aabbsStTr'1 \n\r\té中ſKßﬆı_²-,&~#{}]À\u0301\u200d😀AB"


def random_pattern(rng: random.Random, depth: int = 0) -> str:
    parts: list[str] = []
    for _ in range(rng.randint(1, 3)):
        if depth < 2 and rng.random() < 0.25:
            opening = rng.choice(("?:", "", "?>", "?=", "?!", "?i:", "?<=", "?<!"))
            part = f"({opening}{random_pattern(rng, depth + 1)})"
            parts.append(part if opening[:2] in ("?=", "?!", "?<") else part + rng.choice(QUANTIFIERS))
        elif rng.random() < 0.15:
            parts.append(rng.choice(PLACES))
        else:
            parts.append(rng.choice(ATOMS) + rng.choice(QUANTIFIERS))
    return "".join(parts) + ("|" + random_pattern(rng, depth + 1) if depth < 3 and rng.random() < 0.4 else "")


def their_split(pattern: str, behaviour: str = "isolated", invert: bool = False):
    return pre_tokenizers.Split(Regex(pattern), behaviour, invert)


def test_random_patterns_cut_as_oniguruma_does_or_are_refused():
    rng = random.Random(0)
    same = refused = 0
    for _ in range(1500):
        pattern, behaviour, invert = random_pattern(rng), rng.choice(BEHAVIOURS), rng.random() < 0.3
        try:
            ours = Split(pattern, behaviour=behaviour, invert=invert)
        except ValueError as error:
            refused += repr(pattern) in str(error)
            continue
        theirs = their_split(pattern, behaviour, invert)
        for _ in range(12):
            text = "".join(rng.choices(LETTERS, k=rng.randrange(1, 11)))
            expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
            assert ours(text) == expected, (pattern, behaviour, invert, text)
        same += 1
    assert same >= 500
    assert refused >= 300


PUBLISHED = [
    *(str(split.pattern) for split in (GPT2, CL100K, O200K, DIGITS_THEN_GPT2, WHITESPACE)),
    QWEN,
    # tiktoken 0.14's cl100k_base, read as tokenizer.json would read it
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s",
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?(?:[\p{L}&&[^\p{Han}]])+|[\p{Han}]+|\p{N}|\s+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\d{3}(?=(?:\d{3})*\b)|\d",
]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_cut_as_oniguruma_does(pattern):
    ours, theirs = Split(pattern), their_split(pattern)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(
            rng.choices(" \n\r\t'’ſsStTlLéÉA1239٣²五中の!.-—/\u00a0\u3000\u0301🎉\u200d…。", k=rng.randrange(1, 16))
        )
        assert ours(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], text


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(?<x>a)\g<x>", r"\\g"), (r"(a)\1", r"\\1"), (r"\N", r"\\N"), (r"\X", r"\\X"), (r"\G", r"\\G"),
        ("[a-c--b]", "-"), ("(?~ab)", r"\(\?~"), ("(?x: a)", r"\(\?x"), ("(?m:.)", r"\(\?m"), (r"\p{IsL}", "IsL"),
        (r"\p{Script=Han}", r"\\p"), ("(?i:ss)", "ss"), ("(?i:ß)", "ß"), (r"(?i:\p{Lu})", "Lu"), ("(?:a*)*", r"\*"),
        ("a{2,1}", "2,1"), ("(", r"\("), (")", r"\)"), ("[a", r"\["), ("*a", r"\*"), (r"\xe9", r"\\x"), ("[]", r"\[\]"),
        ("(?<=a*)b", "look"), (r"\Qa\E", r"\\Q"), ("(?#a)b", r"\(\?#"), ("(" * 2000 + ")" * 2000, "deeper"),
    ],
)  # fmt: skip
def test_what_means_something_else_is_refused_by_name(pattern, named):
    with pytest.raises(ValueError, match=rf"(?s)holds .*{named}.*got "):
        Split(pattern)


def test_bulk_gives_the_same_ids_for_a_repeated_interval():
    learned = BPETokenizer.train("1234 1234", 270, split=WHOLE)
    ours = BPETokenizer(learned.vocabulary, learned.merges, split=Split(r"\p{N}{1,3}+|\P{N}+"))
    for text in ("1234", "12 345678", "1234 1234"):
        assert ours.encode(text) == BulkTokenizer(ours).encode(text)


def test_a_pattern_that_tiktoken_reads_in_another_way_is_no_pattern_for_ranks():
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pattern in (r"\p{N}{1,3}+|\P{N}+", r"\s+$|\S+|\s+"):
        with pytest.raises(ValueError, match="means something else in tiktoken"):
            BPETokenizer.from_ranks(ranks, split=Split(pattern))
    assert BPETokenizer.from_ranks(ranks, split=CL100K).encode("a") == [97]
