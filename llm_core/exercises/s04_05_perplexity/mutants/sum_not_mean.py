"""Never divides by the number of tokens."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    return math.exp(sum(sum(batch) for batch in losses))
