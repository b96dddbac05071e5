"""Fetching: whatever the server and the disk do, a file is whole and right under its name, or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import random
import re
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from llm_core.cli import app
from llm_core.data.corpora import CORPORA, Corpus, CorpusError, corpus_path, load_text
from llm_core.data.download import fetch

CONTENT = bytes(random.Random(0).choices(b"abcdefgh \n", k=300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "a-corpus"


class Server:
    """A server of one file, on a port of this machine; a test says how it misbehaves."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"first"'
        self.ranges = True  # whether it gives parts
        self.status = 200
        self.length: Callable[[int], int] = lambda length: length  # what it says of it
        self.cut: int | None = None  # after how many bytes of a body it closes the connection
        self.silent = False
        self.chunked = False
        self.wrong_range = False
        self.redirect = False
        self.asked: list[str | None] = []  # the ranges
        self.sent = 0
        done = self.done = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if server.redirect and self.path != "/elsewhere":
                    self.send_response(302)
                    self.send_header("Location", "/elsewhere")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                asked = self.headers["Range"]
                server.asked.append(asked)
                if server.silent:
                    done.wait(20)
                    return
                if server.status != 200:
                    self.send_error(server.status)
                    return
                same = self.headers["If-Range"] in (None, server.etag)
                begins = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges and same else 0
                if begins >= len(server.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = server.content[begins:]
                self.send_response(206 if begins else 200)
                if begins:
                    first = begins + 1 if server.wrong_range else begins
                    self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
                if server.etag:
                    self.send_header("ETag", server.etag)
                if server.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(server.length(len(body))))
                self.end_headers()
                body = body[: server.cut]
                server.sent += len(body)
                with contextlib.suppress(ConnectionError):
                    if server.chunked:
                        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
                        self.wfile.write(b"0\r\n\r\n" if server.cut is None else b"")
                    else:
                        self.wfile.write(body)
                self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/corpus.txt"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    server = Server()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    known = Corpus("letters", "public domain", "a page", "corpus.txt", url=server.url, size=len(CONTENT), sha256=SHA256)
    monkeypatch.setitem(CORPORA, NAME, known)
    yield server
    server.done.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def unpublished(server, monkeypatch) -> Server:
    """The same, for a corpus of which neither size nor checksum is published."""
    monkeypatch.setitem(CORPORA, NAME, replace(CORPORA[NAME], size=0, sha256=""))
    return server


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"corpus.txt.lock"}


def refused(folder: Path, message: str, timeout: float = 5.0) -> None:
    """It raises, and nothing has the corpus's name."""
    with pytest.raises(CorpusError, match=message):
        fetch(NAME, cache=folder, timeout=timeout)
    assert not (folder / "corpus.txt").exists()


def whole(folder: Path) -> None:
    """The next call gets the file, and leaves nothing else behind."""
    assert fetch(NAME, cache=folder) == folder / "corpus.txt"
    assert (folder / "corpus.txt").read_bytes() == CONTENT
    assert names(folder) <= {"corpus.txt", "corpus.txt.sha256"}
    assert load_text(NAME, cache=folder) == CONTENT.decode()


# --- what goes well ---


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_comes_once(chunked, server, tmp_path):
    server.chunked = chunked
    whole(tmp_path / "new" / "folder")
    whole(tmp_path / "new" / "folder")
    assert server.asked == [None]


def test_a_redirection_is_followed(server, tmp_path):
    server.redirect = True
    whole(tmp_path)


def test_a_file_that_is_not_right_is_replaced(server, tmp_path):
    (tmp_path / "corpus.txt").write_bytes(CONTENT[:-1] + b"!")
    whole(tmp_path)


def test_what_is_not_fetched_says_so(tmp_path):
    with pytest.raises(CorpusError, match="shakespeare is not fetched: it is there"):
        fetch("shakespeare", cache=tmp_path)
    with pytest.raises(CorpusError, match="simlex999 is not fetched: install gensim==4"):
        fetch("simlex999", cache=tmp_path)
    with pytest.raises(CorpusError, match="there is no corpus 'milton': there are shakespeare"):
        fetch("milton", cache=tmp_path)


