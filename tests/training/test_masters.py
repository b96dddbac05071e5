"""bf16 weights with float32 masters: these take the optimizer's steps, and the weights are the masters, rounded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import random_crops
from llm_core.training.chunked import ChunkedCrossEntropy
from llm_core.training.masters import MasterWeights
from llm_core.training.muon import Muon, muon_groups
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.step import NotFinite, train_step

CONFIG = GPTConfig(vocab_size=13, context=8, n_layers=2, n_heads=2, d_model=16)
TEXT = torch.arange(400) % 13
MAKERS = {
    "ours": lambda model: AdamW(decay_groups(model, 0.1)),
    "torch": lambda model: torch.optim.AdamW(decay_groups(model, 0.1)),
    "fused": lambda model: torch.optim.AdamW(decay_groups(model, 0.1), fused=True),
    "muon": lambda model: Muon(muon_groups(model, 0.1)),
}


def gpt(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(CONFIG)


def batch(seed: int):
    return random_crops(TEXT, 6, 8, generator=torch.Generator().manual_seed(seed))


def masters(optimizer: MasterWeights) -> list[torch.Tensor]:
    return [entry["master"] for _, entry in sorted(optimizer.state_dict()["state"].items())]


@pytest.mark.parametrize("name", MAKERS)
def test_masters_take_the_steps_of_the_optimizer_inside(name):
    model = gpt()
    optimizer = MasterWeights(model, MAKERS[name](model))
    shadow = gpt()  # float32, given the gradients of the bf16 model
    expected = MAKERS[name](shadow)
    for step in range(4):
        model.zero_grad()
        ChunkedCrossEntropy(16).total(model, batch(step)).backward()
        for mine, its in zip(model.parameters(), shadow.parameters(), strict=True):
            assert mine.dtype == mine.grad.dtype == torch.bfloat16
            its.grad = mine.grad.float()
        for group in (*optimizer.param_groups, *expected.param_groups):
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        expected.step()
        # In the order of the optimizer's groups, which is not the model's.
        inside = [parameter for group in expected.param_groups for parameter in group["params"]]
        for master, its in zip(masters(optimizer), inside, strict=True):
            assert master.dtype == torch.float32
            assert torch.equal(master, its)
        held = [master for group in optimizer.inner.param_groups for master in group["params"]]
        assert all(master.grad is None for master in held)  # a third of the memory, if they were kept
        for mine, its in zip(model.parameters(), shadow.parameters(), strict=True):
            assert torch.equal(mine, its.bfloat16())


def test_updates_too_small_for_bf16_add_up():
    model = nn.Linear(4, 3, bias=False)
    nn.init.ones_(model.weight)
    optimizer = MasterWeights(model, torch.optim.SGD(model.parameters(), lr=1.0))
    assert torch.ones((), dtype=torch.bfloat16) - 0.001 == 1  # one such update alone is lost
    for _ in range(100):
        model.weight.grad = torch.full_like(model.weight, 0.001)
        optimizer.step()
    torch.testing.assert_close(masters(optimizer)[0], torch.full((3, 4), 0.9), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.weight.float(), torch.full((3, 4), 0.9), atol=2**-8, rtol=0)


def test_learns_as_autocast_does():
    losses = {}
    for name in ("masters", "autocast"):
        model = gpt()
        inside = AdamW(decay_groups(model, 0.1))
        optimizer = MasterWeights(model, inside) if name == "masters" else inside
        for step in range(60):
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
                record = train_step(model, batch(step), optimizer, lr=0.02)
        losses[name] = record.loss
    assert losses["autocast"] < 0.5  # the next token is always the next number
    assert abs(losses["masters"] - losses["autocast"]) < 0.1


@pytest.mark.parametrize("name", MAKERS)
def test_goes_on_where_it_stopped_to_the_bit(name):
    def steps(model, optimizer, first, last):
        for step in range(first, last):
            train_step(model, batch(step), optimizer, lr=0.01)

    model = gpt()
    optimizer = MasterWeights(model, MAKERS[name](model))
    steps(model, optimizer, 0, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, 3, 6)

    resumed = gpt(seed=7)
    again = MasterWeights(resumed, MAKERS[name](resumed))
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert all(group["lr"] == 0.01 for group in again.param_groups)
    steps(resumed, again, 3, 6)
    for mine, its in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, its)
    for mine, its in zip(masters(again), masters(optimizer), strict=True):
        assert torch.equal(mine, its)


def test_a_state_saved_before_the_first_step_can_be_loaded():
    model = gpt()
    saved = copy.deepcopy(MasterWeights(model, AdamW(model.parameters())).state_dict())
    other = gpt(seed=1)
    MasterWeights(other, AdamW(other.parameters())).load_state_dict(saved)
    for mine, its in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_what_is_not_trained_is_cast_and_stays():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(13, 8, 2, 2, 1, 16, 24))
    model.blocks[0].requires_grad_(False)
    before = [parameter.detach().bfloat16() for parameter in model.blocks[0].parameters()]
    optimizer = MasterWeights(model, AdamW(decay_groups(model, 0.1)))
    assert len(masters(optimizer)) == sum(parameter.requires_grad for parameter in model.parameters())
    train_step(model, batch(0), optimizer, lr=0.1)
    for mine, its in zip(model.blocks[0].parameters(), before, strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(model.norm.weight, torch.ones(16, dtype=torch.bfloat16))


def test_a_parameter_without_a_gradient_stays():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    before = model["unused"].weight.detach().bfloat16()
    optimizer = MasterWeights(model, AdamW(model.parameters()))
    model["used"](torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3
    assert torch.equal(model["unused"].weight, before)


def test_a_step_that_is_not_finite_leaves_weights_and_masters():
    model = gpt()
    optimizer = MasterWeights(model, AdamW(model.parameters()))
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    before = copy.deepcopy((model.state_dict(), masters(optimizer)))
    with pytest.raises(NotFinite):
        train_step(model, batch(0), optimizer, lr=0.1)
    assert all(torch.equal(mine, its) for mine, its in zip(masters(optimizer), before[1], strict=True))
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())


def test_says_what_is_wrong():
    model = gpt()
    used = AdamW(model.parameters())
    train_step(model, batch(0), used, lr=0.1)
    with pytest.raises(ValueError, match="taken no step yet"):
        MasterWeights(model, used)
    with pytest.raises(ValueError, match="not the model's"):
        MasterWeights(model, AdamW(gpt().parameters()))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    other = gpt()
    with pytest.raises(ValueError, match="no masters"):
        MasterWeights(other, AdamW(other.parameters())).load_state_dict(used.state_dict())


def test_states_of_other_models_and_whole_numbers_are_refused():
    model, other = nn.Linear(3, 2), nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"floating-point numbers, such as torch\.bfloat16: got torch\.int8"):
        MasterWeights(model, AdamW(model.parameters()), dtype=torch.int8)
    assert model.weight.dtype == torch.float32
    ours, theirs = (MasterWeights(net, AdamW(net.parameters())) for net in (model, other))
    before = model.weight.clone()
    # Without the check, one row would be spread over two.
    with pytest.raises(ValueError, match=r"the master of parameter 0 is \(2, 3\), and \(1, 3\) in this state"):
        ours.load_state_dict(theirs.state_dict())
    for key in ("state", "param_groups"):
        state = ours.state_dict()
        del state[key]
        with pytest.raises(ValueError, match='a state has "state" and "param_groups": this one has'):
            ours.load_state_dict(state)
    assert torch.equal(model.weight, before)
