"""Checks of what a caller gives, with one wording of each error."""

from __future__ import annotations


def check_sizes(**sizes: int | None) -> None:
    """Each is a number of things of which there must be one; None stands for a size that was left out.

    Raises:
        ValueError: one is below 1.

    >>> check_sizes(n_heads=0)
    Traceback (most recent call last):
        ...
    ValueError: n_heads must be at least 1: got 0
    """
    for name, size in sizes.items():
        if size is not None and not size >= 1:
            raise ValueError(f"{name} must be at least 1: got {size}")


def check_shares(**shares: float | int) -> None:
    """Each is a part of a whole that leaves something of it: dropout, for one.

    Raises:
        ValueError: one is below 0, or not below 1.

    >>> check_shares(dropout=1.0)
    Traceback (most recent call last):
        ...
    ValueError: dropout is a share, 0 <= dropout < 1: got 1.0
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} is a share, 0 <= {name} < 1: got {share}")
