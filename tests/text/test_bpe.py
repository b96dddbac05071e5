"""Byte-pair encoding: the merges and the ids of the package tokenizers, and the published ones."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import random
import unicodedata
from typing import Any

import pytest
import regex
import tiktoken
from corpus import AWKWARD, chinese, code, english, mixed_text
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.byte_alphabet import ALPHABET
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split
from llm_core.text.tokenizer import Tokenizer as TokenizerProtocol
from llm_core.text.tokenizer import UnknownTokenError

byte_level, isolated = pre_tokenizers.ByteLevel, "isolated"


def by_regex(pattern: str) -> Any:
    first = pre_tokenizers.Split(Regex(pattern), isolated)
    return pre_tokenizers.Sequence([first, byte_level(add_prefix_space=False, use_regex=False)])


SPLITS = {
    "gpt2": (GPT2, byte_level(add_prefix_space=False)),
    "digits": (
        DIGITS_THEN_GPT2,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]),
    ),
    "cl100k": (CL100K, by_regex(str(CL100K.pattern))),
    "o200k": (O200K, by_regex(str(O200K.pattern))),
    "whitespace": (WHITESPACE, by_regex(str(WHITESPACE.pattern))),
    "vowels": (Split("[aeiou]+"), by_regex("[aeiou]+")),
    "whole": (WHOLE, byte_level(add_prefix_space=False, use_regex=False)),
}


def library(
    texts: list[str], vocab_size: int, pre_tokenizer: Any, special_tokens: tuple[str, ...] = (), min_frequency: int = 2
) -> Tokenizer:
    """What the package tokenizers trains."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=byte_level.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    return BPETokenizer.train(mixed_text(), 6000, special_tokens=["<|endoftext|>", "<|im_start|>"])


# --- training ---


@pytest.mark.parametrize(
    ("texts", "vocab_size", "split"),
    [
        ([english()], 6000, "gpt2"),
        ([chinese()], 3000, "gpt2"),
        (code().splitlines(keepends=True), 5000, "digits"),
        ([code()], 5000, "cl100k"),
        ([english()], 3000, "o200k"),
        ([english()], 3000, "whitespace"),
        ([chinese()[:3000], english()[:20_000]], 600, "vowels"),
        (code().splitlines()[:500], 700, "whole"),
        (list(AWKWARD), 600, "gpt2"),
        (list(AWKWARD), 600, "whole"),
    ],
)
def test_merges_and_vocabulary_are_those_of_tokenizers(texts, vocab_size, split):
    split, pre_tokenizer = SPLITS[split]
    special = ("<|endoftext|>", "<pad>")
    theirs = library(texts, vocab_size, pre_tokenizer, special)
    ours = BPETokenizer.train(texts, vocab_size, split=split, special_tokens=special)
    assert ours.merges == merges_of(theirs)
    assert ours.vocabulary.ids == theirs.get_vocab()


def test_a_megabyte_gives_the_merges_of_tokenizers(trained):
    theirs = library([mixed_text()], 6000, SPLITS["gpt2"][1], tuple(trained.special_tokens))
    assert trained.merges == merges_of(theirs)
    assert trained.vocabulary.ids == theirs.get_vocab()


@pytest.mark.parametrize("seed", range(40))
def test_ties_and_runs_give_the_merges_of_tokenizers(seed):
    # Few letters and long runs: many equal counts, pairs that overlap, tokens that two merges lead to.
    rng = random.Random(seed)
    letters = rng.choice(["a", "ab", "ab ", "a \n", "abc", "aé"])
    texts = [
        "".join(rng.choice(letters) * rng.choice([1, 1, 1, 2, 3, 5, 9, 20]) for _ in range(rng.randrange(1, 60)))
        for _ in range(rng.randrange(1, 12))
    ]
    split, pre_tokenizer = SPLITS[rng.choice(["gpt2", "whole"])]
    vocab_size, min_count = 256 + rng.randrange(120), rng.choice([1, 2, 3])
    theirs = library(texts, vocab_size, pre_tokenizer, min_frequency=min_count)
    ours = BPETokenizer.train(texts, vocab_size, split=split, min_count=min_count)
    assert ours.merges == merges_of(theirs)
    assert ours.vocabulary.ids == theirs.get_vocab()


