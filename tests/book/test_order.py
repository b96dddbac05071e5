"""One order of reading: folders, table of contents, section pages, map and prerequisites agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bookkit import contents

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "chapters"
SECTIONS = sorted(path for path in CHAPTERS.iterdir() if re.match(r"\d\d_", path.name))


def numbered(folder: Path) -> list[Path]:
    """The notebooks of a folder, in the order of their numbers."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def markdown(path: Path) -> str:
    """The Markdown of a notebook, cell after cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def title(path: Path) -> str:
    """A notebook's heading."""
    found = re.search(r"^# (.+?)\s*$", markdown(path), re.M)
    assert found, f"{path} has no title"
    return found[1]


def docname(path: Path) -> str:
    """A page's name in the table of contents."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def work_of(chapter: Path) -> list[Path]:
    """The exercises and studies that carry a chapter's number."""
    number = chapter.name[:3]
    return [
        path
        for kind in ("exercises", "studies")
        for path in numbered(chapter.parent / kind)
        if path.name.startswith(number)
    ]


def test_contents_follow_the_folders() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry for part in toc["parts"] for entry in part["chapters"] if entry["file"].startswith("chapters/")]

    def branch(path: Path, below: list[dict[str, Any]]) -> dict[str, Any]:
        return {"file": docname(path)} | ({"sections": below} if below else {})

    assert listed == [
        branch(
            section / "index.md",
            [branch(chapter, [branch(work, []) for work in work_of(chapter)]) for chapter in numbered(section)],
        )
        for section in SECTIONS
    ]


def test_no_notebook_stands_outside_the_order() -> None:
    pages = set(contents())
    everything = {docname(path) for path in CHAPTERS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert everything <= pages


@pytest.mark.parametrize("section", SECTIONS, ids=lambda path: path.name)
def test_section_page_lists_its_chapters_and_their_work(section: Path) -> None:
    text = (section / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\.\d+) \| \[([^]]+)\]\(([^)]+)\) \| .+ \| (.*) \|$", text, re.M)
    chapters = numbered(section)
    assert [row[2] for row in rows] == [path.name for path in chapters]
    for (number, name, _, work), path in zip(rows, chapters, strict=True):
        assert number == f"{int(section.name[:2])}.{int(path.name[:2])}"
        assert name == title(path), f"the section's page and {path.name} disagree about its title"
        links = re.findall(r"\]\(([^)]+)\)", work)
        assert links == [other.relative_to(section).as_posix() for other in work_of(path)]
    for part in ("What you will be able to do", "What you need", "What it leads to"):
        assert part in text


def test_readme_lists_every_chapter() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d\.\d+) ([^]]+)\]\(([^)]+)\) \|", text, re.M)
    chapters = [path for section in SECTIONS for path in numbered(section)]
    assert [row[2] for row in rows] == [path.relative_to(ROOT).as_posix() for path in chapters]
    for (number, name, _), path in zip(rows, chapters, strict=True):
        assert f"{number} {name}" == f"{int(path.parent.name[:2])}.{int(path.name[:2])} {title(path)}"


def test_front_page_leads_to_every_section_in_order() -> None:
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| \[([^]]+)\]\(\.\./chapters/([^/]+)/index\.md\)", text, re.M)
    assert [row[2] for row in rows] == [path.name for path in SECTIONS]
    for number, name, folder in rows:
        page = (CHAPTERS / folder / "index.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        assert int(folder[:2]) == int(number)
    first = numbered(SECTIONS[0])[0]
    begin = re.search(r"\*\*Begin here:\*\* \[[^]]+\]\(\.\./([^)]+)\)", text)
    assert begin, "the front page does not say where to begin"
    assert begin[1] == first.relative_to(ROOT).as_posix()


def test_map_shows_every_chapter() -> None:
    drawing = (ROOT / "book" / "_static" / "drawings" / "map.svg").read_text(encoding="utf-8")
    shown = re.findall(r"<tspan[^>]*>(\d\.\d+)</tspan> ([^<]+)</text>", drawing)
    wanted = [
        (f"{int(section.name[:2])}.{int(path.name[:2])}", title(path))
        for section in SECTIONS
        for path in numbered(section)
    ]
    assert shown == wanted


@pytest.mark.parametrize(
    "chapter",
    [path for section in SECTIONS for path in numbered(section)],
    ids=lambda path: f"{path.parent.name[:2]}-{path.stem}",
)
def test_a_chapter_needs_only_what_comes_before_it(chapter: Path) -> None:
    order = contents()
    text = markdown(chapter)
    need = re.search(r"^\*\*You need:\*\*(.+?)(?=^\*\*|^:::)", text, re.M | re.S)
    assert need, f"{chapter.name} does not say what one needs"
    for target in re.findall(r"\]\(([^)#]+\.ipynb)", need[1]):
        path = (chapter.parent / target).resolve()
        assert order.index(docname(path)) < order.index(docname(chapter)), f"{chapter.name} needs the later {target}"
