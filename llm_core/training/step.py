"""One step of training: forward, loss, backward, clip, update.

for each part of the batch      forward and backward; the gradients add up
all parameters                  clip the gradient, set the learning rate, update
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_core.training.batches import Batch
from llm_core.training.losses import CrossEntropy, Loss

CROSS_ENTROPY = CrossEntropy()
AS_IT_IS: AbstractContextManager[Any] = nullcontext()


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
    clip: Callable[..., Tensor] = nn.utils.clip_grad_norm_,
    without_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> StepRecord:
    """Let the model learn from one batch.

    Args:
        model: what is trained.
        batch: inputs and targets; or several batches that are learned from as if they were one, in the memory that
            the largest of them needs (gradient accumulation).
        optimizer: holds the model's parameters.
        lr: the learning rate of this step, set in every parameter group.
        loss: what is made small; the mean over all targets of all parts.
        max_norm: gradients longer than this, all taken as one vector, are shortened to it.
        precision: what the forward pass runs under: `torch.autocast("cpu", torch.bfloat16)`, for one.
        clip: (parameters, max_norm) -> the norm before; where parameters lie in several processes, it knows how.
        without_sync: entered for all parts but the last, where several processes add up their gradients once.

    Raises:
        NotFinite: the loss or a gradient is not finite. The parameters are then as they were.
        ValueError: there is no target to learn from.
    """
    parts = [batch] if isinstance(batch, Batch) else list(batch)
    n_targets = sum(loss.count(part) for part in parts)
    if n_targets == 0:
        raise ValueError("the batch has no target to learn from: there are none, or none of them counts")
    optimizer.zero_grad(set_to_none=True)
    value = torch.zeros(())
    for i, part in enumerate(parts):
        with without_sync() if i < len(parts) - 1 else nullcontext():
            with precision:
                mean = loss.total(model, part) / n_targets
            mean.backward()
        value = value.to(mean.device) + mean.detach()
    if not torch.isfinite(value):
        raise NotFinite("loss", value.item(), parts)
    norm = clip(model.parameters(), max_norm)
    if not torch.isfinite(norm):
        raise NotFinite("gradient norm", norm.item(), parts)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepRecord(loss=value.item(), grad_norm=norm.item(), lr=lr)
