"""One wording of an error."""

import math

import pytest

from llm_core.checks import check_shares, check_sizes


def test_what_is_right_passes():
    check_sizes()
    check_sizes(a=1, b=10**9, c=None)
    check_shares()
    check_shares(a=0, b=0.0, c=0.999)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_is_at_least_one(size: int):
    with pytest.raises(ValueError, match=f"^second must be at least 1: got {size}$"):
        check_sizes(first=1, second=size)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_share_leaves_something(share: float):
    with pytest.raises(ValueError, match=f"^second is a share, 0 <= second < 1: got {share}$"):
        check_shares(first=0.5, second=share)
