"""Schedules against torch's cosine, the paper's formula, and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llm_core.training.schedule import noam, warmup_cosine, warmup_stable_decay


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


def stable(step, **changes):
    return warmup_stable_decay(step, **{"peak": 2.0, "warmup": 4, "decay": 5, "total": 20} | changes)


def test_warmup_stable_decay_rises_stays_and_falls():
    assert [stable(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert {stable(step) for step in range(4, 16)} == {2.0}
    assert [stable(step, floor=0.5) for step in range(15, 22)] == pytest.approx([2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.5])


def test_warmup_stable_decay_without_a_decay_or_a_warmup():
    assert stable(19, decay=0) == 2.0
    assert stable(0, warmup=0) == 2.0
    assert [stable(step, warmup=10, decay=10) for step in (9, 10, 15)] == [2.0, 2.0, 1.0]


def test_a_longer_run_is_the_same_run_until_the_decay():
    assert [stable(step) for step in range(15)] == [stable(step, total=1000) for step in range(15)]


@pytest.mark.parametrize("changes", [{"warmup": 16}, {"decay": 17}, {"decay": -1}])
def test_warmup_and_decay_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match="must fit into the whole: got warmup="):
        stable(0, **changes)
