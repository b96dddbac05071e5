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

import inspect
import linecache
import random
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm_core.exercises.report import NOT_STARTED, Finding, Part, Report
from llm_core.exercises.spec import Arguments, Function

Explanation = tuple[Finding, ...]

_called: list[str] = []  # the learner's functions that the part at hand has called
_hurried = False  # see `hurry`


@contextmanager
def hurry() -> Iterator[None]:
    """Only the verdict counts: an examination ends at the first thing that is wrong, and nobody looks for its name."""
    global _hurried
    before, _hurried = _hurried, True
    try:
        yield
    finally:
        _hurried = before


@contextmanager
def own_state() -> Iterator[None]:
    """Torch as it is when it starts, whatever a notebook or a learner's function has set; put back afterwards.

    That is: float32 and the CPU as defaults, gradients on, no inference mode, no autocast, seeds of 0.
    """
    dtype, numpys = torch.get_default_dtype(), np.random.get_state()  # noqa: NPY002 (what a learner's code may use)
    seeds = torch.get_rng_state(), random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_rng_state(seeds[0])
            random.setstate(seeds[1])
            np.random.set_state(numpys)  # noqa: NPY002


class Banned(Exception):
    """The learner's function has called something that the task rules out."""


class Work:
    """A learner's function, as the examiner calls it: in a state of its own, and without what the task rules out."""

    def __init__(self, name: str, function: Callable[..., Any], banned: Sequence[str] = ()) -> None:
        self.name, self.function, self.banned = name, function, banned
        self.__name__ = getattr(function, "__name__", name)

    def __call__(self, *arguments: Any) -> Any:
        """The learner's result; what the function sets in torch ends with the call."""
        _called.append(self.name)
        torch.default_generator.manual_seed(len(_called))  # another one for each call: what is random has to show
        dtype = torch.get_default_dtype()
        try:
            with torch.enable_grad(), _without(self.banned) if self.banned else nullcontext():
                return self.function(*arguments)
        finally:
            torch.set_default_dtype(dtype)


class _Refuse(TorchFunctionMode):
    """Refuses torch's functions by what they are, under whatever name they were imported."""

    def __init__(self, banned: Mapping[Any, str]) -> None:
        super().__init__()
        self.banned = banned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.banned:
            raise Banned(self.banned[func])
        return func(*args, **(kwargs or {}))


@contextmanager
def _without(banned: Sequence[str]) -> Iterator[None]:
    """Refuse these functions and classes, in torch or elsewhere."""
    found: dict[Any, str] = {}
    with ExitStack() as stack:
        for path in banned:
            owner, _, name = path.rpartition(".")
            try:
                holder = import_module(owner)
            except ModuleNotFoundError:  # a class, not a module
                module, _, kind = owner.rpartition(".")
                holder = getattr(import_module(module), kind)
            found[getattr(holder, name)] = name

            def refuse(*arguments: Any, _name: str = name, **named: Any) -> Any:
                raise Banned(_name)

            stack.enter_context(mock.patch.object(holder, name, refuse))
        stack.enter_context(_Refuse(found))
        yield


