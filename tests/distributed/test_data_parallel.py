"""Data parallel: gradients, losses and weights are those of one process that has the whole batch."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from processes import on, run_checks
from torch import nn

from llm_core.distributed.data_parallel import (
    DataParallel,
    OverAllRanks,
    all_gather_bytes,
    all_reduce_bytes,
    all_reduce_gradients,
    over_all_ranks,
    reduce_scatter_bytes,
    rows_of,
)
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import Batch
from llm_core.training.losses import CrossEntropy, Loss
from llm_core.training.optimizer import AdamW
from llm_core.training.step import StepRecord, train_step

PAD = 0
LOSS = CrossEntropy(ignore_id=PAD)
V = 11


def gpt(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=V, context=8, n_layers=2, n_heads=2, d_model=8)).double()


def padded_batch(seed: int, rows: int = 8, length: int = 6) -> Batch:
    """Row b has length - b % length targets: the first half of the rows has more of them than the second."""
    ids = torch.randint(1, V, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    for b in range(rows):
        ids[b, 1 + max(length - b, 1) :] = PAD
    return Batch((ids[:, :-1],), ids[:, 1:])


BATCHES = [padded_batch(seed) for seed in range(3)]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def alone() -> dict:
    """What one process gets from the same batches: the reference, without a line of the package's distributed code."""
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    records, first = [], None
    for batch in BATCHES:
        targets = batch.targets
        optimizer.zero_grad()
        logits = model(*batch.inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        loss.backward()
        first = first or gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        records.append((loss.item(), norm.item()))
    return {"records": records, "weights": weights(model), "first": first}


def trained(worker, model, loss, parts=1, **options) -> dict:
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    records = []
    for batch in BATCHES:
        part = rows_of(batch, worker.rank, worker.world)
        cut = [rows_of(part, i, parts) for i in range(parts)]
        record = train_step(model, cut, optimizer, lr=0.01, loss=loss, max_norm=0.1, **options)
        records.append(over_all_ranks(record))
    return {"records": [(record.loss, record.grad_norm) for record in records], "weights": weights(model)}


@on(2, 4)
def with_torch_engine(worker):
    model = gpt(seed=worker.rank)  # only rank 0 has the reference's weights: the others must be given them
    return trained(worker, model, DataParallel(model, LOSS))


@on(2)
def in_two_parts_that_are_sent_once(worker):
    model = gpt()
    parallel = DataParallel(model, LOSS)
    return trained(worker, model, parallel, parts=2, without_sync=parallel.without_sync)


@on(2, 4)
def with_the_plain_loop(worker):
    model = gpt()

    def clip(parameters, max_norm):
        all_reduce_gradients(model)
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    return trained(worker, model, OverAllRanks(LOSS), clip=clip)


@on(2)
def the_mean_of_means(worker):
    """What one gets who averages the gradients of each process' own mean."""
    model = gpt()
    part = rows_of(BATCHES[0], worker.rank, worker.world)
    (LOSS.total(model, part) / LOSS.count(part)).backward()
    all_reduce_gradients(model)
    return gradients(model)


@on(2)
def gradients_of_the_first_batch(worker):
    model = gpt()
    parallel = DataParallel(model, LOSS)
    part = rows_of(BATCHES[0], worker.rank, worker.world)
    count = parallel.count(part)
    (parallel.total(model, part) / count).backward()
    return {
        "gradients": gradients(model),
        "count": count,
        "own": LOSS.count(part),
        "is_loss": isinstance(parallel, Loss),
    }


@on(2)
def what_the_engine_sends(worker):
    """Numbers that torch's engine gives to all-reduce, with two parts: all of them in each, or in the last one only."""
    sent = []
    model = gpt()
    parallel = DataParallel(model, LOSS)

    def count_numbers(_, bucket):
        sent.append(bucket.buffer().numel())
        return dist.all_reduce(bucket.buffer() / worker.world, async_op=True).get_future().then(lambda f: f.value()[0])

    parallel._engine.register_comm_hook(None, count_numbers)
    part = rows_of(BATCHES[0], worker.rank, worker.world)
    result = {"model": model.n_parameters()}
    for name, context in [("each", nullcontext), ("last", parallel.without_sync)]:
        sent.clear()
        optimizer = AdamW(model.parameters())
        parts = [rows_of(part, i, 2) for i in range(2)]
        train_step(model, parts, optimizer, lr=0.0, loss=parallel, without_sync=context)
        result[name] = sum(sent)
    return result


@on(2)
def one_process_without_targets(worker):
    batch = Batch((torch.ones(2, 3, dtype=torch.long),), torch.tensor([[1, 2, 3], [PAD, PAD, PAD]]))
    model = gpt()
    messages = []
    for loss in (OverAllRanks(LOSS), DataParallel(model, LOSS)):
        with pytest.raises(ValueError, match="have no target") as caught:
            train_step(model, rows_of(batch, worker.rank, 2), AdamW(model.parameters()), lr=0.1, loss=loss)
        messages.append(str(caught.value))
    return messages


@on(2)
def a_parameter_that_one_process_does_not_use(worker):
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    model[worker.rank](torch.full((1, 2), 4.0)).sum().backward()
    model[0].bias.requires_grad_(False)
    model[0].bias.grad = None
    all_reduce_gradients(model)
    return gradients(model)


@on(2)
def a_mixture_of_experts(worker):
    """Eight experts, one token a process: most have nothing to do, and the two processes use others."""
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "context": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 8, "d_ff": 8}
    model = Llama(LlamaConfig(**sizes, n_experts=8, experts_per_token=1)).double()
    reference = copy.deepcopy(model)
    batch = Batch((torch.tensor([[1], [2]]),), torch.tensor([[3], [4]]))
    LOSS.total(reference, batch).div(2).backward()
    parallel = DataParallel(model, LOSS)
    part = rows_of(batch, worker.rank, 2)
    (parallel.total(model, part) / parallel.count(part)).backward()
    mine, expected = gradients(model), gradients(reference)
    return mine, expected


