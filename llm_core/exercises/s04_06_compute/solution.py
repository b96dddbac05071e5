"""Reference solution of exercise 04/06: parameters, FLOPs and bytes of a Llama, from its sizes."""


def n_parameters(V: int, L: int, H: int, K: int, D: int, F: int) -> int:
    """All weights of a Llama with an output head of its own."""
    E = D // H
    attention = D * H * E + 2 * D * K * E + H * E * D
    feed_forward = 3 * D * F
    norms = 2 * D
    return V * D + L * (attention + feed_forward + norms) + D + D * V


def forward_flops(V: int, L: int, H: int, K: int, D: int, F: int, T: int, S: int) -> int:
    """FLOPs of the matrix products when T tokens pass through, each of which meets S keys."""
    E = D // H
    weights = L * (D * H * E + 2 * D * K * E + H * E * D + 3 * D * F) + D * V
    return 2 * T * weights + L * H * (2 * T * S * E + 2 * T * S * E)


def cache_bytes(L: int, H: int, K: int, D: int, S: int, number: int) -> int:
    """Bytes of a cache that holds the keys and values of S tokens."""
    return 2 * L * K * (D // H) * S * number
