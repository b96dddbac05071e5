"""Maps of what goes on inside a model: attention weights, lens, heads, patching, and probes layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor


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
