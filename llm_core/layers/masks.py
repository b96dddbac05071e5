"""Masks: who may read whom. Boolean, True = may attend (torch's own convention).

Every mask is (T queries, S keys) or broadcasts to it. With fewer queries than keys the queries are the
LAST T of the S positions: that is how a cache is read, where the newest queries meet all the keys so far.
Two conditions hold together when their masks are joined by `&`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal(
    T: int, S: int | None = None, *, at: Int[Tensor, ""] | None = None, device: torch.device | str | None = None
) -> Bool[Tensor, "T S"]:
    """Each of the last T positions may attend to itself and to all before it.

    `at` is where the T begin among the S, if they are not the last: a number that the device alone may know.

    Raises:
        ValueError: T is greater than S.

    >>> causal(2, 4).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    return _distance(T, S, at, device) >= 0


def sliding_window(
    T: int,
    S: int | None = None,
    *,
    window: int,
    at: Int[Tensor, ""] | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "T S"]:
    """Causal, and no further back than `window` positions, the own one counted; `at` as in `causal`.

    Raises:
        ValueError: the window is smaller than 1, or T is greater than S.

    >>> sliding_window(4, window=2).int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    if window < 1:
        raise ValueError(f"a window holds at least the own position: got window={window}")
    distance = _distance(T, S, at, device)
    return (distance >= 0) & (distance < window)


def padding(ids: Int[Tensor, "B S"], pad_id: int) -> Bool[Tensor, "B 1 1 S"]:
    """Keys that are real tokens, the same for every head and query.

    >>> padding(torch.tensor([[5, 7, 0]]), pad_id=0)
    tensor([[[[ True,  True, False]]]])
    """
    return (ids != pad_id)[:, None, None, :]


def _distance(T: int, S: int | None, at: Tensor | None, device: torch.device | str | None) -> Int[Tensor, "T S"]:
    """How far key j lies before query i: position of i minus position of j."""
    S = T if S is None else S
    if T > S:
        raise ValueError(f"there cannot be more queries than keys: got T={T}, S={S}")
    query_positions = torch.arange(S - T, S, device=device) if at is None else at + torch.arange(T, device=device)
    key_positions = torch.arange(S, device=device)
    return query_positions[:, None] - key_positions[None, :]
