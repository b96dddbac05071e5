"""What every test runs under: shapes checked at run time, one thread a process, no silent skip in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest

# pytest imports tests without touching sys.path (importlib mode); `shape_checks` is the module beside this file.
sys.path.insert(0, str(Path(__file__).parent))

from shape_checks import check_shapes

# A process that has others beside it takes one thread; torch reads this when it is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# jsonschema, and so nbformat, would compile its grammar for two seconds in every process; no test needs it.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# Every annotation in llm_core, of shapes and of types, is checked at every call, in the tests and only there.
# This file is loaded before any test, and so before anything imports llm_core.
# Exercises are left out: they have no such annotations, and a checker's functions inside functions would be decorated
# anew at every call, which makes one check 27 times slower.
_PACKAGE = Path(str(find_spec("llm_core").origin)).parent
_CHECKED = [
    f"llm_core.{path.stem}"
    for path in sorted(_PACKAGE.iterdir())
    if path.stem not in ("exercises", "compression", "__init__")
]
# Nor are functions that numba compiles: it would compile the decorator.
_CHECKED += [
    f"llm_core.compression.{path.stem}"
    for path in sorted((_PACKAGE / "compression").glob("*.py"))
    if path.stem not in ("decode_step", "vectors", "__init__")
]
check_shapes(_CHECKED)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run as a reader does, without the shape checks of the tests, so that llm_core's own errors can be seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a browser test that is skipped has failed: there, Chromium is to be had."""
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get("CI", "").lower() == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI=true does not accept a skipped browser test. {reason}"
    return report
