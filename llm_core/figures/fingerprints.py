"""What a figure draws, as text that a test compares: another processor's rounding does not change it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryLocator
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator


def fingerprint(fig: Figure, *, digits: int = 4) -> str:
    """What a figure draws, in a few lines of text: axes, artists, how many points, their ranges and a hash."""
    words = [text.get_text() for text in fig.texts]
    lines = [f"figure with {len(fig.axes)} axes" + (f", {_texts(words, digits)}" if words else "")]
    for number, ax in enumerate(fig.axes, start=1):
        lines.append(f"axes {number}: {_axis('x', ax)}, {_axis('y', ax)}" + _quoted(ax.get_title()))
        for line in ax.lines:
            points = _drawn(line.get_xydata(), ax)
            name = str(line.get_label())
            label = "" if name.startswith("_") else name
            lines.append(f"  line{_quoted(label)}, {len(points)} points" + _data([*points.T], digits))
        for image in ax.images:
            array = image.get_array()
            lines.append(f"  image {_shape(array)}" + _data([array], digits) + _colours(image, digits))
        for collection in ax.collections:
            offsets: np.ndarray = np.ma.filled(np.ma.asarray(collection.get_offsets(), dtype=float), np.nan)
            outlines = np.concatenate([path.vertices for path in collection.get_paths()] or [np.empty((0, 2))])
            data = [*_drawn(offsets, ax).T, *_drawn(outlines, ax).T]
            array = collection.get_array()
            size = len(offsets) if array is None else _shape(array)
            colours = "" if array is None else _data([array], digits) + _colours(collection, digits)
            lines.append(f"  {type(collection).__name__} {size}" + _data(data, digits) + colours)
        if ax.patches:
            boxes = np.array([patch.get_extents().transformed(ax.transData.inverted()).extents for patch in ax.patches])
            lines.append(f"  {len(boxes)} patches" + _data([boxes[:, [0, 2]], boxes[:, [1, 3]]], digits))
        words = [text.get_text() for text in ax.texts]
        if words:
            lines.append(f"  {_texts(words, digits)}")
        legend = ax.get_legend()
        if legend is not None:
            words = [text.get_text() for text in (legend.get_title(), *legend.get_texts())]
            lines.append(f"  legend, {_texts(words, digits)}")
    return "\n".join(lines)


def _axis(name: str, ax: Axes) -> str:
    axis = ax.xaxis if name == "x" else ax.yaxis
    scale = "" if axis.get_scale() == "linear" else f" ({axis.get_scale()})"
    # Other ticks follow from the data.
    chosen = isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator)
    ticks = [tick.get_text() for tick in axis.get_ticklabels()] if chosen else []
    labels = f" [{len(ticks)} labels #{_hash(ticks)}]" if any(ticks) else ""
    return f"{name}{_quoted(axis.get_label_text())}{scale}{labels}"


def _drawn(points: Any, ax: Axes) -> np.ndarray:
    """Points as the axes draw them: on a logarithmic one, small numbers count as much as large ones."""
    points = np.asarray(points, dtype=float)
    drawn = ax.transScale.transform(points)
    return np.where((drawn == -1000) & (points != -1000), np.nan, drawn)  # -1000: matplotlib's logarithm of 0


def _texts(words: list[str], digits: int) -> str:
    return f"{len(words)} texts" + (f" #{_hash(words)}" if digits >= 3 else "")


def _colours(mappable: ScalarMappable, digits: int) -> str:
    return f", {mappable.get_cmap().name}" + _data([np.array(mappable.get_clim())], min(digits, 2))


def _quoted(text: str) -> str:
    return f' "{text}"' if text else ""


def _shape(array: Any) -> str:
    return " x ".join(str(n) for n in np.shape(array))


def _data(columns: Iterable[Any], digits: int) -> str:
    """Ranges of some numbers, and their hash, to so many significant digits of the largest."""
    if digits < 1:
        return ""
    arrays: list[np.ndarray] = [np.ma.filled(np.ma.asarray(column, dtype=float), np.nan).ravel() for column in columns]
    ranges = []
    rounded: list[str] = []
    for array in arrays:
        finite = array[np.isfinite(array)]
        if not finite.size:
            ranges.append("empty")
            continue
        # Steps of the largest number, not of each by itself: what should be zero differs from machine to machine.
        # And so does what lies on the edge between two steps, which is why the edges are moved away from the round
        # numbers that figures are full of (1/8, 0.25, 10.0).
        size = float(np.abs(finite).max())
        size = size if size > 1e-12 else 1.0
        step = 10.0 ** (math.floor(math.log10(size) + 1e-6) + 1 - digits)
        steps = np.floor(array / step + 0.5 + 0.0137) + 0.0
        shown = steps[np.isfinite(steps)]
        low, high = float(shown.min()), float(shown.max())
        ranges.append(f"{low * step:g} .. {high * step:g}")
        rounded += [f"{x:.0f}" for x in steps]
    text = ", " + ", ".join(ranges)
    return text + (f" #{_hash(rounded)}" if digits >= 3 else "")


def _hash(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
