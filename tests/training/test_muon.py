"""Muon takes the steps of torch's own, and leaves to AdamW what is no hidden matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training import muon
from llm_core.training.batches import shift
from llm_core.training.muon import Muon, muon_groups, orthogonalized
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 5), (5, 1), (1, 1)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrix = random(*shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalized(matrix).float()
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.4
    assert values.max() < 1.3
    # In the basis of U and V it is nearly diagonal: only the lengths have changed.
    turned = left.T @ result @ right.T
    assert (turned - turned.diag().diag()).abs().max() < 0.06


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 5)])
def test_the_rounds_are_the_polynomial_of_the_singular_values(shape):
    matrix = random(*shape)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalized(matrix).double(), left @ values.diag() @ right, rtol=0, atol=1e-5)


def test_a_cpu_works_in_float32_and_all_else_in_bf16():
    assert muon.working_dtype(torch.device("cpu")) == torch.float32
    assert muon.working_dtype(torch.device("cuda")) == torch.bfloat16


def test_a_gradient_of_zeros_gives_a_step_of_zeros():
    assert (orthogonalized(torch.zeros(3, 4)) == 0).all()


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-6), (None, 0.02)], ids=["bf16", "its own"])
def test_takes_the_steps_of_torchs_muon(shape, dtype, tolerance, monkeypatch):
    if dtype is not None:
        monkeypatch.setattr(muon, "working_dtype", lambda device: dtype)
    ours, theirs = (nn.Parameter(random(*shape)) for _ in range(2))
    optimizer = Muon([{"params": [ours], "muon": True}], lr=0.05, momentum=0.9, weight_decay=0.3)
    expected = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad = theirs.grad = random(*shape, seed=step + 1)
        optimizer.step()
        expected.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_other_groups_take_the_steps_of_adamw():
    ours, theirs = (nn.Parameter(random(4, 3)) for _ in range(2))
    optimizer = Muon([ours], lr=0.05, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    expected = AdamW([theirs], lr=0.05, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    for step in range(3):
        ours.grad = theirs.grad = random(4, 3, seed=step + 1)
        optimizer.step()
        expected.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "model",
    [
        GPT(GPTConfig(11, 6, n_layers=2, n_heads=2, d_model=8)),
        Llama(LlamaConfig(11, 6, 2, 2, 1, 8, 12, tied=False, qk_norm=True)),
    ],
    ids=["gpt", "llama"],
)
def test_matrices_of_the_blocks_are_for_muon_and_every_parameter_is_in_one_group(model):
    groups = muon_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    hidden = {names[id(p)] for p in groups[0]["params"]}
    assert groups[0]["muon"]
    assert hidden == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert not any(group.get("muon") for group in groups[1:])


def test_what_is_frozen_is_in_no_group():
    model = GPT(GPTConfig(11, 6, n_layers=1, n_heads=2, d_model=8))
    model.blocks.requires_grad_(False)
    groups = muon_groups(model, 0.1)
    assert groups[0]["params"] == []
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_a_model_learns_and_its_state_comes_back():
    torch.manual_seed(0)
    model = GPT(GPTConfig(11, 8, n_layers=2, n_heads=2, d_model=16))
    optimizer = Muon(muon_groups(model, 0.1))
    batch = shift(torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0)))
    losses = [train_step(model, batch, optimizer, lr=0.01).loss for _ in range(60)]
    assert losses[-1] < 0.3 < losses[0]
    twin = copy.deepcopy(model)
    other = Muon(muon_groups(twin, 0.1))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train_step(model, batch, optimizer, lr=0.01) == train_step(twin, batch, other, lr=0.01)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"got a parameter of shape \(3,\)"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}])


def test_momentum_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"0 <= momentum < 1: got 1\.0"):
        Muon([nn.Parameter(torch.zeros(3, 3))], momentum=1.0)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="got Linear"):
        muon_groups(nn.Linear(2, 2), 0.1)
