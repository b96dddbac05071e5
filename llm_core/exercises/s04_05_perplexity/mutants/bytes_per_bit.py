"""Has the fraction upside down."""

import math


def bits_per_byte(losses: list[list[float]], text: str) -> float:
    """Bits per byte, wrong in one place."""
    return len(text.encode()) * math.log(2) / sum(sum(batch) for batch in losses)
