"""A table in a notebook: a real one on the page and in JupyterLab, and lines of text for whoever compares."""

from __future__ import annotations

import re
from collections.abc import Sequence

from IPython.display import display

RULES = {"l": ":--", "c": ":-:", "r": "--:"}

# A number as a reader sees one, perhaps with a sign, a factor or a unit: "-1,024", "3.2e-5", "≈ 12.5 MB", "97 %".
NUMBER = re.compile(
    r"(?:[-−+±~≈<>≤≥×]\s?)*[0-9](?:[0-9.,_\u00a0\u202f]*[0-9])?(?:e[-+]?[0-9]+)?(?:\s?(?:%|×|[A-Za-zµ/]{1,6}))?"
)
NO_NUMBER = {"", "-", "–", "—", "nan", "inf", "-inf"}

# Of a cell only: formulas keep to one line, and a dollar that is escaped opens none.
FORMULA = re.compile(r"(?<!\\)\$[^$]+(?<!\\)\$")


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | int]],
    *,
    caption: str | None = None,
    align: str | None = None,
) -> None:
    """Show a table.

    Its cells are Markdown: `$d_k$` is a formula, and a token stands in backticks. The plain text beside it, one line
    a row, is what nbval compares.

    Args:
        headers: one for each column.
        rows: as many cells each. Numbers are written by the caller, `f"{loss:.3f}"`, so that no digit is shown that
            another processor would not show too.
        caption: the question that the table answers, and the answer. The page numbers it.
        align: a letter for each column, of "l", "c" and "r". Unless given, columns of numbers are flush right.

    Raises:
        ValueError: there is no column, a row has more or fewer cells than there are headers, a cell or header is not
            one line, the caption is empty, or `align` does not have one letter for each column.
    """
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    width = len(cells[0])
    if not width:
        raise ValueError("a table needs a header for each column: got none")
    for number, row in enumerate(cells):
        if len(row) != width:
            raise ValueError(f"each row needs one cell for each of the {width} headers: row {number} has {len(row)}")
        for cell in row:
            if len(cell.splitlines()) > 1 or cell.endswith(("\n", "\r")):
                raise ValueError(f"a cell is one line of text, got {cell!r}; repr() shows a line break as \\n")
    if caption is not None and not caption.strip():
        raise ValueError("the caption is empty: say which question the table answers, or leave it out")
    if align is None:
        align = "".join("r" if _numbers(column) else "l" for column in zip(*cells[1:], strict=True)) or "l" * width
    if len(align) != width or set(align) - set(RULES):
        raise ValueError(f'align needs one letter of "l", "c", "r" for each of the {width} columns: got {align!r}')
    lines = [_line(cells[0]), "|" + "|".join(RULES[letter] for letter in align) + "|", *map(_line, cells[1:])]
    plain = [" | ".join(row).rstrip() for row in cells]
    if caption is not None:
        text = f"**Table.** {' '.join(caption.split())}"
        lines[:0] = [text, ""]
        plain.insert(0, text)
    display({"text/markdown": "\n".join(lines), "text/plain": "\n".join(plain)}, raw=True)


def _numbers(column: Sequence[str]) -> bool:
    """Whether a column holds numbers, and perhaps dashes where there is none."""
    written = [cell.strip() for cell in column if cell.strip().lower() not in NO_NUMBER]
    return bool(written) and all(NUMBER.fullmatch(cell) for cell in written)


def _line(row: Sequence[str]) -> str:
    """A row in Markdown. A bar inside a cell would end it, and JupyterLab takes an escaped one in a formula for ‖."""
    written = []
    for cell in row:
        cell = FORMULA.sub(lambda found: found[0].replace(r"\|", r"\Vert ").replace("|", r"\vert "), cell)
        written.append(cell.replace("|", r"\|"))
    return "| " + " | ".join(written) + " |"
