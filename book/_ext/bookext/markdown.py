"""MyST to plain Markdown, for readers whose notebook does not speak MyST (Google Colab).

Directives, roles, labels, numbered equations and relative links become what plain Markdown can say. A
directive or a role without a plain form is an error: nothing raw may reach the reader.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pybtex.database import Entry

from bookext.bibliography import address_of, authors_of, year_of
from bookext.mermaid import diagram_name

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
DIRECTIVE = re.compile(r"^\s*\{(?P<name>[\w:+-]+)\}\s*(?P<argument>.*)$")
OPTION = re.compile(r"^:([\w-]+):\s*(.*)$")
LABEL = re.compile(r"^\((?P<label>[^()\s]+)\)=\s*$")
EQUATION = re.compile(r"^(?P<indent> *)\$\$(?P<body>.*?)\$\$[ \t]*(?:\((?P<label>[^()\s]+)\))?[ \t]*$", re.DOTALL)
FOOTNOTE = re.compile(r"^\[\^(?P<name>[^\]\s]+)\]:\s*(?P<text>.*)$")
DEFINITION = re.compile(r"^: +(?P<text>.*)$")
ROLE = r"\{(?P<role>[a-z][\w:-]*)\}(?P<ticks>`+)(?P<content>.+?)(?<!`)(?P=ticks)(?!`)"
CODE = r"(?P<code>(?P<codeticks>`+)(?!`).+?(?<!`)(?P=codeticks)(?!`))"
MATH = r"(?P<math>(?<![\\$])\$(?![\s$])[^$]+?(?<![\s\\])\$(?![\d$]))"
FOOTNOTE_MARK = r"\[\^(?P<footnote>[^\]\s]+)\]"
LINK = (
    r"(?P<bang>!?)\[(?P<text>(?:[^\[\]\\`]|\\.|`[^`]*`|\[(?:[^\[\]\\]|\\.)*\])*)\]"
    r"\((?P<target>(?:[^()\s]|\([^()]*\))+)(?:\s+\"(?P<hint>[^\"]*)\")?\)"
)
INLINE = re.compile("|".join((ROLE, CODE, MATH, FOOTNOTE_MARK, LINK)), re.DOTALL)
WITH_TARGET = re.compile(r"^(?P<text>.+?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)
TAGGED_ENVIRONMENT = re.compile(r"\\end\{(?:align|gather|equation|multline)\}\s*$")

ADMONITIONS = {
    name: name.capitalize()
    for name in ("note", "tip", "warning", "important", "hint", "caution", "danger", "attention", "error")
} | {"seealso": "See also", "admonition": "", "topic": "", "margin": "", "sidebar": "", "exercise": "Exercise"}

# What must not be left in a converted text, outside code.
RAW = {
    "a role": re.compile(r"\{[a-z][\w:-]*\}`"),
    "a colon fence": re.compile(r"^\s*:{3,}", re.MULTILINE),
    "a directive": re.compile(r"^\s*[`~]{3,}\s*\{", re.MULTILINE),
    "a label": re.compile(r"^\([^()\s]+\)=\s*$", re.MULTILINE),
    "an equation's label": re.compile(r"\$\$[ \t]*\([^()\s]+\)[ \t]*$", re.MULTILINE),
    "a footnote": re.compile(r"\[\^[^\]\s]+\]"),
    "a cell break": re.compile(r"^\+\+\+", re.MULTILINE),
    "a comment": re.compile(r"^%", re.MULTILINE),
}


def no_link(target: str) -> str:
    """The link function of a text whose links lead nowhere."""
    return ""


def no_diagram(source: str, name: str) -> str:
    """The diagram function of a text that cannot show diagrams: only the name is left."""
    return f"*Diagram: {name}*"


@dataclass
class Notebook:
    """What converting one cell needs to know of its notebook.

    entries   the bibliography, by key
    link      target of a relative link -> absolute address, or "" where there is none
    diagram   Mermaid source, its name -> Markdown that shows it
    equations label -> number, counted over the whole notebook (see `number_equations`)
    labels    the labels `(name)=` of the notebook
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    link: Callable[[str], str] = no_link
    diagram: Callable[[str, str], str] = no_diagram
    equations: dict[str, int] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    footnotes: dict[str, int] = field(default_factory=dict)

    def read_ahead(self, texts: Iterable[str]) -> None:
        """Number the labelled equations and collect the labels, in the order of the notebook."""
        for text in texts:
            for kind, chunk in blocks(text):
                if kind == "math":
                    match = EQUATION.match(chunk)
                    if match and match["label"]:
                        self.equations[match["label"]] = len(self.equations) + 1
                elif kind == "label":
                    self.labels.add(chunk)
                elif kind == "fence":
                    opening, body = chunk.split("\n", 1)
                    if DIRECTIVE.match(FENCE.match(opening)["info"]):  # type: ignore[index]
                        self.read_ahead([_options(body.rsplit("\n", 1)[0])[1]])

    def plain(self, text: str) -> str:
        """The text as plain Markdown. Raises `ValueError` for MyST that has no plain form."""
        result = []
        for kind, chunk in blocks(text):
            if kind == "fence":
                result.append(self._fence(chunk))
            elif kind == "math":
                result.append(self._equation(chunk))
            elif kind == "label":
                result.append(f'<a name="{chunk}"></a>\n')  # the blank line ends the HTML
            elif kind == "definition":
                term, *definitions = chunk.split("\n: ")
                joined = " ".join(textwrap.dedent(part).replace("\n", " ").strip() for part in definitions)
                result.append(f"- **{self.inline(term)}**: {self.inline(joined)}")
            elif kind == "text":
                result.append(self.inline(chunk))
        converted = "\n".join(result)
        left = leftovers(converted)
        if left:
            raise ValueError(f"MyST without a plain Markdown form: {'; '.join(left)}")
        return converted

    def inline(self, text: str) -> str:
        """Roles, footnote marks and links of a paragraph."""
        definition = FOOTNOTE.match(text)
        if definition:
            number = self.footnotes.setdefault(definition["name"], len(self.footnotes) + 1)
            rest = text[definition.start("text") :]
            return f"<sup>{number}</sup> {self.inline(rest)}"
        return INLINE.sub(self._inline, text)

    def _inline(self, match: re.Match[str]) -> str:
        if match["role"]:
            return self._role(match["role"], match["content"])
        if match["code"] or match["math"]:
            return match.group()
        if match["footnote"]:
            return f"<sup>{self.footnotes.setdefault(match['footnote'], len(self.footnotes) + 1)}</sup>"
        return self._link(match["bang"], match["text"], match["target"])

    def _link(self, bang: str, text: str, target: str) -> str:
        words = self.inline(text) or target.split("#")[-1]
        key = target.partition("#")[2]
        if target.partition("#")[0].endswith("references.md") and key in self.entries:
            target = address_of(self.entries[key]) or self.link(target)
        elif not re.match(r"[a-z][a-z0-9+.-]*:", target) and not (target[0] == "#" and target[1:] in self.labels):
            if target[0] == "#" and target[1:] in self.equations:
                return f"{words} ({self.equations[target[1:]]})" if text else f"({self.equations[target[1:]]})"
            target = self.link(target)
        return f"{bang}[{words}]({target})" if target else words

    def _role(self, role: str, content: str) -> str:
        if role in ("cite:p", "cite", "cite:ps", "cite:t", "cite:ts"):
            return self._citation(content, textual=role.startswith("cite:t"))
        if role == "eq":
            if content not in self.equations:
                raise ValueError(f"{{eq}}`{content}`: this notebook has no equation of that name")
            return f"({self.equations[content]})"
        if role == "math":
            return f"${content}$"
        if role in ("sub", "sup", "kbd"):
            return f"<{role}>{content}</{role}>"
        if role in ("abbr", "code"):
            return content if role == "abbr" else f"`{content}`"
        explicit = WITH_TARGET.match(content)
        if role in ("term", "doc", "ref", "numref") and (explicit or role == "term"):
            return explicit["text"] if explicit else content
        raise ValueError(f"the role {{{role}}}`{content}` has no plain Markdown form; write an ordinary link")

    def _citation(self, content: str, textual: bool) -> str:
        cited = []
        for key in (part.strip() for part in content.split(",")):
            if key not in self.entries:
                raise ValueError(f"the bibliography has no entry {key}")
            entry = self.entries[key]
            authors, year, address = authors_of(entry), year_of(entry), address_of(entry)
            words = f"{authors} ({year})" if textual else f"{authors}, {year}"
            cited.append(f"[{words}]({address})" if address else words)
        return ", ".join(cited) if textual else f"({'; '.join(cited)})"

    def _equation(self, chunk: str) -> str:
        match = EQUATION.match(chunk)
        if not match or not match["label"]:
            return chunk
        tag = rf"\tag{{{self.equations[match['label']]}}}"
        body = match["body"].strip("\n").rstrip()
        ending = TAGGED_ENVIRONMENT.search(body)
        body = f"{body[: ending.start()]}{tag} {ending.group()}" if ending else f"{body} {tag}"
        return textwrap.indent(f"$$\n{textwrap.dedent(body)}\n$$", match["indent"])

    def _fence(self, chunk: str) -> str:
        opening, rest = chunk.split("\n", 1)
        body = rest.rsplit("\n", 1)[0] if "\n" in rest else ""
        fence = FENCE.match(opening)
        assert fence is not None
        directive = DIRECTIVE.match(fence["info"])
        indent = fence["indent"]
        if not directive and fence["info"].strip() != "mermaid":
            if fence["marks"][0] == ":":
                raise ValueError(f"a colon fence without a directive: {opening.strip()}")
            return chunk
        body = textwrap.dedent(body)
        if not directive:
            return textwrap.indent(self.diagram(body, diagram_name(body)), indent)
        options, content = _options(body)
        plain = self._directive(directive["name"], directive["argument"].strip(), options, content)
        return textwrap.indent(plain, indent)

    def _directive(self, name: str, argument: str, options: Mapping[str, str], content: str) -> str:
        if name in ADMONITIONS:
            title = self.inline(argument) or ADMONITIONS[name]
            heading = f"**{title}**\n\n" if title else ""
            return textwrap.indent(heading + self.plain(content), "> ", lambda line: True).replace("> \n", ">\n")
        if name == "dropdown":
            return f"<details>\n<summary>{self.inline(argument)}</summary>\n\n{self.plain(content)}\n\n</details>"
        if name == "mermaid":
            return self.diagram(content, options.get("alt") or diagram_name(content))
        if name in ("code-block", "code", "sourcecode"):
            return f"```{argument}\n{content}\n```"
        if name == "math":
            tag = rf" \tag{{{self.equations[options['label']]}}}" if "label" in options else ""
            return f"$$\n{content}{tag}\n$$"
        if name in ("image", "figure"):
            picture = self._link("!", options.get("alt", ""), argument)
            return f"{picture}\n\n{self.plain(content)}" if content.strip() else picture
        raise ValueError(f"the directive {{{name}}} has no plain Markdown form")


