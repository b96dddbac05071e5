"""Has no return."""

from torch import Tensor


def attention_backward(  # type: ignore[return]
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, d_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's way back, wrong in one place."""
    d_weights = d_output @ value.mT
    mean = (weights * d_weights).sum(dim=-1, keepdim=True)
    d_scores = weights * (d_weights - mean) / query.shape[-1] ** 0.5
    d_scores @ key, d_scores.mT @ query, weights.mT @ d_output
