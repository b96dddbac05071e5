"""The fingerprint sees what a reader would, and no rounding."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from llm_core.figures import fingerprint, heat_map

X = np.linspace(0, 1, 33)  # steps of 1/32 = 0.03125: every second point ends in 5 where four digits end
WORDS = ["I", "love", "books"]
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.125, 0.875, 0.0], [1 / 3, 1 / 3, 1 / 3]])


def lines(y=None, label="loss", title="A title", xlabel="step", ylabel="nats", scale="linear", colour=None) -> Figure:
    fig, ax = plt.subplots()
    ax.plot(X, X**2 if y is None else y, label=label, color=colour)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=scale)
    return fig


def map_(values=WEIGHTS, rows=WORDS, columns=WORDS, **options) -> Figure:
    return heat_map(values, rows=rows, columns=columns, **options).figure


def bars(heights=(1.0, 2.0, 3.0), bottom=0.0, width=0.8) -> Figure:
    fig, ax = plt.subplots()
    ax.bar([0, 1, 2], heights, bottom=bottom, width=width)
    return fig


def points(x=(0.0, 1.0, 2.0), y=(3.0, 1.0, 2.0), c=(0.0, 0.5, 1.0)) -> Figure:
    fig, ax = plt.subplots()
    ax.scatter(x, y, c=c)
    return fig


def band(low=0.0, high=1.0) -> Figure:
    fig, ax = plt.subplots()
    ax.fill_between(X, X + low, X + high)
    return fig


def stems(top=1.0) -> Figure:
    fig, ax = plt.subplots()
    ax.vlines([0, 1, 2], 0, [top, 2, 3])
    return fig


def words(text="peak", over="Two runs", legend="run") -> Figure:
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], label="run")
    ax.legend(title=legend)
    ax.annotate(text, (0.5, 0.5))
    fig.suptitle(over)
    return fig


def moved(y, by):
    y = np.array(y, dtype=float)
    y[5] += by
    return y


CHANGES = {
    "one point": (lines, {"y": moved(X**2, 0.001)}),
    "label": (lines, {"label": "accuracy"}),
    "title": (lines, {"title": "Another"}),
    "x name": (lines, {"xlabel": "epoch"}),
    "y name": (lines, {"ylabel": "bits"}),
    "log scale": (lines, {"scale": "log"}),
    "one cell": (map_, {"values": WEIGHTS + np.eye(3) * 0.001}),
    "row label": (map_, {"rows": ["I", "love", "maps"]}),
    "column label": (map_, {"columns": ["I", "love", "maps"]}),
    "axis title": (map_, {"row_title": "reader"}),
    "colour scale": (map_, {"limits": (0.0, 2.0)}),
    "mask": (map_, {"mask": np.tri(3, dtype=bool)}),
    "how numbers are written": (map_, {"numbers": "{:.1f}"}),
    "no numbers": (map_, {"numbers": None}),
    "bar height": (bars, {"heights": (1.0, 2.1, 3.0)}),
    "bar bottom": (bars, {"heights": (0.5, 1.5, 2.5), "bottom": 0.5}),
    "bar width": (bars, {"width": 0.7}),
    "scatter x": (points, {"x": (0.0, 1.1, 2.0)}),
    "scatter y": (points, {"y": (3.0, 1.1, 2.0)}),
    "scatter colour": (points, {"c": (0.0, 0.6, 1.0)}),
    "band below": (band, {"low": 0.1}),
    "band above": (band, {"high": 1.1}),
    "segments": (stems, {"top": 1.5}),
    "annotation": (words, {"text": "peaks"}),
    "figure title": (words, {"over": "Three runs"}),
    "legend title": (words, {"legend": "runs"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_sees_a_change_of(what):
    draw, change = CHANGES[what]
    assert fingerprint(draw()) == fingerprint(draw())
    assert fingerprint(draw(**change)) != fingerprint(draw())


@pytest.mark.parametrize("kind", ["plot", "scatter"])
def test_the_fingerprint_sees_small_numbers_on_a_logarithmic_axis(kind):
    def draw(smallest):
        fig, ax = plt.subplots()
        getattr(ax, kind)([1, 2, 3, 4], [1.0, 1e-3, smallest, 0.0])
        ax.set_yscale("log")
        return fig

    assert fingerprint(draw(1e-6)) == fingerprint(draw(1e-6 * (1 + 1e-12)))
    assert fingerprint(draw(1e-6)) != fingerprint(draw(2e-6))


def test_the_fingerprint_sees_another_artist_and_other_axes():
    fig = lines()
    before = fingerprint(fig)
    fig.axes[0].plot(X, X)
    more = fingerprint(fig)
    fig.add_axes((0.5, 0.5, 0.1, 0.1))
    assert len({before, more, fingerprint(fig)}) == 3


@pytest.mark.parametrize("noise", [1e-12, -1e-12])
def test_the_fingerprint_does_not_see_rounding(noise):
    """Not where a number is zero, and not where it lies just between two that are written with four digits."""
    assert fingerprint(lines(y=X + noise)) == fingerprint(lines(y=X))
    assert fingerprint(lines(y=moved(X, noise))) == fingerprint(lines(y=X))
    assert fingerprint(map_(WEIGHTS + noise)) == fingerprint(map_(WEIGHTS))
    assert fingerprint(points(y=(3.0, 1.0 + noise, noise))) == fingerprint(points(y=(3.0, 1.0, 0.0)))
    assert fingerprint(bars((1.0, 2.0 + noise, noise))) == fingerprint(bars((1.0, 2.0, 0.0)))
    assert fingerprint(band(low=noise)) == fingerprint(band())


def test_fewer_digits_forgive_more():
    a, b = lines(y=X**2), lines(y=moved(X**2, 0.004))
    assert fingerprint(a, digits=4) != fingerprint(b, digits=4)
    assert fingerprint(a, digits=2) == fingerprint(b, digits=2)
    assert fingerprint(a, digits=1) == fingerprint(b, digits=1)
    other = lines(y=X**2 * 3)
    assert fingerprint(a, digits=1) != fingerprint(other, digits=1)
    assert fingerprint(a, digits=0) == fingerprint(other, digits=0)
    assert fingerprint(a, digits=0) != fingerprint(bars(), digits=0)
    # The numbers in the cells of a map are data too.
    assert fingerprint(map_(WEIGHTS + 0.006), digits=1) == fingerprint(map_(WEIGHTS), digits=1)


def test_numbers_that_are_not_there_are_no_trouble():
    assert "empty" in fingerprint(lines(y=np.full(33, np.nan)))
    y = X.copy()
    y[3] = np.nan
    assert fingerprint(lines(y=y)) != fingerprint(lines(y=X))
    assert fingerprint(lines(y=np.zeros(33))) == fingerprint(lines(y=np.zeros(33)))