# --- cut connections ---


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_connection_goes_on_where_it_stopped(chunked, server, tmp_path):
    server.chunked, server.cut = chunked, 123_456
    refused(
        tmp_path, r"the connection to http://127\.0\.0\.1.* failed after 123,456 bytes: .*it goes on where it stopped"
    )
    assert (tmp_path / "corpus.txt.part").read_bytes() == CONTENT[:123_456]
    server.cut = 100_000
    refused(tmp_path, "failed after 223,456 bytes")
    server.cut = None
    whole(tmp_path)
    assert server.asked == [None, "bytes=123456-", "bytes=223456-"]
    assert server.sent == len(CONTENT)


def test_a_connection_cut_at_any_byte(server, tmp_path):
    server.content = CONTENT[:40]
    CORPORA[NAME] = replace(CORPORA[NAME], size=40, sha256=hashlib.sha256(server.content).hexdigest())
    for cut in (*range(1, 40, 6), 39):
        folder = tmp_path / str(cut)
        server.cut = cut
        refused(folder, f"failed after {cut} bytes")
        server.cut = None
        assert fetch(NAME, cache=folder).read_bytes() == server.content


def test_a_server_that_says_nothing(server, tmp_path):
    server.silent = True
    refused(tmp_path, "failed after 0 bytes: .*it goes on where it stopped", timeout=0.2)
    server.silent = False
    whole(tmp_path)


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/corpus.txt"
    monkeypatch.setitem(
        CORPORA, NAME, Corpus("letters", "none", "a page", "corpus.txt", url=url, size=1, sha256=SHA256)
    )
    refused(tmp_path, "failed after 0 bytes")


def test_a_server_that_gives_no_parts_sends_it_all_again(server, tmp_path):
    server.cut = 123_456
    refused(tmp_path, "failed after 123,456 bytes")
    server.cut, server.ranges = None, False
    whole(tmp_path)
    assert server.asked == [None, "bytes=123456-"]


def test_a_server_that_sends_another_part(server, tmp_path):
    server.cut = 1000
    refused(tmp_path, "failed after 1,000 bytes")
    server.cut, server.wrong_range = None, True
    refused(
        tmp_path, r"from 1,000 on and answers with 'bytes 1001-.*remove .*corpus\.txt\.part and run the same command"
    )
    server.wrong_range = False
    whole(tmp_path)


def test_a_program_that_was_stopped_before_its_last_line(server, tmp_path):
    (tmp_path / "corpus.txt.part").write_bytes(CONTENT)
    whole(tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("part", [CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_part_of_something_else(part, server, tmp_path):
    (tmp_path / "corpus.txt.part").write_bytes(part)
    with contextlib.suppress(CorpusError):  # one that is as long is seen by its checksum only
        fetch(NAME, cache=tmp_path)
    whole(tmp_path)


# --- wrong files ---


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    wrong = hashlib.sha256(server.content).hexdigest()
    refused(tmp_path, f"has the sha256 {wrong} and should have {SHA256}: it was removed")
    assert names(tmp_path) == set()
    server.content = CONTENT
    whole(tmp_path)


def test_a_file_of_another_size_is_not_begun(server, tmp_path):
    server.content = CONTENT * 2
    refused(tmp_path, "offers 600,000 bytes, and the corpus a-corpus should have 300,000. Nothing was written")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("said", "message"), [(+1000, "offers 301,000 bytes"), (-1000, "offers 299,000 bytes")])
def test_a_server_that_lies_about_the_length(said, message, server, tmp_path):
    server.length = lambda length: length + said
    refused(tmp_path, message)
    server.length = lambda length: length
    whole(tmp_path)


def test_a_server_that_promises_more_than_it_has(unpublished, tmp_path):
    unpublished.length = lambda length: length + 1000
    refused(tmp_path, "failed after 300,000 bytes")
    unpublished.length = lambda length: length
    whole(tmp_path)  # it asks for the rest and hears that there is none
    assert unpublished.asked == [None, "bytes=300000-"]


def test_more_than_it_should_be_without_a_length(server, tmp_path):
    server.chunked, server.content = True, CONTENT + b"more"
    refused(tmp_path, "sent 300,004 bytes for the corpus a-corpus, which should have 300,000: it was removed")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"answers 404 Not Found.*look for it where its source says \(a page\)"),
        (500, "answers 500 .*run the same com"),
    ],
)
def test_a_server_that_refuses(status, message, server, tmp_path):
    server.cut = 1000
    refused(tmp_path, "failed after 1,000 bytes")
    server.status, server.cut = status, None
    refused(tmp_path, message)
    assert (tmp_path / "corpus.txt.part").read_bytes() == CONTENT[:1000]  # not what an error page says
    server.status = 200
    whole(tmp_path)
    assert server.asked[-1] == "bytes=1000-"


