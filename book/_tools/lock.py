"""Refresh `requirements.lock`: every version, for every system the book runs on.

uv resolves pyproject.toml with all extras for Linux, macOS and Windows and Python 3.11 to 3.13 at once,
and keeps each version that is already pinned unless pyproject.toml no longer allows it. With
`--upgrade` it takes the newest of everything (then run the whole of `make test`), with
`--upgrade-package NAME` the newest of one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEADER = """\
# Every version that the book is built and tested with, on Linux, macOS and Windows, Python 3.11 to 3.13.
# A constraints file: installs only what the extras ask for, at these versions, with
#   pip install -c requirements.lock -e ".[book,compiled,lab,metrics,scale,serve,tensorboard,weights,test]"
# Made by `make lock` (uv pip compile --universal); do not edit it.
# On Linux, PyPI's torch brings the NVIDIA libraries pinned here; a CPU build of the same version
# (torch 2.13.0+cpu) satisfies this file too, and brings none of them.
"""


def main() -> int:
    """Entry point of `make lock`."""
    lock = ROOT / "requirements.lock"
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        # Beside the environment, not in it: nothing else needs uv.
        installed = subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", folder, "uv"])
        if installed.returncode:
            print("uv could not be installed; requirements.lock is as it was.", file=sys.stderr)
            return 1
        new = Path(folder, "new.lock")
        new.write_text(lock.read_text(encoding="utf-8") if lock.is_file() else "", encoding="utf-8")
        environment = dict(os.environ, UV_NO_CONFIG="1")
        if os.environ.get("PIP_INDEX_URL"):
            environment["UV_DEFAULT_INDEX"] = os.environ["PIP_INDEX_URL"]
        command = [str(Path(folder, "bin", "uv")), "pip", "compile", "pyproject.toml", "--all-extras", "--universal"]
        command += ["--python-version", "3.11", "--no-annotate", "--no-header", "--quiet", "-o", str(new)]
        if subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment).returncode:
            print("No set of versions fits; requirements.lock is as it was.", file=sys.stderr)
            return 1
        # Browsers run no Jupyter kernel of this book; what only they would need stays out.
        pins = [line for line in new.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        pins = [line for line in pins if not re.search(r"sys_platform == 'emscripten'$", line)]
    part = lock.with_suffix(".lock.part")
    part.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    part.replace(lock)
    print(f"{lock.name}: {len(pins)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