class UsesOne(nn.Module):
    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which
        self.parts = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])

    def forward(self, x):
        return self.parts[self.which](x)


class Sum:
    def total(self, model, batch):
        return model(*batch.inputs).sum()

    def count(self, batch):
        return batch.targets.numel()


@on(2)
def a_part_of_the_model_that_one_process_does_not_use(worker):
    model = UsesOne(worker.rank)
    parallel = DataParallel(model, Sum(), find_unused_parameters=True)
    batch = Batch((torch.full((1, 1), 4.0),), torch.zeros(1))
    for _ in range(2):  # without that option torch refuses the second time
        train_step(model, batch, torch.optim.SGD(model.parameters()), lr=0.0, loss=parallel, max_norm=100.0)
    return [gradient.item() for gradient in gradients(model).values()]


@on(4)
def in_two_groups(worker):
    """Two models side by side, of two processes each: what they count and average stays in the group."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = pairs[worker.rank // 2]
    loss = OverAllRanks(LOSS, group=group)
    part = rows_of(BATCHES[worker.rank // 2], worker.rank % 2, 2)
    model = gpt()
    parallel = DataParallel(model, LOSS, group=group)
    (parallel.total(model, part) / parallel.count(part)).backward()
    plain = gpt()
    (loss.total(plain, part) / loss.count(part)).backward()
    all_reduce_gradients(plain, group)
    record = over_all_ranks(StepRecord(float(worker.rank), 0.5, 0.1), group)
    return {"engine": gradients(model), "plain": gradients(plain), "loss": record.loss}


@pytest.fixture(scope="module")
def two():
    return run_checks(__file__, 2)


@pytest.fixture(scope="module")
def four():
    return run_checks(__file__, 4)


@pytest.fixture(scope="module")
def reference():
    return alone()


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(result[name], expected[name], rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_training(ranks, reference):
    for result in ranks:
        assert result["records"] == [pytest.approx(record, abs=1e-8) for record in reference["records"]]
        assert_same(result["weights"], reference["weights"])


@pytest.mark.parametrize("check", ["with_torch_engine", "with_the_plain_loop", "in_two_parts_that_are_sent_once"])
def test_three_steps_on_two_processes_are_those_of_one(two, reference, check):
    assert_same_training(two[check], reference)


@pytest.mark.parametrize("check", ["with_torch_engine", "with_the_plain_loop"])
def test_three_steps_on_four_processes_are_those_of_one(four, reference, check):
    assert_same_training(four[check], reference)


def test_unequal_padding_gives_the_gradient_of_the_whole_batch(two, reference):
    ranks = two["gradients_of_the_first_batch"]
    own = [rank["own"] for rank in ranks]
    assert own[0] > 2 * own[1]
    for rank in ranks:
        assert rank["count"] == sum(own) / 2
        assert rank["is_loss"]
        assert_same(rank["gradients"], reference["first"])


def test_the_mean_of_means_is_another_gradient(two, reference):
    """The bug that `OverAllRanks` is there for; if this were small, the test above would show nothing."""
    wrong, right = two["the_mean_of_means"][0], reference["first"]
    distance = math.sqrt(sum((wrong[name] - right[name]).square().sum().item() for name in right))
    length = math.sqrt(sum(right[name].square().sum().item() for name in right))
    assert distance > 0.1 * length


def test_gradients_are_sent_once_without_sync_and_twice_with_it(two):
    for rank in two["what_the_engine_sends"]:
        assert rank["last"] == rank["model"]
        assert rank["each"] == 2 * rank["model"]


def test_a_process_without_targets_is_an_error_in_all_processes(two):
    for rank, own in enumerate([3, 0]):
        for message in two["one_process_without_targets"][rank]:
            assert message.startswith(
                f"1 of 2 processes have no target in their part of the batch (this one has {own})"
            )


def test_what_one_process_does_not_use_counts_as_zero_there(two):
    for rank in two["a_parameter_that_one_process_does_not_use"]:
        assert rank.keys() == {"0.weight", "1.weight", "1.bias"}
        assert rank["0.weight"].tolist() == rank["1.weight"].tolist() == [[2.0, 2.0]]
        assert rank["1.bias"].tolist() == [0.5]


def test_experts_that_a_process_does_not_use(two):
    for mine, expected in two["a_mixture_of_experts"]:
        assert_same(mine, expected)


def test_options_reach_the_engine(two):
    assert two["a_part_of_the_model_that_one_process_does_not_use"] == [[2.0, 2.0]] * 2


def test_groups_do_not_mix(four):
    for rank, result in enumerate(four["in_two_groups"]):
        model, batch = gpt(), BATCHES[rank // 2]
        logits = model(*batch.inputs).flatten(0, 1)
        rows = rows_of(batch, 0, 1).targets.flatten()
        nn.functional.cross_entropy(logits, rows, ignore_index=PAD).backward()
        assert_same(result["engine"], gradients(model))
        assert_same(result["plain"], gradients(model))
        assert result["loss"] == (0.5 if rank < 2 else 2.5)


# ---- without other processes ----


@pytest.fixture
def alone_in_a_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
def test_the_loss_of_another_model_is_refused():
    parallel = DataParallel(gpt(), LOSS)
    with pytest.raises(ValueError, match="belongs to another model"):
        train_step(gpt(), BATCHES[0], AdamW(gpt().parameters()), lr=0.1, loss=parallel)


@pytest.mark.usefixtures("alone_in_a_group")
def test_the_model_keeps_its_names():
    model = gpt()
    names = list(model.state_dict())
    DataParallel(model, LOSS)
    assert list(model.state_dict()) == names


@pytest.mark.usefixtures("alone_in_a_group")
def test_the_record_keeps_what_is_the_same_everywhere():
    assert over_all_ranks(StepRecord(1.25, 2.0, 0.5)) == StepRecord(1.25, 2.0, 0.5)


@pytest.mark.parametrize(("rows", "world"), [(1, 1), (4, 4), (5, 2), (7, 3), (8, 3)])
def test_rows_are_cut_evenly_and_none_is_lost(rows, world):
    batch = Batch((torch.arange(rows * 2).view(rows, 2), torch.arange(rows)), torch.arange(rows) * 10)
    parts = [rows_of(batch, rank, world) for rank in range(world)]
    for i in range(2):
        assert torch.equal(torch.cat([part.inputs[i] for part in parts]), batch.inputs[i])
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    sizes = [len(part.targets) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_rows_that_cannot_be_cut():
    batch = Batch((torch.zeros(3, 2),), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least one row: got 3 rows for 4 processes"):
        rows_of(batch, 0, 4)
    with pytest.raises(ValueError, match=r"rank must be 0 \.\.\. 1 with 2 processes: got 2"):
        rows_of(batch, 2, 2)
    with pytest.raises(ValueError, match="got -1"):
        rows_of(batch, -1, 2)
    with pytest.raises(ValueError, match=r"same number of rows: got \[2, 3\]"):
        rows_of(Batch((torch.zeros(3, 2),), torch.zeros(2, 2)), 0, 2)


def ring(world: int, n: int) -> tuple[list[int], list[int], list[list[float]]]:
    """A ring written out: (numbers each process sends in reduce-scatter, in all-gather, what each has at the end)."""
    values = [[float(100 * rank + i) for i in range(n)] for rank in range(world)]
    size = n // world
    sent = [[0] * world, [0] * world]
    for phase in range(2):
        for turn in range(world - 1):
            messages = []
            for rank in range(world):
                chunk = (rank - turn + phase) % world
                part = slice(chunk * size, (chunk + 1) * size)
                messages.append((part, values[rank][part]))
                sent[phase][rank] += size
            for rank in range(world):
                part, numbers = messages[rank - 1]
                own = values[rank][part]
                values[rank][part] = [a + b for a, b in zip(own, numbers, strict=True)] if phase == 0 else numbers
    return sent[0], sent[1], values


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_a_ring_sends_as_many_bytes_as_the_formulas_say(world):
    n = 24
    scattered, gathered, values = ring(world, n)
    assert values == [[sum(100.0 * rank + i for rank in range(world)) for i in range(n)]] * world
    for rank in range(world):
        assert reduce_scatter_bytes(4 * n, world) == 4 * scattered[rank]
        assert all_gather_bytes(4 * n, world) == 4 * gathered[rank]
        assert all_reduce_bytes(4 * n, world) == 4 * (scattered[rank] + gathered[rank])


def test_bytes_of_nobody_are_refused():
    assert all_reduce_bytes(0, 4) == 0
    with pytest.raises(ValueError, match="got 8 bytes, 0 processes"):
        all_reduce_bytes(8, 0)
    with pytest.raises(ValueError, match="got -1 bytes, 2 processes"):
        all_gather_bytes(-1, 2)
