"""What a committed notebook looks like: how it is normalised, and what may not be in it.

Two things live here, both without a kernel: `normalise` gives a notebook the one form that is
committed, so that running it again without a change gives no diff; `problems` lists what a reader,
a test or the built page would stumble over.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import socket
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

Notebook = Any  # nbformat's NotebookNode: a dict whose keys are attributes too
Cell = Any

CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Without versions: a patch release of Python is no change of a notebook.
LANGUAGE_INFO = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}

# Metadata that editors and runners write about themselves. Everything else is the author's and stays.
NOISY_NOTEBOOK_METADATA = {
    "celltoolbar", "colab", "jupytext", "orig_nbformat", "papermill", "signature", "toc", "toc-autonumbering",
    "toc-showcode", "toc-showmarkdowntxt", "varInspector", "vscode", "widgets",
}  # fmt: skip
NOISY_CELL_METADATA = {
    "ExecuteTime", "collapsed", "colab", "execution", "executionInfo", "id", "jp-MarkdownHeadingCollapsed",
    "outputId", "papermill", "pycharm", "scrolled", "trusted", "vscode",
}  # fmt: skip

# nbval runs a cell with this tag, and takes whatever it prints.
UNCOMPARED = "nbval-ignore-output"
# What such a cell prints holds on every processor, but not where each product of matrices is moved on purpose: it
# counts or compares what the moved program itself does. `make test-perturbed` does not compare it.
UNDISTURBED = "undisturbed"

# What jupyterlab-myst and Sphinx both render. Citations are plain links to book/references.
ADMONITIONS = {"note", "tip", "warning", "important", "dropdown"}
ROLES = {"eq"}
FENCES = {"mermaid"}

# What the page shows of a line of code or of printed text, on a window of common width.
COLUMNS = 76
# More imports than this are a wall before the first thought.
SHOWN_IMPORTS = 6
# MyST-NB folds a cell with one of these; the second leaves its output in view.
FOLDED = {"hide-cell", "hide-input"}
FOLDED_INPUT = {"hide-input", "remove-input"}

COST = re.compile(r"\bcost\b", re.IGNORECASE)
COST_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(seconds?|s|minutes?|min)\b")
COST_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)\b")


# --- one form ---------------------------------------------------------------------------------------


def derived_id(position: int, kind: str, source: str) -> str:
    """An id for a cell that came without one: the same for the same cell at the same place."""
    return hashlib.sha256(f"{position}\0{kind}\0{source}".encode()).hexdigest()[:8]


def _joined(text: Any) -> Any:
    return "".join(text) if isinstance(text, list) else text


def _normal_outputs(cell: Cell, count: int | None) -> list[Any]:
    outputs: list[Any] = []
    for output in cell.get("outputs", []):
        output.pop("transient", None)
        if output.output_type == "stream":
            output["text"] = _joined(output.text)
            previous = outputs[-1] if outputs else None
            if previous is not None and previous.output_type == "stream" and previous.name == output.name:
                # How often a kernel flushes is chance.
                previous["text"] += output.text
                continue
        if output.output_type == "execute_result":
            output["execution_count"] = count
        outputs.append(output)
    return outputs


def normalise(notebook: Notebook) -> Notebook:
    """The notebook in its committed form. Changes the argument, and returns it."""
    seen: set[str] = set()
    count = 0
    executed = any(cell.get("execution_count") or cell.get("outputs") for cell in notebook.cells)
    for position, cell in enumerate(notebook.cells):
        cell["source"] = _joined(cell.get("source", "")).replace("\r\n", "\n").rstrip("\n")
        name = cell.get("id", "")
        if not CELL_ID.fullmatch(name) or name in seen:
            name = derived_id(position, cell.cell_type, cell.source)
            while name in seen:
                name = derived_id(position, cell.cell_type, name)
        seen.add(name)
        cell["id"] = name
        metadata = {key: value for key, value in cell.get("metadata", {}).items() if key not in NOISY_CELL_METADATA}
        if not metadata.get("tags", True):
            del metadata["tags"]
        cell["metadata"] = nbformat.from_dict(metadata)
        if cell.cell_type == "code":
            # As a kernel counts: a cell without code is not executed.
            runs = executed and bool(cell.source.strip())
            count += runs
            cell["execution_count"] = count if runs else None
            cell["outputs"] = _normal_outputs(cell, count if runs else None)
        elif not cell.get("attachments", True):
            del cell["attachments"]
    metadata = {key: value for key, value in notebook.metadata.items() if key not in NOISY_NOTEBOOK_METADATA}
    metadata["kernelspec"] = dict(KERNELSPEC)
    metadata["language_info"] = dict(LANGUAGE_INFO)
    notebook["metadata"] = nbformat.from_dict(metadata)
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    return notebook


def keep_uncompared(notebook: Notebook, stored: Notebook) -> None:
    """Give cells whose outputs nobody compares (timings) the outputs that are stored for the same code.

    So a re-run without a change gives no diff. The cell's metadata say which code was measured: an editor may
    have changed it since. Clear a cell's output to have it measured anew.
    """
    kept = {cell.get("id"): cell for cell in stored.cells if cell.get("outputs")}
    for cell in notebook.cells:
        if UNCOMPARED in cell.get("metadata", {}).get("tags", []):
            code = hashlib.sha256(_joined(cell.source).encode()).hexdigest()[:8]
            before = kept.get(cell.get("id"))
            if before is not None and before.metadata.get("measured") == code:
                cell["outputs"] = before.outputs
            cell["metadata"]["measured"] = code


def text_of(notebook: Notebook) -> str:
    """The bytes of a normalised notebook, as text: sorted keys, indent 1, one newline at the end."""
    text: str = nbformat.writes(notebook, version=nbformat.NO_CONVERT, indent=1, sort_keys=True, ensure_ascii=False)
    return text.rstrip("\n") + "\n"


def read(path: Path) -> Notebook:
    """Read a notebook of format 4. `ValueError` says what is wrong with the file."""
    try:
        notebook = nbformat.reader.reads(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error
    if notebook.get("nbformat") != 4:
        raise ValueError(f"{path} has notebook format {notebook.get('nbformat')}; save it as format 4.")
    for cell in notebook.cells:
        cell["source"] = _joined(cell.get("source", ""))
    return notebook


# --- what may not be there --------------------------------------------------------------------------


def is_exercise(path: Path) -> bool:
    """Whether a notebook is a learner's exercise: committed without outputs, run by its own tests."""
    return "exercises" in path.parts


