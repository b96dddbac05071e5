"""Forgets the values."""


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:
    """Wrong in one place."""
    return L * K * (D // H) * S * number
