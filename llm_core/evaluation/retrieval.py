"""Retrieval: do the documents that matter come first?

    precision@k         relevant ones among the first k / k
    recall@k            relevant ones among the first k / all relevant ones
    hit@k               1 if there is one among the first k
    reciprocal rank     1 / rank of the first relevant one                    its mean over queries is MRR
    average precision   mean over the relevant ones of precision@(its rank)   its mean over queries is MAP
    NDCG@k              sum over the first k of relevance / log2(rank + 1), divided by that of the best order

A query has scores (N,), the higher the earlier, and the relevance (N,) of each document: 0 for none, 1 for relevant, or
more for better ones, which only NDCG tells apart. `mean_over_queries` takes any of these functions.

Two cases that programs treat in different ways:

- Ties. Equal scores leave the order open, so every measure is its mean over all orders of the documents that tie
  (McSherry and Najork 2008). A system that gives all documents one score gets what chance would get. scikit-learn's
  NDCG does the same; its average precision is made for thresholds, and takes all that ties at once.
- A query without relevant documents. All measures are 0, and it counts in the mean, as in scikit-learn. It costs every
  system the same.

Source: Järvelin and Kekäläinen 2002 for NDCG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Numbers = Sequence[float | int] | np.ndarray | Tensor


def precision_at(k: int, scores: Numbers, relevance: Numbers) -> float:
    """The share of the first k places that hold a relevant document; places after the last document hold none.

    Raises:
        ValueError: k is below 1, scores and relevance differ in length or are no rows, there is no document, a score is
            NaN, or a relevance is negative or not finite.

    >>> precision_at(2, scores=[0.9, 0.8, 0.1], relevance=[0, 1, 1])
    0.5
    """
    return float(_relevant_at_ranks(scores, relevance)[: _check_k(k)].sum()) / k


def recall_at(k: int, scores: Numbers, relevance: Numbers) -> float:
    """The share of the relevant documents that the first k places hold. Errors are those of `precision_at`."""
    relevant = _relevant_at_ranks(scores, relevance)
    return float(relevant[: _check_k(k)].sum() / relevant.sum().clamp(min=1))


def hit_at(k: int, scores: Numbers, relevance: Numbers) -> float:
    """1 if one of the first k documents is relevant, else 0; between them it is the chance of that, where scores tie.

    Errors are those of `precision_at`.
    """
    _check_k(k)
    return math.fsum(chance for rank, chance in _first_relevant(scores, relevance) if rank <= k)


def reciprocal_rank(scores: Numbers, relevance: Numbers) -> float:
    """1 / rank of the first relevant document. Errors are those of `precision_at`."""
    return math.fsum(chance / rank for rank, chance in _first_relevant(scores, relevance))


def average_precision(scores: Numbers, relevance: Numbers) -> float:
    """The mean over the relevant documents of the precision at their ranks. Errors are those of `precision_at`.

    >>> average_precision(scores=[0.9, 0.8, 0.1], relevance=[1, 0, 1])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    total, before = 0.0, 0
    for first, size, relevant in _ties(scores, relevance):
        for i in range(size if relevant else 0):
            # At this rank stands a relevant one with chance relevant / size; of the other size - 1 of its tie,
            # relevant - 1 are relevant, and i stand before it.
            others = i * (relevant - 1) / (size - 1) if size > 1 else 0.0
            total += relevant / size * (before + others + 1) / (first + i)
        before += relevant
    return total / before if before else 0.0


def ndcg_at(k: int, scores: Numbers, relevance: Numbers) -> float:
    """Discounted cumulative gain of the first k documents, divided by the most that any order could have.

    The gain of a document is its relevance. The other custom, 2^relevance - 1, is had by giving that as the relevance.
    Errors are those of `precision_at`.
    """
    values, gains = _check(scores, relevance)
    _check_k(k)
    discount = 1 / torch.arange(2, len(gains) + 2, dtype=torch.float64).log2()
    best = (gains.sort(descending=True).values * discount)[:k].sum()
    return float((_mean_over_ties(values, gains) * discount)[:k].sum() / best) if best else 0.0


