"""Masks against loops, and torch's causal mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_core.layers.masks import causal, padding, sliding_window

SIZES = [(1, 1), (4, 4), (1, 5), (3, 5), (5, 5), (0, 3)]


@pytest.mark.parametrize(("T", "S"), SIZES)
def test_causal_equals_a_loop_with_the_queries_at_the_end(T, S):
    mask = causal(T, S)
    assert mask.shape == (T, S)
    assert mask.dtype == torch.bool
    for i in range(T):
        position = S - T + i
        for j in range(S):
            assert mask[i, j] == (j <= position)


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("T", [1, 3])
def test_queries_may_stand_anywhere_among_the_keys(T, at):
    place = torch.tensor(at)
    whole, windowed = causal(9), sliding_window(9, window=3)
    assert torch.equal(causal(T, 9, at=place), whole[at : at + T])
    assert torch.equal(sliding_window(T, 9, window=3, at=place), windowed[at : at + T])


def test_causal_is_torchs():
    theirs = nn.Transformer.generate_square_subsequent_mask(6) == 0  # theirs is 0 and -inf
    assert torch.equal(causal(6), theirs)
    assert torch.equal(causal(6), torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize(("T", "S"), SIZES)
@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_sliding_window_equals_a_loop(T, S, window):
    mask = sliding_window(T, S, window=window)
    assert mask.shape == (T, S)
    for i in range(T):
        position = S - T + i
        for j in range(S):
            assert mask[i, j] == (position - window < j <= position)


def test_fewer_queries_are_the_last_rows_of_the_whole_mask():
    for T in range(1, 7):
        assert torch.equal(causal(T, 6), causal(6)[6 - T :])
        assert torch.equal(sliding_window(T, 6, window=2), sliding_window(6, window=2)[6 - T :])


def test_padding_marks_real_tokens():
    ids = torch.tensor([[5, 7, 0, 0], [0, 3, 4, 1], [9, 9, 9, 9]])
    mask = padding(ids, pad_id=0)
    assert mask.shape == (3, 1, 1, 4)
    for b in range(3):
        for j in range(4):
            assert mask[b, 0, 0, j] == (ids[b, j] != 0)
    assert padding(ids, pad_id=9)[2].sum() == 0


def test_masks_join_with_and():
    ids = torch.tensor([[5, 7, 8], [5, 7, 0]])
    both = causal(3) & padding(ids, pad_id=0)
    assert both.shape == (2, 1, 3, 3)
    assert both[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert both[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]


def test_errors_have_the_numbers():
    with pytest.raises(ValueError, match="T=4, S=3"):
        causal(4, 3)
    with pytest.raises(ValueError, match="T=4, S=3"):
        sliding_window(4, 3, window=2)
    with pytest.raises(ValueError, match="window=0"):
        sliding_window(4, window=0)


def test_the_device_can_be_chosen():
    assert causal(3, device="meta").device.type == "meta"
    assert sliding_window(3, window=2, device="meta").device.type == "meta"
    assert padding(torch.zeros(2, 3, dtype=torch.long, device="meta"), 0).device.type == "meta"
