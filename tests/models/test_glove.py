"""GloVe against autograd, plain counting, and a small world whose neighbours are known."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_core.models.glove import (
    GloveConfig,
    count_cooccurrences,
    glove_gradients,
    glove_loss,
    glove_weight,
    train_glove,
)
from llm_core.models.word_vectors import WordVectors, count_words

GROUPS = [[f"{kind}{i}" for i in range(6)] for kind in ("animal", "tool", "colour", "town")]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def world() -> list[list[str]]:
    """Sentences about one group each: words of one group come together, those of two groups never."""
    pick = random.Random(0)
    return [pick.choices(pick.choice(GROUPS), k=pick.randint(4, 9)) for _ in range(1500)]


def contrast(vectors: WordVectors) -> float:
    """Mean similarity within the groups less that between them: 2 at most, about 0 for random vectors."""
    group_of = {word: i for i, group in enumerate(GROUPS) for word in group}
    within, between = [], []
    for a, b in itertools.combinations(group_of, 2):
        (within if group_of[a] == group_of[b] else between).append(vectors.similarity(a, b))
    return float(np.mean(within) - np.mean(between))


SMALL_GLOVE = GloveConfig(d_model=8, window=3, min_count=1, x_max=1000.0, epochs=30, lr=0.1, batch_size=64)


def test_gloves_gradients_are_autograds():
    inputs = (draw(7, 5), draw(7, 5, seed=1), draw(7, seed=2), draw(7, seed=3))
    for tensor in inputs:
        tensor.requires_grad_()
    counts = torch.tensor([0.2, 1.0, 3.0, 99.0, 100.0, 101.0, 5000.0], dtype=torch.float64)
    loss = glove_loss(*inputs, counts)
    by_hand = sum(
        min(1.0, (x / 100) ** 0.75) * ((w @ o + a + b).item() - math.log(x)) ** 2
        for w, o, a, b, x in zip(*inputs, counts.tolist(), strict=True)
    )
    assert loss.item() == pytest.approx(by_hand)
    to_word, to_other, to_bias = glove_gradients(*inputs, counts)
    expected = torch.autograd.grad(loss, inputs)
    for got, wanted in zip((to_word, to_other, to_bias, to_bias), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert glove_weight(torch.tensor([10.0, 40.0]), 10.0, 0.5).tolist() == [1.0, 1.0]
    assert glove_weight(torch.tensor([2.5]), 10.0, 0.5).tolist() == [0.5]


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("sentences", [[[0, 1, 2, 1, 0, 3, 3], [4], [], [3, 4, 0]], [[2]], [[]], [], [[0, 0]]])
def test_cooccurrences_are_what_two_loops_count(sentences, window):
    expected: Counter[tuple[int, int]] = Counter()
    for ids in sentences:
        for i, j in itertools.permutations(range(len(ids)), 2):
            if abs(i - j) <= window:
                expected[ids[i], ids[j]] += 1 / abs(i - j)
    rows, columns, counts = count_cooccurrences(sentences, window=window, vocab_size=5)
    got = dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), counts.tolist(), strict=True))
    assert got == pytest.approx(dict(expected))


def test_glove_is_adagrad_on_autograds_gradients():
    sentences = [["a", "b", "c", "a"], ["c", "d", "a", "b", "d"]]
    config = dataclasses.replace(SMALL_GLOVE, d_model=3, epochs=4, batch_size=1, x_max=2.0, lr=0.3)
    vectors, losses = train_glove(sentences, config, generator=torch.Generator().manual_seed(0))

    generator = torch.Generator().manual_seed(0)
    pairs = count_cooccurrences(count_words(sentences).encode(sentences), window=3, vocab_size=4)
    words, others = (((torch.rand(4, 4, generator=generator) - 0.5) / 4).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adagrad([words, others], lr=0.3, initial_accumulator_value=1.0, eps=0.0)
    for epoch in range(4):
        total = 0.0
        for i in torch.randperm(len(pairs.counts), generator=generator).split(1):
            word, other = words[pairs.rows[i]], others[pairs.columns[i]]
            loss = glove_loss(word[:, :3], other[:, :3], word[:, 3], other[:, 3], pairs.counts[i], x_max=2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        assert losses[epoch] == pytest.approx(total / len(pairs.counts), rel=1e-4)
    torch.testing.assert_close(vectors.matrix, (words + others)[:, :3].detach(), rtol=1e-4, atol=1e-6)


def test_glove_finds_the_companies_too():
    # Pairs that never come together are not seen by GloVe: the groups need a few words in between.
    pick = random.Random(1)
    bridges = [[pick.choice(pick.choice(GROUPS)) for _ in range(6)] for _ in range(300)]
    vectors, losses = train_glove(world() + bridges, SMALL_GLOVE, generator=torch.Generator().manual_seed(0))
    assert contrast(vectors) > 0.5
    assert losses[-1] < losses[0] / 3


@pytest.mark.usefixtures("unchecked")
def test_glove_wants_words_that_come_together():
    with pytest.raises(ValueError, match="no word comes"):
        train_glove([], SMALL_GLOVE)
    with pytest.raises(ValueError, match="no sentence has two words of the 2"):
        train_glove([["a"], ["b"]], SMALL_GLOVE)
    with pytest.raises(ValueError, match="window=0"):
        count_cooccurrences([[0]], window=0, vocab_size=1)
    for ids in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=rf"0 \.\.\. 1: got {min(ids)} to {max(ids)}"):
            count_cooccurrences([ids], window=1, vocab_size=2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1: got 0") for name in
          ("d_model", "window", "min_count", "epochs", "batch_size")),
        *(({name: -1.0}, f"{name} must be more than 0: got -1.0") for name in ("x_max", "power", "lr")),
    ],
)  # fmt: skip
def test_impossible_glove_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL_GLOVE, **change)
