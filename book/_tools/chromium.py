"""Find the Chromium that the book's tests drive, and install it where that can be done unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What the tests read; setting it by hand picks a browser.
VARIABLE = "LLM_BOOK_CHROMIUM"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)

ADVICE = (
    "The tests that look at the built book need Chromium or Chrome:\n"
    "  Debian:         sudo apt-get install chromium\n"
    "  Ubuntu:         sudo snap install chromium, or Google Chrome's own package\n"
    "  Fedora:         sudo dnf install chromium\n"
    "  macOS:          brew install --cask chromium\n"
    "  anywhere else:  .venv/bin/python -m playwright install chromium\n"
    f"or set {VARIABLE} to the path of one."
)


def runs(path: str) -> bool:
    """Whether the program at `path` starts: Ubuntu's chromium-browser package is only a pointer to a snap."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find() -> str | None:
    """Path of a Chromium that starts, or None."""
    given = os.environ.get(VARIABLE)
    if given:
        return given if runs(given) else None
    candidates = [shutil.which(name) for name in NAMES] + [place for place in PLACES if Path(place).is_file()]
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:  # where `playwright install` puts its own
            candidates.append(playwright.chromium.executable_path)
    except Exception:  # no playwright yet, or none for this system: the names above are all there is
        pass
    for candidate in candidates:
        if candidate and Path(candidate).exists() and (sys.platform == "win32" or runs(candidate)):
            return candidate
    return None


def install() -> str | None:
    """Install Chromium with Debian's or Ubuntu's package manager, as root or with a sudo that asks nothing."""
    if not shutil.which("apt-get"):
        return None
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    prefix = [] if root else ["sudo", "-n", "env"]
    if not root:
        able = shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
        if not able:
            return None
    prefix = [*prefix, "DEBIAN_FRONTEND=noninteractive"] if prefix else ["env", "DEBIAN_FRONTEND=noninteractive"]
    print("Installing Chromium for the tests of the built book ...", flush=True)
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        subprocess.run([*prefix, "apt-get", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return find()


def ensure() -> str | None:
    """Path of a Chromium, installed now if need be; None, with advice on stderr, where there is none."""
    found = find() or install()
    if found is None:
        print(ADVICE, file=sys.stderr)
    return found


if __name__ == "__main__":
    path = ensure()
    print(path or "")
    sys.exit(path is None)
