"""Recurrent cells against torch's own and its loops, additive attention against the formula one number at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llm_core.models.cells import (
    Recurrent,
    additive_attention,
    additive_attention_weights,
    lstm_cell,
    rnn_cell,
)


def large(model: nn.Module) -> nn.Module:
    """Random weights, large enough that what was read shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_cells_are_torchs_cells():
    x, h, c = draw(3, 5), draw(3, 4, seed=1), draw(3, 4, seed=2)
    theirs = nn.RNNCell(5, 4, dtype=torch.float64)
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih + theirs.bias_hh)
    torch.testing.assert_close(rnn_cell(x, (h,), *weights)[0], theirs(x, h))
    theirs = nn.LSTMCell(5, 4, dtype=torch.float64)
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih + theirs.bias_hh)
    torch.testing.assert_close(lstm_cell(x, (h, c), *weights), theirs(x, (h, c)))


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize(("batch", "T", "n_layers"), [(1, 1, 1), (3, 7, 1), (2, 5, 3)])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_loop_is_torchs_fused_loop(cell, batch, T, n_layers, with_state):
    ours = large(Recurrent(cell, 5, 4, n_layers))
    theirs = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell](5, 4, n_layers, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for loop in (ours, theirs):
        x = draw(batch, T, 5).float().requires_grad_()
        state = None
        if with_state:
            state = tuple(draw(n_layers, batch, 4, seed=i).float() for i in range(1 if cell == "rnn" else 2))
            for part in state:
                part.requires_grad_()
        given = state[0] if with_state and cell == "rnn" and loop is theirs else state
        output, last = loop(x, given)
        last = (last,) if isinstance(last, Tensor) else last
        (output**2).sum().add(sum((i + 2) * (part**3).sum() for i, part in enumerate(last))).backward()
        gradients = [x.grad, *(part.grad for part in state or ()), *(p.grad for p in loop.parameters())]
        results.append([output, *last, *gradients])
    for mine, torchs in zip(*results, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_additive_attention_is_the_formula_one_number_at_a_time(masked):
    query, key, value, vector = draw(2, 3, 4), draw(2, 5, 4, seed=1), draw(2, 5, 6, seed=2), draw(4, seed=3)
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    got = additive_attention(query, key, value, vector, mask)
    weights = additive_attention_weights(query, key, vector, mask)
    for b in range(2):
        for t in range(3):
            may = [s for s in range(5) if mask is None or mask[b, t, s]]
            raised = {
                s: torch.exp(sum(vector[a] * torch.tanh(query[b, t, a] + key[b, s, a]) for a in range(4))) for s in may
            }
            expected = [raised.get(s, torch.tensor(0.0)) / sum(raised.values()) for s in range(5)]
            torch.testing.assert_close(weights[b, t], torch.stack(expected).double())
            torch.testing.assert_close(got[b, t], sum(w * value[b, s] for s, w in enumerate(expected)))


def test_a_query_that_may_read_nothing_gets_zeros():
    mask = torch.zeros(1, 1, 5, dtype=torch.bool)
    got = additive_attention(draw(1, 2, 4), draw(1, 5, 4), draw(1, 5, 6), draw(4), mask)
    assert torch.equal(got, torch.zeros(1, 2, 6, dtype=torch.float64))


@pytest.mark.usefixtures("unchecked")
def test_a_loop_of_no_such_cell_or_size_is_refused():
    with pytest.raises(ValueError, match="got 'gru'"):
        Recurrent("gru", 2, 3)
    with pytest.raises(ValueError, match="d_hidden must be at least 1: got 0"):
        Recurrent("rnn", 2, 0)
