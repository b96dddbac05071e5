"""Open JupyterLab on the book, with the environment's own kernel as the default one."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Become JupyterLab: extra arguments come from the command line and from LAB_ARGS."""
    arguments = sys.argv[1:] + shlex.split(os.environ.get("LAB_ARGS", ""))
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in arguments:
        arguments.append("--allow-root")  # containers; it still listens on this machine only, with a token
    environment = dict(os.environ, JUPYTER_PREFER_ENV_PATH="1")
    # `!command` in a notebook finds the environment's programs, as an activated environment would.
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment.get("PATH", "")
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={ROOT}", *arguments]
    os.chdir(ROOT)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
