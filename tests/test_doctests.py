"""The examples in the docstrings of llm_core give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import llm_core

MODULES = [
    module.name for module in pkgutil.walk_packages(llm_core.__path__, "llm_core.") if ".exercises" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    # The shape checks wrap every function: unwrapped ones are what doctest looks for.
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test)
    assert runner.failures == 0


def test_there_are_doctests_and_they_can_be_found():
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        found += [test.name for test in doctest.DocTestFinder().find(module, name) if test.examples]
    assert {"llm_core.layers.attention.softmax", "llm_core.layers.masks.causal"} <= set(found)
    assert "llm_core.text.words.WordTokenizer" in found
