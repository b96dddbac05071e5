"""Tensor parallelism: what several processes compute together is what one process computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import on, run_checks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_core.compression.quantize import quantize_8bit
from llm_core.distributed.data_parallel import OverAllRanks, over_all_ranks, rows_of
from llm_core.distributed.sharded import clip_sharded, n_local, shard
from llm_core.distributed.tensor_parallel import bytes_sent, full_state_dict, plan, spread
from llm_core.generation.generate import generate
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.positions import Alibi
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch, shift
from llm_core.training.losses import CrossEntropy, cross_entropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

V = 13  # odd: no number of processes divides it
CONFIGS: dict[str, Any] = {
    "gpt": GPTConfig(V, context=16, n_layers=2, n_heads=4, d_model=16),
    "llama": LlamaConfig(V, 16, 2, 4, 2, 16, 24, d_head=6, qkv_bias=True, output_bias=True, qk_norm=True, window=4),
    "mixtral": LlamaConfig(V, 16, 1, 4, 2, 16, 24, tied=False, n_experts=3),
}
LOSS = CrossEntropy(ignore_id=0)


def build(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = (GPT(config) if isinstance(config, GPTConfig) else Llama(config)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases and norms are not what they begin as
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch(step: int) -> Batch:
    """Eight texts, of which some are padded with zeros, so that parts of the batch have unequal numbers of targets."""
    ids = torch.randint(1, V, (8, 9 + step), generator=torch.Generator().manual_seed(step))
    ids[:3, 4:] = 0
    return shift(ids)


def parts(step: int) -> list[Batch]:
    """The batch as it is; or, at the second step, in two parts."""
    return [rows_of(batch(step), i, 2) for i in (0, 1)] if step == 1 else [batch(step)]


def in_one_process(model: nn.Module, steps: int = 3) -> dict[str, list[float]]:
    """The loop with torch's own parts."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(*batch(step).inputs), batch(step).targets, ignore_id=0)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        losses.append(loss.item())
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    return {"losses": losses, "norms": norms}


def largest_difference(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert state.keys() == expected.keys()
    return max((state[name] - expected[name]).abs().max().item() for name in expected)


def grid() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))


def cloned(model: nn.Module, row: Any) -> nn.Module:
    """A copy, whose weights are off in all processes but the first of the row."""
    model = copy.deepcopy(model)
    if row.get_local_rank():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
    return model


@on(4)
def trained(worker):
    row = grid()["tensor"]
    results = {name: _trained(config, row) for name, config in CONFIGS.items()}
    return results | {"gpt in four": _trained(CONFIGS["gpt"], worker.mesh)}


def _trained(config, row):
    plain = build(config)
    before = copy.deepcopy(plain)
    model = spread(cloned(plain, row), row)
    out = {"n": row.size(), "numbers": n_local(model.parameters()), "whole": plain.n_parameters()}
    ids = batch(0).inputs[0]
    # One token as well: then some experts of a mixture have none.
    out["logits"] = max((model(part) - plain(part)).abs().max().item() for part in (ids, ids[:1, :1]))

    optimizer = AdamW(model.parameters(), weight_decay=0.01)
    cross_entropy(model(ids), batch(0).targets, ignore_id=0).backward()
    cross_entropy(plain(ids), batch(0).targets, ignore_id=0).backward()
    out["placements"] = {str(q) for p in model.parameters() if isinstance(p, DTensor) for q in p.grad.placements}
    grads = {name: whole(p.grad) for name, p in model.named_parameters()}
    out["gradients"] = largest_difference(grads, {name: p.grad for name, p in plain.named_parameters()})

    records = [
        train_step(model, parts(s), optimizer, lr=0.01, loss=LOSS, max_norm=0.5, clip=clip_sharded) for s in range(3)
    ]
    out["losses"], out["norms"] = [r.loss for r in records], [r.grad_norm for r in records]
    out["expected"] = in_one_process(plain)
    state = full_state_dict(model)
    out["weights"] = largest_difference(state, plain.state_dict())
    out["moved"] = largest_difference(state, before.state_dict())

    before.load_state_dict(state)
    out["loaded"] = (before(ids) - model(ids)).abs().max().item()
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    out["generated"] = generate(model, prompts, 4).tolist()
    out["expected generated"] = generate(plain, prompts, 4).tolist()
    cache = model.new_cache(3)
    out["cache"] = (cache.capacity, len(cache.layers), tuple(cache.layers[0].contents()[0].shape))
    out["dtype"] = cache.layers[0].contents()[0].dtype == torch.float64
    return out


