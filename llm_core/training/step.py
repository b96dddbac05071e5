"""One step of training: forward, loss, backward, clip, update.

accumulate    for each part of the batch: forward and backward; the gradients add up
update        for all parameters: clip the gradient, set the learning rate, take the step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.training.batches import Batch
from llm_core.training.losses import CrossEntropy, Loss

CROSS_ENTROPY = CrossEntropy()
AS_IT_IS: AbstractContextManager[Any] = nullcontext()
Clip = Callable[..., Tensor]  # (parameters, max_norm) -> the norm before


@dataclass(frozen=True)
class StepRecord:
    """What one step did. `loss` is in nats a token, before the update; `grad_norm` is before clipping."""

    loss: float
    grad_norm: float
    lr: float


class NotFinite(ValueError):
    """The loss or a gradient is infinite or not a number; `batch` is what the model was given."""

    def __init__(self, name: str, value: float, batch: Sequence[Batch]) -> None:
        super().__init__(
            f"the {name} is {value}, so this step was not taken. Lower the learning rate, lengthen the warm-up, "
            "or look for an id or a number in this batch that should not be there"
        )
        self.batch = batch


def train_step(
    model: nn.Module,
    batch: Batch | Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    loss: Loss = CROSS_ENTROPY,
    max_norm: float = 1.0,
    precision: AbstractContextManager[Any] = AS_IT_IS,
    clip: Clip = nn.utils.clip_grad_norm_,
    without_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> StepRecord:
    """Let the model learn from one batch: `accumulate`, then `update`, whose arguments these are.

    Raises:
        NotFinite: the loss or a gradient is not finite. The parameters are then as they were.
        ValueError: there is no target to learn from.
    """
    parts = [batch] if isinstance(batch, Batch) else list(batch)
    mean = accumulate(model, parts, optimizer, loss=loss, precision=precision, without_sync=without_sync)
    return update(model.parameters(), mean, optimizer, lr=lr, max_norm=max_norm, clip=clip, batch=parts)


def accumulate(
    model: nn.Module,
    parts: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss = CROSS_ENTROPY,
    precision: AbstractContextManager[Any] = AS_IT_IS,
    without_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Float[Tensor, ""]:
    """The gradient of the mean loss over several batches, as if they were one; returns that mean.

    They are learned from one after another, in the memory that the largest of them needs. Nothing waits for the device.

    Args:
        model: what is trained.
        parts: inputs and targets, each part's.
        optimizer: holds the model's parameters, whose gradients are cleared first.
        loss: what is made small; the mean over all targets of all parts.
        precision: what the forward pass runs under: `torch.autocast("cpu", torch.bfloat16)`, for one.
        without_sync: entered for all parts but the last, where several processes add up their gradients once.

    Raises:
        ValueError: there is no target to learn from. The gradients are then as they were.
    """
    n_targets = sum(loss.count(part) for part in parts)
    if n_targets == 0:
        raise ValueError("the batch has no target to learn from: there are none, or none of them counts")
    optimizer.zero_grad(set_to_none=True)
    total: Tensor | None = None
    for i, part in enumerate(parts):
        with without_sync() if i < len(parts) - 1 else nullcontext():
            with precision:
                mean = loss.total(model, part) / n_targets
            mean.backward()
        total = mean.detach() if total is None else total + mean.detach()
    assert total is not None  # there is a target, so there is a part
    return total


def update(
    parameters: Iterable[Tensor],
    loss: Float[Tensor, ""],
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    max_norm: float = 1.0,
    clip: Clip = nn.utils.clip_grad_norm_,
    batch: Sequence[Batch] = (),
) -> StepRecord:
    """Clip the gradient and take the step, if all is finite.

    Args:
        parameters: those whose gradients are clipped.
        loss: what `accumulate` has returned, for the record.
        optimizer: takes the step.
        lr: the learning rate of this step, set in every parameter group.
        max_norm: gradients longer than this, all taken as one vector, are shortened to it.
        clip: (parameters, max_norm) -> the norm before; where parameters lie in several processes, it knows how.
        batch: what the loss is of, for the error.

    Raises:
        NotFinite: the loss or a gradient is not finite. The parameters are then as they were.
    """
    norm = clip(parameters, max_norm)
    # One look at both: on a GPU each look waits until all that was asked for is done.
    loss_value, norm_value = torch.stack([loss, norm.to(loss)]).tolist()
    if not math.isfinite(loss_value):
        raise NotFinite("loss", loss_value, batch)
    if not math.isfinite(norm_value):
        raise NotFinite("gradient norm", norm_value, batch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepRecord(loss=loss_value, grad_norm=norm_value, lr=lr)
