"""The cache holds what was put in, in order; a refused append leaves it as it was; rewind and reorder."""

from __future__ import annotations

import random

import pytest
import torch

from llm_core.layers.cache import REWINDABLE, Cache, LayerCache


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(batch=2, length=4, capacity=6):
    cache = LayerCache(batch, 3, capacity, 5)
    key, value = draw(batch, 3, length, 5), draw(batch, 3, length, 5, seed=1)
    cache.append(key, value)
    return cache, key, value


def test_appends_join_in_order():
    cache = LayerCache(2, 3, 6, 5)
    assert (cache.length, cache.capacity) == (0, 6)
    key, value = draw(2, 3, 6, 5), draw(2, 3, 6, 5, seed=1)
    for start, end in [(0, 2), (2, 3), (3, 6)]:
        keys, values = cache.append(key[:, :, start:end], value[:, :, start:end])
        assert cache.length == end
        assert torch.equal(keys, key[:, :, :end])
        assert torch.equal(values, value[:, :, :end])
    assert all(torch.equal(a, b) for a, b in zip(cache.contents(), (key, value), strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3, 5), "holds 4 of 6 tokens and 3 more.*at least 7"),
        ((1, 3, 1, 5), r"\(2, 3, 5\): got \(1, 3, 5\)"),
        ((2, 1, 1, 5), r"\(2, 3, 5\): got \(2, 1, 5\)"),
        ((2, 3, 1, 4), r"\(2, 3, 5\): got \(2, 3, 4\)"),
    ],
)
def test_a_refused_append_leaves_the_cache_as_it_was(shape, message):
    cache, key, value = filled()
    with pytest.raises(ValueError, match=message):
        cache.append(torch.zeros(shape), torch.zeros(shape))
    assert cache.length == 4
    assert all(torch.equal(a, b) for a, b in zip(cache.contents(), (key, value), strict=True))
    more = draw(2, 3, 2, 5, seed=7)
    keys, values = cache.append(more, more)
    assert torch.equal(keys, torch.cat([key, more], dim=2))
    assert torch.equal(values, torch.cat([value, more], dim=2))


def test_rewind_forgets_and_what_follows_is_written_over():
    cache, key, _ = filled()
    cache.rewind(2)
    assert cache.length == 2
    more = draw(2, 3, 3, 5, seed=7)
    keys, _ = cache.append(more, more)
    assert torch.equal(keys, torch.cat([key[:, :, :2], more], dim=2))
    cache.rewind(0)
    assert cache.length == 0


@pytest.mark.parametrize("length", [-1, 5])
def test_rewind_cannot_go_where_nothing_was(length):
    cache, _, _ = filled()
    with pytest.raises(ValueError, match=f"4 tokens cannot be rewound to {length}"):
        cache.rewind(length)
    assert cache.length == 4


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 0], [1], [0, 0, 1, 1, 2, 2]])
def test_reorder_copies_rows(rows):
    cache, key, value = filled(batch=3)
    cache.reorder(torch.tensor(rows))
    assert cache.length == 4
    keys, values = cache.contents()
    for i, row in enumerate(rows):
        assert torch.equal(keys[i], key[row])
        assert torch.equal(values[i], value[row])
    # Rows that were copied go their own ways.
    more = draw(len(rows), 3, 1, 5, seed=7)
    keys, _ = cache.append(more, more)
    assert torch.equal(keys[:, :, 4], more[:, :, 0])


def test_the_cache_of_a_model_moves_all_layers_together():
    cache = Cache(3, 2, 1, 8, 4, dtype=torch.float64)
    assert len(cache.layers) == 3
    for layer in cache.layers:
        layer.append(draw(2, 1, 5, 4).double(), draw(2, 1, 5, 4).double())
    assert (cache.length, cache.capacity) == (5, 8)
    before = [layer.contents()[0].clone() for layer in cache.layers]
    cache.reorder(torch.tensor([1, 0]))
    cache.rewind(3)
    assert cache.length == 3
    for layer, keys in zip(cache.layers, before, strict=True):
        assert layer.length == 3
        assert layer.contents()[0].dtype == torch.float64
        assert torch.equal(layer.contents()[0], keys[[1, 0], :, :3])


def test_layers_do_not_share_memory():
    cache = Cache(2, 1, 1, 4, 2)
    cache.layers[0].append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert cache.layers[1].length == 0
    cache.layers[1].append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    keys, values = cache.layers[0].contents()
    assert keys.sum() == values.sum() == 2


# ---- with a window ----


