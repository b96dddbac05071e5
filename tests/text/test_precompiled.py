"""The normalisers of sentencepiece: every character, and thousands of random strings, as the package tokenizers."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import random
import struct
import unicodedata
from functools import cache

import pytest
import sentencepiece
from corpus import AWKWARD, mixed_text
from tokenizers import normalizers
from wire import fields_of

from llm_core.text.precompiled import DoubleArray, Nmt, Precompiled

# How many texts a sweep draws, and what they are made of beside any character: marks, jamo, joiners, line ends.
TEXTS = 1500
COMBINING = "\u0301\u0308\u0323\u0327\u3099\u309a\u0489\u093c\u094d\u200d\u200c\ufe0f\u1161\u11a8\r\n\0 \t"


@cache
def charsmap(rule: str) -> bytes:
    """The table that sentencepiece makes for one of its rules: field 2 of field 3 of a model."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab c d e f g h"] * 10), model_writer=file, vocab_size=12, model_type="unigram",
        normalization_rule_name=rule, minloglevel=2,
    )  # fmt: skip
    return fields_of(fields_of(file.getvalue(), 3)[0], 2)[0]


def ours(rule: str) -> Precompiled:
    return Precompiled(base64.b64encode(charsmap(rule)).decode())


def assigned(code: int) -> bool:
    """Characters that both sides know: what came with the last versions of Unicode joins others in one, not both."""
    return unicodedata.category(chr(code)) not in ("Cs", "Cn")


CHARACTERS = [chr(code) for code in range(0x110000) if assigned(code) and not 0xE000 <= code < 0xF900]


def random_texts(n: int) -> list[str]:
    rng = random.Random(0)
    texts = []
    for _ in range(n):
        drawn = [CHARACTERS[rng.randrange(rng.choice([128, 1500, 12_000, len(CHARACTERS)]))] for _ in range(12)]
        for place in range(0, 12, rng.randint(1, 4)):
            drawn[place] = rng.choice(COMBINING)
        texts.append("".join(drawn))
    return texts


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf"])
def test_precompiled_is_that_of_tokenizers(rule):
    our, their = ours(rule), normalizers.Precompiled(charsmap(rule))
    for character in CHARACTERS[::3] if rule == "nmt_nfkc" else CHARACTERS[::29]:
        assert our(character) == their.normalize_str(character), hex(ord(character))
    changed = 0
    for text in [*random_texts(TEXTS), *AWKWARD, mixed_text()[:20_000]]:
        assert our(text) == their.normalize_str(text), ascii(text[:80])
        changed += our(text) != text
    assert changed > TEXTS // 5


def test_it_is_nfkc_but_for_a_few():
    our = ours("nfkc")
    same = [our(character) == unicodedata.normalize("NFKC", character) for character in CHARACTERS[::11]]
    assert sum(same) > 0.99 * len(same)
    assert our("ﬁ Ⅳ ㌔ e\u0301") == "fi IV キロ é"


def test_a_lone_surrogate_stays():
    assert ours("nfkc")("a\ud800ﬁ") == "a\ud800fi"


def test_nmt_is_that_of_tokenizers():
    our, their = Nmt(), normalizers.Nmt()
    text = "".join(chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    assert our(text) == their.normalize_str(text)


def test_it_can_be_sent_to_another_process():
    our = ours("nfkc")
    for twin in (pickle.loads(pickle.dumps(our)), copy.deepcopy(our)):
        assert twin == our
        assert twin("ﬁ ｱ") == "fi ア"


@pytest.mark.parametrize(
    "table",
    ["", "?", "AAA", base64.b64encode(b"\xff\xff\xff\xff").decode(), base64.b64encode(b"\0\0\0\0\xff").decode()],
)
def test_what_is_no_table_is_refused(table):
    with pytest.raises(ValueError, match="precompiled_charsmap"):
        Precompiled(table)


def test_a_trie_that_leads_outside_itself_is_refused():
    whole = charsmap("nfkc")
    size = struct.unpack_from("<I", whole)[0] // 2
    cut = struct.pack("<I", size) + whole[4 : 4 + size]
    with pytest.raises(ValueError, match="precompiled_charsmap is damaged"):  # noqa: PT012
        damaged = Precompiled(base64.b64encode(cut).decode())
        [damaged(character) for character in CHARACTERS[:30_000]]
    with pytest.raises(ValueError, match="damaged"):
        DoubleArray(()).shortest_prefix(b"a")


def table(units: dict[int, int], replacements: bytes) -> bytes:
    row = [units.get(place, 0) for place in range(512)]
    return struct.pack("<513I", 4 * len(row), *row) + replacements


WORD_ENDS, IN_256, LEAF = 1 << 8, 1 << 9, 1 << 31
# "a" is replaced by what stands at 2. Its children begin 256 places on, which small tables never need to say; and the
# last replacement has no zero byte behind it.
FAR = table(
    {0: 1 << 10 | IN_256, 256 ^ ord("a"): ord("a") | WORD_ENDS | 3 << 10, 256 ^ ord("a") ^ 3: LEAF | 2}, b"x\0yz"
)
# Byte 0 leads from node 1 to a unit that bears the label 0, and is no label.
ZERO = table({0: 1 << 10, 1: WORD_ENDS}, b"x\0")


@pytest.mark.parametrize(("made", "text", "expected"), [(FAR, "bab", "byzb"), (ZERO, "a\0b", "a\0b")])
def test_a_table_made_by_hand_is_read_unit_by_unit(made, text, expected):
    assert Precompiled(base64.b64encode(made).decode())(text) == expected
    if made is ZERO:
        assert normalizers.Precompiled(made).normalize_str(text) == expected
    else:  # the package tokenizers asks for a zero byte at the end
        assert normalizers.Precompiled(made + b"\0").normalize_str(text) == expected
