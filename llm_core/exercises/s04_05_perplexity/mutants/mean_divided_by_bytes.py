"""Divides twice: by the tokens and by the bytes."""

import math


def bits_per_byte(losses: list[list[float]], text: str) -> float:
    """Bits per byte, wrong in one place."""
    mean = sum(sum(batch) for batch in losses) / sum(len(batch) for batch in losses)
    return mean / math.log(2) / len(text.encode())
