"""The first rungs, which are made to be read, against the quick tokenizers: the same vocabulary, the same ids."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from corpus import chinese, code, english
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_core.text import unigram
from llm_core.text.bpe import SimpleBPE
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.lattice import expected_counts
from llm_core.text.pretokenize import CL100K, GPT2, WHOLE, split_at_spaces
from llm_core.text.tokenizer import UnknownTokenError
from llm_core.text.unigram import SimpleUnigram
from llm_core.text.unigram_fast import UnigramTokenizer
from llm_core.text.wordpiece import SimpleWordPiece
from llm_core.text.wordpiece_fast import WordPieceTokenizer

TEXTS = {
    "english": [english()[:3_000]],
    "chinese": [chinese()[:800]],
    "code": code()[:2_000].splitlines(keepends=True),
    "emoji": ["🎉👩‍🚀👨‍👩‍👧‍👦 🏳️‍🌈🇩🇪✈️ 😀😀😀 é e\u0301 naïve", "🎉🎉 👩‍🚀"],
    "numbers": ["10000 3.14159 0x1F ２０２６ ٣٤٥ 1000 10 100", "31 31 314 3141"],
    "runs": ["aaaaaaa aaaa aa a ababab ababa bbbbb", "a" * 50 + "ab" * 30],
    "nothing": ["", "   "],
}
# Read by each tokenizer, whatever it was trained on.
READ = (
    "",
    " ",
    "The quick brown fox, 1024 times: it's naïve.",
    "黄河之水天上来",
    "👩‍🚀🎉 e\u0301\u0301 \u00a0 x\n\n\ty  z ",
    "3.14159 ٣٤٥ ２０２６",
    "aaaaabababbbaa" * 5,
    english()[50_000:51_000],
)


def bpe_of_the_library(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# --- byte-pair encoding ---


@pytest.mark.parametrize("name", TEXTS)
def test_simple_bpe_is_the_quick_one_and_the_librarys(name):
    simple = SimpleBPE.train(TEXTS[name], 400)
    quick = BPETokenizer.train(TEXTS[name], 400)
    library = bpe_of_the_library(TEXTS[name], 400)
    assert simple.merges == quick.merges
    assert simple.vocabulary == quick.vocabulary
    assert simple.vocabulary.ids == library.get_vocab()
    for text in (*TEXTS[name], *READ):
        ids = simple.encode(text)
        assert ids == quick.encode(text) == library.encode(text).ids
        assert simple.tokens(text) == quick.tokens(text)
        assert simple.decode(ids) == text


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("split", [CL100K, WHOLE], ids=["cl100k", "whole"])
def test_simple_bpe_is_the_quick_one_with_other_cuts_and_counts(split, min_count):
    texts = [*TEXTS["runs"], *TEXTS["numbers"], english()[:500]]
    simple = SimpleBPE.train(texts, 320, split=split, min_count=min_count)
    quick = BPETokenizer.train(texts, 320, split=split, min_count=min_count)
    assert simple.merges == quick.merges
    for text in READ:
        assert simple.encode(text) == quick.encode(text)


@pytest.mark.parametrize("seed", range(20))
def test_simple_bpe_is_the_quick_one_for_any_order_of_merges(seed):
    # An order that training never gives: a merge may make the pair of an earlier one.
    rng = random.Random(seed)
    tokens, merges = ["a", "b"], []
    for _ in range(rng.randrange(2, 12)):
        merges.append((rng.choice(tokens), rng.choice(tokens)))
        tokens.append("".join(merges[-1]))
    merges = list(dict.fromkeys(merges))
    rng.shuffle(merges)
    simple = SimpleBPE(merges, split=GPT2)
    quick = BPETokenizer(simple.vocabulary, merges, split=GPT2)
    for length in (1, 2, 30, 250):
        text = "".join(rng.choices("ab", k=length))
        assert simple.encode(text) == quick.encode(text)


def test_simple_bpe_replaces_bytes_that_are_no_text():
    simple, quick = SimpleBPE([]), BPETokenizer.train("", 256)
    ids = simple.encode("🎉é")
    for part in (ids[:3], ids[1:], ids[::-1]):
        assert simple.decode(part) == quick.decode(part)
        assert "\ufffd" in simple.decode(part)


def test_what_simple_bpe_refuses():
    for arguments in (("one string", 300, 2), (["a"], 255, 2), (["a"], 300, 0)):
        with pytest.raises(ValueError, match=r"vocab_size at least 256 and min_count at least 1: got"):
            SimpleBPE.train(arguments[0], arguments[1], min_count=arguments[2])
    with pytest.raises(ValueError, match="half a surrogate pair"):
        SimpleBPE([]).encode("\ud800")
    with pytest.raises(UnknownTokenError, match="0 to 255: got 256"):
        SimpleBPE([]).decode([256])


# --- WordPiece ---


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("name", TEXTS)
def test_simple_wordpiece_is_the_quick_one(name, min_count):
    if name == "nothing":
        simple, quick = (
            SimpleWordPiece.train(TEXTS[name], 20),
            WordPieceTokenizer(SimpleWordPiece.train([], 5).vocabulary),
        )
    else:
        vocab_size = 800 if name == "chinese" else 250
        simple = SimpleWordPiece.train(TEXTS[name], vocab_size, min_count=min_count)
        quick = WordPieceTokenizer.train(TEXTS[name], vocab_size, min_count=min_count, limit_alphabet=10_000)
    assert simple.vocabulary == quick.vocabulary
    for text in (*TEXTS[name], *READ, "a" * 100, "a" * 101, "Ünïcödé [MASK] ΟΔΟΣ \ud800x"):
        ids = simple.encode(text)
        assert ids == quick.encode(text, allowed_special=())
        assert simple.tokens(text) == quick.tokens(text, allowed_special=())
        assert simple.decode(ids) == quick.decode(ids, clean_up=False)


def test_what_simple_wordpiece_refuses():
    with pytest.raises(ValueError, match="list of texts"):
        SimpleWordPiece.train("one string", 300)
    with pytest.raises(ValueError, match="room for 10 characters and special tokens: 9"):
        SimpleWordPiece.train(["abc"], 9)
    assert SimpleWordPiece.train(["abc"], 10).vocab_size == 10
    with pytest.raises(UnknownTokenError, match=r"'\[UNK\]' is not among"):
        SimpleWordPiece(["a"])
    with pytest.raises(UnknownTokenError, match="0 to 0: got 1"):
        SimpleWordPiece(["[UNK]"]).decode([1])


# --- Unigram ---


@pytest.mark.parametrize(
    ("name", "vocab_size"), [("english", 150), ("chinese", 450), ("code", 110), ("numbers", 30), ("runs", 12)]
)
def test_simple_unigram_is_the_quick_one(name, vocab_size):
    # Without line breaks: the first rung takes long over words of a thousand characters.
    texts = [text[:1_000].replace("\n", " ") for text in TEXTS[name]]
    simple = SimpleUnigram.train(texts, vocab_size, max_length=8)
    quick = UnigramTokenizer.train(texts, vocab_size, max_length=8)
    assert simple.vocabulary == quick.vocabulary
    assert simple.scores == pytest.approx(dict(quick.pieces), abs=1e-9)
    assert len(simple.vocabulary) <= vocab_size
    same_scores = UnigramTokenizer(list(simple.scores.items()))
    for text in (*texts, *READ):
        ids = simple.encode(text)
        assert ids == same_scores.encode(text)
        assert simple.decode(ids) == same_scores.decode(ids)
        assert simple.tokens(text) == same_scores.tokens(text)


def test_counts_and_seeds_of_simple_unigram_are_those_of_the_lattice():
    scores = {"a": -2.0, "b": -2.5, "c": -3.0, "ab": -3.5, "bc": -4.0, "abc": -6.0, "aa": -4.0, "ca": -3.25}
    words = {"abcabc": 3, "aabbccaa": 1, "cab": 2, "a" * 60: 1}
    expected: Counter[str] = Counter()
    for word, count in words.items():
        for piece, used in expected_counts(word, scores)[0].items():
            expected[piece] += count * used
    assert unigram.expected_counts(words, scores) == pytest.approx({piece: expected[piece] for piece in scores})
    assert unigram.forward("abc" * 100, scores)[-1] == pytest.approx(unigram.backward("abc" * 100, scores)[0])


def test_simple_unigram_cuts_as_the_quick_one_where_cuts_tie():
    rng = random.Random(1)
    for _ in range(60):
        names = sorted({"".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 12))})
        pieces = [("<unk>", 0.0)] + [(name, -rng.randint(1, 4) / 2 * len(name)) for name in names]
        simple, quick = SimpleUnigram(pieces), UnigramTokenizer(pieces)
        for _ in range(8):
            text = "".join(rng.choices("abcd ", k=rng.randint(0, 14)))
            assert simple.encode(text) == quick.encode(text), (pieces, text)


def test_what_simple_unigram_refuses():
    with pytest.raises(ValueError, match="list of texts"):
        SimpleUnigram.train("one string", 300)
    with pytest.raises(ValueError, match="room for all 4 characters, and one at least: got room for 3"):
        SimpleUnigram.train(["abc"], 4)
    with pytest.raises(ValueError, match="all 0 characters"):
        SimpleUnigram.train([""], 4)
    assert SimpleUnigram.train(["abc"], 5).vocab_size == 5
    with pytest.raises(UnknownTokenError, match="0 to 0: got 1"):
        SimpleUnigram([("<unk>", 0.0)]).decode([1])
    assert split_at_spaces("a b") == ["▁a", "▁b"]
