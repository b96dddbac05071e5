"""Returns a text."""


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:
    """Wrong in one place."""
    return f"{2 * L * K * (D // H) * S * number:,}"  # type: ignore[return-value]
