"""The pages of a dump of Wikipedia, read one after another from its compressed file.

A dump is one XML document of any size, compressed by bzip2; the English one has 100 GB inside. So it is decompressed
as it is read and cut at the end of every page; a page that was handed out is forgotten, and the memory is that of the
longest page. Each page is then a small document of its own for an XML parser: what is wrong with one page is wrong
with no other. What a page holds is wikitext, the language its authors wrote it in (`llm_core.data.wikitext`).

A *multistream* dump is many bzip2 files one behind another, a hundred pages in each, and an index beside it says where
each begins. From such a file several processes can read at once (`streams`), and what is damaged in it ends at the
next beginning. `llm_core.data.extraction` turns a whole dump into clean text. Chapter 5.2 teaches all of it.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

from llm_core.data.corpora import CorpusError

CHUNK = 1 << 18  # bytes of the file that are read at once
LONGEST_PAGE = 1 << 28  # bytes of XML; MediaWiki itself takes no page above 2 MiB of wikitext
STREAM = b"BZh91AY&SY"  # how a bzip2 stream begins: its name, level 9, and the name of its first block
END = b"</page>"  # in XML a text cannot hold it: its < would be written &lt;
CONTROL = {n: " " for n in range(32) if chr(n) not in "\t\n\r"} | {0xFFFE: " ", 0xFFFF: " "}  # no XML may hold them


@dataclass(frozen=True)
class Page:
    """One page of a dump.

    Attributes:
        title: its title, in other namespaces than 0 with their name before it.
        namespace: 0 for articles.
        id: the page's number.
        revision: the number of its version in the dump; it stands for the authors in the page's history.
        redirect: the title of the page that this one only points to; None: it has a text of its own.
        wikitext: what its authors wrote.
    """

    title: str
    namespace: int
    id: int
    revision: int
    redirect: str | None
    wikitext: str


OnDamage = Callable[[str], None]  # is told what is wrong, and how far the reading got


def pages(dump: str | Path, *, on_damage: OnDamage | None = None) -> Iterator[Page]:
    """All pages of a dump, in its order, redirects and other namespaces too. Bytes that are no UTF-8 become U+FFFD.

    Args:
        dump: the file, an XML document as MediaWiki exports it, of any version; compressed if its name ends in .bz2
            (in one stream or many) or .gz.
        on_damage: called with a sentence for each damage; the reading then goes on behind it, as far as it can: at
            the next page, or behind broken compression at the next stream. None: the first damage is an error.

    Raises:
        CorpusError: the file is cut short or damaged and `on_damage` is None, or it is no such document. The pages
            before the damage have been handed out by then, and the message says how many they were.
        OSError: it cannot be read.

    >>> from llm_core.data.corpora import corpus_path
    >>> [page.title for page in pages(corpus_path("wikipedia-sample"))][:3]
    ['AccessibleComputing', 'Albedo', 'AsciiArt']
    """
    path = Path(dump)
    so_far = _SoFar(path, on_damage)
    for chunk in page_chunks(decompressed(path, so_far.damaged), path, so_far.damaged):
        page = so_far.parsed(chunk)
        if page is not None:
            yield page


class _SoFar:
    """Counts what was read, so that a report of damage can say how far it got."""

    def __init__(self, path: Path, on_damage: OnDamage | None) -> None:
        self.path, self.on_damage = path, on_damage
        self.n_pages, self.last = 0, ""

    def parsed(self, chunk: bytes) -> Page | None:
        try:
            page = parse_page(chunk)
        except CorpusError as error:
            self.damaged(str(error))
            return None
        self.n_pages, self.last = self.n_pages + 1, page.title
        return page

    def damaged(self, what: str) -> None:
        where = f"after {self.n_pages:,} pages" + (f", the last of them {self.last!r}" if self.last else "")
        message = f"{self.path} is cut short or damaged {where}: {what}; get it again"
        if self.on_damage is None:
            raise CorpusError(message)
        self.on_damage(message)


# ---------------------------------------------------------------------------------------------------------------------
# From a file to bytes


def decompressed(
    path: Path,
    on_damage: OnDamage,
    *,
    first: int = 0,
    end: int | None = None,
    on_read: Callable[[int], object] = lambda _: None,
) -> Iterator[bytes]:
    """The bytes inside a dump, in chunks; what its name ends in says how it is compressed.

    Args:
        path: the file.
        on_damage: is told of broken compression. Behind it the reading goes on with the next stream of a .bz2.
        first: where in the file the reading begins, at the start of a stream.
        end: where it stops; None: at the file's end.
        on_read: is told how many bytes of the file were read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(first)
        raw = _raw(file, None if end is None else end - first, on_read)
        if path.suffix == ".bz2":
            yield from _streams_of(raw, bz2.BZ2Decompressor, STREAM, on_damage)
        elif path.suffix == ".gz":
            yield from _streams_of(raw, lambda: zlib.decompressobj(31), None, on_damage)
        else:
            yield from raw


