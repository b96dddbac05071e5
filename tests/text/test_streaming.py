"""Streaming: what is handed out bit by bit is what decoding all at once gives."""

from __future__ import annotations

import random

import pytest
from corpus import AWKWARD, chinese, english

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.characters import CharacterTokenizer
from llm_core.text.streaming import StreamDecoder, decode_stream
from llm_core.text.words import WordTokenizer

EMOJI = "Hi 👩‍🚀🎉, ça va? 黄河"


@pytest.fixture(scope="module")
def bytes_alone() -> BPETokenizer:
    return BPETokenizer.train("", 256)


class Counting:
    """A tokenizer that remembers how many ids it was asked to decode at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.most = tokenizer, 0
        self.vocabulary, self.vocab_size, self.encode = tokenizer.vocabulary, tokenizer.vocab_size, tokenizer.encode

    def decode(self, ids):
        self.most = max(self.most, len(ids))
        return self.tokenizer.decode(ids)


def pushed(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [decoder.push(id_) for id_ in ids], decoder.finish()


@pytest.mark.parametrize("text", [EMOJI, *(text for text in AWKWARD if len(text) < 1000)])
def test_a_stream_of_bytes_hands_out_whole_characters(text, bytes_alone):
    parts, rest = pushed(bytes_alone, bytes_alone.encode(text))
    # A replacement character that the text itself holds is held back too, until something follows.
    assert "".join([*parts, rest]) == text
    if "\ufffd" not in text:
        assert rest == ""
        assert [part for part in parts if part] == list(text)
        ends = [len(text[: i + 1].encode()) for i in range(len(text))]
        assert [i + 1 for i, part in enumerate(parts) if part] == ends


def test_a_stream_of_trained_tokens_is_the_text():
    tokenizer = BPETokenizer.train([english()[:30_000], chinese()[:3000]], 700)
    for text in (english()[:5000], chinese()[:2000], EMOJI):
        assert "".join(decode_stream(tokenizer, iter(tokenizer.encode(text)))) == text


def test_bytes_that_are_no_text_come_out_as_decode_has_them(bytes_alone):
    rng = random.Random(0)
    odd = [0x41, 0x80, 0xBF, 0xC3, 0xE4, 0xED, 0xA0, 0xF0, 0x9F, 0xFF]
    by_byte = {bytes_alone.decode_bytes([id_])[0]: id_ for id_ in range(256)}
    for _ in range(300):
        ids = [by_byte[byte] for byte in rng.choices(odd, k=rng.randrange(12))]
        parts, rest = pushed(bytes_alone, ids)
        assert "".join([*parts, rest]) == bytes_alone.decode(ids)
        assert not any(part.endswith("\ufffd") for part in parts)


def test_what_never_became_a_character_comes_at_the_end(bytes_alone):
    ids = bytes_alone.encode("a🎉")[:-1]
    assert pushed(bytes_alone, ids) == (["a", "", "", ""], "\ufffd")
    assert list(decode_stream(bytes_alone, ids)) == ["a", "\ufffd"]
    assert list(decode_stream(bytes_alone, [])) == []


def test_a_decoder_can_be_used_again_after_its_end(bytes_alone):
    decoder = StreamDecoder(bytes_alone)
    for text in ("a🎉", "é"):
        assert (
            "".join(decoder.push(id_) for id_ in bytes_alone.encode(text)[:-1]) + decoder.finish()
            == text[:-1] + "\ufffd"
        )


@pytest.mark.parametrize("text", ["I love reading books.", "I I love, love. . I"])
def test_spaces_between_words_are_kept(text):
    tokenizer = WordTokenizer.train([text])
    for ids in (tokenizer.encode(text), [1, 0, *tokenizer.encode(text), 0, 0, 2, *tokenizer.encode(text)]):
        assert "".join(decode_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_characters_come_one_by_one():
    tokenizer = CharacterTokenizer.train(EMOJI)
    assert list(decode_stream(tokenizer, tokenizer.encode(EMOJI))) == list(EMOJI)


def test_the_work_for_a_token_does_not_grow(bytes_alone):
    tokenizer = Counting(bytes_alone)
    assert "".join(decode_stream(tokenizer, bytes_alone.encode(EMOJI * 20))) == EMOJI * 20
    assert tokenizer.most <= 8
