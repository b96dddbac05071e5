"""Wrong solutions that nobody thought of: every small change of a reference solution, drawn from its syntax tree.

Operators, comparisons, constants and dimensions by one, types, `.detach()` added and every method call dropped,
in-place operations, slices, swapped arguments and results, exchanged names, conditions that always or never hold,
deleted statements. Run as a script, it lists those that an exercise's check accepts although they behave differently:

    python tests/exercises/mutation.py 03/01
"""

from __future__ import annotations

import ast
import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from work import EXERCISES

from llm_core.exercises import check
from llm_core.exercises.catalogue import Exercise, find
from llm_core.exercises.exam import Exam, Work, Wrong, hurry, own_state
from llm_core.exercises.spec import Function

SECONDS = 10  # of processor time that one mutant may take
ACCEPTED = Path(__file__).with_name("accepted.txt")

_BINARY: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
}
_COMPARE: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq, ast.GtE, ast.LtE),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_INPLACE = {ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_"}
_METHODS = {
    "sum": ("mean",),
    "mean": ("sum",),
    "cos": ("sin",),
    "sin": ("cos",),
    "amax": ("amin", "mean"),
    "norm": ("sum",),
    "log_softmax": ("softmax",),
    "softmax": ("log_softmax", "sigmoid"),
    "log": ("log2",),
    "exp": ("exp2",),
    "reshape": ("view",),
    "transpose": ("swapaxes",),
    "ones": ("zeros",),
    "zeros": ("ones",),
    "tril": ("triu",),
    "isfinite": ("isnan", "isinf"),
    "all": ("any",),
    "min": ("max",),
    "max": ("min",),
    "step": ("zero_grad",),
}
_TYPES = {"bool": ("float32", "long"), "float64": ("float32",), "float32": ("float64",)}
_TEXTS = {"-inf": ("-1e4", "-100", "0", "inf"), "sum": ("mean",), "none": ("mean",), "utf-8": ("utf-16", "latin-1")}


@dataclass(frozen=True)
class Mutant:
    """A changed solution, and its line in words: "function: `old` -> `new`"."""

    name: str
    tree: ast.Module = field(repr=False, compare=False)

    def load(self) -> dict[str, Any]:
        """What it defines."""
        namespace: dict[str, Any] = {"__name__": "mutant"}
        exec(compile(self.tree, "<mutant>", "exec"), namespace)
        return namespace


def mutants(solution: str) -> Iterator[Mutant]:
    """Every mutant of a solution, each once."""
    tree = ast.parse(solution)
    holders = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    seen = {ast.unparse(tree)}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        body = function.body[1:] if ast.get_docstring(function) else function.body
        names = [argument.arg for argument in function.args.args]
        for statement in [node for top in body for node in ast.walk(top) if isinstance(node, ast.stmt)]:
            for path, old, new in _changes(statement, holders[id(statement)], names):
                before = ast.unparse(old)
                changed = deepcopy(tree)
                _replace(changed, tree, path, old, new)
                ast.fix_missing_locations(changed)
                text = ast.unparse(changed)
                if text not in seen:
                    seen.add(text)
                    after = "; ".join(ast.unparse(n) for n in new) if isinstance(new, list) else ast.unparse(new)
                    line = ast.unparse(statement).split("\n")[0]
                    name = f"{function.name}: {line} | {before} -> {after or 'nothing'}"
                    yield Mutant(" ".join(name.split()), changed)


def _replace(changed: ast.Module, tree: ast.Module, path: ast.AST, old: ast.AST, new: Any) -> None:
    """Put `new` in the place of `old` in a copy of the tree; the two are walked side by side."""
    for mine, theirs in zip(ast.walk(changed), ast.walk(tree), strict=True):
        if theirs is not path:
            continue
        for name, value in ast.iter_fields(theirs):
            if value is old:
                setattr(mine, name, deepcopy(new))
                return
            if isinstance(value, list) and any(entry is old for entry in value):
                place = next(k for k, entry in enumerate(value) if entry is old)
                getattr(mine, name)[place : place + 1] = deepcopy(new) if isinstance(new, list) else [deepcopy(new)]
                return
    raise ValueError("no such node")


def _changes(statement: ast.stmt, holder: ast.AST, names: list[str]) -> Iterator[tuple[ast.AST, ast.AST, Any]]:
    """Changes of one statement without those of statements inside it: the parent, the old node, the new one."""
    yield from _of_statement(statement, holder)
    todo: list[tuple[ast.AST, ast.AST]] = [
        (statement, child) for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)
    ]
    while todo:
        parent, node = todo.pop()
        for new in _of_expression(node, names):
            yield parent, node, new
        todo += [(node, child) for child in ast.iter_child_nodes(node)]


