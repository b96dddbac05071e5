"""A dump made into articles: the same bytes however many processes work on it, and whatever interrupts them."""

from __future__ import annotations

import bz2
import errno
import os
import re
import signal
import threading
import time

import psutil
import pytest
from filelock import FileLock

from llm_core.data import extraction
from llm_core.data.corpora import CorpusError, corpus_path
from llm_core.data.extraction import articles, extract
from llm_core.data.wikipedia import pages
from llm_core.data.wikitext import plain_text
from llm_core.files import NotWritten

SAMPLE = corpus_path("wikipedia-sample")


def parts_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.fixture(scope="module")
def multistream(tmp_path_factory):
    """The sample in streams of six pages, as the large dumps are."""
    head, *found, tail = re.split(rb"(?=  <page>)|(?=</mediawiki>)", bz2.decompress(SAMPLE.read_bytes()))
    groups = [head, *(b"".join(found[i : i + 6]) for i in range(0, len(found), 6)), tail]
    path = tmp_path_factory.mktemp("dump") / "dump-multistream.xml.bz2"
    path.write_bytes(b"".join(map(bz2.compress, groups)))
    return path


def test_the_articles_are_those_of_the_dump(tmp_path):
    told = []
    found = extract(SAMPLE, tmp_path, part_bytes=200_000, progress=told.append)
    expected = [(p.id, p.revision, p.title, plain_text(p.wikitext)) for p in pages(SAMPLE)
                if p.namespace == 0 and p.redirect is None]  # fmt: skip
    assert [(a.id, a.revision, a.title, a.text) for a in articles(tmp_path)] == expected
    assert found.counts["pages"] == 34
    assert found.counts["articles"] + found.counts["redirects"] + found.counts["other_namespaces"] == 34
    assert found.counts["text_bytes"] == sum(len(text.encode()) for *_, text in expected)
    assert sum(told) == SAMPLE.stat().st_size
    assert extract(SAMPLE, tmp_path, part_bytes=200_000) == found  # finished already


def test_workers_and_streams_change_no_article(multistream, tmp_path):
    one = extract(multistream, tmp_path / "one", part_bytes=100_000)
    two = extract(multistream, tmp_path / "two", part_bytes=100_000, workers=2)
    assert one == two
    assert one.n_parts > 3
    assert not one.damage
    assert parts_of(tmp_path / "one") == parts_of(tmp_path / "two")
    extract(SAMPLE, tmp_path / "single")
    assert list(articles(tmp_path / "one")) == list(articles(tmp_path / "single"))


def test_a_worker_that_is_killed_loses_and_repeats_nothing(multistream, tmp_path):
    extract(multistream, tmp_path / "whole", part_bytes=100_000)
    killed = threading.Thread(target=kill_a_worker, args=(tmp_path / "killed",))
    killed.start()
    try:
        extract(multistream, tmp_path / "killed", part_bytes=100_000, workers=2)
    except CorpusError as error:
        assert "was killed" in str(error)  # noqa: PT017  # a quick machine may have finished
    killed.join()
    extract(multistream, tmp_path / "killed", part_bytes=100_000, workers=2)
    assert parts_of(tmp_path / "killed") == parts_of(tmp_path / "whole")


def kill_a_worker(folder):
    for _ in range(4000):
        if any(folder.glob("part-*.json")):
            break
        time.sleep(0.005)
    for child in psutil.Process().children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
            return


def test_a_full_disk_leaves_nothing_half_written(monkeypatch, tmp_path):
    real, written = extraction.write_whole, []

    def full(path, content):
        written.append(path)
        if len(written) == 4:  # the articles of the second part
            raise NotWritten(path, os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(extraction, "write_whole", full)
    with pytest.raises(NotWritten, match="No space left"):
        extract(SAMPLE, tmp_path / "full", part_bytes=200_000)
    assert sorted(parts_of(tmp_path / "full")) == ["part-00000.json", "part-00000.jsonl.gz"]
    with pytest.raises(CorpusError, match="no finished extraction"):
        list(articles(tmp_path / "full"))
    monkeypatch.undo()
    extract(SAMPLE, tmp_path / "full", part_bytes=200_000)
    extract(SAMPLE, tmp_path / "whole", part_bytes=200_000)
    assert parts_of(tmp_path / "full") == parts_of(tmp_path / "whole")


def test_a_damaged_dump_keeps_what_is_good(multistream, tmp_path):
    cut = tmp_path / "cut.xml.bz2"
    cut.write_bytes(SAMPLE.read_bytes()[: SAMPLE.stat().st_size * 9 // 10])
    found = extract(cut, tmp_path / "of cut")
    assert "after 24 pages: it ends in the midst" in found.damage[0]
    assert found.counts["articles"] == len(list(articles(tmp_path / "of cut"))) > 20
    content = bytearray(multistream.read_bytes())
    content[len(content) // 2] ^= 0xFF
    broken = tmp_path / "broken.xml.bz2"
    broken.write_bytes(content)
    found = extract(broken, tmp_path / "of broken", part_bytes=100_000)
    assert any("compression is broken" in sentence for sentence in found.damage)
    assert 20 < found.counts["articles"] < 31


def test_one_run_and_one_dump_for_each_folder(tmp_path):
    folder = tmp_path / "out"
    extract(SAMPLE, folder)
    with pytest.raises(CorpusError, match="part_bytes 33554432, and now 1000"):
        extract(SAMPLE, folder, part_bytes=1000)
    other = tmp_path / "other.xml"
    other.write_text("<mediawiki></mediawiki>")
    with pytest.raises(CorpusError, match=r"begun with dump 'wikipedia_sample\.xml\.bz2', and now 'other\.xml'"):
        extract(other, folder)
    with FileLock(folder / "lock"), pytest.raises(CorpusError, match="another run is at work"):
        extract(SAMPLE, folder)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        extract(SAMPLE, folder, workers=0)
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "missing.xml", tmp_path / "new")
    (folder / "part-00000.jsonl.gz").write_bytes(b"garbage")
    with pytest.raises(CorpusError, match=r"part-00000\.jsonl\.gz cannot be read"):
        list(articles(folder))
