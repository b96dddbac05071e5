"""Sharded training: the numbers of one process, with one W-th of the weights in each."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from processes import on, run_checks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from llm_core.distributed.data_parallel import OverAllRanks, over_all_ranks, rows_of
from llm_core.distributed.sharded import BFLOAT16, clip_sharded, local, n_local, shard, without_sync
from llm_core.models.bert import Bert, BertConfig, MaskedLanguageModel
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch
from llm_core.training.losses import CrossEntropy, count_targets, cross_entropy
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

PAD, V = 0, 11
LOSS = CrossEntropy(ignore_id=PAD)
LLAMA = {"vocab_size": V, "context": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 8, "d_ff": 12}
MODELS = {
    "gpt": lambda: GPT(GPTConfig(vocab_size=V, context=8, n_layers=2, n_heads=2, d_model=8)),
    "llama": lambda: Llama(LlamaConfig(**LLAMA)),
    "llama untied": lambda: Llama(LlamaConfig(**LLAMA, tied=False)),
    "mixture": lambda: Llama(LlamaConfig(**LLAMA, n_experts=3)),
    "bert": lambda: MaskedLanguageModel(
        Bert(BertConfig(vocab_size=V, context=8, n_layers=2, n_heads=2, d_model=8, d_ff=12, dropout=0.0))
    ),
    "encoder-decoder": lambda: EncoderDecoder(
        EncoderDecoderConfig(vocab_size=V, context=8, n_layers=2, n_heads=2, d_model=8, d_ff=12, dropout=0.0)
    ),
}


class InTwoCalls:
    """A loss that calls the model's methods and not the model: hidden states first, then the head."""

    def total(self, model, batch):
        if isinstance(model, EncoderDecoder):
            memory = model.encode(batch.inputs[0])
            logits = model.decode(batch.inputs[1], memory, batch.inputs[0])
        else:
            logits = model.logits(model.hidden(*batch.inputs))
        return cross_entropy(logits, batch.targets, ignore_id=PAD) * self.count(batch)

    def count(self, batch):
        return count_targets(batch.targets, PAD)


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]().double()


def batches(name: str) -> list[Batch]:
    """Three of 8 rows; the first rows have many targets, the last ones few."""
    result = []
    for seed in range(3):
        ids = torch.randint(1, V, (8, 7), generator=torch.Generator().manual_seed(seed))
        for b in range(8):
            ids[b, 1 + max(6 - b, 1) :] = PAD
        inputs = (ids[:, 1:].clamp(min=1), ids[:, :-1]) if name == "encoder-decoder" else (ids[:, :-1],)
        result.append(Batch(inputs, ids[:, 1:]))
    return result


def train(model, parts_of, optimizer, **options):
    records = []
    for parts in parts_of:
        record = train_step(model, parts, optimizer, lr=0.01, max_norm=0.1, **options)
        records.append(over_all_ranks(record) if dist.is_initialized() else record)
    return [(record.loss, record.grad_norm) for record in records]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(worker, name, loss=LOSS, parts=1, optimizer=AdamW, seed=0, **options):
    model = make(name, seed)
    shard(model, worker.mesh, **options)
    mine = [rows_of(batch, worker.rank, worker.world) for batch in batches(name)]
    records = train(
        model,
        [[rows_of(part, i, parts) for i in range(parts)] for part in mine],
        optimizer(model.parameters(), weight_decay=0.1),
        loss=OverAllRanks(loss),
        clip=clip_sharded,
        without_sync=lambda: without_sync(model),
    )
    return {"records": records, "weights": {n: whole(p.detach()).clone() for n, p in model.named_parameters()}}


@on(2)
def every_model(worker):
    # Only rank 0 has the reference's weights: the others must be given them.
    return {name: trained(worker, name, seed=worker.rank) for name in MODELS}


@on(2)
def through_their_methods(worker):
    return {name: trained(worker, name, loss=InTwoCalls()) for name in ("gpt", "llama untied", "encoder-decoder")}


@on(2)
def in_other_ways(worker):
    return {
        "accumulated": trained(worker, "gpt", parts=2),
        "torch's AdamW": trained(worker, "gpt", optimizer=torch.optim.AdamW),
        "gathered once": trained(worker, "gpt", reshard_after_forward=False),
    }


@on(4)
def on_four(worker):
    return {name: trained(worker, name) for name in ("gpt", "bert")}