def test_of_equal_counts_the_smallest_ids_are_merged_first():
    assert BPETokenizer.train("xy ba ab yx", 300, min_count=1, split=Split(r"\w+")).merges == [
        ("a", "b"),
        ("b", "a"),
        ("x", "y"),
        ("y", "x"),
    ]


def test_no_token_is_learned_twice(trained):
    joined = [left + right for left, right in trained.merges]
    assert len(set(joined)) == len(joined) == trained.vocab_size - 256 - 2


def test_a_special_token_that_is_also_learned_keeps_its_id():
    ours = BPETokenizer.train("low low lower", 262, special_tokens=["low"])
    theirs = library(["low low lower"], 262, SPLITS["gpt2"][1], ("low",))
    assert ours.merges == merges_of(theirs)
    assert ours.vocabulary.ids == theirs.get_vocab()
    assert ours.encode("lower slow") == theirs.encode("lower slow").ids
    assert ours.decode(ours.encode("lower slow")) == "lower slow"


def test_a_long_run_in_training():
    texts = ["a" * 5000, "ab" * 2000, "b" * 4097]
    ours = BPETokenizer.train(texts, 400, split=WHOLE, min_count=1)
    assert ours.merges == merges_of(library(texts, 400, SPLITS["whole"][1], min_frequency=1))


def test_training_ends_when_no_pair_is_frequent_enough():
    assert BPETokenizer.train("ab ab cd", 1000, min_count=2).merges == [("a", "b")]
    assert BPETokenizer.train("ab ab cd", 1000, min_count=3).merges == []
    assert BPETokenizer.train("ab ab cd", 256, min_count=1).merges == []


def test_nothing_trains_the_bytes_alone():
    for nothing in ("", [], ["", ""]):
        tokenizer = BPETokenizer.train(nothing, 1000)
        assert tokenizer.vocab_size == 256
        assert tokenizer.decode(tokenizer.encode("né 🎉")) == "né 🎉"


def test_one_text_is_a_list_of_one_text():
    assert BPETokenizer.train("low lower lowest", 262).merges == BPETokenizer.train(["low lower lowest"], 262).merges
    # but texts are not joined: a pair does not reach from one to the next
    assert BPETokenizer.train(["a", "b"] * 9, 300).merges == []
    assert BPETokenizer.train(iter(["ab", "ab"]), 300).merges == [("a", "b")]


@pytest.mark.parametrize("was_on", [True, False])
def test_training_leaves_the_garbage_collector_as_it_was(was_on):
    try:
        if not was_on:
            gc.disable()
        BPETokenizer.train("abab", 257)
        assert gc.isenabled() is was_on
        with pytest.raises(ValueError, match="surrogate"):
            BPETokenizer.train("\ud800", 257)
        assert gc.isenabled() is was_on
    finally:
        gc.enable()


def test_the_alphabet_is_that_of_tokenizers():
    assert sorted(ALPHABET) == list(ALPHABET) == sorted(byte_level.alphabet())


# --- encoding ---


@pytest.mark.parametrize("name", SPLITS)
def test_ids_are_those_of_tokenizers(name, trained):
    split, pre_tokenizer = SPLITS[name]
    text = mixed_text()[: None if name == "gpt2" else 20_000]
    ours = BPETokenizer(trained.vocabulary, trained.merges, split=split)
    theirs = Tokenizer(models.BPE(vocab=trained.vocabulary.ids, merges=trained.merges))
    theirs.pre_tokenizer = pre_tokenizer
    theirs.decoder = decoders.ByteLevel()
    assert len(mixed_text().encode()) > 1_000_000
    for part in [text, *AWKWARD]:
        ids = ours.encode(part)
        encoding = theirs.encode(part)
        assert ids == encoding.ids
        assert ours.decode(ids) == part
        if len(part) < 5000:
            assert ours.tokens(part) == encoding.tokens


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        (GPT2, "I|'|VE| 1024567| cats|'s|\n |\n|x|…"),
        (DIGITS_THEN_GPT2, "I|'|VE| |1|0|2|4|5|6|7| cats|'s|\n |\n|x|…"),
        (CL100K, "I|'VE| |102|456|7| cats|'s|\n \n|x|…"),
        (O200K, "I'VE| |102|456|7| cats's|\n \n|x|…"),
        (WHITESPACE, "I'VE| 1024567| cats's|\n |\nx…"),
        (WHOLE, "I'VE 1024567 cats's\n \nx…"),
    ],
)
def test_where_the_cuts_are(split, pieces):
    assert "|".join(split(pieces.replace("|", ""))) == pieces


