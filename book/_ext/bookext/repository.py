"""Where this clone lives, so that every button on a page leads there and nowhere else.

In order: BOOK_REPOSITORY_URL (with BOOK_REPOSITORY_BRANCH), GitHub Actions' own variables, the git remote
`origin`. The launch, edit and issue buttons need GitHub; for any other home they are left out. BOOK_URL is
the address of the published book, BOOK_COLAB_BRANCH the branch that holds the Colab copies (the built site's
`colab/` folder, at the branch's root): Colab opens notebooks from a branch only.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

DEFAULT_BRANCH = "main"
DEFAULT_COLAB_BRANCH = "colab"


@dataclass(frozen=True)
class Place:
    """A repository's address without credentials, its branch, and the published book's address."""

    url: str = ""
    branch: str = DEFAULT_BRANCH
    book_url: str = ""
    colab_branch: str = DEFAULT_COLAB_BRANCH

    @property
    def on_github(self) -> bool:
        """Whether Colab, Binder and the edit links can find it."""
        return re.fullmatch(r"https://github\.com/[^/]+/[^/]+", self.url) is not None

    def file(self, path: str) -> str:
        """The address of a file for reading, or an empty string when there is none."""
        return f"{self.url}/blob/{self.branch}/{quote(path)}" if self.on_github else ""

    def page(self, docname: str) -> str:
        """The address of a page of the published book, or an empty string."""
        return f"{self.book_url}/{quote(docname)}.html" if self.book_url else ""

    def colab(self, docname: str) -> str:
        """The address that opens a page's Colab copy."""
        repository = self.url.removeprefix("https://github.com/")
        branch = quote(self.colab_branch)
        return f"https://colab.research.google.com/github/{repository}/blob/{branch}/{quote(docname)}.ipynb"


def tidy_url(remote: str) -> str:
    """A git remote as an https address, without user, password, port of ssh, or `.git`; "" for a local path.

    >>> tidy_url("git@github.com:someone/book.git")
    'https://github.com/someone/book'
    >>> tidy_url("https://x-access-token:secret@github.com/someone/book/")
    'https://github.com/someone/book'
    """
    remote = remote.strip()
    scp = re.fullmatch(r"(?:[^@/\s]+@)?([\w.-]+\.\w+):(?!//)(.+)", remote)
    if scp:
        host, path = scp.groups()
    else:
        parts = urlsplit(remote)
        if parts.scheme not in {"http", "https", "ssh", "git", "git+ssh"} or not parts.hostname:
            return ""
        host, path = parts.hostname, parts.path
        if parts.port and parts.scheme in {"http", "https"}:
            host = f"{host}:{parts.port}"
    path = path.strip("/").removesuffix(".git").strip("/")
    return f"https://{host.lower()}/{path}" if path else ""


def _git(folder: Path, *arguments: str) -> str:
    """What a git command prints, or "" where there is no git, no repository or no answer."""
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def find_place(folder: Path, environment: Mapping[str, str] = os.environ) -> Place:
    """The place of the clone in `folder`."""
    branch = environment.get("BOOK_REPOSITORY_BRANCH", "")
    url = tidy_url(environment.get("BOOK_REPOSITORY_URL", ""))
    if not url and environment.get("GITHUB_REPOSITORY"):
        server = environment.get("GITHUB_SERVER_URL", "https://github.com")
        url = tidy_url(f"{server}/{environment['GITHUB_REPOSITORY']}")
        if not branch and environment.get("GITHUB_REF_TYPE", "branch") == "branch":
            # A pull request's own ref is "12/merge", which is no branch.
            branch = environment.get("GITHUB_HEAD_REF") or environment.get("GITHUB_REF_NAME", "")
    # A book unpacked inside somebody else's repository must not point at that one.
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == folder.resolve():
        url = url or tidy_url(_git(folder, "remote", "get-url", "origin"))
        branch = branch or _git(folder, "symbolic-ref", "--short", "--quiet", "HEAD")
    return Place(
        url=url,
        branch=branch or DEFAULT_BRANCH,
        book_url=environment.get("BOOK_URL", "").strip().rstrip("/"),
        colab_branch=environment.get("BOOK_COLAB_BRANCH", "") or DEFAULT_COLAB_BRANCH,
    )


def fill_in(app: Sphinx, config: Config) -> None:
    """Hand the theme the clone's own address, or take its buttons away."""
    place = find_place(Path(app.srcdir))
    config["book_place"] = place
    if place.book_url:
        config["html_baseurl"] = place.book_url + "/"
    options = config.html_theme_options
    options["repository_url"] = place.url if place.on_github else ""
    options["repository_branch"] = place.branch
    for button in ("use_edit_page_button", "use_issues_button", "use_repository_button"):
        options[button] = place.on_github
    if not place.on_github:
        options["launch_buttons"] = {}


def open_the_colab_copy(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Send the Colab button to the copy with the install cell, not to the notebook of the repository."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("text") == "Colab":
                button["url"] = app.config.book_place.colab(pagename)


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.add_config_value("book_place", Place(), "html", types=(Place,))
    app.connect("config-inited", fill_in)
    app.connect("html-page-context", open_the_colab_copy, priority=900)
