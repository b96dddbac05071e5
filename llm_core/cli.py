"""The `llm-core` command: the book's exercises, parameter studies and texts from a terminal.

    llm-core exercise list
    llm-core exercise run 04/01_dot_product_attention -p n_tokens=6
    llm-core exercise run my_copy.ipynb --output executed.ipynb
    llm-core exercise report submissions --jobs 2 --seed-from-name --page class.html
    llm-core exercise solution 04/01_dot_product_attention
    llm-core study run 03/04_learning_rate -p rate=0.001,0.01 -p seed=0,1 --table mine.csv
    llm-core corpus list
    llm-core corpus fetch wikitext-103
    llm-core serve smollm2 --port 8000
    llm-core wikipedia extract DUMP articles --workers 8
    llm-core train --preset book --folder runs/book
    llm-core generate runs/book --prompt "ROMEO."
    llm-core evaluate runs/book
    llm-core export runs/book mine.gguf

The exit status is 0 if everything passed, 1 if something did not, 2 if the command was not understood.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm  # type: ignore[import-untyped]

import llm_core
from llm_core import cli_training, cli_wikipedia
from llm_core.exercises import catalogue
from llm_core.files import write_whole

app = typer.Typer(
    help="The command line of the book 'Large Language Models: Redefining the Limits of Computation'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
exercise_app = typer.Typer(help="List, run and grade the book's exercises.", no_args_is_help=True)
app.add_typer(exercise_app, name="exercise")
study_app = typer.Typer(help="Run a notebook at every point of a grid and collect the results.", no_args_is_help=True)
app.add_typer(study_app, name="study")
corpus_app = typer.Typer(
    help="List the texts that the book knows by name, and fetch the large ones.", no_args_is_help=True
)
app.add_typer(corpus_app, name="corpus")
app.add_typer(cli_wikipedia.app, name="wikipedia")
cli_training.add_to(app)
Cache = Annotated[Path | None, typer.Option(help="The folder of fetched files.", metavar="FOLDER", show_default=False)]


class Format(StrEnum):
    """How results are written."""

    table = "table"
    csv = "csv"
    json = "json"


Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter; may be repeated.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that one cell may take.", metavar="S")]
Formatted = Annotated[Format, typer.Option("--format", help="How to write the results.")]


@app.callback()
def main() -> None:
    """The command line of the book."""


@app.command()
def version() -> None:
    """Print the version of the package."""
    typer.echo(llm_core.__version__)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="smollm2, a .gguf file, or a folder with config.json.", metavar="MODEL")],
    name: Annotated[str | None, typer.Option(help="What requests call it; its own name unless given.")] = None,
    host: Annotated[str, typer.Option(help="Other machines can reach it unless this is local.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Texts that are written together.")] = 8,
    waiting: Annotated[int, typer.Option(min=1, help="Texts that may wait; more are refused.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text that can be asked for.")] = 1024,
) -> None:
    """Answer requests in the form of OpenAI's API, at http://HOST:PORT/v1, until Ctrl-C."""
    try:
        from llm_core.serving.app import Service
        from llm_core.serving.engine import Engine
        from llm_core.serving.run import AddressTaken
        from llm_core.serving.run import serve as answer
    except ModuleNotFoundError as error:
        typer.echo(f"Error: {error.name} is not installed: pip install 'llm-core[serve]'", err=True)
        raise typer.Exit(2) from None
    from llm_core.pretrained.opening import open_model

    with _usage_errors():
        opened = open_model(model)
        engine = Engine(opened.model, opened.tokenizer, stop_ids=opened.stop_ids, max_batch=batch, max_waiting=waiting)
    try:
        service = Service(engine, name or opened.name, opened.chat, opened.encode, max_new_tokens=max_new_tokens)
        answer(service, host=host, port=port)
    except AddressTaken as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


@exercise_app.command("list")
def list_exercises(format: Formatted = Format.table) -> None:
    """List the exercises with their parameters."""
    from llm_core.exercises import notebook_files, runner

    chapters = _chapters()
    rows = []
    for exercise in catalogue.exercises():
        path = None if chapters is None else exercise.notebook(chapters)
        row: dict[str, Any] = {"exercise": exercise.name, "title": "", "parameters": "", "notebook": ""}
        if path is not None:
            notebook = notebook_files.read(path)
            title = next((c.source for c in notebook.cells if c.cell_type == "markdown"), "").splitlines()[0]
            known = runner.parameters_of(notebook)
            row["title"] = title.lstrip("# ")
            row["parameters"] = " ".join(f"{name}={entry['default']}" for name, entry in known.items())
            row["notebook"] = str(path)
        rows.append(row)
    _write(rows, format, leave_out=("notebook",))
    if chapters is None:
        typer.echo(_NO_CHAPTERS, err=True)


