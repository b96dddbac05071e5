"""Counts a multiplication and its addition as one."""


def forward_flops(V: int, L: int, H: int, K: int, D: int, F: int, T: int, S: int) -> int:
    """Wrong in one place."""
    E = D // H
    weights = L * (D * H * E + 2 * D * K * E + H * E * D + 3 * D * F) + D * V
    return T * weights + L * H * (T * S * E + T * S * E)
