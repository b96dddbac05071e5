"""Sampling: how the next token is chosen from the logits.

The filters are pure functions from logits (B, V) to logits (B, V), in which what is ruled out is -inf; `greedy` and
`Sampler` choose.

Used in chapters/03_algorithms/06_three_sentences; taught, once it is written, in 03_algorithms/05_inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def greedy(logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, "B"]:
    """The likeliest token; the first of those that tie. Needs no randomness."""
    return logits.argmax(dim=-1)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Rule out all but the k likeliest tokens; those that tie with the k-th stay (Fan et al. 2018).

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"top-k keeps at least one token: got k={k}")
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p (nucleus sampling, Holtzman et al. 2020).

    Raises:
        ValueError: p is outside 0 < p <= 1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top-p keeps a share of the probability, 0 < p <= 1: got p={p}")
    if p == 1:
        return logits  # a running sum, being rounded, would reach 1 before the last tokens
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # A token goes if those before it make up p already. The first never goes: nothing is before it.
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill(before >= p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, order, ordered)


@dataclass(frozen=True)
class Sampler:
    """Draw the next token: temperature first, then top-k, then top-p, then chance.

    Args:
        temperature: logits are divided by it; below 1 sharpens, above 1 flattens. For 0 use `greedy`.
        top_k: keep the k likeliest tokens. None: all.
        top_p: keep the likeliest tokens that make up this probability. None: all.

    Raises:
        ValueError: the temperature is not positive, k is below 1, or p is outside 0 < p <= 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"the temperature must be positive: got {self.temperature}. For the likeliest token use greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k keeps at least one token: got top_k={self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p keeps a share of the probability, 0 < p <= 1: got top_p={self.top_p}")

    def __call__(self, logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, "B"]:
        """One token for each row, drawn with the generator (torch's global one unless given)."""
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)

    def probabilities(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The distribution that tokens are drawn from."""
        # The largest is taken off first, which changes no probability: a low temperature cannot overflow then.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return logits.softmax(dim=-1)
