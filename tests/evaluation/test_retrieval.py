"""Rankings against scikit-learn, and ties against all orders that they allow."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics

from llm_core.evaluation.retrieval import (
    average_precision,
    hit_at,
    mean_over_queries,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
)

AT_K = [precision_at, recall_at, hit_at, ndcg_at]


def draw(n: int, seed: int, *, levels: int | None = None, grades: int = 2):
    """Scores, all different or of few levels, and relevance 0 ... grades - 1."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(n) / 7 if levels is None else rng.integers(0, levels, n) / 7
    return scores, rng.integers(0, grades, n)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_scikit_learn(n, seed):
    scores, relevance = draw(n, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about no relevant document
        assert average_precision(scores, relevance) == pytest.approx(metrics.average_precision_score(relevance, scores))


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_is_that_of_scikit_learn_with_and_without_ties(n, levels, k):
    for seed in range(6):
        scores, relevance = draw(n, seed, levels=levels, grades=4)
        assert ndcg_at(k, scores, relevance) == pytest.approx(metrics.ndcg_score([relevance], [scores], k=k))


@pytest.mark.parametrize("k", [1, 2, 5, 9, 12])
def test_places_are_counted_as_defined(k):
    for seed in range(10):
        scores, relevance = draw(9, seed)
        first = np.argsort(-scores)[:k]
        found = relevance[first]
        assert precision_at(k, scores, relevance) == pytest.approx(found.sum() / k)
        assert recall_at(k, scores, relevance) == pytest.approx(found.sum() / max(1, relevance.sum()))
        assert hit_at(k, scores, relevance) == pytest.approx(float(found.any()))
        ranks = np.flatnonzero(relevance[np.argsort(-scores)]) + 1
        assert reciprocal_rank(scores, relevance) == pytest.approx(1 / ranks[0] if len(ranks) else 0)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.usefixtures("unchecked")  # quicker
def test_ties_give_the_mean_over_all_orders(levels, k):
    """Each order as scores without ties; every order of all five is as likely, once sorted by score."""
    ranked = [partial(measure, k) for measure in AT_K] + [reciprocal_rank, average_precision]
    for seed in range(4):
        scores, relevance = draw(5, seed, levels=levels)
        orders = [scores + 1e-3 * np.array(order) for order in itertools.permutations(range(5))]
        for measure in ranked:
            mean = math.fsum(measure(order, relevance) for order in orders) / len(orders)
            assert measure(scores, relevance) == pytest.approx(mean), measure


def test_a_system_that_prefers_nothing_gets_what_chance_gets():
    relevance = [0, 1, 0, 0, 0, 0, 1, 0]
    assert precision_at(3, [0.5] * 8, relevance) == pytest.approx(2 / 8)
    assert hit_at(3, [0.5] * 8, relevance) == pytest.approx(1 - (6 * 5 * 4) / (8 * 7 * 6))
    assert reciprocal_rank([0.5, 0.5], [0, 1]) == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize("measure", [*(partial(m, 3) for m in AT_K), reciprocal_rank, average_precision])
def test_a_query_without_relevant_documents_scores_nothing_and_counts(measure):
    assert measure([0.3, 0.2, 0.1], [0, 0, 0]) == 0
    assert measure([0.3, 0.2, 0.1], [1, 1, 1]) == pytest.approx(1)
    scores, relevance = torch.tensor([[0.3, 0.2, 0.1]] * 2), torch.tensor([[0, 0, 0], [1, 1, 1]])
    assert mean_over_queries(measure, scores, relevance) == pytest.approx(0.5)


def test_means_over_queries():
    queries = [draw(n, n, grades=3) for n in (3, 8, 20)]
    scores, relevance = zip(*queries, strict=True)
    mrr = mean_over_queries(reciprocal_rank, scores, relevance)
    assert mrr == pytest.approx(np.mean([reciprocal_rank(s, r) for s, r in queries]))
    tensors = torch.rand(5, 10, generator=torch.Generator().manual_seed(0)), torch.arange(50).view(5, 10) % 3
    expected = metrics.ndcg_score(tensors[1].numpy(), tensors[0].numpy(), k=4)
    assert mean_over_queries(partial(ndcg_at, 4), *tensors) == pytest.approx(expected)


def test_only_ndcg_tells_degrees_of_relevance_apart():
    scores = [0.9, 0.8, 0.1]
    for measure in (*(partial(m, 2) for m in AT_K[:3]), reciprocal_rank, average_precision):
        assert measure(scores, [0.5, 0, 3]) == measure(scores, [1, 0, 1])
    assert ndcg_at(2, scores, [0.5, 0, 3]) == pytest.approx(0.5 / (3 + 0.5 / math.log2(3)))


@pytest.mark.parametrize("measure", [*(partial(m, 1) for m in AT_K), reciprocal_rank, average_precision])
def test_documents_have_a_score_and_a_relevance(measure):
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        measure([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 2\)"):
        measure(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="no document"):
        measure([], [])
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        measure([math.nan, 0.1], [0, 1])
    with pytest.raises(ValueError, match=r"0 or more: got -1\.0"):
        measure([0.2, 0.1], [-1, 1])
    with pytest.raises(ValueError, match="0 or more"):
        measure([0.2, 0.1], [0, math.inf])


def test_queries_and_places_must_be_there():
    for measure in AT_K:
        with pytest.raises(ValueError, match="k=0"):
            measure(0, [0.1], [1])
    with pytest.raises(ValueError, match="scores for 1 and relevance for 2"):
        mean_over_queries(reciprocal_rank, [[0.1]], [[1], [1]])
    with pytest.raises(ValueError, match="no query"):
        mean_over_queries(reciprocal_rank, [], [])
