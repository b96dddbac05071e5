"""Question answering: is the answer one that people gave?

    exact match    1 if the answer is the same text as one of theirs, else 0
    F1             of the words that both have, each as often as the one that has it less often; the best over theirs

Both look at answers that are normalised: lower case, no punctuation, no articles, single spaces. A question that has no
answer in its text has the empty answer, and so has one whose answers all become empty.

Source: Rajpurkar et al. 2016 (SQuAD) for the measures, Rajpurkar et al. 2018 (SQuAD 2.0) for questions without answer.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Answered:
    """Exact match and F1, 0 ... 1, as means over n questions; NaN where there is none."""

    exact_match: float
    f1: float
    n: int


@dataclass(frozen=True)
class AnswerScores:
    """How a system answered: all questions, those that have an answer, and those that have none."""

    all: Answered
    with_answer: Answered
    without_answer: Answered


def normalise(answer: str) -> str:
    """The text by which answers are compared: lower case, without ASCII punctuation, English articles, extra spaces.

    >>> normalise("The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the references', else 0.

    Args:
        prediction: the answer; empty where the system says that there is none.
        references: the answers that people gave; none where the text has no answer.

    Raises:
        ValueError: the references are a string in place of a sequence of them, or an answer is no text.

    >>> exact_match("in the Tower", ["In Tower.", "tower"])
    1.0
    """
    given, wanted = _normalised(prediction, references)
    return float(given in wanted)


def answer_f1(prediction: str, references: Sequence[str]) -> float:
    """The F1 of the words of an answer, for the reference that fits best. Arguments and errors as in `exact_match`.

    >>> answer_f1("in the old tower", ["tower", "the tower of London"])
    0.5
    """
    given, wanted = _normalised(prediction, references)
    return max(_f1(given.split(), reference.split()) for reference in wanted)


def question_answering(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScores:
    """Exact match and F1 over a test set, and apart for the questions that have an answer and those that have none.

    The interval of a score is that of the mean over questions: `bootstrap_interval(torch.mean, scores)` with the
    `exact_match` or `answer_f1` of each.

    Args:
        predictions: an answer for each question, empty where the system says that there is none.
        references: for each question the answers that people gave, none where the text has no answer.

    Raises:
        ValueError: the numbers of predictions and references differ, or there are none; or as in `exact_match`.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("predictions and references have an entry for each question: got a string. Put it into a list")
    if len(predictions) != len(references):
        raise ValueError(
            f"each question needs both: got {len(predictions)} predictions and the references of {len(references)}"
        )
    if not predictions:
        raise ValueError("there is no question to score: got none")
    pairs = list(zip(predictions, references, strict=True))
    scores = [(exact_match(given, wanted), answer_f1(given, wanted)) for given, wanted in pairs]
    answerable = [_normalised(given, wanted)[1] != [""] for given, wanted in pairs]
    return AnswerScores(
        all=_mean(scores),
        with_answer=_mean([score for score, has in zip(scores, answerable, strict=True) if has]),
        without_answer=_mean([score for score, has in zip(scores, answerable, strict=True) if not has]),
    )


def _normalised(prediction: str, references: Sequence[str]) -> tuple[str, list[str]]:
    if isinstance(references, str):
        raise ValueError(f"references are a sequence of answers: got the string {references!r}. Put it into a list")
    odd = [answer for answer in (prediction, *references) if not isinstance(answer, str)]
    if odd:
        raise ValueError(f"an answer is a text, and the empty one says that there is none: got {odd[0]!r}")
    # A reference that is nothing but articles and punctuation cannot be found; without any other there is no answer.
    return normalise(prediction), [text for text in map(normalise, references) if text] or [""]


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def _mean(scores: list[tuple[float, float]]) -> Answered:
    if not scores:
        return Answered(math.nan, math.nan, 0)
    exact, f1 = (math.fsum(values) / len(scores) for values in zip(*scores, strict=True))
    return Answered(exact, f1, len(scores))
