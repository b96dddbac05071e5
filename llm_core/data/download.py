"""Texts from the open internet into the cache folder: whole and checked, or not there.

What arrives goes to a file that ends in `.part`. When the connection is cut, the disk is full or the program is
stopped, that file stays, and the next call asks the server for the rest of it. Only a file that has the size and the
checksum that it should have gets the corpus's name.

Some publishers give no checksum. Then that of the first file that came whole is written beside it, in a file that ends
in `.sha256`, and whoever reads the corpus later is held to it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock, Timeout
from tqdm import tqdm  # type: ignore[import-untyped]

from llm_core.data.corpora import Corpus, CorpusError, cache_folder, corpus_path, known, record_path
from llm_core.files import NotWritten, digest, sync, write_whole

AGAIN = "it was removed. Run the same command again; if it says the same again, the address has another file now"
SECONDS = 30.0  # without a single byte, after which a connection counts as cut


def fetch(name: str, *, cache: str | Path | None = None, progress: bool = False, timeout: float = SECONDS) -> Path:
    """Download a corpus if it is not there yet, and return its path; what an earlier call got is not asked for again.

    Args:
        name: one of `CORPORA` that has a `url`.
        cache: see `corpus_path`.
        progress: show a bar on the standard error.
        timeout: seconds without a single byte after which the connection counts as cut.

    Raises:
        CorpusError: there is no such corpus or it is not fetched; the server does not have it or cannot be reached;
            the connection was cut; the file is not what it should be; another program is fetching it; it cannot be
            written. The message says what to do, and nothing stands under the corpus's name that should not.
    """
    corpus = known(name)
    if corpus.url is None or corpus.file is None:
        raise CorpusError(f"{name} is not fetched: {'install ' + corpus.package if corpus.package else 'it is there'}")
    path = cache_folder(cache) / corpus.file
    with contextlib.suppress(CorpusError):
        return corpus_path(name, cache=cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=0):
            _Download(name, corpus, corpus.url, path, progress, timeout).run()
    except Timeout:
        raise CorpusError(f"another program is fetching {name} into {path.parent}: wait until it is done") from None
    except (OSError, NotWritten) as error:
        reason = error.reason if isinstance(error, NotWritten) else error.strerror or str(error)
        raise CorpusError(
            f"{name} cannot be written to {path.parent}: {reason}. Make room there, or name another folder in the "
            "environment variable LLM_CORE_CACHE, and run the same command again: it goes on where it stopped"
        ) from error
    return path


@dataclass(frozen=True)
class _Download:
    """One file on its way."""

    name: str
    corpus: Corpus
    url: str
    path: Path
    progress: bool
    timeout: float

    @property
    def part(self) -> Path:
        """What has come so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def tag(self) -> Path:
        """What the server calls the version that the part is of."""
        return self.path.with_name(f"{self.path.name}.part.etag")

    def run(self) -> None:
        """Get what is missing, check the whole, and give it its name."""
        size = self.corpus.size
        if not (size and self._come() == size):  # else an earlier call was stopped before its last line
            if size and self._come() > size:
                self._forget()
            self._get()
        if size and self._come() != size:
            came = self._come()
            self._forget()
            raise CorpusError(
                f"{self.url} sent {came:,} bytes for the corpus {self.name}, which should have {size:,}: {AGAIN}"
            )
        sha256 = digest(self.part)
        if self.corpus.sha256 and sha256 != self.corpus.sha256:
            self._forget()
            raise CorpusError(
                f"what {self.url} sent for the corpus {self.name} has the sha256 {sha256} "
                f"and should have {self.corpus.sha256}: {AGAIN}"
            )
        if not self.corpus.sha256:
            write_whole(record_path(self.path), f"{sha256}  {self.path.name}\n")
        sync(self.part)
        self.part.replace(self.path)
        sync(self.path.parent)
        self.tag.unlink(missing_ok=True)

    def _come(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def _get(self) -> None:
        """Ask for the rest, or for all of it when there is no part or the server does not give parts."""
        try:
            with self._answer() as answer:
                if answer.status_code != 416:
                    self._keep(answer)
                    return
                if answer.headers.get("Content-Range") == f"bytes */{self._come()}":
                    return  # there is no rest, since it is whole
                self._forget()  # the part is of another file
            with self._answer() as answer:
                self._keep(answer)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise CorpusError(
                f"the connection to {self.url} failed after {self._come():,} bytes: {why}. "
                "Run the same command again: it goes on where it stopped"
            ) from error

    @contextlib.contextmanager
    def _answer(self) -> Iterator[httpx.Response]:
        headers = {"Accept-Encoding": "identity"}  # bytes of the file, not of a compressed copy
        if self._come():
            headers["Range"] = f"bytes={self._come()}-"
            if self.tag.is_file():
                headers["If-Range"] = self.tag.read_text(encoding="utf-8")  # all of it, if there is a new version
        with httpx.stream("GET", self.url, headers=headers, follow_redirects=True, timeout=self.timeout) as answer:
            yield answer

    def _keep(self, answer: httpx.Response) -> None:
        """Write the body behind what is there, or over it."""
        if answer.status_code not in (200, 206):
            what = "look for it where its source says" if answer.status_code < 500 else "run the same command later"
            raise CorpusError(
                f"{self.url} answers {answer.status_code} {answer.reason_phrase}, "
                f"so the corpus {self.name} is not to be had there now: {what} ({self.corpus.source})"
            )
        begins = self._begins(answer)
        length = answer.headers.get("Content-Length", "")
        total = begins + int(length) if length.isdecimal() else self.corpus.size
        if self.corpus.size and total != self.corpus.size:
            raise CorpusError(
                f"{self.url} offers {total:,} bytes, and the corpus {self.name} should have {self.corpus.size:,}. "
                "Nothing was written. Run the same command later; if it says the same, the address has another file now"
            )
        if "ETag" in answer.headers and not answer.headers["ETag"].startswith("W/"):  # a weak one is not for parts
            write_whole(self.tag, answer.headers["ETag"])
        bar = tqdm(
            desc=self.name,
            total=total or None,
            initial=begins,
            unit="B",
            unit_scale=True,
            disable=not self.progress,
        )
        with bar, self.part.open("r+b" if begins else "wb") as file:
            file.seek(begins)
            for block in answer.iter_raw():
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())

    def _begins(self, answer: httpx.Response) -> int:
        """Which byte of the file the body begins with."""
        if answer.status_code == 200:
            return 0
        said = answer.headers.get("Content-Range", "")
        if not said.startswith(f"bytes {self._come()}-"):
            raise CorpusError(
                f"{self.url} was asked for the bytes from {self._come():,} on and answers with {said or 'others'!r}: "
                f"remove {self.part} and run the same command again"
            )
        return self._come()
