"""Reference solution of exercise 02/03: who may attend to whom, in the three families."""

import torch
from torch import Tensor


def encoder_mask(ids: Tensor, pad: int) -> Tensor:
    """(B, T, T): every token to every real token."""
    real = ids != pad
    return real[:, None, :].repeat(1, ids.shape[1], 1)


def decoder_mask(ids: Tensor, pad: int) -> Tensor:
    """(B, T, T): every token to the real tokens among itself and those before it."""
    position = torch.arange(ids.shape[1])
    to_the_left = position[None, :] <= position[:, None]
    return to_the_left & (ids != pad)[:, None, :]


def cross_mask(source: Tensor, target: Tensor, pad: int) -> Tensor:
    """(B, T, S): every target token to every real source token."""
    real = source != pad
    return real[:, None, :].repeat(1, target.shape[1], 1)
