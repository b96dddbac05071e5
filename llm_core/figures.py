"""Figures: one style for the whole book, an alt text and a caption for each, and a fingerprint that a test can read.

`use_style()` once in a notebook, then matplotlib as usual, then `show(fig, alt=..., caption=...)` instead of
`plt.show()`.

Figures are drawn in dark ink on white paper. In a notebook they look as any figure does. The book's dark theme turns
their lightness round and keeps their hues (book/_static/book.css), so a caption should not say "dark" or "light": it
should say "strong" and "pale", or name the value.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Told apart by readers with any common colour blindness, each with at least 3:1 contrast on white; the first
# three are Okabe and Ito's. A line differs from its neighbours in its dashes too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#AA3377", "#000000", "#767676"]
DASHES = ["-", "--", "-.", ":", "-", "--"]

STYLE: Any = {
    "figure.figsize": (5.8, 3.5),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    # Weak to strong in one hue and in lightness: it survives grey print, colour blindness and the dark theme.
    "image.cmap": "Blues",
}


def use_style() -> None:
    """Draw all figures from here on in the book's style."""
    plt.rcParams.update(STYLE)


def show(fig: Figure, *, alt: str, caption: str, digits: int = 4) -> None:
    """Show a figure under its caption, and close it.

    Two outputs are made. The first holds the image with its alt text, and a fingerprint of what was drawn as plain
    text: nbval compares that, so a figure that changed fails a test though images are not compared. The second holds
    the caption; the book makes a numbered figure of both.

    Args:
        fig: the figure.
        alt: what the figure shows, for a reader who cannot see it.
        caption: the question that the figure answers, and the answer.
        digits: significant digits of the data that the fingerprint holds. 3 or more: ranges and a hash of all
            points. 1 or 2, where training is involved: ranges only. 0: only what was drawn and how often.

    Raises:
        ValueError: alt or caption is empty.
    """
    for name, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"every figure of the book needs its {name}: say what the figure shows")
    image = io.BytesIO()
    fig.savefig(image, format="png", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    picture = base64.b64encode(image.getvalue()).decode()
    display(
        {"image/png": picture, "text/plain": fingerprint(fig, digits=digits)},
        metadata={"image/png": {"alt": " ".join(alt.split())}},
        raw=True,
    )
    text = f"**Figure.** {' '.join(caption.split())}"
    display({"text/markdown": text, "text/plain": text}, raw=True)


def fingerprint(fig: Figure, *, digits: int = 4) -> str:
    """What a figure draws, in a few lines of text: axes, artists, how many points, their ranges and a hash."""
    lines = [f"figure with {len(fig.axes)} axes"]
    for number, ax in enumerate(fig.axes, start=1):
        lines.append(f"axes {number}: {_axis('x', ax)}, {_axis('y', ax)}" + _quoted(ax.get_title()))
        for line in ax.lines:
            points = np.asarray(line.get_xydata())
            name = str(line.get_label())
            label = "" if name.startswith("_") else name
            lines.append(f"  line{_quoted(label)}, {len(points)} points" + _data([*points.T], digits))
        for image in ax.images:
            lines.append(f"  image {_shape(image.get_array())}" + _data([image.get_array()], digits))
        for collection in ax.collections:
            array = collection.get_array()
            data = [*np.asarray(collection.get_offsets()).T] if array is None else [array]
            lines.append(f"  {type(collection).__name__} {_shape(data[0])}" + _data(data, digits))
        if ax.patches:
            boxes = np.array([patch.get_extents().transformed(ax.transData.inverted()).extents for patch in ax.patches])
            lines.append(f"  {len(boxes)} patches" + _data([boxes[:, 2], boxes[:, 3]], digits))
        if ax.texts:
            words = [text.get_text() for text in ax.texts]
            lines.append(f"  {len(words)} texts" + (f" #{_hash(words)}" if digits >= 3 else ""))
    return "\n".join(lines)


def heat_map(
    values: Tensor | np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    ax: Axes | None = None,
    mask: Tensor | np.ndarray | None = None,
    numbers: str | None = "{:.2f}",
    limits: tuple[float, float] = (0.0, 1.0),
    row_title: str = "query",
    column_title: str = "key",
) -> Axes:
    """Draw a matrix, attention weights for one, with its numbers in its cells.

    Args:
        values: (T, S).
        rows: T labels, of the queries.
        columns: S labels, of the keys.
        ax: where to draw; a new figure unless given.
        mask: (T, S), True = may attend; cells that may not get a dot instead of a number.
        numbers: how a cell's number is written. None: not at all.
        limits: the values of the palest and of the strongest colour.
        row_title: name of the row axis.
        column_title: name of the column axis.

    Raises:
        ValueError: the labels are not as many as the rows and columns.
    """
    array = np.asarray(values, dtype=float)
    if array.shape != (len(rows), len(columns)):
        raise ValueError(
            f"each row and column needs its label: got values {array.shape}, {len(rows)} row labels and "
            f"{len(columns)} column labels"
        )
    may = np.ones(array.shape, dtype=bool) if mask is None else np.broadcast_to(np.asarray(mask), array.shape)
    if ax is None:
        size = 0.55 * max(len(columns), len(rows)) + 1.4
        _, ax = plt.subplots(figsize=(max(3.2, min(6.4, size)), max(2.6, min(6.0, size * 0.9))))
    low, high = limits
    ax.imshow(array, vmin=low, vmax=high)
    ax.set_xticks(range(len(columns)), columns, rotation=0 if max(map(len, columns)) < 5 else 40, ha="center")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlabel(column_title)
    ax.set_ylabel(row_title)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(array):
        if not may[i, j]:
            ax.text(j, i, "·", ha="center", va="center", color="#767676")
        elif numbers is not None:
            strong = value > low + 0.55 * (high - low)
            text = numbers.format(value + 0.0)
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if strong else "black")
    return ax


def _axis(name: str, ax: Axes) -> str:
    axis = ax.xaxis if name == "x" else ax.yaxis
    scale = "" if axis.get_scale() == "linear" else f" ({axis.get_scale()})"
    return f"{name}{_quoted(axis.get_label_text())}{scale}"


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
    rounded = []
    for array in arrays:
        finite = array[np.isfinite(array)]
        if not finite.size:
            ranges.append("empty")
            continue
        ranges.append(f"{_round(finite.min(), digits)} .. {_round(finite.max(), digits)}")
        size = float(np.abs(finite).max()) or 1.0
        # Against the largest, not each by itself: what should be zero differs from machine to machine.
        rounded += [f"{x + 0.0:.{digits}f}" for x in np.round(array / size, digits)]
    text = ", " + ", ".join(ranges)
    return text + (f" #{_hash(rounded)}" if digits >= 3 else "")


def _round(x: float, digits: int) -> str:
    return f"{float(f'{x:.{digits - 1}e}') + 0.0:g}"


def _hash(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
