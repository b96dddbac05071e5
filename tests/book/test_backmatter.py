"""The pages around the chapters: bibliography, corrections, glossary, notation, front page, instructions.

They make claims about the rest of the project (chapters, commands, error messages, names in code), and these
tests hold them to it. Nothing is built here; that the pages build is a test of the book.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
from pybtex.database import Entry, parse_file

from llm_core.layers.attention import MultiHeadAttention, softmax
from llm_core.layers.masks import causal
from llm_core.models.encoder_decoder import EncoderDecoderConfig
from llm_core.models.gpt import GPTConfig

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHAPTERS = ROOT / "chapters"
PAGES = ["index", "how_to_use", "notation", "corrections", "glossary", "references"]

# Every correction, in the order of the page. A new one is entered here too; a lost one is noticed.
CORRECTIONS = [
    "1-2-word2vec-authors", "1-2-first-neural-lm", "1-2-transformer-year", "1-2-missing-steps", "1-3-gans",
    "2-2-embeddings", "2-2-bert-decoder", "2-2-three-families", "2-2-output", "2-3-stop-words",
    "3-1-three-steps", "3-1-depth", "3-1-multi-layer", "3-2-joint-training", "3-3-one-pass",
    "3-4-word2vec", "3-4-decoder-layer", "3-4-validation",
    "4-1-scale", "4-1-matrices", "4-1-split", "4-1-projections", "4-2-scores", "4-2-indices", "4-2-output-projection",
    "5-1-environment", "5-2-tokenizer-class", "5-2-dump", "5-2-cleaning", "5-2-one-call", "5-2-model-class",
    "5-2-targets", "5-2-learning-rate", "5-3-tokenizer-output", "5-3-load-weights", "5-3-decode-predict",
    "5-3-full-stop",
    "6-1-bert-writes", "6-1-assistants", "6-5-longer-text",
    "7-1-gpt2-title", "7-1-untraceable", "7-3-krause", "7-3-slp-title", "8-1-size",
    "9-6-data-parallel", "9-6-model-parallel", "9-6-mixed-precision", "9-6-memory", "10-3-names", "author-line",
]  # fmt: skip


def page(name: str) -> str:
    """A page's source."""
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


@cache
def notebook_text(path: Path) -> str:
    """The Markdown of a notebook, cell after cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def notebooks() -> list[Path]:
    """Every committed notebook, exercises too."""
    return [path for path in sorted(CHAPTERS.rglob("*.ipynb")) if not any(part[0] == "." for part in path.parts)]


def chapters() -> list[Path]:
    """The chapters, without the exercises and studies."""
    return [path for path in notebooks() if path.parent.name not in {"exercises", "studies"}]


def sources() -> dict[Path, str]:
    """All text that may cite."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(BOOK.glob("*.md"))} | {
        path: notebook_text(path) for path in notebooks()
    }


# --- bibliography -----------------------------------------------------------------------------------

NOT_CONFIRMED = "## Not confirmed\n"


@cache
def bibliography() -> dict[str, Entry]:
    return dict(parse_file(str(BOOK / "references.bib"), bib_format="bibtex").entries)


def citations(text: str) -> set[str]:
    """The keys a text cites, by role or by a link to the bibliography."""
    by_role = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    by_link = re.findall(r"references\.md#([\w:-]+)", text)
    return {key.strip() for keys in by_role for key in keys.split(",")} | set(by_link)


