"""Has a minus sign too many."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    return math.exp(-sum(sum(batch) for batch in losses) / sum(len(batch) for batch in losses))
