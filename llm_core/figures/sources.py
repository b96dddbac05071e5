"""The source of a function of the package in a notebook, as its file has it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from IPython.display import display

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def show_source(thing: type | Callable[..., Any] | property, *, docstring: bool = False) -> None:
    """Show the source of a function, a method or a class as Python, without what its docstrings say.

    Args:
        thing: the function, method, property or class; in a class the docstrings of its methods go too.
        docstring: keep the docstrings.

    Raises:
        ValueError: there is no Python source to show: it is built in, or no function or class.
    """
    source = source_of(thing, docstring=docstring)
    runs = [len(run) for run in re.findall(r"`+", source)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    display({"text/markdown": f"{fence}python\n{source}\n{fence}", "text/plain": source}, raw=True)


def source_of(thing: type | Callable[..., Any] | property, *, docstring: bool = False) -> str:
    """The text that `show_source` shows; arguments and errors are its own."""
    function = thing.fget if isinstance(thing, property) else thing
    try:
        source = textwrap.dedent(inspect.getsource(function))  # type: ignore[arg-type]
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"only a function or a class that is written in Python has a source to show: got {thing!r} ({error})"
        ) from error
    lines = source.rstrip().split("\n")
    if docstring:
        return "\n".join(lines)
    for node in ast.walk(tree):
        # What has a docstring and nothing else needs it: without, it would be no Python.
        if not isinstance(node, Documented) or ast.get_docstring(node) is None or len(node.body) == 1:
            continue
        first, last = node.body[0].lineno - 1, node.body[0].end_lineno
        assert last is not None
        if not lines[last].strip():
            last += 1  # the empty line below
        lines[first:last] = [None] * (last - first)  # type: ignore[list-item]
    return "\n".join(line for line in lines if line is not None)
