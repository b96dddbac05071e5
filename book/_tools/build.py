"""Build the static book into `_build/html`, when anything it is made of has changed.

Sphinx reports a broken reference only while it reads the page that has it: an unchanged second build
of a broken book ends well. So a build that failed is followed by one from nothing, and so is a change
of the settings or of the extensions. `tests/book` always builds from nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The command without its script, whose first line a path with spaces or of great length would break.
LAUNCH = "from jupyter_book.cli.main import main; main()"

# What a page is made of, and what makes every page.
PAGES = ("chapters", "book", "llm_core", "CITATION.cff", "CONTRIBUTING.md", "README.md", "pyproject.toml")
MACHINERY = ("_config.yml", "_toc.yml", "book/_ext", "book/_static", "book/_templates", "requirements.lock")
IGNORED = {"__pycache__", ".ipynb_checkpoints", "_tools", "api"}  # book/api is made by the build


def files_of(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Every file below the named files and folders, in a fixed order."""
    found: list[Path] = []
    for name in names:
        path = root / name
        if path.is_file():
            found.append(path)
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(set(folders) - IGNORED)
            found.extend(Path(folder, file) for file in sorted(files) if not file.endswith(".pyc"))
    return found


def digest(root: Path, names: tuple[str, ...], extra: str = "") -> str:
    """Hash of the names and contents of those files."""
    total = hashlib.sha256(extra.encode())
    for path in files_of(root, names):
        total.update(str(path.relative_to(root)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def remote(root: Path) -> str:
    """What the launch buttons are made from: the clone's remote and branch, and the variables over them."""
    answers = []
    for command in (["config", "--get", "remote.origin.url"], ["rev-parse", "--abbrev-ref", "HEAD"]):
        try:
            answer = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True)
            answers.append(answer.stdout.strip())
        except OSError:
            answers.append("")
    names = sorted(name for name in os.environ if name.startswith(("BOOK_", "GITHUB_REPOSITORY", "GITHUB_REF")))
    return json.dumps([answers, {name: os.environ[name] for name in names}])


def build(root: Path = ROOT, *, clean: bool = False) -> int:
    """Build if needed. Returns Sphinx's exit status, 0 when there was nothing to do."""
    out = root / "_build"
    stamp = out / "book.stamp.json"
    wanted = {
        "pages": digest(root, PAGES),
        "machinery": digest(root, MACHINERY, sys.version + remote(root)),
    }
    stored = {}
    if stamp.is_file() and (out / "html" / "index.html").is_file():
        try:
            stored = json.loads(stamp.read_text(encoding="utf-8"))
        except ValueError:
            stored = {}
    if stored == wanted and not clean:
        return 0
    stamp.unlink(missing_ok=True)
    if clean or stored.get("machinery") != wanted["machinery"]:
        shutil.rmtree(out / "html", ignore_errors=True)
        shutil.rmtree(out / ".doctrees", ignore_errors=True)
    command = [sys.executable, "-c", LAUNCH, "build", ".", "-W", "-n", "--keep-going"]
    quiet = [] if os.environ.get("VERBOSE") else ["-q"]
    print("Building the book ...", flush=True)
    # Sphinx forks nothing here, but the extensions may run programs that want the environment's scripts.
    env = dict(os.environ, PATH=str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""))
    status = subprocess.run([*command, *quiet], cwd=root, env=env).returncode
    if status == 0 and not (out / "html" / "index.html").is_file():
        print("The build ended well but wrote no _build/html/index.html.", file=sys.stderr)
        status = 1
    if status == 0:
        stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return status


def main() -> int:
    """Entry point of `make book`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", action="store_true", help="build every page again")
    arguments = parser.parse_args()
    try:
        status = build(clean=arguments.clean)
    except KeyboardInterrupt:
        return 130
    if status:
        print("\nThe book was not built; the messages are above.", file=sys.stderr)
        return status
    print(f"The book is at {ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
