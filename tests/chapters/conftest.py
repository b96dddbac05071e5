"""The notebooks' tools, and tiny notebooks to try them on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_tools"))

TITLE = "# A title\n\n**Cost:** about 5 s and 200 MB on two cores."
PARAMETERS = "seed: int = 3  # where the numbers start"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks that promise to take long come first: processes that share them then end together."""
    import notebook_rules as rules

    def promised(item: pytest.Item) -> float:
        path = item.callspec.params.get("path") if hasattr(item, "callspec") else None
        if not isinstance(path, Path) or item.get_closest_marker("slow") is None:
            return 0.0
        label = rules.cost_label(rules.read(path))
        return label[0] if label else 0.0

    items.sort(key=promised, reverse=True)


def write_notebook(folder: Path, *sources: str, name: str = "tiny.ipynb", prose: str = "") -> Path:
    """A notebook in a folder, with a title, a parameters cell and the given code cells."""
    cells: list[Any] = [new_markdown_cell(TITLE), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    if prose:
        cells.append(new_markdown_cell(prose))
    cells += [new_code_cell(source) for source in sources]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="session")
def write_to() -> Callable[..., Path]:
    """Writes a notebook into a folder."""
    return write_notebook


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a notebook into the test's own folder."""
    return partial(write_notebook, tmp_path)
