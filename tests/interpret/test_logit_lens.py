"""The lens is transformers' head on transformers' hidden states, and its last layer is the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_core.interpret.logit_lens import logit_lens, read_lens, residual_stream


def test_the_lens_is_their_norm_and_head_on_their_hidden_states(pair, ids):
    lens = logit_lens(pair.ours, ids)
    assert lens.shape == (4, 2, 7, 31)
    hidden = pair.hidden_states(ids)
    for layer in range(3):
        expected = pair.head(pair.norm(hidden[layer]))
        torch.testing.assert_close(lens[layer], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(lens[3], pair.head(hidden[3]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("T", [1, 7, 32])
def test_the_last_layer_is_the_model_to_the_bit(pair, T):
    ids = torch.randint(31, (3, T), generator=torch.Generator().manual_seed(T))
    lens = logit_lens(pair.ours, ids)
    assert torch.equal(lens[-1], pair.ours(ids))
    assert not lens.requires_grad


def test_the_stream_begins_with_the_embeddings_and_grows_by_what_blocks_add(pair, ids):
    stream = residual_stream(pair.ours, ids)
    assert stream.shape == (4, 2, 7, 24)
    assert not stream.requires_grad
    torch.testing.assert_close(stream[0], pair.hidden_states(ids)[0])
    torch.testing.assert_close(pair.norm(stream[3]), pair.hidden_states(ids)[3], rtol=0, atol=2e-5)


def test_a_block_that_adds_nothing_changes_no_reading(pairs, ids):
    model = pairs["gpt2"].ours
    handle = model.blocks[1].register_forward_hook(lambda _m, args, _out: args[0])
    try:
        lens = logit_lens(model, ids)
    finally:
        handle.remove()
    assert torch.equal(lens[1], lens[2])
    assert not torch.equal(lens[2], lens[3])


def test_a_reading_is_what_softmax_and_sorting_say(pair, ids):
    lens = logit_lens(pair.ours, ids)
    targets = ids.roll(-1, dims=1)
    reading = read_lens(lens, targets, k=3)
    p = lens.softmax(dim=-1)
    order = lens.argsort(dim=-1, descending=True)
    assert torch.equal(reading.top, order[..., :3])
    torch.testing.assert_close(reading.top_probability, p.gather(-1, order)[..., :3])
    for layer in range(4):
        for b in range(2):
            for t in range(7):
                token = targets[b, t].item()
                assert reading.target_rank[layer, b, t] == order[layer, b, t].tolist().index(token) + 1
                torch.testing.assert_close(reading.target_probability[layer, b, t], p[layer, b, t, token])


def test_ties_and_extremes():
    logits = torch.tensor([[[[1.0, 1.0, 0.0]]], [[[500.0, -500.0, 0.0]]]])
    reading = read_lens(logits, torch.tensor([[1]]), k=3)
    assert reading.target_rank.flatten().tolist() == [1, 3]
    assert reading.target_probability[1].item() == 0.0
    assert reading.top_probability[1].flatten().tolist() == [1.0, 0.0, 0.0]
    assert reading.top[1].flatten().tolist() == [0, 2, 1]


def test_no_positions_give_no_readings():
    reading = read_lens(torch.zeros(3, 1, 0, 5), torch.zeros(1, 0, dtype=torch.int64))
    assert reading.target_rank.shape == (3, 1, 0)


@pytest.mark.parametrize("k", [0, 6])
def test_more_tokens_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"1 to V = 5 tokens: got k={k}"):
        read_lens(torch.zeros(3, 1, 2, 5), torch.zeros(1, 2, dtype=torch.int64), k=k)


@pytest.mark.parametrize("token", [-1, 5])
def test_a_target_that_is_no_token_is_refused(token):
    with pytest.raises(ValueError, match=r"must be tokens, 0 \.\.\. 4"):
        read_lens(torch.zeros(3, 1, 2, 5), torch.tensor([[0, token]]))


def test_one_target_a_position(unchecked):
    with pytest.raises(ValueError, match=r"got \(1, 3\) targets for \(B, T\) = \(1, 2\)"):
        read_lens(torch.zeros(3, 1, 2, 5), torch.zeros(1, 3, dtype=torch.int64))


def test_a_model_without_blocks_is_refused(ids):
    with pytest.raises(ValueError, match="has no blocks, norm, logits"):
        logit_lens(nn.Linear(2, 2), ids)
