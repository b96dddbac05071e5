"""The notebooks away from the page: in JupyterLab, and as Colab copies where torch is and the package is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bookkit import CHAPTERS, NOTEBOOKS, REPOSITORY, ROOT, Site, constructs, notebook

# --- JupyterLab --------------------------------------------------------------------------------------

# What MyST looks like when JupyterLab does not know what to do with it.
RAW_IN_LAB = r"""() => [...document.querySelectorAll('.myst, .jp-RenderedMarkdown')].flatMap(cell => {
    const found = [...cell.querySelectorAll('[title$="Not Found"]')].map(e => `${e.title}: ${e.textContent}`);
    const prose = cell.cloneNode(true);
    for (const code of prose.querySelectorAll('pre, code, .katex')) code.remove();
    const raw = /\{[a-z][\w:-]*\}`?|:{3,}|^\([^()\s]+\)=\s*$|\$\$|accTitle|Syntax error/gm;
    return found.concat(prose.textContent.match(raw) ?? []);
})"""

UNKNOWN = notebook("# T\n\n{numref}`nowhere` {cite:p}`nobody1900` {nonsense}`x`\n\n$$ a $$ (eq-x)\n\n{eq}`eq-x`")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks, with settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("chapters", "book"):
        shutil.copytree(ROOT / name, folder / "root" / name, ignore=shutil.ignore_patterns("_*", ".*"))
    nbformat.write(UNKNOWN, folder / "root/unknown.ipynb")
    homes = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--ServerApp.port_retries=0",
    ]
    # No kernel: nothing is run here, and each would take a second of both cores.
    command += ["--KernelSpecManager.ensure_native_kernel=False", "--KernelSpecManager.allowed_kernelspecs={'none'}"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder / 'root'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **homes}, stdout=log, stderr=log)
        try:
            yield address_of(folder / "runtime", server)
        finally:
            server.terminate()
            server.wait(timeout=60)


def address_of(runtime: Path, server: subprocess.Popen[bytes]) -> str:
    """Where the server listens, once it answers."""
    for _ in range(240):
        assert server.poll() is None, (runtime.parent / "log").read_text()
        for file in runtime.glob("jpserver-*.json"):
            try:
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(f"{url}api", timeout=5).read()
            except (OSError, ValueError, KeyError):
                continue
            return str(url)
        time.sleep(0.5)
    raise TimeoutError((runtime.parent / "log").read_text())


# A notebook of each kind: the one that has most to show.
SPECIMENS = [
    max(pages, key=lambda page: len(constructs(page)))
    for pages in (
        CHAPTERS,
        [page for page in NOTEBOOKS if "/exercises/" in page],
        [page for page in NOTEBOOKS if "/studies/" in page],
    )
]


def raw_in_lab(browser: Any, lab: str, path: str) -> list[str]:
    """What a reader of this notebook sees raw in JupyterLab."""
    cells = nbformat.read(ROOT / path, as_version=4).cells if (ROOT / path).is_file() else UNKNOWN.cells
    wanted = sum(cell.cell_type == "markdown" for cell in cells)
    assert wanted
    # A window as tall as the notebook: JupyterLab renders what is in view.
    page = browser.new_page(viewport={"width": 1200, "height": 30_000})
    page.goto(f"{lab}doc/tree/{path}?reset")
    page.wait_for_function(
        "wanted => document.querySelectorAll('.jp-MarkdownCell .myst > *').length >= wanted",
        arg=wanted,
        timeout=120_000,
    )
    page.wait_for_timeout(1000)
    found: list[str] = page.evaluate(RAW_IN_LAB)
    page.close()
    return found


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in SPECIMENS else pytest.mark.full) for page in NOTEBOOKS]
)
def test_jupyterlab_shows_nothing_raw(browser: Any, lab: str, page: str) -> None:
    assert raw_in_lab(browser, lab, f"{page}.ipynb") == []


@pytest.mark.slow
@pytest.mark.browser
def test_what_jupyterlab_shows_raw_is_seen(browser: Any, lab: str) -> None:
    found = " ".join(raw_in_lab(browser, lab, "unknown.ipynb"))
    assert "nowhere" in found
    assert "nobody1900" in found
    assert "eq-x" not in found


# --- Colab -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has all that this one has, except the book's package."""
    folder = tmp_path_factory.mktemp("colab")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(?i)(__editable__)?[._]*llm[_-]core|pip$|pip-|__pycache__", entry.name):
            (packages / entry.name).symlink_to(entry)
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    python = folder / "venv/bin/python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for entry in Path(own).glob("*setuptools*"):  # an old one, in front of the one that torch asks for
        shutil.rmtree(entry)
    Path(own, "everything.pth").write_text(f"{packages}\n")
    kernel = folder / "jupyter/kernels/colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links the environment's packages")
def test_colab_copy_installs_the_package_and_keeps_torch(
    site: Site, colab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    before = [str(colab / "venv/bin/python"), "-c", "import importlib.util as u; print(u.find_spec('llm_core'))"]
    assert subprocess.run(before, cwd=tmp_path, capture_output=True, text=True).stdout.strip() == "None"

    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", tmp_path, export(tmp_path)], check=True, cwd=tmp_path)
    (built,) = tmp_path.glob("llm_core-*.whl")

    copy = nbformat.read(site.html / f"colab/{CHAPTERS[0]}.ipynb", as_version=4)
    install = copy.cells[0].source
    asked = f"git+{REPOSITORY}@main"
    assert asked in install
    # No network in a test: the same cell, with the package from a file instead of from GitHub.
    look = "import torch, llm_core.layers.attention\nprint(torch.__version__, llm_core.__file__)"
    cells = [nbformat.v4.new_code_cell(source) for source in (install.replace(asked, built.as_uri()), look)]
    for name, value in {
        "JUPYTER_PATH": str(colab / "jupyter"),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    probe = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(probe, kernel_name="colab", timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    try:
        client.execute()
    except CellExecutionError as error:
        said = "".join(output.get("text", "") for output in probe.cells[0].outputs)
        pytest.fail(f"{said}\n{error}")

    import torch

    printed = "".join(output.get("text", "") for output in probe.cells[1].outputs)
    version, file = printed.split()
    assert version == torch.__version__
    assert str(colab) in file
    assert not list((colab / "venv").rglob("site-packages/torch/__init__.py")), "pip installed another torch"


def export(folder: Path) -> Path:
    """The package's sources by themselves, so that building leaves nothing in the repository."""
    target = folder / "source"
    shutil.copytree(ROOT / "llm_core", target / "llm_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-prose.md"):
        shutil.copy(ROOT / name, target)
    return target
