"""The examiner's tools: call the learner's function safely, compare its result, name the mistake.

A checker opens an `Exam` and goes through its parts. In each it calls the learner's function with numbers
of its own (`call`), asks for the right kind of result (`tensor`) and compares it with torch's (`compare`).
The first thing that is wrong ends a part; the next part still runs.

    exam = Exam("04/01_dot_product_attention", {"seed": 0})
    with exam.part("a batch of two"):
        got = exam.tensor(exam.call(attention, query, key, value), "the output")
        exam.compare(got, expected, mistakes(variant, MISTAKES, query=query, ...), what="the output")
    report = exam.report()

How a mistake gets its name: a checker has one function with a knob for every usual mistake. `mistakes` turns
the knobs one at a time, then two at a time; the setting whose result is the learner's is the explanation.
What no setting explains is described by where and how it differs.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_core.exercises.report import NOT_STARTED, Finding, Part, Report

Explanation = tuple[Finding, ...]


@dataclass(frozen=True)
class Mistake:
    """A usual mistake, and how to make it.

    Attributes:
        id: its name; the wrong solution that makes it has the same file name.
        message: what is wrong, in a sentence or two.
        hint: the usual reason, and where to look.
        knobs: settings of the checker's function that make it. More than one where the same mistake can be
            made in several ways.
    """

    id: str
    message: str
    hint: str
    knobs: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def finding(self) -> Finding:
        """What a report says when it meets this mistake."""
        return Finding(self.id, self.message, self.hint, known=True)


class Wrong(Exception):
    """Ends a part: all explanations of what was seen, the likeliest first."""

    def __init__(self, *explanations: Explanation) -> None:
        super().__init__(explanations)
        self.explanations = explanations


def wrong(id: str, message: str, hint: str = "", *, about: str = "") -> Wrong:
    """What to raise for one finding that was measured, not recognised."""
    return Wrong((Finding(id, message, hint, about=about),))


def mistakes(
    variant: Callable[..., Tensor], known: Iterable[Mistake], **fixed: Any
) -> Iterator[tuple[Explanation, Tensor]]:
    """The results of `variant` with each known mistake, then with each two of them that can go together."""
    turned = [(mistake, knobs) for mistake in known for knobs in mistake.knobs]
    for size in (1, 2):
        for chosen in combinations(turned, size):
            names = [name for _, knobs in chosen for name in knobs]
            if len({mistake.id for mistake, _ in chosen}) < size or len(set(names)) < len(names):
                continue  # the same mistake twice, or two settings of one knob
            settings = dict(item for _, knobs in chosen for item in knobs.items())
            try:
                result = variant(**fixed, **settings)
            except RuntimeError:
                continue  # these sizes rule the mistake out: its shapes do not fit
            yield tuple(mistake.finding for mistake, _ in chosen), result


class Exam:
    """Goes through the parts of a check and collects what is wrong.

    Args:
        exercise: its name.
        parameters: the learner's parameters, for the report.
        rtol, atol: how far a float32 result may lie from torch's.
    """

    def __init__(self, exercise: str, parameters: Mapping[str, Any], *, rtol: float = 1e-4, atol: float = 2e-5) -> None:
        self.exercise = exercise
        self.parameters = dict(parameters)
        self.rtol, self.atol = rtol, atol
        self._parts: list[tuple[str, tuple[Explanation, ...]]] = []
        self._puzzling: set[str] = set()  # what no two known mistakes explain

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One check; whatever raises `Wrong` inside ends it."""
        try:
            yield
        except Wrong as found:
            self._parts.append((name, found.explanations))
        else:
            self._parts.append((name, ()))

    @property
    def failed(self) -> bool:
        """Whether a part so far has found something."""
        return any(explanations for _, explanations in self._parts)

    def report(self) -> Report:
        """What was found. Where a part has several explanations, the one that explains most parts wins."""
        seen: dict[Explanation, int] = {}
        for _, explanations in self._parts:
            for explanation in explanations:
                seen[explanation] = seen.get(explanation, 0) + 1

        def likeliest(explanations: tuple[Explanation, ...]) -> Explanation:
            return max(explanations, key=lambda e: (seen[e], -len(e)), default=())

        parts = tuple(Part(name, likeliest(explanations)) for name, explanations in self._parts)
        return Report(self.exercise, self.parameters, parts)

    def call(self, function: Any, *arguments: Any) -> Any:
        """The learner's result; exceptions, and inputs that were changed, become findings."""
        if not callable(function):
            raise wrong(
                "not_a_function",
                f"The check got {_kind(function)} where it needs your function.",
                "Pass the function itself, without parentheses after its name.",
            )
        name = getattr(function, "__name__", "the function")
        # The learner's function works on copies, so that one part cannot spoil the next.
        kept = [argument.clone() if isinstance(argument, Tensor) else deepcopy(argument) for argument in arguments]
        try:
            result = function(*kept)
        except (Exception, SystemExit) as error:
            lines = _learners_lines(error)
            if isinstance(error, NotImplementedError) and lines and lines[-1][1].startswith("raise "):
                raise wrong(
                    NOT_STARTED,
                    f"`{name}` still raises NotImplementedError.",
                    "Write its body in the stub cell, run that cell, then run the check again.",
                    about=name,
                ) from None
            raise _raised(name, error, lines) from None
        for place, (given, now) in enumerate(zip(arguments, kept, strict=True)):
            same = _unchanged(given, now) if isinstance(given, Tensor) else given == now
            if not same:
                raise wrong(
                    "input_changed",
                    f"`{name}` changes its {_ORDINALS[place]} argument.",
                    "Whoever calls it does not expect that. Avoid `+=`, `x[...] = ` and methods that end in "
                    "an underscore on an argument; `x = x + y` makes a new tensor.",
                    about=name,
                )
        return result

    def unpack(self, result: Any, names: str) -> tuple[Any, ...]:
        """The several values that a function has to return, named in `names` as in "inputs, targets"."""
        length = len(names.split(", "))
        if isinstance(result, (tuple, list)) and len(result) == length:
            return tuple(result)
        raise _not(result, f"{length} values: {names}")

    def tensor(self, result: Any, what: str) -> Tensor:
        """The result as a tensor; NumPy arrays will do as well."""
        if isinstance(result, np.ndarray | np.generic):
            result = torch.from_numpy(np.asarray(result))
        if not isinstance(result, Tensor):
            raise _not(result, f"a tensor for {what}")
        return result

    def number(self, result: Any, what: str) -> Tensor:
        """The result as a number in float64; Python's numbers will do, and tensors and arrays with one number."""
        if isinstance(result, int | float) and not isinstance(result, bool):
            try:
                return torch.tensor(float(result), dtype=torch.float64)
            except OverflowError:
                return torch.tensor(float("inf"), dtype=torch.float64)
        if isinstance(result, Tensor | np.ndarray | np.generic):
            found = self.tensor(result, what)
            if found.numel() == 1:
                return found.detach().double().reshape(())
        raise _not(result, f"one number for {what}")

    def compare(
        self,
        got: Tensor,
        expected: Tensor,
        known: Iterable[tuple[Explanation, Tensor]] = (),
        *,
        what: str,
        clue: Callable[[], Finding | None] | None = None,
        rtol: float | None = None,
    ) -> None:
        """End the part unless `got` is what torch computes; name the mistake that gives this result.

        Args:
            got: the learner's result.
            expected: the right one.
            known: explanations with the result that each of them gives, single mistakes first.
            what: what is compared, for the message.
            clue: asked when nothing known explains the difference.
            rtol: instead of the exam's own.
        """
        if self.same(got, expected, rtol):
            return
        if got.numel() and not got.isfinite().any():
            raise Wrong((self._difference(got, expected, what),))
        if matching := self.explain(got, known, what, rtol):
            raise Wrong(*matching)
        if got.shape != expected.shape:
            raise wrong(
                "shape",
                f"The shape of {what} is {tuple(got.shape)}; with these inputs it has to be {tuple(expected.shape)}.",
                "Write the shape of every intermediate result beside its line and see where it leaves the plan.",
                about=what,
            )
        if got.numel() > 1 and bool((got == got.flatten()[0]).all()):
            raise wrong(
                "constant",
                f"All numbers of {what} are the same.",
                "A result that does not depend on the inputs is often a placeholder that was left in.",
                about=what,
            )
        found = clue() if clue is not None else None
        raise Wrong((found if found is not None else self._difference(got, expected, what),))

    def explain(
        self, got: Tensor, known: Iterable[tuple[Explanation, Tensor]], what: str, rtol: float | None = None
    ) -> list[Explanation]:
        """The explanations that give this result; those with two mistakes only where none with one does."""
        matching: list[Explanation] = []
        fits = False
        for explanation, value in known:
            # Trying two at a time is most of the work. It is left out where no mistake gives this shape, and
            # where it has failed already: what was wrong in one part is usually wrong in the next.
            if len(explanation) > 1 and ((matching and len(matching[0]) == 1) or not fits or what in self._puzzling):
                break
            fits = fits or value.shape == got.shape
            if self.same(got, value, rtol):
                matching.append(explanation)
        if not matching:
            self._puzzling.add(what)
        return matching

    def suspect(self, function: Callable[..., Any], arguments: Sequence[Any], names: str) -> Finding | None:
        """Whether the function is random, or ignores one of its tensors; asked after an unknown difference.

        Args:
            function: the learner's, returning one tensor.
            arguments: what it was called with.
            names: the arguments' names, as in "query, key, value".
        """
        try:
            first = self.tensor(self.call(function, *arguments), "the result")
            again = [self.tensor(self.call(function, *arguments), "the result") for _ in range(4)]
            if not all(self.same(first, result) for result in again):
                return Finding(
                    "random",
                    f"Called again with the same inputs, `{function.__name__}` gives another result.",
                    "Nothing in the formula is random: look for dropout, random weights or torch.empty.",
                )
            for place, name in enumerate(names.split(", ")):
                if isinstance(arguments[place], Tensor) and arguments[place].dtype.is_floating_point:
                    changed = list(arguments)
                    changed[place] = changed[place].flip(-1) * 1.5 + 0.25
                    if self.same(first, self.tensor(self.call(function, *changed), "the result")):
                        return Finding(
                            "ignores_input",
                            f"`{function.__name__}` gives the same result whatever its `{name}` is.",
                            "Look for the line in which that argument should be used, or for numbers typed in by hand.",
                        )
        except Wrong:
            pass
        return None

    def learns(self, result: Tensor, sources: Mapping[str, Tensor]) -> None:
        """End the part unless a gradient reaches every one of the sources from the result."""
        hint = (
            "`.detach()`, `.item()`, `.numpy()`, `torch.tensor(...)` of a result and `torch.no_grad()` cut the "
            "gradient off: training would run and learn nothing."
        )
        if not result.requires_grad:
            raise wrong("no_gradient", "No gradient can flow back through the result.", hint)
        gradients = torch.autograd.grad(result.sum(), list(sources.values()), allow_unused=True)
        for name, gradient in zip(sources, gradients, strict=True):
            if gradient is None or not gradient.any():
                raise wrong("no_gradient", f"No gradient flows from the result back to `{name}`.", hint)

    def same(self, a: Tensor, b: Tensor, rtol: float | None = None) -> bool:
        """Whether the two agree in shape and, as far as rounding allows, in all numbers."""
        if a.shape != b.shape:
            return False
        rtol = self.rtol if rtol is None else rtol
        return torch.allclose(a.detach().double(), b.detach().double(), rtol, self.atol, equal_nan=True)

    def _difference(self, got: Tensor, expected: Tensor, what: str) -> Finding:
        got, expected = got.detach().double(), expected.detach().double()
        if not got.isfinite().all():
            bad = int((~got.isfinite()).sum())
            return Finding(
                "not_finite",
                f"{bad} of {got.numel()} numbers of {what} are NaN or infinite, "
                f"the first of them at {_where(~got.isfinite())}.",
                "NaN comes from exp() of a number that is too large, from a row in which everything is masked, "
                "from 0 / 0, or from a tensor made by torch.empty.",
                about=what,
            )
        off = ~torch.isclose(got, expected, self.rtol, self.atol)
        size = float((got - expected).abs().max())
        place = f", the first of them at {_where(off)}" if got.ndim else ""
        return Finding(
            "differs",
            f"{int(off.sum())} of {got.numel()} numbers of {what} are wrong{place}; the largest error is {size:.2g}.",
            "No usual mistake gives these numbers. Take the smallest input you can compute by hand and compare "
            "every intermediate step.",
            about=what,
        )