@pytest.mark.parametrize("name", ["gpt2", "digits", "cl100k", "o200k"])
def test_random_text_is_cut_as_tokenizers_does(name):
    split, pre_tokenizer = SPLITS[name]
    ours = BPETokenizer.train("", 256, split=split)
    rng = random.Random(0)
    letters = " \n\r\t'’ſsStTlLéÉA1٣²五中!.-—/\u00a0\u3000\u0301🎉\u200d"
    for _ in range(2000):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 14)))
        theirs = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]  # in the alphabet of bytes
        assert ["".join(ours.tokens(piece)) for piece in split(text)] == theirs


@pytest.mark.parametrize("pattern", [r"\p{L}", r"\p{N}", r"\s", r"\p{M}", r"\p{Lu}", r"(?i:'s)"])
def test_classes_of_characters_are_those_of_tokenizers(pattern):
    # Not for characters that are newer than Python's own tables: there `regex` may be ahead of the library.
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    text = "".join("'" + c for c in known) if "'" in pattern else "".join(known)
    without = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text)
    assert regex.sub(pattern, "", text) == "".join(piece for piece, _ in without)


def test_any_order_of_merges_gives_the_ids_of_tokenizers():
    # Published vocabularies exist whose merges are not in an order that training could give.
    rng = random.Random(0)
    for _ in range(60):
        tokens, merges = ["a", "b"], []
        for _ in range(rng.randrange(1, 12)):
            left, right = rng.choice(tokens), rng.choice(tokens)
            merges.append((left, right))
            tokens.append(left + right)
        rng.shuffle(merges)
        vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys([*ALPHABET, *tokens]))}
        ours = BPETokenizer(vocabulary, merges, split=WHOLE)
        theirs = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        for length in (1, 2, 30, 199, 200, 400):
            text = "".join(rng.choices("ab", weights=[rng.random(), rng.random()], k=length))
            assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("seed", range(30))
def test_tokens_that_begin_or_end_within_a_character(seed):
    # With so few characters, many tokens hold the end of one and the beginning of the next.
    rng = random.Random(seed)
    letters = rng.sample("aé黄黅河沲🎉🎊👍\u00a0я ", k=rng.randrange(2, 6))
    texts = ["".join(rng.choices(letters, k=rng.randrange(1, 30))) for _ in range(30)]
    split, pre_tokenizer = SPLITS[rng.choice(["gpt2", "whole"])]
    theirs = library(texts[:10], 256 + rng.randrange(60), pre_tokenizer, min_frequency=1)
    merges = merges_of(theirs)
    if seed % 2:  # an order that training never gives, with tokens cut anywhere
        rng.shuffle(merges)
        theirs = Tokenizer(models.BPE(vocab=theirs.get_vocab(), merges=merges))
        theirs.pre_tokenizer = pre_tokenizer
    ours = BPETokenizer(theirs.get_vocab(), merges, split=split)
    for text in texts:
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("word", ["a" * 100_000, "ab" * 50_000, "".join(random.Random(0).choices("abcde", k=100_000))])
def test_very_long_words(word, trained):
    theirs = Tokenizer(models.BPE(vocab=trained.vocabulary.ids, merges=trained.merges))
    theirs.pre_tokenizer = SPLITS["gpt2"][1]
    ids = trained.encode(word)
    assert ids == theirs.encode(word).ids
    assert trained.decode(ids) == word


def test_the_cache_changes_nothing(trained, monkeypatch):
    text = mixed_text()[:30_000]
    expected = trained.encode(text)
    monkeypatch.setattr("llm_core.text.bpe_fast.CACHE_SIZE", 5)
    small = BPETokenizer(trained.vocabulary, trained.merges, special_tokens=trained.special_tokens)
    assert small.encode(text) == expected
    ids = trained.encode("the the")
    ids.append(-1)
    assert trained.encode("the the") == ids[:-1]


def test_an_empty_text_has_no_ids(trained):
    assert trained.encode("") == trained.tokens("") == []
    assert trained.decode([]) == ""
    assert trained.decode_bytes([]) == b""


