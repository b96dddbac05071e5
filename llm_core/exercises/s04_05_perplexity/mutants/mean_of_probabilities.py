"""Averages probabilities."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    each = [math.exp(-loss) for batch in losses for loss in batch]
    return len(each) / sum(each)
