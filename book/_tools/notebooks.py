"""Run, store and check the book's notebooks: `python book/_tools/notebooks.py --help`."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import notebook_rules as rules
import notebook_runs as runs
import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Notebooks or folders; without any, every notebook in chapters/.", exists=True),
]


def notebooks(paths: list[Path] | None) -> list[Path]:
    """The notebooks named, or every one in the book, in order."""
    found: list[Path] = []
    for path in paths or [runs.ROOT / "chapters"]:
        if path.is_dir():
            inside = sorted(path.rglob("*.ipynb"))
            found += [file for file in inside if not {".ipynb_checkpoints", "_build"} & set(file.parts)]
        else:
            found.append(path)
    return found


def write(path: Path, text: str) -> bool:
    """Replace a file in one step, and only when its content changes. Returns whether it did."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def refresh(path: Path, *, threads: int = 1) -> tuple[str, list[str]]:
    """Run one notebook and store it in the committed form.

    An exercise is not run: its outputs are removed. A notebook with an output that may not be
    committed is not stored. Returns a word on what happened, and the problems.
    """
    notebook = rules.read(path)
    if rules.is_exercise(path):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell["outputs"], cell["execution_count"] = [], None
        done = "normalised"
    else:
        # nbclient wants valid cells: first the form, then the outputs.
        rules.normalise(notebook)
        seconds, megabytes = runs.execute(notebook, path, threads=threads)
        rules.keep_uncompared(notebook, rules.read(path))
        done = f"{seconds:.1f} s, {megabytes:.0f} MB"
    text = rules.text_of(rules.normalise(notebook))
    bad = rules.problems(notebook, path)
    severe = [problem for cell in notebook.cells if cell.cell_type == "code" for problem in rules.output_problems(cell)]
    if not severe:
        done += ", stored" if write(path, text) else ", unchanged"
    return done, bad


@app.command()
def execute(
    paths: Paths = None,
    threads: Annotated[int, typer.Option(help="Threads of the numerical libraries.", min=1)] = 1,
) -> None:
    """Run notebooks in place and store their outputs in the committed form."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # a terminated run leaves nothing half-written either

    signal.signal(signal.SIGTERM, ended)
    runs.warm_up()
    failed: list[str] = []
    for path in notebooks(paths):
        name = runs.short(path)
        typer.echo(f"{name} ... ", nl=False)
        try:
            done, bad = refresh(path, threads=threads)
        except KeyboardInterrupt:
            typer.echo("interrupted; the file is as it was.")
            raise typer.Exit(130) from None
        except ValueError as error:
            done, bad = "not stored", [str(error)]
        except Exception as error:  # a cell's own error, or the kernel's; the other notebooks go on
            done, bad = "not stored", [f"{type(error).__name__}: {error}"]
        typer.echo(done if not bad else f"{done}, with problems:")
        for problem in bad:
            typer.echo("  - " + problem.rstrip().replace("\n", "\n    "))
        if bad:
            failed.append(name)
    if failed:
        typer.echo(f"\n{len(failed)} not as they should be: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command()
def check(paths: Paths = None) -> None:
    """Say what keeps notebooks from being committed, without running them."""
    failed = 0
    found = notebooks(paths)
    for path in found:
        try:
            text = path.read_text(encoding="utf-8")
            bad = rules.problems(rules.read(path), path, text)
        except ValueError as error:
            bad = [str(error)]
        if bad:
            failed += 1
            typer.echo(f"{runs.short(path)}:")
            for problem in bad:
                typer.echo("  - " + problem)
    typer.echo(f"{len(found) - failed} of {len(found)} notebooks are as they should be.")
    raise typer.Exit(1 if failed else 0)


@app.command()
def normalise(paths: Paths = None) -> None:
    """Bring notebooks into the committed form without running them (after writing or merging)."""
    for path in notebooks(paths):
        changed = write(path, rules.text_of(rules.normalise(rules.read(path))))
        typer.echo(f"{runs.short(path)}: {'changed' if changed else 'unchanged'}")


@app.command()
def report() -> None:
    """Show the time and memory of the last validated runs, beside what each chapter promises."""
    kept = list(runs.recorded())
    if not kept:
        typer.echo("No run is recorded yet: make test ONLY=notebooks")
        raise typer.Exit(1)
    labels = {}
    for path in notebooks(None):
        label = rules.cost_label(rules.read(path))
        if label is not None:
            labels[runs.short(path)] = label
    typer.echo(runs.table(kept, labels))
    (runs.REPORTS / "notebooks.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(app())
