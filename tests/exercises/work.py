"""Learners' work for the tests: code loaded as if it stood in a notebook's cell, and notebooks built from it."""

from __future__ import annotations

import linecache
import re
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat import NotebookNode

from llm_core.exercises import Report, check
from llm_core.exercises.catalogue import Exercise, exercises, find

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"

EXERCISES = exercises()
PARAMETERS = {exercise.name: [dict(entry) for entry in exercise.spec.parameters] for exercise in EXERCISES}
FUNCTIONS = {exercise.name: tuple(function.name for function in exercise.spec.functions) for exercise in EXERCISES}

PATCHES = Path(__file__).parent / "patches"
_number = count()


class Patch(NamedTuple):
    """A named change of an exercise's reference solution: what it is, and each block of lines with its replacement."""

    name: str
    about: str
    hunks: list[tuple[str, str]]

    def applied(self, solution: str) -> str:
        """The changed solution.

        Raises:
            ValueError: a block does not stand in the solution exactly once.
        """
        for old, new in self.hunks:
            found = ("\n" + solution).count("\n" + old)
            if found != 1:
                raise ValueError(f"{self.name}: this stands {found} times in the solution, not once:\n{old}")
            solution = ("\n" + solution).replace("\n" + old, "\n" + new)[1:]
        return solution


def patches(exercise: Exercise, kind: str = "") -> list[Patch]:
    """The patches of an exercise: its wrong solutions, or with kind="right" the unusual right ones.

    The file is `patches/NN_MM.txt` or `patches/NN_MM.right.txt`. Each patch begins with a line `## name`, and a line
    that says what it does. Then come blocks of whole lines, changed one after the other:

        <<<<
        lines of the solution, which have to stand there exactly once
        ====
        what takes their place
        >>>>

    Raises:
        ValueError: the file is not of this form, or two patches have one name.
    """
    file = PATCHES / f"{exercise.section}_{exercise.slug[:2]}{'.' + kind if kind else ''}.txt"
    found: list[Patch] = []
    for block in re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, *rest = re.split(r"^<<<<\n", block, flags=re.MULTILINE)
        name, about, *nothing = head.strip().split("\n")
        hunks = [re.fullmatch(r"(.*?\n)====\n(.*?)>>>>\n*", hunk, re.DOTALL) for hunk in rest]
        if nothing or not rest or not all(hunks) or name in {patch.name for patch in found}:
            raise ValueError(f"{file.name}: the patch {name!r} is not of the form that `patches` describes")
        found.append(Patch(name, about, [(hunk[1], hunk[2]) for hunk in hunks if hunk]))
    return found


@cache
def wrong_solutions(name: str) -> dict[str, str]:
    """The wrong solutions of an exercise, by the names of their mistakes."""
    exercise = find(name)
    return {patch.name: patch.applied(exercise.solution) for patch in patches(exercise)}


def names(exercise: Exercise) -> str:
    return exercise.name


def load(*cells: str) -> dict[str, Any]:
    """What these cells define, each compiled as a file of its own, as ipykernel does it."""
    namespace: dict[str, Any] = {}
    for text in cells:
        file = f"<cell {next(_number)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), namespace)
    return namespace


def examined(exercise: Exercise, parameters: dict[str, Any], *cells: str) -> Report:
    """The report on these cells, the later ones redefining what the earlier ones define."""
    defined = load(*cells)
    return check(exercise.name, **{name: defined[name] for name in FUNCTIONS[exercise.name]}, **parameters)


def learners_notebook(exercise: Exercise) -> NotebookNode:
    path = exercise.notebook(CHAPTERS)
    assert path is not None
    return nbformat.read(path, as_version=4)


def cell_of(notebook: NotebookNode, tag: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))


def handed_in(exercise: Exercise, path: Path, stub: str) -> Path:
    """The learner's notebook with this in its stub cell, saved to `path`."""
    notebook = learners_notebook(exercise)
    cell_of(notebook, "stub").source = stub
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
