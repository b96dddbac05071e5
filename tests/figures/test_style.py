"""The style is the one of the book, and its colours can be seen."""

from __future__ import annotations

import matplotlib.pyplot as plt

from llm_core import figures
from llm_core.figures import use_style


def test_the_style_is_the_books():
    use_style()
    fig, ax = plt.subplots()
    for _ in range(3):
        ax.plot([0, 1], [0, 1])
    assert [line.get_color() for line in ax.lines] == figures.COLOURS[:3]
    assert len({line.get_linestyle() for line in ax.lines}) == 3
    assert fig.dpi == 150


def test_the_colours_stand_out_from_white():
    """WCAG 2.1, success criterion 1.4.11: at least 3:1."""

    def luminance(colour):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    for colour in figures.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour
