"""Schedules against torch's cosine, the paper's formula, and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llm_core.training.schedule import noam, warmup_cosine


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.02)
    for step in range(41):
        assert warmup_cosine(step, peak=0.3, warmup=0, total=40, floor=0.02) == pytest.approx(theirs.get_last_lr()[0])
        # A warm-up only moves it.
        assert warmup_cosine(step + 10, peak=0.3, warmup=10, total=50, floor=0.02) == pytest.approx(
            theirs.get_last_lr()[0]
        )
        optimizer.step()
        theirs.step()


def test_values_by_hand():
    def lr(step):
        return warmup_cosine(step, peak=1.0, warmup=4, total=12, floor=0.2)

    assert [lr(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr(4) == 1.0
    assert lr(8) == pytest.approx(0.6)  # half way: the mean of peak and floor
    assert lr(6) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert lr(11) > 0.2
    assert [lr(step) for step in (12, 13, 10_000)] == [0.2] * 3


def test_the_edges_of_the_cosine():
    assert warmup_cosine(0, peak=1.0, warmup=0, total=10) == 1.0
    assert warmup_cosine(0, peak=1.0, warmup=0, total=0) == 0.0
    assert warmup_cosine(9, peak=1.0, warmup=10, total=10) == 1.0
    assert warmup_cosine(10, peak=1.0, warmup=10, total=10) == 0.0


def test_noam_is_the_papers_formula():
    for step in range(0, 300, 7):
        n = step + 1
        expected = 512**-0.5 * min(n**-0.5, n * 100**-1.5)
        assert noam(step, d_model=512, warmup=100) == pytest.approx(expected)
        assert noam(step, d_model=512, warmup=100, factor=2.0) == pytest.approx(2 * expected)
    # Up in a straight line to 1 / sqrt(D warmup) at the last step of the warm-up, then down.
    assert noam(99, d_model=512, warmup=100) == pytest.approx((512 * 100) ** -0.5)
    assert noam(49, d_model=512, warmup=100) == pytest.approx((512 * 100) ** -0.5 / 2)
    assert noam(399, d_model=512, warmup=100) == pytest.approx((512 * 100) ** -0.5 / 2)


def test_errors():
    with pytest.raises(ValueError, match="step=-1"):
        warmup_cosine(-1, peak=1.0, warmup=0, total=10)
    with pytest.raises(ValueError, match="warmup=-1"):
        warmup_cosine(0, peak=1.0, warmup=-1, total=10)
    with pytest.raises(ValueError, match="warmup=11, total=10"):
        warmup_cosine(0, peak=1.0, warmup=11, total=10)
    with pytest.raises(ValueError, match="warmup=0"):
        noam(0, d_model=8, warmup=0)
    with pytest.raises(ValueError, match="step=-1"):
        noam(-1, d_model=8, warmup=1)
