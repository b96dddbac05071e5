"""The second half of the way is missing."""


def ring_bytes(n_bytes: int, workers: int) -> float:
    """The bytes, wrong in one place."""
    return (workers - 1) / workers * n_bytes
