"""The reference of the package: a page for each of its folders, linked with the chapters both ways.

The pages are made from the docstrings. They are written to book/api when a build begins, and are no part of the
repository. Each says which notebooks use a module; each notebook gets a box with what it uses. Both come from the
notebooks' imports (`usage`).
"""

from __future__ import annotations

import ast
import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

from bookext.docstrings import restructured
from bookext.usage import PACKAGE, Notebook, Package, read_notebooks

FOLDER = "book/api"
KINDS = {"chapter": "Chapters", "exercise": "Exercises", "study": "Studies"}
LINKED = {"class", "exception", "function"}


def page_of(module: str) -> str:
    """The page that shows a module, that of its folder: `llm_core.layers.attention` is on book/api/layers."""
    parts = module.split(".")
    return f"{FOLDER}/{parts[1] if len(parts) > 1 else 'index'}"


def floors(root: Path) -> list[list[str]]:
    """The floors of the package, the lowest first: folders and files, as the contract in pyproject.toml has them."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["id"] == "floors":
            named = [[name.strip().strip("()") for name in layer.split("|")] for layer in contract["layers"]]
            return named[::-1]
    raise ValueError("pyproject.toml has no import-linter contract with the id 'floors'")


def module_section(package: Package, module: str, notebooks: list[Notebook]) -> list[str]:
    """The Markdown lines of a module, below its heading."""
    lines = []
    for kind, heading in KINDS.items():
        uses = [notebook for notebook in notebooks if notebook.kind == kind and module in notebook.imports]
        links = [f"[{book.label}](../../{book.docname}.ipynb)" for book in uses]
        if links:
            lines += [f"{heading} that use it: {', '.join(links)}.", ""]
    members = "\n   :members:\n   :no-value:" if has_members(package, module) else ""
    return [*lines, "```{eval-rst}", f".. automodule:: {module}{members}", "```", ""]


def folder_page(package: Package, top: str, notebooks: list[Notebook]) -> str:
    """The Markdown of the page of a folder, or of a file that lies in none: a part for each module."""
    lines = [f"# {top.removeprefix(PACKAGE + '.')}", "", *module_section(package, top, notebooks)]
    for module in package.inside(top):
        lines += [f"## {module.removeprefix(top + '.')}", "", *module_section(package, module, notebooks)]
    return "\n".join(lines)


def has_members(package: Package, module: str) -> bool:
    """Whether a module defines anything: the file of a package often holds its docstring alone."""
    kinds = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    return any(isinstance(node, kinds) for node in package.tree(module).body)


def index_page(package: Package, root: Path) -> str:
    """The Markdown of the page that lists all modules, floor by floor."""
    lines = [
        "# The package",
        "",
        f"Everything that the chapters build lives in `{PACKAGE}`. A file imports only from the floors below its own, "
        "so the list can be read from the top to the bottom. The pages are made from the docstrings.",
        "",
    ]
    for number, floor in enumerate(floors(root)):
        lines += [f"## Floor {number}", ""]
        for name in floor:
            top = f"{PACKAGE}.{name}"
            if top not in package.modules:
                continue
            lines += [f"**[{name}]({name}.md)**: {package.summary(top)}", ""]
            inner = package.inside(top)
            lines += [f"- {{py:mod}}`~{module}`: {package.summary(module)}" for module in inner]
            lines += [""] if inner else []
    return "\n".join(lines)


def write_pages(root: Path, package: Package, notebooks: list[Notebook]) -> None:
    """Write the pages whose text has changed, and remove those of modules that are gone."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        root / f"{page_of(module)}.md": folder_page(package, module, notebooks) for module in package.inside(PACKAGE)
    }
    pages[folder / "index.md"] = index_page(package, root)
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in set(folder.glob("*.md")) - set(pages):
        path.unlink()


def prepare(app: Sphinx, config: Config) -> None:
    """Write the pages before Sphinx looks for pages. A book without the package has none."""
    root = Path(app.srcdir)
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", ".*")]  # the types are not all ours
    if not (root / PACKAGE / "__init__.py").is_file():
        return
    package = Package(root)
    notebooks = read_notebooks(root, package)
    write_pages(root, package, notebooks)
    app.notebooks_of_the_package = {notebook.docname: notebook for notebook in notebooks}  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------------
# Docstrings and signatures


