"""Everything that CI checks, in phases: the quick ones first, so that a slip is known in seconds.

When a quick phase fails, the long ones are not begun (`KEEP_GOING=1` begins them). At the end come one
line a phase and one line a notebook; the same numbers are in `_build/reports` as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import chromium
import notebook_rules as rules
import notebook_runs as runs
import psutil

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "_build" / "reports"


def workers() -> int:
    """How many test processes run side by side: one a core, and 4 GB for each."""
    given = os.environ.get("TEST_WORKERS")
    if given:
        return max(1, int(given))
    return max(1, min(os.cpu_count() or 1, int(psutil.virtual_memory().total / 4e9), 8))


@dataclass
class Phase:
    """One command, or one pytest run when `pytest` has arguments."""

    name: str
    what: str
    quick: bool = False
    command: list[str] = field(default_factory=list)
    pytest: list[str] = field(default_factory=list)
    before: Callable[[], None] | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a phase went."""

    phase: str
    status: int
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def find_browser() -> None:
    """Tell the browser tests where Chromium is, and install it where possible."""
    found = chromium.ensure()
    if found is not None:
        os.environ[chromium.VARIABLE] = found


def phases(portable: bool = False) -> list[Phase]:
    """Every phase, in the order in which they run."""
    python = sys.executable
    side_by_side = ["-n", str(workers()), "--dist", "worksteal"]
    separate = ["project", "chapters", "exercises", "book"]
    return [
        Phase("lint", "ruff check", True, command=[python, "-m", "ruff", "check", "--quiet", "."]),
        Phase("format", "ruff format --check", True, command=[python, "-m", "ruff", "format", "--check", "."]),
        Phase("types", "mypy", True, command=[python, "-m", "mypy"]),
        Phase(
            "project",
            "import contract, lock, committed notebooks",
            True,
            pytest=["tests/project", "tests/chapters", "-m", "not slow"],
        ),
        Phase(
            "units",
            "unit tests and doctests, shapes checked at run time",
            pytest=["tests", "llm_core", "--doctest-modules", *side_by_side, "-m", "not slow and not browser"]
            + [f"--ignore=tests/{folder}" for folder in separate],
        ),
        Phase("exercises", "solutions, stubs and mutants", pytest=["tests/exercises", *side_by_side]),
        Phase(
            "notebooks",
            "fresh outputs against stored ones" + (", as on another processor" if portable else ""),
            pytest=["tests/chapters", *side_by_side, "-m", "slow"],
            before=forget_runs,
            env={"LLM_BOOK_PORTABLE": "1"} if portable else {},
        ),
        Phase("book", "the built book in a browser", pytest=["tests/book"], before=find_browser),
        Phase(
            "slow",
            "installation, other long tests",
            pytest=["tests", *side_by_side, "-m", "slow"] + [f"--ignore=tests/{folder}" for folder in separate[1:]],
        ),
    ]


def forget_runs() -> None:
    """Begin the notebooks' report anew."""
    for file in (REPORTS / "notebooks").glob("*.json"):
        file.unlink()


def counts(report: Path) -> tuple[int, int, int]:
    """Tests passed, failed (or in error) and skipped, from pytest's XML report."""
    if not report.is_file():
        return 0, 0, 0
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    failed = totals["failures"] + totals["errors"]
    return totals["tests"] - failed - totals["skipped"], failed, totals["skipped"]


def run(phase: Phase) -> Outcome:
    """Run one phase, with its output shown as it comes."""
    print(f"\n=== {phase.name}: {phase.what}", flush=True)
    started = time.monotonic()
    if phase.before is not None:
        phase.before()
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    # Processes run side by side: one thread each (two busy processes with two threads each crawl).
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        env.setdefault(name, "1")
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    env.update(phase.env)
    if not phase.pytest:
        status = subprocess.run(phase.command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode
        return Outcome(phase.name, status, time.monotonic() - started, int(status == 0), int(status != 0))
    report = REPORTS / f"{phase.name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *phase.pytest]
    status = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode
    if status == 5:
        print(f"The phase {phase.name} found no test; that is a failure too.")
    passed, failed, skipped = counts(report)
    if status and not failed:
        failed = 1
    return Outcome(phase.name, status, time.monotonic() - started, passed, failed, skipped)


def summary(outcomes: list[Outcome], left_out: list[str]) -> None:
    """Print the closing table, and keep it as JSON."""
    kept = list(runs.recorded())
    ran_notebooks = any(outcome.phase == "notebooks" for outcome in outcomes)
    if kept and ran_notebooks:
        labels = {}
        for run_ in kept:
            path = ROOT / run_["notebook"]
            label = rules.cost_label(rules.read(path)) if path.is_file() else None
            if label is not None:
                labels[run_["notebook"]] = label
        print("\n" + runs.table(kept, labels))
        (REPORTS / "notebooks.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'phase':12} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    for outcome in outcomes:
        mark = "" if outcome.status == 0 else "   FAILED"
        print(
            f"{outcome.phase:12} {outcome.passed:7d} {outcome.failed:7d} {outcome.skipped:8d} "
            f"{outcome.seconds:8.1f}{mark}"
        )
    for name in left_out:
        print(f"{name:12} {'not begun, because a quick phase failed':>40}")
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "checks.json").write_text(
        json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8"
    )
    passed, failed, skipped = (sum(getattr(o, what) for o in outcomes) for what in ("passed", "failed", "skipped"))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)


def main() -> int:
    """Entry point of `make test`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="phases to run, separated by commas")
    parser.add_argument("--keep-going", action="store_true", help="begin the long phases even when a quick one failed")
    parser.add_argument("--portable", action="store_true", help="notebooks as on another processor")
    arguments = parser.parse_args()
    chosen = phases(arguments.portable)
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    unknown = set(names) - {phase.name for phase in chosen}
    if unknown:
        print(
            f"There is no phase {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in chosen)}.",
            file=sys.stderr,
        )
        return 2
    if names:
        chosen = [phase for phase in chosen if phase.name in names]
    outcomes: list[Outcome] = []
    left_out: list[str] = []
    try:
        for phase in chosen:
            if not phase.quick and not arguments.keep_going and any(o.status for o in outcomes if o.phase in QUICK):
                left_out.append(phase.name)
                continue
            outcomes.append(run(phase))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    summary(outcomes, left_out)
    return int(any(outcome.status for outcome in outcomes))


QUICK = {phase.name for phase in phases() if phase.quick}


if __name__ == "__main__":
    sys.exit(main())
