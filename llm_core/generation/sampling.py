"""Sampling: how the next token is chosen from the logits.

    logits (B, V) -> adjust, with the text so far -> temperature -> top-k -> top-p -> min-p -> chance -> ids (B,)

The filters are pure functions from logits (B, V) to logits (B, V), in which what is ruled out is -inf; `greedy` and
`Sampler` choose. `RepetitionPenalty` looks at the text too, and so it comes before them. The order is that of
transformers' `generate`.

On ties the filters are exact: top-k keeps all that tie with the k-th (as transformers does); of those that tie at the
edge of top-p the first stay (transformers keeps as many, but which is up to its sort); min-p treats equals alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# (logits (B, V), text (B, T), padding (B,) or None) -> logits (B, V)
Adjust = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def greedy(logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
    """The likeliest token; the first of those that tie. Needs no randomness."""
    return logits.argmax(dim=-1)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Rule out all but the k likeliest tokens; those that tie with the k-th stay (Fan et al. 2018).

    Raises:
        ValueError: k is below 1.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
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
    if not 0 <= p <= 1:
        raise ValueError(f"min-p is a share of the largest probability, 0 <= p <= 1: got p={p}")
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
        ValueError: the temperature is not positive, k is below 1, top-p is outside 0 < p <= 1, or min-p is outside
            0 <= p <= 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"the temperature must be positive: got {self.temperature}. For the likeliest token use greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k keeps at least one token: got top_k={self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p keeps a share of the probability, 0 < p <= 1: got top_p={self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min-p is a share of the largest probability, 0 <= p <= 1: got min_p={self.min_p}")

    def __call__(self, logits: Float[Tensor, "B V"], generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
        """One token for each row, drawn with the generator (torch's global one unless given)."""
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)

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


@dataclass(frozen=True)
class RepetitionPenalty:
    """Make the tokens that the text holds already less likely: hand it to `generate` as `adjust`.

    A positive logit is divided by the penalty, a negative one multiplied; once, however often the token occurred.

    Args:
        penalty: above 1 discourages repetition, below 1 encourages it.

    Raises:
        ValueError: the penalty is not positive.

    Source: Keskar et al. 2019 (CTRL), section 4.1. The paper divides negative logits too, which would make their
    tokens likelier; that they are multiplied is transformers' rule.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ValueError(f"a repetition penalty is positive, and 1 changes nothing: got {self.penalty}")

    def __call__(
        self, logits: Float[Tensor, "B V"], text: Int[Tensor, "B T"], padding: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B V"]:
        """The logits after each text, whose first `padding` tokens are none of it (None: all are)."""
        text = text.long()
        if padding is not None:
            # What is no text is replaced by the last token, which always is and counts once in any case.
            is_text = torch.arange(text.shape[1], device=text.device) >= padding[:, None]
            text = text.where(is_text, text[:, -1:])
        seen = logits.gather(-1, text)
        return logits.scatter(-1, text, torch.where(seen < 0, seen * self.penalty, seen / self.penalty))


def in_turn(*adjustments: Adjust) -> Adjust:
    """Several adjustments as one: each gets the logits that the one before it has left."""

    def adjust(logits: Tensor, text: Tensor, padding: Tensor | None = None) -> Tensor:
        for adjustment in adjustments:
            logits = adjustment(logits, text, padding)
        return logits

    return adjust


def _precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32: a running sum over a vocabulary is worth nothing in half precision."""
    return torch.promote_types(dtype, torch.float32)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1, dtype=_precise(logits.dtype))
