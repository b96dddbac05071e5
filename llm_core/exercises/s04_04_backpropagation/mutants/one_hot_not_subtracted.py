"""Returns the probabilities."""

from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    return logits.softmax(dim=-1) / len(targets)