@exercise_app.command("run")
def run_exercise(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_NOTEBOOK", help="An exercise, or a notebook's file.")],
    parameter: Parameters = None,
    output: Annotated[
        Path | None, typer.Option(help="Keep the executed notebook in this file.", metavar="FILE", show_default=False)
    ] = None,
    timeout: Timeout = 60.0,
    format: Formatted = Format.table,
) -> None:
    """Run one notebook with parameters and show what its checker found."""
    from llm_core.exercises import runner

    with _usage_errors():
        path = _notebook(name)
        result = runner.run(path, _split(parameter), output=output, timeout=timeout, progress=True)
    if format is Format.table:
        settings = ", ".join(f"{key}={value}" for key, value in result.parameters.items())
        counted = f" {result.passed} of {result.total} checks passed" if result.total else ""
        typer.echo(
            f"{result.exercise or result.file}: {result.status}.{counted}" + (f" ({settings})" if settings else "")
        )
        if result.message:
            typer.echo(result.message)
    else:
        _write([result.to_dict()], format)
    raise typer.Exit(0 if result.status == "passed" else 1)


@exercise_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder with the learners' notebooks.", metavar="FOLDER")],
    parameter: Parameters = None,
    students: Annotated[
        Path | None,
        typer.Option(help="A CSV file: a column `student`, and one for each parameter of their own.", metavar="FILE"),
    ] = None,
    seed_from_name: Annotated[bool, typer.Option(help="Give each student a seed made of the name.")] = False,
    variants: Annotated[int, typer.Option(help="Hidden checks with other seeds.", metavar="N", min=0)] = 0,
    secret: Annotated[str, typer.Option(help="What the hidden seeds are drawn from.", metavar="TEXT")] = "",
    points: Annotated[float, typer.Option(help="What a notebook is worth; one point a check if 0.", min=0.0)] = 0.0,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", "-w", metavar="EXERCISE=W", help="Multiply an exercise's points; may be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Notebooks that run side by side.", min=1)] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Where the rows are kept, each as it comes (JSON lines); what is in it is not run again. "
            "Beside the folder unless given.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    again: Annotated[bool, typer.Option(help="Run what the results hold already, too.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page about the whole class.", metavar="FILE", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Keep the executed notebooks in this folder.", metavar="FOLDER", show_default=False),
    ] = None,
    timeout: Timeout = 60.0,
    format: Formatted = Format.table,
) -> None:
    """Grade a folder of notebooks: a row for each, and what the class got wrong most often."""
    from llm_core.exercises import class_page, grading

    with _usage_errors():
        handed_in = grading.submissions(
            folder, _split(parameter), students=students, seed_from_name=seed_from_name, leave_out=output
        )
        kept = results or folder.absolute().with_name(f"{folder.absolute().name}-report.jsonl")
        coming = grading.grade(
            handed_in,
            kept,
            jobs=jobs,
            variants=grading.Variants(variants, secret),
            points=points,
            weights={catalogue.find(name).name: _number(name, value) for name, value in _split(weight).items()},
            timeout=timeout,
            output=output,
            again=again,
            hidden=[folder],
        )
        rows = []
        with tqdm(total=len(handed_in), desc="notebooks", unit="notebook", leave=False, disable=None) as bar:
            for row in coming:
                rows.append(row)
                bar.update()
                if bar.disable:  # no terminal: a line for each, for a log
                    typer.echo(f"{len(rows)}/{len(handed_in)} {row['file']}: {row['status']}", err=True)
        if page is not None:
            write_whole(page, class_page.class_page(rows, f"Results of {grading.printable(folder.absolute().name)}"))
    rows.sort(key=lambda row: (row["student"], row["file"]))
    if format is Format.json:
        _write(rows, format)
    else:
        lines = grading.columns(rows)
        shown = ("student", "file", "exercise", "status", "points", "of", "passed", "total", "variants", "message")
        _write(lines, format, leave_out=[name for line in lines for name in line if name not in shown])
    if format is Format.table:
        common = [
            {"students": len(c.students), "exercise": c.exercise, "mistake": c.finding, "what it is": c.message}
            for c in grading.mistakes(rows)
        ]
        if common:
            typer.echo("\nThe most frequent mistakes")
            _write(common[:10], format)
        passed = sum(row["status"] == "passed" for row in rows)
        typer.echo(f"\n{passed} of {len(rows)} notebooks passed. The rows are in {kept}.")
        if not all(row.get("fenced") for row in rows):
            typer.echo(_NOT_FENCED, err=True)
    raise typer.Exit(0 if all(row["status"] == "passed" for row in rows) else 1)


@exercise_app.command()
def solution(name: Annotated[str, typer.Argument(help="An exercise.", metavar="NAME")]) -> None:
    """Print an exercise's reference solution, as it would stand in the stub cell."""
    with _usage_errors():
        typer.echo(catalogue.find(name).solution, nl=False)


@study_app.command("list")
def list_studies(format: Formatted = Format.table) -> None:
    """List the parameter studies with their parameters."""
    from llm_core.exercises import notebook_files, runner

    rows = []
    for path in _studies():
        known = runner.parameters_of(notebook_files.read(path))
        parameters = " ".join(f"{name}={entry['default']}" for name, entry in known.items())
        rows.append({"study": _study_name(path), "parameters": parameters, "notebook": str(path)})
    if rows:
        _write(rows, format, leave_out=("notebook",))
    else:
        typer.echo(_NO_CHAPTERS, err=True)


