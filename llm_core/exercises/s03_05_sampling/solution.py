"""Reference solution of exercise 03/05: the next token's distribution, and the rule of speculative decoding."""

import torch
from torch import Tensor


def next_token_probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Temperature, then top-k, then top-p; each row sums to one."""
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.empty_like(ordered).scatter(-1, order, ordered)
    return logits.softmax(dim=-1)


def judge(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How likely each token is kept, and what to draw from if it is not."""
    rows = torch.arange(len(tokens))
    keep = (p[rows, tokens] / q[rows, tokens]).clamp(max=1)
    missing = (p - q).clamp(min=0)
    total = missing.sum(dim=-1, keepdim=True)
    return keep, torch.where(total > 0, missing / total, p)
