"""Counts one layer."""


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:
    """Wrong in one place."""
    return 2 * K * (D // H) * S * number