def test_half_a_surrogate_pair_is_refused(trained):
    with pytest.raises(ValueError, match=r"U\+DC00.*surrogatepass"):
        trained.encode("ab\udc00")


def test_a_byte_that_is_not_in_the_vocabulary_is_named():
    tokenizer = BPETokenizer({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    assert tokenizer.encode("abba") == [2, 1, 0]
    with pytest.raises(UnknownTokenError, match=r"0xC3 of 'é' is not in the vocabulary, where it would be 'Ã'"):
        tokenizer.encode("abé")


# --- decoding ---


def test_bytes_that_are_no_utf8_become_replacement_characters(trained):
    theirs = Tokenizer.from_str(trained.to_json())
    ranks = {bytes([byte]): byte for byte in range(256)}
    peer = tiktoken.Encoding("bytes", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    byte_ids = [trained.vocabulary.ids[character] for character in _alphabet_by_byte()]
    rng = random.Random(0)
    odd = [0x41, 0x80, 0xBF, 0xC3, 0xE4, 0xED, 0xA0, 0xF0, 0x9F, 0xF5, 0xFF]
    samples = [bytes(rng.choices(odd, k=8)) for _ in range(500)]
    for raw in [*samples, b"\xf0\x9f", b"\xe4\xb8", b"\xff", "🎉".encode()[:3], bytes(range(256))]:
        ids = [byte_ids[byte] for byte in raw]
        assert trained.decode_bytes(ids) == raw
        assert trained.decode(ids) == theirs.decode(ids) == peer.decode(list(raw))


def _alphabet_by_byte() -> list[str]:
    """The characters of the bytes 0 ... 255, as the library shows them. Thirteen bytes stand in no text at all."""
    shown = {byte: chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    for character in [*map(chr, range(0x800)), "\u0800", *map(chr, range(0x1000, 0x10FFFF, 0x1000))]:
        if not 0xD800 <= ord(character) < 0xE000:
            letters = byte_level(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)[0][0]
            shown.update(zip(character.encode(), letters, strict=True))
    return [shown[byte] for byte in range(256)]


@pytest.mark.parametrize("id_", [-1, 6000, 10**9])
def test_an_unknown_id_is_named(id_, trained):
    with pytest.raises(UnknownTokenError, match=f"0 to 5999: got {id_}"):
        trained.decode([0, id_])


def test_ids_may_come_one_by_one(trained):
    assert trained.decode(iter(trained.encode("low é"))) == "low é"


# --- special tokens ---


SPECIAL = ("<|end|>", "<|end|>x", "<a b>", "結束", "<e>")


@pytest.fixture(scope="module")
def with_special() -> BPETokenizer:
    return BPETokenizer.train(english()[:20_000], 600, special_tokens=SPECIAL)


def test_special_tokens_are_found_as_tokenizers_finds_them(with_special):
    theirs = Tokenizer.from_str(with_special.to_json())
    rng = random.Random(0)
    parts = [*SPECIAL, " ", "a", "<|end", "|>", "x", "the end", "\n", "結"]
    texts = ["".join(rng.choices(parts, k=rng.randrange(1, 8))) for _ in range(500)]
    for text in [*texts, "<|end|>", "<|end|><|end|>xx", " <|end|> "]:
        ids = with_special.encode(text)
        assert ids == theirs.encode(text).ids
        assert with_special.decode(ids) == text
        assert with_special.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
        assert with_special.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_special_tokens_can_be_read_as_text(with_special):
    text = "a<|end|>x結束"
    plain = with_special.encode(text, allowed_special=())
    assert not set(plain) & set(with_special.special_tokens.values())
    assert with_special.decode(plain) == text
    one = with_special.encode(text, allowed_special=["<|end|>"])
    assert [id_ for id_ in one if id_ < len(SPECIAL)] == [0]
    assert with_special.decode(one) == text
    assert with_special.encode(text, allowed_special="all") == with_special.encode(text)
    assert with_special.tokens("a結束") == ["a", "結束"]
    assert "結束" not in with_special.tokens("a結束", allowed_special=())


def test_what_is_allowed_must_be_a_special_token(with_special):
    with pytest.raises(ValueError, match=r"'<x>' is no special token.*<a b>"):
        with_special.encode("", allowed_special=["<x>"])
    with pytest.raises(ValueError, match="collection of special tokens: got '<e>'"):
        with_special.encode("", allowed_special="<e>")


def test_special_tokens_have_the_first_ids(with_special):
    assert [with_special.special_tokens[token] for token in SPECIAL] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (["<a>", "<a>"], "'<a>' more than once"),
        ([""], "could be taken for bytes"),
        (["a"], "could be taken for bytes"),
        (["é"], "could be taken for bytes"),
        (["é©"], "could be taken for bytes"),
        ("<a>", "give a list of special tokens"),
    ],
)
def test_special_tokens_that_cannot_be(special, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer.train("ab", 300, special_tokens=special)


# --- files ---


@pytest.mark.parametrize("name", SPLITS)
def test_tokenizers_reads_what_is_saved(name, tmp_path):
    split, _ = SPLITS[name]
    text = english()[:5000] + chinese()[:500]
    ours = BPETokenizer.train(text, 400, split=split, special_tokens=["<|endoftext|>", "<|im_start|>"])
    path = ours.save(tmp_path / "tokenizer.json")
    theirs = Tokenizer.from_file(str(path))
    again = BPETokenizer.load(path)
    for part in [text, *(text for text in AWKWARD if len(text) < 1000)]:
        ids = ours.encode(part)
        assert theirs.encode(part).ids == ids == again.encode(part)
        assert theirs.decode(ids, skip_special_tokens=False) == part
    assert again.vocabulary == ours.vocabulary
    assert again.merges == ours.merges
    assert again.split == ours.split or name == "vowels"
    assert again.special_tokens == ours.special_tokens
    assert again.to_json() == ours.to_json()


@pytest.mark.parametrize("name", SPLITS)
def test_what_tokenizers_saves_can_be_read(name, tmp_path):
    split, pre_tokenizer = SPLITS[name]
    theirs = library([english()[:20_000], chinese()[:500]], 500, pre_tokenizer, ("<|endoftext|>",))
    theirs.post_processor = processors.ByteLevel(trim_offsets=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = BPETokenizer.load(tmp_path / "tokenizer.json")
    assert ours.split.pattern == split.pattern
    for text in [mixed_text()[:10_000], *(text for text in AWKWARD if len(text) < 1000)]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_a_piece_that_is_a_token_as_a_whole(tmp_path):
    # "low" is a token that no merge makes.
    vocabulary = {token: id_ for id_, token in enumerate([*ALPHABET, "lo", "low", "<|low|>"])}
    for ignore_merges, expected in ((True, ["low", "Ġ", "lo", "w"]), (False, ["lo", "w", "Ġ", "lo", "w"])):
        ours = BPETokenizer(vocabulary, [("l", "o")], ignore_merges=ignore_merges, special_tokens=["<|low|>"])
        theirs = Tokenizer.from_file(str(ours.save(tmp_path / "tokenizer.json")))
        assert ours.tokens("low low") == theirs.encode("low low").tokens == expected
        assert BPETokenizer.load(tmp_path / "tokenizer.json").tokens("low low") == expected


def test_a_piece_from_a_stranger_is_no_special_token():
    tokenizer = BPETokenizer.from_ranks({bytes([b]): b for b in range(256)}, special_tokens={"end": 256})
    assert tokenizer.encode("end") == [256]
    assert tokenizer.encode("end", allowed_special=()) == list(b"end")


def test_ids_may_have_gaps(tmp_path):
    ranks = {bytes([b]): b + 5 for b in range(256)} | {b"ab": 300, b"abc": 400}
    ours = BPETokenizer.from_ranks(ranks, special_tokens={"<|x|>": 999})
    assert ours.vocab_size == 1000
    assert ours.encode("abc<|x|>ab") == [400, 999, 300]
    theirs = Tokenizer.from_file(str(ours.save(tmp_path / "tokenizer.json")))
    assert theirs.encode("abc<|x|>ab").ids == [400, 999, 300]
    with pytest.raises(UnknownTokenError, match="0 to 999, with gaps: got 998"):
        ours.decode([998])


def _asking(**changes: Any) -> str:
    """A tokenizer.json that asks for something else."""
    asking = json.loads(BPETokenizer.train("abab", 257).to_json())
    for name, value in changes.items():
        *folders, last = name.split("__")
        place = asking
        for folder in folders:
            place = place[folder]
        place[last] = value
    return json.dumps(asking)


def _component(value: Any) -> Any:
    tokenizer = Tokenizer(models.BPE())
    if isinstance(value, normalizers.Normalizer):
        tokenizer.normalizer = value
        return json.loads(tokenizer.to_str())["normalizer"]
    if isinstance(value, decoders.Decoder):
        tokenizer.decoder = value
        return json.loads(tokenizer.to_str())["decoder"]
    if isinstance(value, processors.PostProcessor):
        tokenizer.post_processor = value
        return json.loads(tokenizer.to_str())["post_processor"]
    tokenizer.pre_tokenizer = value
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


REFUSED = {
    "normalizer.type": _asking(normalizer={"type": "UnicodeFilter"}),
    "truncation": _asking(truncation={"max_length": 3, "strategy": "OnlySecond", "stride": 0, "direction": "Right"}),
    "padding": _asking(padding={"strategy": "BatchLongest"}),
    "post_processor": _asking(post_processor=_component(processors.TemplateProcessing("a $0", None, [("a", 999)]))),
    "decoder.type": _asking(decoder=_component(decoders.Metaspace())),
    "decoder.type ": _asking(decoder=None),
    "model.type": _asking(model__type="Unigram"),
    "model.dropout": _asking(model__dropout=0.1),
    "model.continuing_subword_prefix": _asking(model__continuing_subword_prefix="##", model__merges=[]),
    "model.end_of_word_suffix": _asking(model__end_of_word_suffix="</w>"),
    "model.unk_token": _asking(model__unk_token="a", model__vocab={"a": 0, "b": 1, "ab": 2}),
    "pre_tokenizer": _asking(
        pre_tokenizer=_component(pre_tokenizers.Sequence([byte_level(add_prefix_space=False)] * 2))
    ),
    "pre_tokenizer.type": _asking(pre_tokenizer=_component(pre_tokenizers.UnicodeScripts())),
    "pattern": _asking(pre_tokenizer=_component(by_regex(r"(?<x>a)\g<x>"))),
    "lstrip of the added token '<m>'": _asking(
        added_tokens=[
            {"id": 257, "content": "<m>", "special": True, "single_word": False, "lstrip": 1, "rstrip": False}
        ]
    ),
    "special of the added token '<m>'": _asking(added_tokens=[{"id": 257, "content": "<m>"}]),
    "the id of the added token 'ab'": _asking(
        added_tokens=[
            {"id": 257, "content": "ab", "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ]
    ),
}


@pytest.mark.parametrize("component", REFUSED)
def test_what_is_not_supported_is_refused_by_name(component, tmp_path):
    (tmp_path / "tokenizer.json").write_text(REFUSED[component], encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"tokenizer.json: .*{regex.escape(component.strip())}.*(must be|holds) .*got "
    ):
        BPETokenizer.load(tmp_path / "tokenizer.json")


def test_what_changes_no_ids_is_accepted():
    for text in (
        _asking(model__dropout=0.0, model__end_of_word_suffix="", model__unk_token="a", model__fuse_unk=True),
        _asking(post_processor=_component(processors.ByteLevel())),
        _asking(added_tokens=None),
        _asking(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}),
        _asking(model__merges=["a b"]),
    ):
        assert BPETokenizer.from_json(text).encode("ab") == [256]
        assert BPETokenizer.from_json(text).split == GPT2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": null}', '{"model": {"vocab": 1, "merges": []}}'])
def test_a_file_that_is_no_tokenizer_is_refused(text, tmp_path):
    (tmp_path / "it.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"it\.json: this is no tokenizer\.json with a BPE model"):
        BPETokenizer.load(tmp_path / "it.json")
    with pytest.raises(FileNotFoundError):
        BPETokenizer.load(tmp_path / "not there.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, trained, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left"):
        trained.save(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    trained.save(path)
    assert BPETokenizer.load(path).merges == trained.merges
    assert list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_can_be_copied_and_pickled(trained):
    for other in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert other.encode("lower <|im_start|> é") == trained.encode("lower <|im_start|> é")


# --- other people's tokens ---


def test_tokens_and_merges_as_gpt2_and_gguf_hold_them():
    # The way a GGUF file of SmolLM2 comes in: tokens by id, merges as lines, the special tokens first.
    special = ["<|endoftext|>", "<|im_start|>"]
    theirs = library([english()[:50_000], code()[:50_000]], 1000, SPLITS["digits"][1], tuple(special))
    vocabulary = theirs.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    lines = [f"{left} {right}" for left, right in merges_of(theirs)]
    for merges in (lines, ["#version: 0.2", *lines]):
        ours = BPETokenizer.from_merges(tokens, merges, split=DIGITS_THEN_GPT2, special_tokens=special)
        for text in [mixed_text()[:50_000], *AWKWARD]:
            assert ours.encode(text) == theirs.encode(text).ids


def test_ranks_give_the_ids_of_tiktoken():
    learned = BPETokenizer.train(mixed_text()[:200_000], 2000)
    ranks = {learned.decode_bytes([id_]): id_ for id_ in reversed(range(2000))}  # the order of a dict means nothing
    ranks[b"zqx"] = 2000  # nothing leads there: only the piece as a whole becomes it
    ours = BPETokenizer.from_ranks(ranks, special_tokens={"<|endoftext|>": 2001})
    theirs = tiktoken.Encoding(
        "ours", pat_str=str(GPT2.pattern), mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 2001}
    )
    assert ours.merges == learned.merges
    for text in [mixed_text()[:200_000], *AWKWARD, "zqx zqx"]:
        assert ours.encode(text) == theirs.encode(text, allowed_special="all")
    assert ours.encode("zqx")[0] == 2000
    assert 2000 not in ours.encode(" zqx")


def test_a_merge_may_begin_with_a_hash():
    tokenizer = BPETokenizer.from_merges([*ALPHABET, "##", "###"], ["# #", "## #"])
    assert tokenizer.tokens("###") == ["###"]


@pytest.mark.parametrize("line", ["a", "a b c", " b", "a ", "", "ab"])
def test_a_line_that_is_no_merge_is_named(line):
    with pytest.raises(ValueError, match=f'"left right": got {line!r}'):
        BPETokenizer.from_merges(list(ALPHABET), [line])


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ({"a": 0, "b": 0}, [], "id of its own, 0 or more: got 0 for 'b'"),
        ({"a": -1}, [], "id of its own, 0 or more: got -1 for 'a'"),
        ({"a": 0, "b": 1}, [("a", "b")], "merge of 'a' and 'b' needs the token 'ab'"),
        ({"a": 0, "ab": 1}, [("a", "b")], "merge of 'a' and 'b' needs the token 'b'"),
        ({"<a b>": 0}, [], r"id 0: the token '<a b>' is not written in the alphabet.*special_tokens"),
        ({"": 0}, [], "'' is not written in the alphabet"),
        ({" ": 0}, [], "' ' is not written in the alphabet"),
    ],
)
def test_a_vocabulary_that_cannot_be(vocabulary, merges, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer(vocabulary, merges)


def test_other_errors():
    with pytest.raises(ValueError, match=r"at least 257 .256 bytes and 1 special tokens.: got 256"):
        BPETokenizer.train("a", 256, special_tokens=["<a>"])
    with pytest.raises(ValueError, match="at least 1: got 0"):
        BPETokenizer.train("a", 300, min_count=0)
    with pytest.raises(ValueError, match="once: got 'a' more"):
        BPETokenizer.from_merges(["a", "b", "a"], [])
    with pytest.raises(ValueError, match=r"'<a>' is not in the vocabulary"):
        BPETokenizer({"a": 0}, special_tokens=["<a>"])
    with pytest.raises(ValueError, match=r"no regular expression.*got '\('"):
        Split("(")


def test_a_split_keeps_all_of_the_text():
    for split, _ in SPLITS.values():
        for text in AWKWARD:
            pieces = split(text)
            assert "".join(pieces) == text
            assert "" not in pieces
    assert Split("x*")("axxbx") == ["a", "xx", "b", "x"]
    assert Split("(a)(b)")("cabc") == ["c", "ab", "c"]
    assert Split("^a$")("a\nb\na") == ["a", "\nb\n", "a"]


def test_it_is_a_tokenizer(trained):
    assert isinstance(trained, TokenizerProtocol)
    assert trained.vocab_size == 6000
