"""Bulk work gives the ids of the tokenizer that was written to be read."""

from __future__ import annotations

import sys

import pytest
from corpus import AWKWARD, mixed_text

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.bulk import BulkTokenizer
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2
from llm_core.text.tokenizer import Tokenizer, UnknownTokenError

TEXTS = [*AWKWARD, *mixed_text()[:60_000].splitlines(keepends=True), "<|endoftext|>a<|endoftext|>"]


@pytest.fixture(scope="module", params=[GPT2, CL100K, DIGITS_THEN_GPT2], ids=["gpt2", "cl100k", "digits"])
def tokenizer(request):
    return BPETokenizer.train(mixed_text()[:60_000], 800, split=request.param, special_tokens=["<|endoftext|>"])


def test_bulk_gives_the_same_ids_and_the_same_text(tokenizer):
    bulk = BulkTokenizer(tokenizer)
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert bulk.encode_batch(TEXTS) == ids
    assert [bulk.encode(text) for text in TEXTS[:30]] == ids[:30]
    assert [bulk.decode(some) for some in ids] == TEXTS
    assert bulk.vocab_size == tokenizer.vocab_size == 800
    assert bulk.encode_batch([]) == []
    assert bulk.decode(iter(ids[-1])) == TEXTS[-1]


def test_it_is_a_tokenizer(tokenizer):
    assert isinstance(BulkTokenizer(tokenizer), Tokenizer)


def test_an_unknown_id_is_named():
    # The library would leave it out.
    bulk = BulkTokenizer(BPETokenizer.from_ranks({bytes([b]): b for b in range(256)}, special_tokens={"<x>": 300}))
    assert bulk.vocab_size == 301
    for id_ in (-1, 299, 301):
        with pytest.raises(UnknownTokenError, match=f"0 to 300, with gaps: got {id_}"):
            bulk.decode([65, id_])


def test_without_the_library_the_error_says_what_to_do(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"run `pip install tokenizers`"):
        BulkTokenizer(tokenizer)
