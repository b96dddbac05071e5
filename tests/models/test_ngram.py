"""N-gram models against nltk.lm and against formulas written out over plain dictionaries."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from nltk.lm import KneserNeyInterpolated, Laplace, Lidstone
from nltk.util import everygrams

from llm_core.models.ngram import AddK, KneserNey, ModifiedKneserNey, NGramModel, Smoothing, count_grams

V = 7  # ids 0 ... 6, of which 6 never comes
SMOOTHINGS = [AddK(1.0), AddK(0.03), KneserNey(), KneserNey(0.1), KneserNey(0.6, uniform=False), ModifiedKneserNey()]


def text(length: int, seed: int = 0) -> list[int]:
    """Some grams often, some once."""
    return random.Random(seed).choices(range(V - 1), weights=[32, 16, 8, 4, 2, 1], k=length)


def ring(length: int, n: int) -> list[int]:
    """A text that ends as it begins, so that every gram shorter than n has come after something."""
    ids = text(length)
    return ids + ids[: n - 1]


def contexts(n: int) -> list[list[int]]:
    """Seen ones, unseen ones, short ones, too long ones."""
    draw = random.Random(1)
    return [[], [6], [6] * n] + [draw.choices(range(V - 1), k=draw.randint(0, n + 1)) for _ in range(30)]


def nltk_model(kind: type, ids: list[int], n: int, *args: float, **kwargs: float) -> object:
    model = kind(*args, n, **kwargs) if args else kind(n, **kwargs)
    # The seventh word of its vocabulary is <UNK>, which never comes.
    model.fit([everygrams(list(map(str, ids)), max_len=n)], vocabulary_text=[str(i) for i in range(V - 1)])
    assert len(model.vocab) == V
    return model


def nltk_distribution(model: object, context: list[int], n: int) -> list[float]:
    last = [str(i) if i < V - 1 else "<UNK>" for i in context][-(n - 1) :] if n > 1 else []
    return [model.score(str(i) if i < V - 1 else "<UNK>", last) for i in range(V)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 0.03])
def test_add_k_is_nltks(n, k):
    ids = text(200)
    theirs = nltk_model(Laplace, ids, n) if k == 1 else nltk_model(Lidstone, ids, n, k)
    ours = NGramModel([ids], n, vocab_size=V, smoothing=AddK(float(k)))
    for context in contexts(n):
        np.testing.assert_allclose(ours.distribution(context), nltk_distribution(theirs, context, n), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("discount", [0.1, 0.75, 1.0, 0.0])
def test_kneser_ney_is_nltks(n, discount):
    ids = ring(150, n)
    theirs = nltk_model(KneserNeyInterpolated, ids, n, discount=discount)
    ours = NGramModel([ids], n, vocab_size=V, smoothing=KneserNey(discount, uniform=False))
    for context in contexts(n):
        np.testing.assert_allclose(ours.distribution(context), nltk_distribution(theirs, context, n), atol=1e-12)


def test_where_a_text_does_not_begin_as_it_ends_nltk_does_not_sum_to_one_and_we_do():
    # "0 5" came, at the very beginning and after nothing: nltk takes it for a type, and counts no continuation.
    ids = [0, 5, 1, 0, 1, 2, 0, 2, 1, 0, 1]
    theirs = nltk_model(KneserNeyInterpolated, ids, 3, discount=0.75)
    assert sum(nltk_distribution(theirs, [6, 0], 3)) > 1.01
    ours = NGramModel([ids], 3, vocab_size=V, smoothing=KneserNey(uniform=False))
    assert ours.distribution([6, 0]).sum() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("ends", [{}, {"bos_id": 5}, {"bos_id": 5, "eos_id": 4}, {"eos_id": 6}])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_probabilities_sum_to_one(smoothing, ends, n):
    texts = [text(60), [0], [], [1, 2], text(9, seed=3)]
    model = NGramModel(texts, n, vocab_size=V, smoothing=smoothing, **ends)
    for context in [*contexts(n)[:12], *texts]:
        p = model.distribution(context)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert (p >= 0).all()


def brute_force(
    texts: list[list[int]], n: int, w: int, context: list[int], smoothing: KneserNey, bos: int | None
) -> float:
    """Interpolated Kneser-Ney as Chen and Goodman write it, over dictionaries of tuples."""
    start = 0 if bos is None else n - 1
    padded = [[bos] * start + ids for ids in texts]
    raw = Counter(
        tuple(ids[i - k : i])
        for ids in padded
        for k in range(1, n + 1)
        for i in range(k, len(ids) + 1)
        if i - 1 >= start
    )

    def counts(k: int) -> Counter:
        if k == n:
            return Counter({gram: c for gram, c in raw.items() if len(gram) == n})
        return Counter(gram[1:] for gram in raw if len(gram) == k + 1)

    def discounts(k: int) -> list[float]:
        if not isinstance(smoothing, ModifiedKneserNey):
            return [0, *[smoothing.discount] * 3]
        n_of = Counter(counts(k).values())
        result = [0.0]
        for r in (1, 2, 3):
            try:
                d = r - (r + 1) * n_of[1] / (n_of[1] + 2 * n_of[2]) * n_of[r + 1] / n_of[r]
            except ZeroDivisionError:
                d = -1.0
            if n_of[1] == 0 or not 0 <= d <= r:
                d = smoothing.discount
            result.append(d)
        return result

    def p(k: int, c: tuple[int, ...]) -> float:
        if k == 0:
            return 1 / V
        counted, d = counts(k), discounts(k)
        after = {gram: number for gram, number in counted.items() if gram[:-1] == c}
        below = p(k - 1, c[1:])
        if not after:
            return below
        total = sum(after.values())
        left = sum(d[min(number, 3)] for number in after.values())
        return (after.get((*c, w), 0) - d[min(after.get((*c, w), 0), 3)] + left * below) / total

    context = [bos] * start + context
    c = tuple(context[max(0, len(context) - n + 1) :])
    return p(len(c) + 1, c)


@pytest.mark.parametrize("smoothing", [KneserNey(), KneserNey(0.3), ModifiedKneserNey(), ModifiedKneserNey(0.4)])
@pytest.mark.parametrize("bos", [None, 5])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_kneser_ney_is_the_formula_written_out(smoothing, bos, n):
    texts = [text(70), text(12, seed=2), [3], [4, 4]]
    model = NGramModel(texts, n, vocab_size=V, smoothing=smoothing, bos_id=bos)
    for context in contexts(n)[:14]:
        expected = [brute_force(texts, n, w, context, smoothing, bos) for w in range(V)]
        np.testing.assert_allclose(model.distribution(context), expected, rtol=1e-10)


def test_the_three_discounts_differ_and_grow():
    counts = np.repeat([1, 2, 3, 4, 5, 9], [40, 15, 8, 5, 3, 2])
    one, two, three = ModifiedKneserNey().discounts(counts)
    y = 40 / 70
    assert (one, two, three) == pytest.approx((1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8))
    assert 0 < one < two < three


@pytest.mark.parametrize("counts", [[], [0, 0], [2, 2, 3], [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]])
def test_a_text_too_small_for_three_discounts_takes_the_one(counts):
    discounts = ModifiedKneserNey(0.4).discounts(np.array(counts, dtype=np.int64))
    assert all(0 <= d <= r for r, d in zip((1, 2, 3), discounts, strict=True))
    assert 0.4 in discounts


@pytest.mark.parametrize("start", [0, 2])
def test_counts_are_those_of_a_dictionary(start):
    texts = [text(50), text(1), text(3), text(20, seed=5)]
    grams = count_grams(texts, 4, V, start=start)
    expected = Counter(
        tuple(ids[i - k : i]) for ids in texts for k in range(1, 5) for i in range(k, len(ids) + 1) if i - 1 >= start
    )
    assert [int(g.counts.sum()) for g in grams] == [
        sum(c for gram, c in expected.items() if len(gram) == k) for k in range(1, 5)
    ]
    if start == 0:
        model = NGramModel(texts, 4, vocab_size=V)
        for gram in [*expected, (6,), (0, 6), (6, 0, 0), (5, 5, 5, 5)]:
            assert model.count(gram) == expected[gram], gram


def test_an_unseen_context_falls_back_to_the_shorter_one():
    model = NGramModel([text(100)], 3, vocab_size=V)
    np.testing.assert_allclose(model.distribution([6, 0]), NGramModel.distribution(model, [0]))
    np.testing.assert_allclose(model.distribution([0, 6]), model.distribution([]))
    assert not np.allclose(model.distribution([0]), model.distribution([]))
    np.testing.assert_allclose(
        NGramModel([text(100)], 3, vocab_size=V, smoothing=AddK()).distribution([0, 6]), np.full(V, 1 / V)
    )


def test_francisco_follows_san_and_little_else():
    # 0 = San, 1 = Francisco, 2 = glasses, 3 ... 5 other words: "Francisco" comes more often, after one word only.
    ids = [0, 1, 0, 1, 0, 1, 0, 1, 3, 2, 4, 2, 5, 2, 3]
    model = NGramModel([ids], 2, vocab_size=V)
    assert model.count([1]) > model.count([2])
    assert model.probability(2, [6]) > 2 * model.probability(1, [6])
    assert model.probability(1, [0]) > 0.5


def test_plain_frequencies_with_k_zero():
    model = NGramModel([[0, 1, 0, 2, 0, 1]], 2, vocab_size=V, smoothing=AddK(0.0))
    np.testing.assert_allclose(model.distribution([0]), [0, 2 / 3, 1 / 3, 0, 0, 0, 0])
    np.testing.assert_allclose(model.distribution([5]), np.full(V, 1 / V))
    assert model.perplexity([0, 1, 1]) == math.inf
    assert model.log_probability([0, 1, 1]) == -math.inf


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("ends", [{}, {"bos_id": 5}, {"bos_id": 5, "eos_id": 4}])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_all_ways_of_asking_agree(smoothing, ends, n):
    model = NGramModel([text(80), text(7, seed=1)], n, vocab_size=V, smoothing=smoothing, **ends)
    for ids in (text(12, seed=9), [3], []):
        scored = ids + ([4] if "eos_id" in ends else [])
        expected = np.array([model.probability(w, ids[:t]) for t, w in enumerate(scored)])
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(model.token_log_probabilities(ids), np.log(expected), rtol=1e-12)
            rows = model.next_token_log_probabilities(ids)
            assert rows.shape == (len(ids), V)
            for t, row in enumerate(rows):
                np.testing.assert_allclose(row, np.log(model.distribution(ids[: t + 1])), rtol=1e-12)
        if scored and (expected > 0).all():
            assert model.log_probability(ids) == pytest.approx(math.log(math.prod(expected)))
            assert model.perplexity(ids) == pytest.approx(math.prod(expected) ** (-1 / len(scored)))


def test_no_gram_reaches_from_one_text_into_the_next():
    model = NGramModel([[0, 1], [2, 3]], 2, vocab_size=V)
    assert model.count([0, 1]) == model.count([2, 3]) == 1
    assert model.count([1, 2]) == 0


def test_lists_arrays_and_tensors_are_the_same_text():
    ids = text(40)
    models = [NGramModel([kind(ids)], 3, vocab_size=V) for kind in (list, np.array, torch.tensor, tuple)]
    for model in models:
        assert np.array_equal(model.distribution(torch.tensor([0, 1])), models[0].distribution([0, 1]))


def test_the_start_of_a_text_has_its_own_distribution_and_its_marker_is_not_counted():
    model = NGramModel([[1, 2], [1, 3], [1, 4]], 3, vocab_size=V, bos_id=5, eos_id=0, smoothing=AddK(0.0))
    np.testing.assert_allclose(model.distribution(), np.eye(V)[1])
    np.testing.assert_allclose(model.distribution([1]), [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(model.distribution([1, 3]), np.eye(V)[0])
    assert model.count([5]) == 0
    assert model.log_probability([1, 2]) == pytest.approx(math.log(1 / 3))


@pytest.mark.parametrize("ids", [[0], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_text_shorter_than_n_is_counted(ids, smoothing):
    model = NGramModel([ids], 6, vocab_size=V, smoothing=smoothing)
    for context in contexts(6):
        assert model.distribution(context).sum() == pytest.approx(1)
    assert model.count(ids) == 1


def test_a_vocabulary_too_large_for_a_number_of_all_grams():
    big = 60_000  # 60000 ** 6 does not fit 64 bits
    ids = random.Random(0).choices([0, 1, big - 1], k=200)
    small = {0: 0, 1: 1, big - 1: 2}
    ours = NGramModel([ids], 6, vocab_size=big, smoothing=KneserNey(uniform=False))
    theirs = NGramModel([[small[i] for i in ids]], 6, vocab_size=3, smoothing=KneserNey(uniform=False))
    assert ours.perplexity(ids[:50]) == pytest.approx(theirs.perplexity([small[i] for i in ids[:50]]))
    assert ours.distribution(ids[:5])[[0, 1, big - 1]] == pytest.approx(
        theirs.distribution([small[i] for i in ids[:5]])
    )


def test_samples_follow_the_distribution_and_the_generator():
    model = NGramModel([text(300)], 2, vocab_size=V)
    draw = model.sample(2000, context=[0], generator=torch.Generator().manual_seed(0))
    assert draw[:50] == model.sample(50, context=[0], generator=torch.Generator().manual_seed(0))
    assert draw[:50] != model.sample(50, context=[0], generator=torch.Generator().manual_seed(1))
    after_0 = Counter(b for a, b in zip([0, *draw], draw, strict=False) if a == 0)
    shares = np.array([after_0[i] for i in range(V)]) / sum(after_0.values())
    np.testing.assert_allclose(shares, model.distribution([0]), atol=0.04)
    assert model.sample(0) == []


def test_a_sample_reads_all_of_its_context_and_ends_with_the_end():
    alphabet = list(range(6))
    model = NGramModel([alphabet], 3, vocab_size=V, smoothing=AddK(0.0), bos_id=6, eos_id=5)
    assert model.sample(9) == alphabet  # stops at 5, the end, which is the text's own last token too
    assert model.sample(3) == [0, 1, 2]
    assert model.sample(2, context=[0, 1]) == [2, 3]
    unigrams = NGramModel([[2, 2]], 1, vocab_size=V, smoothing=AddK(0.0))
    assert unigrams.sample(3, context=[0, 1]) == [2, 2, 2]


def test_a_smoothing_of_your_own_can_be_handed_in():
    class Uniform:
        interpolates = True

        def shares(self, grams, *, order, highest):
            return np.zeros(len(grams.codes)), np.ones(grams.n_contexts)

    assert isinstance(Uniform(), Smoothing)
    model = NGramModel([[0, 1]], 2, vocab_size=4, smoothing=Uniform())
    assert model.perplexity([0, 0, 3]) == pytest.approx(4)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_work_is_refused():
    for n, size, name in ((0, V, "n"), (2, 0, "vocab_size")):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0"):
            NGramModel([[0]], n, vocab_size=size)
    for empty in ([], [[]], [[], []]):
        with pytest.raises(ValueError, match=f"got {len(empty)} texts"):
            NGramModel(empty, 2, vocab_size=V, bos_id=0)
    for wrong in ([0, V], [-1, 0]):
        message = rf"0 \.\.\. {V - 1}: got {min(wrong)} to {max(wrong)}"
        with pytest.raises(ValueError, match=message):
            NGramModel([wrong], 2, vocab_size=V)
        with pytest.raises(ValueError, match=message):
            NGramModel([[0]], 2, vocab_size=V).distribution(wrong)
        with pytest.raises(ValueError, match=r"0 \.\.\. 6"):
            NGramModel([[0]], 2, vocab_size=V).probability(wrong[wrong[0] == 0])
    with pytest.raises(ValueError, match=r"got 7 to 7"):
        NGramModel([[0]], 2, vocab_size=V, bos_id=7)
    with pytest.raises(ValueError, match="got -1 to -1"):
        NGramModel([[0]], 2, vocab_size=V, eos_id=-1)
    for flat in ([0, 1, 2], ["ab"], [[0.5]], [["a", "b"]]):
        with pytest.raises(ValueError, match="sequence of token ids"):
            NGramModel(flat, 2, vocab_size=V)
    model = NGramModel([[0, 1]], 2, vocab_size=V)
    with pytest.raises(ValueError, match="1 to 2 tokens were counted: got one of 3"):
        model.count([0, 1, 0])
    with pytest.raises(ValueError, match="got one of 0"):
        model.count([])
    with pytest.raises(ValueError, match="empty text has no perplexity"):
        model.perplexity([])
    with pytest.raises(ValueError, match="length=-1"):
        model.sample(-1)


@pytest.mark.parametrize("k", [-0.1, math.inf, math.nan])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=f"got k={k}"):
        AddK(k)


@pytest.mark.parametrize("kind", [KneserNey, ModifiedKneserNey])
@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_an_impossible_discount_is_refused(kind, discount):
    with pytest.raises(ValueError, match=f"got {discount}"):
        kind(discount)
