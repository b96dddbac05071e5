"""The cache holds what was put in, in order; a refused append leaves it as it was; rewind and reorder."""

from __future__ import annotations

import pytest
import torch

from llm_core.layers.cache import Cache, LayerCache


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
