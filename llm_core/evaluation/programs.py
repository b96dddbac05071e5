"""Programs that a model writes: does one of k attempts pass the tests?

    pass@k = 1 - C(n - c, k) / C(n, k)      n attempts at a problem, of which c passed

This is the chance that k attempts, drawn from the n without replacement, hold one that passed. With n = k it would be 0
or 1, and its mean over problems would vary much more from run to run; 1 - (1 - c / n)^k is too low on average.

Source: Chen et al. 2021, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at(k: int, correct: int, n: int) -> float:
    """pass@k of one problem, without bias.

    Args:
        k: how many attempts a user would look at.
        correct: how many of the n attempts passed.
        n: how many attempts there were.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= correct <= n.

    >>> round(pass_at(2, correct=1, n=4), 12)
    0.5
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs at least k attempts at each problem, and k of at least 1: got k={k}, n={n}")
    if not 0 <= correct <= n:
        raise ValueError(f"from none to all of the {n} attempts can have passed: got correct={correct}")
    if k + correct > n:
        return 1.0  # fewer than k failed
    if not correct:
        return 0.0
    # C(n - c, k) / C(n, k) is the product of 1 - c / (n - i) over i < k, and the same with c and k in each other's
    # place. The binomials overflow where the product does not, and the logarithms keep a pass@k near 0 exact.
    fewer, more = sorted((k, correct))
    return -math.expm1(math.fsum(math.log1p(-more / (n - i)) for i in range(fewer)))


def mean_pass_at(k: int, correct: Sequence[int], n: int | Sequence[int]) -> float:
    """The mean of pass@k over problems.

    Its interval is that of a mean over problems: `bootstrap_interval(torch.mean, scores)` with the `pass_at` of each.

    Args:
        k: how many attempts a user would look at.
        correct: for each problem how many attempts passed.
        n: how many attempts there were, at all problems or at each.

    Raises:
        ValueError: there is no problem, or the numbers of problems differ; or as in `pass_at`.
    """
    attempts = [n] * len(correct) if isinstance(n, int) else list(n)
    if len(attempts) != len(correct):
        raise ValueError(f"each problem needs both: got correct of {len(correct)} and n of {len(attempts)} problems")
    if not attempts:
        raise ValueError("there is no problem to score: got none")
    return math.fsum(pass_at(k, c, tries) for c, tries in zip(correct, attempts, strict=True)) / len(attempts)
