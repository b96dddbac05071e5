"""The records of a run: one line of JSON a step, read with patience.

A line may be cut short by a kill or a full disk, or damaged by a disk. The weights do not depend on it, so it never
stops a run: whoever reads the records gets the lines that are whole, and a run that goes on moves the others into a
file beside, `records.jsonl.damaged`, and says so.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from llm_core.files import write_whole


def record_of(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, or None if it is none: not UTF-8, not JSON, no mapping, or without its step."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, without their ends; none if there is no file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content.removesuffix(b"\n").split(b"\n") if content else []


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of the lines that are whole, in the order of the file.

    Raises:
        OSError: the file cannot be read.
    """
    return [record for line in lines_of(path) if (record := record_of(line)) is not None]


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Write one line at the end; if the line before it was cut short, on a line of its own.

    Raises:
        OSError: it cannot be written.
    """
    line = (json.dumps(record) + "\n").encode()
    with path.open("a+b", buffering=0) as file:  # opened anew: nothing is left in a buffer
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) != len(line):  # the disk took a part of it
            raise OSError("No space left for the whole line")


def cut_records(path: Path, step: int) -> None:
    """Drop the records of `step` and later, which will be written again, and set aside lines that are none.

    Lines are kept as they are and in their order. A file without anything to drop is not touched.

    Raises:
        NotWritten: the disk is full, for one; the records are as they were.
        OSError: the file cannot be read.
    """
    lines = lines_of(path)
    records = [record_of(line) for line in lines]
    damaged = [number for number, record in enumerate(records) if record is None]
    kept = [line for line, record in zip(lines, records, strict=True) if record is not None and record["step"] < step]
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        before = lines_of(aside)
        write_whole(aside, b"".join(line + b"\n" for line in [*before, *(lines[number] for number in damaged)]))
    if len(kept) < len(lines):
        write_whole(path, b"".join(line + b"\n" for line in kept))
    if damaged:
        warnings.warn(
            f"{path} has lines that are no records of a step: {', '.join(str(number + 1) for number in damaged[:10])}"
            f"{' and others' * (len(damaged) > 10)}. They were moved to {aside.name}, and the run goes on without them",
            stacklevel=2,
        )
