"""What a page of the book shows: figures in one style, tables, and the package's own source.

`use_style()` once in a notebook, then matplotlib as usual, then `show(fig, alt=..., caption=...)` instead of
`plt.show()`. `table(headers, rows)` and `show_source(function)` stand where `print` would.

Figures are drawn in dark ink on white paper. In a notebook they look as any figure does. The book's dark theme turns
their lightness round and keeps their hues (book/_static/book.css), so a caption should not say "dark" or "light": it
should say "strong" and "pale", or name the value.
"""

from llm_core.figures.captioned import INTERACTIVE, Interactive, show
from llm_core.figures.fingerprints import fingerprint
from llm_core.figures.maps import accuracy_by_layer, head_map, heat_map, lens_table, patching_map
from llm_core.figures.sources import show_source
from llm_core.figures.style import COLOURS, DASHES, PIXELS_PER_INCH, STYLE, use_style
from llm_core.figures.tables import table

__all__ = [
    "COLOURS",
    "DASHES",
    "INTERACTIVE",
    "PIXELS_PER_INCH",
    "STYLE",
    "Interactive",
    "accuracy_by_layer",
    "fingerprint",
    "head_map",
    "heat_map",
    "lens_table",
    "patching_map",
    "show",
    "show_source",
    "table",
    "use_style",
]
