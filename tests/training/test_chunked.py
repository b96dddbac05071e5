"""The chunked head and loss: the numbers of the plain one, in a fraction of its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llm_core.models.bert import Bert, BertConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch, shift
from llm_core.training.chunked import ChunkedCrossEntropy, chunked_cross_entropy
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

V, D = 13, 6


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def targets(*shape: int) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 1000])
def test_loss_and_gradients_are_those_of_torchs_cross_entropy(chunk, smoothing):
    hidden, weight = draws(2, 5, D).requires_grad_(), draws(V, D, seed=1).requires_grad_()
    ours = chunked_cross_entropy(hidden, weight, targets(2, 5), chunk=chunk, label_smoothing=smoothing)
    theirs = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets(10), reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # Another factor than one, as the mean over the batch has it.
    ours_grads = torch.autograd.grad(ours * 0.25, (hidden, weight))
    theirs_grads = torch.autograd.grad(theirs * 0.25, (hidden, weight))
    for a, b in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has none of its own")
def test_loss_and_gradients_are_those_of_torchs_own_chunks():
    hidden, weight = draws(40, D).requires_grad_(), draws(V, D, seed=1).requires_grad_()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=16)
    theirs = F.linear_cross_entropy(hidden, weight, targets(40), reduction="sum", ignore_index=2, options=options)
    ours = chunked_cross_entropy(hidden, weight, targets(40), chunk=16, ignore_id=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 13, 1024, 30_011])
def test_torchs_softmax_may_write_over_its_input(dtype, width):
    """Nobody promises it, and the chunked loss does it."""
    logits = (10 * draws(5, width)).to(dtype)
    apart = torch.softmax(logits, -1)
    assert torch.equal(torch.softmax(logits, -1, out=logits), apart)


def test_gradients_agree_with_finite_differences():
    pair = [draws(5, D).requires_grad_(), draws(V, D, seed=1).requires_grad_()]
    chunked_cross_entropy(*pair, targets(5), chunk=2, label_smoothing=0.2).backward()
    for which, direction in enumerate([draws(5, D, seed=7), draws(V, D, seed=8)]):
        ends = []
        for sign in (1, -1):
            moved = [tensor.detach() for tensor in pair]
            moved[which] = moved[which] + sign * 1e-5 * direction
            ends.append(chunked_cross_entropy(*moved, targets(5), chunk=2, label_smoothing=0.2))
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close((pair[which].grad * direction).sum(), slope, rtol=1e-8, atol=1e-8)


def test_targets_that_do_not_count_leave_no_trace():
    hidden, weight = draws(2, 5, D).requires_grad_(), draws(V, D, seed=1).requires_grad_()
    some = targets(2, 5)
    some[0, 2:] = -100
    ours = chunked_cross_entropy(hidden, weight, some, chunk=3, ignore_id=-100)
    theirs = F.cross_entropy((hidden @ weight.T).flatten(0, 1), some.flatten(), reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(ours, hidden)
    assert (grad[0, 2:] == 0).all()
    assert (grad[1] != 0).all()


def test_no_target_at_all_is_a_loss_of_zero():
    hidden = draws(1, 3, D).requires_grad_()
    loss = chunked_cross_entropy(hidden, draws(V, D), torch.full((1, 3), -1), ignore_id=-1)
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()


def test_a_target_whose_probability_is_too_small_for_a_float_has_a_finite_loss():
    weight = torch.tensor([[0.0], [500.0]]).requires_grad_()
    hidden = torch.ones(1, 1, requires_grad=True)
    assert (hidden @ weight.T).softmax(-1)[0, 0] == 0
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 500
    assert weight.grad.flatten().tolist() == [-1, 1]


def test_the_head_alone_or_the_stream_alone_can_be_learned():
    for frozen in (0, 1):
        pair = [draws(5, D).requires_grad_(frozen != 0), draws(V, D, seed=1).requires_grad_(frozen != 1)]
        chunked_cross_entropy(*pair, targets(5), chunk=2).backward()
        assert pair[frozen].grad is None
        learned = pair[1 - frozen]
        F.cross_entropy((pair[0] @ pair[1].T), targets(5), reduction="sum").backward()
        assert learned.grad.abs().max() > 0


def test_without_gradients_none_is_worked_out(monkeypatch):
    hidden, weight = draws(5, D).requires_grad_(), draws(V, D, seed=1).requires_grad_()
    expected = chunked_cross_entropy(hidden, weight, targets(5))
    monkeypatch.setattr(torch.Tensor, "__setitem__", None)  # where the gradient would begin
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, targets(5))
    assert loss == expected
    assert not loss.requires_grad


def test_a_second_backward_is_refused_rather_than_wrong():
    hidden, weight = draws(5, D).requires_grad_(), draws(V, D, seed=1)
    loss = chunked_cross_entropy(hidden, weight, targets(5))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already"):
        loss.backward()


def test_under_autocast_products_are_in_bf16_and_the_loss_is_not():
    hidden = draws(64, 32, dtype=torch.float32).requires_grad_()
    weight = draws(V, 32, seed=1, dtype=torch.float32).requires_grad_()
    exact = chunked_cross_entropy(hidden, weight, targets(64), chunk=10)
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets(64), chunk=10)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype == grads[0].dtype == grads[1].dtype == torch.float32
    assert 0 < abs(loss - exact) < 0.01 * exact
    for a, b in zip(grads, exact_grads, strict=True):
        assert 0 < (a - b).norm() < 0.02 * b.norm()
    # The logits are rounded; the softmax's sum is not, or the loss would be off by a hundredth.
    rounded = (hidden.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(loss, F.cross_entropy(rounded, targets(64), reduction="sum"), rtol=1e-4, atol=0)


MODELS = {
    "gpt": lambda: GPT(GPTConfig(V, 8, n_layers=1, n_heads=2, d_model=8)),
    "llama, tied": lambda: Llama(LlamaConfig(V, 8, 1, 2, 1, 8, 12)),
    "llama, head of its own": lambda: Llama(LlamaConfig(V, 8, 1, 2, 1, 8, 12, tied=False)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_the_same_steps_as_with_the_plain_loss(name):
    models, records = [], []
    ids = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(0))
    for loss in (CrossEntropy(ignore_id=4, label_smoothing=0.1), ChunkedCrossEntropy(5, 4, 0.1)):
        torch.manual_seed(0)
        model = MODELS[name]().double()
        optimizer = AdamW(model.parameters())
        records.append([train_step(model, shift(ids), optimizer, lr=0.01, loss=loss) for _ in range(3)])
        models.append(model)
    for a, b in zip(*records, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-12)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_another_way_to_the_hidden_states_is_taken():
    model = MODELS["gpt"]()
    calls = []

    def hidden(model, ids):
        calls.append(ids.shape)
        return model.hidden(ids)

    ids = torch.zeros(2, 5, dtype=torch.long)
    assert ChunkedCrossEntropy(hidden=hidden).total(model, shift(ids)).item() == pytest.approx(
        ChunkedCrossEntropy().total(model, shift(ids)).item()
    )
    assert calls == [(2, 4)]


def test_a_model_whose_logits_are_no_plain_product_is_refused():
    bert = Bert(BertConfig(vocab_size=V, context=8, n_layers=1, n_heads=1, d_model=4, d_ff=8))
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"got Bert\. Use CrossEntropy"):
        ChunkedCrossEntropy().total(bert, Batch((ids,), ids))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1: got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is a share, .* got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChunkedCrossEntropy(**settings)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_no_tensor_of_all_the_logits_is_ever_made():
    N, big, chunk = 64, 500, 4
    hidden, weight = draws(N, D).requires_grad_(), draws(big, D, seed=1).requires_grad_()
    wanted = torch.randint(big, (N,), generator=torch.Generator().manual_seed(0))
    with Largest() as chunked:
        chunked_cross_entropy(hidden, weight, wanted, chunk=chunk).backward()
    with Largest() as plain:
        F.cross_entropy(hidden @ weight.T, wanted).backward()
    assert plain.size == N * big
    assert chunked.size == big * max(chunk, D)


def test_the_loss_object_keeps_to_its_chunk():
    model = GPT(GPTConfig(500, 8, n_layers=1, n_heads=2, d_model=8))
    ids = torch.zeros(8, 9, dtype=torch.long)
    sizes = {}
    for chunk in (16, 32):
        with Largest() as largest:
            ChunkedCrossEntropy(chunk).total(model, shift(ids))
        sizes[chunk] = largest.size
    assert sizes == {16: 16 * 500, 32: 32 * 500}
