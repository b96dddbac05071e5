"""Tables in CSV files that people open in a spreadsheet and save again.

A spreadsheet may put a mark in front of the file (a BOM), separate columns by semicolons or tabs, end lines in another
way, and add lines and columns that are empty. None of that changes what the table says, so all of it is read.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The columns of a table, and its rows: each the number of the line it ends on, and its values by column."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_csv(path: str | Path) -> Table:
    """The table in a CSV file; an empty file is one without columns.

    Raises:
        ValueError: the file cannot be read, a column has no name or that of another, or a line has not as many values
            as there are columns.
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        return Table([], [])
    columns = [name.strip() for name in lines[0][1]]
    while columns and not columns[-1] and not any(any(values[len(columns) - 1 :]) for _, values in lines[1:]):
        columns.pop()  # nothing but separators at the end of every line
    twice = [name or "without a name" for name, n in Counter(columns).items() if n > 1 or not name]
    if twice:
        raise ValueError(f"{path} must have each column once, with a name: its first line has {', '.join(twice)} twice")
    rows = []
    for number, values in lines[1:]:
        if len(values) < len(columns) or any(values[len(columns) :]):
            raise ValueError(f"line {number} of {path} has not as many values as there are columns: mend or remove it")
        rows.append((number, dict(zip(columns, values, strict=False))))
    return Table(columns, rows)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that hold anything, each with its number and cut into values."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        names = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").split("\n", 1)[0])  # what stands in quotes separates nothing
        separator = max(SEPARATORS, key=names.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [(reader.line_num, values) for values in reader if any(values)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: it is not in UTF-8. Save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
