"""Summarization: how much of a human's summary is in the model's?

    ROUGE-1, ROUGE-2   words, pairs of words that both have, each as often as the one that has it less often
    ROUGE-L            longest common subsequence: the most words that both have in the same order, gaps allowed
    ROUGE-Lsum         ROUGE-L sentence by sentence; a sentence is a line of its own

    recall = common / length of the reference, precision = common / length of the summary, F1 = their harmonic mean

`rouge_l` is the definition, on words that have been cut already; `rouge` scores whole texts, by Google's rouge_score.

Source: Lin 2004.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from llm_core.evaluation.libraries import metric_library

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Rouge:
    """Precision, recall and F1, 0 ... 1, of one pair or as the mean over pairs."""

    precision: float
    recall: float
    f1: float


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of words in the longest common subsequence of a and b.

    The longest one of a's first i words and b's first j words is one longer than that of the first i - 1 and j - 1, if
    both end in the same word; else the last word of a or of b is not in it.

    >>> common_length("police killed the gunman".split(), "police kill the gunman".split())
    3
    """
    row = [0] * (len(b) + 1)  # entry j: for the words of a so far, and the first j of b
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> Rouge:
    """ROUGE-L of one summary that is cut into words; zeros where one of the two has no word.

    >>> rouge_l("the gunman killed police".split(), "police killed the gunman".split())
    Rouge(precision=0.5, recall=0.5, f1=0.5)
    """
    if not prediction or not reference:
        return Rouge(0.0, 0.0, 0.0)
    common = common_length(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    return Rouge(precision, recall, 2 * common / (len(prediction) + len(reference)))


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    stem: bool = False,
    tokenize: Callable[[str], list[str]] | None = None,
) -> dict[str, Rouge]:
    """ROUGE-1, -2, -L and -Lsum by rouge_score, as means over the pairs.

    Args:
        predictions: the summaries. For ROUGE-Lsum each sentence is on a line of its own.
        references: one for each summary.
        stem: whether words lose their English endings first; most papers do that ("ROUGE with Porter stemming").
        tokenize: text -> words. rouge_score's own unless given: lower case, and nothing but a-z and 0-9 is a word, so
            that other scripts need one of their own.

    Returns:
        The scores by name: "rouge1", "rouge2", "rougeL", "rougeLsum".

    Raises:
        ValueError: the numbers of summaries and references differ, there are none, or a reference has no word; or stem
            is asked of a tokenizer of one's own.
        MissingLibrary: rouge_score is not installed.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("summaries and references are sequences of texts: got a string. One text goes into a list")
    if len(predictions) != len(references):
        raise ValueError(
            f"each summary needs its reference: got {len(predictions)} summaries and {len(references)} references"
        )
    if not predictions:
        raise ValueError("there is no summary to score: got none")
    if stem and tokenize is not None:
        raise ValueError("stem belongs to rouge_score's own tokenizer: let yours take off the endings")
    if tokenize is None:
        tokenizer = metric_library("rouge_score.tokenizers").DefaultTokenizer(stem)
    else:
        tokenizer = SimpleNamespace(tokenize=tokenize)
    scorer = metric_library("rouge_score.rouge_scorer").RougeScorer(list(KINDS), tokenizer=tokenizer)
    empty = [i for i, text in enumerate(references) if not tokenizer.tokenize(text)]
    if empty:
        raise ValueError(
            f"references {empty[:5]} have no word, so nothing of them can be found: rouge_score's own tokenizer knows "
            "a-z and 0-9 alone, give tokenize= for other scripts"
        )
    pairs = [scorer.score(target, prediction) for target, prediction in zip(references, predictions, strict=True)]
    return {kind: _mean([pair[kind] for pair in pairs]) for kind in KINDS}


def _mean(scores: list[tuple[float | int, float | int, float | int]]) -> Rouge:
    precision, recall, f1 = (sum(values) / len(scores) for values in zip(*scores, strict=True))
    return Rouge(float(precision), float(recall), float(f1))
