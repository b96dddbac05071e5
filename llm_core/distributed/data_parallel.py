"""Data parallel: every process has the whole model and a part of the batch; the gradients are added up.

    batch of B rows -> B / W rows a process -> forward, backward -> all-reduce of the gradients -> the same update

All processes start with the same weights, get the same gradient and take the same step, so the weights stay the same
without being sent. The sum is what one process would have got from the whole batch, if it is divided by the right
number. With n_r targets in process r whose losses add up to L_r:

    right    sum_r L_r / sum_r n_r            every target counts once
    wrong    (1 / W) sum_r (L_r / n_r)        the mean of means: targets of a process that has few count more

`OverAllRanks` counts right, whoever adds the gradients up: torch's `DistributedDataParallel`, which does so in buckets
while the backward pass still runs (`DataParallel`), or the loop that is plain to read (`all_reduce_gradients`).

What a process sends in a collective operation on n bytes, when W processes stand in a ring:

    reduce-scatter    (W - 1) / W n      each ends up with one W-th of the sum
    all-gather        (W - 1) / W n      each gives its W-th to all
    all-reduce      2 (W - 1) / W n      the one, then the other

Source: Li et al. 2020 (torch's engine); Patarasuk and Yuan 2009 (the ring, and why none sends less). Taught, once it
is written, in 03_algorithms/08_several_processes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm_core.training.batches import Batch
from llm_core.training.losses import Loss
from llm_core.training.step import StepRecord


class OverAllRanks:
    """A `Loss` whose mean is over the targets of all processes, where the gradients of the processes are averaged.

    `count` is the number of all processes' targets divided by the number of processes: each process divides by that
    what its own targets add up to, and the average of these is the mean over all targets.

    Args:
        loss: what is made small.
        group: the processes that share a batch; all of them unless given.
    """

    def __init__(self, loss: Loss, *, group: dist.ProcessGroup | None = None) -> None:
        self.loss = loss
        self.group = group

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of this process' targets."""
        return self.loss.total(model, batch)

    def count(self, batch: Batch) -> int | float:
        """The number of targets that a process has on average. All processes must ask at the same time.

        Raises:
            ValueError: a process has no target. All processes raise it, so that none waits for another.
        """
        count = self.loss.count(batch)
        numbers = torch.tensor([count, float(count == 0)], dtype=torch.float64)  # exact up to 2^53 targets
        dist.all_reduce(numbers, group=self.group)
        total, without = numbers.tolist()
        world = dist.get_world_size(self.group)
        if without:
            raise ValueError(
                f"{without:.0f} of {world} processes have no target in their part of the batch (this one has {count}): "
                "give each at least one, with larger batches or other rows"
            )
        return total / world


class DataParallel(OverAllRanks):
    """Torch's `DistributedDataParallel` around a model and its loss, as a `Loss` for `train_step`.

        parallel = DataParallel(model, CrossEntropy(ignore_id=0))
        train_step(model, batch, optimizer, lr=lr, loss=parallel, without_sync=parallel.without_sync)

    The model itself stays as it is, so that a checkpoint is that of one process. All get the weights of rank 0.

    Args:
        model: the same one in every process.
        loss: what is made small.
        group: the processes that share a batch; all of them unless given.
        options: torch's own, such as `bucket_cap_mb`, or `find_unused_parameters=True` where a batch may leave
            parameters out.
    """

    def __init__(self, model: nn.Module, loss: Loss, *, group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(loss, group=group)
        # The loss is within: torch wants one forward pass for each backward pass, and a loss may call a model's
        # methods, which DistributedDataParallel does not have.
        self._model = model
        self._engine = DistributedDataParallel(_WithLoss(model, loss), process_group=group, **options)

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of this process' targets; its backward pass averages the gradients of all processes.

        Raises:
            ValueError: this is not the model that was given at the start.
        """
        if model is not self._model:
            raise ValueError("this loss belongs to another model: build DataParallel(model, loss) once for each model")
        return self._engine(batch)

    def without_sync(self) -> AbstractContextManager[Any]:
        """Within it gradients add up in this process alone; the next backward pass outside sends their sum."""
        return self._engine.no_sync()


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss.total(self.model, batch)


def all_reduce_gradients(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace every gradient by its mean over the processes: what data parallel is, without what makes it fast.

    To be called between the backward pass and the update; `train_step` has a place for it, its `clip`.
    """
    world = dist.get_world_size(group)
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # not used here; maybe by another process, which must not wait for this one
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= world


def rows_of(batch: Batch, rank: int, world: int) -> Batch:
    """The part of a batch that process `rank` of `world` learns from: neighbouring rows, about the same number each.

    Raises:
        ValueError: `rank` is not 0 ... world - 1, there are fewer rows than processes, or the batch's tensors differ
            in their number of rows.

    >>> batch = Batch((torch.arange(5)[:, None],), torch.arange(5)[:, None] + 1)
    >>> [rows_of(batch, rank, 2).targets.flatten().tolist() for rank in (0, 1)]
    [[1, 2, 3], [4, 5]]
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 ... {world - 1} with {world} processes: got {rank}")
    rows = {len(tensor) for tensor in (*batch.inputs, batch.targets)}
    if len(rows) > 1:
        raise ValueError(f"all tensors of a batch must have the same number of rows: got {sorted(rows)}")
    if min(rows) < world:
        raise ValueError(f"each process needs at least one row: got {min(rows)} rows for {world} processes")
    inputs = tuple(tensor.tensor_split(world)[rank] for tensor in batch.inputs)
    return Batch(inputs, batch.targets.tensor_split(world)[rank])


def over_all_ranks(record: StepRecord, group: dist.ProcessGroup | None = None) -> StepRecord:
    """The record of the whole batch: the mean of the processes' losses, which is the mean over all targets.

    `train_step` sees its own process' share of the loss; the norm and the learning rate are the same everywhere. All
    processes must call it.
    """
    loss = torch.tensor(record.loss, dtype=torch.float64)
    dist.all_reduce(loss, group=group)
    return replace(record, loss=loss.item() / dist.get_world_size(group))


def all_reduce_bytes(n_bytes: int, world: int) -> float:
    """Bytes that each of `world` processes in a ring sends in an all-reduce of `n_bytes`: 2 (W - 1) / W n.

    >>> all_reduce_bytes(1000, 2), all_reduce_bytes(1000, 4)
    (1000.0, 1500.0)
    """
    return reduce_scatter_bytes(n_bytes, world) + all_gather_bytes(n_bytes, world)


def reduce_scatter_bytes(n_bytes: int, world: int) -> float:
    """Bytes that each of `world` processes in a ring sends in a reduce-scatter of `n_bytes`: (W - 1) / W n."""
    return _ring_bytes(n_bytes, world)


def all_gather_bytes(n_bytes: int, world: int) -> float:
    """Bytes that each of `world` processes in a ring sends in an all-gather that gives `n_bytes`: (W - 1) / W n."""
    return _ring_bytes(n_bytes, world)


def _ring_bytes(n_bytes: int, world: int) -> float:
    if n_bytes < 0 or world < 1:
        raise ValueError(f"expected 0 bytes or more and 1 process or more: got {n_bytes} bytes, {world} processes")
    return (world - 1) / world * n_bytes
