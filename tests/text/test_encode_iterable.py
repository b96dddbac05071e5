"""Texts that come bit by bit give the ids of the whole, and special tokens that are added later those of tokenizers."""

from __future__ import annotations

import base64
import itertools
import random
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import tiktoken
from corpus import AWKWARD, chinese, code, english, mixed_text
from tokenizers import AddedToken, Tokenizer

from llm_core.text import normalisers, pretokenisers, streaming
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.characters import CharacterTokenizer
from llm_core.text.framing import Framing, Truncation
from llm_core.text.precompiled import Nmt, Precompiled
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split
from llm_core.text.special import AddedToken as OurToken
from llm_core.text.unigram_fast import UnigramTokenizer
from llm_core.text.wordpiece import SPECIAL as BERT_SPECIAL
from llm_core.text.wordpiece_fast import WordPieceTokenizer
from llm_core.text.words import WordTokenizer

SPECIAL = ["<|end|>", "<|end|><|end|>", " <a b>", "結 束", "word\n"]
SPLITS = {
    "gpt2": GPT2,
    "digits": DIGITS_THEN_GPT2,
    "cl100k": CL100K,
    "o200k": O200K,
    "whitespace": WHITESPACE,
    "whole": WHOLE,
    "vowels": Split("[aeiou]+"),
}
# What a pattern looks at beyond the character at hand: apostrophes, runs of spaces and of line breaks, marks.
LETTERS = " \n\r\t'’ſsStTlLeErRéÉA1٣²五中!.-—/\u00a0\u3000\u0301🎉\u200d"


def bits(text: str, draw: random.Random, longest: int) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = draw.randrange(longest + 1)  # also empty ones
        yield text[at : at + size]
        at += size


@pytest.fixture(scope="module")
def learned() -> BPETokenizer:
    texts = [english()[:20_000], chinese()[:3000], code()[:20_000]]
    return BPETokenizer.train(texts, 1500, special_tokens=SPECIAL[:2])


@pytest.mark.parametrize("name", SPLITS)
def test_pieces_are_those_of_the_whole(name, monkeypatch):
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    split, draw, n_parts = SPLITS[name], random.Random(0), 0
    cuts = streaming.Cuts(streaming.places_of(split))
    for _ in range(8000):
        text = "".join(draw.choices(LETTERS, k=draw.randrange(14)))
        parts = list(cuts.parts(bits(text, draw, 3)))
        n_parts += len(parts)
        assert [piece for part in parts for piece in split(part)] == split(text), text
    assert n_parts > 10_000 or name in ("whole", "vowels")


@pytest.mark.parametrize("name", SPLITS)
def test_bits_give_the_ids_of_the_whole(name, learned, monkeypatch):
    # A cut wherever there may be one: as if a text of a few characters were long.
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    tokenizer = BPETokenizer(
        learned.vocabulary, learned.merges, split=SPLITS[name], special_tokens=SPECIAL[:2]
    ).with_special_tokens(SPECIAL)
    draw = random.Random(0)
    texts = ["".join(draw.choices(LETTERS, k=draw.randrange(14))) for _ in range(300)]
    texts += ["".join(draw.choices([*SPECIAL, " ", "a", "<|end", "|>", "\n", "結", "'"], k=6)) for _ in range(300)]
    for text in [*texts, *(text for text in AWKWARD if len(text) < 700), mixed_text()[:3000]]:
        ids = tokenizer.encode(text)
        assert list(tokenizer.encode_iterable(bits(text, draw, 3))) == ids, text
        assert list(tokenizer.encode_iterable(text.splitlines(keepends=True))) == ids, text
        plain = tokenizer.encode(text, allowed_special=())
        assert list(tokenizer.encode_iterable(bits(text, draw, 9), allowed_special=())) == plain, text


def test_an_open_file_gives_the_ids_of_tiktoken(tmp_path):
    text = mixed_text()[:60_000]
    learned = BPETokenizer.train(text, 1500)
    ranks = {learned.decode_bytes([id_]): id_ for id_ in range(1500)}
    theirs = tiktoken.Encoding("ours", pat_str=str(GPT2.pattern), mergeable_ranks=ranks, special_tokens={"<|e|>": 1500})
    (tmp_path / "text").write_text(text, encoding="utf-8", newline="")
    with (tmp_path / "text").open(encoding="utf-8", newline="") as file:
        ids = list(BPETokenizer.from_ranks(ranks, special_tokens={"<|e|>": 1500}).encode_iterable(file))
    assert ids == theirs.encode(text, allowed_special="all")


