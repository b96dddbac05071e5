"""A grid of processes, composed by the names of its axes: each step is that of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import on, run_checks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from llm_core.distributed.parallelize import parallelize
from llm_core.distributed.sharded import local
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch, shift
from llm_core.training.losses import CrossEntropy, cross_entropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import NotFinite

V = 13
CONFIGS: dict[str, Any] = {
    "gpt": GPTConfig(V, context=16, n_layers=2, n_heads=2, d_model=16),
    "untied": LlamaConfig(V, 16, 2, 4, 2, 16, 24, tied=False),
}
GRIDS: dict[tuple[str, ...], str] = {
    ("data", "shard"): "gpt",
    ("data", "tensor"): "gpt",
    ("shard", "tensor"): "gpt",
    ("pipeline", "data"): "gpt",
    ("pipeline", "tensor"): "untied",
}
LOSS = CrossEntropy(ignore_id=0)


def build(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return (GPT(config) if isinstance(config, GPTConfig) else Llama(config)).double()


def batch(step: int) -> Batch:
    """Eight texts with unequal numbers of targets, in each half another number."""
    ids = torch.randint(1, V, (8, 9 + step), generator=torch.Generator().manual_seed(step))
    for row in range(8):
        ids[row, 2 + row :] = 0
    return shift(ids)


def in_one_process(name: str) -> dict[str, Any]:
    """The loop with torch's own parts."""
    model = build(CONFIGS[name])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses, norms = [], []
    for step in range(3):
        optimizer.zero_grad()
        loss = cross_entropy(model(*batch(step).inputs), batch(step).targets, ignore_id=0)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        losses.append(loss.item())
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    return {"losses": losses, "norms": norms, "state": model.state_dict()}


@on(4)
def trained(worker):
    out = {}
    for axes, name in GRIDS.items():
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=axes)
        # Only the first of those that hold the same weights has the right ones.
        rank = sum(grid.get_local_rank(axis) for axis in axes if axis != "pipeline")
        parallel = parallelize(build(CONFIGS[name], seed=rank), grid, loss=LOSS)
        optimizer = AdamW(parallel.model.parameters(), weight_decay=0.01)
        records = [parallel.step(batch(step), optimizer, lr=0.01, max_norm=0.5) for step in range(3)]
        whole = {
            key: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for key, tensor in parallel.model.state_dict().items()
        }
        out[axes] = {
            "losses": [record.loss for record in records],
            "norms": [record.grad_norm for record in records],
            "state": {key: tensor.detach().clone() for key, tensor in whole.items()},
            "held": sum(local(p).numel() for p in parallel.model.parameters()),
        }
    return out


@on(4)
def a_gradient_that_is_not_finite(worker):
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallel = parallelize(build(CONFIGS["gpt"]), grid, loss=LOSS)
    with torch.no_grad():
        parallel.model.norm.weight[0] = float("nan")
    before = [local(p.detach()).clone() for p in parallel.model.parameters()]
    optimizer = AdamW(parallel.model.parameters())
    with pytest.raises(NotFinite):
        parallel.step(batch(0), optimizer, lr=0.01)
    after = [local(p.detach()) for p in parallel.model.parameters()]
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, after, strict=True))


@on(4)
def what_is_refused(worker):
    messages = []
    for axes, options in (
        (("data", "model"), {}),
        (("tensor", "data"), {}),
        (("pipeline", "shard"), {}),
        (("data", "tensor"), {"n_microbatches": 2}),
    ):
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=axes)
        with pytest.raises(ValueError, match=r"got|beside") as caught:
            parallelize(build(CONFIGS["gpt"]), grid, **options)
        messages.append(str(caught.value))
    return messages


@pytest.fixture(scope="module")
def four() -> dict[str, list[Any]]:
    return run_checks(__file__, 4)


@pytest.mark.parametrize("axes", GRIDS, ids="-".join)
def test_a_grid_takes_the_steps_of_one_process(axes, four):
    expected = in_one_process(GRIDS[axes])
    for rank in four["trained"]:
        assert rank[axes]["losses"] == pytest.approx(expected["losses"], rel=1e-9)
        assert rank[axes]["norms"] == pytest.approx(expected["norms"], rel=1e-7)
        for name, tensor in rank[axes]["state"].items():
            torch.testing.assert_close(tensor, expected["state"][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("axes", [("data", "shard"), ("shard", "tensor"), ("pipeline", "data")], ids="-".join)
def test_each_process_holds_a_part(axes, four):
    whole = sum(p.numel() for p in build(CONFIGS[GRIDS[axes]]).parameters())
    least = {("data", "shard"): 0.48, ("shard", "tensor"): 0.23, ("pipeline", "data"): 0.45}[axes]
    for rank in four["trained"]:
        assert least <= rank[axes]["held"] / whole < least + 0.2


def test_all_processes_see_a_gradient_that_is_not_finite(four):
    assert four["a_gradient_that_is_not_finite"] == [True] * 4


def test_what_cannot_be_composed_is_refused(four):
    for messages in four["what_is_refused"]:
        assert "in this order: got ['data', 'model']" in messages[0]
        assert "in this order: got ['tensor', 'data']" in messages[1]
        assert "a stage of a pipeline is not sharded" in messages[2]
        assert "only a pipeline has microbatches: got n_microbatches=2" in messages[3]
