"""Translation: how many of a translation's pieces are in a human's?

    clipped precision   p_n = n-grams that are in the reference too / n-grams of the translation
                        ("the the the" has one hit if the reference has one "the")
    brevity penalty     BP = exp(1 - reference length / translation length) if the translation is shorter, else 1
    BLEU                100 BP (p_1 p_2 p_3 p_4)^(1/4)      counts are summed over the whole corpus first

`bleu` is that definition, on words that have been cut already. Numbers to publish come from `sacre_bleu` and
`sacre_chrf`: BLEU changes by several points with the way words are cut, so each carries the signature that says how it
was made, and is meaningless without it (Post 2018).

Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF: n-grams of characters).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from llm_core.evaluation.libraries import metric_library

Words = Sequence[str]


@dataclass(frozen=True)
class Bleu:
    """BLEU and what it is made of.

    Attributes:
        score: 0 ... 100.
        precisions: p_1 ... p_n, 0 ... 1.
        brevity_penalty: 1, or less where the translations are shorter than the references.
        length: words of all translations.
        reference_length: words of all references; of several for one sentence, of the one closest in length.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    length: int
    reference_length: int


def bleu(predictions: Sequence[Words], references: Sequence[Sequence[Words]], *, max_n: int = 4) -> Bleu:
    """BLEU of a corpus of translations that are cut into words, without smoothing.

    Args:
        predictions: the translations, each a sequence of words.
        references: for each translation the sentences it is held against, one or more, each a sequence of words.
        max_n: length of the longest n-grams.

    Raises:
        ValueError: the numbers of translations and references differ, there are none, or one has no reference.

    >>> bleu([["the", "the", "cat"]], [[["the", "cat", "sat"]]], max_n=2).precisions
    (0.6666666666666666, 0.5)
    """
    _check(predictions, references)
    if max_n < 1:
        raise ValueError(f"n-grams have at least one word: got max_n={max_n}")
    hits, totals = [0] * max_n, [0] * max_n
    length = reference_length = 0
    for prediction, sentences in zip(predictions, references, strict=True):
        length += len(prediction)
        # The closest in length; of two that are equally close the shorter.
        reference_length += min((abs(len(words) - len(prediction)), len(words)) for words in sentences)[1]
        for n in range(1, max_n + 1):
            grams = n_grams(prediction, n)
            allowed: Counter[tuple[str, ...]] = Counter()
            for words in sentences:
                allowed |= n_grams(words, n)  # as often as in the reference that has it most often
            hits[n - 1] += (grams & allowed).total()
            totals[n - 1] += grams.total()
    precisions = tuple(hit / total if total else 0.0 for hit, total in zip(hits, totals, strict=True))
    penalty = brevity_penalty(length, reference_length)
    mean = math.exp(sum(math.log(p) for p in precisions) / max_n) if all(precisions) else 0.0
    return Bleu(100 * penalty * mean, precisions, penalty, length, reference_length)


def n_grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """Each run of n words, and how often it comes.

    >>> n_grams(["a", "b", "a", "b"], 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def brevity_penalty(length: int, reference_length: int) -> float:
    """What too short a translation costs: precision alone would reward saying only what is certain."""
    if length >= reference_length:
        return 1.0
    return math.exp(1 - reference_length / length) if length else 0.0


@dataclass(frozen=True)
class SignedScore:
    """A score, 0 ... 100, with sacrebleu's signature: version, tokenizer, smoothing, number of references."""

    score: float
    signature: str


def sacre_bleu(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    **options: Any,
) -> SignedScore:
    """BLEU of a corpus by sacrebleu: whole sentences come in, and sacrebleu cuts them into words.

    Args:
        predictions: the translations, as they would be read: not cut, not lower-cased.
        references: for each translation one sentence, or a sequence of several.
        tokenize: how words are cut: "13a" for most languages, "zh" for Chinese, "ja-mecab" for Japanese (which needs
            packages of its own), "none" for text that is cut at its spaces.
        **options: further options of `sacrebleu.metrics.BLEU`.

    Raises:
        ValueError: the numbers of translations and references differ, there are none, or one has no reference.
        MissingLibrary: sacrebleu is not installed.
    """
    streams = _streams(predictions, references)
    return _signed(metric_library("sacrebleu.metrics").BLEU(tokenize=tokenize, **options), predictions, streams)


def sacre_chrf(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], **options: Any
) -> SignedScore:
    """chrF of a corpus by sacrebleu: F-score of the n-grams of characters, so that no words need be cut.

    Arguments and errors are those of `sacre_bleu`; the options are those of `sacrebleu.metrics.CHRF` (word_order=2
    makes it chrF++, Popović 2017).
    """
    streams = _streams(predictions, references)
    return _signed(metric_library("sacrebleu.metrics").CHRF(**options), predictions, streams)


def _signed(metric: Any, predictions: Sequence[str], streams: list[list[str | None]]) -> SignedScore:
    score = metric.corpus_score(list(predictions), streams).score
    return SignedScore(float(score), str(metric.get_signature()))


def _streams(predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu wants the first reference of each sentence, then the second of each, ...; None where there is none."""
    sentences = [[given] if isinstance(given, str) else list(given) for given in references]
    _check(predictions, sentences)
    return [list(stream) for stream in zip_longest(*sentences)]


def _check(predictions: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
    if isinstance(predictions, str):
        raise ValueError(f"translations are a sequence, one a sentence: got the string {predictions[:40]!r}")
    if len(predictions) != len(references):
        raise ValueError(
            f"each translation needs its references: got {len(predictions)} translations and {len(references)} entries "
            "of references"
        )
    if not predictions:
        raise ValueError("there is no translation to score: got none")
    without = [i for i, sentences in enumerate(references) if not len(sentences)]
    if without:
        raise ValueError(f"each translation needs a reference: there is none for {without[:5]}")
