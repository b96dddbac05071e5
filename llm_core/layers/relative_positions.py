"""Relative positions in buckets: how far apart two tokens are, as a learned number for each head (T5).

The distance of key j from query i is j - i. Short distances have a bucket each, longer ones share buckets that widen
with the logarithm, and all from `max_distance` on are one:

    key before query   0  1  2  3  4  5  6  7  8-11  12-15  16-22  23-31  ...     16 buckets, up to 64
    bucket             0  1  2  3  4  5  6  7    8      9     10     11

A decoder looks back only, so all its buckets are for that; an encoder has half of them for each direction. The numbers
are added to the scores of attention, and nothing else in the model knows where a token stands.

Source: Raffel et al. 2020, section 2.1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def relative_buckets(
    distance: Int[Tensor, "T S"], n_buckets: int, max_distance: int, *, both_ways: bool
) -> Int[Tensor, "T S"]:
    """The bucket of each distance, 0 ... n_buckets - 1.

    Args:
        distance: position of the key less position of the query; below 0 where the key comes before.
        n_buckets: how many buckets.
        max_distance: from here on all is one bucket.
        both_ways: whether keys after the query have buckets of their own, the second half. Else they are in bucket 0,
            as the query's own position is: the causal mask hides them.

    >>> relative_buckets(torch.tensor([[0, -1, -7, -8, -11, -12, -500]]), 16, 64, both_ways=False)
    tensor([[ 0,  1,  7,  8,  9,  9, 15]])
    """
    first = torch.zeros_like(distance)
    if both_ways:
        n_buckets //= 2
        first = n_buckets * (distance > 0).long()
        far = distance.abs()
    else:
        far = (-distance).clamp(min=0)
    exact = n_buckets // 2  # below this distance a bucket for each
    growth = torch.log(far.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    shared = exact + (growth * (n_buckets - exact)).long()
    return first + torch.where(far < exact, far, shared.clamp(max=n_buckets - 1))


def check_buckets(n_buckets: int, max_distance: int, *, both_ways: bool) -> None:
    """Raise a ValueError if there are too few buckets, or max_distance lies within those that have one each."""
    if n_buckets < (4 if both_ways else 2):
        raise ValueError(f"two buckets a direction are the fewest: got n_buckets={n_buckets}, both_ways={both_ways}")
    exact = n_buckets // 4 if both_ways else n_buckets // 2
    if max_distance <= exact:
        raise ValueError(
            f"the first {exact} distances have a bucket each, so max_distance must be greater: got "
            f"max_distance={max_distance}, n_buckets={n_buckets}"
        )


class RelativePositions(nn.Module):
    """A learned number for each bucket and head, added to the scores: (T, S) -> (H, T, S).

    Args:
        n_heads: number of heads H.
        n_buckets: how many buckets.
        max_distance: from here on all is one bucket.
        both_ways: True in an encoder, False in a decoder.

    Raises:
        ValueError: there is no head, there are too few buckets for one and a shared one in each direction, or
            max_distance lies within those that have a bucket each.
    """

    def __init__(self, n_heads: int, n_buckets: int = 32, max_distance: int = 128, *, both_ways: bool) -> None:
        super().__init__()
        if n_heads < 1:
            raise ValueError(f"relative positions need at least one head: got n_heads={n_heads}")
        check_buckets(n_buckets, max_distance, both_ways=both_ways)
        self.weight = nn.Parameter(torch.zeros(n_buckets, n_heads))
        self.max_distance, self.both_ways = max_distance, both_ways

    def forward(self, T: int, S: int) -> Float[Tensor, "H T S"]:
        """The numbers for the last T of S positions."""
        queries = torch.arange(S - T, S, device=self.weight.device)
        keys = torch.arange(S, device=self.weight.device)
        buckets = relative_buckets(
            keys - queries[:, None], len(self.weight), self.max_distance, both_ways=self.both_ways
        )
        return self.weight[buckets].permute(2, 0, 1)