@on(4)
def numbers_here(worker):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, context=8, n_layers=2, n_heads=2, d_model=32))
    total = model.n_parameters()
    shard(model, worker.mesh)
    optimizer = AdamW(model.parameters())
    batch = Batch((torch.zeros(1, 4, dtype=torch.long),), torch.ones(1, 4, dtype=torch.long))
    train_step(model, batch, optimizer, lr=0.1, loss=OverAllRanks(CrossEntropy()), clip=clip_sharded)
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    gradients = [parameter.grad for parameter in model.parameters()]
    here = {"weights": n_local(model.parameters()), "gradients": n_local(gradients), "moments": n_local(moments)}
    return {"total": total, "here": here, "blocks": [len(local(b.attention_norm.weight)) for b in model.blocks]}


@on(4)
def the_norm_of_differently_divided_gradients(worker):
    """Divided along one axis or both of a grid, along another dimension, unevenly, or not at all."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    placed = [
        (worker.mesh, [Shard(0)]),
        (worker.mesh, [Shard(1)]),
        (worker.mesh, [Replicate()]),
        (grid, [Shard(0), Shard(1)]),
        (grid, [Replicate(), Shard(0)]),
        (grid["model"], [Shard(0)]),
        (None, None),
    ]
    results = []
    for max_norm in (1.0, 1e6):
        plain, divided = [], []
        for i, (mesh, placements) in enumerate(placed):
            gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            for into, tensor in [
                (plain, gradient.clone()),
                (divided, gradient.clone() if mesh is None else distribute_tensor(gradient.clone(), mesh, placements)),
            ]:
                into.append(nn.Parameter(torch.zeros_like(tensor)))
                into[-1].grad = tensor
        nothing = nn.Parameter(torch.zeros(2))  # it has no gradient
        expected = nn.utils.clip_grad_norm_(plain, max_norm)
        norm = clip_sharded(iter([*divided, nothing]), max_norm)
        error = max((whole(a.grad) - b.grad).abs().max().item() for a, b in zip(divided, plain, strict=True))
        results.append({"norm": norm, "expected": expected.item(), "error": error, "is_plain": type(norm).__name__})
    return results


@on(2)
def in_bfloat16(worker):
    products, results = set(), {}
    for name in MODELS:
        torch.manual_seed(0)
        model = MODELS[name]()
        reference = MODELS[name]()
        reference.load_state_dict(model.state_dict())
        shard(model, worker.mesh, precision=BFLOAT16)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _module, _inputs, output: products.add(str(output.dtype)))
        batch = batches(name)[0]
        part = rows_of(batch, worker.rank, worker.world)
        options = {"lr": 0.01, "max_norm": 1e9}
        optimizer = AdamW(model.parameters())
        record = train_step(model, part, optimizer, loss=OverAllRanks(LOSS), clip=clip_sharded, **options)
        expected = train_step(reference, batch, AdamW(reference.parameters()), loss=LOSS, **options)
        pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
        distance = math.sqrt(sum((whole(p.grad) - q.grad).square().sum().item() for p, q in pairs))
        results[name] = {
            "loss": over_all_ranks(record).loss,
            "expected": expected.loss,
            "distance": distance / expected.grad_norm,
            "weights": {str(p.dtype) for p in model.parameters()},
            "gradients": {str(p.grad.dtype) for p in model.parameters()},
            "finer": any(not torch.equal(g, g.bfloat16().float()) for g in (local(p.grad) for p in model.parameters())),
        }
    return {"results": results, "products": sorted(products)}


@on(2)
def what_is_gathered_within_a_block(worker):
    """While the second block computes: which blocks' weights are whole here, with and without letting go of them?"""
    results = []
    for reshard in (True, False):
        model = make("gpt")
        shard(model, worker.mesh, reshard_after_forward=reshard)
        whole_here = []

        def look(_module, _inputs, model=model, whole_here=whole_here):
            weights = [block.feed_forward.up.weight for block in model.blocks]
            whole_here.append([not isinstance(weight, DTensor) for weight in weights])

        model.blocks[1].feed_forward.register_forward_pre_hook(look)
        model(torch.ones(1, 2, dtype=torch.long))
        results.append(whole_here)
    return results


@on(2)
def what_is_refused(worker):
    messages = []
    grid = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "model"))
    model = make("gpt")
    with pytest.raises(ValueError, match="one row of processes") as caught:
        shard(model, grid)
    messages.append(str(caught.value))
    shard(model, grid["model"])
    with pytest.raises(ValueError, match="sharded already"):
        shard(model, grid["model"])
    with pytest.raises(ValueError, match="Linear has no blocks"):
        shard(nn.Linear(2, 2), worker.mesh)
    with pytest.raises(ValueError, match=r"call shard\(model, mesh\) first"), without_sync(make("gpt")):
        pass
    return messages