@pytest.mark.parametrize("name", ["gpt2", "digits", "cl100k", "o200k", "whitespace"])
@pytest.mark.parametrize("line", ["the word, and another one\n", "黄河之水天上来，奔流到海不复回。"])
def test_a_text_without_end_is_read_as_far_as_it_is_needed(name, line, learned):
    if name == "whitespace" and " " not in line:
        line += "\u3000"
    tokenizer = BPETokenizer(learned.vocabulary, learned.merges, split=SPLITS[name])
    longest = 0
    for text in streaming.Cuts(streaming.places_of(tokenizer.split)).parts(itertools.repeat(line, 5000)):
        longest = max(longest, len(text))
    assert longest <= streaming.ENOUGH + 2 * len(line)
    read = itertools.count()
    ids = tokenizer.encode_iterable(line for _ in read)
    first = list(itertools.islice(ids, 50))
    assert first == tokenizer.encode(line * 50)[:50]
    assert next(read) * len(line) <= streaming.ENOUGH + 2 * len(line)


def test_memory_does_not_grow_with_the_text(learned):
    def peak(n: int) -> int:
        for _ in learned.encode_iterable(itertools.repeat(english()[:1000], 20)):
            pass
        tracemalloc.start()
        for _ in learned.encode_iterable(itertools.repeat(english()[:1000], n)):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(400) < 1.2 * peak(40) < 1_000_000


def test_the_work_does_not_grow_where_there_is_no_cut(monkeypatch):
    # One character at a time, and no place to cut: looked through at twice the length, and again at twice that.
    monkeypatch.setattr(streaming, "ENOUGH", 100)
    looked = []
    last = streaming.Cuts.last
    monkeypatch.setattr(streaming.Cuts, "last", lambda cuts, text: looked.append(len(text)) or last(cuts, text))
    list(streaming.Cuts(streaming.places_of(GPT2)).parts("a" * 5000))
    assert 0 < sum(looked) <= 2 * 5000


def test_one_string_and_an_unknown_special_token_are_refused_at_once(learned):
    with pytest.raises(ValueError, match="list of texts or an open file"):
        learned.encode_iterable("text")
    with pytest.raises(ValueError, match="no special token"):
        learned.encode_iterable(["text"], allowed_special=["<x>"])
    assert list(learned.encode_iterable([])) == list(learned.encode_iterable(["", ""])) == []


def test_words_and_characters_too(monkeypatch):
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    draw = random.Random(0)
    text = english()[:2000]
    for tokenizer in (WordTokenizer.train([text[:1000]]), CharacterTokenizer.train(text)):
        assert list(tokenizer.encode_iterable(bits(text, draw, 5))) == tokenizer.encode(text)


# --- WordPiece and Unigram ---

MARKS = ["[MASK]", "[MASK][MASK]", "word", " <a>"]
# As RoBERTa's and XLM-RoBERTa's mask: it takes the spaces before it with it.
TAKES_SPACES = OurToken("<m>", lstrip=True)
SPACED = normalisers.Replace({"Regex": " {2,}"}, "▁")
OF_ONE_SPACE = normalisers.InTurn((Nmt(), normalisers.NFKC(), normalisers.Strip(False, True), SPACED))
WORDS_THEN_MARKS = pretokenisers.InTurn((pretokenisers.WhitespaceSplit(), pretokenisers.Metaspace("▁")))
UNIGRAMS = {
    "always": {},
    "first": {"split": pretokenisers.Metaspace("▁", "first")},
    "never": {"split": pretokenisers.Metaspace("▁", "never")},
    "words, then marks": {"split": WORDS_THEN_MARKS},
    "nfkc": {"normaliser": normalisers.NFKC()},
    "as T5": {"normaliser": OF_ONE_SPACE},
    "as XLM-RoBERTa": {"normaliser": normalisers.NFC(), "split": WORDS_THEN_MARKS},
    "whole": {"split": WHOLE},
    "first word": {
        "split": pretokenisers.InTurn((pretokenisers.WhitespaceSplit(), pretokenisers.Metaspace("▁", "first")))
    },
    "without spaces": {"normaliser": normalisers.Replace({"Regex": "\\s+"}, "")},
}
WORDPIECES = {
    "bert": {},
    "cased": {"lowercase": False, "strip_accents": True, "split_cjk": False},
    "uncleaned": {"clean_text": False},
}
NOT_CUT = {"whole", "first word", "without spaces"}  # but around added tokens


