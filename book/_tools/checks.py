"""Everything that CI checks, in phases: the quick ones first, so that a slip is known in seconds.

When a quick phase fails, the long ones are not begun (`KEEP_GOING=1` begins them). At the end come one line a
notebook, one an exercise and one a phase, and what is left of the budget; the same numbers are in `_build/reports` as
JSON. `--all` adds what is too slow for every change: a scheduled workflow runs it once a week.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import chromium
import notebook_rules as rules
import notebook_runs as runs
import psutil

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "_build" / "reports"

# What all phases may take on two cores once the book has all its chapters, without those that `--all` adds.
MINUTES = 45.0


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


def side_by_side(how: str = "worksteal") -> list[str]:
    """Arguments of pytest for several processes, and how they share the tests."""
    return ["-n", str(workers()), "--dist", how]


def notebook_phase(name: str = "notebooks", how: str = "", **env: str) -> Phase:
    """The notebooks, run anew, the longest first (tests/chapters/conftest.py), and the tests of what runs them."""
    # A process gets one at a time, when it is free.
    arguments = [*side_by_side("load"), "--maxschedchunk", "1", "-m", "slow"]
    tests = "tests/chapters/test_notebooks.py" if env else "tests/chapters"
    what = "fresh outputs against stored ones" + how
    return Phase(name, what, pytest=[tests, *arguments], before=None if env else forget_runs, env=env)


def book_phase(name: str, what: str, marks: str) -> Phase:
    """Tests of the built book. Those that share what is dear (a parsed site, a JupyterLab) go to one process."""
    return Phase(name, what, pytest=["tests/book", *side_by_side("loadgroup"), "-m", marks], before=find_browser)


def extra_phases() -> list[Phase]:
    """What `make test` leaves out and `make test-all` adds."""
    return [
        notebook_phase("portable", ", as on another processor", LLM_BOOK_PORTABLE="1"),
        notebook_phase("perturbed", ", each matrix product a few units off", LLM_BOOK_PERTURBED="1"),
        book_phase("full", "every page before axe, every notebook in JupyterLab", "full"),
        Phase("faults", "two hundred faults at random moments of a run", pytest=["tests/training", "-m", "full"]),
    ]


def phases() -> list[Phase]:
    """Every phase of `make test`, in the order in which they run."""
    python = sys.executable
    separate = ["project", "chapters", "exercises", "book"]
    return [
        Phase("lint", "ruff check", True, command=[python, "-m", "ruff", "check", "--quiet", "."]),
        Phase("format", "ruff format --check", True, command=[python, "-m", "ruff", "format", "--check", "."]),
        Phase("types", "mypy", True, command=[python, "-m", "mypy"]),
        Phase(
            "names",
            "mypy over tests and benchmarks",
            True,
            command=[python, "-m", "mypy", "--config-file", "tests/mypy.ini"],
        ),
        Phase(
            "project",
            "import contract, lock, committed notebooks",
            True,
            pytest=["tests/project", "tests/chapters", *side_by_side(), "-m", "not slow"],
        ),
        Phase(
            "units",
            "unit tests and doctests, shapes checked at run time",
            pytest=["tests", *side_by_side(), "-m", "not slow and not browser and not full"]
            + [f"--ignore=tests/{folder}" for folder in separate],
        ),
        Phase("exercises", "solutions, stubs and mutants", pytest=["tests/exercises", *side_by_side()]),
        notebook_phase(),
        book_phase("book", "the built book in a browser", "not full"),
        Phase(
            "slow",
            "installation, other long tests",
            pytest=["tests", *side_by_side(), "-m", "slow"] + [f"--ignore=tests/{folder}" for folder in separate[1:]],
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


def exercises(report: Path) -> dict[str, tuple[int, float]]:
    """For each exercise, by its name, how many tests it has and how many seconds they took, the dearest first."""
    found: dict[str, tuple[int, float]] = {}
    if report.is_file():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            named = re.search(r"\[(?:.*-)?(\d\d/\d\d_\w+)", case.get("name", ""))
            name = named[1] if named else "of all together"
            tests, seconds = found.get(name, (0, 0.0))
            found[name] = (tests + 1, seconds + float(case.get("time", 0)))
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def environment(phase: Phase) -> dict[str, str]:
    """The environment variables of a phase's command."""
    env = dict(os.environ, PYTHONUNBUFFERED="1")
    # Processes run side by side: one thread each (two busy processes with two threads each crawl).
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        env.setdefault(name, "1")
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    return env | phase.env