def _unchanged(given: Tensor, now: Tensor) -> bool:
    """Whether all numbers are as they were; torch.equal would say that NaN is not."""
    return given.shape == now.shape and bool(((given == now) | (given.isnan() & now.isnan())).all())


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _raised(name: str, error: BaseException, lines: Sequence[tuple[int, str]]) -> Wrong:
    text = " ".join(str(error).split())
    # A code span: Markdown would swallow the <...> and * of an error's text.
    text = (f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__).replace("`", "'")
    message = f"`{name}` stops with `{text}`"
    if not lines:
        return wrong("raised", message + ".", "Does it take the arguments that the stub has?", about=name)
    number, code = lines[-1]
    return wrong(
        "raised",
        f"{message} (line {number} of its cell: `{code}`).",
        "Look at the shapes that meet in that line. The check also calls your function with other sizes than "
        "those of the notebook: a single token, more batch dimensions, other widths.",
        about=name,
    )


def _learners_lines(error: BaseException) -> list[tuple[int, str]]:
    """The lines of the traceback that stand in a notebook's cell, not in a library: number and text."""
    # Every cell is a file of its own: /tmp/ipykernel_7/8.py, /tmp/ipython-input-9.py (Colab), <ipython-input-9>.
    frames = traceback.extract_tb(error.__traceback__)
    return [
        (frame.lineno or 0, linecache.getline(frame.filename, frame.lineno or 0).strip())
        for frame in frames
        if re.search(r"ipykernel_\d|ipython-input|^<cell", frame.filename)
    ]


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"{article} {type(value).__name__}{size}"


def _not(result: Any, wanted: str) -> Wrong:
    if result is None:
        return wrong(
            "returned_none",
            f"The function returned None; the check needs {wanted}.",
            "A function without a `return` at its end returns None.",
        )
    return wrong("type", f"The function returned {_kind(result)}; the check needs {wanted}.")


def _where(mask: Tensor) -> str:
    return str(mask.nonzero()[0].tolist())


def positive(**sizes: int) -> None:
    """Check the sizes that a learner chose.

    Raises:
        ValueError: one of them is not a whole number from 1 to 512.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 512:
            raise ValueError(f"{name} must be a whole number from 1 to 512, got {size!r}: change the parameters cell")


def generator(seed: int) -> torch.Generator:
    """The source of an exercise's numbers.

    Raises:
        ValueError: the seed is not a whole number from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0 on, got {seed!r}: change the parameters cell")
    return torch.Generator().manual_seed(seed)
