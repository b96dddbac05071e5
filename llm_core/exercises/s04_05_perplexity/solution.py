"""Reference solution of exercise 04/05: losses of tokens, perplexity and bits per byte."""

import math

import torch
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p of each target, in nats: logits (B, T, V), targets (B, T), result (B, T)."""
    logs = torch.log_softmax(logits, dim=-1)
    return -logs.gather(-1, targets[..., None])[..., 0]


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity of a text whose tokens' losses, in nats, came in these batches."""
    total = sum(sum(batch) for batch in losses)
    return math.exp(total / sum(len(batch) for batch in losses))


def bits_per_byte(losses: list[list[float]], text: str) -> float:
    """Bits that the model needs for each byte of the text, in UTF-8."""
    total = sum(sum(batch) for batch in losses)
    return total / math.log(2) / len(text.encode("utf-8"))
