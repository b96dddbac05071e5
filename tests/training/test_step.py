"""One training step: it learns, it clips as torch does, and it does not take a step into NaN."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import Batch, shift, teacher_forcing
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.step import NotFinite, accumulate, train_step, update

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
    loss = CrossEntropy(ignore_id=0)
    losses = [train_step(model, pairs, optimizer, lr=0.01, loss=loss).loss for _ in range(100)]
    assert losses[-1] < 0.1 < losses[0]


def test_the_model_learns_the_loss_that_is_handed_in():
    class Threefold(CrossEntropy):
        def total(self, model, batch):
            return super().total(model, batch) * 3

    model = gpt()
    first = train_step(model, batch(), AdamW(model.parameters()), lr=0.0, loss=Threefold()).loss
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

    class Bad(CrossEntropy):
        def total(self, model, batch):
            return super().total(model, batch) * bad

    with pytest.raises(NotFinite, match=f"the loss is {bad}, so this step was not taken") as error:
        train_step(model, batch(), optimizer, lr=0.02, loss=Bad())
    assert torch.equal(error.value.batch[0].targets, batch().targets)
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


def ragged() -> list[Batch]:
    """Texts of unequal length, cut into parts with unequal numbers of targets; one part has a single target."""
    ids = torch.randint(1, 11, (5, 9), generator=torch.Generator().manual_seed(2))
    for row, length in enumerate([9, 3, 8, 2, 5]):
        ids[row, length:] = 0
    whole = shift(ids)
    rows = [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    return [whole, *(Batch((whole.inputs[0][r],), whole.targets[r]) for r in rows)]


def test_a_batch_in_parts_is_the_whole_batch_though_the_parts_are_unequal():
    whole, *parts = ragged()
    models = [gpt().double(), gpt().double()]
    for _ in range(3):
        records = []
        for model, batch in zip(models, (whole, parts), strict=True):
            model.optimizer = getattr(model, "optimizer", None) or AdamW(model.parameters())
            records.append(train_step(model, batch, model.optimizer, lr=0.01, loss=CrossEntropy(ignore_id=0)))
        assert records[0].loss == pytest.approx(records[1].loss, rel=1e-12)
        assert records[0].grad_norm == pytest.approx(records[1].grad_norm, rel=1e-12)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_mean_of_the_parts_means_would_be_another_number():
    """The bug that `total` and `count` are there for; were the two equal, the test above would show nothing."""
    whole, *parts = ragged()
    loss, model = CrossEntropy(ignore_id=0), gpt()
    means = [(loss.total(model, part) / loss.count(part)).item() for part in parts]
    right = (loss.total(model, whole) / loss.count(whole)).item()
    assert abs(sum(means) / len(means) - right) > 0.001


def test_a_part_in_which_nothing_counts_changes_nothing():
    _, *parts = ragged()
    empty = Batch((torch.ones(1, 4, dtype=torch.long),), torch.zeros(1, 4, dtype=torch.long))
    records = [
        train_step(model := gpt(), batch, AdamW(model.parameters()), lr=0.01, loss=CrossEntropy(ignore_id=0))
        for batch in (parts, [*parts, empty])
    ]
    assert records[0].loss == pytest.approx(records[1].loss)


@pytest.mark.parametrize("batches", [[], [Batch((torch.ones(1, 4, dtype=torch.long),), torch.zeros(1, 4).long())]])
def test_nothing_to_learn_from_is_an_error_before_anything_is_done(batches):
    model = gpt()
    model.norm.weight.grad = torch.ones(16)
    with pytest.raises(ValueError, match="no target to learn from"):
        train_step(model, batches, AdamW(model.parameters()), lr=0.01, loss=CrossEntropy(ignore_id=0))
    assert (model.norm.weight.grad == 1).all()


def test_all_parts_but_the_last_run_without_sync():
    order = []

    class Noting(CrossEntropy):
        def total(self, model, batch):
            order.append("part")
            return super().total(model, batch)

    @contextmanager
    def without_sync():
        order.append("quiet")
        yield
        order.append("end")

    model, (_, *parts) = gpt(), ragged()
    train_step(model, parts[:3], AdamW(model.parameters()), lr=0.01, loss=Noting(0), without_sync=without_sync)
    assert order == ["quiet", "part", "end", "quiet", "part", "end", "part"]


def test_the_forward_pass_runs_in_the_precision_that_is_asked_for_and_weights_stay_in_float32():
    models = [gpt(), gpt()]
    seen = []
    models[1].blocks[0].feed_forward.up.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    optimizers = [AdamW(model.parameters()) for model in models]
    bf16 = torch.autocast("cpu", torch.bfloat16)
    for _ in range(20):  # the same object, again and again
        exact = train_step(models[0], batch(), optimizers[0], lr=0.01)
        rounded = train_step(models[1], batch(), optimizers[1], lr=0.01, precision=bf16)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in models[1].parameters()} == {torch.float32}
    assert 0 < abs(exact.loss - rounded.loss) < 0.05 * exact.loss
    assert not torch.is_autocast_enabled("cpu")


def test_the_gradients_are_clipped_by_what_is_handed_in():
    calls = []

    def clip(parameters, max_norm):
        calls.append((len(list(parameters)), max_norm))
        return torch.tensor(7.0)

    model = gpt()
    record = train_step(model, batch(), AdamW(model.parameters()), lr=0.0, max_norm=0.25, clip=clip)
    assert calls == [(len(list(model.parameters())), 0.25)]
    assert record.grad_norm == 7


def test_torchs_fused_adamw_takes_the_same_steps():
    models = [gpt().double(), gpt().double()]
    optimizers = [AdamW(models[0].parameters()), torch.optim.AdamW(models[1].parameters(), fused=True)]
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, batch(), optimizer, lr=0.01)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Looks(TorchDispatchMode):
    """Counts how often a number is read from a tensor: on a GPU each time waits until all work is done."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_but_the_record_at_the_end(monkeypatch):
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters())
    ends, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: ends.append(tensor.shape) or tolist(tensor))
    with Looks() as looks:
        mean = accumulate(model, [batch(), batch()], optimizer)
        assert not ends
        record = update(model.parameters(), mean, optimizer, lr=0.01)
    assert looks.n == 0
    assert ends == [(2,)]  # the loss and the norm, in one
    assert record.loss == pytest.approx(mean.item())


def test_the_two_halves_are_the_step():
    whole, halves = gpt(), gpt()
    optimizers = [AdamW(model.parameters()) for model in (whole, halves)]
    for _ in range(3):
        expected = train_step(whole, batch(), optimizers[0], lr=0.01, max_norm=0.1)
        mean = accumulate(halves, [batch()], optimizers[1])
        assert update(halves.parameters(), mean, optimizers[1], lr=0.01, max_norm=0.1) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_gradients_are_cleared_before_they_are_added_to():
    model = gpt()
    optimizer = AdamW(model.parameters())
    accumulate(model, [batch()], optimizer)
    first = model.norm.weight.grad.clone()
    accumulate(model, [batch()], optimizer)
    assert torch.equal(model.norm.weight.grad, first)
