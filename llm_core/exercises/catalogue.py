"""Where the exercises are.

An exercise is a folder of this package, named as its notebook: `s04_01_dot_product_attention` belongs to
chapters/04_*/exercises/01_dot_product_attention.ipynb and is called "04/01_dot_product_attention". No list is
kept: a new folder is a new exercise.

    spec.py       SPEC: its functions with what they are called with, and its sets of parameters
    checker.py    examine(...) -> Report: the checks that a learner sees; draw(...) where the notebook shows numbers
    solution.py   the reference solution: the text that goes into the stub cell

Its wrong solutions are patches of the reference solution, in tests/exercises/patches.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from llm_core.exercises.exam import Exam, Work, Wrong, generator, own_state
from llm_core.exercises.report import Finding, Part, Report
from llm_core.exercises.spec import Spec

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Exercise:
    """One exercise: `section` is the chapter's number, `slug` the file name of its notebook."""

    section: str
    slug: str

    @property
    def name(self) -> str:
        """What `check` and the command line call it, such as "04/01_dot_product_attention"."""
        return f"{self.section}/{self.slug}"

    @property
    def folder(self) -> Path:
        """Its folder in the package."""
        return _HERE / f"s{self.section}_{self.slug}"

    @property
    def solution(self) -> str:
        """The reference solution, as it would stand in the stub cell."""
        return (self.folder / "solution.py").read_text(encoding="utf-8")

    @property
    def spec(self) -> Spec:
        """Its functions and its parameters."""
        return cast(Spec, import_module(f"llm_core.exercises.s{self.section}_{self.slug}.spec").SPEC)

    def right(self, function: str) -> Any:
        """One of the functions of the reference solution."""
        return getattr(import_module(f"llm_core.exercises.s{self.section}_{self.slug}.solution"), function)

    def notebook(self, chapters: Path) -> Path | None:
        """Its notebook below the folder `chapters`, if it is there."""
        return next(chapters.glob(f"{self.section}_*/exercises/{self.slug}.ipynb"), None)

    def checker(self) -> Any:
        """The module that checks it."""
        return import_module(f"llm_core.exercises.s{self.section}_{self.slug}.checker")


def exercises() -> list[Exercise]:
    """All exercises, by their names."""
    names = (re.fullmatch(r"s(\d\d)_(\w+)", path.name) for path in sorted(_HERE.iterdir()) if path.is_dir())
    return [Exercise(found[1], found[2]) for found in names if found]


def find(name: str) -> Exercise:
    """The exercise of this name, or the only one whose name contains it.

    Raises:
        ValueError: none or several have it.
    """
    known = {exercise.name: exercise for exercise in exercises()}
    if name in known:
        return known[name]
    matches = [full for full in known if name and name in full]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise ValueError(f"{name!r} could be any of {', '.join(matches)}: write more of the name")
    close = get_close_matches(name, list(known), n=1, cutoff=0.4)
    raise ValueError(
        f"there is no exercise {name!r}"
        + (f"; did you mean {close[0]!r}?" if close else "")
        + f". The exercises are {', '.join(known)}"
    )


def check(name: str, /, **work: Any) -> Report:
    """Look at a learner's work and say what is wrong with it.

    Args:
        name: the exercise, such as "04/01_dot_product_attention".
        work: the learner's functions and the notebook's parameters, as the exercise's check cell has them.

    Raises:
        ValueError: there is no such exercise, a name is missing or unknown, or a parameter is out of range.
            Whatever goes wrong in the learner's function is a finding of the report instead.
    """
    exercise = find(name)
    spec = exercise.spec
    banned = {function.name: function.banned for function in spec.functions}
    work = {
        key: Work(key, value, banned[key]) if key in banned and callable(value) else value
        for key, value in work.items()
    }
    with own_state():
        try:
            report = _with(exercise, "examine", work)
            return replace(report, parts=(*report.parts, *_behind(exercise, spec, work, report)))
        except Wrong as found:  # in a hurry; see exam.hurry
            part = Part("in a hurry", found.explanations[0])
            return Report(name, {k: v for k, v in work.items() if k not in banned}, (part,))


def _behind(exercise: Exercise, spec: Spec, work: dict[str, Any], report: Report) -> list[Part]:
    """What is examined behind the parts that a learner sees, of each function that has passed all of them."""
    parts = []
    failed = {name for part in report.parts if not part.passed for name in part.functions}
    unclear = any(not part.passed and not part.functions for part in report.parts)
    for function in spec.functions:
        name = f"`{function.name}`, many sizes, types and gradients"
        if function.name in failed or (unclear and not isinstance(work[function.name], Work)):
            parts.append(Part(name, functions=(function.name,), skipped=True))
            continue
        exam = Exam(exercise.name, {})
        with exam.part(name):
            exam.hold(work[function.name], exercise.right(function.name), function)
        parts += exam.report().parts
    name = "other parameters than yours"
    if not all(part.passed for part in (*report.parts, *parts)):
        return [*parts, Part(name, functions=tuple(f.name for f in spec.functions), skipped=True)]
    for seed in (1, 2):
        parameters = dict(spec.drawn(generator(seed)))
        other = _with(exercise, "examine", {**work, **parameters})
        if not all(part.passed for part in other.parts):
            first = next(part for part in other.parts if not part.passed)
            settings = ", ".join(f"{key} = {value}" for key, value in parameters.items())
            findings = tuple(
                Finding(f.id, f"With {settings}: {f.message}", f.hint, f.known, f.about) for f in first.findings
            )
            return [*parts, Part(name, findings, first.functions)]
    return [*parts, Part(name, functions=tuple(f.name for f in spec.functions))]


def draw(name: str, /, **parameters: Any) -> Any:
    """The numbers that an exercise draws from these parameters, for a notebook that shows them.

    Raises:
        ValueError: as for `check`.
    """
    return _with(find(name), "draw", parameters)


def _with(exercise: Exercise, what: str, arguments: dict[str, Any]) -> Any:
    function = getattr(exercise.checker(), what, None)
    if function is None:
        raise ValueError(f"{exercise.name} has nothing to {what}")
    wanted = inspect.signature(function).parameters
    problems = [f"{name}= is missing" for name in wanted if name not in arguments]
    problems += [f"{name}= is unknown" for name in arguments if name not in wanted]
    if problems:
        call = ", ".join(f"{name}={name}" for name in wanted)
        raise ValueError(f"{'; '.join(problems)}: the call is {call}")
    return function(**arguments)
