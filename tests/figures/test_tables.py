"""A table says the same as Markdown and as plain text; what a Markdown parser that we did not write makes of it."""

from __future__ import annotations

import html
import re

import pytest
from IPython.core.interactiveshell import InteractiveShell
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from llm_core.figures import table

HEADERS = ["$d_k$", "share `a|b`", "token"]
ROWS = [["64", "97 %", r"`\n`"], [1024, "≈ 3.2e-5 s", "$|x|$, $\\|y\\|$ and |"]]


def rendered(bundle: dict[str, str]) -> list[list[str]]:
    """The cells of the table, as the page's own parser reads them."""
    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)
    rows = re.findall(r"<tr>(.*?)</tr>", parser.render(bundle["text/markdown"]), re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def test_a_table_is_markdown_and_lines_of_text(shown):
    table(HEADERS, ROWS, caption="Which\n  width?")
    ((bundle, rest),) = shown
    assert rest == {"raw": True}
    assert bundle["text/plain"].splitlines() == [
        "**Table.** Which width?",
        "$d_k$ | share `a|b` | token",
        r"64 | 97 % | `\n`",
        r"1024 | ≈ 3.2e-5 s | $|x|$, $\|y\|$ and |",
    ]
    assert bundle["text/markdown"].startswith("**Table.** Which width?\n\n| ")
    assert rendered(bundle) == [
        ["d_k", "share a|b", "token"],
        ["64", "97 %", r"\n"],
        ["1024", "≈ 3.2e-5 s", r"\vert x\vert, \Vert y\Vert and |"],
    ]


def test_without_a_caption_there_is_the_table_alone(shown):
    table(["n"], [[1]])
    assert shown[0][0] == {"text/markdown": "| n |\n|--:|\n| 1 |", "text/plain": "n\n1"}


def test_a_plain_row_ends_where_its_text_does(shown):
    table(["n", "why"], [["1", ""], ["2", "x"]])
    assert shown[0][0]["text/plain"] == "n | why\n1 |\n2 | x"
    assert rendered(shown[0][0])[1] == ["1", ""]


@pytest.mark.parametrize("cell", [
    "0", "-1.5", "−1.5", "+3", "1,024", "3.2e-5", "97 %", "97%", "≈ 12.5 MB", "1.5×", "×2", "12 µs", "900 MB/s", "",
    "–", "nan", "10 ms",
])  # fmt: skip
def test_numbers_are_flush_right(shown, cell):
    table(["n"], [["1"], [cell]])
    assert "--:" in shown[0][0]["text/markdown"]


@pytest.mark.parametrize("cell", ["a", "3 of 4 tokens", "v2", "`7`", "1 and 2", "(2, 3)", "2.1.x"])
def test_words_are_flush_left(shown, cell):
    table(["n"], [["1"], [cell]])
    assert ":--" in shown[0][0]["text/markdown"]


def test_a_column_without_a_number_is_flush_left(shown):
    table(["n", "m"], [["", "–"]])
    table(["n", "m"], [])
    assert [bundle["text/markdown"].splitlines()[1] for bundle, _ in shown] == ["|:--|:--|"] * 2


def test_columns_stand_where_they_are_told(shown):
    table(["a", "b", "c"], [["1", "2", "x"]], align="lcr")
    assert shown[0][0]["text/markdown"].splitlines()[1] == "|:--|:-:|--:|"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], []), "got none"),
        ((["a", "b"], [["1", "2"], ["1"]]), "2 headers: row 2 has 1"),
        ((["a"], [["1", "2"]]), "1 headers: row 1 has 2"),
        ((["a"], [["x\ny"]]), "one line"),
        ((["a\n"], [["x"]]), "one line"),
    ],
)
def test_what_is_no_table_is_refused(shown, arguments, said):
    with pytest.raises(ValueError, match=said):
        table(*arguments)
    assert shown == []


@pytest.mark.parametrize(
    "options", [{"align": "l"}, {"align": "lrr"}, {"align": "lx"}, {"align": ""}, {"caption": " "}]
)
def test_options_that_do_not_fit_are_refused(shown, options):
    with pytest.raises(ValueError, match=r"align needs one letter|caption is empty"):
        table(["a", "b"], [["1", "2"]], **options)
    assert shown == []


def test_a_notebook_gets_both_forms(monkeypatch):
    """Through IPython itself: what it would send to the page."""
    published = []
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, **rest: published.append(data))
    table(["a"], [["x"]])
    assert published == [{"text/markdown": "| a |\n|:--|\n| x |", "text/plain": "a\nx"}]
