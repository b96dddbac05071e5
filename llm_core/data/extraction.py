"""A whole dump made into clean text, by several processes, in a run that may be killed at any time.

`extract` cuts the dump into parts and cleans each of them by itself. A part gets its name when it is whole and on the
disk, and the manifest is written last. So a run that is killed, or finds the disk full, loses the parts that it had
in hand and nothing else: the same command goes on behind what is there, and the result is the same bytes, whatever the
number of processes. Where a dump has many bzip2 streams, each process reads its own; where it has one, a single
process decompresses and the others clean. Chapter 5.2 teaches it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_core.checks import check_sizes
from llm_core.data.corpora import CorpusError
from llm_core.data.wikipedia import decompressed, page_chunks, parse_page, streams
from llm_core.data.wikitext import plain_text
from llm_core.files import NotWritten, write_whole

FORMAT = "llm_core articles 1"
MANIFEST = "manifest.json"
SETTINGS = "settings.json"
COUNTED = [
    "pages",
    "redirects",
    "other_namespaces",
    "articles",
    "empty",
    "damaged",
    "xml_bytes",
    "wikitext_bytes",
    "text_bytes",
]
BLOCK = 1 << 16  # bytes at both ends of the dump by which it is known again


@dataclass(frozen=True)
class Article:
    """The text of an article.

    Attributes:
        id: the page's number.
        revision: the version that the text is from: it stands for the authors, whom the licence wants named.
        title: what it is about.
        text: a line for each paragraph, heading and item.
    """

    id: int
    revision: int
    title: str
    text: str


@dataclass(frozen=True)
class Extracted:
    """What an extraction found.

    Attributes:
        counts: pages, redirects, pages of other namespaces, articles, articles without a text, damaged pages;
            bytes of XML, of wikitext and of clean text.
        damage: a sentence for each damage; empty: there is none.
        n_parts: files of articles.
    """

    counts: dict[str, int]
    damage: tuple[str, ...]
    n_parts: int


@dataclass(frozen=True)
class DumpPart:
    """What one process does at a time: some streams of the file, or some pages that are decompressed already.

    Attributes:
        number: from 0, in the order of the dump.
        dump: the file.
        chunks: the pages' XML, where they are decompressed already.
        first, end: the bytes of the file, where they are not; `end` is 0 otherwise.
        last: whether they are the last streams of the file.
    """

    number: int
    dump: Path
    chunks: tuple[bytes, ...] = ()
    first: int = 0
    end: int = 0
    last: bool = False


def extract(
    dump: str | Path,
    folder: str | Path,
    *,
    workers: int = 1,
    part_bytes: int = 1 << 25,
    index: str | Path | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Extracted:
    """Clean all articles of a dump into `part-00000.jsonl.gz`, ... and `manifest.json` in a folder.

    Each line is an `Article` in JSON. If an earlier run into the folder was interrupted, this one goes on behind it;
    if it was finished, its result is returned.

    Args:
        dump: `*-pages-articles*.xml`, also .bz2 of one stream or many, or .gz.
        folder: made if it is not there.
        workers: processes. They change the time, and nothing in the files.
        part_bytes: XML of each part, at least; of a dump of many streams, this is taken to be 4 times its size in them.
        index: the index of a multistream dump; None looks for the streams in the dump itself.
        progress: is told how many bytes of the file were done since it was last told.

    Raises:
        CorpusError: `dump` is no dump; the folder belongs to another dump or to other settings, or another run is at
            work in it; or a process was killed. What is finished is kept, and the same command goes on from there.
        NotWritten: the disk is full, or the folder cannot be written to. The same holds.
        OSError: the dump cannot be read.
    """
    check_sizes(workers=workers, part_bytes=part_bytes)
    dump, folder = Path(dump), Path(folder)
    settings = {"format": FORMAT, "dump": dump.name, **known_by(dump), "part_bytes": part_bytes}
    with alone(folder):
        if not (folder / SETTINGS).exists() and (any(folder.glob("part-*")) or (folder / MANIFEST).exists()):
            raise CorpusError(f"{folder} holds files like ours, and {SETTINGS} is missing: give another folder")
        agree(folder / SETTINGS, settings)
        if (folder / MANIFEST).exists():
            progress(dump.stat().st_size)
            return _extracted(folder)
        reported: list[str] = []
        n_parts = 0
        for part in _do(dump_parts(dump, index, part_bytes, reported.append, progress), folder, workers):
            n_parts += 1
            progress(part.end - part.first)
        return _finish(folder, n_parts, reported)


def articles(folder: str | Path) -> Iterator[Article]:
    """The articles of a finished extraction, in the dump's order; memory holds one part.

    Raises:
        CorpusError: the extraction is not finished, or a part is missing or damaged.
    """
    folder = Path(folder)
    for number in range(_extracted(folder).n_parts):
        path = _name(folder, number)
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        except (OSError, EOFError, ValueError) as error:
            raise CorpusError(f"{path} cannot be read ({error}): delete it and {folder / MANIFEST}, and extract again; "
                              "the other parts are kept") from error  # fmt: skip
        yield from (Article(**json.loads(line)) for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# Which parts there are


def dump_parts(
    dump: Path,
    index: str | Path | None,
    part_bytes: int,
    report: Callable[[str], object],
    on_read: Callable[[int], object] = lambda _: None,
) -> Iterator[DumpPart]:
    """All parts of a dump, the same ones in every run. Arguments are those of `extract`; `report` is told of damage."""
    starts = streams(dump, index) if dump.suffix == ".bz2" else []
    if len(starts) > 2:
        bounds = [0]
        for start in starts[1:]:
            if 4 * (start - bounds[-1]) >= part_bytes or start == starts[-1]:
                bounds.append(start)
        for number, (first, end) in enumerate(pairwise(bounds)):
            yield DumpPart(number, dump, first=first, end=end, last=end == starts[-1])
        return

    n_parts, n_pages, held = 0, 0, 0
    chunks: list[bytes] = []

    def damaged(what: str) -> None:
        report(f"after {n_pages:,} pages: {what}")

    for chunk in page_chunks(decompressed(dump, damaged, on_read=on_read), dump, damaged):
        chunks.append(chunk)
        n_pages, held = n_pages + 1, held + len(chunk)
        if held >= part_bytes:
            yield DumpPart(n_parts, dump, tuple(chunks))
            n_parts, held, chunks = n_parts + 1, 0, []
    if chunks or not n_parts:
        yield DumpPart(n_parts, dump, tuple(chunks))


def chunks_of(part: DumpPart, report: Callable[[str], object]) -> Iterable[bytes]:
    """The XML of each page of a part; `report` is told of damage."""
    if not part.end:
        return part.chunks

    def damaged(what: str) -> None:
        report(f"in bytes {part.first:,} to {part.end:,} of the file: {what}")

    inside = decompressed(part.dump, damaged, first=part.first, end=part.end)
    return page_chunks(inside, part.dump, damaged, first=not part.first, last=part.last)


def _clean(part: DumpPart, folder: Path) -> None:
    """The work on one part: its articles, and then its counts, by which it is known to be done."""
    counts: Counter[str] = Counter()
    damage: list[str] = []
    lines: list[str] = []
    for chunk in chunks_of(part, damage.append):
        counts["pages"] += 1
        counts["xml_bytes"] += len(chunk)
        try:
            page = parse_page(chunk)
        except CorpusError as error:
            damage.append(str(error))
            counts["damaged"] += 1
            continue
        if page.namespace != 0:
            counts["other_namespaces"] += 1
        elif page.redirect is not None:
            counts["redirects"] += 1
        else:
            counts["wikitext_bytes"] += len(page.wikitext.encode())
            text = plain_text(page.wikitext)
            counts["articles" if text else "empty"] += 1
            counts["text_bytes"] += len(text.encode())
            if text:
                article = Article(page.id, page.revision, page.title, text)
                lines.append(json.dumps(asdict(article), ensure_ascii=False))
    content = "".join(line + "\n" for line in lines).encode()
    write_whole(_name(folder, part.number), gzip.compress(content, 6, mtime=0))
    write_whole(_counts(folder, part.number), json.dumps({"counts": counts, "damage": damage}))


def _name(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.jsonl.gz"


def _counts(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.json"


# ---------------------------------------------------------------------------------------------------------------------
# One after another, or side by side


def _do(parts: Iterable[DumpPart], folder: Path, workers: int) -> Iterator[DumpPart]:
    """Do what is not done yet; each part comes out when it is."""
    if workers == 1:
        for part in parts:
            if not _counts(folder, part.number).exists():
                _clean(part, folder)
            yield part
        return

    # spawn: a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[tuple[DumpPart, Future[None] | None]] = deque()
        try:
            for part in parts:
                done = _counts(folder, part.number).exists()
                waiting.append((part, None if done else pool.submit(_clean, part, folder)))
                if len(waiting) > 2 * workers:  # no more in memory than keeps them all at work
                    yield _waited_for(waiting)
            while waiting:
                yield _waited_for(waiting)
        except BrokenProcessPool as error:
            raise CorpusError(
                f"a process that worked for {folder} was killed; the memory may have been full. "
                "What is finished is kept: the same command goes on from there, with fewer workers if need be"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _waited_for(waiting: deque[tuple[DumpPart, Future[None] | None]]) -> DumpPart:
    part, future = waiting.popleft()
    if future is not None:
        future.result()
    return part


# ---------------------------------------------------------------------------------------------------------------------
# The folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, and be the only run in it; a CorpusError says that another is at work there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise CorpusError(f"another run is at work in {folder}: wait for it, or give another folder") from None
    except OSError as error:
        if error.filename is None or folder not in (Path(error.filename), *Path(error.filename).parents):
            raise  # of the dump
        raise NotWritten(folder, error.strerror or str(error)) from error


def known_by(dump: Path) -> dict[str, Any]:
    """The size of a dump and a checksum over both its ends: it takes no time, and tells two dumps apart."""
    size = dump.stat().st_size
    with dump.open("rb") as file:
        ends = file.read(BLOCK)
        file.seek(max(0, size - BLOCK))
        return {"size": size, "ends": hashlib.sha256(ends + file.read(BLOCK)).hexdigest()}


def agree(path: Path, settings: dict[str, Any]) -> None:
    """Keep what decides about a folder's files in a file there, or hold a run to what is kept.

    Raises:
        CorpusError: the folder was begun with other settings.
    """
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=1) + "\n")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in settings if there.get(name) != settings[name]]
    if other:
        came = ", ".join(f"{name} {there.get(name)!r}, and now {settings[name]!r}" for name in other)
        raise CorpusError(f"{path.parent} was begun with {came}: give another folder, or delete this one")


def _finish(folder: Path, n_parts: int, reported: list[str]) -> Extracted:
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    damage = list(reported)
    for number in range(n_parts):
        part = json.loads(_counts(folder, number).read_text(encoding="utf-8"))
        counts.update(part["counts"])
        damage += part["damage"]
    result = Extracted(dict(counts), tuple(damage), n_parts)
    write_whole(folder / MANIFEST, json.dumps({"format": FORMAT, **asdict(result)}, indent=1) + "\n")
    return result


def _extracted(folder: Path) -> Extracted:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Extracted(content["counts"], tuple(content["damage"]), content["n_parts"])
    except FileNotFoundError:
        raise CorpusError(f"{folder} holds no finished extraction, as {MANIFEST} is missing: run `extract` again, "
                          "which goes on where it stopped") from None  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} is not a manifest of articles ({error}): delete it and extract again") from error
