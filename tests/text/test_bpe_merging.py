"""Characters may be merged first: the ids are those of the package tokenizers, which merges bytes."""

from __future__ import annotations

import random

import pytest
from corpus import AWKWARD, chinese, english
from tokenizers import Tokenizer, models, pre_tokenizers

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.pretokenize import WHOLE
from llm_core.text.tokenizer import UnknownTokenError

# Characters of one to four bytes, most of which end in the same byte and begin in one of a few: the most frequent pair
# is then the end of one and the beginning of the next.
SHARED = "a é×Ω一\U00010000\U00010040" + "".join(
    chr(first << 12 | middle << 6) for first in (2, 4, 5) for middle in range(9)
)


def theirs(ours: BPETokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ours.vocabulary.ids, ours.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def vocabulary(draw: random.Random, shuffled: bool) -> BPETokenizer:
    """Learned from noise, so that many tokens begin or end within a character; shuffled, no merge waits for another."""
    text = "".join(draw.choices(draw.sample(SHARED, draw.randrange(3, len(SHARED))), k=400))
    learned = BPETokenizer.train([text], 256 + draw.randrange(1, 120), split=WHOLE)
    merges = draw.sample(learned.merges, len(learned.merges)) if shuffled else learned.merges
    return BPETokenizer(learned.vocabulary, merges, split=WHOLE)


@pytest.mark.parametrize("shuffled", [False, True])
def test_ids_are_those_of_bytes_merged_by_rank(shuffled):
    draw, first, bytewise = random.Random(0), 0, 0
    for _ in range(40):
        ours = vocabulary(draw, shuffled)
        their = theirs(ours)
        for _ in range(60):
            text = "".join(draw.choices(SHARED, k=draw.randrange(1, 9)))
            assert ours.encode(text) == their.encode(text).ids, text
            if not text.isascii():
                is_first = ours._characters_first.ids(text) is not None
                first += is_first
                bytewise += not is_first
    assert bytewise > 300
    assert first > 300 or shuffled, (first, bytewise)


def test_ids_of_real_text_are_those_of_the_package_tokenizers():
    ours = BPETokenizer.train([chinese()[:30_000], english()[:30_000]], 4000)
    their = theirs(ours)
    their.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [chinese()[:40_000], *AWKWARD]:
        assert ours.encode(text) == their.encode(text).ids, text[:50]
    pieces = [piece for piece in set(ours.split(chinese()[:40_000])) if not piece.isascii()]
    bytewise = [piece for piece in pieces if ours._characters_first.ids(piece) is None]
    assert 0 < len(bytewise) < len(pieces) / 10  # few pieces need the long way


def test_a_vocabulary_without_some_byte_says_so_when_a_text_needs_it():
    full = BPETokenizer.train("é一é一", 258, split=WHOLE, min_count=1)
    ids = {token: id_ for token, id_ in full.vocabulary.ids.items() if token != "Ħ"}  # the byte 0x8D
    merges = [pair for pair in full.merges if "Ħ" not in "".join(pair)]
    ours = BPETokenizer(ids, merges, split=WHOLE)
    missing = next(byte for byte in range(256) if ours._byte_ids[byte] < 0)
    character = bytes([0xE4, 0xB8, missing]).decode()
    assert ours.encode("é一") == full.encode("é一")
    with pytest.raises(UnknownTokenError, match=f"the byte 0x{missing:02X} of '{character}'"):
        ours.encode(f"é{character}")
