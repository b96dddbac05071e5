"""Averages the batches' perplexities."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    each = [math.exp(sum(batch) / len(batch)) for batch in losses if batch]
    return sum(each) / len(each)