def convert(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring reStructuredText, in place."""
    lines[:] = restructured(lines)


def sign(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """A signature as the file has it: evaluated, the shapes would be objects of jaxtyping."""
    if what not in ("class", "exception", "function", "method"):
        return None
    if getattr(thing, "_is_protocol", False):
        return "", None  # nobody makes one
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = list(found.parameters.values())
    if what == "method" and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    found = found.replace(parameters=parameters)
    back = None if what in ("class", "exception") else found.return_annotation
    written = back if isinstance(back, str) else None
    return stringify_signature(found, show_return_annotation=False), written


def skip(app: Sphinx, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """The fields of a named tuple are described by its docstring."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def short_names(env: BuildEnvironment) -> dict[str, list[tuple[str, Any]]]:
    """The classes and functions of the package by the last part of their names."""
    known = getattr(env, "names_of_the_package", None)
    if known is None:
        known = {}
        for full, entry in env.get_domain("py").objects.items():  # type: ignore[attr-defined]
            if entry.objtype in LINKED:
                known.setdefault(full.rsplit(".", 1)[-1], []).append((full, entry))
        env.names_of_the_package = known  # type: ignore[attr-defined]
    return known


def link_short_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """`Cache` in a signature or a docstring of another module leads to the one class of that name."""
    if node.get("refdomain") != "py":
        return None
    found = short_names(env).get(node["reftarget"], [])
    if len(found) != 1:
        return None
    full, entry = found[0]
    return make_refnode(app.builder, node.get("refdoc", env.docname), entry.docname, entry.node_id, content, full)


def aim(app: Sphinx, doctree: nodes.document) -> None:
    """`Report` in a module means what the module means by it: there are several of that name in the package."""
    for node in doctree.findall(addnodes.pending_xref):
        target = node.get("reftarget", "")
        thing = getattr(sys.modules.get(node.get("py:module") or ""), target, None)
        home = getattr(thing, "__module__", None) or ""
        if node.get("refdomain") == "py" and f"{home}.".startswith(f"{PACKAGE}."):
            node["reftarget"] = f"{home}.{getattr(thing, '__qualname__', target)}"


def forget(app: Sphinx, env: BuildEnvironment) -> None:
    """The names are collected anew once all pages have been read."""
    env.names_of_the_package = None  # type: ignore[attr-defined]


def no_edit_button(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Nobody can edit a page that is made by the build."""
    if pagename.startswith(FOLDER + "/"):
        for group in context.get("header_buttons", ()):
            if "buttons" in group:
                group["buttons"] = [button for button in group["buttons"] if "/edit/" not in button.get("url", "")]


# ---------------------------------------------------------------------------------------------------------------------
# What a notebook uses


def reference(kind: str, target: str, shown: str) -> addnodes.pending_xref:
    """A link to a module or to a name of one; plain code where the reference does not describe it."""
    literal = nodes.literal("", shown, classes=["xref", "py", f"py-{kind}"])
    return addnodes.pending_xref(
        "", literal, refdomain="py", reftype=kind, reftarget=target, refexplicit=True, refwarn=False
    )


def entries(notebook: Notebook) -> Iterator[nodes.list_item]:
    """A line for each module: its name, and what is imported from it."""
    for module, names in notebook.imports.items():
        paragraph = nodes.paragraph("", "", reference("mod", module, module.removeprefix(PACKAGE + ".")))
        for number, name in enumerate(names):
            paragraph += nodes.Text(", " if number else ": ")
            paragraph += reference("obj", f"{module}.{name}", name)
        yield nodes.list_item("", paragraph)


def add_box(app: Sphinx, doctree: nodes.document) -> None:
    """End a notebook with what it uses of the package."""
    notebook = getattr(app, "notebooks_of_the_package", {}).get(app.env.docname)
    section = next(iter(doctree.findall(nodes.section)), None)
    if notebook is None or not notebook.imports or section is None:
        return
    box = nodes.admonition(classes=["from-the-package"])
    box += nodes.title("", "From the package")
    box += nodes.bullet_list("", *entries(notebook))
    for node in box.findall(addnodes.pending_xref):
        node["refdoc"] = app.env.docname
    section += box


def setup(app: Sphinx) -> None:
    """Register with Sphinx, autodoc and napoleon."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("config-inited", prepare, priority=100)
    app.connect("autodoc-process-docstring", convert, priority=400)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-updated", forget)
    app.connect("missing-reference", link_short_name)
    app.connect("doctree-read", aim)
    app.connect("doctree-read", add_box)
    app.connect("html-page-context", no_edit_button, priority=900)
