"""Relative positions in buckets against transformers' T5, whose function is the paper's own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from llm_core.layers.relative_positions import RelativePositions, relative_buckets


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (4, 3), (33, 100), (16, 9), (64, 1000)])
def test_buckets_are_those_of_transformers(n_buckets, max_distance, both_ways):
    distance = torch.arange(-1500, 1500)[None]
    expected = T5Attention._relative_position_bucket(
        distance, bidirectional=both_ways, num_buckets=n_buckets, max_distance=max_distance
    )
    got = relative_buckets(distance, n_buckets, max_distance, both_ways=both_ways)
    assert torch.equal(got, expected)
    assert got.min() == 0
    assert n_buckets - 1 - n_buckets % 2 <= got.max() < n_buckets


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_last_queries_have_the_rows_of_the_whole(both_ways):
    layer = RelativePositions(3, 8, 20, both_ways=both_ways)
    torch.nn.init.normal_(layer.weight)
    whole = layer(30, 30)
    assert whole.shape == (3, 30, 30)
    for T in (1, 4):
        assert torch.equal(layer(T, 30), whole[:, -T:])
    assert torch.equal(whole[:, 1:, 1:], whole[:, :-1, :-1])  # the distance alone decides


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 0}, "n_heads=0"),
        ({"n_buckets": 3}, "n_buckets=3"),
        ({"n_buckets": 1, "both_ways": False}, "n_buckets=1"),
        ({"max_distance": 8}, "must be greater: got max_distance=8,"),
        ({"max_distance": 16, "both_ways": False}, "must be greater: got max_distance=16,"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RelativePositions(**{"n_heads": 1, "both_ways": True, **change})
