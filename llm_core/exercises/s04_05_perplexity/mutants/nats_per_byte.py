"""Forgets to turn nats into bits."""


def bits_per_byte(losses: list[list[float]], text: str) -> float:
    """Bits per byte, wrong in one place."""
    return sum(sum(batch) for batch in losses) / len(text.encode())
