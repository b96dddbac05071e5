"""Text for the tokenizers' tests: English, Chinese and code, about a third of a megabyte each.

English and code come from Python's own library, so they are the same within one environment and differ a little
between Python versions: compare two programs on them, never with a stored number. The Chinese text is a file.
"""

from __future__ import annotations

import functools
import itertools
from importlib.util import find_spec
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
SIZE = 350_000  # characters of English and of code
MODULES = ("argparse", "ast", "datetime", "difflib", "inspect", "pathlib", "statistics", "textwrap", "typing")

# What a tokenizer stumbles over: whitespace of all kinds, marks that combine, scripts and digits of the world,
# emoji of several code points, characters that changed class between versions of Unicode, long runs.
AWKWARD = (
    "",
    " ",
    "   ",
    "\n",
    "\r\n \t\n  x \n\n  y",
    "trailing spaces   ",
    "\u00a0no-break\u00a0 \u2003em\u3000ideographic\u200bzero-width\ufeffmark\u0085next line\u2028\u2029",
    "I'll, you'RE, it's ’s, we'd've 'twas 'S",
    "e\u0301 n\u0303 \u0301 हिन्दी ไทย עִבְרִית العَرَبِيَّة",
    "１２３ ٣٤٥ ⅔ Ⅻ ² ½ 一二三 10000 3.14159 0x1F",
    "🎉👩‍🚀👨‍👩‍👧‍👦🏳️‍🌈🇩🇪✈️ 😀😀😀",
    "ſ K ŉ İ ı ß ẞ ǆ Ω Å \U00010400\U00010428",
    "a\u0000b\u0001\u007f\u0080\uffff\ufffd\U0010ffff",
    "!!!???...—–‘’“”€£¥«»、。，！",
    "snake_case CamelCase HTTPServer x86_64 __init__ --flag=1 a.b.c",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "<|endoftext|><|im_start|>user\n<|endoftext|",
    "a" * 3000 + " " + "ab" * 1500 + " " * 500 + "x",
    "黄河之水天上来奔流到海不复回" * 200,
)


@functools.cache
def english() -> str:
    """Python's reference manual."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:SIZE]


@functools.cache
def chinese() -> str:
    """Poems of the Tang dynasty."""
    return (DATA / "tang_poems.txt").read_text(encoding="utf-8")


@functools.cache
def code() -> str:
    """Python's standard library, some modules of it."""
    sources = []
    for name in MODULES:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin)
        if path.name == "__init__.py":  # a module of one file became a package of several in later versions
            path = max(path.parent.glob("*.py"), key=lambda file: (file.stat().st_size, file.name))
        sources.append(path.read_text(encoding="utf-8"))
    return "\n".join(sources)[:SIZE]


@functools.cache
def mixed_text() -> str:
    """All three, about 1 MB of UTF-8, a piece of each in turn."""
    pieces = [text.split("\n\n") for text in (english(), chinese(), code())]
    rows = itertools.zip_longest(*pieces, fillvalue="")
    return "\n\n".join(piece for row in rows for piece in row if piece)