@pytest.mark.parametrize("seed", range(30))
def test_a_window_gives_the_last_keys_of_all_that_were_seen(seed):
    """Whatever comes: tokens in any number, steps back, rows reordered. Held against a list of everything."""
    draws = random.Random(seed)
    window, capacity = draws.choice([1, 2, 3, 8, 40]), 150
    cache = LayerCache(2, 1, capacity, 3, window=window)
    seen = torch.zeros(2, 1, 0, 3)
    steps = furthest = 0
    while cache.length < capacity:
        T = min(draws.choice([1, 1, 1, 2, 5, window, 3 * window + 50]), capacity - cache.length)
        key = draw(2, 1, T, 3, seed=seed * 1000 + steps)
        S = min(cache.length, window - 1) + T
        assert cache.keys_after(T) == S
        keys, values = cache.append(key, -key)
        seen = torch.cat([seen, key], dim=2)
        assert cache.length == seen.shape[2]
        furthest = max(furthest, cache.length)
        assert torch.equal(keys, seen[:, :, -S:])
        assert torch.equal(values, -seen[:, :, -S:])
        if draws.random() < 0.3 and steps < 200:
            # What can be taken back counts from the furthest that the cache has been.
            back = draws.randrange(max(0, furthest - REWINDABLE), cache.length + 1)
            cache.rewind(back)
            seen = seen[:, :, :back]
        if draws.random() < 0.2:
            rows = torch.tensor([draws.randrange(2) for _ in range(2)])
            cache.reorder(rows)
            seen = seen[rows]
        steps += 1
    with pytest.raises(ValueError, match=r"holds 150 of 150 tokens and 1 more"):
        cache.append(key[:, :, :1], key[:, :, :1])


def test_a_window_bounds_the_memory_and_a_short_text_needs_no_more_than_itself():
    assert LayerCache(1, 1, 10_000, 2, window=5)._keys.shape[2] == 2 * 5 + REWINDABLE
    assert LayerCache(1, 1, 7, 2, window=5)._keys.shape[2] == 7
    assert LayerCache(1, 1, 7, 2)._keys.shape[2] == 7


def test_a_window_that_has_moved_on_cannot_be_taken_back_too_far():
    cache = LayerCache(1, 1, 1000, 2, window=4)
    for _ in range(500):
        cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    first = next(n for n in range(500) if _can_rewind(cache, n))
    assert 500 - first >= REWINDABLE
    with pytest.raises(ValueError, match=rf"500 tokens with a window of 4 .* to {first - 1}: .* back to {first}"):
        cache.rewind(first - 1)
    assert cache.length == 500
    cache.rewind(first)
    keys, _ = cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 0]


def _can_rewind(cache, length):
    before = cache.length
    try:
        cache.rewind(length)
    except ValueError:
        return False
    cache.length = before
    return True


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_holds_at_least_the_own_position(window):
    with pytest.raises(ValueError, match=f"window={window}"):
        LayerCache(1, 1, 4, 2, window=window)


def test_a_refused_append_leaves_a_window_as_it_was():
    cache = LayerCache(1, 1, 100, 2, window=3)
    for i in range(99):
        cache.append(torch.full((1, 1, 1, 2), float(i)), torch.zeros(1, 1, 1, 2))
    with pytest.raises(ValueError, match="99 of 100 tokens and 2 more"):
        cache.append(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    keys, _ = cache.append(torch.full((1, 1, 1, 2), 99.0), torch.zeros(1, 1, 1, 2))
    assert keys[0, 0, :, 0].tolist() == [97, 98, 99]


# ---- rows of unequal length ----


def appended(cache: Cache, T: int) -> None:
    for layer in cache.layers:
        layer.append(torch.zeros(3, 1, T, 2), torch.zeros(3, 1, T, 2))


@pytest.mark.parametrize("window", [None, 3])
def test_padding_is_remembered_as_positions_and_as_a_mask(window):
    cache = Cache(2, 3, 1, 60, 2, window=window)
    assert cache.text_after(4) is None
    assert cache.start == 0
    padding = torch.tensor([0, 2, 5])
    cache.pad_left(padding)
    for T in (6, 1, 1, 40):
        assert torch.equal(cache.start, cache.length - padding)
        text = cache.text_after(T)
        end = cache.length + T
        keys = range(end - cache.keys_after(T), end)
        assert text.shape == (3, 1, 1, len(keys))
        assert text[:, 0, 0].tolist() == [[key >= pad for key in keys] for pad in padding.tolist()]
        appended(cache, T)
    if window is None:
        cache.rewind(4)
        assert cache.start.tolist() == [4, 2, -1]
    cache.reorder(torch.tensor([2, 2, 1]))
    assert cache.padding.tolist() == [5, 5, 2]


def test_padding_comes_before_the_first_token():
    cache = Cache(1, 3, 1, 8, 2)
    appended(cache, 2)
    with pytest.raises(ValueError, match="this one holds 2 tokens"):
        cache.pad_left(torch.tensor([0, 1, 0]))
    assert cache.padding is None