@study_app.command("run")
def run_study(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_NOTEBOOK", help="A study, or a notebook's file.")],
    table: Annotated[Path, typer.Option(help="The file (CSV) that collects the results.", metavar="FILE")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=V1,V2,...", help="A parameter's values; may be repeated."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one run may take.", metavar="S")] = 600.0,
    format: Formatted = Format.table,
) -> None:
    """Run a study at every combination of the values that its table does not hold yet, and show the table."""
    from llm_core.exercises import study

    with _usage_errors():
        path = Path(name)
        if path.suffix != ".ipynb":
            known = {_study_name(found): found for found in _studies()}
            if name not in known:
                raise ValueError(f"there is no study {name!r}; there are: {', '.join(known) or 'none here'}")
            path = known[name]
        grid = {key: [v.strip() for v in values.split(",")] for key, values in _split(parameter).items()}
        rows = study.sweep(
            path,
            grid,
            table,
            timeout=timeout,
            progress=lambda points: tqdm(points, desc="runs", unit="run", leave=False, disable=None),
        )
    columns = dict.fromkeys(name for row in rows for name in row)
    _write([{name: row.get(name, "") for name in columns} for row in rows], format)
    raise typer.Exit(1 if any(row.get(study.ERROR) for row in rows) else 0)


_NO_CHAPTERS = (
    "The exercises' notebooks belong to the book's repository and are not part of the installed package. "
    "Run this in a clone of the repository, or give the file of a notebook."
)


@corpus_app.command("list")
def list_corpora(cache: Cache = None, format: Formatted = Format.table) -> None:
    """List the texts, and where each of them is."""
    from llm_core.data.corpora import CORPORA, is_here

    _write(
        [
            {"corpus": name, "here": "yes" if is_here(name, cache=cache) else "no", "about": corpus.about}
            for name, corpus in CORPORA.items()
        ],
        format,
    )


@corpus_app.command("info")
def corpus_info(
    name: Annotated[str, typer.Argument(help="A text.", metavar="NAME")],
    cache: Cache = None,
    format: Formatted = Format.table,
) -> None:
    """Say what a text is, its licence, source, size and checksum, its parts, and where it is."""
    from llm_core.data.corpora import describe

    with _usage_errors():
        facts = describe(name, cache=cache)
    if format is Format.table:
        _write([{"": fact, name: value} for fact, value in facts.items()], format)
    else:
        _write([facts], format)


@corpus_app.command("fetch")
def fetch_corpus(
    name: Annotated[str, typer.Argument(help="A text that is not with the package.", metavar="NAME")],
    cache: Cache = None,
) -> None:
    """Download a text. What was interrupted goes on where it stopped; what does not have its checksum is not kept."""
    from llm_core.data.download import fetch

    with _usage_errors():
        path = fetch(name, cache=cache, progress=sys.stderr.isatty())
    typer.echo(str(path))


def _chapters() -> Path | None:
    """The chapters of the checkout that the package runs from, or of the one we stand in."""
    roots = [Path(llm_core.__file__).parents[1], Path.cwd(), *Path.cwd().parents]
    return next((r / "chapters" for r in roots if any(r.glob("chapters/*_*/exercises/*.ipynb"))), None)


def _studies() -> list[Path]:
    chapters = _chapters()
    return [] if chapters is None else sorted(chapters.glob("*_*/studies/*.ipynb"))


def _study_name(path: Path) -> str:
    """Such as "03/04_learning_rate"."""
    return f"{path.parents[1].name[:2]}/{path.stem}"


def _notebook(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" or path.is_file():
        if not path.is_file():
            raise ValueError(f"there is no notebook {name}")
        return path
    exercise = catalogue.find(name)
    chapters = _chapters()
    found = None if chapters is None else exercise.notebook(chapters)
    if found is None:
        raise ValueError(f"the notebook of {exercise.name} is not here. {_NO_CHAPTERS}")
    return found


_NOT_FENCED = (
    "Notebooks were not fenced off from each other: this system gives an ordinary process no view of its own. "
    "They ran in scratch folders, but with your rights. The file Containerfile in the repository grades in a container."
)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ValueError(f"the weight of {name} must be a number from 0 on, got {text!r}")
    return value


def _split(parameters: Sequence[str] | None) -> dict[str, str]:
    values = {}
    for text in parameters or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"a parameter is written NAME=VALUE, got {text!r}")
        values[name.strip()] = value.strip()
    return values


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


def _write(rows: Sequence[dict[str, Any]], format: Format, leave_out: Sequence[str] = ()) -> None:
    if format is Format.json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    flat = [{name: _text(value) for name, value in row.items()} for row in rows]
    names = list(flat[0]) if flat else []
    if format is Format.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(flat)
        typer.echo(text.getvalue(), nl=False)
        return
    # As wide as its text needs where nobody watches: a log is searched, not looked at.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=None, pad_edge=False, header_style="")
    for name in names:
        if name not in leave_out:
            table.add_column(name, overflow="fold")
    for row in flat:
        table.add_row(*(escape(row[name]) for name in names if name not in leave_out))
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={entry}" for name, entry in value.items())
    return " ".join(str(value).split())