@dataclass(frozen=True)
class Mistake:
    """A usual mistake, and how to make it.

    Attributes:
        id: its name; the wrong solution that makes it has the same name among the exercise's patches, in the tests.
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

    def __init__(self, *explanations: Explanation, measured: Finding | None = None) -> None:
        super().__init__(explanations)
        self.explanations = explanations
        self.measured = measured  # the plain difference, should the explanations turn out not to explain everything


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
        self._parts: list[_Examined] = []
        self._puzzling: set[str] = set()  # what no two known mistakes explain

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One check; whatever raises `Wrong` inside ends it."""
        _called.clear()
        try:
            with own_state():
                yield
        except Wrong as found:
            if _hurried:
                raise
            self._parts.append(_Examined(name, tuple(_called), found.explanations, found.measured))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            # Nothing that a learner returns may end the check. (What a reference cannot do fails the tests.)
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200].replace("`", "'")
            unusable = Finding(
                "unusable", f"The check cannot work with the result: `{text}`", "What type does it have?"
            )
            if _hurried:
                raise Wrong((unusable,)) from None
            self._parts.append(_Examined(name, tuple(_called), ((unusable,),)))
        else:
            self._parts.append(_Examined(name, tuple(_called)))

    @property
    def failed(self) -> bool:
        """Whether a part so far has found something."""
        return any(part.explanations for part in self._parts)

    def report(self) -> Report:
        """What was found.

        Where a part has several explanations, the one that explains most parts wins. A name is given only where all
        that is wrong with a function has one: what explains one part and leaves another unexplained may be a
        coincidence, and the measured difference is shown in its place.
        """
        puzzling = {name for part in self._parts if part.unexplained for name in part.functions}
        seen: dict[Explanation, int] = {}
        for part in self._parts:
            for explanation in part.explanations:
                seen[explanation] = seen.get(explanation, 0) + 1

        def likeliest(part: _Examined) -> Explanation:
            if part.measured is not None and puzzling & set(part.functions):
                return (part.measured,)
            return max(part.explanations, key=lambda e: (seen[e], -len(e)), default=())

        parts = tuple(Part(part.name, likeliest(part), functions=part.functions) for part in self._parts)
        return Report(self.exercise, self.parameters, parts)

    def call(self, function: Any, *arguments: Any, copies: bool = True) -> Any:
        """The learner's result; exceptions, and inputs that were changed, become findings."""
        if not callable(function):
            raise wrong(
                "not_a_function",
                f"The check got {_kind(function)} where it needs your function.",
                "Pass the function itself, without parentheses after its name.",
            )
        name = getattr(function, "__name__", "the function")
        # The learner's function works on copies, so that one part cannot spoil the next.
        kept = [_copied(argument) for argument in arguments] if copies else list(arguments)
        given = [_copied(argument, detached=True) for argument in kept]
        try:
            result = function(*kept)
        except Banned as error:
            raise wrong(
                "banned",
                f"`{name}` calls `{error}`.",
                "The task asks for it to be written without that.",
                about=name,
            ) from None
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
        for place, (before, now) in enumerate(zip(given, kept, strict=True)):
            if not unchanged(before, now):
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
        if _hurried:
            raise Wrong((self._difference(got, expected, what),))
        if got.numel() and not got.isfinite().any():
            raise Wrong((self._difference(got, expected, what),))
        if matching := self.explain(got, known, what, rtol):
            raise Wrong(*matching, measured=self._difference(got, expected, what))
        if got.shape != expected.shape:
            raise Wrong((self._difference(got, expected, what),))
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
        if not result.requires_grad:
            raise wrong("no_gradient", "No gradient can flow back through the result.", _CUT)
        try:
            gradients = torch.autograd.grad(result.sum(), list(sources.values()), allow_unused=True)
        except RuntimeError as error:  # something on the way was changed in place
            raise _no_way_back(error) from None
        for name, gradient in zip(sources, gradients, strict=True):
            if gradient is None or not gradient.any():
                raise wrong("no_gradient", f"No gradient flows from the result back to `{name}`.", _CUT)

    def same(self, a: Tensor, b: Tensor, rtol: float | None = None) -> bool:
        """Whether the two agree in shape and, as far as rounding allows, in all numbers."""
        if a.shape != b.shape:
            return False
        rtol = self.rtol if rtol is None else rtol
        return torch.allclose(a.detach().double(), b.detach().double(), rtol, self.atol, equal_nan=True)

    def _difference(self, got: Tensor, expected: Tensor, what: str) -> Finding:
        if got.shape != expected.shape:
            return Finding(
                "shape",
                f"The shape of {what} is {tuple(got.shape)}; with these inputs it has to be {tuple(expected.shape)}.",
                "Write the shape of every intermediate result beside its line and see where it leaves the plan.",
                about=what,
            )
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
        off = ~torch.isclose(got, expected, self.rtol, self.atol, equal_nan=True)
        size = float((got - expected).abs().nan_to_num(float("inf")).max())
        place = f", the first of them at {_where(off)}" if got.ndim else ""
        seen = symptom(got, expected, off)
        return Finding(
            "differs",
            f"{int(off.sum())} of {got.numel()} numbers of {what} are wrong{place}; the largest error is {size:.2g}."
            + (f" {seen}" if seen else ""),
            "No usual mistake gives these numbers. Take the smallest input you can compute by hand and compare "
            "every intermediate step.",
            about=what,
        )

    # --- behind the parts that a learner sees ---

    def hold(self, function: Any, right: Callable[..., Any], spec: Function) -> None:
        """Hold a learner's function against the reference solution, wherever its spec says that mistakes show.

        Sizes are drawn, and where something is wrong, shrunk to the smallest that still shows it. Compared are the
        results, their types, what the function leaves behind, and the gradients of all arguments.
        """
        source = torch.Generator().manual_seed(20_260)
        names = list(inspect.signature(right).parameters)
        smallest = {name: choices[0] for name, choices in spec.sizes.items()}
        largest = {name: choices[-1] for name, choices in spec.sizes.items()}
        draws = [largest, *({n: _drawn(source, choices) for n, choices in spec.sizes.items()} for _ in range(6))]
        if not spec.sizes:
            draws = draws[:1] * 3

        def failing(make: Callable[[torch.Generator], Arguments], seed: int, shown: bool) -> Wrong | None:
            try:
                self._agree(function, right, spec, names, make, seed, shown)
            except Wrong as found:
                return found
            return None

        for seed, sizes in enumerate(draws):
            make = _sized(spec, sizes)
            found = failing(make, seed, False)
            if found is None:
                continue
            if _hurried:
                raise found
            for name in sizes:  # the smallest of each size, one after the other, that still fails in the same way
                for size in spec.sizes[name]:
                    smaller = {**sizes, name: size}
                    again = failing(_sized(spec, smaller), seed, False) if size < sizes[name] else None
                    if again is not None and again.explanations[0][0].id == found.explanations[0][0].id:
                        sizes = smaller
                        break
            where = "" if sizes == smallest or not sizes else "With " + _settings(sizes) + ": "
            raise _placed(where, failing(_sized(spec, sizes), seed, True) or found)
        for label, case in spec.cases.items():
            if found := failing(case, 0, True):
                raise _placed(f"With {label}: ", found)

    def _agree(
        self,
        function: Any,
        right: Callable[..., Any],
        spec: Function,
        names: Sequence[str],
        make: Callable[[torch.Generator], Arguments],
        seed: int,
        shown: bool,
    ) -> None:
        """Call both with the same arguments, and end the part where they disagree in results or in gradients."""
        if spec.gradients == "carried":  # first without: NumPy takes no tensor that wants a gradient
            self._agree(function, right, replace(spec, gradients="never"), names, make, seed, shown)
        tracked = spec.gradients != "never"
        results = []
        for which, called in enumerate((right, function)):
            arguments = make(torch.Generator().manual_seed(seed))
            named = dict(zip(names, arguments, strict=False))
            sources = spec.tracked(arguments) if spec.tracked else _floats(named)
            if tracked:
                for tensor in sources.values():
                    tensor.requires_grad_()
            if spec.after is None:  # copies, on which a function may try what a leaf of the graph does not allow
                arguments = tuple(_copied(argument) for argument in arguments)
                named = dict(zip(names, arguments, strict=False))
            try:
                result = self.call(called, *arguments, copies=False) if which else called(*arguments)
            except Wrong:
                if spec.gradients == "carried":
                    return
                raise
            left = spec.after(arguments, result) if spec.after else {}
            results.append((result, sources, left, named))
        (want, wanted_from, left_right, _), (got, got_from, left, named) = results
        example = _example(named, want, got) if shown and not _hurried else ""
        outputs = self._like(got, want, spec.returns or f"the result of `{spec.name}`", spec, named, example)
        for name, tensor in left_right.items():
            self._close(left[name], tensor, name, spec, example)
        if not tracked or not any(b.requires_grad for _, b in outputs):
            return
        outputs = [(a, b) for a, b in outputs if b.requires_grad]
        if spec.gradients == "carried":
            outputs = [(a, b) for a, b in outputs if a.requires_grad]
            if not outputs:
                return
        if not any(a.requires_grad for a, _ in outputs):
            raise wrong("no_gradient", "No gradient can flow back through the result.", _CUT, about=spec.name)
        upstream = [torch.randn(b.shape, generator=torch.Generator().manual_seed(5), dtype=b.dtype) for _, b in outputs]
        ours = _gradients([b for _, b in outputs], upstream, wanted_from)
        try:
            theirs = _gradients([a for a, _ in outputs], upstream, got_from)
        except RuntimeError as error:
            raise _no_way_back(error, spec.name) from None
        # Large numbers among the arguments multiply what rounding leaves of a gradient that should be zero.
        largest = max((float(x.detach().abs().max()) for x in wanted_from.values() if x.numel()), default=0.0)
        rtol, atol = 10 * spec.rtol, 10 * spec.atol * (largest if largest > 10 else 1.0)
        for name, gradient in ours.items():
            mine = theirs[name]
            if mine is None and spec.gradients == "carried":
                continue  # it went by way of lists, say, as the task allows
            if mine is None and gradient is not None and gradient.any():
                raise wrong("no_gradient", f"No gradient flows from the result back to `{name}`.", _CUT, about=name)
            zero = torch.zeros_like(got_from[name])
            a, b = (zero if x is None else x for x in (mine, gradient))
            if not torch.allclose(a.double(), b.double(), rtol, atol, equal_nan=True):
                off = ~torch.isclose(a.double(), b.double(), rtol, atol, equal_nan=True)
                seen = symptom(a.double(), b.double(), off)
                raise wrong(
                    "gradient_differs",
                    f"The result is right, and the gradient that flows back to `{name}` is not."
                    + (f" Of the gradient: {seen[0].lower()}{seen[1:]}" if seen else ""),
                    "Some way from this argument to the result is cut off, by `.detach()`, `.item()`, `.data` or "
                    "`torch.no_grad()`, or one was added that the formula does not have.",
                    about=name,
                )

    def _like(
        self, got: Any, want: Any, what: str, spec: Function, named: Mapping[str, Any], example: str
    ) -> list[tuple[Tensor, Tensor]]:
        """End the part unless a result is what it has to be, in type and value; the tensors that carry gradients."""
        if isinstance(want, tuple | list):
            labels = what.split(", ") if ", " in what else [f"part {k + 1} of {what}" for k in range(len(want))]
            if not isinstance(got, tuple | list) or len(got) != len(want):
                raise _not(got, f"{len(want)} values: {', '.join(labels)}")
            pairs = zip(got, want, labels, strict=True)
            return [pair for a, b, label in pairs for pair in self._like(a, b, label, spec, named, example)]
        if want is None:
            if got is not None:
                raise wrong("not_none", f"{_first(what)} has to be None here.{example}", about=what)
            return []
        if isinstance(want, bool | str):
            if got != want or type(got) is not type(want):
                raise wrong(
                    "differs", f"{_first(what)} has to be `{want!r}` here; you return {_kind(got)}.", about=what
                )
            return []
        if isinstance(want, int):
            whole = isinstance(got, int | np.integer) and not isinstance(got, bool)
            if isinstance(got, Tensor | np.ndarray):
                whole = not torch.as_tensor(got).dtype.is_floating_point
            if not whole:
                raise wrong(
                    "not_whole",
                    f"{_first(what)} has to be a whole number; you return {_kind(got)}.",
                    "`/` gives a float in Python, `//` a whole number. A float holds no more than 53 bits.",
                    about=what,
                )
            if int(got) != want:
                raise wrong("differs", f"{_first(what)} is wrong.{example}", _BY_HAND, about=what)
            return []
        if isinstance(want, float):
            self._close(self.number(got, what), torch.tensor(want, dtype=torch.float64), what, spec, example)
            return []
        if not isinstance(want, Tensor):
            raise TypeError(f"a reference solution returned {_kind(want)}")
        found = self.tensor(got, what)
        self._same_kind(found, want, what)
        if spec.fresh and any(_shares(found, tensor) for tensor in _tensors(tuple(named.values()))):
            raise wrong(
                "not_new", f"{_first(what)} is not a new tensor: it shares memory with an argument.", about=what
            )
        self._close(found, want, what, spec, example)
        return [(found, want)] if want.dtype.is_floating_point else []

    def _same_kind(self, got: Tensor, want: Tensor, what: str) -> None:
        def kind(x: Tensor) -> str:
            return "booleans" if x.dtype == torch.bool else "numbers" if x.dtype.is_floating_point else "whole numbers"

        if kind(got) != kind(want):
            raise wrong(
                "dtype",
                f"{_first(what)} has to hold {kind(want)}; yours has the type `{got.dtype}`.",
                "Give the type when the tensor is made, as in `torch.zeros(n, dtype=torch.bool)`.",
                about=what,
            )
        if want.dtype.is_floating_point and got.dtype.itemsize < want.dtype.itemsize:
            raise wrong(
                "dtype",
                f"{_first(what)} has the type `{got.dtype}`; the arguments are `{want.dtype}`, which has more digits.",
                "Somewhere the numbers are turned into a shorter type.",
                about=what,
            )

    def _close(self, got: Tensor, want: Tensor, what: str, spec: Function, example: str) -> None:
        if got.shape != want.shape:
            raise Wrong((self._difference(got, want, what),))
        a, b = got.detach().double(), want.detach().double()
        if torch.allclose(a, b, spec.rtol, spec.atol, equal_nan=True):
            return
        plain = Exam("", {}, rtol=spec.rtol, atol=spec.atol)._difference(got, want, what)
        raise wrong(plain.id, plain.message + example, plain.hint, about=what)


