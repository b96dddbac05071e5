"""What a checkpoint brings back is what was saved: Python's values, and the state of every optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llm_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llm_core.training.muon import Muon
from llm_core.training.optimizer import AdamW
from llm_core.training.packing import pack, unpack
from llm_core.training.run import Run

VALUES = [
    {"betas": (0.9, 0.95), 1: {2: None}, "deep": [(1, [(2,)]), {}], "text": "黄", "yes": True},
    {"__tuple__": [1], "__dict__": 2, "__tensor__": "x"},
    {(1, "a"): (), None: float("inf")},
]


def same(a, b) -> bool:
    """Equal, with the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("value", VALUES)
def test_settings_come_back_with_their_types(value, tmp_path: Path):
    assert same(unpack(pack(value)), value)
    path = save_checkpoint(tmp_path / "c.safetensors", step=1, model=nn.Linear(1, 1), settings={"kept": value})
    assert same(load_checkpoint(path).settings, {"kept": value})


def stepped(make, parameters) -> torch.optim.Optimizer:
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(lambda: torch.tensor(1.0))
    return optimizer


OPTIMIZERS = {
    "ours": AdamW,
    "muon": lambda p: Muon([{"params": p[:1], "muon": True}, {"params": p[1:]}]),
    **{
        name: getattr(torch.optim, name)
        for name in ("AdamW", "Adam", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax", "RMSprop", "Rprop", "ASGD")
    },
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD bare": lambda p: torch.optim.SGD(p, 0.1),
    "Adafactor": torch.optim.Adafactor,
    "LBFGS": torch.optim.LBFGS,
    "a tensor's rate": lambda p: torch.optim.Adam(p, torch.tensor(0.1), foreach=False, capturable=False),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_state_of_an_optimizer_is_the_same_after_a_restore(make, tmp_path: Path):
    net = nn.Linear(3, 2)
    optimizer = stepped(make, list(net.parameters()))
    path = save_checkpoint(tmp_path / "c.safetensors", step=1, model=net, optimizer=optimizer)
    other_net = nn.Linear(3, 2)
    other = make(list(other_net.parameters()))
    load_checkpoint(path).restore(other_net, other)
    assert same(other.state_dict(), optimizer.state_dict())


CHANGES = [
    (AdamW, "weight_decay", 0.1, 0.5),
    (AdamW, "betas", (0.9, 0.99), (0.5, 0.6)),
    (AdamW, "eps", 1e-8, 1e-6),
    (lambda p, **s: Muon([{"params": p[:1], "muon": True}, {"params": p[1:]}], **s), "momentum", 0.95, 0.9),
    (torch.optim.AdamW, "weight_decay", 0.1, 0.5),
    (torch.optim.AdamW, "amsgrad", False, True),
    (torch.optim.SGD, "nesterov", True, False),
    (torch.optim.RMSprop, "alpha", 0.99, 0.9),
]


@pytest.mark.parametrize(("kind", "name", "stored", "asked"), CHANGES)
def test_another_setting_of_the_optimizer_is_named_and_nothing_is_changed(kind, name, stored, asked, tmp_path: Path):
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def run(value, **settings) -> Run:
        net = nn.Linear(2, 2)
        return Run(tmp_path, model=net, optimizer=kind(list(net.parameters()), **{name: value}, **more), **settings)

    with run(stored) as first:
        for _ in first.steps(1, save_every=1):
            pass
    other = run(asked)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        other.__enter__()
    assert all(
        word in str(error.value) for word in (f"{name}={stored!r}", f"{name}={asked!r}", "step-00000001", "Make")
    )
    assert all(torch.equal(before[key], value) for key, value in other.model.state_dict().items())
    with run(asked, scheduled=(name,)) as again:  # which a schedule sets
        assert (again.step, again.optimizer.param_groups[0][name]) == (1, stored)
    with run(stored) as same_again:
        assert same_again.step == 1


def test_another_learning_rate_belongs_to_the_schedule(tmp_path: Path):
    net = nn.Linear(2, 2)
    path = save_checkpoint(tmp_path / "c.safetensors", step=1, model=net, optimizer=AdamW(net.parameters(), 0.1))
    assert load_checkpoint(path).restore(net, AdamW(net.parameters(), 0.2)) == 1
