"""One style for all figures of the book: ink that readers with any colour blindness tell apart, on white paper."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler

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
