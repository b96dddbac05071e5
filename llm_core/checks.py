"""Checks of what a caller gives, with one wording of each error."""

from __future__ import annotations

from numbers import Real
from operator import index
from typing import SupportsIndex


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


def check_whole(name: str, value: object, *, at_least: int) -> int:
    """A whole number from `at_least` on, as an int; NumPy's and torch's count too, True and 3.0 do not.

    Raises:
        ValueError: it is something else, or below that.

    >>> check_whole("top_k", 2.5, at_least=1)
    Traceback (most recent call last):
        ...
    ValueError: top_k is a whole number from 1 on: got top_k=2.5
    """
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        whole = None if is_bool or not isinstance(value, SupportsIndex) else index(value)
    except TypeError:
        whole = None
    if whole is None or whole < at_least:
        came = f"{name}={value!r}" if name.isidentifier() else repr(value)
        raise ValueError(f"{name} is a whole number from {at_least} on: got {came}")
    return whole


def is_number(value: object) -> bool:
    """Whether it is a real number of Python or NumPy: True and None are not.

    >>> is_number(3), is_number(True), is_number("3")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)
