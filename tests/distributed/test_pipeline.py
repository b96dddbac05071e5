"""Pipeline parallelism: the stages together do what the model does, and learn what it learns."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import on, run_checks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

from llm_core.distributed.launch import init_from_environment
from llm_core.distributed.pipeline import Pipeline, balance, bubble_fraction, cut, pipeline_step, split_layers
from llm_core.distributed.tensor_parallel import full_state_dict, spread
from llm_core.models.bert import Bert, BertConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch, shift
from llm_core.training.losses import CrossEntropy, cross_entropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import NotFinite, train_step

V = 13
CONFIGS: dict[str, Any] = {
    "gpt": GPTConfig(V, context=16, n_layers=4, n_heads=2, d_model=16),
    "llama": LlamaConfig(V, 16, 5, 4, 2, d_model=16, d_ff=24, d_head=6, qk_norm=True, window=4),
    "untied": LlamaConfig(V, 16, 4, 4, 2, 16, 24, tied=False),
}
RUNS: dict[str, tuple[str, Any, int]] = {
    "gpt, GPipe": ("gpt", ScheduleGPipe, 2),
    "gpt, 1F1B": ("gpt", Schedule1F1B, 8),
    "llama, 1F1B": ("llama", Schedule1F1B, 4),
    "untied, GPipe": ("untied", ScheduleGPipe, 4),
}
LOSS = CrossEntropy(ignore_id=0, label_smoothing=0.1)


def build(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = (GPT(config) if isinstance(config, GPTConfig) else Llama(config)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases and norms are not what they begin as
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch(step: int) -> Batch:
    """Eight texts, longer at each step. Three are padded with zeros; one is nothing but padding, maybe a microbatch."""
    ids = torch.randint(1, V, (8, 9 + step), generator=torch.Generator().manual_seed(step))
    ids[:3, 4:] = 0
    ids[5] = 0
    return shift(ids)


def in_one_process(config: Any) -> dict[str, Any]:
    """The loop with torch's own parts."""
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    out: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(3):
        optimizer.zero_grad()
        loss = cross_entropy(model(*batch(step).inputs), batch(step).targets, ignore_id=0, label_smoothing=0.1)
        loss.backward()
        if step == 0:
            out["gradients"] = {name: p.grad.clone() for name, p in model.named_parameters()}
        out["norms"].append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        out["losses"].append(loss.item())
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    return out | {"state": model.state_dict()}


@on(4)
def trained(worker):
    return {name: _trained(worker.rank, *run) for name, run in RUNS.items()}


def _trained(rank, name, schedule, n_microbatches):
    model = build(CONFIGS[name])
    if rank == 3:
        with torch.no_grad():
            model.token_embedding.weight += 1  # the last one's copy of the table, where it is tied
    pipeline = Pipeline(cut(model, 4)[rank], n_microbatches=n_microbatches, schedule=schedule)
    value = pipeline.forward_backward(batch(0), LOSS).item()
    grads = {name: p.grad.clone() for name, p in pipeline.stage.model.named_parameters()}
    optimizer = AdamW(pipeline.stage.parameters(), weight_decay=0.01)
    records = [pipeline_step(pipeline, batch(s), optimizer, lr=0.01, loss=LOSS, max_norm=0.5) for s in range(3)]
    return {
        "value": value,
        "gradients": grads,
        "losses": [r.loss for r in records],
        "norms": [r.grad_norm for r in records],
        "rates": [r.lr for r in records],
        "state": {name: p.clone() for name, p in pipeline.stage.model.state_dict().items()},
    }