def machine_paths() -> list[str]:
    """Folders of this very machine that an output has no business to name."""
    folders = {str(Path.home()), sys.prefix, str(Path(__file__).resolve().parents[2])}
    return sorted(folder for folder in folders if len(folder) > 4)


_ANY_MACHINE = re.compile(
    r"/home/\w+|/Users/\w+|/(?:root|tmp|private/var|var/folders)/|[A-Z]:\\\\?Users|site-packages|[\\/]ipykernel_\d+"
)
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
_BAR = re.compile(r"\d+%\|.*\||\bit/s\b|\bs/it\b|\r(?!\n)")
_RAW_FIGURE = re.compile(r"<Figure size|<Axes:|<matplotlib\.")


def _texts(output: Any) -> Iterator[str]:
    if output.output_type == "stream":
        yield _joined(output.text)
    for kind, data in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            yield str(_joined(data))


def output_problems(cell: Cell) -> Iterator[str]:
    """What is wrong with the stored outputs of one code cell."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}: {output.evalue}"
        elif output.output_type == "stream" and output.name == "stderr":
            first = _joined(output.text).strip().splitlines()
            yield f"it wrote to stderr (no warning is committed): {first[0] if first else ''!r}"
        data, metadata = output.get("data", {}), output.get("metadata", {})
        if "application/vnd.jupyter.widget-view+json" in data:
            yield "it shows a widget, which neither the page nor the tests can"
        for kind in data:
            if kind.startswith("image/"):
                alt = metadata.get(kind, {}).get("alt") or metadata.get("alt")
                alt = alt or cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
                if not str(alt or "").strip():
                    yield "an image has no alt text: draw it with llm_core.figures.show(fig, alt=...)"
                if not str(_joined(data.get("text/plain", ""))).strip():
                    yield "an image has no text/plain twin, so that no test would see it change"
        for text in _texts(output):
            named = [folder for folder in machine_paths() if folder in text] or _ANY_MACHINE.findall(text)
            if named:
                yield f"an output names a folder of the machine it ran on: {named[0]!r}"
            if _ADDRESS.search(text):
                yield f"an output has an object's address, different at every run: {_ADDRESS.findall(text)[0]!r}"
            if len(socket.gethostname()) > 5 and socket.gethostname() in text:
                yield "an output names the machine it ran on"
            if output.output_type != "error" and _BAR.search(text):
                yield "a progress bar was stored"
            if _RAW_FIGURE.search(text):
                yield f"a raw figure object is shown: {_RAW_FIGURE.findall(text)[0]!r} (end the line with a semicolon)"


def parameter_problems(notebook: Notebook) -> Iterator[str]:
    """What is wrong with the cell that papermill reads the parameters from."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"one cell is tagged `parameters`; there are {len(tagged)}"
        return
    if tagged[0] is not code[0]:
        yield "the cell tagged `parameters` is the first code cell"
    source = tagged[0].source
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        yield f"the `parameters` cell is not Python: {error}"
        return
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in statements:
        shown = source.splitlines()[statement.lineno - 1].strip()
        if not isinstance(statement, ast.AnnAssign) or statement.value is None:
            yield f"a parameter is written `name: type = value  # help`, not {shown!r}"
        elif not commented.intersection(range(statement.lineno, (statement.end_lineno or 0) + 1)):
            yield f"the parameter {shown!r} has no help: a comment behind it"


