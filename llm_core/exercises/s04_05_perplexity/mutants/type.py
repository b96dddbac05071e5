"""Returns a sentence in the place of a number."""

import math


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    mean = sum(sum(batch) for batch in losses) / sum(len(batch) for batch in losses)
    return f"perplexity {math.exp(mean):.2f}"  # type: ignore[return-value]
