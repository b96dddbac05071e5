"""MyST to plain Markdown, and what else of the extension works without Sphinx."""

from __future__ import annotations

from pathlib import Path

import pytest
from bookext.bibliography import address_of, authors_of, names_entry, plain, year_of
from bookext.colab import absolute_link, install_source, requirement_of
from bookext.markdown import Notebook, leftovers
from bookext.mermaid import diagram_name, draw, inline_svg
from bookext.numbering import chapter_number
from bookext.repository import Place, find_place, tidy_url
from bookkit import BIBLIOGRAPHY
from pybtex.database import parse_string

ENTRIES = parse_string(BIBLIOGRAPHY, "bibtex").entries
ARXIV = "https://arxiv.org/abs/1706.03762"


def convert(*cells: str) -> list[str]:
    """The cells of one notebook, converted."""
    state = Notebook(
        entries=ENTRIES,
        link=lambda target: f"https://book/{target.lstrip('./')}",
        diagram=lambda source, name: f"![{name}](data:image/png;base64,AA==)",
    )
    state.read_ahead(cells)
    return [state.plain(cell) for cell in cells]


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("{cite:p}`vaswani2017attention`", f"([Vaswani et al., 2017]({ARXIV}))"),
        ("{cite:t}`vaswani2017attention`", f"[Vaswani et al. (2017)]({ARXIV})"),
        (
            "{cite:p}`vaswani2017attention,shannon1948mathematical`",
            f"([Vaswani et al., 2017]({ARXIV}); [Shannon, 1948](https://example.org/shannon))",
        ),
        ("[Vaswani, 2017, §3](../../book/references.md#vaswani2017attention)", f"[Vaswani, 2017, §3]({ARXIV})"),
        ("{math}`x^2` {sub}`a` {abbr}`LLM (large language model)`", "$x^2$ <sub>a</sub> LLM (large language model)"),
        ("{term}`token` {doc}`the page <index>`", "token the page"),
        ("[a](../b.md#c) and ![alt](pic.png)", "[a](https://book/b.md#c) and ![alt](https://book/pic.png)"),
        ("[a](https://example.org/x_(y)) <https://example.org>", "[a](https://example.org/x_(y)) <https://example.org>"),
        ("[`code` and **bold**](b.md)", "[`code` and **bold**](https://book/b.md)"),
        ("`{cite:p}` and `[a](b.md)` stay", "`{cite:p}` and `[a](b.md)` stay"),
        ("costs $5 and $6, $x](y)$ is math", "costs $5 and $6, $x](y)$ is math"),
        ("text[^n]\n\n[^n]: the note", "text<sup>1</sup>\n\n<sup>1</sup> the note"),
        (":::{note}\nbody\n:::", "> **Note**\n>\n> body"),
        (":::{tip} Own {cite:t}`shannon1948mathematical`\n:class: dropdown\n\nbody\n\nmore\n:::",
         "> **Own [Shannon (1948)](https://example.org/shannon)**\n>\n> body\n>\n> more"),
        ("::::{warning}\na\n\n:::{note}\nb\n:::\n::::", "> **Warning**\n>\n> a\n>\n> > **Note**\n> >\n> > b"),
        (":::{dropdown} Answer\nIt is $x$.\n:::", "<details>\n<summary>Answer</summary>\n\nIt is $x$.\n\n</details>"),
        ("```mermaid\nflowchart LR\n  accTitle: A name\n  A --> B\n```", "![A name](data:image/png;base64,AA==)"),
        ("```{mermaid}\n:alt: Other\nflowchart LR\n  A --> B\n```", "![Other](data:image/png;base64,AA==)"),
        ("```py\n'{cite:p}`k`'\n:::{note}\n(label)=\n```", "```py\n'{cite:p}`k`'\n:::{note}\n(label)=\n```"),
        ("```{code-block} python\nx = 1\n```", "```python\nx = 1\n```"),
        ("(here)=\n## Heading", '<a name="here"></a>\n\n## Heading'),
        ("% a comment\ntext\n+++\nmore", "text\nmore"),
        ("---\ntitle: x\n---\n# T", "# T"),
        ("Term\n: what it means", "- **Term**: what it means"),
        ("| a | b |\n|---|---|\n| [x](y.md) | $z$ |", "| a | b |\n|---|---|\n| [x](https://book/y.md) | $z$ |"),
    ],
)  # fmt: skip
def test_plain_form(myst: str, expected: str) -> None:
    assert convert(myst) == [expected]
    assert leftovers(expected) == []


def test_equations_are_numbered_over_the_whole_notebook() -> None:
    first, second = convert(
        "See {eq}`eq-b`.\n\n$$\na\n$$ (eq-a)\n\n$$ unlabelled $$",
        ":::{note}\n$$ b $$ (eq-b)\n:::\n\nBack to {eq}`eq-a`, [](#eq-b), [that](#eq-a).",
    )
    assert first == "See (2).\n\n$$\na \\tag{1}\n$$\n\n$$ unlabelled $$"
    assert "> $$\n> b \\tag{2}\n> $$" in second
    assert second.endswith("Back to (1), (2), that (1).")


def test_tag_goes_inside_a_numbered_environment() -> None:
    (text,) = convert("$$\n\\begin{align}\na &= b\n\\end{align}\n$$ (eq-a)")
    assert text == "$$\n\\begin{align}\na &= b\n\\tag{1} \\end{align}\n$$"


def test_a_link_to_an_own_label_stays_in_the_notebook() -> None:
    assert convert("(here)=\n## H", "[up](#here)")[1] == "[up](#here)"


