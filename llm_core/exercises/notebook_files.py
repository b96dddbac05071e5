"""Notebooks as they come from learners: of any age, from any editor, and damaged in any way.

`read` gives a notebook in today's form whose parts all have the form that nbformat's schema wants, or says what is
wrong. So nothing that works on it afterwards has to ask.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.validator import isvalid

_NEW = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell, "raw": nbformat.v4.new_raw_cell}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_V4_5 = {"version": 4, "version_minor": 5}


class Unusable(ValueError):
    """A file that is no notebook, or a notebook that is no exercise."""


def read(path: Path) -> NotebookNode:
    """The notebook in a file, with Python as its kernel whatever it was saved with.

    Cells have to be as they should. What is stored beside their sources (outputs, tags, ids, attachments) is left out
    where it is not.

    Raises:
        Unusable: the file cannot be read or is no notebook.
    """
    saved = _json(path)
    notebook = nbformat.v4.new_notebook(cells=_cells(saved, path.name))
    if isinstance(saved.get("metadata"), dict):
        notebook.metadata.update(nbformat.from_dict(saved["metadata"]))
    # A notebook from Colab or from somebody's conda names a kernel that is not here, or none.
    notebook.metadata["kernelspec"] = NotebookNode(KERNEL)
    notebook.metadata["language_info"] = NotebookNode({"name": "python"})
    return notebook


def one_line(value: object) -> str:
    """What an error says, short enough for a table."""
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise Unusable(f"{path.name} cannot be read: it is not a file")
    try:
        saved = json.loads(path.read_bytes().decode("utf-8-sig"))
        json.dumps(saved, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"{path.name} is not a notebook: it holds half a character, which no text can hold") from error
    except UnicodeDecodeError as error:
        raise Unusable(f"{path.name} cannot be read: it is not in UTF-8") from error
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path.name} is not a notebook: it is not JSON ({one_line(error)})") from error
    if not isinstance(saved, dict):
        raise Unusable(f"{path.name} is not a notebook: it has no cells")
    return saved


def _cells(saved: dict[str, Any], name: str) -> list[NotebookNode]:
    found = saved.get("cells")
    if found is None and isinstance(saved.get("worksheets"), list):
        sheets: list[Any] = [sheet.get("cells") if isinstance(sheet, dict) else None for sheet in saved["worksheets"]]
        if all(isinstance(cells, list) for cells in sheets):
            found = [_of_2013(cell) for cells in sheets for cell in cells]
    if not isinstance(found, list):
        raise Unusable(f"{name} is not a notebook: it has no cells")
    cells = [_cell(cell, f"{name} is not a notebook: its cell {i}") for i, cell in enumerate(found, start=1)]
    ids = [cell["id"] for cell in cells]
    for i, cell in enumerate(cells):
        if cell["id"] in ids[:i]:
            cell["id"] = f"{i}-{cell['id']}"[:64]
    return cells


def _of_2013(cell: Any) -> Any:
    """A cell of before 2015 in today's form, without what it showed then."""
    kind = cell.get("cell_type") if isinstance(cell, dict) else None
    if kind == "code":
        return {**cell, "source": cell.get("input"), "outputs": []}
    if kind == "heading":
        level = cell["level"] if cell.get("level") in range(1, 7) else 1
        return {**cell, "cell_type": "markdown", "source": "#" * level + f" {_joined(cell.get('source'))}"}
    return {**cell, "cell_type": "markdown"} if kind == "html" else cell


def _cell(saved: Any, what: str) -> NotebookNode:
    kind = saved.get("cell_type") if isinstance(saved, dict) else None
    if not isinstance(kind, str) or kind not in _NEW:
        raise Unusable(f"{what} is neither code nor text")
    source = _joined(saved.get("source"))
    if not isinstance(source, str):
        raise Unusable(f"{what} has no source")
    cell: NotebookNode = _NEW[kind](source)
    for key in ("id", "metadata", "attachments", "execution_count"):
        if key in saved and isvalid({**cell, key: saved[key]}, ref=f"{kind}_cell", **_V4_5):
            cell[key] = nbformat.from_dict(saved[key])
    if kind == "code" and isinstance(saved.get("outputs"), list):
        cell["outputs"] = [
            _output(output)
            for output in saved["outputs"]
            if isinstance(output, dict) and isvalid(output, ref="output", **_V4_5)
        ]
    return cell


def _output(saved: Any) -> NotebookNode:
    output: NotebookNode = nbformat.from_dict(saved)
    if "text" in output:
        output["text"] = _joined(output["text"])
    for kind, value in output.get("data", {}).items():
        output["data"][kind] = _joined(value)
    return output


def _joined(text: Any) -> Any:
    """A text that is stored line by line, as one."""
    return "".join(text) if isinstance(text, list) and all(isinstance(line, str) for line in text) else text
