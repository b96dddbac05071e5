"""word2vec against autograd, gensim's counts and ranks, and a small world whose neighbours are known."""

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
from gensim.models import Word2Vec
from torch import Tensor

from llm_core.models.glove import (
    GloveConfig,
    train_glove,
)
from llm_core.models.word2vec import (
    Stretch,
    Word2VecConfig,
    _stretch_length,
    cbow_gradients,
    keep_probability,
    negative_sampling_gradients,
    negative_sampling_loss,
    noise_distribution,
    skip_gram_gradients,
    train_word2vec,
)
from llm_core.models.word2vec import _stretch as stretch_of
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


SMALL = Word2VecConfig(d_model=12, window=3, min_count=1, sample=0.0, epochs=3, lr=0.05, stretch=32)


SMALL_GLOVE = GloveConfig(d_model=8, window=3, min_count=1, x_max=1000.0, epochs=30, lr=0.1, batch_size=64)


@pytest.mark.parametrize(("P", "K"), [(1, 1), (4, 5), (3, 0)])
def test_negative_sampling_is_the_papers_formula_and_its_gradients_are_autograds(P, K):
    predictor, target, negatives = draw(P, 6), draw(P, 6, seed=1), draw(P, K, 6, seed=2)
    for tensor in (predictor, target, negatives):
        tensor.requires_grad_()
    loss = negative_sampling_loss(predictor, target, negatives)
    by_hand = 0.0
    for p in range(P):
        by_hand -= math.log(1 / (1 + math.exp(-(predictor[p] @ target[p]).item())))
        by_hand -= sum(math.log(1 / (1 + math.exp((predictor[p] @ negatives[p, k]).item()))) for k in range(K))
    assert loss.item() == pytest.approx(by_hand)
    expected = torch.autograd.grad(loss, (predictor, target, negatives))
    for got, wanted in zip(negative_sampling_gradients(predictor, target, negatives), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_extreme_scores_stay_finite():
    big = torch.full((1, 4), 1e3)
    loss = negative_sampling_loss(big, -big, big[:, None])
    assert loss.item() == pytest.approx(8e6)
    assert all(torch.isfinite(g).all() for g in negative_sampling_gradients(big, -big, big[:, None]))


def a_stretch() -> Stretch:
    """Ten words in two sentences, noise that is sometimes a target, and a window cut at both ends."""
    words = torch.tensor([0, 1, 2, 3, 4, 1, 0, 5, 6, 2])
    sentence = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    reach = torch.tensor([1, 3, 2, 1, 3, 2, 1, 3, 2, 3])
    return stretch_of(words, sentence, reach, 2, 8, 3, torch.tensor([1, 0, 2, 6, 1]))


def test_a_stretch_is_what_two_loops_find():
    words, sentence = [0, 1, 2, 3, 4, 1, 0, 5, 6, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    reach = [1, 3, 2, 1, 3, 2, 1, 3, 2, 3]
    for begin, length, window in ((0, 4, 3), (2, 8, 3), (4, 4, 3), (8, 4, 3), (0, 20, 5)):
        got = stretch_of(*map(torch.tensor, (words, sentence, reach)), begin, length, window, torch.tensor([3]))
        pairs = Counter(
            (words[i], words[j])
            for i in range(begin, min(begin + length, 10))
            for j in range(10)
            if i != j and abs(i - j) <= reach[i] and sentence[i] == sentence[j]
        )
        found = Counter((got.middle[c].item(), got.around[w].item()) for c, w in got.near.nonzero().tolist())
        assert found == pairs


def leaves(stretch: Stretch) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (len(stretch.middle), len(stretch.around), len(stretch.noise))
    return tuple(draw(size, 6, seed=i).float().requires_grad_() for i, size in enumerate(sizes))


def without_targets(noise_ids: Tensor, target: int, weight: float) -> list[tuple[int, float]]:
    return [(m, weight) for m, id_ in enumerate(noise_ids.tolist()) if id_ != target]


def test_skip_gram_of_a_stretch_is_the_sum_over_its_pairs():
    stretch, K = a_stretch(), 2
    middle, around, noise = leaves(stretch)
    loss = torch.zeros(())
    for c, w in stretch.near.nonzero().tolist():
        loss = loss - (middle[c] @ around[w]).sigmoid().log()
        for m, weight in without_targets(stretch.noise, stretch.around[w].item(), K / len(noise)):
            loss = loss - weight * (-(middle[c] @ noise[m])).sigmoid().log()
    check(skip_gram_gradients(stretch, middle, around, noise, K), loss, (middle, around, noise))


def test_cbow_of_a_stretch_is_the_sum_over_its_words():
    stretch, K = a_stretch(), 2
    assert not stretch.near.any(dim=1).all()  # one word is alone, and is left out
    middle, around, noise = leaves(stretch)
    loss = torch.zeros(())
    for c in range(len(middle)):
        near = stretch.near[c].nonzero().squeeze(1)
        if len(near) == 0:
            continue
        mean = around[near].mean(dim=0)
        loss = loss - (mean @ middle[c]).sigmoid().log()
        for m, weight in without_targets(stretch.noise, stretch.middle[c].item(), K / len(noise)):
            loss = loss - weight * (-(mean @ noise[m])).sigmoid().log()
    check(cbow_gradients(stretch, middle, around, noise, K), loss, (middle, around, noise))


def check(got: tuple[Tensor, ...], loss: Tensor, inputs: tuple[Tensor, ...]) -> None:
    for mine, wanted in zip(got, (loss, *torch.autograd.grad(loss, inputs)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_with_as_many_shared_noise_words_as_each_pair_has_it_is_the_definition():
    stretch = a_stretch()._replace(noise=torch.tensor([7, 8, 9]))  # none of them a target
    middle, around, noise = (tensor.detach() for tensor in leaves(stretch))
    c, w = stretch.near.nonzero().T
    expected = negative_sampling_loss(middle[c], around[w], noise.expand(len(c), -1, -1))
    torch.testing.assert_close(skip_gram_gradients(stretch, middle, around, noise, 3).loss, expected)


def test_words_are_counted_and_thinned_out_as_gensim_does_it():
    sentences = [random.Random(i).choices("abcdefgh", weights=[90, 40, 20, 9, 6, 3, 2, 1], k=30) for i in range(40)]
    theirs = Word2Vec(vector_size=4, min_count=5, sample=1e-2, seed=0)
    theirs.build_vocab(sentences)
    ours = count_words(sentences, min_count=5)
    assert ours.words == theirs.wv.index_to_key
    assert ours.counts.tolist() == [theirs.wv.get_vecattr(word, "count") for word in ours.words]
    kept = [theirs.wv.get_vecattr(word, "sample_int") / 2**32 for word in ours.words]
    np.testing.assert_allclose(keep_probability(ours.counts, 1e-2), kept, rtol=1e-5)
    assert 0 < min(kept) < 0.2 < max(kept)
    table = np.diff(theirs.cum_table, prepend=0) / theirs.cum_table[-1]
    np.testing.assert_allclose(noise_distribution(ours.counts), table, atol=1e-6)
    assert (keep_probability(ours.counts, 0.0) == 1).all()


@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_word2vec_is_plain_gradient_descent_on_autograds_gradients(kind):
    """Each step written out over single words: who foretells whom, the noise, the rate that falls."""
    sentences = [["a", "b", "c", "a"], ["c", "d", "a", "b", "d"]]
    config = Word2VecConfig(kind=kind, d_model=4, window=2, negative=2, min_count=1, sample=0.0, epochs=3, lr=0.1)
    config = dataclasses.replace(config, stretch=2)
    vectors, losses = train_word2vec(sentences, config, generator=torch.Generator().manual_seed(0))

    generator = torch.Generator().manual_seed(0)
    ids = [vectors.words.index(word) for sentence in sentences for word in sentence]
    foretelling = ((torch.rand(4, 4, generator=generator) - 0.5) / 4).requires_grad_()
    foretold = torch.zeros(4, 4).requires_grad_()
    cumulated = noise_distribution(count_words(sentences).counts).cumsum(0)
    C = _stretch_length(
        config, count_words(sentences).counts.float(), noise_distribution(count_words(sentences).counts)
    )
    steps = math.ceil(9 / C)
    for epoch in range(3):
        torch.rand(9, generator=generator)
        reach = torch.randint(1, 3, (9,), generator=generator).tolist()
        noise = torch.searchsorted(cumulated, torch.rand(steps, C, generator=generator, dtype=torch.float64)).tolist()
        total, number = 0.0, 0
        for step in range(steps):
            loss = torch.zeros(())
            for t in range(step * C, min(step * C + C, 9)):
                first, last = (0, 4) if t < 4 else (4, 9)
                near = [ids[j] for j in range(max(first, t - reach[t]), min(last, t + reach[t] + 1)) if j != t]
                if kind == "skip-gram":
                    pairs = [(foretelling[ids[t]], j) for j in near]
                else:
                    pairs = [(foretelling[near].mean(dim=0), ids[t])]
                for predictor, target in pairs:
                    loss = loss - (predictor @ foretold[target]).sigmoid().log()
                    for n in noise[step]:
                        if n != target:
                            loss = loss - 2 / C * (-(predictor @ foretold[n])).sigmoid().log()
                number += len(pairs)
            lr = 0.1 + (0.0001 - 0.1) * (epoch + step / steps) / 3
            gradients = torch.autograd.grad(loss, (foretelling, foretold))
            with torch.no_grad():
                for table, gradient in zip((foretelling, foretold), gradients, strict=True):
                    table -= lr * gradient
            total += loss.item()
        assert losses[epoch] == pytest.approx(total / number, rel=1e-4)
    torch.testing.assert_close(vectors.matrix, foretelling.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_words_of_one_company_come_near_each_other(kind):
    vectors, losses = train_word2vec(
        world(),
        dataclasses.replace(SMALL, kind=kind, lr=0.05 if kind == "skip-gram" else 0.15),
        generator=torch.Generator().manual_seed(0),
    )
    assert contrast(vectors) > 0.5
    assert losses[-1] < losses[0] * 0.95
    for group in GROUPS:
        for word in group:
            assert {near for near, _ in vectors.nearest(word, 5)} == set(group) - {word}


def test_without_noise_all_words_would_become_alike():
    """What the noise is for: with hardly any of it, words of different groups are as similar as those of one."""
    vectors, _ = train_word2vec(world(), SMALL, generator=torch.Generator().manual_seed(0))
    between = [vectors.similarity(a, b) for a in GROUPS[0] for b in GROUPS[1]]
    assert max(between) < 0.5


@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_similarities_are_ranked_much_as_gensims(kind):
    """A chain of words, each seen with the words beside it: near in the chain is near in both."""
    pick = random.Random(0)
    sentences = []
    for _ in range(1500):
        at = pick.randrange(40)
        sentences.append([f"w{(at + pick.randint(-3, 3)) % 40}" for _ in range(8)])
    sg = kind == "skip-gram"
    theirs = Word2Vec(
        sentences, vector_size=16, window=4, negative=5, min_count=1, sample=0, epochs=4, sg=int(sg), seed=1, workers=1
    ).wv
    config = Word2VecConfig(
        kind=kind, d_model=16, window=4, min_count=1, sample=0.0, epochs=4, lr=0.025 if sg else 0.1, stretch=64
    )
    ours, _ = train_word2vec(sentences, config, generator=torch.Generator().manual_seed(0))
    pairs = list(itertools.combinations(ours.words, 2))
    ranks = [
        np.argsort(np.argsort([similarity(a, b) for a, b in pairs]))
        for similarity in (ours.similarity, theirs.similarity)
    ]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


def test_training_depends_on_the_generator_alone():
    for train, config in ((train_word2vec, SMALL), (train_glove, dataclasses.replace(SMALL_GLOVE, epochs=1))):
        runs = [train(world()[:100], config, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(runs[0][0].matrix, runs[1][0].matrix)
        assert runs[0][1] == runs[1][1]
        assert not torch.equal(runs[0][0].matrix, runs[2][0].matrix)


@pytest.mark.parametrize("sentences", [[["a", "b"]], [["a", "b", "a"], ["b"], []], [["a", "b"] * 100]])
@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_tiny_texts_are_learned_from(sentences, kind):
    vectors, losses = train_word2vec(sentences, dataclasses.replace(SMALL, kind=kind, window=5))
    assert torch.isfinite(vectors.matrix).all()
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)


def test_frequent_words_are_thinned_out_anew_in_each_pass_before_windows_are_laid(monkeypatch):
    sentences = [["cat", *"uuuuuu", "dog"] for _ in range(300)]
    passes = []

    def spy(words: Tensor, sentence: Tensor, reach: Tensor, begin: int, *rest: object) -> Stretch:
        if begin == 0:
            passes.append((words, sentence, reach))
        return stretch_of(words, sentence, reach, begin, *rest)

    monkeypatch.setattr("llm_core.models.word2vec._stretch", spy)
    config = dataclasses.replace(SMALL, window=4, epochs=2, sample=0.02, stretch=64)
    train_word2vec(sentences, config, generator=torch.Generator().manual_seed(0))
    keep = keep_probability(count_words(sentences).counts, 0.02).tolist()
    assert keep[0] < keep[1] / 2
    for words, sentence, reach in passes:
        assert len(words) == len(sentence) == len(reach)
        for word, came in enumerate((1800, 300, 300)):
            assert (words == word).sum().item() / came == pytest.approx(keep[word], abs=0.08)
        assert (sentence.diff() >= 0).all()
        assert sorted(reach.unique().tolist()) == [1, 2, 3, 4]
        # Words are still in their order: nothing comes before a cat (1) in its sentence, nothing after a dog (2).
        assert (sentence[1:][words[1:] == 1] > sentence[:-1][words[1:] == 1]).all()
        assert (sentence[:-1][words[:-1] == 2] < sentence[1:][words[:-1] == 2]).all()
    assert not torch.equal(passes[0][0][:50], passes[1][0][:50])


def test_vectors_that_grow_out_of_bounds_are_reported():
    with pytest.raises(ValueError, match=r"out of bounds, at step \d+ of pass \d+ with lr=20: lower lr"):
        train_word2vec(world(), dataclasses.replace(SMALL, lr=20.0, min_lr=20.0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["skip-gram", "cbow"])
def test_a_text_of_few_words_does_not_leap(kind):
    config = Word2VecConfig(kind=kind, min_count=1, sample=0.0, lr=0.05, d_model=10)
    vectors, losses = train_word2vec([["a", "b"] * 100, ["c"] * 100], config)
    assert losses[-1] < losses[0]
    assert vectors.matrix.norm(dim=1).max() < 20


def test_the_first_losses_are_those_of_vectors_that_know_nothing():
    # Every score is 0 at first: each of the 1 + K terms costs ln 2, less the noise that is the target itself.
    _, losses = train_word2vec(world(), dataclasses.replace(SMALL, lr=1e-9, min_lr=0.0, epochs=1))
    assert losses[0] == pytest.approx((1 + 5 * 23 / 24) * math.log(2), rel=0.01)


@pytest.mark.usefixtures("unchecked")
def test_word2vec_wants_words_that_are_near_each_other():
    with pytest.raises(ValueError, match="no word comes"):
        train_word2vec([], SMALL)
    with pytest.raises(ValueError, match="no sentence has two words of the 2"):
        train_word2vec([["a"], ["b"]], SMALL)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1: got 0") for name in
          ("d_model", "window", "negative", "min_count", "epochs", "stretch")),
        ({"kind": "glove"}, "'skip-gram' or 'cbow': got 'glove'"),
        ({"sample": -0.1}, r"got -0\.1"),
        ({"min_lr": 1.0}, r"got 1\.0 and 0\.05"),
        ({"min_lr": 0.0, "lr": 0.0}, r"got 0\.0 and 0\.0"),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