def run_together(chosen: list[Phase]) -> list[Outcome]:
    """Run phases that are one command each, as many at a time as there are cores; each one's output when it ends."""

    def work(phase: Phase) -> tuple[Phase, subprocess.CompletedProcess[str], float]:
        started = time.monotonic()
        result = subprocess.run(
            phase.command,
            cwd=ROOT,
            env=environment(phase),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return phase, result, time.monotonic() - started

    outcomes = []
    with ThreadPoolExecutor(workers()) as pool:
        for phase, result, seconds in pool.map(work, chosen):
            print(f"\n=== {phase.name}: {phase.what}\n{result.stdout}", end="", flush=True)
            good = result.returncode == 0
            outcomes.append(Outcome(phase.name, result.returncode, seconds, int(good), int(not good)))
    return outcomes


def run(phase: Phase) -> Outcome:
    """Run one phase of tests, with its output shown as it comes."""
    print(f"\n=== {phase.name}: {phase.what}", flush=True)
    started = time.monotonic()
    if phase.before is not None:
        phase.before()
    report = REPORTS / f"{phase.name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *phase.pytest]
    status = subprocess.run(command, cwd=ROOT, env=environment(phase), stdin=subprocess.DEVNULL).returncode
    if status == 5:
        print(f"The phase {phase.name} found no test; that is a failure too.")
    passed, failed, skipped = counts(report)
    if status and not failed:
        failed = 1
    return Outcome(phase.name, status, time.monotonic() - started, passed, failed, skipped)


def summary(outcomes: list[Outcome], left_out: list[str], minutes: float) -> None:
    """Print the closing table, and keep it as JSON; `minutes` is what the phases of `make test` took together."""
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
    each = exercises(REPORTS / "exercises.xml")
    if each and any(outcome.phase == "exercises" for outcome in outcomes):
        print(f"\n{'exercise':58} {'tests':>5} {'seconds':>8}")
        for name, (tests, seconds) in each.items():
            print(f"{name:58} {tests:5d} {seconds:8.1f}")
        rows = [{"exercise": name, "tests": tests, "seconds": seconds} for name, (tests, seconds) in each.items()]
        (REPORTS / "exercises.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
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
    print(f"\n{minutes:.1f} of {MINUTES:.0f} minutes; {MINUTES - minutes:.1f} are left for the chapters to come")
    passed, failed, skipped = (sum(getattr(o, what) for o in outcomes) for what in ("passed", "failed", "skipped"))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)


def main() -> int:
    """Entry point of `make test`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="phases to run, separated by commas")
    parser.add_argument("--keep-going", action="store_true", help="begin the long phases even when a quick one failed")
    parser.add_argument("--all", action="store_true", help="also what is too slow for every change")
    parser.add_argument("--notebook", default="", help="where notebooks are run, only this one")
    arguments = parser.parse_args()
    os.environ["LLM_BOOK_NOTEBOOK"] = arguments.notebook
    every = [*phases(), *extra_phases()]
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    unknown = set(names) - {phase.name for phase in every}
    if unknown:
        print(
            f"There is no phase {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in every)}.",
            file=sys.stderr,
        )
        return 2
    chosen = [phase for phase in every if phase.name in names] if names else every if arguments.all else phases()
    outcomes: list[Outcome] = []
    left_out: list[str] = []
    extra = {phase.name for phase in extra_phases()}
    started = time.monotonic()
    try:
        outcomes += run_together([phase for phase in chosen if phase.command])
        seconds = time.monotonic() - started
        for phase in chosen:
            if phase.command:
                continue
            if not phase.quick and not arguments.keep_going and any(o.status for o in outcomes if o.phase in QUICK):
                left_out.append(phase.name)
                continue
            outcomes.append(run(phase))
            seconds += 0.0 if phase.name in extra else outcomes[-1].seconds
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    summary(outcomes, left_out, seconds / 60)
    return int(any(outcome.status for outcome in outcomes))


QUICK = {phase.name for phase in phases() if phase.quick}


if __name__ == "__main__":
    sys.exit(main())