@on(4)
def each_stage_in_two_processes(worker):
    """Two stages, one after the other in the grid; each one tensor parallel."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    stage = cut(build(CONFIGS["untied"]), 2, layers=[3, 1])[grid["pipeline"].get_local_rank()]
    spread(stage.model, grid["tensor"])
    pipeline = Pipeline(stage, n_microbatches=4, group=grid["pipeline"].get_group())
    optimizer = AdamW(pipeline.stage.parameters(), weight_decay=0.01)
    records = [pipeline_step(pipeline, batch(s), optimizer, lr=0.01, loss=LOSS, max_norm=0.5) for s in range(3)]
    state = full_state_dict(stage.model)
    tied = cut(build(CONFIGS["gpt"]), 2)[grid["pipeline"].get_local_rank()]
    if tied.is_first:
        spread(tied.model, grid["tensor"])
        error = error_of(lambda: Pipeline(tied, n_microbatches=2, group=grid["pipeline"].get_group()))
    else:
        error = ""
    return {
        "losses": [r.loss for r in records],
        "norms": [r.grad_norm for r in records],
        "state": state,
        "error": error,
    }


@on(4)
def not_finite(worker):
    """A weight of the third stage is not a number; then a gradient of the second is infinite."""
    out = {}
    for what in ("loss", "gradient"):
        pipeline = Pipeline(cut(build(CONFIGS["gpt"]), 4)[worker.rank], n_microbatches=4)
        weights = dict(pipeline.stage.model.named_parameters())
        if what == "loss" and worker.rank == 2:
            weights["blocks.2.feed_forward.up.bias"].data[0] = math.nan
        if what == "gradient" and worker.rank == 1:
            weights["blocks.1.attention.key.weight"].register_hook(lambda grad: grad * math.inf)
        before = {name: p.detach().clone() for name, p in weights.items()}
        optimizer = AdamW(pipeline.stage.parameters())
        try:
            pipeline_step(pipeline, batch(0), optimizer, lr=0.01, loss=LOSS)
            message, same_batch = "no error", False
        except NotFinite as error:
            message, same_batch = str(error), torch.equal(error.batch[0].targets, batch(0).targets)
        same = all(
            torch.equal(before[name], p) or name.endswith("2.feed_forward.up.bias") for name, p in weights.items()
        )
        out[what] = (message, same_batch, same, len(optimizer.state))
    return out


@on(4)
def refused(worker):
    stages = cut(build(CONFIGS["gpt"]), 4)
    out = {
        "other stage": error_of(lambda: Pipeline(stages[(worker.rank + 1) % 4], n_microbatches=4)),
        "other number": error_of(lambda: Pipeline(cut(build(CONFIGS["gpt"]), 2)[worker.rank % 2], n_microbatches=4)),
        "few": error_of(lambda: Pipeline(stages[worker.rank], n_microbatches=3)),
        "none": error_of(lambda: Pipeline(stages[worker.rank], n_microbatches=0, schedule=ScheduleGPipe)),
    }
    pipeline = Pipeline(stages[worker.rank], n_microbatches=4)
    optimizer = AdamW(pipeline.stage.parameters())
    ids = torch.ones(8, 9, dtype=torch.long)
    batches = {
        "rows": shift(ids[:6]),
        "no rows": shift(ids[:0]),
        "long": shift(torch.ones(8, 18, dtype=torch.long)),
        "ids": shift(torch.cat([ids, torch.full((8, 2), V)], dim=1)),
        "inputs": Batch((ids, ids), ids),
        "targets": Batch((ids,), torch.zeros_like(ids)),
    }
    return out | {
        name: error_of(lambda wrong=wrong: pipeline_step(pipeline, wrong, optimizer, lr=0.1, loss=LOSS))
        for name, wrong in batches.items()
    }


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def four():
    return run_checks(__file__, 4)


@pytest.fixture(scope="module")
def one():
    return {name: in_one_process(config) for name, config in CONFIGS.items()}


EVERY_RUN = pytest.mark.parametrize("run", RUNS)


@EVERY_RUN
def test_loss_and_gradients_are_those_of_one_process(four, one, run):
    expected = one[RUNS[run][0]]
    for rank in four["trained"]:
        assert rank[run]["value"] == pytest.approx(expected["losses"][0], abs=1e-10)
        for name, grad in rank[run]["gradients"].items():
            torch.testing.assert_close(grad, expected["gradients"][name], rtol=0, atol=1e-8)


@EVERY_RUN
def test_three_steps_are_those_of_one_process(four, one, run):
    expected = one[RUNS[run][0]]
    for rank in four["trained"]:
        assert rank[run]["losses"] == pytest.approx(expected["losses"], abs=1e-8)
        assert rank[run]["norms"] == pytest.approx(expected["norms"], abs=1e-8)
        assert rank[run]["norms"][0] > 0.5  # was clipped
        assert rank[run]["rates"] == [0.01] * 3


@EVERY_RUN
def test_the_stages_together_are_the_model(four, one, run):
    config = CONFIGS[RUNS[run][0]]
    union: dict[str, torch.Tensor] = {}
    for rank in four["trained"]:
        union |= rank[run]["state"]
    model = build(config, seed=1)
    model.load_state_dict(union)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, one[RUNS[run][0]]["state"][name], rtol=0, atol=1e-8)
    # Nothing but the two copies of a tied table is held twice.
    twice = sum(len(rank[run]["state"]) for rank in four["trained"]) - len(union)
    assert twice == (0 if getattr(config, "tied", True) is False else 1)


@pytest.mark.parametrize("run", [run for run, (name, *_) in RUNS.items() if name != "untied"])
def test_both_ends_hold_the_same_table(four, run):
    first, last = four["trained"][0][run], four["trained"][3][run]
    assert torch.equal(first["state"]["token_embedding.weight"], last["state"]["token_embedding.weight"])
    assert torch.equal(first["gradients"]["token_embedding.weight"], last["gradients"]["token_embedding.weight"])


def test_a_stage_may_itself_lie_in_several_processes(four, one):
    union: dict[str, torch.Tensor] = {}
    for rank in four["each_stage_in_two_processes"]:
        assert rank["losses"] == pytest.approx(one["untied"]["losses"], abs=1e-8)
        assert rank["norms"] == pytest.approx(one["untied"]["norms"], abs=1e-8)
        union |= rank["state"]
    assert union.keys() == one["untied"]["state"].keys()
    for name, tensor in union.items():
        torch.testing.assert_close(tensor, one["untied"]["state"][name], rtol=0, atol=1e-8)
    errors = [rank["error"] for rank in four["each_stage_in_two_processes"]]
    assert all("a tied token table cannot lie in several processes at one end" in error for error in errors[:2])


def test_what_is_not_finite_in_one_stage_stops_all(four):
    for rank in four["not_finite"]:
        for what, name in (("loss", "loss is nan"), ("gradient", "gradient norm is (nan|inf)")):
            message, same_batch, same_weights, n_states = rank[what]
            assert re.match(f"the {name}, so this step was not taken", message)
            assert same_batch
            assert same_weights
            assert n_states == 0


def test_what_cannot_go_through_is_refused_by_all(four):
    for index, rank in enumerate(four["refused"]):
        assert rank["other stage"].startswith(f"process {index} of 4 runs stage {index} of 4: got stage")
        assert f"got stage {index % 2} of 2" in rank["other number"]
        assert "Schedule1F1B needs at least 4 microbatches for 4 stages: got n_microbatches=3" in rank["few"]
        assert "ScheduleGPipe needs at least 1 microbatches" in rank["none"]
        assert "a batch of 6 texts cannot be cut into 4 microbatches" in rank["rows"]
        assert "a batch of 0 texts" in rank["no rows"]
        assert "got 17 tokens, the context is 16" in rank["long"]
        assert rank["ids"] == f"ids must be tokens, 0 ... {V - 1}: got 1 to {V}"
        assert "one tensor of ids: got 2 inputs" in rank["inputs"]
        assert "no target to learn from" in rank["targets"]


def test_a_single_stage_is_the_model():
    config = CONFIGS["gpt"]
    ours, theirs = build(config), build(config)
    theirs_optimizer = AdamW(theirs.parameters())
    with init_from_environment(device="cpu"):
        for schedule in (ScheduleGPipe, Schedule1F1B):
            pipeline = Pipeline(cut(ours, 1)[0], n_microbatches=2, schedule=schedule)
            optimizer = AdamW(pipeline.stage.parameters())
            record = pipeline_step(pipeline, batch(0), optimizer, lr=0.0, loss=LOSS)
            expected = train_step(theirs, batch(0), theirs_optimizer, lr=0.0, loss=LOSS)
            assert record.loss == pytest.approx(expected.loss)
            assert record.grad_norm == pytest.approx(expected.grad_norm)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [None, [1, 2, 1]])
def test_one_stage_after_the_other_is_the_model(name, layers):
    config = replace(CONFIGS[name], n_layers=4)
    model = build(config)
    for T in (1, 7, 16):
        ids = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(T))
        x = ids
        for stage in cut(model, 3, layers=layers):
            x = stage(x)
        torch.testing.assert_close(x, model(ids))


def test_a_stage_holds_its_layers_and_no_others():
    model = build(CONFIGS["gpt"])
    names = [list(stage.model.state_dict()) for stage in cut(model, 2, layers=[1, 3])]
    expected = [
        [name for name in model.state_dict() if name.startswith(("token_embedding", "positions", "blocks.0."))],
        [name for name in model.state_dict() if not name.startswith(("positions", "blocks.0."))],
    ]
    assert names == expected
    first = cut(model, 2)[0].model
    assert first.blocks[0].attention.query.weight is model.blocks[0].attention.query.weight
    assert len(list(model.named_parameters())) == len(list(build(CONFIGS["gpt"]).named_parameters()))


@pytest.mark.parametrize(("n_layers", "n_stages"), [(1, 1), (4, 4), (7, 3), (32, 5)])
def test_layers_are_split_evenly(n_layers, n_stages):
    sizes = split_layers(n_layers, n_stages)
    assert sizes == [len(part) for part in torch.arange(n_layers).tensor_split(n_stages)]


def test_what_cannot_be_cut_is_refused():
    model = build(CONFIGS["gpt"])
    for n_stages in (5, 0):
        with pytest.raises(ValueError, match=f"got {n_stages} stages for 4 blocks"):
            cut(model, n_stages)
    for layers in ([4], [2, 1], [0, 4], [1, 1, 2]):
        with pytest.raises(ValueError, match=r"layers says how many of the 4 blocks each of the 2 stages gets"):
            cut(model, 2, layers=layers)
    with pytest.raises(ValueError, match=r"got a Bert with"):
        cut(Bert(BertConfig(V, 16, 2, 2, 16, 32)), 2)
    with pytest.raises(ValueError, match=r"got a Linear with \[\]"):
        cut(nn.Linear(2, 2), 1)


@pytest.mark.parametrize(("n_stages", "n_microbatches"), [(1, 5), (2, 1), (4, 4), (4, 32), (7, 3)])
def test_the_bubble_is_the_time_in_which_a_simulated_pipeline_waits(n_stages, n_microbatches):
    free = [0] * n_stages  # when each stage can begin something new; all take one unit of time
    for _ in range(n_microbatches):
        there = 0
        for stage in range(n_stages):
            there = free[stage] = max(there, free[stage]) + 1
    total = free[-1]
    assert bubble_fraction(n_stages, n_microbatches) == pytest.approx(1 - n_microbatches / total)


def test_numbers_that_make_no_pipeline_are_refused():
    for numbers, name in (((0, 4), "n_stages"), ((4, 0), "n_microbatches")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
            bubble_fraction(*numbers)
    for costs in ([], [1, 0], [1, -1]):
        with pytest.raises(ValueError, match="each stage costs something"):
            balance(costs)


def test_balance_is_one_only_where_all_stages_cost_the_same():
    assert balance([0.5, 0.5, 0.5]) == 1
    assert balance([7]) == 1
    # What the work of all would be over the time that the slowest takes, if it were shared by all.
    assert balance([1, 1, 2]) == pytest.approx((1 + 1 + 2) / (3 * 2))
