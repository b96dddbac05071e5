"""Characters: every text comes back as it was."""

from __future__ import annotations

import pytest

from llm_core.text.characters import CharacterTokenizer
from llm_core.text.tokenizer import Tokenizer, UnknownTokenError

TEXTS = ["I love reading books.", "a", "\n\t \r\n", "黄河之水天上来", "👩‍🚀🎉 e\u0301 é", "\u0000\uffff", "aaaa"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text):
    tokenizer = CharacterTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(iter(ids)) == text


def test_ids_are_in_the_order_of_code_points():
    tokenizer = CharacterTokenizer.train("cab ébz")
    assert [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)] == [" ", "a", "b", "c", "z", "é"]


def test_the_vocabulary_does_not_depend_on_the_order_of_the_text():
    assert CharacterTokenizer.train("abc").encode("cba") == CharacterTokenizer.train("bcaab").encode("cba")


def test_nothing_is_a_text_too():
    tokenizer = CharacterTokenizer.train("ab")
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="empty text"):
        CharacterTokenizer.train("")


def test_a_saved_vocabulary_gives_the_same_ids():
    first = CharacterTokenizer.train("hello world")
    assert CharacterTokenizer(first.vocabulary).encode("low") == first.encode("low")


def test_an_unknown_character_is_named_with_its_place():
    with pytest.raises(UnknownTokenError, match=r"'🎉' \(U\+1F389\), at position 2 .* 2 characters"):
        CharacterTokenizer.train("ab").encode("ab🎉")


@pytest.mark.parametrize("id_", [-1, 2, 99])
def test_an_unknown_id_is_named(id_):
    with pytest.raises(UnknownTokenError, match=f"0 to 1: got {id_}"):
        CharacterTokenizer.train("ab").decode([0, id_])


def test_a_character_may_stand_in_the_vocabulary_once():
    with pytest.raises(ValueError, match="once: got 'a'"):
        CharacterTokenizer("aba")


def test_it_is_a_tokenizer():
    assert isinstance(CharacterTokenizer.train("ab"), Tokenizer)
    assert issubclass(UnknownTokenError, ValueError)
