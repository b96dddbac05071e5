"""Formulas without a network: MathJax is copied into the site from an installed Python package.

`django-static-mathjax` carries MathJax 3's files (Apache-2.0); nothing else of that package is used.
MathJax finds its fonts and TeX extensions relative to its own address, so they keep their places.
"""

import shutil
from importlib.resources import files
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

ENTRY = "tex-chtml.js"
PARTS = (ENTRY, "input/tex/extensions", "output/chtml/fonts/woff-v2")


def mathjax_folder() -> Path:
    """The folder of MathJax's files in the installed package; `ExtensionError` when there is none."""
    try:
        folder = Path(str(files("mathjax"))) / "static/mathjax/es5"
    except ModuleNotFoundError:
        folder = Path()
    if not (folder / ENTRY).is_file():
        raise ExtensionError(
            f"MathJax's {ENTRY} was not found in the installed packages. "
            "Install the book's environment again (make env), which brings django-static-mathjax."
        )
    return folder


def use_local_copy(app: Sphinx, config: Config) -> None:
    """Point every page at the copy instead of at a content delivery network."""
    config["mathjax_path"] = f"mathjax/{ENTRY}"


def copy_mathjax(app: Sphinx) -> None:
    """Copy the files that a page may ask for. Early: Sphinx takes checksums of scripts while it writes."""
    if app.builder.format != "html":
        return
    source, target = mathjax_folder(), Path(app.outdir) / "_static/mathjax"
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("config-inited", use_local_copy)
    app.connect("builder-inited", copy_mathjax)
