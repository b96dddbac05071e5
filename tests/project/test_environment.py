"""`make env` and `make book`: done once, done again when they must be, never half done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_tools"))

import build  # noqa: E402
import environment  # noqa: E402

pytestmark = pytest.mark.skipif(os.name == "nt", reason="make is for Linux and macOS")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which installing only takes note that it happened."""
    root = tmp_path / "a checkout"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "requirements.lock", root)
    shutil.copy(ROOT / "weights.txt", root)

    def install(root: Path, venv: Path) -> None:
        assert (venv / ".installing").exists()
        assert not (venv / ".book-environment").exists()
        (venv / "installs").open("a").write("x")

    monkeypatch.setattr(environment, "install", install)
    monkeypatch.delenv("LLM_BOOK_PYTHON_GIVEN", raising=False)
    return root


def installs(root: Path) -> int:
    """How often this very environment was installed into."""
    return len((root / ".venv" / "installs").read_text())


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_it_must_be(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert environment.ensure(project)
    assert not environment.ensure(project)
    # a linter's setting changes nothing that is installed
    pyproject = project / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "\n[tool.other]\nx = 1\n")
    assert not environment.ensure(project)
    # a pin does, and the environment that is there is brought up to date
    with (project / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert environment.ensure(project)
    assert installs(project) == 2
    # and so do the published weights
    with (project / "weights.txt").open("a") as weights:
        weights.write("# changed\n")
    assert environment.ensure(project)
    assert installs(project) == 3

    # an installation that was cut off is begun again from nothing
    def cut_off(root: Path, venv: Path) -> None:
        raise KeyboardInterrupt

    with (project / "requirements.lock").open("a") as lock:
        lock.write("# changed again\n")
    with monkeypatch.context() as patch:
        patch.setattr(environment, "install", cut_off)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure(project)
    assert not (project / ".venv" / ".book-environment").exists()
    assert environment.ensure(project)
    assert installs(project) == 1

    # a moved checkout: the scripts in its environment name the old place
    moved = project.with_name("elsewhere")
    project.rename(moved)
    assert environment.ensure(moved)
    assert installs(moved) == 1
    assert str(moved) in (moved / ".venv" / "bin" / "activate").read_text()


def test_a_folder_that_is_no_environment_is_left_alone(project: Path):
    (project / ".venv").mkdir()
    (project / ".venv" / "letters.txt").write_text("dear")
    with pytest.raises(environment.EnvironmentFailure, match="not a Python environment"):
        environment.ensure(project)
    assert (project / ".venv" / "letters.txt").read_text() == "dear"


def bootstrap(python: str, path: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": path, "HOME": os.environ.get("HOME", "/")}
    command = ["/bin/sh", "book/_tools/bootstrap.sh", python]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def fake_python(folder: Path, name: str, status: int) -> Path:
    path = folder / name
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {status}\necho "ran $0 $1"\n')
    path.chmod(0o755)
    return path


def test_without_a_suitable_python_it_says_what_to_do(tmp_path: Path):
    fake_python(tmp_path, "python3", 1)
    answer = bootstrap("", str(tmp_path))
    assert answer.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in answer.stderr
    assert "PYTHON=" in answer.stderr


def test_it_takes_the_first_python_that_suits(tmp_path: Path):
    fake_python(tmp_path, "python3.11", 1)  # a pyenv shim of a version that is not there
    fake_python(tmp_path, "python3.12", 0)
    answer = bootstrap("", str(tmp_path))
    assert answer.stdout.strip() == f"ran {tmp_path}/python3.12 book/_tools/environment.py"


@pytest.mark.parametrize("python", ["/no/such/python", "false"])
def test_a_given_python_that_does_not_suit_is_an_error(tmp_path: Path, python: str):
    fake_python(tmp_path, "python3.11", 0)
    answer = bootstrap(python, f"{tmp_path}:/usr/bin:/bin")
    assert answer.returncode == 1
    assert python in answer.stderr


# --- the book ---


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one page."""
    (tmp_path / "_config.yml").write_text("title: t\nexecute: {execute_notebooks: 'off'}\nonly_build_toc_files: true\n")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").write_text("# Title\n\nText.\n")
    return tmp_path


@pytest.mark.slow
def test_a_book_is_built_once_and_a_broken_one_never_passes(book: Path, capfd: pytest.CaptureFixture[str]):
    index = book / "_build" / "html" / "book" / "index.html"
    assert build.build(book) == 0
    first = index.stat().st_mtime_ns
    assert build.build(book) == 0
    assert index.stat().st_mtime_ns == first, "an unchanged book was built again"

    page = book / "book" / "index.md"
    page.write_text("# Title\n\n[a link](nowhere.md)\n")
    assert build.build(book) != 0
    # Sphinx itself is content when it is asked a second time
    assert build.build(book) != 0
    assert not (book / "_build" / "book.stamp.json").exists()

    page.write_text("# Title\n\nMended.\n")
    assert build.build(book) == 0
    assert "Mended." in index.read_text()


def test_what_a_page_is_made_of_is_noticed(book: Path):
    before = build.digest(book, build.PAGES)
    (book / "book" / "_tools").mkdir()
    (book / "book" / "_tools" / "x.py").write_text("1")  # no part of a page
    assert build.digest(book, build.PAGES) == before
    (book / "chapters").mkdir()
    (book / "chapters" / "x.ipynb").write_text("{}")
    after = build.digest(book, build.PAGES)
    assert after != before
    (book / "chapters" / "x.ipynb").rename(book / "chapters" / "y.ipynb")
    assert build.digest(book, build.PAGES) != after
