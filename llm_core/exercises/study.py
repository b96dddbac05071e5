"""Parameter studies: one notebook run at every point of a grid, its results collected in one table.

A study is a notebook that measures something at one setting of its parameters cell, and says what it found:

    record(loss=loss)

`sweep` runs it once for each combination of the values given, each run in a kernel of its own, and keeps a table (CSV)
with a row for each: the parameters, then what was recorded. The table is written after every run, and a combination
that it already holds is not run again. So an interrupted sweep goes on where it was, and a grid can be widened later.

    notebook    chapters/03_algorithms/studies/04_learning_rate.ipynb
    table       chapters/03_algorithms/studies/04_learning_rate.csv         the one that the book shows
    name        03/04_learning_rate
"""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from IPython.display import display

from llm_core.exercises.tables import read_csv
from llm_core.files import write_whole

RECORD = "llm_core_record"  # where an output's metadata hold what was recorded
TIMEOUT = 600.0  # seconds for one run
ERROR = "error"  # the column that says why a run has no results

Row = dict[str, str]


def record(**values: float | int | str) -> None:
    """Say what this run of a study found; `sweep` puts it into the table. In a notebook it is shown as one line.

    Raises:
        ValueError: nothing is recorded, or under the name that the table keeps for errors.
    """
    if not values or ERROR in values:
        raise ValueError(f"record at least one value by its name, and none as {ERROR!r}: got {list(values)}")
    text = ", ".join(f"{name} = {value}" for name, value in values.items())
    display({"text/plain": text}, metadata={RECORD: values}, raw=True)


def sweep(
    path: str | Path,
    grid: Mapping[str, Sequence[str]],
    table: str | Path,
    *,
    timeout: float = TIMEOUT,
    progress: Callable[[list[Row]], Iterable[Row]] = iter,
) -> list[Row]:
    """Run a study at every combination of the grid that the table does not hold yet; the whole table.

    A run that fails gets a row that says why, and the sweep goes on; the next sweep tries it again.

    Args:
        path: the study's notebook; it is only read.
        grid: for each parameter the values it takes, as text. Parameters that are not named keep their defaults.
        table: the CSV file with the results; made if it is not there.
        timeout: seconds that one run may take.
        progress: wraps the list of what is still to be run, for a progress bar.

    Raises:
        ValueError: the notebook cannot be read, a parameter is unknown, a value is not of its type or given twice, or
            the table cannot be written or is of another study.
    """
    # Not above: a notebook that records need not wait for papermill.
    from llm_core.exercises import notebook_files, runner

    path, table = Path(path), Path(table)
    runner.check_timeout(timeout)
    notebook = notebook_files.read(path)
    points = _points(grid, notebook)
    names = list(runner.parameters_of(notebook))
    rows = _rows_of(table, notebook, names) if table.exists() else []
    runner.check_writable(table.parent)

    for point in progress([p for p in points if not any(_about(row, p) and not row.get(ERROR) for row in rows)]):
        outcome = _run(path, {name: point[name] for name in grid}, timeout)
        clash = sorted(outcome.keys() & point.keys())
        if clash:
            outcome = {ERROR: f"the notebook recorded something under the name of a parameter: {', '.join(clash)}"}
        rows = [*(row for row in rows if not _about(row, point)), {**point, **outcome}]
        write_table(rows, names, table)
    return rows


def read_table(table: str | Path) -> list[Row]:
    """The rows of a table, each as text by column.

    Raises:
        ValueError: the file cannot be read, has a column twice, or a line with more or fewer values than columns.
    """
    return [row for _, row in read_csv(table).rows]


def write_table(rows: Sequence[Row], parameters: Sequence[str], table: str | Path) -> None:
    """Write a table whole or not at all: parameters first, then what was recorded, then errors if there are any.

    Raises:
        ValueError: it cannot be written.
    """
    table = Path(table)
    recorded = dict.fromkeys(name for row in rows for name in row if name not in parameters and name != ERROR)
    columns = [*parameters, *recorded] + [ERROR] * any(row.get(ERROR) for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(table, text.getvalue())


def _points(grid: Mapping[str, Sequence[str]], notebook: Any) -> list[Row]:
    """All parameters at every combination, each written in one way: 1e-3 and 0.001 are the same value."""
    from llm_core.exercises import runner

    written: dict[str, list[str]] = {}
    for name, texts in grid.items():
        values = [_written(name, text, notebook) for text in texts]
        if not values or len(set(values)) < len(values):
            raise ValueError(f"the parameter {name!r} needs at least one value, each once: got {', '.join(texts)}")
        written[name] = values
    defaults = {}
    for name, entry in runner.parameters_of(notebook).items():
        try:
            defaults[name] = _written(name, str(runner.literal(entry["default"])), notebook)
        except ValueError:
            raise ValueError(
                f"the notebook's parameter {name} must have a plain value as its default, such as 0.1 or 'ada': "
                f"got {entry['default']}"
            ) from None
    return [{**defaults, **dict(zip(written, values, strict=True))} for values in itertools.product(*written.values())]


def _rows_of(table: Path, notebook: Any, names: Sequence[str]) -> list[Row]:
    """The rows of a study's table, each parameter written as `_points` does, however a spreadsheet has written it."""
    found = read_csv(table)
    missing = [name for name in names if found.columns and name not in found.columns]
    if missing:
        raise ValueError(f"{table} is of another study: it has no column {', '.join(missing)}. Give another file")
    written = cache(partial(_written, notebook=notebook))  # the same few values stand in many lines
    lines: dict[tuple[str, ...], int] = {}
    rows = []
    for number, row in found.rows:
        try:
            point = {name: written(name, row[name]) for name in names}
        except ValueError as error:
            raise ValueError(f"line {number} of {table}: {error}. Mend or remove it") from None
        first = lines.setdefault(tuple(point.values()), number)
        if first != number:
            raise ValueError(f"lines {first} and {number} of {table} have the same parameters: remove one of them")
        rows.append({**row, **point})
    return rows


def _written(name: str, text: str, notebook: Any) -> str:
    """The one way in which a value of a parameter is written: 1e-3, 1.00E-03 and 0.001 are the same, TRUE and True."""
    from llm_core.exercises import runner

    try:
        return str(runner.typed({name: text}, notebook)[name])
    except ValueError:
        with suppress(ValueError, OverflowError):  # a spreadsheet may write 3 as 3.0, and a million as 1E+06
            if float(text) == int(float(text)):
                return str(runner.typed({name: str(int(float(text)))}, notebook)[name])
        raise


def _about(row: Row, point: Row) -> bool:
    return all(row[name] == value for name, value in point.items())


def _run(path: Path, values: Mapping[str, str], timeout: float) -> Row:
    """What one run recorded, or why it did not."""
    from llm_core.exercises import notebook_files, runner

    notebook = notebook_files.read(path)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "executed.ipynb"
        typed = runner.typed(values, notebook)
        trouble = runner.execute(notebook, copy, typed, path.parent, timeout, timeout, progress=False)
        if trouble is not None:
            return {ERROR: trouble[1]}
        outputs = [output for cell in notebook_files.read(copy).cells for output in cell.get("outputs", [])]
    shown = [output.get("metadata", {}).get(RECORD) for output in outputs]
    found = [recorded for recorded in shown if isinstance(recorded, dict)]
    if not found:
        return {ERROR: "the notebook recorded nothing: record(...) is missing"}
    return {name: str(value) for recorded in found for name, value in recorded.items()}
