"""Pipeline parallelism: the stack of blocks cut into stages, one for each process.

    process 0        process 1        process 2        process 3
    embedding  --x-> blocks     --x-> blocks     --x-> blocks, norm, head -> loss
    blocks     <-dx- blocks     <-dx- blocks     <-dx-

All that travels is the residual stream (B, T, D) and its gradient. A process waits for the one before it, so the batch
goes through in m microbatches, one behind the other; at the beginning and at the end some processes still have nothing
to do. This bubble is (p - 1) / (m + p - 1) of the time for p processes. When a process goes forward and when backward
is the schedule's affair:

    ScheduleGPipe   all forward, then all backward                     holds m microbatches   (Huang et al. 2019)
    Schedule1F1B    one backward for each forward, as soon as it can   holds p at most        (Narayanan et al. 2021)

Torch's engine runs them. `cut` makes the stages, from outside: a stage is the model itself, with something that passes
the stream on in the place of what other stages hold. A tied token table is held by both ends, whose gradients are added
up after the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.schedules import PipelineScheduleSingle
from torch.distributed.tensor import DTensor

from llm_core.checks import check_sizes
from llm_core.distributed.sharded import norm_sharded, shorten
from llm_core.training.batches import Batch
from llm_core.training.losses import Loss
from llm_core.training.step import CROSS_ENTROPY, StepRecord, update

_FIRST, _LAST = ("token_embedding", "scale", "positions", "dropout"), ("norm", "head")


class Stage(nn.Module):
    """One of n stages of a model. The first takes ids (B, T), the others the stream (B, T, D); the last gives logits.

    `stage.model` is the model with this stage's layers alone, and `stage.model.state_dict()` has their weights under
    the plain model's names: those of all stages together are a whole model's. Made by `cut`.
    """

    model: Any  # a module, with the parts and the methods of a GPT

    def __init__(self, model: nn.Module, index: int, n_stages: int) -> None:
        super().__init__()
        self.model = model
        self.index, self.n_stages = index, n_stages

    @property
    def is_first(self) -> bool:
        """Whether it takes ids."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives logits."""
        return self.index == self.n_stages - 1

    @property
    def tied(self) -> nn.Parameter | None:
        """The token table, if this stage holds one of the two copies of it."""
        on_an_end = self.is_first != self.is_last  # one that is both holds the only one
        return self.model.token_embedding.weight if on_an_end and _is_tied(self.model) else None

    def forward(self, x: Tensor) -> Tensor:
        """Ids or stream -> stream or logits."""
        if not self.is_first:
            x = self.model.token_embedding.receive(x)
        hidden = self.model.hidden(x)
        return self.model.logits(hidden) if self.is_last else hidden


class PassOn(nn.Module):
    """In the place of a layer that another stage holds: its output is its input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x, as it is."""
        return x


