"""Words: what is in the vocabulary comes back, what is not becomes <unk>."""

from __future__ import annotations

import pytest

from llm_core.text.tokenizer import Tokenizer, UnknownTokenError
from llm_core.text.words import WordTokenizer

SENTENCES = ["I love reading books.", "Reading is my favorite hobby.", "Books can broaden our horizons."]


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer.train(SENTENCES)


def test_round_trip(tokenizer):
    for sentence in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(sentence)) == sentence


def test_the_vocabulary_is_four_special_tokens_and_the_words_in_order(tokenizer):
    assert list(tokenizer.vocabulary)[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    words = list(tokenizer.vocabulary)[4:]
    assert words == sorted({w for s in SENTENCES for w in s.replace(".", " .").split()})
    assert tokenizer.vocab_size == 4 + len(words) == 4 + 15
    assert tokenizer.encode("reading") != tokenizer.encode("Reading")


def test_words_and_punctuation_are_cut_apart():
    assert WordTokenizer.tokens("Don't stop, ever!  (Naïve 中文 x_1)") == [
        "Don", "'", "t", "stop", ",", "ever", "!", "(", "Naïve", "中文", "x_1", ")",
    ]  # fmt: skip
    assert WordTokenizer.tokens(" \n") == []


def test_an_unknown_word_becomes_unk(tokenizer):
    ids = tokenizer.encode("I love 🎉 maps.")
    assert ids[2:4] == [3, 3]
    assert tokenizer.decode(ids) == "I love <unk> <unk>."


def test_special_tokens_are_left_out_of_the_text(tokenizer):
    ids = [1, *tokenizer.encode("I love books."), 2, 0, 0]
    assert tokenizer.decode(ids) == "I love books."
    assert tokenizer.decode([1, 2, 0]) == ""
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("") == []


def test_the_name_of_a_special_token_in_a_text_is_no_special_token(tokenizer):
    assert tokenizer.encode("<pad>") == [3, 3, 3]


@pytest.mark.parametrize("id_", [-1, 19])
def test_an_unknown_id_is_named(tokenizer, id_):
    with pytest.raises(UnknownTokenError, match=f"0 to 18: got {id_}"):
        tokenizer.decode([4, id_])


def test_errors():
    for nothing in ([], ["", "  "]):
        with pytest.raises(ValueError, match="at least one sentence"):
            WordTokenizer.train(nothing)
    with pytest.raises(ValueError, match="list of sentences"):
        WordTokenizer.train("I love reading books.")
    with pytest.raises(ValueError, match="once: got 'a'"):
        WordTokenizer(["a", "a"])
    with pytest.raises(ValueError, match="once: got '<pad>'"):
        WordTokenizer(["<pad>"])


def test_it_is_a_tokenizer(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
