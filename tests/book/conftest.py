"""The book is built once for all tests and processes, from nothing, in a temporary folder; then a browser opens it."""

from __future__ import annotations

import functools
import http.server
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# The tests' own helpers, the book's extension and the project's tools, none of which is installed.
ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/book", "book/_ext", "book/_tools"):
    sys.path.insert(0, str(ROOT / folder))

from bookkit import BOOK_URL, BUILD_SECONDS, REPOSITORY, Site, build_book, built_once  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process builds the site for its own tests. The others then do what needs no site, and wait for it last."""
    for item in items:
        if needs_site(item):
            item.add_marker(pytest.mark.timeout(2 * BUILD_SECONDS))
    items.sort(key=lambda item: 0 if needs_site(item) and scope(item.nodeid) == "site" else 1 + needs_site(item))


def needs_site(item: pytest.Item) -> bool:
    return "site" in getattr(item, "fixturenames", ())


def scope(nodeid: str) -> str:
    """Tests of one scope go to one process: those that read the parsed site, and those in JupyterLab."""
    if "jupyterlab" in nodeid:
        return "JupyterLab"
    return "site" if re.search(r"test_site|test_api|test_colab", nodeid) else nodeid


class TogetherWhatIsDear(LoadScopeScheduling):
    """Tests of one scope go to one process, and any other goes where there is room.

    xdist's own `loadgroup` looks for the names of groups where pytest 9.2 no longer keeps them.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TogetherWhatIsDear | None:
    """The book's own way of sharing tests, under the name of xdist's."""
    return TogetherWhatIsDear(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The book as the clone of a GitHub repository builds it."""
    places = {"BOOK_REPOSITORY_URL": REPOSITORY, "BOOK_REPOSITORY_BRANCH": "main", "BOOK_URL": BOOK_URL}
    built = built_once(tmp_path_factory, "site", lambda folder: build_book(ROOT, folder / "out", **places))
    if not (built.html / "index.html").is_file():
        pytest.fail(f"the book was not built:\n{built.log[-4000:]}")
    return built


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def server(site: Site) -> Iterator[str]:
    """The site's address on a local web server."""
    handler = functools.partial(_Quiet, directory=str(site.html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is; the test is skipped where there is none (under CI=true that fails)."""
    import chromium

    found = chromium.find()
    if found is None:
        pytest.skip(chromium.ADVICE)
    return found


@pytest.fixture(scope="session")
def browser(chromium_path: str) -> Iterator[Any]:
    """One headless Chromium for the session."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield running
        running.close()
