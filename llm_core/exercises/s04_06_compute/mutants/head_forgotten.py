"""Forgets the output head."""


def forward_flops(V: int, L: int, H: int, K: int, D: int, F: int, T: int, S: int) -> int:
    """Wrong in one place."""
    E = D // H
    weights = L * (D * H * E + 2 * D * K * E + H * E * D + 3 * D * F)
    return 2 * T * weights + L * H * (2 * T * S * E + 2 * T * S * E)
