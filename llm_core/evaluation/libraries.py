"""The libraries that published scores come from: imported when asked for, with an error that says how to get them.

BLEU, chrF and ROUGE depend on details (how words are cut, what is lower-cased) that no paper spells out. Numbers can be
compared only if one program made them, so these come from the programs that everyone uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingLibrary(ImportError):
    """A library that computes a metric is not installed; the message says how to install it."""


def metric_library(module: str) -> Any:
    """Import a module of a metric's library.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingLibrary(
            f'this metric is computed by {module.split(".")[0]}: run `pip install "llm-core[metrics]"` ({error})',
            name=error.name,
        ) from error