def _of_statement(node: ast.stmt, holder: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, Any]]:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.For):
        yield holder, node, [ast.Pass()]
    if isinstance(node, ast.If):
        yield node, node.test, ast.Constant(True)
        yield node, node.test, ast.Constant(False)
    if isinstance(node, ast.Assign | ast.Return) and node.value is not None:
        yield node, node.value, _call(node.value, "detach")
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        a, b, *rest = node.value.elts
        yield node, node.value, ast.Tuple([b, a, *rest], ast.Load())
    if isinstance(node, ast.For):
        cut = ast.Subscript(_call_name("list", node.iter), ast.Slice(None, ast.Constant(-1)), ast.Load())
        yield node, node.iter, cut
        yield node, node.iter, ast.Subscript(_call_name("list", node.iter), ast.Slice(ast.Constant(1)), ast.Load())


def _of_expression(node: ast.AST, names: list[str]) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        for kind in _BINARY.get(type(node.op), ()):
            yield ast.BinOp(node.left, kind(), node.right)
        yield node.left
        yield node.right
        if isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.Pow | ast.FloorDiv):
            yield ast.BinOp(node.right, node.op, node.left)
        if type(node.op) in _INPLACE:
            yield ast.Call(ast.Attribute(node.left, _INPLACE[type(node.op)], ast.Load()), [node.right], [])
    elif isinstance(node, ast.Compare):
        for kind in _COMPARE.get(type(node.ops[0]), ()):
            yield ast.Compare(node.left, [kind()], node.comparators)
    elif isinstance(node, ast.UnaryOp):
        if not (isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)):
            yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node.value)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        if node.id in names:
            place = names.index(node.id)
            for other in {names[(place + 1) % len(names)], names[place - 1]} - {node.id}:
                yield ast.Name(other, ast.Load())
            yield _call(node, "detach")
    elif isinstance(node, ast.Attribute):
        for other in _TYPES.get(node.attr, ()):
            yield ast.Attribute(node.value, other, ast.Load())
        if node.attr in ("T", "mT"):
            yield node.value
    elif isinstance(node, ast.Slice):
        if node.lower is not None:
            yield ast.Slice(None, node.upper, node.step)
        if node.upper is not None:
            yield ast.Slice(node.lower, None, node.step)
        if node.step is not None:
            yield ast.Slice(node.lower, node.upper, None)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)


def _of_constant(value: Any) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
        yield ast.Constant(value - 1) if value >= 1 else ast.UnaryOp(ast.USub(), ast.Constant(1 - value))
    elif isinstance(value, str):
        for other in _TEXTS.get(value, ()):
            yield ast.Constant(other)


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    for place in range(len(node.keywords)):
        yield ast.Call(node.func, node.args, node.keywords[:place] + node.keywords[place + 1 :])
    if isinstance(node.func, ast.Attribute):
        for other in _METHODS.get(node.func.attr, ()):
            yield ast.Call(ast.Attribute(node.func.value, other, ast.Load()), node.args, node.keywords)
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "F", "math")):
            yield node.func.value  # the method call dropped
        elif node.args:
            yield node.args[0]
    elif isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        yield ast.Call(ast.Name("max" if node.func.id == "min" else "min", ast.Load()), node.args, node.keywords)
        yield from node.args


def _call(value: ast.AST, method: str) -> ast.Call:
    return ast.Call(ast.Attribute(value, method, ast.Load()), [], [])


def _call_name(name: str, value: ast.AST) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [value], [])


