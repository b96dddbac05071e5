"""Docstrings of the package, which read as Markdown, become what autodoc takes: reStructuredText.

Code stays code, and a name in backticks becomes a link where it is a class or function of the package. An indented
block, a formula or a table drawn with spaces, keeps its lines. Everything else that reStructuredText would take for
markup is text. The sections (Args, Raises, ...) are napoleon's, which runs after this.
"""

from __future__ import annotations

import re

SECTION = re.compile(r"(Args|Arguments|Attributes|Raises|Returns|Yields|Example|Examples|Note|Warning):\s*$")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
# A character that starts or ends markup: emphasis, a substitution, a reference.
MARKUP = re.compile(r"[\\*|`]|_(?!\w)|(?<!\w)_")
# "vocab_size: V." is no list that begins with the letter V.
ALONE = re.compile(r"^( *\w+: )(\w)\.(?=\s|$)", re.MULTILINE)
ITEM = re.compile(r"(?:[-*]|\d+\.) ")


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText, for napoleon and Sphinx.

    >>> restructured(["The mean of `x`, see `mean()` and *not*:", "", "    x = 1 * y_"])
    ['The mean of :py:obj:`x`, see ``mean()`` and \\\\*not\\\\*:', '', '::', '', '    x = 1 * y_']
    """
    out: list[str] = []
    text: list[str] = []  # a stretch of prose, not yet converted: code in it may go over the end of a line
    in_section = verbatim = doctest = item = False

    def flush() -> None:
        out.extend(inline("\n".join(text)).split("\n") if text else [])
        text.clear()

    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            flush()
            out.append("")
            doctest = False
            continue
        before = out[-1] if out and not text else (text[-1] if text else "")
        if doctest or line.lstrip().startswith(">>> "):
            flush()
            if not doctest and before.strip():
                out.append("")
            doctest = True
            out.append(line)
            continue
        if indent == 0:
            if verbatim and before.strip():
                out.append("")
            verbatim = False
            in_section = SECTION.match(line) is not None
            starts_item = ITEM.match(line) is not None
            if starts_item and not item and before.strip():
                starts_item = before.rstrip().endswith(":")
                if starts_item:
                    flush()
                    out.append("")
            item = starts_item
            text.append(line)
            if in_section:
                flush()
        elif in_section or item:
            text.append(line)
        else:
            if not verbatim:
                flush()
                if out and out[-1].strip():
                    out.append("")
                out += ["::", ""]
                verbatim = True
            out.append(line)
    flush()
    return out


def inline(text: str) -> str:
    """A stretch of prose: code, and everything else as it stands."""
    parts = []
    end = 0
    for match in CODE.finditer(text):
        parts.append(escaped(text[end : match.start()]))
        content = match[2]
        code = f":py:obj:`{content}`" if NAME.fullmatch(content) else f"``{content}``"
        # Markup has to stand free; an escaped blank is none on the page.
        if match.start() and re.match(r"\w", text[match.start() - 1]):
            code = r"\ " + code
        if match.end() < len(text) and re.match(r"\w", text[match.end()]):
            code += r"\ "
        parts.append(code)
        end = match.end()
    parts.append(escaped(text[end:]))
    whole = ALONE.sub(r"\1\\\2.", "".join(parts))
    return re.sub(r"^( *)(Sources?): ", r"\1**\2:** ", whole, flags=re.MULTILINE)


def escaped(text: str) -> str:
    """Text without any markup; an item of a list keeps its mark."""
    return MARKUP.sub(lambda match: "\\" + match[0], text)
