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
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryLocator
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

# Told apart by readers with any common colour blindness, each with at least 3:1 contrast on white; the first
# three are Okabe and Ito's. A line differs from its neighbours in its dashes too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#AA3377", "#000000", "#767676"]
DASHES = ["-", "--", "-.", ":", "-", "--"]

# How large figures are shown: 11 pt in a figure is then about the size of the text around it, in every figure.
# They are drawn with more pixels than that, for sharp screens.
PIXELS_PER_INCH = 110

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


# A static figure may carry the data of an interactive one; only the built page knows what to do with this type.
INTERACTIVE = "application/vnd.llm-core.interactive+json"


@dataclass(frozen=True)
class Interactive:
    """What the page lets a reader play with in the place of a figure (book/_static/interactive.js draws it).

    In JupyterLab, in Colab, on paper and without scripts the static figure is what one sees.

    Attributes:
        kind: which of the page's interactive figures.
        data: its numbers and texts, as plain JSON data. They come from the notebook, like everything the page shows.
            Few digits (`round(x, 4)`) keep the notebook small; the page shows two or three.

    Raises:
        ValueError: the data hold what JSON cannot: a tensor, for one, or a number that is not finite.
    """

    kind: str
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(dict(self.data), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the data of an interactive figure are texts, finite numbers, True and False, in lists and "
                f"dictionaries (`tensor.tolist()` makes lists): {error}"
            ) from error


def show(fig: Figure, *, alt: str, caption: str, digits: int = 4, interactive: Interactive | None = None) -> None:
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
        interactive: what the built page shows in the figure's place, if scripts run there.

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
    width = round(fig.get_figwidth() * PIXELS_PER_INCH)
    bundle: dict[str, Any] = {"image/png": picture, "text/plain": fingerprint(fig, digits=digits)}
    if interactive is not None:
        bundle[INTERACTIVE] = {"kind": interactive.kind, "data": dict(interactive.data)}
    display(
        bundle,
        metadata={"image/png": {"alt": " ".join(alt.split()), "width": width}},
        raw=True,
    )
    text = f"**Figure.** {' '.join(caption.split())}"
    display({"text/markdown": text, "text/plain": text}, raw=True)


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
    array = _array(values)
    if array.shape != (len(rows), len(columns)):
        raise ValueError(
            f"each row and column needs its label: got values {array.shape}, {len(rows)} row labels and "
            f"{len(columns)} column labels"
        )
    may = np.ones(array.shape, dtype=bool) if mask is None else np.broadcast_to(_array(mask) > 0, array.shape)
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
    # Rounded first: 1/8 is written 0.12, and 1/8 with an error in its last bit is too.
    size = max(abs(low), abs(high)) or 1.0
    for (i, j), value in np.ndenumerate(np.round(array / size, 6) * size + 0.0):
        if not may[i, j]:
            ax.text(j, i, "·", ha="center", va="center", color="#767676")
        elif numbers is not None:
            _write(ax, i, j, numbers.format(value), strong=bool(value > low + 0.55 * (high - low)))
    return ax


def lens_table(
    probabilities: Tensor | np.ndarray,
    tokens: Sequence[Sequence[str]],
    *,
    columns: Sequence[str],
    ax: Axes | None = None,
    column_title: str = "token (T)",
) -> Axes:
    """Draw what a logit lens says: in each cell the likeliest token of a layer and position, in its colour how likely.

    Args:
        probabilities: (L + 1, T), of those tokens; layer 0 is the embeddings.
        tokens: L + 1 rows of T, as text.
        columns: T labels: the tokens that were read.
        ax: where to draw; a new figure unless given.
        column_title: name of the column axis.

    Raises:
        ValueError: there is not one token for each probability, or not one label for each position.
    """
    array = _array(probabilities)
    shape = (len(tokens), *sorted({len(row) for row in tokens}))
    if array.shape != shape or len(columns) != shape[1]:
        raise ValueError(
            f"each cell has one token and each column a label: got probabilities {array.shape}, tokens {shape} and "
            f"{len(columns)} labels"
        )
    if ax is None:
        width = max([4, *(len(token) for row in tokens for token in row)])  # of the longest token, in letters
        size = (1.4 + 0.085 * width * len(columns), 1.1 + 0.28 * len(array))
        _, ax = plt.subplots(figsize=(min(9.0, size[0]), min(9.0, size[1])))
    heat_map(
        array,
        rows=[str(layer) for layer in range(len(array))],
        columns=[_as_text(token) for token in columns],
        ax=ax,
        numbers=None,
        row_title="layer (L)",
        column_title=column_title,
    )
    ax.set_aspect("auto")  # a token is wider than it is high
    for (i, j), value in np.ndenumerate(array):
        _write(ax, i, j, _as_text(tokens[i][j]), strong=bool(value > 0.55))
    return ax


