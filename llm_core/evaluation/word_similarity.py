"""How good are word vectors? Held against what people said of pairs of words, and by analogies.

    pairs        the cosines of the pairs, ranked, against people's scores, ranked (Spearman's correlation)
    analogies    "king" is to "man" as what is to "woman"? The word nearest to man's and woman's difference, added

Pairs and analogies with a word that has no vector are left out, so scores of two sets of vectors can be compared only
where both know the same words.

Source: Finkelstein et al. 2002; Hill et al. 2015; Mikolov et al. 2013a. Chapter 1.3 uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BATCH = 512  # analogies answered at once

Question = tuple[str, str, str, str]


class Answer(NamedTuple):
    """An analogy, a is to b as c is to d, and the word that the vectors gave for d."""

    question: Question
    word: str

    @property
    def right(self) -> bool:
        """Whether the word is d."""
        return self.word == self.question[3]


def pair_similarities(
    words: Sequence[str], matrix: Float[Tensor, "V D"], pairs: Iterable[tuple[str, str, float]]
) -> Float[Tensor, "N 2"]:
    """For each pair of which both words have a vector: the cosine of the two, and people's score.

    Args:
        words: the V words, in lower case.
        matrix: row i is the vector of word i.
        pairs: two words, in any case, and a score.

    Raises:
        ValueError: no pair is known.

    >>> pair_similarities(["sun", "moon"], torch.tensor([[1.0, 0.0], [0.6, 0.8]]), [("Sun", "moon", 7.5)])
    tensor([[0.6000, 7.5000]])
    """
    ids = {word: i for i, word in enumerate(words)}
    lower = [(a.lower(), b.lower(), score) for a, b, score in pairs]
    known = [(ids[a], ids[b], score) for a, b, score in lower if a in ids and b in ids]
    if not known:
        raise ValueError(f"none of the {len(lower)} pairs has two words of the {len(ids)} that have a vector")
    first, second, scores = zip(*known, strict=True)
    unit = F.normalize(matrix, dim=1)
    cosines = (unit[list(first)] * unit[list(second)]).sum(dim=1)
    return torch.stack([cosines, torch.tensor(scores, dtype=cosines.dtype)], dim=1)


def spearman(pairs: Float[Tensor, "N 2"]) -> float:
    """Spearman's rank correlation of two columns: 1 if both have the same order, 0 if they have nothing in common.

    Equal numbers share the mean of their ranks.

    Raises:
        ValueError: there are fewer than two rows, or a column has only one number in it.

    >>> spearman(torch.tensor([[0.1, 2.0], [0.5, 3.0], [0.9, 9.0]]))
    1.0
    """
    if len(pairs) < 2 or any(len(column.unique()) < 2 for column in pairs.T):
        raise ValueError(f"an order takes two different numbers in each column: got {len(pairs)} rows")
    ranks = torch.stack([_ranks(column) for column in pairs.T])
    return float(torch.corrcoef(ranks)[0, 1].clamp(-1, 1))


def _ranks(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    _, places, times = values.unique(return_inverse=True, return_counts=True)
    last = times.cumsum(0).double()
    return (last - (times - 1) / 2)[places]


def answer_analogies(
    words: Sequence[str], matrix: Float[Tensor, "V D"], questions: Iterable[Question], *, leave_out: bool = True
) -> list[Answer]:
    """The word nearest to b - a + c, for each question of which all four words have a vector.

    Args:
        words: the V words, in lower case.
        matrix: row i is the vector of word i; only its direction counts.
        questions: a is to b as c is to d, in any case.
        leave_out: whether a, b and c themselves are out of the question, as is customary.

    Raises:
        ValueError: no question is known.

    >>> matrix = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    >>> answer_analogies(["man", "king", "woman", "queen"], matrix, [("man", "king", "woman", "queen")])[0].word
    'queen'
    """
    ids = {word: i for i, word in enumerate(words)}
    lower = [(a.lower(), b.lower(), c.lower(), d.lower()) for a, b, c, d in questions]
    known = [question for question in lower if all(word in ids for word in question)]
    if not known:
        raise ValueError(f"none of the {len(lower)} questions has four words of the {len(ids)} that have a vector")
    unit = F.normalize(matrix, dim=1)
    asked = torch.tensor([[ids[word] for word in question[:3]] for question in known])
    found = [_nearest(unit, part, leave_out=leave_out) for part in asked.split(BATCH)]
    return [Answer(question, words[i]) for question, i in zip(known, torch.cat(found).tolist(), strict=True)]


def _nearest(unit: Float[Tensor, "V D"], asked: Int[Tensor, "N 3"], *, leave_out: bool) -> Int[Tensor, " N"]:
    a, b, c = (unit[ids] for ids in asked.T)
    scores = (b - a + c) @ unit.T
    if leave_out:
        scores.scatter_(1, asked, -torch.inf)
    return scores.argmax(dim=1)