@pytest.mark.parametrize("key", bibliography())
def test_entry_is_complete(key: str) -> None:
    entry = bibliography()[key]
    assert entry.persons.get("author"), f"{key} has no author"
    assert entry.fields.get("title"), f"{key} has no title"
    assert re.fullmatch(r"(19|20)\d\d", entry.fields.get("year", "")), f"{key} has no year of four digits"
    assert {"booktitle", "journal", "publisher", "institution", "howpublished", "eprint"} & set(entry.fields), (
        f"{key} does not say where it appeared"
    )
    arxiv = entry.fields.get("eprint")
    if arxiv is not None:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", arxiv), f"{key}: {arxiv!r} is not an arXiv identifier"
        assert entry.fields.get("archiveprefix") == "arXiv", f"{key}: eprint needs archiveprefix = {{arXiv}}"
        assert 2000 + int(arxiv[:2]) <= int(entry.fields["year"]), f"{key}: published before its own preprint"
        assert 1 <= int(arxiv[2:4]) <= 12, f"{key}: {arxiv!r} names no month"
    if "doi" in entry.fields:
        assert re.fullmatch(r"10\.\d{4,9}/\S+", entry.fields["doi"]), f"{key}: a bare DOI begins with 10."
    if "url" in entry.fields:
        assert re.fullmatch(r"https?://\S+", entry.fields["url"]), f"{key}: not an address"


def test_no_work_is_listed_twice() -> None:
    for field in ("title", "eprint", "doi", "url"):
        values = [re.sub(r"[\W_]+", "", e.fields[field]).lower() for e in bibliography().values() if field in e.fields]
        twice = {value for value in values if values.count(value) > 1}
        assert not twice, f"the same {field} stands in several entries: {twice}"


def test_cited_works_exist_and_listed_works_are_cited() -> None:
    # A list of what is not confirmed is no use of a work.
    cited = {key: path for path, text in sources().items() for key in citations(text.split(NOT_CONFIRMED)[0])}
    unknown = {key: str(path.relative_to(ROOT)) for key, path in cited.items() if key not in bibliography()}
    assert not unknown, f"not in references.bib: {unknown}"
    unused = set(bibliography()) - set(cited)
    assert not unused, f"in references.bib, and cited nowhere: {sorted(unused)}"


def test_every_entry_is_confirmed_or_listed_as_not_confirmed() -> None:
    """A field `confirmed` says what agreed and with which public page; every entry without one is listed."""
    _, _, section = page("references").partition(NOT_CONFIRMED)
    open_ends = {key for key, entry in bibliography().items() if "confirmed" not in entry.fields}
    assert citations(section) == open_ends, 'the list "Not confirmed" and the entries without `confirmed` differ'
    for key in set(bibliography()) - open_ends:
        seen = bibliography()[key].fields["confirmed"]
        for part in seen.split("; "):
            assert re.search(r"https?://\S+\.\w+", part), f"{key}: no public page in {part!r}"
        for what in ("author", "title", "year"):
            assert "in full: " in seen or what in seen, f"{key}: not confirmed as long as the {what} is not"


# --- corrections ------------------------------------------------------------------------------------


@cache
def corrections() -> dict[str, str]:
    """The page's entries by their labels, each up to the next heading."""
    entry = r"^\(correction-([\w-]+)\)=\n(### .*?)(?=^\(correction-|^## |\Z)"
    return dict(re.findall(entry, page("corrections"), re.MULTILINE | re.DOTALL))


def part(entry: str, name: str) -> str:
    """One of an entry's bullets."""
    found = re.search(rf"^- \*\*{name}\b.*$", entry, re.M)
    assert found, f"no bullet **{name}** in: {entry.splitlines()[0]}"
    return found.group()


def linked_chapters(entry: str) -> list[Path]:
    """The chapters that an entry links to."""
    return [(BOOK / target).resolve() for target in re.findall(r"\]\((\.\./chapters/[^)#]+)", entry)]


def test_every_correction_is_there_once_and_in_order() -> None:
    labels = re.findall(r"^\(correction-([\w-]+)\)=$", page("corrections"), re.M)
    assert labels == CORRECTIONS
    assert list(corrections()) == CORRECTIONS, "a label has no heading below it"


