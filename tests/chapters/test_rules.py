"""The form in which notebooks are committed, and what may not be in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import notebook_rules as rules
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = "iVBORw0KGgo="


def stream(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


def image(alt: str | None = "a rising line", plain: str = "1 line, 3 points"):
    metadata = {"image/png": {"alt": alt}} if alt is not None else {}
    return new_output("display_data", data={"image/png": PNG, "text/plain": plain}, metadata=metadata)


def chapter(
    *outputs,
    prose: str = "Some prose.",
    parameters: str = "seed: int = 3  # where it starts",
    code: str = "print(7)",
    tags: tuple[str, ...] = (),
):
    title = "# A title\n\n**Cost:** about 5 s and 200 MB on two cores."
    outputs = outputs or (stream("7\n"),)
    cells = [
        new_markdown_cell(title),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}, execution_count=1),
        new_markdown_cell(prose),
        new_code_cell(code, outputs=list(outputs), execution_count=2, metadata={"tags": list(tags)}),
    ]
    return rules.normalise(new_notebook(cells=cells))


HERE = Path("chapters/01_background/01_x.ipynb")


def problems(notebook, path: Path = HERE) -> str:
    return "\n".join(rules.problems(notebook, path))


# --- the form ---


def test_a_plain_chapter_has_no_problem():
    notebook = chapter(stream("7\n"), image())
    assert rules.problems(notebook, HERE, rules.text_of(notebook)) == []


def test_the_form_is_a_fixed_point_and_survives_a_file(tmp_path: Path):
    notebook = chapter(stream("a\n"), stream("b\n"), image())
    text = rules.text_of(notebook)
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    assert rules.text_of(rules.normalise(rules.read(path))) == text
    nbformat.validate(rules.read(path))


def test_what_editors_and_kernels_leave_behind_is_gone():
    tidy = chapter()
    messy = copy.deepcopy(tidy)
    messy.metadata["language_info"]["version"] = "3.11.99"
    messy.metadata["kernelspec"] = {"name": "my-env", "display_name": "mine", "language": "python"}
    messy.metadata["widgets"] = {"state": {}}
    messy.nbformat_minor = 4
    for number, cell in enumerate(messy.cells):
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
        cell.metadata["collapsed"] = False
        if cell.cell_type == "code":
            cell["execution_count"] = 40 + number
            cell["source"] += "\n"
    messy.cells[3]["outputs"] = [stream("7"), stream("\n")]
    assert rules.text_of(rules.normalise(messy)) == rules.text_of(tidy)


def test_what_the_author_wrote_in_the_metadata_stays():
    notebook = chapter()
    notebook.cells[3].metadata["tags"] = ["hide-input"]
    notebook.cells[3].metadata["mystnb"] = {"image": {"alt": "x"}}
    notebook.metadata["title"] = "mine"
    rules.normalise(notebook)
    assert notebook.cells[3].metadata == {"tags": ["hide-input"], "mystnb": {"image": {"alt": "x"}}}
    assert notebook.metadata["title"] == "mine"


def test_ids_stay_when_they_are_valid_and_are_made_the_same_way_when_not():
    notebook = chapter()
    kept = notebook.cells[0]["id"]
    notebook.cells[1]["id"] = kept  # a copied cell
    notebook.cells[2]["id"] = "not valid!"
    del notebook.cells[3]["id"]
    again = copy.deepcopy(notebook)
    ids = [cell["id"] for cell in rules.normalise(notebook).cells]
    assert ids == [cell["id"] for cell in rules.normalise(again).cells]
    assert ids[0] == kept
    assert len(set(ids)) == 4
    assert all(rules.CELL_ID.fullmatch(name) for name in ids)


def test_a_cell_without_code_is_not_counted():
    cells = [new_code_cell("1"), new_code_cell("  \n"), new_code_cell("3")]
    cells[0]["execution_count"] = 9
    counts = [cell.execution_count for cell in rules.normalise(new_notebook(cells=cells)).cells]
    assert counts == [1, None, 2]


def test_another_form_is_a_problem(tmp_path: Path):
    notebook = chapter()
    text = json.dumps(json.loads(rules.text_of(notebook)), indent=2)
    assert "not in the committed form" in "\n".join(rules.problems(notebook, HERE, text))


@pytest.mark.parametrize("text", ["not json", '{"cells": []}', '{"nbformat": 3, "worksheets": []}', ""])
def test_a_file_that_is_no_notebook_says_so(tmp_path: Path, text: str):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.ipynb"):
        rules.read(path)


# --- what may not be there ---


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (stream("UserWarning: old\n", "stderr"), "stderr"),
        (new_output("error", ename="KeyError", evalue="'a'", traceback=[]), "an error is stored: KeyError"),
        (image(alt=None), "no alt text"),
        (image(alt=" "), "no alt text"),
        (image(plain=""), "no text/plain twin"),
        (image(plain="<Figure size 640x480 with 1 Axes>"), "raw figure"),
        (new_output("execute_result", data={"text/plain": "<Axes: title='x'>"}), "raw figure"),
        (stream("saved to /home/ada/book/x\n"), "a folder of the machine"),
        (stream(f"{Path.home()}/x\n"), "a folder of the machine"),
        (stream("C:\\Users\\ada\\x"), "a folder of the machine"),
        (new_output("execute_result", data={"text/plain": "<object at 0x7f3a2c1d5e80>"}), "address"),
        (stream("100%|██████████| 3/3 [00:00<00:00, 99.0it/s]"), "progress bar"),
        (stream("1\r2\r3\n"), "progress bar"),
        (
            new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}),
            "a widget",
        ),
    ],
)
def test_an_output_that_may_not_be_committed(output, problem: str):
    assert problem in problems(chapter(output))


@pytest.mark.parametrize("text", ["50% of them | all\n", "a\r\nb\n", "at 0x7f in hexadecimal\n", "under /data\n"])
def test_an_output_that_only_looks_like_one(text: str):
    assert problems(chapter(stream(text))) == ""


@pytest.mark.parametrize(
    ("prose", "problem"),
    [
        ("```{figure} x.png\n```", "the directive {figure}"),
        (":::{margin}\nx\n:::", "the directive :::{margin}"),
        ("See {doc}`intro`.", "the role {doc}`intro`"),
        ("As {cite:t}`vaswani2017` says.", "the role {cite:t}"),
        ("See {numref}`fig-1`.", "the role {numref}"),
        ("(a-target)=\n## Heading", "the target (a-target)="),
        ("It is {{ version }}.", "the substitution"),
        ("![](x.png)", "no alt text"),
        ('<img src="x.png">', "no alt text"),
        ('<img src="x.png" alt="">', "no alt text"),
    ],
)
def test_prose_that_a_reader_of_the_notebook_would_see_raw(prose: str, problem: str):
    assert problem in problems(chapter(prose=prose))


@pytest.mark.parametrize(
    "prose",
    [
        "As [Vaswani et al. (2017)](../../book/references.md#vaswani2017) say, see {eq}`attention`.",
        ":::{note} Title\nx\n:::\n\n::::{important}\n:::{dropdown} Show\nx\n:::\n::::",
        "```{mermaid}\nflowchart LR\n A --> B\n```",
        "```python\nx = '{doc}`a`'\n```\n\nand `:::{margin}` in code",
        "$$\n\\frac{{a}}{b}\n$$ (sum)\n\n$x_{{i}}$",
        "![a cat](cat.png) <img src='x.png' alt='a dog'>",
        "| a | b |\n|---|---|\n| 1 | 2 |",
    ],
)
def test_prose_that_every_reader_sees_right(prose: str):
    assert problems(chapter(prose=prose)) == ""


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ("seed = 3  # no type", "name: type = value"),
        ("seed: int = 3", "no help"),
        ("seed: int  # no value", "name: type = value"),
        ("import torch", "name: type = value"),
        ("seed: int = ", "not Python"),
    ],
)
def test_a_parameter_without_type_value_or_help(parameters: str, problem: str):
    assert problem in problems(chapter(parameters=parameters))


def test_one_parameters_cell_and_the_first():
    notebook = chapter()
    notebook.cells[1].metadata = nbformat.from_dict({})
    assert "there are 0" in problems(notebook)
    notebook.cells[3].metadata["tags"] = ["parameters"]
    assert "first code cell" in problems(notebook)


# --- what stands in a reader's way ---

WALL = "from llm_core.figures import (\n" + "".join(f"    name{n},\n" for n in range(5)) + ")\nuse_style()"
FIGURE = "from llm_core.figures import show\nshow(fig, alt='a', caption='b')"


@pytest.mark.parametrize(
    ("code", "outputs", "fold", "problem"),
    [
        (WALL, [], "hide-cell", "8 lines of imports"),
        ("import math\n" * 7, [], "hide-input", "7 lines of imports"),
        ("assert seed == 3\nassert_close(a, b)", [], "hide-cell", "only asserts"),
        ("import torch\nfor x in y:\n    torch.testing.assert_close(x, 3)", [], "hide-input", "only asserts"),
        (FIGURE, [image()], "hide-input", "draws a figure"),
    ],
)
def test_what_shows_the_reader_nothing_is_folded(code: str, outputs: list, fold: str, problem: str):
    # A second output, so that the chapter has one in any case, stands in a cell of its own.
    def made(*tags: str):
        notebook = chapter(code=code, tags=tags)
        notebook.cells[3]["outputs"] = outputs
        notebook.cells.append(new_code_cell("print(1)", outputs=[stream("1\n")], id="last"))
        return notebook

    assert problem in problems(made())
    assert problems(made(fold)) == ""


@pytest.mark.parametrize(
    ("code", "tags"),
    [
        ("import math\n" * 6, ()),  # few
        ("assert seed == 3\nprint(7)", ()),  # part of what is shown
        ("for x in y:\n    x += 1\n    assert x", ()),  # computes
        (FIGURE.replace("llm_core.figures", "elsewhere"), ()),  # another show
        ("%timeit f(x)", ()),  # not plain Python
        ("x = 'https://example.org/" + "a" * 80 + "'", ()),  # an address cannot be broken
        ("x" * 76, ()),
    ],
)
def test_what_may_be_seen_is_not_folded(code: str, tags: tuple[str, ...]):
    assert problems(chapter(code=code, tags=tags)) == ""


def test_a_figure_is_not_folded_away_with_its_code():
    assert "hide-input" in problems(chapter(image(), code=FIGURE, tags=("hide-cell",)))


@pytest.mark.parametrize(
    ("code", "output", "problem"),
    [
        ("x = 1\n" + "y" * 77, stream("7\n"), "more than 76 columns, in line 2"),
        ("print(inspect.getsource(f))", stream("7\n"), "show_source"),
        ("print(7)", stream("True\n"), "print what was measured"),
        ("print(7)", stream("1\nover 80 %: False\n"), "'over 80 %: False'"),
        ("7", new_output("execute_result", data={"text/plain": "True"}), "print what was measured"),
        ("print(7)", stream("a" * 77 + "\n"), "prints 77 columns"),
    ],
)
def test_code_and_text_that_a_reader_cannot_use(code: str, output, problem: str):
    assert problem in problems(chapter(output, code=code))


@pytest.mark.parametrize("text", ["may attend: 3 of 4\n", "tensor([True, False])\n", "It is True\n", "a" * 76 + "\n"])
def test_text_that_a_reader_can_use(text: str):
    assert problems(chapter(stream(text))) == ""


def test_a_truth_that_nobody_compares_is_no_problem():
    assert problems(chapter(stream("faster: True\n"), tags=(rules.UNCOMPARED,))) == ""


def test_the_article_is_named_in_its_own_section_only():
    own = "## Where the article went wrong\n\nThe article says 4."
    assert problems(chapter(prose=own)) == ""
    assert problems(chapter(prose=f"Text.\n\n{own}")) == ""
    assert "the article is named before" in problems(chapter(prose=f"The article says 4.\n\n{own}"))
    assert "the article is named before" in problems(chapter(prose="As the article says."))


def test_an_exercise_is_laid_out_as_its_author_likes():
    path = Path("chapters/01_background/exercises/x.ipynb")
    notebook = chapter(code="assert check(attention)")
    for cell in notebook.cells[1::2]:
        cell["outputs"], cell["execution_count"] = [], None
    assert problems(notebook, path) == ""


def test_a_title_a_cost_label_and_outputs():
    notebook = chapter()
    notebook.cells[0]["source"] = "No title."
    assert "title" in problems(notebook)
    assert "no cost label" in problems(notebook)
    notebook.cells[3]["outputs"] = []
    assert "no output is stored" in problems(notebook)


def test_an_exercise_is_committed_without_outputs():
    path = Path("chapters/01_background/exercises/x.ipynb")
    notebook = chapter()
    assert "committed without outputs" in problems(notebook, path)
    for cell in notebook.cells[1::2]:
        cell["outputs"], cell["execution_count"] = [], None
    notebook.cells[0]["source"] = "# An exercise"
    assert problems(notebook, path) == ""


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("# T\n\n**Cost:** about 5 s and 200 MB on two cores.", (5, 200)),
        ("# T\n\nCost: 1.5 minutes, 1.2 GB", (90, 1200)),
        ("# T\n\nCost: little", None),
    ],
)
def test_the_cost_label_is_read(text: str, label: tuple[float, float] | None):
    assert rules.cost_label(new_notebook(cells=[new_markdown_cell(text)])) == label


def test_writing_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]):
    import notebooks

    path = write("1 + 1")
    before = path.read_text()

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks.os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        notebooks.write(path, "new")
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
