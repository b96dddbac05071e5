"""Which notebook imports what from the package: the map that joins chapters and API reference, read off the imports."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bookext.numbering import chapter_number

PACKAGE = "llm_core"
TITLE = re.compile(r"^# +(.+?) *$", re.MULTILINE)
MAGIC = re.compile(r"^\s*[%!?]")


@dataclass(frozen=True)
class Notebook:
    """A notebook, and what it imports: module -> names; a module imported as a whole has none."""

    docname: str
    title: str
    imports: Mapping[str, tuple[str, ...]]

    @property
    def label(self) -> str:
        """The title with the chapter's number, where it has one."""
        number = chapter_number(self.docname)
        return f"{'.'.join(map(str, number))} {self.title}" if number else self.title

    @property
    def kind(self) -> str:
        """Chapter, exercise or study: by its folder."""
        folder = self.docname.split("/")[-2]
        return {"exercises": "exercise", "studies": "study"}.get(folder, "chapter")


@dataclass(frozen=True)
class Package:
    """The modules of the package in `root`, read without importing them."""

    root: Path
    name: str = PACKAGE
    _trees: dict[str, ast.Module] = field(default_factory=dict, compare=False)
    _imported: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict, compare=False)

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Full name of every public module and package -> its file."""
        found = {}
        for path in sorted((self.root / self.name).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            # Deeper lie the exercises, a folder each, with their solutions: no reference shows them.
            hidden = any(part.startswith("_") for part in name.split("."))
            if len(path.relative_to(self.root).parts) <= 3 and not hidden:
                found[name] = path
        return found

    def tree(self, module: str) -> ast.Module:
        """The syntax tree of a module."""
        if module not in self._trees:
            self._trees[module] = ast.parse(self.modules[module].read_text(encoding="utf-8"))
        return self._trees[module]

    def summary(self, module: str) -> str:
        """The first line of a module's docstring."""
        return (ast.get_docstring(self.tree(module)) or "").split("\n", 1)[0]

    def inside(self, top: str) -> list[str]:
        """The modules that lie directly in a package."""
        return [module for module in self.modules if module.rpartition(".")[0] == top]

    def imported(self, module: str) -> list[tuple[str, str, str]]:
        """What a module imports from the package, as `imports_of` gives it; parsed and walked once."""
        if module not in self._imported:
            self._imported[module] = list(imports_of(self.tree(module))) if module in self.modules else []
        return self._imported[module]

    def home(self, module: str, name: str) -> tuple[str, str]:
        """Where a name that is imported from `module` is defined: its module and its name there.

        A name that is a module itself has "" for its name.
        """
        if f"{module}.{name}" in self.modules:
            # `llm_core.figures.table` could be both: what __init__ imports under that name hides the module.
            hidden = any(alias == name for _, _, alias in self.imported(module))
            if not hidden:
                return f"{module}.{name}", ""
        for source, original, alias in self.imported(module):
            if alias == name and source in self.modules and source != module:
                return self.home(source, original)
        return module, name


def imports_of(tree: ast.AST, package: str = PACKAGE) -> Iterator[tuple[str, str, str]]:
    """Every import from the package: module, name there ("" for the module as a whole), name here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            for alias in node.names:
                yield node.module, alias.name, alias.asname or alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    yield alias.name, "", alias.asname or alias.name


def read_notebook(path: Path, root: Path, package: Package) -> Notebook:
    """A notebook's title and its imports from the package, each name where it is defined."""
    # As JSON: nbformat would hold every stored picture against its schema, in each build.
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    titles = [match[1] for kind, text in texts if kind == "markdown" and (match := TITLE.search(text))]
    docname = path.relative_to(root).with_suffix("").as_posix()
    found: dict[str, set[str]] = {}
    for kind, text in texts:
        if kind != "code":
            continue
        source = "\n".join("" if MAGIC.match(line) else line for line in text.split("\n"))
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue  # a cell of another language, or one that shows an error
        for module, name, _ in imports_of(tree):
            where, what = package.home(module, name) if name else (module, "")
            found.setdefault(where, set()).update({what} - {""})
    imports = {module: tuple(sorted(found[module])) for module in sorted(found)}
    return Notebook(docname, titles[0] if titles else docname, imports)


def read_notebooks(root: Path, package: Package) -> list[Notebook]:
    """Every notebook of the chapters, chapters first."""
    paths = [path for path in sorted((root / "chapters").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    notebooks = [read_notebook(path, root, package) for path in paths]
    return sorted(notebooks, key=lambda notebook: (notebook.kind, notebook.docname))
