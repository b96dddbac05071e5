"""One step of training: forward, loss, backward, clip, update.

Taught in chapters/03_algorithms/06_three_sentences and, once it is written, in 03_algorithms/04_training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_core.training.batches import Batch
from llm_core.training.losses import cross_entropy


@dataclass(frozen=True)
class StepRecord:
    """What one step did. `loss` is in nats a token, before the update; `grad_norm` is before clipping."""

    loss: float
    grad_norm: float
    lr: float


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    max_norm: float = 1.0,
) -> StepRecord:
    """Let the model learn from one batch.

    Args:
        model: called as `model(*batch.inputs)`, gives logits.
        batch: inputs and targets.
        optimizer: holds the model's parameters.
        lr: the learning rate of this step, set in every parameter group.
        loss: (logits, targets) -> a number.
        max_norm: gradients longer than this, all taken as one vector, are shortened to it.

    Raises:
        ValueError: the loss or a gradient is not finite. The parameters are then as they were.
    """
    optimizer.zero_grad(set_to_none=True)
    value = loss(model(*batch.inputs), batch.targets)
    _check_finite("loss", value)
    value.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    _check_finite("gradient norm", norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepRecord(loss=value.item(), grad_norm=norm.item(), lr=lr)


def _check_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value):
        raise ValueError(
            f"the {name} is {value.item()}, so this step was not taken. Lower the learning rate, lengthen the warm-up, "
            "or look for an id or a number in this batch that should not be there"
        )
