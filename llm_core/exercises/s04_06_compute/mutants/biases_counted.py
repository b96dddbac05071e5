"""Counts biases that are not there."""


def n_parameters(V: int, L: int, H: int, K: int, D: int, F: int) -> int:
    """Wrong in one place."""
    E = D // H
    attention = D * H * E + 2 * D * K * E + H * E * D
    feed_forward = 3 * D * F
    norms = 2 * D
    biases = H * E + 2 * K * E + D + 2 * F + D
    return V * D + L * (attention + feed_forward + norms + biases) + D + D * V