@on(2)
def sending_begins_again_after_an_error(worker):
    model = make("gpt")
    shard(model, worker.mesh)
    with pytest.raises(KeyError), without_sync(model):
        raise KeyError
    LOSS.total(model, rows_of(batches("gpt")[0], worker.rank, 2)).backward()
    return [isinstance(parameter.grad, DTensor) for parameter in model.parameters()]


@pytest.fixture(scope="module")
def two():
    return run_checks(__file__, 2)


@pytest.fixture(scope="module")
def four():
    return run_checks(__file__, 4)


@pytest.fixture(scope="module")
def reference():
    """What one process does, with torch's optimizer and clipping, from the whole batches."""

    def run(name):
        model = make(name)
        records = train(model, batches(name), torch.optim.AdamW(model.parameters(), weight_decay=0.1), loss=LOSS)
        return {"records": records, "weights": {n: p.detach() for n, p in model.named_parameters()}}

    return {name: run(name) for name in MODELS}


def assert_same_training(result, expected):
    assert result["records"] == [pytest.approx(record, abs=1e-8) for record in expected["records"]]
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(
            result["weights"][name], weight, rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_three_steps_of_every_model_are_those_of_one_process(two, reference, name):
    for rank in two["every_model"]:
        assert_same_training(rank[name], reference[name])


@pytest.mark.parametrize("name", ["gpt", "llama untied", "encoder-decoder"])
def test_losses_may_call_a_models_methods(two, reference, name):
    for rank in two["through_their_methods"]:
        assert_same_training(rank[name], reference[name])


@pytest.mark.parametrize("way", ["accumulated", "torch's AdamW", "gathered once"])
def test_other_ways_to_the_same_weights(two, reference, way):
    for rank in two["in_other_ways"]:
        assert_same_training(rank[way], reference["gpt"])


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_four_processes_do_what_one_does(four, reference, name):
    for rank in four["on_four"]:
        assert_same_training(rank[name], reference[name])


def test_each_process_holds_a_quarter_of_everything(four):
    ranks = four["numbers_here"]
    for result in ranks:
        # Every first dimension of this model is a multiple of four.
        assert result["here"] == {"weights": result["total"] // 4} | dict.fromkeys(
            ("gradients", "moments"), result["total"] // 4
        )
        assert result["blocks"] == [8, 8]
    assert ranks[0]["total"] % 4 == 0


def test_the_norm_is_that_of_the_whole_gradient_everywhere(four):
    ranks = four["the_norm_of_differently_divided_gradients"]
    for results in ranks:
        for result, first in zip(results, ranks[0], strict=True):
            assert result["is_plain"] == "Tensor"
            assert result["norm"].item() == first["norm"].item()
            assert result["norm"].item() == pytest.approx(result["expected"], rel=1e-14)
            assert result["error"] < 1e-14
        assert results[0]["expected"] > 1.0  # one is clipped, the other is not


def test_bfloat16_is_for_products_and_full_precision_for_sums(two):
    for rank in two["in_bfloat16"]:
        assert rank["products"] == ["torch.bfloat16"]
        for name, result in rank["results"].items():
            assert result["weights"] == result["gradients"] == {"torch.float32"}, name
            # bfloat16 has 8 significant bits; a router may send a token elsewhere, which changes more.
            assert result["loss"] == pytest.approx(result["expected"], rel=2**-6), name
            assert result["finer"], name  # sums of two bfloat16 numbers, which often are none themselves
            assert 0 < result["distance"] < (0.5 if name == "mixture" else 0.1), name


def test_a_process_has_one_whole_block_at_a_time(two):
    for let_go, kept in two["what_is_gathered_within_a_block"]:
        assert let_go == [[False, True]]
        assert kept == [[True, True]]


def test_what_cannot_be_sharded_is_refused(two):
    for messages in two["what_is_refused"]:
        assert messages == [
            "weights are divided along one row of processes: got a mesh of shape (1, 2). Give one of its dimensions, "
            'mesh["data"] for one'
        ]


def test_gradients_are_sent_again_after_an_error(two):
    for rank in two["sending_begins_again_after_an_error"]:
        assert rank
        assert all(rank)
