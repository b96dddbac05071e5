"""The floors of llm_core hold, and the contract that says so can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    # The copy under test comes first on the path, before the installed package.
    env = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1", NO_COLOR="1")
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


def test_the_package_keeps_to_its_floors():
    answer = lint_imports(ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "llm_core", tmp_path / "llm_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken(folder: Path, contract: str) -> bool:
    answer = lint_imports(folder)
    return answer.returncode != 0 and f"{contract} BROKEN" in answer.stdout


def test_a_folder_that_no_floor_names_breaks_it(copy: Path):
    (copy / "llm_core" / "utils").mkdir()
    (copy / "llm_core" / "utils" / "__init__.py").write_text('"""An attic."""\n')
    answer = lint_imports(copy)
    assert answer.returncode != 0
    assert "utils" in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        # upwards
        ("layers/norms.py", "import llm_core.models.gpt", "A file imports only from floors below its own"),
        # sideways, between two folders of one floor
        ("training/losses.py", "import llm_core.models.gpt", "A file imports only from floors below its own"),
        # sideways, between two files of layers/
        ("layers/norms.py", "import llm_core.layers.masks", "No file in layers/ imports a sibling"),
        ("text/characters.py", "import torch", "Strings and ids need no torch"),
        ("layers/norms.py", "import beartype", "The package does not need what only its tests and its book need"),
    ],
)
def test_an_import_that_a_floor_forbids_breaks_it(copy: Path, file: str, line: str, contract: str):
    path = copy / "llm_core" / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert broken(copy, contract), lint_imports(copy).stdout