class Incoming(nn.Module):
    """In the place of the token embedding: its output is what came from the stage before, whatever the ids.

    The last stage of a tied model gives it the table, for the head.
    """

    def __init__(self, table: Tensor | None) -> None:
        super().__init__()
        self.weight = None if table is None else nn.Parameter(table.detach().clone(), table.requires_grad)
        self._stream: Tensor | None = None

    def receive(self, stream: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        """Remember the stream for the next call; ids in its place, for the model to be called with."""
        self._stream = stream
        return stream.new_zeros(stream.shape[:2], dtype=torch.long)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The stream that was received, once."""
        stream, self._stream = self._stream, None
        assert stream is not None
        return stream

    def logits(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """How well each vector fits each token: the tied output head."""
        assert self.weight is not None
        return F.linear(x, self.weight)


def split_layers(n_layers: int, n_stages: int) -> list[int]:
    """How many blocks each stage gets: as even as can be, the earlier ones more, for the last has the head as well.

    Raises:
        ValueError: there are fewer blocks than stages, or no stage.

    >>> split_layers(10, 4)
    [3, 3, 2, 2]
    """
    if not 1 <= n_stages <= n_layers:
        raise ValueError(
            f"each stage needs at least one block: got {n_stages} stages for {n_layers} blocks. Take fewer processes"
        )
    return [n_layers // n_stages + (i < n_layers % n_stages) for i in range(n_stages)]


def cut(model: nn.Module, n_stages: int, *, layers: Sequence[int] | None = None) -> list[Stage]:
    """The stages of a model. Each process keeps one: `cut(model, n)[rank]`.

    They share the model's layers, but for the last one's copy of a tied token table. All processes must cut the same
    model: the same weights, or the same seed.

    Args:
        model: a `GPT` or a `Llama`, or one with the same parts.
        n_stages: number of processes.
        layers: how many blocks each stage gets; `split_layers` unless given.

    Raises:
        ValueError: the model has other parts than these, there are fewer blocks than stages, or `layers` does not add
            up.
    """
    _check_parts(model)
    whole: Any = model
    blocks = list(whole.blocks)
    sizes = split_layers(len(blocks), n_stages) if layers is None else list(layers)
    if len(sizes) != n_stages or min(sizes) < 1 or sum(sizes) != len(blocks):
        raise ValueError(
            f"layers says how many of the {len(blocks)} blocks each of the {n_stages} stages gets, at least one: "
            f"got {sizes}, which is {len(sizes)} stages and {sum(sizes)} blocks"
        )
    stages, end = [], 0
    for index, size in enumerate(sizes):
        start, end = end, end + size
        part = copy.copy(whole)
        part._modules = dict(whole._modules)  # else both would have one list of layers
        first, last = index == 0, index == n_stages - 1
        if not first:
            part.token_embedding = Incoming(whole.token_embedding.weight if last and _is_tied(model) else None)
        for name in (() if first else _FIRST[1:]) + (() if last else _LAST):
            if getattr(part, name, None) is not None:
                setattr(part, name, PassOn())
        # The others' places are kept: a block's name has its number in the model.
        part.blocks = nn.ModuleList(block if start <= i < end else PassOn() for i, block in enumerate(blocks))
        stages.append(Stage(part, index, n_stages))
    return stages


class Pipeline:
    """This process's stage, and how it works together with the others. Every process of the group makes one.

    A tied token table starts as the first process has it.

    Args:
        stage: the stage with the number that this process has in the group.
        n_microbatches: m, the parts in which a batch goes through. More leave a smaller bubble, of smaller parts.
        schedule: `ScheduleGPipe`, `Schedule1F1B`, or another of torch's for one stage a process.
        group: the processes; all there are, unless given. Of a grid: `grid["pipeline"].get_group()`.

    Raises:
        ValueError: the stage is another process's, or there are fewer microbatches than the schedule needs.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        n_microbatches: int,
        schedule: type[PipelineScheduleSingle] = Schedule1F1B,
        group: ProcessGroup | None = None,
    ) -> None:
        rank, n = dist.get_rank(group), dist.get_world_size(group)
        if (stage.index, stage.n_stages) != (rank, n):
            raise ValueError(
                f"process {rank} of {n} runs stage {rank} of {n}: got stage {stage.index} of {stage.n_stages}. "
                "Take cut(model, n)[rank]"
            )
        least = n if issubclass(schedule, Schedule1F1B) else 1
        if n_microbatches < least:
            raise ValueError(
                f"{schedule.__name__} needs at least {least} microbatches for {n} stages: got "
                f"n_microbatches={n_microbatches}"
            )
        self.stage, self.group = stage, group
        self.n_microbatches, self.schedule = n_microbatches, schedule
        if isinstance(stage.tied, DTensor):
            raise ValueError(
                "a tied token table cannot lie in several processes at one end of a pipeline and whole at the other: "
                "train a model with a head of its own, or cut it into stages only"
            )
        if stage.tied is not None:
            if stage.is_first:
                dist.send(stage.tied.detach(), group=group, group_dst=n - 1)
            else:
                dist.recv(stage.tied.detach(), group=group, group_src=0)

    def forward_backward(self, batch: Batch, loss: Loss) -> Tensor:
        """Send a batch through, forward and backward; the gradients add up. Returns the mean loss, to every process.

        Raises:
            ValueError: the batch does not divide into the microbatches, or is not for this model. In all processes
                alike, before any work is done.
        """
        ids = self._check(batch)
        n_targets = loss.count(batch)
        if n_targets == 0:
            raise ValueError("the batch has no target to learn from: there are none, or none of them counts")
        losses: list[Tensor] = []
        # Made anew for each batch: the sizes of what they send to each other are fixed when it is made.
        schedule = self.schedule(
            self._torch_stage(ids),
            self.n_microbatches,
            loss_fn=partial(_part_of_mean, loss, n_targets),
            scale_grads=False,  # torch would divide by the number of microbatches, as if all had as many targets
        )
        schedule.step(
            *([ids] if self.stage.is_first else []),
            target=batch.targets if self.stage.is_last else None,
            losses=losses,
            return_outputs=False,  # else the logits of all microbatches would be kept
        )
        if (table := self.stage.tied) is not None and table.grad is not None:
            self._add_up(table.grad)
        value = torch.stack(losses).detach().sum() if self.stage.is_last else self._stream(1, 1).new_zeros(())
        dist.broadcast(value, group=self.group, group_src=self.stage.n_stages - 1)
        return value

    def clip(self, parameters: Iterable[Tensor], max_norm: float | int) -> Float[Tensor, ""]:
        """`nn.utils.clip_grad_norm_` over all stages; a tied table's gradient, which two of them hold, counts once."""
        own = list(parameters)
        copied = self.stage.tied if self.stage.is_last else None
        square = norm_sharded(parameter for parameter in own if parameter is not copied).square()
        dist.all_reduce(square, group=self.group)
        norm = square.sqrt()
        shorten(own, norm, max_norm)
        return norm

    def _check(self, batch: Batch) -> Int[Tensor, "B T"]:
        if len(batch.inputs) != 1:
            raise ValueError(f"a pipeline reads one tensor of ids: got {len(batch.inputs)} inputs")
        (ids,) = batch.inputs
        B, T = ids.shape
        if B % self.n_microbatches or B == 0:
            raise ValueError(
                f"a batch of {B} texts cannot be cut into {self.n_microbatches} microbatches of one size: take a "
                f"multiple of {self.n_microbatches}"
            )
        model = self.stage.model
        if model.context < T:
            raise ValueError(f"the text is longer than the context: got {T} tokens, the context is {model.context}")
        # Otherwise only the first process would notice, and the others would wait for it.
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < model.vocab_size:
            tokens = f"0 ... {model.vocab_size - 1}"
            raise ValueError(f"ids must be tokens, {tokens}: got {ids.min().item()} to {ids.max().item()}")
        return ids

    def _torch_stage(self, ids: Tensor) -> PipelineStage:
        """Torch's stage, told the shapes of what comes in and goes out, so that it need not try them out."""
        B, T = ids.shape[0] // self.n_microbatches, ids.shape[1]
        stage = self.stage
        stream = self._stream(B, T)
        logits = stream.new_empty(B, T, stage.model.vocab_size, device="meta", requires_grad=True)
        return PipelineStage(
            stage,
            stage.index,
            stage.n_stages,
            stream.device,
            input_args=ids[:B].to("meta") if stage.is_first else _shape_of(stream),
            output_args=logits if stage.is_last else _shape_of(stream),
            group=self.group,
        )

    def _stream(self, B: int, T: int) -> Tensor:
        """An empty residual stream."""
        weight = next(self.stage.parameters())
        return torch.empty(B, T, self.stage.model.config.d_model, device=weight.device, dtype=weight.dtype)

    def _add_up(self, grad: Tensor) -> None:
        """Add to the gradient of this end's table that of the other end's. Both add the same two: they stay equal."""
        other = self.stage.n_stages - 1 - self.stage.index
        theirs = torch.empty_like(grad)
        operations = [
            dist.P2POp(dist.isend, grad, group=self.group, group_peer=other),
            dist.P2POp(dist.irecv, theirs, group=self.group, group_peer=other),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        grad += theirs


def pipeline_step(
    pipeline: Pipeline,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    loss: Loss = CROSS_ENTROPY,
    max_norm: float = 1.0,
) -> StepRecord:
    """`train_step` for a model in stages. Every process calls it, with the whole batch, and gets the same record.

    Args:
        pipeline: this process's stage among the others.
        batch: inputs and targets. The first process reads the inputs, the last one the targets.
        optimizer: holds the parameters of this process's stage.
        lr: the learning rate of this step, set in every parameter group.
        loss: what is made small; the mean over all targets of all microbatches. It may call its model once, and look at
            nothing but logits and targets: no more of the model is where the loss is.
        max_norm: gradients longer than this, those of all stages taken as one vector, are shortened to it.

    Raises:
        NotFinite: the loss or a gradient is not finite, in whichever stage. Raised in all processes; the parameters are
            then as they were.
        ValueError: there is no target to learn from, or the batch is not for this pipeline. In all processes, too.
    """
    optimizer.zero_grad(set_to_none=True)
    mean = pipeline.forward_backward(batch, loss)
    parameters = pipeline.stage.parameters()
    return update(parameters, mean, optimizer, lr=lr, max_norm=max_norm, clip=pipeline.clip, batch=[batch])


def bubble_fraction(n_stages: int, n_microbatches: int) -> float:
    """The share of time in which a process waits: (p - 1) / (m + p - 1), if all stages take the same time.

    Both schedules have the same; Schedule1F1B holds fewer microbatches in memory. Source: Huang et al. 2019,
    section 2.3.

    Raises:
        ValueError: a number is below 1.

    >>> bubble_fraction(4, 4), bubble_fraction(4, 27)
    (0.42857142857142855, 0.1)
    """
    check_sizes(n_stages=n_stages, n_microbatches=n_microbatches)
    return (n_stages - 1) / (n_microbatches + n_stages - 1)


def balance(costs: Sequence[float | int]) -> float:
    """How even the stages are: their mean cost over the largest. 1 is even; all wait for the slowest.

    The costs may be seconds, or weights that are multiplied with. Of p processes, balance * (1 - bubble) * p are at
    work on average.

    Raises:
        ValueError: there is no stage, or one that costs nothing or less.

    >>> balance([3, 3, 2, 4])
    0.75
    """
    if not costs or min(costs) <= 0:
        raise ValueError(f"each stage costs something: got {list(costs)}")
    return sum(costs) / len(costs) / max(costs)


class _Given(nn.Module):
    """A model that has given its logits already: for a loss, which wants to call one."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self) -> Tensor:
        return self._logits


def _part_of_mean(loss: Loss, n_targets: int | float, logits: Tensor, targets: Tensor) -> Tensor:
    """What a microbatch adds to the mean over the targets of the whole batch."""
    return loss.total(_Given(logits), Batch((), targets)) / n_targets


def _shape_of(stream: Tensor) -> Tensor:
    return torch.empty_like(stream, device="meta", requires_grad=True)


def _is_tied(model: nn.Module) -> bool:
    return getattr(model, "head", None) is None


def _check_parts(model: nn.Module) -> None:
    parts = {name for name, _ in model.named_children()}
    missing = {"token_embedding", "blocks", "norm"} - parts
    unknown = parts - {*_FIRST, "blocks", *_LAST}
    if missing or unknown or not (hasattr(model, "hidden") and hasattr(model, "logits")):
        raise ValueError(
            f"a model to cut has {', '.join(_FIRST)}, blocks, {', '.join(_LAST)}, as far as it needs them, and the "
            f"methods hidden and logits, as GPT and Llama: got a {type(model).__name__} with {sorted(parts)}"
        )
