"""Takes no notice of grouped queries."""


def n_parameters(V: int, L: int, H: int, K: int, D: int, F: int) -> int:
    """Wrong in one place."""
    E = D // H
    attention = D * H * E + 2 * D * H * E + H * E * D
    feed_forward = 3 * D * F
    norms = 2 * D
    return V * D + L * (attention + feed_forward + norms) + D + D * V
