"""Every chapter, run anew without a network: its fresh outputs are its stored ones, within its budget."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_tools"))

import notebook_rules as rules  # noqa: E402
import notebook_runs as runs  # noqa: E402
from notebooks import notebooks  # noqa: E402

EVERY = notebooks(None)
CHAPTERS = [path for path in EVERY if not rules.is_exercise(path)]
ASKED_FOR = os.environ.get("LLM_BOOK_NOTEBOOK")
if ASKED_FOR:
    CHAPTERS = [path for path in CHAPTERS if path == (ROOT / ASKED_FOR).resolve()]


def name(path: Path) -> str:
    return path.relative_to(ROOT / "chapters").as_posix()


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_it_may_be_committed(path: Path):
    text = path.read_text(encoding="utf-8")
    assert rules.problems(rules.read(path), path, text) == []


@pytest.fixture(scope="module", autouse=True)
def _font_cache():
    runs.warm_up()


@pytest.mark.slow
@pytest.mark.timeout(runs.HARD_SECONDS + 60)
@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_fresh_outputs_are_the_stored_ones(path: Path):
    threads = int(os.environ.get("LLM_BOOK_THREADS", "1"))
    portable, perturbed = (os.environ.get(f"LLM_BOOK_{name}") == "1" for name in ("PORTABLE", "PERTURBED"))
    run = runs.validate(path, threads=threads, portable=portable, perturbed=perturbed)
    if not portable and not perturbed:
        runs.record(run)
    assert run.ok, "\n".join([f"{run.notebook}:", *run.problems, run.output])