def whole(grad):
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


@on(4)
def sharded_too(worker):
    """Tensor parallel in rows of the grid, fully sharded data parallel in its columns."""
    mesh = grid()
    out = {}
    for name in ("gpt", "llama"):
        plain = build(CONFIGS[name])
        model = spread(cloned(plain, mesh["tensor"]), mesh["tensor"])
        shard(model, mesh["data"])
        group = mesh["data"].get_group()
        loss, rank = OverAllRanks(LOSS, group=group), mesh["data"].get_local_rank()
        optimizer = AdamW(model.parameters(), weight_decay=0.01)
        records = []
        for step in range(3):
            record = train_step(
                model,
                [rows_of(part, rank, 2) for part in parts(step)],
                optimizer,
                lr=0.01,
                loss=loss,
                max_norm=0.5,
                clip=clip_sharded,
            )
            records.append(over_all_ranks(record, group))
        expected = in_one_process(plain)
        out[name] = {
            "losses": [r.loss for r in records],
            "norms": [r.grad_norm for r in records],
            "expected": expected,
            "weights": largest_difference(full_state_dict(model), plain.state_dict()),
            "numbers": n_local(model.parameters()),
            "whole": plain.n_parameters(),
            "generated": generate(model, [[1, 2], [3]], 3).tolist(),
            "expected generated": generate(plain, [[1, 2], [3]], 3).tolist(),
        }
    return out


