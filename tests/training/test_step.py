"""One training step: it learns, it clips as torch does, and it does not take a step into NaN."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import Batch, shift, teacher_forcing
from llm_core.training.losses import cross_entropy
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.step import train_step

CONFIG = GPTConfig(vocab_size=11, context=12, n_layers=1, n_heads=2, d_model=16)


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def batch() -> Batch:
    return shift(torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("max_norm", [0.05, 1.0, math.inf])
def test_equals_the_loop_written_out_with_torchs_parts(max_norm):
    ours, theirs = gpt().double(), gpt().double()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=123.0)
    expected = torch.optim.AdamW(theirs.parameters(), lr=123.0)
    for step in range(4):
        lr = 0.01 * (step + 1)
        record = train_step(ours, batch(), optimizer, lr=lr, max_norm=max_norm)
        expected.zero_grad()
        loss = F.cross_entropy(theirs(*batch().inputs).flatten(0, 1), batch().targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        expected.param_groups[0]["lr"] = lr
        expected.step()
        assert record.loss == pytest.approx(loss.item(), rel=1e-10)
        assert record.grad_norm == pytest.approx(norm.item(), rel=1e-10)
        assert record.lr == lr
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_are_clipped_all_together():
    model = gpt()
    record = train_step(model, batch(), AdamW(model.parameters()), lr=0.0, max_norm=0.05)
    assert record.grad_norm > 0.05
    after = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert after == pytest.approx(0.05, rel=1e-3)


def test_the_learning_rate_is_set_in_every_group():
    model = gpt()
    optimizer = AdamW(decay_groups(model, 0.1), lr=1.0)
    train_step(model, batch(), optimizer, lr=0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    before = [p.detach().clone() for p in model.parameters()]
    train_step(model, batch(), optimizer, lr=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gpt_learns_a_batch_by_heart():
    model = gpt()
    optimizer = AdamW(decay_groups(model, 0.0))
    losses = [train_step(model, batch(), optimizer, lr=0.01).loss for _ in range(120)]
    assert losses[0] == pytest.approx(math.log(11), abs=0.1)
    assert losses[-1] < 0.2


def test_an_encoder_decoder_learns_to_reverse():
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(12, 8, n_layers=1, n_heads=2, d_model=16, d_ff=32))
    optimizer = AdamW(model.parameters())
    sources = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    pairs = teacher_forcing(sources, [s[::-1] for s in sources], bos_id=1, eos_id=2, pad_id=0)
    loss = partial(cross_entropy, ignore_id=0)
    losses = [train_step(model, pairs, optimizer, lr=0.01, loss=loss).loss for _ in range(100)]
    assert losses[-1] < 0.1 < losses[0]


def test_the_model_learns_the_loss_that_is_handed_in():
    model, seen = gpt(), []

    def loss(logits, targets):
        seen.append((logits.shape, targets.shape))
        return cross_entropy(logits, targets) * 3

    first = train_step(model, batch(), AdamW(model.parameters()), lr=0.0, loss=loss).loss
    assert seen == [((4, 8, 11), (4, 8))]
    assert first == pytest.approx(3 * train_step(model, batch(), AdamW(model.parameters()), lr=0.0).loss)


class Fragile(nn.Module):
    """Logits that are fine, and gradients that are not: d sqrt(x) / dx at 0 is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(11))
        self.other = nn.Parameter(torch.ones(3))

    def forward(self, ids):
        return self.weight.sqrt().expand(*ids.shape, 11)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(bad):
    model = gpt()
    optimizer = AdamW(model.parameters(), lr=0.01)
    train_step(model, batch(), optimizer, lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    state = {k: v.clone() for k, v in optimizer.state[model.norm.weight].items()}
    with pytest.raises(ValueError, match=f"the loss is {bad}, so this step was not taken"):
        train_step(model, batch(), optimizer, lr=0.02, loss=lambda logits, targets: logits.sum() * bad)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(optimizer.state[model.norm.weight][k], v) for k, v in state.items())


def test_a_gradient_that_is_not_finite_leaves_the_parameters_as_they_were():
    model = Fragile()
    optimizer = AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"the gradient norm is (nan|inf), so this step was not taken"):
        train_step(model, batch(), optimizer, lr=0.01)
    assert (model.weight == 0).all()
    assert (model.other == 1).all()
    assert not optimizer.state