def test_overview_names_every_correction_with_its_heading() -> None:
    overview = page("corrections").split("## Overview")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| \[(.+)\]\(#correction-([\w-]+)\) \|$", overview, re.M)
    assert [label for _, _, label in rows] == CORRECTIONS
    for section, text, label in rows:
        assert f"### {text}" == corrections()[label].splitlines()[0], f"overview and heading differ: {label}"
        if label != "author-line":
            first = re.match(r"\d+(\.\d+)?", section)
            assert first, f"no section number in {section!r}"
            assert first.group().split(".") == label.split("-")[:2], f"{section}: {label}"


@pytest.mark.parametrize("label", CORRECTIONS)
def test_correction_is_complete(label: str) -> None:
    entry = corrections()[label]
    for name in ("The article", "What is so"):
        assert len(part(entry, name)) > 40
    source = part(entry, "Source")
    assert re.search(r"\{cite:[pt]\}`|\]\(https?://|No source needed: ", source), "no source, and no word why not"
    where = part(entry, "In this book")
    assert linked_chapters(where) or "Planned:" in where or re.search(r"\]\(\w+\.md\)|Left out", where)
    for path in linked_chapters(entry):
        assert path.is_file(), f"there is no {path.relative_to(ROOT)}"


PAIRS = [(label, path) for label, entry in corrections().items() for path in dict.fromkeys(linked_chapters(entry))]


@pytest.mark.parametrize(("label", "path"), PAIRS, ids=[f"{label}-{path.stem}" for label, path in PAIRS])
def test_chapter_links_back_to_correction(label: str, path: Path) -> None:
    assert f"corrections.md#correction-{label})" in notebook_text(path), (
        f"the correction says that {path.relative_to(ROOT)} shows it; that notebook should link to "
        f"../../book/corrections.md#correction-{label}"
    )


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_correction_links_back_to_chapter(path: Path) -> None:
    for label in re.findall(r"corrections\.md#correction-([\w-]+)", notebook_text(path)):
        assert label in corrections(), f"{path.name} links to the correction {label!r}, which is not there"
        assert path in linked_chapters(corrections()[label]), f"the correction {label!r} should link to {path.name}"


def test_classes_that_are_said_not_to_exist_do_not_exist() -> None:
    import tokenizers
    import transformers

    names = dir(transformers)  # getattr would import what it finds, and with it half the library
    assert not hasattr(transformers, "WordPieceTokenizer")
    assert not hasattr(transformers, "TransformerModel")
    assert "BertTokenizer" in names
    assert hasattr(tokenizers.models, "WordPiece")
    assert not [name for name in names if name.startswith("TF")], "the environment entry says there is no TensorFlow"
    stated = set(re.findall(r"false in version ([\d.]+)\.", page("corrections")))
    assert stated == {transformers.__version__}, "state the version that this was checked with"


def test_cleaning_does_what_the_correction_says() -> None:
    def clean(text: str) -> str:
        text = re.sub(r"<.*?>", "", text)
        return re.sub(r"[^a-zA-Z\s]", "", text).lower()

    entry = corrections()["5-2-cleaning"]
    for before, after in re.findall(r"\*(\S+?)\* becomes \*(\S+?)\*", entry):
        assert clean(before) == after
    assert "日本語 becomes nothing" in entry
    assert clean("日本語") == ""
    assert clean("{{convert|1.5|km}}") == "convertkm"
    assert clean("&lt;ref&gt;") == "ltrefgt"


# --- the other pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    text = page(name)
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)", text):
        path, _, label = target.partition("#")
        file = (BOOK / path).resolve()
        assert file.is_file(), f"{name}.md links to {target}"
        if label and file.suffix == ".md":
            body = file.read_text(encoding="utf-8")
            slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", body, re.M)}
            assert f"({label})=" in body or label in slugs, f"{name}.md links to {target}"


def test_front_page_cites_the_version_that_is_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version {project['version']}" in page("index")