@pytest.mark.parametrize(
    "myst",
    [
        "{cite:p}`nobody1900`",
        "{eq}`eq-nowhere`",
        "{doc}`index`",
        "{nonsense}`x`",
        ":::{nonsense}\nx\n:::",
        ":::{note}\nnever closed",
        "```python\nnever closed",
        ":::\nno name\n:::",
    ],
)
def test_what_has_no_plain_form_is_an_error(myst: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        convert(myst)


@pytest.mark.parametrize(
    "raw",
    ["{cite:p}`key`", ":::{note}", ":::", "(label)=", "$$ x $$ (eq)", "```{note}\nx\n```", "a[^1]", "+++", "% comment"],
)
def test_leftovers_are_seen(raw: str) -> None:
    assert leftovers(f"text\n\n{raw}\n\ntext")


def test_code_is_no_leftover() -> None:
    assert leftovers("`{cite:p}` and ```:::{note}```\n\n````\n:::{note}\n```{tip}\n```\n````\n") == []


# --- bibliography ------------------------------------------------------------------------------------


def test_short_names_of_works() -> None:
    shannon, vaswani = ENTRIES["shannon1948mathematical"], ENTRIES["vaswani2017attention"]
    assert (authors_of(shannon), year_of(shannon)) == ("Shannon", "1948")
    assert authors_of(vaswani) == "Vaswani et al."
    assert address_of(vaswani) == ARXIV
    assert plain(r"{\"O}zg{\"u}r and {GPT}") == "Özgür and GPT"
    assert names_entry("Vaswani et al., 2017, §3", vaswani)
    assert not names_entry("Vaswani et al.", vaswani)
    assert not names_entry("the paper of 2017", vaswani)


# --- repository --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@github.com:a/b.git", "https://github.com/a/b"),
        ("https://github.com/a/b", "https://github.com/a/b"),
        ("https://user:token@GitHub.com/a/b.git/", "https://github.com/a/b"),
        ("ssh://git@github.com:22/a/b.git", "https://github.com/a/b"),
        ("git://github.com/a/b", "https://github.com/a/b"),
        ("https://git.example.org:8443/x/y/z.git", "https://git.example.org:8443/x/y/z"),
        ("/srv/git/book.git", ""),
        ("file:///srv/book", ""),
        ("../book", ""),
        ("C:/repos/book", ""),
        ("", ""),
    ],
)
def test_remotes(remote: str, url: str) -> None:
    assert tidy_url(remote) == url


def test_place_takes_its_own_variables_first(tmp_path: Path) -> None:
    actions = {"GITHUB_REPOSITORY": "a/b", "GITHUB_REF_NAME": "topic", "GITHUB_REF_TYPE": "branch"}
    assert find_place(tmp_path, actions) == Place("https://github.com/a/b", "topic")
    assert find_place(tmp_path, {**actions, "GITHUB_REF_TYPE": "tag"}).branch == "main"
    assert find_place(tmp_path, {**actions, "GITHUB_REF_NAME": "7/merge", "GITHUB_HEAD_REF": "fix"}).branch == "fix"
    own = {"BOOK_REPOSITORY_URL": "https://github.com/c/d", "BOOK_REPOSITORY_BRANCH": "x", "BOOK_URL": "https://h/i/"}
    assert find_place(tmp_path, {**actions, **own}) == Place("https://github.com/c/d", "x", "https://h/i")
    assert find_place(tmp_path, {}) == Place()


def test_a_folder_inside_another_repository_is_not_that_repository() -> None:
    assert find_place(Path(__file__).parent, {}) == Place()


def test_links_out_of_a_copy() -> None:
    sources = {"book/notation.md": "book/notation", "chapters/03_x/01_y.ipynb": "chapters/03_x/01_y"}
    page = "chapters/03_x/01_y"
    published = Place("https://github.com/a/b", "main", "https://h/book")
    assert absolute_link("../../book/notation.md#n", page, sources, published) == "https://h/book/book/notation.html#n"
    assert absolute_link("#part", page, sources, published) == "https://h/book/chapters/03_x/01_y.html#part"
    assert (
        absolute_link("../../llm_core/x.py", page, sources, published)
        == "https://github.com/a/b/blob/main/llm_core/x.py"
    )
    unpublished = Place("https://github.com/a/b", "main")
    assert (
        absolute_link("../../book/notation.md", page, sources, unpublished)
        == "https://github.com/a/b/blob/main/book/notation.md"
    )
    assert absolute_link("../../book/notation.md", page, sources, Place()) == ""


def test_install_cell_names_the_clone_or_says_that_it_cannot() -> None:
    source = install_source(requirement_of(Place("https://github.com/a/b", "main")))
    assert '"llm-core @ git+https://github.com/a/b@main"' in source
    assert "torch==" in source
    assert "no remote" not in source
    assert "no remote" in install_source(requirement_of(Place()))


# --- diagrams, numbers -------------------------------------------------------------------------------


def test_diagram_names_itself() -> None:
    assert diagram_name("flowchart LR\n  accTitle:  Two steps \n  A --> B") == "Two steps"
    assert diagram_name("flowchart LR\n  A --> B") == ""


def test_inline_svg_has_its_own_identifiers_and_name() -> None:
    svg = inline_svg('flowchart LR\n  accTitle: N\n  A["输入"] --> B', 'He said "go" & went', "d1")
    assert svg.startswith("<svg")
    assert 'id="d1"' in svg
    assert 'id="merman' not in svg
    assert "#merman" not in svg
    assert 'aria-label="He said &quot;go&quot; &amp; went"' in svg
    assert "输入" in svg


def test_bad_diagram_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="label"):
        draw("flowchart LR\n  A[ --> B")


def test_chapter_numbers() -> None:
    assert chapter_number("chapters/03_algorithms/01_self_attention") == (3, 1)
    assert chapter_number("chapters/03_algorithms/exercises/01_self_attention") is None
    assert chapter_number("book/index") is None