@pytest.fixture(scope="module")
def others() -> dict[str, WordPieceTokenizer | UnigramTokenizer]:
    texts = [english()[:10_000], chinese()[:300], code()[:4000]]
    words = WordPieceTokenizer.train(texts, 900)
    pieces = UnigramTokenizer.train(texts, 600, seeds=3000)
    found = {}
    for name, options in WORDPIECES.items():
        special = [*BERT_SPECIAL, TAKES_SPACES, *MARKS]
        found[name] = WordPieceTokenizer(
            words.vocabulary,
            more_tokens=[name for name in ("<m>", *MARKS) if name not in words.vocabulary],
            special_tokens=special,
            **options,
        )
    for name, options in UNIGRAMS.items():
        found[name] = UnigramTokenizer(
            pieces.pieces,
            special_tokens=["<unk>", TAKES_SPACES],
            added_tokens=MARKS,
            more_tokens=["<m>", *MARKS],
            **options,
        )
    return found


@pytest.mark.parametrize("name", [*WORDPIECES, *UNIGRAMS])
def test_bits_give_other_tokenizers_the_ids_of_the_package_tokenizers(name, others, monkeypatch):
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    ours, draw, n_parts = others[name], random.Random(0), 0
    last = streaming.Cuts.last
    theirs = None if name == "first word" else Tokenizer.from_str(ours.to_json())  # which has another "first"

    def counted(cuts, text):
        nonlocal n_parts
        cut = last(cuts, text)
        n_parts += cut > 0
        return cut

    monkeypatch.setattr(streaming.Cuts, "last", counted)
    parts = [
        *MARKS,
        "<m>",
        " ",
        "  ",
        "a",
        "the",
        "of",
        "[MAS",
        "K]",
        "\n",
        "結",
        "'",
        "wor",
        "d",
        "é",
        "\u0301",
        "▁",
        ".",
        "ﬁ",
    ]
    texts = ["".join(draw.choices(LETTERS, k=draw.randrange(14))) for _ in range(100)]
    texts += ["".join(draw.choices(parts, k=draw.randrange(12))) for _ in range(250)]
    plain = 0
    for text in [*texts, *(text for text in AWKWARD if len(text) < 200), mixed_text()[:1500]]:
        ids = ours.encode(text)
        if theirs is not None:
            assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert list(ours.encode_iterable(bits(text, draw, 3))) == ids, text
        plain += not any(mark in text for mark in [*MARKS, "<m>"])
        free = ours.encode(text, allowed_special=())
        assert list(ours.encode_iterable(bits(text, draw, 9), allowed_special=())) == free, text
    assert n_parts > 80
    assert plain > 50


def assert_bits_are_those_of_tokenizers(ours: Any, texts: list[str]) -> None:
    theirs, draw = Tokenizer.from_str(ours.to_json()), random.Random(0)
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert list(ours.encode_iterable(bits(text, draw, 3))) == ids, text


@pytest.mark.parametrize("flag", ["single_word", "rstrip", "normalized"])
@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_token_that_asks_for_what_follows_is_the_one_of_tokenizers(kind, flag, learned, others, monkeypatch):
    # The long one is found at once: with it, less of a text is decided than the other alone would need.
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    name, long = "<m> x" if flag == "normalized" else "<m>", "[MASK][MASK]"
    token = OurToken(name, **{flag: True})
    if kind == "bpe":
        ids = learned.vocabulary.ids | {name: 1500, long: 1501}
        ours = BPETokenizer(ids, learned.merges, special_tokens=[token, long])
    elif kind == "unigram":
        pieces, special = others["always"].pieces, ["<unk>", token, long]
        ours = UnigramTokenizer(pieces, special_tokens=special, more_tokens=[name, long])
    else:
        special = [*BERT_SPECIAL, token, long]
        if flag == "normalized":  # which WordPiece refuses by name, and so has nothing to cut
            with pytest.raises(ValueError, match="normalized must be false: '<m> x'"):
                WordPieceTokenizer([*others["bert"].vocabulary, name], special_tokens=special)
            return
        ours = WordPieceTokenizer(others["bert"].vocabulary, special_tokens=special)
    draw = random.Random(1)
    parts = ["<m>", "<m> x", " ", " " * 12, "a", "x", "the", "\n", ".", long]
    assert_bits_are_those_of_tokenizers(ours, ["".join(draw.choices(parts, k=draw.randrange(12))) for _ in range(200)])


