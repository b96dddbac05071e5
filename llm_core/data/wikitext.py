"""Wikitext, the language in which Wikipedia is written, made into plain text.

Its brackets nest: a template holds templates, a picture's caption holds links, a table holds all of them. A regular
expression cannot count brackets, so `plain_text` reads a page once from left to right and keeps a stack of what is
open, as one does for the parentheses of a formula. `without_templates` is that idea alone, for templates.

What is kept is what a reader reads: sentences, headings, the items of lists, the words of a link. What goes is what
a template would have made of its arguments, tables, references, pictures with their captions, categories, formulas,
comments and tags. English and Chinese names of namespaces are known. Chapter 5.2 teaches it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

# ---------------------------------------------------------------------------------------------------------------------
# The idea


def without_templates(wikitext: str) -> str:
    """A text without its templates, `{{...}}`, nested as they may be. A bracket without a partner stays as it is.

    >>> without_templates("a {{b|{{c}}|d}} e }} {{f")
    'a  e }} {{f'
    """
    open_parts = [""]  # the text outside, then that of each template that is open
    for piece in re.split(r"(\{\{|\}\})", wikitext):
        if piece == "{{":
            open_parts.append("")
        elif piece == "}}" and len(open_parts) > 1:
            open_parts.pop()
        else:
            open_parts[-1] += piece
    return "{{".join(open_parts)


# ---------------------------------------------------------------------------------------------------------------------
# The whole

# Everything that opens or closes something. Each begins with a letter of its own, which lets the search skip text.
MARK = re.compile(
    r"\{\{\{[^{}\n]*\}\}\}|\{\{|\}\}|\[\[|\]\]"  # three braces: an argument, in the text of a template
    r"|\n[ \t:*#;]*\{\||\n[ \t]*\|\}(?!\})"  # a table begins and ends on a line of its own
    r"|<!--|</?(?P<tag>[a-zA-Z][a-zA-Z0-9]*)(?:[\s/][^<>]*)?>"
    r"|-\{|\}-"  # a word in several scripts, in Chinese
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Tags that go with all they hold.
DROPPED = _words(
    "ref references math chem ce gallery timeline score imagemap hiero inputbox templatedata graph mapframe maplink "
    "indicator categorytree section includeonly style"
)
LITERAL = _words("nowiki pre syntaxhighlight source")  # what they hold is no wikitext
TAGS = (
    DROPPED
    | LITERAL
    | _words(
        "a abbr b bdi bdo big blockquote br caption center cite code col colgroup data dd del dfn div dl dt em font h1 "
        "h2 h3 h4 h5 h6 hr i ins kbd li mark noinclude nobr ol onlyinclude p poem q rb rp rt ruby s samp small span "
        "strike strong sub sup table tbody td th thead time tr tt u ul var wbr"
    )
)
NEW_LINE = _words("br p div li tr blockquote h2 h3 h4 center dd dt")

# Links to these show a picture, or put the page into a category; with a colon in front they are links like others.
HIDDEN = _words("file image media category 文件 檔案 档案 图像 圖像 图片 圖片 媒体 媒體 分类 分類")
# The largest Wikipedias and those of old dumps: [[de:Name]] stands at the side of the page, not in it.
LANGUAGES = _words(
    "af als am an ang ar arc arz ast az ba bar be be-x-old bg bn bo br bs ca ceb ckb co cs cv cy da de diq el en eo "
    "es et eu fa fi fiu-vro fo fr frr fur fy ga gan gd gl gn gu gv ha hak haw he hi hif hr hsb ht hu hy ia id ie ig "
    "ilo io is it ja jbo jv ka kk kl km kn ko krc ku kw ky la lad lb li lij lmo ln lo lt lv map-bms mg mhr mi min "
    "mk ml mn mr ms mt my mzn nah nap nds nds-nl ne new nl nn no nov nrm nv oc or os pa pam pcd pfl pl pms pnb ps "
    "pt qu rm ro roa-rup roa-tara ru rue sa sah sc scn sco se sh si simple sk sl sm sn so sq sr srn ss st stq su sv "
    "sw szl ta te tg th ti tk tl tn to tpi tr ts tt tw ty udm ug uk ur uz vec vep vi vls vo wa war wo wuu xal xh yi "
    "yo za zea zh zh-classical zh-min-nan zh-yue zu"
)
# The few templates whose arguments are words of the sentence, and which of them: without these it has a hole.
# A number is an argument without a name, counted from 1; what stands between is written as it is.
SPOKEN: dict[str, str] = {
    **dict.fromkeys(("nowrap", "nobr", "small", "big", "nbhyph", "sc", "smallcaps", "notatypo", "not a typo"), "1"),
    **dict.fromkeys(("lang", "transl", "transliteration", "script"), "2"),
    **dict.fromkeys(("val", "formatnum", "gaps", "num"), "1"),
    **dict.fromkeys(("quote", "cquote", "blockquote", "le"), "1"),
    **dict.fromkeys(("ill", "interlanguage link", "link-en", "tsl"), "1"),
    **dict.fromkeys(("circa", "c."), "c. 1"),
}
MEASURES = frozenset(("convert", "cvt"))  # "60 and 75 cm"
NUMBER = re.compile(r"[-+−±]?[\d.,/+e]+")
BETWEEN = _words("- – to and or x × by * + and(-) to(-) ,")

_Replacements = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
_SINGLE_LINE: _Replacements = (
    (re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*[ \t]*([^\[\]\n]*)\]"), r"\1"),  # [address its words]
    (re.compile(r"''+"), ""),  # bold and italics
    (re.compile(r"\n(=[^\n]*=)[ \t]*(?=\n)"), lambda heading: "\n" + heading[1].strip("= \t")),
    (re.compile(r"\n[*#:; \t]+"), "\n"),  # items of lists, indents
    (re.compile(r"\n----+"), "\n"),
    (re.compile(r"__[A-Z]{3,}__|__[\u4e00-\u9fff]+__"), ""),  # magic words
)
_AFTERWARDS: tuple[
    tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...
] = (  # what is left where something was taken out
    (re.compile(r"[\t\xa0\u200b\u200e]"), " "),
    (re.compile(r"[(（](?:[ ,;:，；、：]+([)）])?|[)）])"), lambda m: "" if m[0][-1] in ")）" else m[0][0]),
    (re.compile(r"  +"), " "),
    (re.compile(r" ([,.;:)\n])"), r"\1"),
    (re.compile(r"\n[ \n]+"), "\n"),  # every paragraph, heading and item is a line
)


def plain_text(wikitext: str) -> str:
    """The text that a reader of a page reads: a line for each paragraph, heading and item of a list.

    Brackets without a partner stay as text, a comment without an end takes the rest. The time grows with the length of
    the text, whatever it holds.

    >>> plain_text("'''Abacus''' {{IPAc-en|a}} is a [[tool|calculating tool]].<ref>{{cite}}</ref> [[File:A.jpg|[[b]]]]")
    'Abacus is a calculating tool.'
    """
    if wikitext.isspace() or not wikitext:
        return ""
    text = _unnested("\n" + wikitext + "\n")
    for pattern, new in _SINGLE_LINE:
        text = pattern.sub(new, text)
    text = html.unescape(text)
    for pattern, new in _AFTERWARDS:
        text = pattern.sub(new, text)
    return text.strip()


def _unnested(wikitext: str) -> str:
    """The text with everything that nests taken out, or put in its place in plain words."""
    stack: list[tuple[str, list[str]]] = []  # what is open, and the pieces of text before it
    out: list[str] = []
    absent: set[str] = set()  # ends that do not come any more: each is looked for once at most
    position = 0
    for match in MARK.finditer(wikitext):
        start, mark = match.start(), match[0]
        if start < position:
            continue  # inside of something that was skipped
        out.append(wikitext[position:start])
        position = match.end()
        first = mark[0]
        if mark in ("{{", "[[", "-{") or mark[-2:] == "{|":
            stack.append((mark, out))
            out = []
        elif first == "{":
            pass  # an argument
        elif first == "<":
            piece, position = _tag(wikitext, match, absent)
            out.append(piece)
        else:  # }} or ]] or }- or the end of a table
            opened = {"}}": "{{", "]]": "[[", "}-": "-{"}.get(mark, "{|")
            depth = next((d for d in range(1, 1 + min(8, len(stack))) if stack[-d][0].endswith(opened)), None)
            if depth is None:
                out.append(mark)
                continue
            for _ in range(depth - 1):  # opened inside, and never closed: text
                inner, (mark_of_inner, out) = out, stack.pop()
                out.append(mark_of_inner)
                out.extend(inner)
            inner, (_, out) = out, stack.pop()
            out.append(_CLOSED[opened]("".join(inner)))
    out.append(wikitext[position:])
    never_closed = [piece for mark, before in stack for piece in (*before, mark)]
    return "".join(never_closed + out)


def _tag(wikitext: str, match: re.Match[str], absent: set[str]) -> tuple[str, int]:
    """What stands for a tag or a comment, and where the text goes on behind it."""
    mark, end = match[0], match.end()
    if mark == "<!--":
        end = wikitext.find("-->", end)
        return "", len(wikitext) if end < 0 else end + 3
    name = match["tag"].lower()
    if name not in TAGS:
        return mark, end
    holds = mark[1] != "/" and mark[-2] != "/" and name not in absent
    if holds and (name in DROPPED or name in LITERAL):
        close = _end_of(name).search(wikitext, end)
        if close is None:
            absent.add(name)
        elif name in DROPPED:
            return "", close.end()
        else:
            return _literal(wikitext[end : close.start()]), close.end()
    return ("\n" if name in NEW_LINE else ""), end


def _end_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\s*>", re.IGNORECASE)  # re keeps the patterns that it has compiled


def _literal(text: str) -> str:
    """Signs that would be markup, written as the entities that become themselves again at the end."""
    return re.sub(r"['\[\]{}=*#:;|_-]", lambda sign: f"&#{ord(sign[0])};", text)


def _template(inner: str) -> str:
    name, _, arguments = inner.partition("|")
    name = name.strip().lower().replace("_", " ")
    if name not in SPOKEN and name not in MEASURES:
        return ""
    unnamed = [a.strip() for a in arguments.split("|") if not re.match(r"\s*[\w -]+=", a)]
    if name in MEASURES:  # {{convert|60|and|75|cm|in}}: all up to the first unit
        unit = next((n for n, a in enumerate(unnamed) if not NUMBER.fullmatch(a) and a not in BETWEEN), len(unnamed))
        return " ".join(unnamed[: unit + 1])
    wanted = SPOKEN[name]
    return re.sub(r"\d", lambda n: unnamed[int(n[0]) - 1] if int(n[0]) <= len(unnamed) else "", wanted).strip()


def _link(inner: str) -> str:
    target, bar, words = inner.partition("|")
    namespace, colon, _ = target.partition(":")
    if colon:
        name = namespace.strip().lower()
        if name in HIDDEN or (name in LANGUAGES and not bar):
            return ""
        if not name:  # [[:Category:Name]] is a link like others
            target = target.strip()[1:]
    return words if bar and words else target


def _variants(inner: str) -> str:
    """-{zh-hans:软件; zh-hant:軟體}-: the simplified form if there is one, or the first."""
    inner = inner.rpartition("|")[2]
    forms = dict(re.findall(r"(zh(?:-\w+)?)\s*:\s*([^;]*)", inner))
    if not forms:
        return inner
    return next((forms[name] for name in ("zh-hans", "zh-cn", "zh") if name in forms), next(iter(forms.values())))


_CLOSED: dict[str, Callable[[str], str]] = {
    "{{": _template,
    "[[": _link,
    "-{": _variants,
    "{|": lambda inner: "\n",
}