_BARE_TRUTH = re.compile(r"(?:.*[:=?])?\s*(?:True|False)")
_ARTICLE = re.compile(r"\bthe article\b", re.IGNORECASE)
_ARTICLES_OWN = re.compile(r"^#+ Where the article", re.MULTILINE)


def _statements(source: str) -> list[ast.stmt]:
    """The statements of a cell; none where it is not plain Python (a magic, a shell command)."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def _called(node: ast.AST) -> str:
    """The last name of what a call calls, and nothing for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _imports(statement: ast.stmt) -> bool:
    """Whether a statement imports, or sets the figures' style, which one does beside."""
    if isinstance(statement, ast.Expr):
        return _called(statement.value) == "use_style"
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def _asserts(statement: ast.stmt) -> bool:
    """Whether a statement does nothing but assert, in loops or without."""
    if isinstance(statement, ast.Expr):
        return _called(statement.value).startswith("assert_")
    if isinstance(statement, (ast.For, ast.If, ast.With)):
        inner = [*statement.body, *getattr(statement, "orelse", [])]
        return all(map(_asserts, inner))
    return isinstance(statement, ast.Assert)


def code_problems(cell: Cell, *, shows: bool) -> Iterator[str]:
    """What of a chapter's code stands in its reader's way. `shows`: `show` is that of llm_core.figures."""
    tags = set(cell.metadata.get("tags", []))
    statements = _statements(cell.source)
    # An address cannot be broken.
    long = [str(n) for n, line in enumerate(cell.source.splitlines(), 1) if len(line) > COLUMNS and "://" not in line]
    if long:
        yield f"code of more than {COLUMNS} columns, in line {', '.join(long)}"
    lines = len(cell.source.strip().splitlines())
    if statements and all(map(_imports, statements)) and lines > SHOWN_IMPORTS and not tags & FOLDED:
        yield f"{lines} lines of imports, more than {SHOWN_IMPORTS}, are folded: the tag hide-cell"
    others = [statement for statement in statements if not isinstance(statement, (ast.Import, ast.ImportFrom))]
    if others and all(map(_asserts, others)) and not cell.get("outputs") and not tags & FOLDED:
        yield "a cell that only asserts is folded: the tag hide-cell"
    called = {_called(node) for statement in statements for node in ast.walk(statement)}
    drawn = any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))
    if shows and "show" in called and drawn and not tags & FOLDED_INPUT:
        yield "code that draws a figure is folded, and the figure stays: the tag hide-input"
    if "getsource" in called:
        yield "getsource prints docstring and all: show_source of llm_core.figures prints a function's body"
    if UNCOMPARED not in tags:
        for text in (text for output in cell.get("outputs", []) for text in _printed(output)):
            for line in text.splitlines():
                if _BARE_TRUTH.fullmatch(line):
                    yield f"it prints {line.strip()!r}: print what was measured, and keep the bound in an assert"
            widest = max(map(len, text.splitlines()), default=0)
            if widest > COLUMNS:
                yield f"it prints {widest} columns; the page shows {COLUMNS} (table of llm_core.figures makes a table)"


def _printed(output: Any) -> Iterator[str]:
    """What an output shows as plain text."""
    if output.output_type == "stream":
        yield _joined(output.text)
    elif set(output.get("data", {})) == {"text/plain"}:
        yield _joined(output.data["text/plain"])


