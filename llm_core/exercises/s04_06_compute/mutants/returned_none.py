"""Has no return."""


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:  # type: ignore[return]
    """Wrong in one place."""
    2 * L * K * (D // H) * S * number
