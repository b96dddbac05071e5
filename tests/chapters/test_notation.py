"""The letters of formulas are those of the notation page, and the letters of sizes mean sizes only."""

from __future__ import annotations

import re
from pathlib import Path

import notebook_rules as rules
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*/**/*.ipynb"))

CODE = re.compile(r"^(`{3,}).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$(?!\$)", re.DOTALL)
# What is spelled out is no letter, and neither are the commands that are left once Greek is taken.
WORDS = re.compile(r"\\(?:text|operatorname|mathrm|mathsf|label|tag)\*?\s*\{[^{}]*\}|\\(?:begin|end)\{[^}]*\}")
GREEK = re.compile(
    r"\\(var)?(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|psi|omega|"
    r"Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell|nabla|mathbb|bar|hat)(?![A-Za-z])"
)

# K, S and V are matrices as well, with indices; the notation page says so.
SIZES = set("BTDHEFL")


def formulas(markdown: str) -> list[str]:
    """Every formula of a text, in a line or by itself."""
    return [displayed or inline for displayed, inline in FORMULA.findall(CODE.sub(" ", markdown))]


def letters(formula: str) -> set[str]:
    """The letters that stand for something, Greek ones and accents by their names."""
    plain = WORDS.sub(" ", formula)
    greek = {"".join(parts) for parts in GREEK.findall(plain)}
    return greek | set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", plain)))


def misused(formula: str) -> set[str]:
    """Sizes that are written as something else: a function, one of several, what a derivative is taken of."""
    plain = WORDS.sub(" ", formula).replace("\\mathbb{E}", " ")
    plain = re.sub(r"\\(?:left|big|Big|bigl|Bigl|[!,;])", "", plain)
    plain = re.sub(r"[_^]\{[^{}]*\}", lambda match: match[0].lower(), plain)  # an index is no size
    return {
        found for found in re.findall(r"([A-Z])\s*[_(]|(?:\\partial|\\nabla)\s*([A-Z])", plain) for found in found
    } & SIZES


def known() -> set[str]:
    """The letters of the notation page, those of the sizes included."""
    page = (ROOT / "book/notation.md").read_text(encoding="utf-8")
    sizes = re.findall(r"^\| ([A-Z]) \|", page, re.MULTILINE)
    return set(sizes).union(*map(letters, formulas(page)))


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in rules.read(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "chapters").as_posix())
def test_every_letter_is_on_the_notation_page(path: Path) -> None:
    page = known()
    unknown = {formula: letters(formula) - page for formula in formulas(prose(path))}
    assert {formula: missing for formula, missing in unknown.items() if missing} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "chapters").as_posix())
def test_the_letter_of_a_size_means_nothing_else(path: Path) -> None:
    found = {formula: misused(formula) for formula in formulas(prose(path))}
    assert {formula: sizes for formula, sizes in found.items() if sizes} == {}


def test_letters_are_found() -> None:
    text = "`$a$`, $x_i$, $$\\operatorname{LN}(y)\n= \\frac{z}{\\text{words } } \\varepsilon$$, \\$5; $Q\\mathrm{d}K$"
    assert [letters(formula) for formula in formulas(text)] == [{"x", "i"}, {"y", "z", "varepsilon"}, {"Q", "K"}]


@pytest.mark.parametrize("formula", ["H(p)", r"D_r", r"\nabla L", r"\frac{\partial L}{\partial w}", r"D\big(p\big)"])
def test_another_use_of_a_size_is_seen(formula: str) -> None:
    assert misused(formula)


@pytest.mark.parametrize(
    "formula", [r"2 L D^2", r"W_{D}", r"\mathbb{E}[x]", r"\mathrm{head}_H", "S_{ij}", r"T \cdot (S + 1)"]
)
def test_a_size_is_a_size(formula: str) -> None:
    assert not misused(formula)
