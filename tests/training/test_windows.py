"""Every batch follows from (seed, step): each target once an epoch, in an order that chance could have given."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from llm_core.data.shards import TokenShards, write_shards
from llm_core.training.windows import WindowSampler, permute


def some_documents(vocab_size: int = 1000, n: int = 40) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(vocab_size) for _ in range(draw.randrange(60))] for _ in range(n)]


def joined(documents, end_id=None) -> list[int]:
    return [id_ for document in documents for id_ in [*document, *([] if end_id is None else [end_id])]]


def window_rows(sampler: WindowSampler, step: int) -> torch.Tensor:
    """The windows (B, T + 1) that a step's inputs and targets were cut from."""
    (inputs,), targets = sampler.batch(step)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return torch.cat([inputs, targets[:, -1:]], dim=1)


def windows_of(sampler: WindowSampler, steps) -> list[int]:
    """The numbers of the windows of some steps, where the tokens are 0, 1, 2, ..."""
    rows = torch.cat([window_rows(sampler, step) for step in steps])
    assert torch.equal(rows, rows[:, :1] + torch.arange(sampler.length + 1))  # T + 1 neighbours
    assert not (rows[:, 0] % sampler.length).any()
    return (rows[:, 0] // sampler.length).tolist()


@pytest.mark.parametrize(("n", "length", "batch_size"), [(2, 1, 1), (41, 4, 5), (44, 4, 3), (45, 4, 16), (301, 1, 7)])
def test_every_target_is_seen_once_an_epoch(n, length, batch_size):
    sampler = WindowSampler(torch.arange(n), batch_size=batch_size, length=length, seed=1)
    W = sampler.n_windows
    assert len(range(0, n - length, length)) == W
    epochs = 3
    seen = windows_of(sampler, range(math.ceil(epochs * W / batch_size)))
    for epoch in range(epochs):
        assert sorted(seen[epoch * W : (epoch + 1) * W]) == list(range(W))
    targets = [target for w in range(W) for target in range(w * length + 1, w * length + length + 1)]
    assert targets == list(range(1, n - (n - 1) % length))  # all but the first token, and fewer than T at the end


def test_epochs_and_seeds_differ_in_order():
    sampler = WindowSampler(torch.arange(1001), batch_size=100, length=1, seed=1)
    orders = [windows_of(sampler, range(10 * epoch, 10 * epoch + 10)) for epoch in range(3)]
    orders.append(windows_of(WindowSampler(torch.arange(1001), batch_size=100, length=1, seed=2), range(10)))
    assert len({tuple(order) for order in orders}) == 4
    for a, b in permutations(orders, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 10  # of random orders about 1 in 1000 agrees


def test_the_same_seed_and_step_give_the_same_batch_whatever_came_before(tmp_path):
    documents = some_documents()
    tokens = write_shards(tmp_path, documents, vocab_size=1000, shard_tokens=37)
    first = WindowSampler(tokens, batch_size=4, length=8, seed=7)
    run = [window_rows(first, step) for step in range(60)]
    resumed = WindowSampler(TokenShards(tmp_path), batch_size=4, length=8, seed=7)
    for step in (59, 31, 32, 0):
        assert torch.equal(window_rows(resumed, step), run[step])
    in_memory = WindowSampler(torch.tensor(joined(documents)), batch_size=4, length=8, seed=7)
    assert torch.equal(torch.stack([window_rows(in_memory, step) for step in range(60)]), torch.stack(run))
    assert run[0].shape == (4, 9)
    assert run[0].dtype == torch.long


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_processes_rows_together_are_the_batch_of_one(world):
    tokens = torch.arange(200)
    alone = WindowSampler(tokens, batch_size=12, length=3, seed=5)
    together = [
        WindowSampler(tokens, batch_size=12, length=3, seed=5, rank=rank, world=world) for rank in range(world)
    ]  # fmt: skip
    for step in (0, 4, 5, 6, 1000):  # 66 windows: steps 5 and 1000 cross from epoch to epoch
        parts = [window_rows(sampler, step) for sampler in together]
        assert {len(part) for part in parts} == {12 // world}
        assert torch.equal(torch.cat(parts), window_rows(alone, step))


def test_any_step_is_as_near_as_the_first():
    sampler = WindowSampler(torch.arange(1001), batch_size=8, length=10, seed=0)
    asked = []

    class Counted:
        def __len__(self):
            return 1001

        def __getitem__(self, where):
            asked.append(where)
            return torch.arange(1001)[where]

    sampler.tokens = Counted()
    for step in (0, 10**6, 10**15):
        asked.clear()
        window_rows(sampler, step)
        assert len(asked) == 8
    huge = WindowSampler(torch.empty(10**12 + 1, dtype=torch.uint8, device="meta"), batch_size=2, length=1, seed=0)
    assert huge.n_windows == 10**12
    assert huge.batch(3).targets.shape == (2, 1)  # without a permutation of 10^12


def test_steps_of_an_epoch_are_known():
    sampler = WindowSampler(torch.arange(101), batch_size=8, length=10, seed=0)
    assert sampler.n_windows == 10
    assert [sampler.steps(epochs) for epochs in (0, 1, 4, 5)] == [0, 2, 5, 7]
    assert set(windows_of(sampler, range(sampler.steps()))) == set(range(10))


def test_small_tokens_become_the_integers_that_embeddings_take():
    sampler = WindowSampler(torch.arange(9, dtype=torch.uint8), batch_size=1, length=2, seed=0)
    assert sampler.batch(0).targets.dtype == torch.long


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"length": 0}, "length=0"),
        ({"length": 20}, "a window has 21 tokens, and there are 20"),
        ({"rank": 2, "world": 2}, r"one of 0 \.\.\. 1: got 2"),
        ({"rank": -1}, "got -1"),
        ({"world": 0}, "world=0"),
        ({"world": 3}, "batch_size=4 is no multiple of 3"),
        ({"seed": -1}, "got -1"),
        ({"seed": 1 << 64}, "got 18446744073709551616"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WindowSampler(torch.arange(20), **({"batch_size": 4, "length": 2, "seed": 0} | changes))


def test_steps_count_from_zero():
    with pytest.raises(ValueError, match="got -1"):
        WindowSampler(torch.arange(20), batch_size=4, length=2, seed=0).batch(-1)


def orders(n: int, seed: int, epochs: int) -> np.ndarray:
    """The permutations of some epochs, one a row."""
    places = np.tile(np.arange(n, dtype=np.uint64), epochs)
    numbers = permute(places, n, seed=seed, epochs=np.repeat(np.arange(epochs, dtype=np.uint64), n))
    return numbers.reshape(epochs, n).astype(np.int64)


def test_the_permutation_is_one():
    for n in [*range(1, 200), 1023, 1024, 1025, 4095, 4096, 4097, 99_991, 100_000]:
        assert np.array_equal(np.sort(orders(n, seed=n, epochs=2)), [np.arange(n)] * 2)


def test_places_may_be_asked_for_one_by_one_and_epochs_mixed():
    whole = orders(37, seed=3, epochs=3)
    places, epochs = np.array([5, 36, 0, 5], dtype=np.uint64), np.array([2, 0, 1, 0], dtype=np.uint64)
    assert permute(places, 37, seed=3, epochs=epochs).tolist() == whole[[2, 0, 1, 0], [5, 36, 0, 5]].tolist()


def test_numbers_beyond_32_bits_are_permuted_too():
    n = (1 << 45) + 17
    places = np.arange(n - 20_000, n, dtype=np.uint64)
    there = permute(places, n, seed=1, epochs=np.zeros_like(places))
    assert len(set(there.tolist())) == 20_000
    assert int(there.max()) < n
    assert chisquare(np.bincount((there // np.uint64(n // 50 + 1)).astype(int), minlength=50)).pvalue > 1e-3


# Below: an order that is not random gives a p-value far below 1e-6, one that is random gives one below 1e-3 once in a
# thousand times. The seeds are fixed, so that no test fails by chance.


@pytest.mark.parametrize("n", [2, 3, 7, 12, 16, 30, 101])
def test_each_number_is_as_often_at_each_place(n):
    seen = orders(n, seed=0, epochs=60 * n)
    for place in range(n):
        assert chisquare(np.bincount(seen[:, place], minlength=n)).pvalue > 1e-3 / n


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_each_order_of_few_numbers_is_as_often(n):
    seen = Counter(map(tuple, orders(n, seed=9, epochs=50 * math.factorial(n)).tolist()))
    assert chisquare([seen[one] for one in permutations(range(n))]).pvalue > 1e-3


def test_seeds_are_as_good_as_epochs():
    seen = Counter(tuple(orders(4, seed, epochs=1)[0].tolist()) for seed in range(1200))
    assert chisquare([seen[one] for one in permutations(range(4))]).pvalue > 1e-3


@pytest.mark.parametrize("n", [12, 16, 101, 10_007])
def test_neighbours_are_as_often_at_each_distance(n):
    seen = orders(n, seed=0, epochs=200_000 // n)
    distances = (np.diff(seen) % n).ravel()
    bins = min(n - 1, 100)
    expected = np.bincount(np.arange(n - 1) * bins // (n - 1)) / (n - 1) * len(distances)
    assert chisquare(np.bincount((distances - 1) * bins // (n - 1)), expected).pvalue > 1e-3


def test_an_epoch_says_nothing_of_the_next():
    seen = orders(64, seed=0, epochs=80) // 8
    pairs = Counter((a, b) for one, next_one in pairwise(seen.tolist()) for a, b in zip(one, next_one, strict=True))
    assert chisquare([pairs[a, b] for a in range(8) for b in range(8)]).pvalue > 1e-3


def test_cycles_are_as_many_as_in_random_permutations():
    n, trials = 300, 300
    number = 0
    for places in orders(n, seed=0, epochs=trials).tolist():
        unseen = set(range(n))
        while unseen:
            number += 1
            at = unseen.pop()
            while places[at] in unseen:
                at = places[at]
                unseen.remove(at)
    mean = sum(1 / k for k in range(1, n + 1))  # mean H_n, variance H_n - sum of 1 / k^2
    deviation = math.sqrt((mean - sum(1 / k**2 for k in range(1, n + 1))) / trials)
    assert abs(number / trials - mean) < 4 * deviation
