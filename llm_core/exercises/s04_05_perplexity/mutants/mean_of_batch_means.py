"""Averages the batches, large and small alike."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    means = [sum(batch) / len(batch) for batch in losses if batch]
    return math.exp(sum(means) / len(means))
