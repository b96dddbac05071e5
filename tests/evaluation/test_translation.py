"""BLEU against sacrebleu; sacrebleu's own scores as sacrebleu gives them."""

from __future__ import annotations

import importlib
import math
import random
import sys

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from llm_core.evaluation.libraries import MissingLibrary
from llm_core.evaluation.translation import bleu, brevity_penalty, n_grams, sacre_bleu, sacre_chrf


def draw_corpus(n: int, references: int, seed: int, longest: int = 12):
    """Translations that share words with their references; some are empty, some have fewer references."""
    rng = random.Random(seed)
    words = [*"abcdefg", "die", "Katze."]
    pairs = []
    for _ in range(n):
        first = rng.choices(words, k=rng.randint(1, longest))
        others = [rng.choices(words, k=rng.randint(1, longest)) for _ in range(rng.randint(0, references - 1))]
        prediction = [word if rng.random() < 0.8 else rng.choice(words) for word in first if rng.random() < 0.9]
        prediction += rng.choices(words, k=rng.randint(0, 1))
        pairs.append((prediction, [first, *others]))
    return pairs


@pytest.mark.parametrize("max_n", [1, 4])
@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize(("n", "longest"), [(1, 12), (3, 4), (40, 12)])
def test_bleu_is_that_of_sacrebleu(n, longest, references, max_n):
    seen = set()
    for seed in range(25):
        pairs = draw_corpus(n, references, seed, longest)
        ours = bleu([p for p, _ in pairs], [r for _, r in pairs], max_n=max_n)
        streams = [
            [" ".join(r[i]) if i < len(r) else None for _, r in pairs] for i in range(max(len(r) for _, r in pairs))
        ]
        theirs = BLEU(tokenize="none", smooth_method="none", max_ngram_order=max_n, force=True).corpus_score(
            [" ".join(p) for p, _ in pairs], streams
        )
        assert ours.score == pytest.approx(theirs.score)
        assert [100 * p for p in ours.precisions] == pytest.approx(theirs.precisions)
        assert ours.brevity_penalty == pytest.approx(theirs.bp)
        assert (ours.length, ours.reference_length) == (theirs.sys_len, theirs.ref_len)
        seen.add(ours.brevity_penalty < 1)
    assert seen == {True, False}


def test_the_papers_example():
    """Papineni et al. 2002, section 2.1: "the" seven times has a clipped precision of 2 / 7."""
    references = [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    assert bleu([["the"] * 7], [references], max_n=1).precisions == (2 / 7,)
    assert bleu([references[0]], [references]).score == pytest.approx(100)


def test_of_two_references_equally_close_the_shorter_counts():
    result = bleu([["a"] * 4], [[["a"] * 6, ["a"] * 2]], max_n=1)
    assert result.reference_length == 2
    assert result.brevity_penalty == 1


def test_an_empty_translation_scores_nothing():
    result = bleu([[]], [[["a", "b"]]])
    assert (result.score, result.brevity_penalty, result.precisions) == (0, 0, (0, 0, 0, 0))
    assert brevity_penalty(0, 0) == 1
    assert brevity_penalty(5, 10) == pytest.approx(math.exp(-1))
    assert n_grams(["a"], 2) == {}


PREDICTIONS = ["The cat sat on the mat, didn't it?", "A dog barks.", "Wärme"]
REFERENCES = ["The cat is sitting on the mat, isn't it?", "A dog is barking.", "Warm"]


def test_sacre_bleu_is_sacrebleu_with_its_signature():
    result = sacre_bleu(PREDICTIONS, REFERENCES)
    metric = BLEU()
    assert result.score == metric.corpus_score(PREDICTIONS, [REFERENCES]).score
    assert result.signature == str(metric.get_signature())
    assert result.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def test_options_are_in_the_score_and_in_the_signature():
    result = sacre_bleu(PREDICTIONS, REFERENCES, tokenize="char", lowercase=True)
    metric = BLEU(tokenize="char", lowercase=True)
    assert result.score == metric.corpus_score(PREDICTIONS, [REFERENCES]).score
    assert "tok:char" in result.signature
    assert "case:lc" in result.signature


def test_sacre_chrf_is_sacrebleu_with_its_signature():
    for options in ({}, {"word_order": 2}):
        result = sacre_chrf(PREDICTIONS, REFERENCES, **options)
        metric = CHRF(**options)
        assert result.score == metric.corpus_score(PREDICTIONS, [REFERENCES]).score
        assert result.signature == str(metric.get_signature())
        assert f"nw:{options.get('word_order', 0)}" in result.signature


@pytest.mark.parametrize(("score", "metric"), [(sacre_bleu, BLEU), (sacre_chrf, CHRF)])
def test_sentences_may_have_unequal_numbers_of_references(score, metric):
    references = [REFERENCES[:1], [REFERENCES[1], "A dog barks loudly."], ["Hitze", "Wärme", "Glut"]]
    streams = [
        [REFERENCES[0], REFERENCES[1], "Hitze"],
        [None, "A dog barks loudly.", "Wärme"],
        [None, None, "Glut"],
    ]
    result = score(PREDICTIONS, references)
    assert result.score == metric().corpus_score(PREDICTIONS, streams).score
    assert "nrefs:var" in result.signature
    assert score(PREDICTIONS, [[r] for r in REFERENCES]) == score(PREDICTIONS, REFERENCES)


@pytest.mark.parametrize("score", [bleu, sacre_bleu, sacre_chrf])
def test_translations_need_references(score):
    cut = (lambda text: text.split()) if score is bleu else (lambda text: text)
    with pytest.raises(ValueError, match="2 translations and 1 entries"):
        score([cut("a"), cut("b")], [[cut("a")]])
    with pytest.raises(ValueError, match="got none"):
        score([], [])
    with pytest.raises(ValueError, match=r"there is none for \[1\]"):
        score([cut("a"), cut("b")], [[cut("a")], []])
    with pytest.raises(ValueError, match="got the string 'ab'"):
        score("ab", [[cut("a")], [cut("b")]])


def test_n_grams_have_words():
    with pytest.raises(ValueError, match="max_n=0"):
        bleu([["a"]], [[["a"]]], max_n=0)


@pytest.mark.parametrize("score", [sacre_bleu, sacre_chrf])
def test_without_sacrebleu_the_error_says_how_to_get_it(score, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # so that importing it fails
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    for module in ("libraries", "translation"):  # nothing of it is needed for anything else
        assert importlib.import_module(f"llm_core.evaluation.{module}")
    with pytest.raises(MissingLibrary, match=r'sacrebleu: run `pip install "llm-core\[metrics\]"`') as error:
        score(PREDICTIONS, REFERENCES)
    assert isinstance(error.value, ImportError)
    assert bleu([["a"]], [[["a"]]], max_n=1).score == 100