def _raw(file: BinaryIO, left: int | None, on_read: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
    while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
        left = None if left is None else left - len(chunk)
        on_read(len(chunk))
        yield chunk


def _streams_of(
    raw: Iterator[bytes], new: Callable[[], Any], start: bytes | None, on_damage: OnDamage
) -> Iterator[bytes]:
    """What is in compressed streams that lie one behind another; `start` is how each begins, if that can be told."""
    stream, begun = new(), False
    for chunk in raw:
        while chunk:
            try:
                yield stream.decompress(chunk)
            except (OSError, EOFError, zlib.error) as error:
                on_damage(f"its compression is broken: {error}")
                if start is None:
                    return
                chunk = yield from _next_stream(chunk[1:], raw, start)
                stream, begun = new(), False
                continue
            begun, chunk = not stream.eof, stream.unused_data
            if stream.eof:
                stream = new()
    if begun:
        on_damage("it ends in the midst of its compressed data")


def _next_stream(chunk: bytes, raw: Iterator[bytes], start: bytes) -> Generator[bytes, None, bytes]:
    """Skip to where the next stream begins; yields the mark of a gap, and returns what follows (b"": nothing does)."""
    yield b"\0"  # so that the halves of two pages are not taken for one
    while start not in chunk:
        more = next(raw, None)
        if more is None:
            return b""
        chunk = chunk[-len(start) :] + more
    return chunk[chunk.index(start) :]


def streams(dump: str | Path, index: str | Path | None = None) -> list[int]:
    """Where the streams of a multistream .bz2 begin, and after them the file's size. Processes can share them out.

    A file whose streams do not begin with a page (some programs for compressing cut anywhere) counts as one stream.

    Args:
        dump: the file.
        index: the file beside it whose lines are `offset:page:title`, compressed if it ends in .bz2. None: the dump
            itself is searched for the ten bytes with which a stream begins, which takes a second a gigabyte or so.

    Raises:
        CorpusError: the index has a line of another form, or is another dump's.
        OSError: a file cannot be read.
    """
    dump = Path(dump)
    size = dump.stat().st_size
    found = _searched(dump) if index is None else _indexed(Path(index))
    starts = sorted({0, *found})
    with dump.open("rb") as file:
        for start in starts if index is not None else ():
            file.seek(start)
            if file.read(len(STREAM)) != STREAM:
                raise CorpusError(
                    f"{index} says that a stream of {dump} begins at byte {start}, and none does: it is another "
                    "dump's index. Give the one of the same date, or none"
                )
    if not all(_begins_a_page(dump, start) for start in starts[1:4]):
        starts = [0]
    return [*starts, size]


def _begins_a_page(dump: Path, start: int) -> bool:
    stream, text = bz2.BZ2Decompressor(), b""
    with dump.open("rb") as file:
        file.seek(start)
        while len(text) < 64 and not stream.eof and (chunk := file.read(CHUNK)):
            try:
                text += stream.decompress(chunk, 64)
            except OSError:
                return True  # damaged, which whoever reads it will say
            if stream.needs_input is False and not text:
                break
    return text.lstrip().startswith((b"<page>", b"</mediawiki>"))


def _searched(dump: Path) -> Iterator[int]:
    at, before = 0, b""
    with dump.open("rb") as file:
        for chunk in _raw(file, None):
            window = before + chunk
            for match in re.finditer(re.escape(STREAM), window):
                yield at - len(before) + match.start()
            at, before = at + len(chunk), window[-len(STREAM) + 1 :]


def _indexed(index: Path) -> Iterator[int]:
    with bz2.open(index, "rb") if index.suffix == ".bz2" else index.open("rb") as file:
        for number, line in enumerate(file, 1):
            offset, colon, _ = line.partition(b":")
            if not (colon and offset.isdigit()):
                raise CorpusError(f"{index}, line {number} is not offset:page:title: {line[:60]!r}")
            yield int(offset)


# ---------------------------------------------------------------------------------------------------------------------
# From bytes to pages


def page_chunks(
    chunks: Iterable[bytes], path: Path, on_damage: OnDamage, *, first: bool = True, last: bool = True
) -> Iterator[bytes]:
    """The XML of each page, from `<page>` to `</page>`.

    Args:
        chunks: the bytes of a document.
        path: the file they are from, for messages.
        on_damage: is told of what is neither a page nor what stands before and after all of them.
        first: the bytes begin where the document begins, so that they must begin as one of MediaWiki does.
        last: they end where it ends.

    Raises:
        CorpusError: the document is not one of MediaWiki.
    """
    parts: list[bytes] = []  # what came since the last page; joined only when its end is there
    held, n_pages = 0, 0
    for chunk in chunks:
        parts.append(chunk)
        held += len(chunk)
        if END not in (parts[-2][-len(END) :] if len(parts) > 1 else b"") + chunk:
            if held > LONGEST_PAGE:
                on_damage(f"{held:,} bytes without the end of a page")
                parts, held = [], 0
            continue
        *found, rest = b"".join(parts).split(END)
        for text in found:
            if first and not n_pages:
                _check_head(text, path)
            n_pages += 1
            start = text.rfind(b"<page>")
            if start < 0:
                on_damage("a page without a beginning")
            else:
                if b"<page>" in text[:start]:
                    on_damage("a page without an end")
                yield text[start:] + END
        parts, held = [rest], len(rest)
    rest = b"".join(parts)
    if first and not n_pages:
        if not rest.strip(b"\0 \r\n\t"):
            return on_damage("there is nothing in it")
        _check_head(rest, path)
    if b"<page>" in rest or (last and b"</mediawiki>" not in rest):
        on_damage("it ends in the midst of a page" if b"<page>" in rest else "its last line, </mediawiki>, is missing")


def _check_head(text: bytes, path: Path) -> None:
    """What stands before the first page must be what MediaWiki writes there."""
    head = text.partition(b"<page>")[0].lstrip(b"\xef\xbb\xbf\0 \r\n\t")
    tag = re.match(rb"(?:<\?.*?\?>|<!--.*?-->|\s)*<([\w:.-]+)", head, flags=re.DOTALL)
    if tag is None and b"<mediawiki" not in head:
        raise CorpusError(f"{path} is not a dump of MediaWiki: it begins with {head[:40]!r}, not with <mediawiki>")
    if tag is not None and tag[1] != b"mediawiki":
        raise CorpusError(
            f"{path} is not a dump of MediaWiki: its XML begins with <{tag[1].decode()}>, not <mediawiki>"
        )


def parse_page(chunk: bytes) -> Page:
    """One page from its XML, `<page>` to `</page>`.

    Raises:
        CorpusError: it is no XML, or a number in it is none.
    """
    text = chunk.decode("utf-8", errors="replace")
    try:
        element = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        try:  # once more without what XML forbids, and MediaWiki has let through now and then
            element = ElementTree.fromstring(text.translate(CONTROL))
        except ElementTree.ParseError:
            raise CorpusError(f"a page is not XML ({error}): {text[:80]!r}") from None
    redirect = element.find("redirect")
    numbers = {}
    for path in ("ns", "id", "revision/id"):
        number = element.findtext(path) or ""
        if not re.fullmatch(r"-?\d{1,18}", number):
            raise CorpusError(f"the page {element.findtext('title')!r} has <{path}> {number!r}, which is no number")
        numbers[path] = int(number)
    return Page(
        title=element.findtext("title") or "",
        namespace=numbers["ns"],
        id=numbers["id"],
        revision=numbers["revision/id"],
        redirect=None if redirect is None else redirect.get("title"),
        wikitext=element.findtext("revision/text") or "",
    )
