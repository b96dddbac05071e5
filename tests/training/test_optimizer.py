"""AdamW against torch's, over many steps, in float64."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from llm_core.training.optimizer import AdamW, decay_groups


def models():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    second = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    second.load_state_dict(first.state_dict())
    return first, second


def run(model, optimizer, steps=50, skip=()):
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for i, parameter in enumerate(model.parameters()):
            if (i, step) in skip:
                parameter.grad = None
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.05, "betas": (0.5, 0.9)},
        {"lr": 0.01, "eps": 0.1},
        {"lr": 0.01, "weight_decay": 0.5},
        {"lr": 0.01, "weight_decay": 0.0},
        {"lr": 0.0, "weight_decay": 0.5},
    ],
)
def test_fifty_steps_equal_torchs(options):
    ours, theirs = models()
    run(ours, AdamW(ours.parameters(), **options))
    run(theirs, torch.optim.AdamW(theirs.parameters(), **options))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_groups_and_missing_gradients_equal_torchs():
    ours, theirs = models()
    skip = {(0, 3), (2, 0), (2, 1), (5, 7)}

    def groups(model):
        return [
            {"params": [model[0].weight, model[3].weight], "weight_decay": 0.3, "lr": 0.02},
            {"params": [model[0].bias, model[3].bias], "weight_decay": 0.0},
            {"params": list(model[1].parameters()), "betas": (0.8, 0.9), "eps": 1e-3},
        ]

    run(ours, AdamW(groups(ours), lr=0.01), skip=skip)
    run(theirs, torch.optim.AdamW(groups(theirs), lr=0.01), skip=skip)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_its_state_moves_to_torchs_and_back():
    ours, theirs = models()
    first, second = AdamW(ours.parameters(), lr=0.01), torch.optim.AdamW(theirs.parameters(), lr=0.01)
    run(ours, first, steps=5)
    run(theirs, second, steps=5)
    second.load_state_dict(second.state_dict() | {"state": deepcopy(first.state_dict()["state"])})
    run(ours, first, steps=5)
    run(theirs, second, steps=5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_first_step_has_the_size_of_the_learning_rate():
    for gradient in (1e-3, 1.0, 1e3):
        parameter = nn.Parameter(torch.tensor([2.0]))
        parameter.grad = torch.tensor([gradient])
        AdamW([parameter], lr=0.1, weight_decay=0.0).step()
        assert parameter.item() == pytest.approx(1.9, abs=1e-5)


def test_a_closure_is_called_with_gradients_on():
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamW([parameter])

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert parameter.item() < 2.0


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    model[1].weight.requires_grad_(False)
    decay, keep = decay_groups(model, 0.1)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decay["params"]] == [(5, 4)]
    assert [p.shape for p in keep["params"]] == [(3,), (3,), (3,)]
    assert {id(p) for p in keep["params"]} == {id(p) for p in (model[1].bias, *model[2].parameters())}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"got -1\.0"),
        ({"eps": -1.0}, r"got 0\.001, -1\.0"),
        ({"weight_decay": -1.0}, r"-1\.0$"),
        ({"betas": (1.0, 0.9)}, r"\(1\.0, 0\.9\)"),
        ({"betas": (0.9, -0.1)}, r"\(0\.9, -0\.1\)"),
        *(
            ({name: value}, rf"numbers from 0 on: got .*{value}")
            for name in ("lr", "eps", "weight_decay")
            for value in (NAN, INF)
        ),
        ({"betas": (NAN, 0.9)}, "betas are shares"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW([nn.Parameter(torch.zeros(1))], **options)
