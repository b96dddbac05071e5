"""n rounds instead of n - 1."""


def ring_bytes(n_bytes: int, workers: int) -> float:
    """The bytes, wrong in one place."""
    return 2 * n_bytes
