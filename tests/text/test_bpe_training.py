"""Learning merges: how much work it is, and which of equally frequent pairs comes first."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from corpus import chinese, english
from test_bpe import SPLITS, library, merges_of

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.bpe_training import _Row, greatest_bytes
from llm_core.text.byte_alphabet import in_alphabet
from llm_core.text.pretokenize import GPT2, WHOLE

DRAW = random.Random(0)
LONG_PIECES: dict[str, Callable[[int], str]] = {
    "a run": lambda n: "a" * n,
    "one pair": lambda n: "ab" * (n // 2),
    "genome": lambda n: "".join(DRAW.choices("ACGT", k=n)),
    "base64": lambda n: base64.b64encode(DRAW.randbytes(n))[:n].decode(),
    "chinese": lambda n: "".join(c for c in chinese() if c.isalpha())[:n],
}


@pytest.fixture
def visited(monkeypatch) -> list[int]:
    """How many places each merge looked at."""
    counts: list[int] = []
    merge = _Row.merge
    monkeypatch.setattr(_Row, "merge", lambda row, pair, c, at: counts.append(len(at)) or merge(row, pair, c, at))
    return counts


@pytest.mark.parametrize("kind", LONG_PIECES)
def test_the_work_is_in_proportion_to_the_length_of_a_piece(kind, visited):
    # A pair is looked at where it stands. n bytes have n pairs, and a merge ends one and makes two at most, n times.
    for n in (2_000, 20_000):
        visited.clear()
        text = LONG_PIECES[kind](n)
        tokenizer = BPETokenizer.train(text, 1000, split=WHOLE)
        assert len(visited) == len(tokenizer.merges) > 8
        assert sum(visited) <= 3 * len(text.encode())


@pytest.mark.parametrize("kind", LONG_PIECES)
def test_one_long_piece_gives_the_merges_of_tokenizers(kind):
    text = LONG_PIECES[kind](8_000)
    theirs = library([text], 600, SPLITS["whole"][1])
    ours = BPETokenizer.train(text, 600, split=WHOLE)
    assert ours.merges == merges_of(theirs)
    assert ours.vocabulary.ids == theirs.get_vocab()


def naive(text: str, n_merges: int) -> list[tuple[bytes, bytes]]:
    """Counting all pairs anew; of the most frequent the one with the greatest bytes."""
    words = Counter(tuple(bytes([byte]) for byte in piece.encode()) for piece in GPT2(text))
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(n_merges):
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        after: Counter[tuple[bytes, ...]] = Counter()
        for word, times in words.items():
            merged: list[bytes] = []
            i = 0
            while i < len(word):
                width = 2 if word[i : i + 2] == best else 1
                merged.append(b"".join(word[i : i + width]))
                i += width
            after[tuple(merged)] += times
        words = after
    return merges


@pytest.mark.parametrize("text", [english()[:4000], chinese()[:600], "ab ba aab bba " * 3 + "xyz zyx \0é\0é"])
def test_ties_may_go_to_the_greatest_bytes(text):
    tokenizer = BPETokenizer.train(text, 256 + 400, min_count=1, ties=greatest_bytes)
    expected = naive(text, len(tokenizer.merges))
    assert tokenizer.merges == [(in_alphabet(left), in_alphabet(right)) for left, right in expected]
    assert tokenizer.merges != BPETokenizer.train(text, 256 + 400, min_count=1).merges
    assert tokenizer.decode(tokenizer.encode(text)) == text