def head_map(scores: Tensor | np.ndarray, *, ax: Axes | None = None, numbers: str | None = "{:.2f}") -> Axes:
    """Draw a score between 0 and 1 of each layer and head, (L, H): induction, for one.

    `ax` and `numbers` are those of `heat_map`.
    """
    layers, heads = ([str(n) for n in range(size)] for size in _matrix(scores).shape)
    return heat_map(
        scores, rows=layers, columns=heads, ax=ax, numbers=numbers, row_title="layer (L)", column_title="head (H)"
    )


def patching_map(
    scores: Tensor | np.ndarray,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    ax: Axes | None = None,
    numbers: str | None = "{:.2f}",
    row_title: str = "layer (L)",
    column_title: str = "token (T)",
) -> Axes:
    """Draw the scores of activation patching: nothing at 0, one hue above it and another below.

    The strongest colours stand for 1 and -1, or for the largest score where it is larger.

    Args:
        scores: (L, H), or (L + 1, T).
        rows: labels of the layers; their numbers unless given.
        columns: labels of the tokens or heads; their numbers unless given.
        ax: where to draw; a new figure unless given.
        numbers: how a cell's number is written. None: not at all.
        row_title: name of the row axis.
        column_title: name of the column axis: "head (H)" for heads.

    Raises:
        ValueError: the scores are no matrix, or the labels are not as many as the rows and columns.
    """
    array = _matrix(scores)
    limit = max(1.0, float(np.abs(array).max(initial=0.0)))
    ax = heat_map(
        array,
        rows=[str(n) for n in range(array.shape[0])] if rows is None else rows,
        columns=[_as_text(text) for text in (range(array.shape[1]) if columns is None else columns)],
        ax=ax,
        numbers=numbers,
        limits=(-limit, limit),
        row_title=row_title,
        column_title=column_title,
    )
    ax.images[0].set_cmap("RdBu")  # both ends are told apart by readers with any common colour blindness
    for text in ax.texts:
        x, y = text.get_position()
        text.set_color("white" if abs(array[round(y), round(x)]) > 0.7 * limit else "black")
    return ax


def accuracy_by_layer(
    accuracies: Mapping[str, Tensor | np.ndarray | Sequence[float]],
    *,
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracy of probes at each layer, a line for each task.

    Args:
        accuracies: for each name L + 1 shares; layer 0 is the embeddings.
        chance: the share that guessing would get right: a thin line.
        ax: where to draw; a new figure unless given.

    Raises:
        ValueError: there is no line to draw, or an accuracy is not in 0 ... 1.
    """
    lines = {name: _array(line if isinstance(line, Tensor) else np.asarray(line)) for name, line in accuracies.items()}
    if not lines:
        raise ValueError("there must be at least one task, with its accuracies: got none")
    for name, line in lines.items():
        if line.ndim != 1 or not ((line >= 0) & (line <= 1)).all():
            raise ValueError(
                f"accuracies are shares, 0 ... 1, one for each layer: got {name!r} of shape {line.shape}, from "
                f"{line.min(initial=np.inf):g} to {line.max(initial=-np.inf):g}"
            )
    if ax is None:
        _, ax = plt.subplots()
    for name, line in lines.items():
        ax.plot(range(len(line)), line, marker="o", markersize=4, label=name)
    if chance is not None:
        ax.axhline(chance, color="#767676", linestyle=":", linewidth=1.2, label="guessing")
    ax.set(xlabel="layer (L)", ylabel="accuracy on held-out tokens", ylim=(0, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def _write(ax: Axes, i: int, j: int, text: str, *, strong: bool) -> None:
    ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if strong else "black")


def _as_text(token: str | int) -> str:
    """A token as it is: a dollar is no formula, and a new line takes no second line."""
    return str(token).replace("$", r"\$").replace("\n", "↵")


def _matrix(values: Tensor | np.ndarray) -> np.ndarray:
    array = _array(values)
    if array.ndim != 2:
        raise ValueError(f"a map has rows and columns: got scores of shape {array.shape}")
    return array


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    """Numbers as a model gives them: with gradients, in bfloat16, on a GPU."""
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=float)


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
