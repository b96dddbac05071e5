"""Tokenizers in the forms of published ones: the ids and the text of the package tokenizers, from file to file."""

from __future__ import annotations

import random

import published
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.bulk import BulkTokenizer
from llm_core.text.streaming import decode_stream
from llm_core.text.wordpiece_fast import WordPieceTokenizer

LETTERS = "aabcdeéE 1234 \n\r\t.,!?'’-_/▁中文黄河の가ñ\u0301\u0327ÅΩßſ①ﬁ😀👍\u200d\u00a0\u3000<>|s[]×"
PARTS = (
    "<s>", "</s>", "<unk>", "<mask>", " <mask> ", "<|endoftext|>", "<think>", "[MASK]", "<|begin_of_text|>", "▁<s>",
    "<｜begin▁of▁sentence｜>", "<0x41>", "the ", " and", "def ", "[CLS]", "ing",
)  # fmt: skip
FORMS = {**published.BPE, "bert": published.bert}


def random_texts(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return ["", " "] + [
        "".join(rng.choice(PARTS if rng.random() < 0.15 else LETTERS) for _ in range(rng.randrange(14)))
        for _ in range(n)
    ]


def ours(name: str, text: str) -> BPETokenizer | WordPieceTokenizer:
    return (WordPieceTokenizer if name == "bert" else BPETokenizer).from_json(text)


@pytest.mark.parametrize("name", FORMS)
def test_ids_and_text_are_those_of_tokenizers(name):
    their = FORMS[name]()
    our = ours(name, their.to_str())
    again = Tokenizer.from_str(our.to_json())  # what we write, they read
    same = ours(name, our.to_json())
    assert same.to_json() == our.to_json()
    bulk = BulkTokenizer(our)
    for text in random_texts(1, 500):
        for add in (False, True):
            ids = their.encode(text, add_special_tokens=add).ids
            assert our.encode(text, add_special_tokens=add) == ids, text
            assert again.encode(text, add_special_tokens=add).ids == ids, text
            for skip in (False, True):
                decoded = their.decode(ids, skip_special_tokens=skip)
                assert our.decode(ids, skip_special_tokens=skip) == decoded, text
                assert again.decode(ids, skip_special_tokens=skip) == decoded, text
        assert bulk.encode(text) == our.encode(text)
    texts = random_texts(2, 100)
    assert bulk.encode_batch(texts) == [our.encode(text) for text in texts]


@pytest.mark.parametrize("name", FORMS)
def test_two_texts_are_framed_as_tokenizers_does(name):
    their = FORMS[name]()
    our = ours(name, their.to_str())
    for side in ("right", "left"):
        if side == "left":
            their.enable_truncation(max_length=11, direction="left")
            their.enable_padding(length=13, direction="left", pad_id=1, pad_type_id=1)
            our = ours(name, their.to_str())
        for first, second in zip(random_texts(3, 60), random_texts(4, 60), strict=True):
            expected = their.encode(first, second)
            assert our.encode_pair(first, second) == (expected.ids, expected.type_ids), (first, second)
            expected = their.encode(first)
            assert our.encode_pair(first) == (expected.ids, expected.type_ids), first


@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen"])
def test_text_comes_out_as_it_is_generated(name):
    our = ours(name, FORMS[name]().to_str())
    for text in random_texts(5, 60):
        ids = our.encode(text)
        assert "".join(decode_stream(our, ids)) == our.decode(ids)


def test_bulk_fills_up_a_text_as_if_it_were_alone():
    their = published.gpt2()
    their.enable_padding(pad_to_multiple_of=4)
    our = BPETokenizer.from_json(their.to_str())
    texts = random_texts(7, 30)
    assert BulkTokenizer(our).encode_batch(texts) == [their.encode(text).ids for text in texts]
    assert [our.encode(text) for text in texts] == [their.encode(text).ids for text in texts]


def test_tokens_of_strangers_and_added_tokens_that_are_text():
    their = published.qwen()
    our = BPETokenizer.from_json(their.to_str())
    their.encode_special_tokens = True
    for text in random_texts(6, 200):
        assert our.encode(text, allowed_special=()) == their.encode(text).ids
    assert list(our.added_tokens) == ["<tool_call>", "<think>", "</think>"]
    assert our.decode(our.encode("<think>a<|endoftext|>"), skip_special_tokens=True) == "<think>a"


def test_what_a_file_says_about_length_can_be_ignored():
    their = published.bert()
    their.enable_truncation(max_length=3)
    their.enable_padding(length=4)
    text = their.to_str()
    long = "the cat the dog the"
    assert len(WordPieceTokenizer.from_json(text).encode(long)) == 4
    assert len(WordPieceTokenizer.from_json(text, ignore=["padding"]).encode(long)) == 3
    their.no_truncation()
    their.no_padding()
    free = WordPieceTokenizer.from_json(text, ignore=["truncation", "padding"])
    assert free.encode(long) == their.encode(long, add_special_tokens=False).ids
    with pytest.raises(ValueError, match="ignore is a collection"):
        WordPieceTokenizer.from_json(text, ignore="padding")
    with pytest.raises(ValueError, match="ignore is a collection"):
        BPETokenizer.from_json(text, ignore=["model"])


def test_the_decoder_of_a_file_is_obeyed():
    their = published.bert()
    for cleanup in (False, True):
        their.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
        ids = their.encode("the cat, the dogs. don't!", add_special_tokens=False).ids
        assert WordPieceTokenizer.from_json(their.to_str()).decode(ids) == their.decode(ids, skip_special_tokens=False)
    assert "," in their.decode(ids)


def test_an_added_character_that_is_no_token_of_the_model_is_refused():
    # In lower case "É" is "é", which then is the model's unknown character, and would here be the added token.
    theirs = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], unk_token="<unk>"))
    theirs.normalizer = normalizers.Lowercase()
    theirs.add_special_tokens([AddedToken("é", normalized=False)])
    assert theirs.encode("aÉ").ids == [1, 0]
    with pytest.raises(ValueError, match=r"the added token 'é' must be longer than one character, or in model\.vocab"):
        BPETokenizer.from_json(theirs.to_str())
