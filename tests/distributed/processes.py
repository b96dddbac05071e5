"""Checks that several processes run together. One start of the processes runs all checks of a test file.

@on(2, 4)                                   in the test file: run by 2 processes, and by 4
def some_check(worker): return numbers

@pytest.fixture(scope="module")
def two(): return run_checks(__file__, 2)   {"some_check": [what rank 0 returned, what rank 1 returned]}
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_core.distributed.launch import Worker, run_processes


def on(*worlds: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function as a check for groups of these numbers of processes."""

    def mark(check: Callable[..., Any]) -> Callable[..., Any]:
        check.worlds = worlds  # type: ignore[attr-defined]
        return check

    return mark


def run_checks(file: str, n: int, *args: Any, timeout: float = 240) -> dict[str, list[Any]]:
    """Run a test file's checks for `n` processes in one start; what each rank returned, by the check's name.

    What checks return is read by this process: numbers, strings, tensors, and lists and dicts of them.
    """
    ranks = run_processes(f"{__file__}:work", n, file, *args, timeout=timeout)
    return {name: [results[name] for results in ranks] for name in ranks[0]}


def work(worker: Worker, file: str, *args: Any) -> dict[str, Any]:
    """What each process does: the checks, in the order of the file."""
    import_module("preloaded")  # shapes are checked as in any other test
    checks = [f for f in vars(_load(file)).values() if worker.world in getattr(f, "worlds", ())]
    assert checks, f"{file} has no check for {worker.world} processes"
    return {check.__name__: check(worker, *args) for check in checks}


def _load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
