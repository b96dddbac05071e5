"""Schedules: the learning rate of each step, as pure functions of the step. Steps count from 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Up to `peak` in a straight line over `warmup` steps, then down to `floor` at step `total` along a cosine.

    Raises:
        ValueError: the warm-up is longer than the whole, or a number is negative.
    """
    _check(step, warmup)
    if warmup > total:
        raise ValueError(f"the warm-up cannot be longer than the whole: got warmup={warmup}, total={total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return floor
    done = (step - warmup) / (total - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def warmup_stable_decay(step: int, *, peak: float, warmup: int, decay: int, total: int, floor: float = 0.0) -> float:
    """Up to `peak` in a straight line, level, and over the last `decay` steps down to `floor` in a straight line.

    The length of the whole need not be known at the start: train on at the peak, and branch off with a decay whenever a
    finished model is wanted. Source: Hu et al. 2024 (MiniCPM), section 4; the straight line after Hägele et al. 2024.

    Raises:
        ValueError: warm-up and decay together are longer than the whole, or a number is negative.
    """
    _check(step, warmup)
    if decay < 0 or warmup + decay > total:
        raise ValueError(
            f"warm-up and decay must fit into the whole: got warmup={warmup}, decay={decay}, total={total}"
        )
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return floor
    left = min(1.0, (total - step) / decay) if decay else 1.0
    return floor + (peak - floor) * left


def noam(step: int, *, d_model: int, warmup: int, factor: float = 1.0) -> float:
    """The schedule of the 2017 paper: up in a straight line, then down as 1 / sqrt(step).

    factor * D^-0.5 * min(n^-0.5, n * warmup^-1.5) with n = step + 1, section 5.3, equation 3.

    Raises:
        ValueError: there is no warm-up step, or a number is negative.
    """
    _check(step, warmup)
    if warmup < 1:
        raise ValueError(f"this schedule needs at least one warm-up step: got warmup={warmup}")
    n = step + 1
    return float(factor * d_model**-0.5 * min(n**-0.5, n * warmup**-1.5))


def _check(step: int, warmup: int) -> None:
    if step < 0 or warmup < 0:
        raise ValueError(f"steps count from 0: got step={step}, warmup={warmup}")
