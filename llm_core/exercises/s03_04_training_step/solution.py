"""Reference solution of exercise 03/04: clipping, and a training step on a batch in parts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """The gradients, shortened together to length max_norm where they are longer."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    factor = (max_norm / norm).clamp(max=1.0)
    return [factor * gradient for gradient in gradients]


def training_step(
    model: nn.Module, parts: list[Tensor], optimizer: torch.optim.Optimizer, max_norm: float, pad_id: int
) -> Tensor:
    """Learn from all parts as from one batch; the mean loss before the update."""
    n_targets = sum((part[:, 1:] != pad_id).sum() for part in parts)
    optimizer.zero_grad()
    mean = torch.zeros(())
    for part in parts:
        logits, targets = model(part[:, :-1]), part[:, 1:]
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad_id, reduction="sum")
        (total / n_targets).backward()
        mean += total.detach() / n_targets
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient, clipped in zip(gradients, clip(gradients, max_norm), strict=True):
        gradient.copy_(clipped)
    optimizer.step()
    return mean
