"""Notebooks in every state: each edit of one gives a notebook that can be worked with, or says what is wrong."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from llm_core.exercises import runner
from llm_core.exercises.notebook_files import Unusable, read

CHECK = 'check("04/01_dot_product_attention", seed=seed)'
STREAM = {"output_type": "stream", "name": "stdout", "text": ["one\n", "two"]}
SHOWN = {"output_type": "display_data", "data": {"text/plain": ["a", "b"], "application/json": [1]}, "metadata": {}}
FAILED = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]}
PARAMETERS = {"cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"], "llm_core": {}},
              "source": "seed: int = 0  # start", "execution_count": 1, "outputs": [STREAM, SHOWN, FAILED]}  # fmt: skip
NOTEBOOK = {
    "nbformat": 4, "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "elsewhere", "display_name": "mine"}, "papermill": {}},
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Mine\n", "x"], "attachments": {}},
        PARAMETERS,
        {"cell_type": "code", "id": "c", "metadata": {}, "source": CHECK, "execution_count": None, "outputs": []},
    ],
}  # fmt: skip
OLD_CELL = {"cell_type": "code", "language": "python", "collapsed": False, "metadata": {}, "prompt_number": 1}
OF_2013 = {
    "nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""},
    "worksheets": [{"metadata": {}, "cells": [
        {"cell_type": "heading", "level": 2, "metadata": {}, "source": ["Mine"]},
        {**OLD_CELL, "input": ["seed = ", "0"], "metadata": {"tags": ["parameters"]},
         "outputs": [{"output_type": "pyout", "prompt_number": 1, "text": ["3"], "metadata": {}}]},
        {**OLD_CELL, "input": CHECK, "outputs": []},
    ]}],
}  # fmt: skip
VALUES = (None, -1, float("nan"), "x", "\ud800", [], [None], {"a": None})


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON data, as keys and positions."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def edits(whole: dict[str, Any]) -> Iterator[Any]:
    """The data with each of its entries deleted, and replaced by values of all types."""
    for *way, last in places(whole):
        for value in (..., *VALUES):
            edited = copy.deepcopy(whole)
            inside: Any = edited
            for key in way:
                inside = inside[key]
            if value is ...:
                del inside[last]
            else:
                inside[last] = value
            yield edited
    yield from VALUES


@pytest.mark.parametrize("whole", [NOTEBOOK, OF_2013], ids=["today", "2013"])
def test_every_edit_of_a_notebook_ends_in_a_notebook_or_in_a_word(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def execute(notebook: Any, copy: Path, *rest: Any) -> None:
        copy.write_text(nbformat.writes(notebook), encoding="utf-8")

    monkeypatch.setattr(runner, "execute", execute)
    path, ends = tmp_path / "x.ipynb", Counter[str]()
    for edited in edits(whole):
        path.write_text(json.dumps(edited), encoding="utf-8")
        result = runner.run(path)
        assert result.status == "error"  # nothing was executed, so there is no report
        assert result.message.isprintable()
        if "is not a notebook" in result.message:
            with pytest.raises(Unusable, match=re.escape(result.message)):
                read(path)
            ends["refused"] += 1
            continue
        notebook = read(path)
        nbformat.validate(notebook)
        runner.defaults_of(notebook)
        ends["read"] += 1
    assert min(ends["refused"], ends["read"]) > 80


def test_what_a_notebook_holds_is_kept(tmp_path: Path):
    path = tmp_path / "x.ipynb"
    for before in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(before + json.dumps(NOTEBOOK).encode())
        cells = read(path).cells
        assert [cell.source for cell in cells] == ["# Mine\nx", PARAMETERS["source"], CHECK]
        assert [cell.id for cell in cells] == ["a", "b", "c"]
        assert cells[1].metadata == PARAMETERS["metadata"]
        stream, shown, failed = cells[1].outputs
        assert (stream.text, shown.data["text/plain"], failed.ename) == ("one\ntwo", "ab", "E")
        assert shown.data["application/json"] == [1]
    path.write_text(json.dumps(OF_2013))
    assert [cell.source for cell in read(path).cells] == ["## Mine", "seed = 0", CHECK]
    assert runner.defaults_of(read(path)) == {"seed": 0}
    twice = {**NOTEBOOK, "cells": [PARAMETERS, PARAMETERS]}
    path.write_text(json.dumps(twice))
    nbformat.validate(read(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        ("{}".encode("utf-16"), "not in UTF-8"),
        (b'{"a": "\xff"}', "not in UTF-8"),
        (b'{"cells": [3]}', "its cell 1 is neither code nor text"),
        (b'{"cells": [{"cell_type": "code"}]}', "its cell 1 has no source"),
        (b'{"cells": null}', "it has no cells"),
    ],
)
def test_what_is_no_notebook_is_named(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=f"^x.ipynb .*{message}"):
        read(path)
