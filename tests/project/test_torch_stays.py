"""Installing the package where a recent torch already is (Colab) leaves that torch alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = pytest.mark.slow


def stub(folder: Path, name: str, version: str) -> Path:
    """A wheel with nothing in it but its name."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pip(*arguments: str | Path) -> str:
    """Run pip with no settings and no index: everything comes from the test's own folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def project_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "llm_core", folder / "llm_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", *PROJECT["license-files"]):
        shutil.copy(ROOT / name, folder)
    (folder / PROJECT["readme"]).write_text("Read by the build, of no matter here.\n", encoding="utf-8")
    pip("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder / "wheels", folder)
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every dependency of the package, and torch in three versions."""
    folder = tmp_path_factory.mktemp("index")
    pinned = dict(
        line.partition(" ")[0].split("==")
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    for line in PROJECT["dependencies"]:
        name = canonicalize_name(Requirement(line).name)
        stub(folder, name, pinned[name])
    for version in ("2.13.0", "2.15.0"):
        stub(folder, "torch", version)
    return folder


def would_install(tmp_path: Path, index: Path, torch: str, *arguments: str | Path) -> dict[str, str]:
    """What pip would install, where torch `torch` is already."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=240)
    pip("--python", place, "install", "--quiet", "--no-index", "--no-deps", stub(tmp_path, "torch", torch))
    report = tmp_path / "report.json"
    source = ["--no-index", "--find-links", str(index)]
    pip("--python", place, "install", "--quiet", "--dry-run", "--report", report, *source, *arguments)
    items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in items}


@pytest.mark.parametrize("torch", ["2.6.0", "2.13.0", "2.14.0+cu130"])
def test_the_torch_that_is_there_stays(tmp_path: Path, index: Path, project_wheel: Path, torch: str):
    installed = would_install(tmp_path, index, torch, project_wheel)
    assert "llm-core" in installed
    assert "numpy" in installed
    assert "torch" not in installed


def test_the_lock_would_replace_it(tmp_path: Path, index: Path, project_wheel: Path):
    # Why a Colab copy installs without the lock; and that the test above can fail.
    installed = would_install(tmp_path, index, "2.14.0", project_wheel, "-c", ROOT / "requirements.lock")
    assert installed["torch"] == "2.13.0"


def test_one_that_is_too_old_is_replaced(tmp_path: Path, index: Path, project_wheel: Path):
    assert would_install(tmp_path, index, "2.1.0", project_wheel)["torch"] == "2.15.0"
