"""One interface for all tokenizers: the same attributes with the same meaning."""

from __future__ import annotations

import numpy as np
import pytest

from llm_core.text.bpe import SimpleBPE
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.bulk import BulkTokenizer
from llm_core.text.characters import CharacterTokenizer
from llm_core.text.remembered import Remembered
from llm_core.text.tokenizer import Tokenizer, UnknownTokenError, Vocabulary
from llm_core.text.unigram import SimpleUnigram
from llm_core.text.unigram_fast import UnigramTokenizer
from llm_core.text.wordpiece import SimpleWordPiece
from llm_core.text.wordpiece_fast import WordPieceTokenizer
from llm_core.text.words import WordTokenizer

TEXT = "low lower lowest low slow"
TOKENIZERS = {
    "characters": lambda: CharacterTokenizer.train(TEXT),
    "words": lambda: WordTokenizer.train([TEXT]),
    "bpe, simple": lambda: SimpleBPE.train([TEXT], 262),
    "bpe": lambda: BPETokenizer.train([TEXT], 262, special_tokens=["<|end|>"]),
    "bpe, gaps": lambda: BPETokenizer.from_ranks({bytes([b]): b + 9 for b in range(256)}, special_tokens={"<e>": 300}),
    "bulk": lambda: BulkTokenizer(BPETokenizer.train([TEXT], 262, special_tokens=["<|end|>"])),
    "wordpiece, simple": lambda: SimpleWordPiece.train([TEXT], 40),
    "wordpiece": lambda: WordPieceTokenizer.train([TEXT], 40),
    "unigram, simple": lambda: SimpleUnigram.train([TEXT], 14),
    "unigram": lambda: UnigramTokenizer.train([TEXT], 14),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_has_a_vocabulary_of_the_same_kind(name):
    tokenizer = TOKENIZERS[name]()
    vocabulary = tokenizer.vocabulary
    assert isinstance(tokenizer, Tokenizer)
    assert type(vocabulary) is Vocabulary
    assert tokenizer.vocab_size == vocabulary.size == max(vocabulary.ids.values()) + 1
    assert list(vocabulary) == list(vocabulary.ids) == sorted(vocabulary.ids, key=vocabulary.ids.__getitem__)
    assert all(vocabulary[id_] == token and vocabulary.id_of(token) == id_ for token, id_ in vocabulary.ids.items())
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    tokens = vocabulary.tokens_of(ids)
    assert [vocabulary.ids[token] for token in tokens] == ids
    if hasattr(tokenizer, "tokens"):
        assert tokenizer.tokens(TEXT) == tokens
    for id_ in (-1, tokenizer.vocab_size, tokenizer.vocab_size + 5):
        with pytest.raises(UnknownTokenError, match=f"from 0 to {tokenizer.vocab_size - 1}.*: got {id_}"):
            tokenizer.decode([ids[0], id_])


def test_a_vocabulary_with_gaps():
    vocabulary = Vocabulary({"b": 7, "a": 2})
    assert (list(vocabulary), len(vocabulary), vocabulary.size) == (["a", "b"], 2, 8)
    assert "a" in vocabulary
    assert 2 not in vocabulary
    with pytest.raises(UnknownTokenError, match="from 0 to 7, with gaps: got 3"):
        _ = vocabulary[3]
    with pytest.raises(UnknownTokenError, match="'c' is not among the 2 tokens"):
        vocabulary.id_of("c")
    assert Vocabulary(vocabulary) == vocabulary != Vocabulary(["a", "b"])
    assert repr(vocabulary) == "Vocabulary of 2 tokens: 'a': 2, 'b': 7"
    assert repr(Vocabulary("abcde"[i] for i in range(5))).endswith("'d': 3, ...")


def test_ids_are_whole_numbers_of_any_kind():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary[np.int64(1)] == "b"
    assert vocabulary.tokens_of(np.array([1, 0])) == ["b", "a"]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("ab", "list of tokens: got one string, 'ab'"),
        (["a", "b", "a"], "once: got 'a' more than once"),
        ({"a": 1, "b": 1}, "id of its own, 0 or more: got 1 for 'b'"),
        ({"a": -1}, "id of its own, 0 or more: got -1 for 'a'"),
    ],
)
def test_a_vocabulary_that_cannot_be(tokens, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(tokens)


def test_as_many_parts_are_remembered_as_there_is_room_for():
    asked: list[str] = []

    def encode(part: str) -> list[int]:
        asked.append(part)
        return [len(part)]

    ids = Remembered(encode, size=2, longest=3)
    assert [ids[part] for part in ("a", "a", "bb", "a", "long", "long")] == [(1,), (1,), (2,), (1,), (4,), (4,)]
    assert asked == ["a", "bb", "long", "long"]
    assert ids["ccc"] == (3,)  # no room: what was there is forgotten
    assert list(ids) == ["ccc"]


@pytest.mark.parametrize("ids", ["ab", ["a"], [0.5], [None], [[0]]])
def test_what_is_no_id_is_refused_with_the_way_to_one(ids):
    with pytest.raises(ValueError, match=r"ids are whole numbers .*the id of a token is vocabulary\.ids\[token\]"):
        Vocabulary(["a", "b"]).tokens_of(iter(ids))
