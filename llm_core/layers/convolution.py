"""Short convolutions: each position sees the few positions before it, without having to learn to look for them.

    y_t = x_t + sum over k = 0 ... K - 1 of w_k * x_(t-k)        w_k (D,), x before the text is zero

Attention can read the previous token, but a head must first learn to. For letters and pieces of words, whose meaning
is their neighbours, a handful of weights for each of the D columns gives that from the start. K is three or four.

Source: So et al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling" (which puts them behind
query, key and value; here they can stand anywhere).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.checks import check_sizes


def short_convolution(x: Float[Tensor, "B T D"], weight: Float[Tensor, "D K"]) -> Float[Tensor, "B T D"]:
    """x plus the weighted sum of each position and the K - 1 before it, column by column.

    >>> x = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> short_convolution(x, torch.tensor([[0.0, 0.5]])).flatten()
    tensor([1.0000, 2.5000, 5.0000])
    """
    T = x.shape[1]
    y = x
    for k, w in enumerate(weight.unbind(dim=1)[:T]):
        y = y + F.pad(x, (0, 0, k, 0))[:, :T] * w
    return y


class ShortConvolution(nn.Module):
    """`short_convolution` with K learned weights a column; they start at zero, so that it begins as the identity.

    It keeps nothing between calls: a model that has one reads whole texts, not token by token with a cache.

    Args:
        d_model: width D.
        reach: K, the position itself and those before it.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, d_model: int, reach: int = 4) -> None:
        super().__init__()
        check_sizes(d_model=d_model, reach=reach)
        self.weight = nn.Parameter(torch.zeros(d_model, reach))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each position with its neighbours on the left mixed in."""
        return short_convolution(x, self.weight)