def table_of(character: str, replacement: str) -> str:
    """A precompiled_charsmap with one entry, as a double array: each byte of the character leads 256 units on."""
    key = character.encode()
    units = [0] * (256 * (len(key) + 2))
    units[0] = 256 << 10
    for i, byte in enumerate(key):
        place, last = 256 * (i + 1) ^ byte, i == len(key) - 1
        child = 256 * (i + 2)
        units[place] = byte | (place ^ child) << 10 | last << 8
        if last:
            units[child] = 1 << 31
    rows = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(rows)) + rows + replacement.encode() + b"\0").decode()


# U+0D4E is a letter that goes into one grapheme with the space after it, and a table may replace the grapheme.
ACROSS_SPACES = {
    "table": (Precompiled(table_of("\u0d4e", "x")), {}),
    "no space in the table": (Precompiled(table_of(" ", "")), {}),
    "a space for more": (normalisers.Replace({"String": "e t"}, " "), {}),
    "word and word": (normalisers.Replace({"Regex": "e t"}, "x"), {}),
    "words in turn": (normalisers.InTurn((normalisers.NFC(), normalisers.Replace({"String": "e t"}, "x"))), {}),
    "beginning": (normalisers.Prepend("▁"), {"split": pretokenisers.Metaspace("▁", "never")}),
}


@pytest.mark.parametrize("name", ACROSS_SPACES)
def test_a_normaliser_that_looks_across_a_space_gives_the_ids_of_tokenizers(name, others, monkeypatch):
    monkeypatch.setattr(streaming, "ENOUGH", 1)
    normaliser, options = ACROSS_SPACES[name]
    ours = UnigramTokenizer(others["always"].pieces, normaliser=normaliser, **options)
    draw = random.Random(1)
    parts = [" ", " ", "e", "t", "the", "\u0d4e", "\u0d4e t", "a", "."]
    assert_bits_are_those_of_tokenizers(ours, ["".join(draw.choices(parts, k=draw.randrange(12))) for _ in range(200)])


@pytest.mark.parametrize("name", [*WORDPIECES, *UNIGRAMS])
def test_other_tokenizers_read_a_text_without_end_as_far_as_it_is_needed(name, others):
    ours, line = others[name], "the word, and another one\n"
    read = itertools.count()
    if name in NOT_CUT:
        line += " <a>"
    ids = ours.encode_iterable(line for _ in read)
    assert list(itertools.islice(ids, 50)) == ours.encode(line * 50)[:50]
    assert next(read) * len(line) <= streaming.ENOUGH + 2 * len(line)
    if name in NOT_CUT:
        assert len(list(ours.encode_iterable(["the word " * 3000]))) == len(ours.encode("the word " * 3000))


def test_a_longest_length_holds_for_the_whole_text(others, learned):
    for ours in (others["bert"], others["always"], learned):
        short = type(ours).from_json(ours.to_json())
        short.framing = Framing(truncation=Truncation(5))
        text = "the of a the of a the of a " * 700
        assert list(short.encode_iterable([text])) == short.encode(text) == ours.encode(text)[:5]


@pytest.mark.parametrize("name", ["bert", "always"])
def test_other_tokenizers_refuse_one_string_and_an_unknown_special_token_at_once(name, others):
    with pytest.raises(ValueError, match="list of texts or an open file"):
        others[name].encode_iterable("text")
    with pytest.raises(ValueError, match="no special token"):
        others[name].encode_iterable(["text"], allowed_special=["<x>"])
    assert list(others[name].encode_iterable(["", ""])) == []


@pytest.mark.parametrize("name", ["bert", "cased", "always", "as XLM-RoBERTa"])
@pytest.mark.parametrize(
    "added", [["<a>"], ["<a>", "<b>", "<a>"], ["[MASK]", "word", "<c>"], ["the", "new", "##new"], ["x y", "結束"], []]
)
def test_others_special_tokens_added_later_have_the_ids_of_tokenizers(added, name, others):
    before = others[name]
    theirs = Tokenizer.from_str(before.to_json())
    theirs.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    ours = before.with_special_tokens(added)
    assert ours.vocabulary.ids == theirs.get_vocab(with_added_tokens=True)
    assert set(ours.special_tokens) == {*before.special_tokens, *added}
    assert ours.vocab_size - before.vocab_size == len(ours.vocabulary) - len(before.vocabulary)
    again = type(ours).from_json(ours.to_json())
    assert (again.vocabulary, again.special_tokens) == (ours.vocabulary, ours.special_tokens)
    draw = random.Random(0)
    parts = [*added, *MARKS, "<m>", " ", "a", "The", "NEW", "newer", "other", "<", ">", "x", "y", "\n", "束", "##"]
    for _ in range(200):
        text = "".join(draw.choices(parts, k=draw.randrange(8)))
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids == again.encode(text), text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text
        assert list(ours.encode_iterable(bits(text, draw, 3))) == ids
    assert ours.with_special_tokens([]).vocabulary == ours.vocabulary


