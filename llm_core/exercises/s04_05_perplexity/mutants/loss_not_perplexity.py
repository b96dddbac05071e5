"""Forgets exp()."""


def perplexity(losses: list[list[float]]) -> float:
    """The perplexity, wrong in one place."""
    return sum(sum(batch) for batch in losses) / sum(len(batch) for batch in losses)
