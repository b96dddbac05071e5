"""Duplicates and overlap, held to datasketch and to counting; the rules of quality to datatrove's."""

from __future__ import annotations

import datasketch
import numpy as np
import pytest
import torch
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter

from llm_core.data.duplicates import (
    MinHash,
    NearDuplicates,
    exact_key,
    jaccard,
    meeting_probability,
    shingles,
    similarity,
)
from llm_core.data.filters import GopherRules, language
from llm_core.data.overlap import Overlap

TEXT = "the quick brown fox jumps over the lazy dog and runs away from all of the hounds that follow it " * 3
HASHES = MinHash.drawn(256, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_signature_is_that_of_datasketch(n):
    theirs = datasketch.MinHash(permutations=(HASHES.a, HASHES.b), num_perm=256, scheme="legacy")
    for shingle in shingles(TEXT, n):
        theirs.update(shingle.encode())
    np.testing.assert_array_equal(HASHES.signature(shingles(TEXT, n)), theirs.hashvalues)


def test_signatures_agree_in_the_share_that_is_jaccards_index():
    hashes = MinHash.drawn(4096, torch.Generator().manual_seed(1))
    for common in (0, 10, 50, 90):
        a = {f"a{i}" for i in range(100 - common)} | {f"c{i}" for i in range(common)}
        b = {f"b{i}" for i in range(100 - common)} | {f"c{i}" for i in range(common)}
        j = common / (200 - common)
        assert jaccard(a, b) == j
        error = (j * (1 - j) / 4096) ** 0.5
        assert abs(similarity(hashes.signature(a), hashes.signature(b)) - j) <= 4 * error


def test_bands_meet_as_often_as_they_should():
    a, b = {f"{i}" for i in range(80)}, {f"{i}" for i in range(20, 100)}
    n_met = 0
    for seed in range(300):
        hashes = MinHash.drawn(16, torch.Generator().manual_seed(seed))
        equal = (hashes.signature(a) == hashes.signature(b)).reshape(4, 4).all(axis=1).any()
        n_met += bool(equal)
    expected = meeting_probability(60 / 100, 4, 4)
    assert abs(n_met / 300 - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5


def test_the_first_of_several_is_kept():
    found = NearDuplicates(HASHES, n_bands=64, threshold=0.6, n=2)
    assert found.find_or_keep("first", TEXT) is None
    assert found.find_or_keep("another", "nothing in it is the same as in the one before") is None
    assert found.find_or_keep("copy", TEXT + "except for this") == "first"
    assert found.find_or_keep("another copy", "Nothing, in it, is the same as in the one BEFORE!") == "another"
    with pytest.raises(ValueError, match="256 hashes cannot be cut into n_bands=7"):
        NearDuplicates(HASHES, n_bands=7)
    with pytest.raises(ValueError, match="n_hashes must be at least 1"):
        MinHash.drawn(0, torch.Generator())


def test_exact_copies_may_differ_in_case_and_signs():
    assert exact_key("A text, and more.") == exact_key("a TEXT and\nmore")
    assert exact_key("a text") != exact_key("a texts")
    assert shingles("", 3) == {""}
    assert shingles("大江東去", 2) == {"大 江", "江 東", "東 去"}


def test_overlap_counts_the_words_that_stand_in_common_runs():
    exam = Overlap(["one two three four five six"], n=3)
    assert exam.share("zero one two three four nine") == 4 / 6
    assert exam.share("two one three four") == 0
    assert exam.share("") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of France is Paris, and it is on the Seine.", "en"),
        ("Die Hauptstadt von Frankreich ist Paris, und sie liegt an der Seine.", "de"),
        ("La capitale de la France est Paris et elle est sur les rives de la Seine.", "fr"),
        ("La capital de Francia es Paris y está en las orillas del Sena por el norte.", "es"),
        ("法国的首都是巴黎，位于塞纳河畔。", "zh"),
        ("フランスの首都はパリで、セーヌ川にある。", "ja"),
        ("Столица Франции Париж.", "ru"),
        ("1234 5678", None),
        ("", None),
    ],
)
def test_a_language_is_told(text, expected):
    assert language(text) == expected


GOOD = TEXT + "With these, it is long enough to be a text that people have read. " * 2
BAD = ["short", "a " * 99, "#x the and " * 60, "- the and of\n" * 30, "the and of...\n" * 30, "12 34 the and of " * 30,
       "Wörter ohne jedes gewöhnliche englische Wort stehen hier. " * 20, "x" * 2000 + " the and" * 60]  # fmt: skip


@pytest.mark.parametrize("text", [GOOD, *BAD])
def test_gopher_rules_are_those_of_datatrove(text, monkeypatch):
    """With one meaning of "word" for both: what stands between spaces."""
    monkeypatch.setattr(gopher_quality_filter, "split_into_words", lambda text, _: text.split())
    expected = gopher_quality_filter.GopherQualityFilter().filter(Document(text=text, id="0"))
    assert (GopherRules().why_not(text) is None) == (expected is True)
