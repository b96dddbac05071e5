"""Counts numbers."""


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:
    """Wrong in one place."""
    return 2 * L * K * (D // H) * S
