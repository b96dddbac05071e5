"""Sampling: how the next token is chosen from the logits.

    logits (B, V) -> adjust, with the text so far -> temperature -> top-k -> top-p -> min-p -> chance -> ids (B,)

The filters are pure functions from logits (B, V) to logits (B, V), in which what is ruled out is -inf; `greedy` and
`Sampler` choose. What looks at the text too, a repetition penalty for one, comes before them and is in
`llm_core.generation.adjust`. The order is that of transformers' `generate`.

On ties the filters are exact: top-k keeps all that tie with the k-th (as transformers does); of those that tie at the
edge of top-p the first stay (transformers keeps as many, but which is up to its sort); min-p treats equals alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_core.checks import check_whole, is_number


class ImpossibleLogits(ValueError):
    """Logits from which no token can be chosen: there is a NaN or +inf in a row, or nothing but -inf."""


def greedy(logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
    """The likeliest token; the first of those that tie. Needs no randomness.

    Raises:
        ImpossibleLogits: a row has a NaN, +inf, or nothing but -inf. Only on a CPU: to look elsewhere would be to wait
            for the device, and `stream` looks once a step in any case.
    """
    if on_host(logits):
        check_logits(logits, impossible_rows(logits).tolist())
    return logits.argmax(dim=-1)


def impossible_rows(logits: Float[Tensor, "B V"]) -> Bool[Tensor, " B"]:
    """The rows from which no token can be chosen."""
    return ~logits.amax(dim=-1).isfinite()  # the largest is NaN where any is


def check_logits(logits: Float[Tensor, "B V"], impossible: Sequence[int]) -> None:
    """Raise an ImpossibleLogits if there is an impossible row, that says which and why."""
    if not any(impossible):
        return
    row = [bool(flag) for flag in impossible].index(True)
    largest = logits[row].amax().item()
    if largest == -math.inf:
        raise ImpossibleLogits(f"row {row}: all {logits.shape[-1]} tokens are ruled out, their logits are -inf")
    raise ImpossibleLogits(
        f"row {row}: there is a logit of {largest}, so no token is the likeliest. "
        "Look for weights or an adjustment that are not finite, or for a type too narrow for the numbers"
    )


def on_host(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Rule out all but the k likeliest tokens; those that tie with the k-th stay (Fan et al. 2018).

    Raises:
        ValueError: k is no whole number, or below 1.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
    """
    check_whole("k", k, at_least=1)
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p (nucleus sampling, Holtzman et al. 2020).

    Raises:
        ValueError: p is outside 0 < p <= 1.
    """
    _check_top_p("p", p)
    if p == 1:
        return logits  # a running sum, being rounded, would reach 1 before the last tokens
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = _softmax(ordered)
    # A token goes if those before it make up p already. The first never goes: nothing is before it.
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill(before >= p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, order, ordered)


def keep_min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the tokens that are at least p times as likely as the likeliest (Nguyen et al. 2024).

    Where the model is sure, few tokens stay; where it is not, many.

    Raises:
        ValueError: p is outside 0 <= p <= 1.

    >>> keep_min_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    _check_min_p("p", p)
    probabilities = _softmax(logits)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, float("-inf"))


@dataclass(frozen=True)
class Sampler:
    """Draw the next token: temperature first, then top-k, top-p and min-p, then chance.

    Args:
        temperature: logits are divided by it; below 1 sharpens, above 1 flattens. For 0 use `greedy`.
        top_k: keep the k likeliest tokens. None: all.
        top_p: keep the likeliest tokens that make up this probability. None: all.
        min_p: keep the tokens at least this many times as likely as the likeliest. None: all.

    Raises:
        ValueError: the temperature is not a positive number, k is no whole number or below 1, top-p is outside
            0 < p <= 1, or min-p is outside 0 <= p <= 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise ValueError(
                f"the temperature must be a positive number: got {self.temperature}. For the likeliest token use greedy"
            )
        if self.top_k is not None:
            check_whole("top_k", self.top_k, at_least=1)
        if self.top_p is not None:
            _check_top_p("top_p", self.top_p)
        if self.min_p is not None:
            _check_min_p("min_p", self.min_p)

    def __call__(self, logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
        """One token for each row, drawn with the generator (torch's global one unless given).

        Raises:
            ImpossibleLogits: as in `greedy`.
        """
        if on_host(logits):
            check_logits(logits, impossible_rows(logits).tolist())
        probabilities = self.probabilities(logits)
        # What torch.multinomial does for one draw, but for its looks at the numbers, for which a GPU would stop: of
        # exponential waiting times, each as long as its token is rare, the shortest.
        return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(dim=-1)

    def probabilities(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The distribution that tokens are drawn from; float32 for logits in half precision."""
        logits = logits.to(_precise(logits.dtype))
        # The largest is taken off first, which changes no probability: a low temperature cannot overflow then.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits.softmax(dim=-1)


def _check_top_p(name: str, p: float) -> None:
    if not (is_number(p) and 0 < p <= 1):
        raise ValueError(f"top-p keeps a share of the probability, 0 < p <= 1: got {name}={p}")


def _check_min_p(name: str, p: float) -> None:
    if not (is_number(p) and 0 <= p <= 1):
        raise ValueError(f"min-p is a share of the largest probability, 0 <= p <= 1: got {name}={p}")


def _precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32: a running sum over a vocabulary is worth nothing in half precision."""
    return torch.promote_types(dtype, torch.float32)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1, dtype=_precise(logits.dtype))