class TooLong(BaseException):
    """A mutant that does not come to an end."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes more processor time than this."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def caught(exercise: Exercise, work: dict[str, Any]) -> bool:
    """Whether the exercise's check finds something wrong with this work, at the notebook's own parameters."""
    functions = {function.name: work[function.name] for function in exercise.spec.functions}
    try:
        with limited(SECONDS), hurry(), contextlib.redirect_stdout(io.StringIO()):
            return check(exercise.name, **functions, **exercise.spec.parameters[0]).status != "passed"
    except TooLong:
        return True


def behaves_differently(exercise: Exercise, work: dict[str, Any]) -> bool:
    """Whether one of the functions differs from the solution for any of many inputs, wider than those of the check.

    Results, types, gradients and what is left behind are compared, at larger sizes and other draws, with
    floating-point arguments made small, large and negative, and with those in float64.
    """
    for function in exercise.spec.functions:
        right = exercise.right(function.name)
        ours = Work(function.name, work[function.name])
        strict = replace(function, rtol=min(function.rtol, 2e-5), atol=min(function.atol, 2e-6))
        for make in _wide(function):
            try:
                with limited(SECONDS), own_state():
                    right(*make(torch.Generator().manual_seed(3)))
            except (Exception, TooLong):
                continue  # the solution itself rules these inputs out
            try:
                with limited(SECONDS), own_state(), hurry():
                    Exam("", {})._agree(ours, right, strict, _names(exercise, function), make, 3, False)
            except (Wrong, TooLong):
                return True
    return False


def _names(exercise: Exercise, function: Function) -> list[str]:
    code = exercise.right(function.name).__code__
    return list(code.co_varnames[: code.co_argcount])


def _wide(function: Function) -> Iterator[Callable[[torch.Generator], Any]]:
    draw = torch.Generator().manual_seed(77)
    for number in range(16):
        sizes = {}
        for name, choices in function.sizes.items():
            pool = (*choices, choices[-1] + 1, choices[-1] + 3) if max(choices) < 16 else choices
            sizes[name] = pool[int(torch.randint(len(pool), (), generator=draw))]

        def plain(source: torch.Generator, sizes: dict[str, int] = sizes, number: int = number) -> Any:
            return function.arguments(source.manual_seed(500 + number), **sizes)

        yield plain
        if number % 4 == 0:
            for factor in (0.0, 1e-3, -1.0, 30.0):
                yield lambda source, plain=plain, factor=factor: tuple(_scaled(x, factor) for x in plain(source))
            yield lambda source, plain=plain: tuple(x.double() if _floating(x) else x for x in plain(source))
    for case in function.cases.values():
        yield lambda source, case=case: case(source.manual_seed(901))


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype.is_floating_point


def _scaled(x: Any, factor: float) -> Any:
    return factor * x if _floating(x) else x


@cache
def accepted() -> dict[str, dict[str, str]]:
    """The mutants that the checks accept, by exercise, with the reason; each line is `NN/MM name || reason`."""
    found: dict[str, dict[str, str]] = {}
    for line in ACCEPTED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            head, reason = line.split(" || ")
            found.setdefault(head[:5], {})[head[6:]] = reason
    return found


def examine(exercise: Exercise) -> tuple[int, list[str]]:
    """How many mutants the check catches, and which it accepts though they behave differently."""
    total, missed = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mutant in mutants(exercise.solution):
            try:
                work = mutant.load()
            except Exception:
                total += 1  # it cannot even be defined
                continue
            if caught(exercise, work):
                total += 1
            elif behaves_differently(exercise, work):
                missed.append(mutant.name)
    return total, missed


if __name__ == "__main__":
    import time

    torch.set_num_threads(1)
    for exercise in [find(name) for name in sys.argv[1:]] or EXERCISES:
        start = time.process_time()
        total, missed = examine(exercise)
        share = total / (total + len(missed))
        print(
            f"{exercise.name}: {total} caught, {len(missed)} accepted, {share:.1%}, {time.process_time() - start:.0f} s"
        )
        for name in missed:
            print(f"    {name}", flush=True)