@dataclass(frozen=True)
class _Examined:
    """A part, as the exam keeps it until it reports."""

    name: str
    functions: tuple[str, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    measured: Finding | None = None

    @property
    def unexplained(self) -> bool:
        """Whether its numbers are wrong and no usual mistake gives them."""
        return any(finding.id == "differs" and not finding.known for e in self.explanations for finding in e)


_CUT = (
    "`.detach()`, `.item()`, `.numpy()`, `torch.tensor(...)` of a result and `torch.no_grad()` cut the gradient off: "
    "training would run and learn nothing."
)
_BY_HAND = "Work this one out by hand, and compare every step."


def _no_way_back(error: RuntimeError, about: str = "") -> Wrong:
    text = " ".join(str(error).split())[:160].replace("`", "'")
    return wrong("no_gradient", f"The gradient of the result cannot be computed: `{text}`", _CUT, about=about)


def symptom(got: Tensor, expected: Tensor, off: Tensor) -> str:
    """What can be measured of a difference, in a sentence; empty where nothing stands out.

    Args:
        got, expected: numbers of the same shape.
        off: where they differ.
    """
    if got.numel() < 2 or not (got.isfinite().all() and expected.isfinite().all()):
        return ""
    clear = expected.abs() > 1e-3 * expected.abs().max()
    if clear.sum() > 1 and not (got[~clear].abs() > 1e-3 * got.abs().max()).any():
        ratios = got[clear] / expected[clear]
        ratio = float(ratios.median())
        if torch.allclose(ratios, ratios.median(), 1e-3, 0) and abs(ratio - 1) > 1e-3:
            return (
                "Every number has the wrong sign."
                if abs(ratio + 1) < 1e-3
                else (f"Every number is {ratio:.4g} times what it has to be.")
            )
    apart = got - expected
    if torch.allclose(apart, apart.median(), 1e-3, 1e-6):
        return f"Every number is off by {float(apart.median()):.4g}."
    if torch.allclose(got.flatten().sort().values, expected.flatten().sort().values, 1e-4, 1e-6):
        return "The numbers are the right ones, in the wrong places."
    for axis in range(got.ndim):
        others = [k for k in range(got.ndim) if k != axis]
        bad = off.sum(others) > 0 if others else off
        n, name = len(bad), f"its {_ORDINALS[axis]} dimension" if axis < len(_ORDINALS) else f"dimension {axis}"
        if bad.all() or n < 2:
            continue
        first = int(bad.nonzero()[0])
        if bad[first:].all():
            last = first - 1
            return f"Along {name} it is right " + (
                "at index 0 only." if not last else f"up to index {last}, and not after."
            )
        if not bad[first + 1 :].any():
            return f"Along {name} only index {first} is wrong."
    return ""


def _drawn(source: torch.Generator, choices: Sequence[int]) -> int:
    return choices[int(torch.randint(len(choices), (), generator=source))]


def _sized(spec: Function, sizes: Mapping[str, int]) -> Callable[[torch.Generator], Arguments]:
    return lambda source: spec.arguments(source, **sizes)


def _settings(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _placed(where: str, found: Wrong) -> Wrong:
    """The same finding, with the words where it was met."""
    (finding, *_), *_ = found.explanations
    return Wrong((Finding(finding.id, where + finding.message, finding.hint, about=finding.about),))


def _floats(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors among the arguments, those in a list one by one."""
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            found[name] = value
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _gradients(
    outputs: Sequence[Tensor], upstream: Sequence[Tensor], sources: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """The gradient of each source; None where the outputs do not depend on it."""
    pairs = [(out, up.to(out.dtype)) for out, up in zip(outputs, upstream, strict=True) if out.requires_grad]
    if not pairs:
        return dict.fromkeys(sources)
    total = sum((out * up).sum() for out, up in pairs)
    assert isinstance(total, Tensor)
    return dict(zip(sources, torch.autograd.grad(total, list(sources.values()), allow_unused=True), strict=True))


def _example(named: Mapping[str, Any], want: Any, got: Any) -> str:
    """The arguments with what came and what was expected, where they are small enough to be read."""
    shown = {name: _short(value) for name, value in named.items()}
    texts = [*shown.values(), _short(want), _short(got)]
    if any(text is None for text in texts) or sum(len(text or "") for text in texts) > 360:
        return ""
    given = ", ".join(f"{name} = {text}" for name, text in shown.items())
    return f" For `{given}` you return `{_short(got)}`; right is `{_short(want)}`."


def _short(value: Any) -> str | None:
    """Numbers as one would write them down; None for what is not made of numbers."""
    if isinstance(value, Tensor):
        return _short(value.detach().tolist())
    if isinstance(value, np.ndarray | np.generic):
        return _short(value.tolist())
    if isinstance(value, tuple | list):
        inside = [_short(entry) for entry in value]
        return None if any(text is None for text in inside) else "[" + ", ".join(map(str, inside)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    return None


def _first(what: str) -> str:
    return what[0].upper() + what[1:]


def _copied(value: Any, detached: bool = False) -> Any:
    """A copy of the tensors and plain data in an argument; functions, models and optimizers stay what they are."""
    if isinstance(value, Tensor):
        return value.detach().clone() if detached else value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry, detached) for entry in value)
    if isinstance(value, dict):
        return {name: _copied(entry, detached) for name, entry in value.items()}
    return deepcopy(value) if isinstance(value, set | bytearray) else value


def unchanged(before: Any, now: Any) -> bool:
    """Whether an argument is what it was, tensor by tensor; NaN equals NaN here."""
    if isinstance(before, Tensor):
        return (
            isinstance(now, Tensor)
            and before.shape == now.shape
            and before.dtype == now.dtype
            and bool(((before == now) | (before.isnan() & now.isnan())).all())
        )
    if isinstance(before, list | tuple):
        return isinstance(now, list | tuple) and len(before) == len(now) and all(map(unchanged, before, now))
    if isinstance(before, dict):
        return isinstance(now, dict) and before.keys() == now.keys() and all(unchanged(before[k], now[k]) for k in now)
    if isinstance(before, bool | int | float | str | bytes | set | None):
        return bool(before == now)
    return before is now


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
