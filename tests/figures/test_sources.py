"""The source that is shown is the file's own text without its docstrings, and means the same to Python."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from llm_core.figures import show_source
from llm_core.figures.sources import source_of
from llm_core.layers.attention import MultiHeadAttention, attention_weights


class Example:
    """What a class says.

    >>> print("```")
    ```
    """

    size = 3  # a comment

    @property
    def twice(self) -> int:
        """Two of them."""
        return 2 * self.size

    def silent(self) -> str:
        """Nothing, but
        in two lines."""
        # A comment of its own.

        return """no docstring"""  # and another

    def only(self) -> None:
        """A body that is its docstring."""


def without_docstrings(source: str) -> str:
    """By the syntax tree alone: what is left of the code, without comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            del node.body[0]
    return ast.dump(tree)


@pytest.mark.parametrize("thing", [attention_weights, MultiHeadAttention, MultiHeadAttention.forward, Example])
def test_the_source_is_what_the_file_says_without_docstrings(thing):
    source = source_of(thing)
    whole = textwrap.dedent(inspect.getsource(thing))
    assert ast.dump(ast.parse(source)) == without_docstrings(whole) != ast.dump(ast.parse(whole))
    assert set(source.split("\n")) <= set(whole.split("\n"))
    assert not source.startswith("\n")
    assert not source.endswith("\n")


def test_comments_stay():
    assert source_of(Example.silent) == textwrap.dedent('''\
        def silent(self) -> str:
            # A comment of its own.

            return """no docstring"""  # and another''')
    assert source_of(Example.twice) == "@property\ndef twice(self) -> int:\n    return 2 * self.size"
    assert source_of(Example).split("\n")[:2] == ["class Example:", "    size = 3  # a comment"]


def test_a_body_of_a_docstring_alone_stays():
    assert '"""A body that is its docstring."""' in source_of(Example.only)


def test_docstrings_stay_where_they_are_wanted():
    assert source_of(Example, docstring=True) == inspect.getsource(Example).rstrip()


def test_it_is_shown_as_python(shown):
    show_source(attention_weights)
    ((bundle, rest),) = shown
    source = source_of(attention_weights)
    assert bundle == {"text/markdown": f"```python\n{source}\n```", "text/plain": source}
    assert rest == {"raw": True}


def test_a_fence_in_the_source_does_not_end_it(shown):
    show_source(Example, docstring=True)
    text = shown[0][0]["text/markdown"]
    assert text.startswith("````python\n")
    assert text.endswith("\n````")


@pytest.mark.parametrize("thing", [len, int, property()])
def test_what_has_no_source_is_refused(shown, thing):
    with pytest.raises(ValueError, match="written in Python"):
        show_source(thing)
    assert shown == []