def mean_over_queries(
    measure: Callable[[Numbers, Numbers], float],
    scores: Sequence[Numbers] | Tensor,
    relevance: Sequence[Numbers] | Tensor,
) -> float:
    """The mean of a measure over queries, all counting the same.

    `mean_over_queries(reciprocal_rank, ...)` is MRR, `mean_over_queries(average_precision, ...)` is MAP, and
    `mean_over_queries(partial(ndcg_at, 10), ...)` is the mean NDCG@10.

    Args:
        measure: (scores, relevance) of a query -> number.
        scores: of each query's documents, (Q, N) or a sequence of Q; queries may have unequal numbers of documents.
        relevance: likewise.

    Raises:
        ValueError: the numbers of queries differ, or there are none; or as the measure.
    """
    if len(scores) != len(relevance):
        raise ValueError(
            f"each query needs both: got scores for {len(scores)} and relevance for {len(relevance)} queries"
        )
    if len(scores) == 0:
        raise ValueError("there is no query to score: got none")
    return math.fsum(measure(s, r) for s, r in zip(scores, relevance, strict=True)) / len(scores)


def _relevant_at_ranks(scores: Numbers, relevance: Numbers) -> Float[Tensor, " N"]:
    """The chance that rank 1, 2, ... holds a relevant document."""
    values, gains = _check(scores, relevance)
    return _mean_over_ties(values, (gains > 0).double())


def _mean_over_ties(scores: Float[Tensor, " N"], gains: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The gain at rank 1, 2, ..., as the mean over all orders of what ties: that of the documents with this score."""
    _, level, sizes = (-scores).unique(return_inverse=True, return_counts=True)  # best first
    totals = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, level, gains)
    return (totals / sizes).repeat_interleave(sizes)


def _ties(scores: Numbers, relevance: Numbers) -> Iterator[tuple[int, int, int]]:
    """For each score, best first: the first rank with it, how many documents have it, how many of them are relevant."""
    values, gains = _check(scores, relevance)
    _, level, sizes = (-values).unique(return_inverse=True, return_counts=True)
    relevant = torch.bincount(level[gains > 0], minlength=len(sizes))
    firsts = sizes.cumsum(0) - sizes + 1
    return zip(firsts.tolist(), sizes.tolist(), relevant.tolist(), strict=True)


def _first_relevant(scores: Numbers, relevance: Numbers) -> Iterator[tuple[int, float]]:
    """The ranks at which the first relevant document may stand, and the chance of each."""
    for first, size, relevant in _ties(scores, relevance):
        if relevant:
            # Of all ways to place the relevant ones of the tie: those with the first at place i, the others after it.
            ways = math.comb(size, relevant)
            for i in range(size - relevant + 1):
                yield first + i, math.comb(size - i - 1, relevant - 1) / ways
            return


def _check_k(k: int) -> int:
    if k < 1:
        raise ValueError(f"there is at least one place to look at: got k={k}")
    return k


def _check(scores: Numbers, relevance: Numbers) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    values, gains = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (scores, relevance))
    if values.ndim != 1 or values.shape != gains.shape:
        raise ValueError(
            f"each document needs a score and a relevance, (N,): got {tuple(values.shape)} and {tuple(gains.shape)}"
        )
    if not len(values):
        raise ValueError("there is no document to rank: got none")
    if values.isnan().any():
        raise ValueError(f"scores must be numbers: {int(values.isnan().sum())} of {len(values)} are NaN")
    if not (torch.isfinite(gains).all() and float(gains.min()) >= 0):
        raise ValueError(f"relevance is 0 or more: got {float(gains.min())} to {float(gains.max())}")
    return values, gains