def blocks(text: str) -> list[tuple[str, str]]:
    """The text cut into ("fence" | "math" | "label" | "definition" | "text", chunk), in order.

    Code fences, directives and displayed equations are one chunk each; comments and cell breaks are dropped.
    """
    lines = text.split("\n")
    if lines and lines[0].strip() == "---" and "---" in [line.strip() for line in lines[1:]]:
        del lines[: [line.strip() for line in lines[1:]].index("---") + 2]  # front matter
    result: list[tuple[str, str]] = []
    paragraph: list[str] = []

    def flush() -> None:
        if paragraph:
            chunk = "\n".join(paragraph)
            result.append(("definition" if "\n: " in chunk else "text", chunk))
            paragraph.clear()

    position = 0
    while position < len(lines):
        line = lines[position]
        fence = FENCE.match(line)
        end = position + 1
        if fence and not (fence["marks"][0] == "`" and "`" in fence["info"]):
            flush()
            closing = re.compile(rf"^ *{re.escape(fence['marks'][0])}{{{len(fence['marks'])},}}\s*$")
            while end < len(lines) and not closing.match(lines[end]):
                end += 1
            if end == len(lines):
                raise ValueError(f"the fence {line.strip()!r} is never closed")
            result.append(("fence", "\n".join(lines[position : end + 1])))
            position = end + 1
            continue
        if line.lstrip().startswith("$$"):
            while not EQUATION.match("\n".join(lines[position:end])) and end < len(lines):
                end += 1
            flush()
            result.append(("math", "\n".join(lines[position:end])))
            position = end
            continue
        label = LABEL.match(line)
        if label:
            flush()
            result.append(("label", label["label"]))
        elif not line.strip():
            flush()
            result.append(("text", ""))
        elif line.startswith("%") or line.startswith("+++"):
            flush()
        elif FOOTNOTE.match(line):
            flush()
            paragraph.append(line)
        else:
            if paragraph and DEFINITION.match(line):
                line = ": " + DEFINITION.match(line)["text"]  # type: ignore[index]
            paragraph.append(line)
        position += 1
    flush()
    return result


def _options(body: str) -> tuple[dict[str, str], str]:
    """A directive's `:name: value` lines and the rest of its body."""
    options: dict[str, str] = {}
    lines = body.split("\n")
    while lines and (match := OPTION.match(lines[0])):
        options[match[1]] = match[2].strip()
        lines.pop(0)
    return options, "\n".join(lines).strip("\n")


def leftovers(text: str) -> list[str]:
    """What is still MyST in a text, outside its code: an empty list for plain Markdown."""
    visible = re.sub(r"^ *(`{3,}|~{3,})(?!\s*\{)[^`\n]*\n.*?^ *\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    visible = re.sub(r"(?<!\})(`+)(?!`).+?(?<!`)\1(?!`)", "", visible)
    found = []
    for name, pattern in RAW.items():
        match = pattern.search(visible)
        if match:
            start = max(0, match.start() - 10)
            found.append(f"{name} near {visible[start : match.end() + 30].strip()!r}")
    return found
