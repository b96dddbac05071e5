"""Raises 2 to a loss in nats."""


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    mean = sum(sum(batch) for batch in losses) / sum(len(batch) for batch in losses)
    return float(2**mean)
