"""Checks llm_core's annotations at every call: shapes by jaxtyping and beartype, all other types by beartype alone.

jaxtyping has a hook of its own. It wraps every function, also the five in six that say nothing of shapes, and a
function inside a function anew at each call of the outer one: half of the tests' time went into that.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

CONF = BeartypeConf(violation_type=TypeCheckError)
# Compiled modules are kept beside the usual ones, under a name of this file's own.
CACHE = "shapes" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def checked(function: Any) -> Any:
    """A function whose arguments and result are held to their annotations, unless jaxtyping is switched off."""
    hints = {name: evaluated(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    if any(map(has_shape, hints.values())):
        return jaxtyped(function, typechecker=beartype)
    if not hints:
        return function
    f = function
    copy = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = f.__kwdefaults__, f.__qualname__, f.__module__
    copy.__annotations__ = hints
    strict = beartype(conf=CONF)(copy)

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (function if jaxtyping.config.jaxtyping_disable else strict)(*args, **kwargs)

    return either


def checked_class(made: Any) -> Any:
    """A class; a dataclass is held to the annotations of its fields when it is made."""
    if dataclasses.is_dataclass(made) and "__init__" in vars(made) and not hasattr(made.__init__, "__wrapped__"):
        made.__init__ = checked(made.__init__)
    return made


def evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """What a hint means where it stands; anything, where it names what is not there yet."""

    def said() -> None: ...

    said.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(said, names, include_extras=True)["hint"]
    except Exception:
        return Any


def has_shape(hint: Any) -> bool:
    """Whether there is a jaxtyping annotation anywhere in it."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(has_shape, hint if isinstance(hint, list) else get_args(hint)))


class Decorator(ast.NodeTransformer):
    """Puts the decorators above before classes and functions; before those inside functions where they have shapes."""

    def __init__(self) -> None:
        self.shapes: set[str] = set()  # the names that a module has from jaxtyping
        self.inside = 0

    def visit_Module(self, node: ast.Module) -> ast.Module:
        for part in ast.walk(node):
            if isinstance(part, ast.ImportFrom) and part.module == "jaxtyping":
                self.shapes |= {name.asname or name.name for name in part.names}
        begin = sum(isinstance(part, ast.ImportFrom) and part.module == "__future__" for part in node.body)
        begin += ast.get_docstring(node) is not None
        node.body.insert(begin, ast.Import([ast.alias("shape_checks")]))
        self.generic_visit(node)
        return ast.fix_missing_locations(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if not self.inside:
            node.decorator_list.insert(0, self.named("checked_class", node))
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if not self.inside or any(isinstance(n, ast.Name) and n.id in self.shapes for n in hints_of(node)):
            node.decorator_list.append(self.named("checked", node))
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1
        return node

    def named(self, name: str, node: ast.stmt) -> ast.expr:
        decorator = ast.Attribute(ast.Name("shape_checks", ast.Load()), name, ast.Load())
        return ast.copy_location(decorator, node)


def hints_of(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Every part of every annotation of a function."""
    parts = node.args
    every = [*parts.posonlyargs, *parts.args, parts.vararg, *parts.kwonlyargs, parts.kwarg]
    for hint in [*(one.annotation for one in every if one is not None), node.returns]:
        if hint is not None:
            yield from ast.walk(hint)


class Loader(SourceFileLoader):
    """Loads a module with its functions decorated."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:  # type: ignore[override]
        tree = Decorator().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        kept: Callable[..., str] = functools.partial(importlib.util.cache_from_source, optimization=CACHE)
        with patch("importlib._bootstrap_external.cache_from_source", kept):
            super().exec_module(module)


class Finder(MetaPathFinder):
    """Finds the modules to be decorated, and those below them."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = tuple(modules)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(fullname == module or fullname.startswith(f"{module}.") for module in self.modules):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes(modules: Iterable[str]) -> None:
    """From now on these modules are imported with their annotations checked."""
    sys.meta_path.insert(0, Finder(modules))
