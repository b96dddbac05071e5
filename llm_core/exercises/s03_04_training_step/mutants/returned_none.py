"""Makes new tensors and returns none of them."""

import torch
from torch import Tensor


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:  # type: ignore[return]
    """The clipped gradients, wrong in one place."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    gradients = [(max_norm / norm).clamp(max=1.0) * gradient for gradient in gradients]