@pytest.mark.parametrize("name", ["bert", "always"])
def test_no_empty_token_can_be_added(name, others):
    with pytest.raises(ValueError, match="a special token cannot be empty"):
        others[name].with_special_tokens([""])
    with pytest.raises(ValueError, match="list of special tokens: got one string"):
        others[name].with_special_tokens("<a>")


def test_a_token_that_was_added_is_no_piece_of_a_word(others):
    # In lower case "NEW" is "new", which is a special token and no piece.
    ours = others["bert"].with_special_tokens(["qzx", "##qzx"])
    theirs = Tokenizer.from_str(ours.to_json())
    for text in ("qzx", "QZX", "aQZX", "qzxa", "##QZX"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.vocabulary.ids["qzx"] not in ours.encode("qzx", allowed_special=())


# --- special tokens that are added later ---


@pytest.mark.parametrize(
    "added",
    [
        ["<a>"],
        ["<a>", "<b>", "<a>"],  # twice
        ["<|end|>", "<c>"],  # one is special already
        ["the", "<d>"],  # one is an ordinary token
        ["<e", "<e>", "<e>x", "<e>xy"],  # the longest that fits
        ["x y", "結束", "\n\n"],
        [],
    ],
)
def test_special_tokens_added_later_have_the_ids_of_tokenizers(added, learned):
    theirs = Tokenizer.from_str(learned.to_json())
    theirs.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    before = learned.vocabulary.ids.copy()
    ours = learned.with_special_tokens(added)
    assert ours.vocabulary.ids == theirs.get_vocab(with_added_tokens=True)
    assert set(ours.special_tokens) == {*learned.special_tokens, *added}
    assert learned.vocabulary.ids == before
    again = BPETokenizer.from_json(ours.to_json())
    assert (again.vocabulary, again.special_tokens) == (ours.vocabulary, ours.special_tokens)
    draw = random.Random(0)
    parts = [*added, *SPECIAL[:2], " ", "a", "the", "other", "<e", ">", "x", "y", "\n", "束"]
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randrange(8)))
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids, text
        assert ours.decode(ids) == text == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
        if not any(name in text for name in added):
            assert ids == learned.encode(text)


def test_new_ids_come_after_a_gap():
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 300}
    tokenizer = BPETokenizer.from_ranks(ranks, special_tokens={"<|x|>": 999}).with_special_tokens(["<y>", "<z>"])
    assert tokenizer.encode("<z>ab<|x|><y>") == [1001, 300, 999, 1000]
    assert tokenizer.ignore_merges


@pytest.mark.parametrize("name", ["", "a", "é©"])
def test_a_special_token_that_could_be_bytes_cannot_be_added(name, learned):
    with pytest.raises(ValueError, match="could be taken for bytes"):
        learned.with_special_tokens([name])
    with pytest.raises(ValueError, match="list of special tokens: got one string"):
        learned.with_special_tokens("<a>")


# --- tokens that are added and not special ---


def test_added_tokens_are_one_token_and_text(learned):
    names = ["<think>", "    ", "<think>x"]
    ids = learned.vocabulary.ids | {name: 1500 + i for i, name in enumerate(names)}
    ours = BPETokenizer(ids, learned.merges, special_tokens=SPECIAL[:2], added_tokens=names)
    theirs = Tokenizer.from_str(learned.to_json())
    theirs.add_tokens([AddedToken(name, normalized=False) for name in names])
    assert theirs.get_vocab(with_added_tokens=True) == ours.vocabulary.ids
    same = Tokenizer.from_str(ours.to_json())
    for text in ("a<think>b", "a    b     c", "<think>x<|end|>    \n", "<thin"):
        found = ours.encode(text)
        assert found == theirs.encode(text).ids == same.encode(text).ids
        assert ours.decode(found, skip_special_tokens=True) == theirs.decode(found) == same.decode(found)
    assert ours.encode("<think>", allowed_special=()) == [1500]
    assert ours.encode("<|end|>", allowed_special=()) != ours.encode("<|end|>")
    assert list(ours.encode_iterable(["a<th", "ink>", "x   ", "  b"])) == ours.encode("a<think>x     b")
    assert "<think>" not in ours.with_special_tokens(["<think>"]).added_tokens
    with pytest.raises(ValueError, match="'<think>' cannot be both"):
        BPETokenizer(ids, learned.merges, special_tokens=["<think>"], added_tokens=names)
