"""Figures are drawn without a screen and closed after each test; what is displayed is caught."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from llm_core.figures import captioned, sources, tables


@pytest.fixture(autouse=True)
def _clean():
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What the notebook was given, in order: pairs of the bundle and of what else display() was told."""
    outputs = []
    for module in (captioned, sources, tables):
        monkeypatch.setattr(module, "display", lambda data, **rest: outputs.append((data, rest)))
    return outputs