def test_notation_uses_the_names_of_the_code() -> None:
    names = {field.name for config in (GPTConfig, EncoderDecoderConfig) for field in dataclasses.fields(config)}
    names |= set(inspect.signature(MultiHeadAttention.__init__).parameters)
    rows = re.findall(r"^\| ([A-Z]) \| .+? \| `(\w+)` \|", page("notation"), re.M)
    assert "".join(letter for letter, _ in rows) == "BTSDHKEFVL"
    for letter, name in rows[3:]:
        assert name in names, f"no part of the package calls {letter} {name!r}"


def test_notation_draws_masks_as_the_code_makes_them() -> None:
    drawings = re.findall(r"^```text\n(.+?)^```", page("notation"), re.M | re.S)
    for drawing, mask in zip(drawings, (causal(4), causal(2, 4)), strict=True):
        marks = [[mark == "■" for mark in re.findall("[■·]", line)] for line in drawing.splitlines()[1:]]
        assert marks == mask.tolist()


def test_notation_computes_its_example_rightly() -> None:
    weights = softmax(torch.tensor([1.0, 3.0, float("-inf")]))
    shown = ",\\ ".join(f"{weight:.2f}".removesuffix("0.00") or "0" for weight in weights.tolist()[:2])
    assert shown in page("notation")
    assert weights[2] == 0


def glossary() -> list[tuple[list[str], str]]:
    """Names and definition of every entry."""
    body = re.search(r"```\{glossary\}\n(.+?)\n```", page("glossary"), re.S)
    assert body
    entries = []
    for block in body.group(1).strip().split("\n\n"):
        lines = block.splitlines()
        names = [line for line in lines if not line.startswith(" ")]
        entries.append((names, " ".join(line.strip() for line in lines[len(names) :])))
    return entries


def test_glossary_is_in_order_and_names_nothing_twice() -> None:
    first = [names[0].lower().replace("-", " ") for names, _ in glossary()]
    assert first == sorted(first)
    names = [name for entry, _ in glossary() for name in entry]
    assert len(names) == len(set(names))
    assert len(first) >= 60


def test_glossary_entries_are_defined_and_have_a_chinese_term() -> None:
    for names, definition in glossary():
        assert len(definition) > 20, names[0]
        assert definition.endswith((".", "`")), f"{names[0]}: a definition ends with a full stop or a citation"
        for term in re.findall(r"\{term\}`(?:[^`<]+<)?([^`<>]+)>?`", definition):
            assert any(term in others for others, _ in glossary()), f"{names[0]} refers to {term}"
        # Names that Chinese texts leave as they are.
        kept = {"ALiBi", "BERT", "BF16", "GELU", "GPT", "SwiGLU", "Transformer", "WordPiece", "logit", "softmax"}
        chinese = any(re.search(r"[\u4e00-\u9fff]", name) for name in names)
        assert chinese != (names[0] in kept), names[0]


def test_instructions_name_commands_that_exist() -> None:
    text = page("how_to_use") + page("index")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (book|lab|test|notebooks|clean|help|[a-z]+-[a-z]+)\b", text)):
        assert re.search(rf"^{target}:", makefile, re.M), f"there is no make {target}"
    for option in re.findall(r"make test ([A-Z]+)=", text):
        assert option in makefile
    for script in re.findall(r"book\\_tools\\(\w+\.py)", text):
        assert (BOOK / "_tools" / script).is_file()
    cli = (ROOT / "llm_core" / "cli.py").read_text(encoding="utf-8")
    for command in set(re.findall(r"llm-core exercise (\w+)", text)):
        assert re.search(rf"def {command}\w*\(|[\"']{command}[\"']", cli), f"there is no llm-core exercise {command}"


def test_instructions_quote_messages_that_exist() -> None:
    tools = "".join((BOOK / "_tools" / name).read_text(encoding="utf-8") for name in ("bootstrap.sh", "environment.py"))
    quoted = re.findall(r"^\| `((?:This|Python|The) [^`]+)`", page("how_to_use"), re.M)
    assert len(quoted) >= 3
    for message in quoted:
        assert message in tools, f"no tool says {message!r}"