def reading_problems(notebook: Notebook) -> Iterator[str]:
    """What of a chapter stands in its reader's way, though it is all true."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shows = any(re.search(r"from llm_core\.figures import [^#]*\bshow\b", cell.source) for cell in code)
    own = False
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            yield from (f"cell {number}: {problem}" for problem in code_problems(cell, shows=shows))
        elif cell.cell_type == "markdown":
            start = _ARTICLES_OWN.search(cell.source)
            before = "" if own else cell.source[: start.start()] if start else cell.source
            own = own or start is not None
            if _ARTICLE.search(before):
                yield f"cell {number}: the article is named before the section that says where it went wrong"


_FENCED = re.compile(
    r"^(?P<indent> {0,3})(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)\n.*?^ {0,3}(?P=fence)[`~]*[ ]*$", re.M | re.S
)
_INLINE_CODE = re.compile(r"(?<![`}])(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_ROLE = re.compile(r"\{([A-Za-z][\w:+.-]*)\}`[^`]*`")
_COLON_FENCE = re.compile(r"^ {0,3}:{3,}(?!:)([^\n]*)$", re.M)
_TARGET = re.compile(r"^\([\w:.-]+\)=\s*$", re.M)
_SUBSTITUTION = re.compile(r"\{\{.*?\}\}")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(")
_HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_MATHS = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.S)


def markdown_problems(source: str) -> Iterator[str]:
    """MyST that a reader of the notebook would see raw, and images without a description."""
    for fence in _FENCED.finditer(source):
        name = fence["info"].strip()
        if name.startswith("{") and name.partition("}")[0][1:] not in FENCES:
            yield f"the directive {name} would show raw outside the built book (only {{mermaid}} is a code fence)"
    text = _FENCED.sub("", source)
    for role in _ROLE.finditer(text):
        if role[1] not in ROLES:
            yield f"the role {role[0]} would show raw outside the built book"
    text = _INLINE_CODE.sub("", _ROLE.sub("", text))
    for fence in _COLON_FENCE.finditer(text):
        name = fence[1].strip()
        if name and not (name.startswith("{") and name.partition("}")[0][1:] in ADMONITIONS):
            yield f"the directive :::{name} is none of {', '.join(sorted(ADMONITIONS))}"
    if _TARGET.search(text):
        yield f"the target {_TARGET.findall(text)[0].strip()} would show raw outside the built book"
    if _SUBSTITUTION.search(_MATHS.sub("", text)):
        yield f"the substitution {_SUBSTITUTION.findall(text)[0]} would show raw outside the built book"
    for alt in _IMAGE.findall(text):
        if not alt.strip():
            yield "an image has no alt text: ![what it shows](...)"
    for tag in _HTML_IMAGE.findall(text):
        if not re.search(r"""\balt\s*=\s*["'][^"']""", tag):
            yield f"an image has no alt text: {tag}"


def cost_label(notebook: Notebook) -> tuple[float, float] | None:
    """The seconds and megabytes that a chapter promises in one of its first cells, or None."""
    for cell in notebook.cells[:4]:
        if cell.cell_type != "markdown" or not COST.search(cell.source):
            continue
        text = cell.source[COST.search(cell.source).start() :]  # type: ignore[union-attr]
        time, memory = COST_TIME.search(text), COST_MEMORY.search(text)
        if time and memory:
            seconds = float(time[1]) * (60 if time[2].startswith("min") else 1)
            return seconds, float(memory[1]) * (1000 if memory[2].startswith("G") else 1)
    return None


def problems(notebook: Notebook, path: Path, text: str | None = None) -> list[str]:
    """Everything that keeps this notebook from being committed; an empty list when nothing does.

    Args:
        notebook: as `read` gives it; it is left as it is.
        path: where it lies; a folder called `exercises` makes it an exercise.
        text: the file's content, when its form is to be checked too.
    """
    found: list[str] = []
    exercise = is_exercise(path)
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        found.append("the first cell is the title")
    elif not re.match(r"# \S", notebook.cells[0].source):
        found.append("the first cell begins with the title: # ...")
    found.extend(parameter_problems(notebook))
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "markdown":
            found.extend(f"cell {number}: {problem}" for problem in markdown_problems(cell.source))
        elif cell.cell_type == "code":
            found.extend(f"cell {number}: {problem}" for problem in output_problems(cell))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if exercise:
        if any(cell.get("outputs") for cell in code):
            found.append("an exercise is committed without outputs: make notebooks NB=... removes them")
    else:
        if not any(cell.get("outputs") for cell in code):
            found.append("no output is stored: make notebooks NB=... runs it")
        found.extend(reading_problems(notebook))
        if cost_label(notebook) is None:
            found.append("no cost label in the first cells, like: **Cost:** about 10 s and 500 MB on two cores.")
    # Last, so that a notebook with real trouble says that first.
    if text is not None and not found:
        copy = nbformat.from_dict(notebook)
        if text_of(normalise(copy)) != text:
            found.append("it is not in the committed form: make notebooks NB=... (or a merge left its mark)")
    return found
