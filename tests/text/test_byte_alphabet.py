"""Bytes and GPT-2's alphabet: the table of transformers, the characters of tokenizers, and the way back."""

from __future__ import annotations

import random
import re

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llm_core.text.byte_alphabet import ALPHABET, CHARACTER, from_alphabet, in_alphabet


def test_the_table_is_that_of_transformers_and_the_characters_those_of_tokenizers():
    assert bytes_to_unicode() == CHARACTER
    assert sorted(ALPHABET) == sorted(ByteLevel.alphabet())
    for byte in range(256):
        assert in_alphabet(bytes([byte])) == bytes_to_unicode()[byte]
        assert from_alphabet(bytes_to_unicode()[byte]) == bytes([byte])


def test_texts_are_written_as_tokenizers_writes_them():
    letters = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("a b\n", "é", "黄河 🎉", "\0\x7f\u00ad\u0100"):
        assert in_alphabet(text.encode()) == letters.pre_tokenize_str(text)[0][0]


def test_the_two_are_each_others_way_back():
    draw = random.Random(0)
    for raw in (b"", bytes(range(256)), *(draw.randbytes(n) for n in range(50))):
        assert from_alphabet(in_alphabet(raw)) == raw
        assert len(in_alphabet(raw)) == len(raw)


@pytest.mark.parametrize("token", [" ", "a b", "\n", "黄", "\u0144"])
def test_other_characters_are_refused(token):
    with pytest.raises(ValueError, match=re.escape(f"the token {token!r} is not written in the alphabet")):
        from_alphabet(token)