class Collectives(TorchDispatchMode):
    """Writes down what the processes send to each other: (operation, shape)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor first turns it into operations on what this process holds
        if func.namespace in ("_c10d_functional", "c10d") and "wait" not in func.name() and "wrap" not in func.name():
            tensor = next(a for a in (args[0] if isinstance(args[0], list) else args) if isinstance(a, torch.Tensor))
            self.seen.append((func.name().split("::")[1].split(".")[0], tuple(tensor.shape)))
        return func(*args, **(kwargs or {}))


@on(4)
def collectives(worker):
    row = grid()["tensor"]
    seen: dict[str, Any] = {}
    for name in ("gpt", "llama"):
        for n_layers in (1, 2):
            model = spread(build(replace(CONFIGS[name], n_layers=n_layers)), row)
            with Collectives() as forward:
                logits = model(torch.ones(3, 5, dtype=torch.long))
            with Collectives() as backward:
                logits.sum().backward()
            seen[f"{name} {n_layers}"] = {"forward": forward.seen, "backward": backward.seen}
    return seen


@on(4)
def refused(worker):
    mesh = grid()
    models = {
        "two dimensions": (build(CONFIGS["gpt"]), mesh),
        "key/value heads": (build(CONFIGS["llama"]), worker.mesh),
        "query heads": (build(GPTConfig(V, 8, 1, 2, 16)), worker.mesh),
        "feed-forward": (build(LlamaConfig(V, 8, 1, 4, 4, 16, 18)), worker.mesh),
        "twice": (spread(build(CONFIGS["llama"]), mesh["tensor"]), mesh["tensor"]),
    }
    out = {}
    for name, (model, row) in models.items():
        before = {key: id(p) for key, p in model.named_parameters()}
        heads = [m.n_heads for m in model.modules() if isinstance(m, MultiHeadAttention)]
        message = error_of(lambda model=model, row=row: spread(model, row))
        same = before == {key: id(p) for key, p in model.named_parameters()}
        out[name] = (message, same and heads == [m.n_heads for m in model.modules() if hasattr(m, "n_heads")])
    model = spread(build(CONFIGS["gpt"]), mesh["tensor"])
    out["ids"] = [error_of(lambda ids=ids: model(torch.tensor([[1, ids]]))) for ids in (V, -1, V - 1)]
    return out


@on(4)
def frozen(worker):
    model = build(CONFIGS["llama"]).requires_grad_(False)
    model.blocks[1].attention.key.weight.requires_grad_(True)
    spread(model, grid()["tensor"])
    return [name for name, p in model.named_parameters() if p.requires_grad]


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def four():
    return run_checks(__file__, 4)


MODELS = pytest.mark.parametrize("name", [*CONFIGS, "gpt in four"])


@MODELS
def test_logits_and_gradients_are_those_of_one_process(four, name):
    for rank in four["trained"]:
        assert rank[name]["logits"] < 1e-10
        assert rank[name]["gradients"] < 1e-8


@MODELS
def test_no_process_is_left_with_a_share_of_a_gradient(four, name):
    """Cut or whole: an optimizer that looks at what a process holds must not meet what is still to be added up."""
    for rank in four["trained"]:
        assert rank[name]["placements"] <= {"S(0)", "S(1)", "R"}


@MODELS
def test_three_steps_are_those_of_one_process(four, name):
    for rank in four["trained"]:
        result = rank[name]
        assert result["losses"] == pytest.approx(result["expected"]["losses"], abs=1e-8)
        assert result["norms"] == pytest.approx(result["expected"]["norms"], abs=1e-8)
        assert min(result["norms"]) > 0.5  # all were clipped
        assert result["weights"] < 1e-8 < 1e-2 < result["moved"]


@MODELS
def test_the_collected_weights_go_into_one_process(four, name):
    assert all(rank[name]["loaded"] < 1e-10 for rank in four["trained"])


@MODELS
def test_generates_what_one_process_generates(four, name):
    for rank in four["trained"]:
        assert rank[name]["generated"] == rank[name]["expected generated"]


@MODELS
def test_a_process_holds_its_share_of_the_weights(four, name):
    ranks = [rank[name] for rank in four["trained"]]
    n, config = ranks[0]["n"], CONFIGS[name.removesuffix(" in four")]
    plain = build(config)
    whole = ("norm", "positions", "output.bias", "down.bias", "router")
    kept = sum(p.numel() for key, p in plain.named_parameters() if any(part in key for part in whole))
    tables = ("token_embedding.weight", "head.weight")  # V is odd: some have a row more
    for index, rank in enumerate(ranks):
        rows = sum(torch.arange(V).chunk(n)[index % n].numel() * 16 for key in tables if key in plain.state_dict())
        cut = sum(p.numel() for key, p in plain.named_parameters() if key not in tables) - kept
        assert rank["numbers"] == kept + rows + cut // n


@MODELS
def test_the_cache_holds_the_own_heads(four, name):
    config = CONFIGS[name.removesuffix(" in four")]
    for rank in four["trained"]:
        heads = getattr(config, "n_kv_heads", config.n_heads) // rank[name]["n"]
        width = getattr(config, "head_width", config.d_model // config.n_heads)
        assert rank[name]["cache"] == (16, config.n_layers, (3, heads, 0, width))
        assert rank[name]["dtype"]


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_with_sharded_weights_in_the_other_dimension_it_is_one_process_still(four, name):
    for rank in four["sharded_too"]:
        result = rank[name]
        assert result["losses"] == pytest.approx(result["expected"]["losses"], abs=1e-8)
        assert result["norms"] == pytest.approx(result["expected"]["norms"], abs=1e-8)
        assert result["weights"] < 1e-8
        assert result["generated"] == result["expected generated"]
    numbers = [rank[name]["numbers"] for rank in four["sharded_too"]]
    assert max(numbers) < 0.35 * four["sharded_too"][0][name]["whole"]


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_a_block_costs_two_sums_of_the_stream_in_each_direction(four, name):
    for rank in four["collectives"]:
        one, two = rank[f"{name} 1"], rank[f"{name} 2"]
        for direction in ("forward", "backward"):
            others = {("all_gather_into_tensor", (3, 5, 7)), ("all_reduce", (6,))}  # the logits; the norms of the heads
            assert set(two[direction]) - others == {("all_reduce", (3, 5, 16))}
            sums = [seen.count(("all_reduce", (3, 5, 16))) for seen in (one[direction], two[direction])]
            assert sums == [3, 5]  # and one for the token table


def test_the_bytes_are_those_that_the_sums_send(four):
    counted = {}
    for n_layers in (1, 2):
        seen = four["collectives"][0][f"gpt {n_layers}"]
        for direction in ("forward", "backward"):
            shapes = [torch.Size(shape).numel() for name, shape in seen[direction] if name == "all_reduce"]
            counted[n_layers, direction] = 8 * sum(shapes)  # bytes, in float64
    forward, backward = (counted[2, way] - counted[1, way] for way in ("forward", "backward"))
    tokens, ring = 3 * 5, 2 * (2 - 1) / 2
    assert bytes_sent(16, 2, bytes_per_number=8) * tokens == (forward + backward) * ring
    assert bytes_sent(16, 2, bytes_per_number=8, training=False) * tokens == forward * ring
    assert bytes_sent(16, 1) == 0
    assert bytes_sent(16, 4) == 4 * 2 * 3 / 4 * 16 * 4


def test_sizes_that_cannot_be_shared_are_refused_before_anything_is_cut(four):
    for rank in four["refused"]:
        assert all(result[1] for name, result in rank.items() if name != "ids")
        assert "4 processes cannot share the 2 key/value heads of 'blocks.0.attention'" in rank["key/value heads"][0]
        assert "4 processes cannot share the 2 query heads of 'blocks.0.attention'" in rank["query heads"][0]
        assert "4 processes cannot share the 18 columns of the feed-forward layer" in rank["feed-forward"][0]
        assert "take a number of processes that divides 18" in rank["feed-forward"][0]
        assert "a model is spread over one dimension of a mesh: got 2" in rank["two dimensions"][0]
        assert "spread over several processes already" in rank["twice"][0]


def test_an_id_that_is_no_token_is_refused_by_all(four):
    for rank in four["refused"]:
        assert rank["ids"][0] == f"ids must be tokens, 0 ... {V - 1}: got 1 to {V}"
        assert rank["ids"][1] == f"ids must be tokens, 0 ... {V - 1}: got -1 to 1"
        assert rank["ids"][2] == "no error"


def test_what_was_frozen_stays_frozen(four):
    assert four["frozen"] == [["blocks.1.attention.key.weight"]] * 4


def test_the_plan_is_megatrons():
    styles = plan(Llama(replace(CONFIGS["llama"], tied=False)))
    kind = {name: type(style).__name__ for name, style in styles.items()}
    block = {name.removeprefix("blocks.1."): k for name, k in kind.items() if name.startswith("blocks.1.")}
    columns = ["attention.query", "attention.key", "attention.value", "feed_forward.gate", "feed_forward.up"]
    assert [block[name] for name in columns] == ["ColwiseParallel"] * 5
    assert [block[name] for name in ("attention.output", "feed_forward.down")] == ["RowwiseParallel"] * 2
    assert len(block) == 5 + 2 + 4  # and the inputs of the pairs, and the norms of the heads
    assert {name: k for name, k in kind.items() if not name.startswith("blocks.")} == {
        "token_embedding": "VocabularyParallel",
        "head": "ColwiseParallel",
    }
    assert all(repr(style).startswith(kind[name]) for name, style in styles.items())


def test_what_cannot_be_cut_has_no_plan():
    with pytest.raises(ValueError, match="there is no MultiHeadAttention in this Linear"):
        plan(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"dropout=0.1 in 'dropout'. Build the model with dropout=0"):
        plan(GPT(GPTConfig(V, 8, 1, 2, 16, dropout=0.1)))
    model = GPT(CONFIGS["gpt"])
    model.blocks[1].attention.dropout = 0.2
    with pytest.raises(ValueError, match=r"dropout=0.2 in 'blocks.1.attention'"):
        plan(model)
    with pytest.raises(ValueError, match=r"blocks.0.attention.query must be an nn.Linear to be cut: got a Int8Linear"):
        plan(quantize_8bit(GPT(CONFIGS["gpt"])))
    model = GPT(CONFIGS["gpt"])
    model.blocks[0].attention.position_bias = Alibi(4)
    with pytest.raises(ValueError, match=r"blocks.0.attention has a position bias for all heads"):
        plan(model)
    with pytest.raises(ValueError, match=r"'decoder.0' reads a second text, which is not supported"):
        plan(EncoderDecoder(EncoderDecoderConfig(V, 8, n_layers=1, n_heads=2, d_model=16, d_ff=32, dropout=0.0)))
