"""A class's results as one HTML page: points, the most frequent mistakes as a chart, and a row for each notebook.

The page is a single file without scripts, and loads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from llm_core.exercises.grading import Common, Row, mistakes, totals

STYLE = """
:root { color-scheme: light dark; --bar: #3b82c4; --line: #8888; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.8rem 0.3rem 0; text-align: start; }
td { vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: end; }
.bar { background: var(--bar); border-radius: 0.2rem; display: inline-block; height: 0.8rem; margin-inline-end: 0.5em; }
.bars { min-width: 12rem; white-space: nowrap; width: 30%; }
"""


def class_page(rows: Sequence[Row], title: str) -> str:
    """The page.

    Args:
        rows: what `grade` gave.
        title: its heading.
    """
    statuses = Counter(str(row["status"]) for row in rows)
    summary = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    most = max((len(common.students) for common in mistakes(rows)), default=1)
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{len(rows)} notebooks: {escape(summary)}.</p>",
            "<h2>The most frequent mistakes</h2>",
            _table(
                ["Students", "Exercise", "Mistake", "What it is"], [_bar(common, most) for common in mistakes(rows)]
            ),
            "<h2>Points</h2>",
            _table(["Student", "Points", "Of"], [_points(*total) for total in totals(rows)]),
            "<h2>Notebooks</h2>",
            _table(
                ["Student", "File", "Exercise", "Parameters", "Status", "Checks", "Points", "What was found"],
                [_notebook(row) for row in rows],
            ),
            "</body></html>",
            "",
        ]
    )


def _table(headers: Sequence[str], lines: Sequence[str]) -> str:
    if not lines:
        return "<p>None.</p>"
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def _cell(value: object, kind: str = "") -> str:
    return f"<td{f' class={kind}' if kind else ''}>{escape(str(value))}</td>"


def _bar(common: Common, most: int) -> str:
    count, names = len(common.students), escape(", ".join(common.students))
    bar = f'<span class="bar" style="width: {70 * count / most:.0f}%"></span>'
    return (
        f'<td class="bars" title="{names}">{bar}{count}</td>'
        + _cell(common.exercise)
        + _cell(common.finding)
        + _cell(common.message)
    )


def _points(student: str, got: float, most: float) -> str:
    return _cell(student) + _cell(f"{got:g}", "number") + _cell(f"{most:g}", "number")


def _notebook(row: Row) -> str:
    settings = " ".join(f"{name}={value}" for name, value in row["parameters"].items())
    cells = [
        row["student"],
        row["file"],
        row["exercise"],
        settings,
        row["status"],
        f"{row['passed']} of {row['total']}",
    ]
    return "".join(map(_cell, cells)) + _cell(f"{row['points']:g} of {row['of']:g}") + _cell(row["message"])