# --- without a published checksum ---


def test_what_came_first_is_held_to(unpublished, tmp_path):
    whole(tmp_path)
    assert (tmp_path / "corpus.txt.sha256").read_text() == f"{SHA256}  corpus.txt\n"
    (tmp_path / "corpus.txt").write_bytes(CONTENT.replace(b"a", b"b"))
    with pytest.raises(CorpusError, match=f"should have the sha256 {SHA256}.*run `llm-core corpus fetch a-corpus`"):
        corpus_path(NAME, cache=tmp_path)


def test_a_file_that_nobody_fetched_is_not_trusted(unpublished, tmp_path):
    (tmp_path / "corpus.txt").write_bytes(CONTENT[:1000])
    with pytest.raises(CorpusError, match="was not fetched by this package"):
        corpus_path(NAME, cache=tmp_path)
    whole(tmp_path)


def test_a_new_version_is_not_glued_to_the_old(unpublished, tmp_path):
    unpublished.content, unpublished.cut = b"old " * 50_000, 100_000
    refused(tmp_path, "failed after 100,000 bytes")
    unpublished.content, unpublished.cut, unpublished.etag = CONTENT, None, '"second"'
    whole(tmp_path)
    assert unpublished.asked == [None, "bytes=100000-"]


# --- the disk ---


def _with_room_for(room: int, folder: str, corpus: Corpus, results: multiprocessing.Queue) -> None:
    """A download where no file can grow beyond so many bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    CORPORA[NAME] = corpus
    try:
        results.put(str(fetch(NAME, cache=folder)))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def test_a_full_disk_goes_on_where_it_stopped(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_with_room_for, args=(100_000, str(tmp_path), CORPORA[NAME], results))
    process.start()
    said = results.get(timeout=60)
    process.join()
    assert re.match(r"CorpusError: a-corpus cannot be written to .*: File too large\. Make room.*LLM_CORE_CACHE", said)
    assert not (tmp_path / "corpus.txt").exists()
    came = (tmp_path / "corpus.txt.part").stat().st_size
    assert 0 < came <= 100_000
    whole(tmp_path)
    assert server.asked == [None, f"bytes={came}-"]


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        CorpusError, match=r"cannot be written to .*file.*: (?:Not a directory|File exists)\. Make room"
    ):
        fetch(NAME, cache=tmp_path / "file")


def test_two_programs_do_not_write_one_part(server, tmp_path):
    with FileLock(tmp_path / "corpus.txt.lock"):
        refused(tmp_path, "another program is fetching a-corpus")
    whole(tmp_path)


# --- the command ---


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["corpus", *arguments])
    return result.exit_code, result.output


def test_the_command_lists_describes_and_fetches(server, tmp_path):
    cache = ("--cache", str(tmp_path))
    code, before = run("list", *cache)
    assert code == 0
    assert re.search(r"^a-corpus +no +letters$", before, flags=re.MULTILINE)
    assert re.search(r"^shakespeare +yes +nine plays", before, flags=re.MULTILINE)
    assert "not here: run `llm-core corpus fetch a-corpus`" in run("info", NAME, *cache)[1]
    server.cut = 1000
    code, said = run("fetch", NAME, *cache)
    assert code == 2
    assert "Error: the connection to" in said
    server.cut = None
    assert run("fetch", NAME, *cache) == (0, f"{tmp_path / 'corpus.txt'}\n")
    assert re.search(r"^a-corpus +yes +letters$", run("list", *cache)[1], flags=re.MULTILINE)
    info = run("info", NAME, *cache)[1]
    for fact in ("public domain", "a page", "300,000 bytes", SHA256, server.url, str(tmp_path / "corpus.txt")):
        assert fact in info
    assert run("info", "milton")[0] == 2


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if name != NAME])
def test_every_corpus_can_be_described(name):
    code, info = run("info", name, "--format", "json")
    assert code == 0
    (facts,) = json.loads(info)
    assert facts["licence"] == CORPORA[name].licence
    assert ("parts" in facts) == bool(CORPORA[name].split or CORPORA[name].parts)
