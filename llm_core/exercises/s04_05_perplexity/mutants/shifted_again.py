"""Shifts targets that are shifted already."""

from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each token's loss, wrong in one place."""
    logs = logits[:, :-1].log_softmax(dim=-1)
    return -logs.gather(-1, targets[:, 1:, None])[..., 0]
