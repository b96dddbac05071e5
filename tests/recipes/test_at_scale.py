"""A dump made into shards by datatrove: what the functions give one after another, whoever does the work, and whatever
kills it."""

from __future__ import annotations

import bz2
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from loguru import logger
from typer.testing import CliRunner

from llm_core.cli import app
from llm_core.data.corpora import corpus_path, load_documents
from llm_core.data.duplicates import MinHash, NearDuplicates
from llm_core.data.filters import language
from llm_core.data.shards import TokenShards
from llm_core.data.wikipedia import pages
from llm_core.data.wikitext import plain_text
from llm_core.recipes.at_scale import Hashing, Job, begin, damage, finish, near_duplicates, run
from llm_core.text.bpe_fast import BPETokenizer

SAMPLE = corpus_path("wikipedia-sample")
TASKS = 3


@pytest.fixture(scope="module", autouse=True)
def quiet():
    yield
    logger.remove()  # datatrove's, which would go on into a closed stream


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = BPETokenizer.train(load_documents("shakespeare")[0][:20_000], 300, special_tokens=["<|endoftext|>"])
    return trained.save(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def job(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A dump of some articles, one of them twice and one of a sentence; and of redirects, one of a sentence, too."""
    text = bz2.decompress(SAMPLE.read_bytes()).decode()
    head, tail = text[: text.index("  <page>")], "</mediawiki>\n"
    found = text[len(head) : text.rindex("</mediawiki>")].split("  <page>")[1:]
    sentence = r"\1The {} is one of the animals that have come to live with people, and it was not the first of them.\2"
    redirect, short = (
        re.sub(r"(<text[^>]*>).*(</text>)", sentence.format(animal), page, flags=re.S)
        for animal, page in zip(("cat", "dog"), found, strict=False)
    )
    assert "<redirect" in redirect
    chosen = [*found[:8], redirect, short, found[1]]
    folder = tmp_path_factory.mktemp("dump")
    dump = folder / "dump.xml.bz2"
    dump.write_bytes(bz2.compress((head + "".join("  <page>" + page for page in chosen) + tail).encode(), 1))
    return Job(dump, folder / "job", tokenizer, tasks=TASKS, part_bytes=60_000)


@pytest.fixture(scope="module")
def whole(job: Job) -> TokenShards:
    """What one process makes, which nothing disturbs."""
    return run(job)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_hand(job: Job) -> list[tuple[int, ...]]:
    """The ids of each document, by the functions one after another."""
    near, tokenizer = job.hashing.near(), BPETokenizer.load(job.tokenizer)
    articles = (page.wikitext for page in pages(job.dump) if page.namespace == 0 and page.redirect is None)
    texts = [text for text in map(plain_text, articles) if text and language(text) == job.language]
    good = [text for text in texts if job.rules is None or job.rules.why_not(text) is None]
    once = [text for number, text in enumerate(good) if near.find_or_keep(number, text) is None]
    assert len(good) == len(once) + 1, "the second copy has to go"
    end = tokenizer.special_tokens["<|endoftext|>"]
    return [(*tokenizer.encode(text), end) for text in once]


def test_the_tokens_are_what_the_functions_give_one_after_another(job: Job, whole: TokenShards):
    documents = by_hand(job)
    assert whole.n_documents == len(documents)
    # Tasks take the parts in turn, so that the order is another one.
    assert sorted(cut(whole[:].tolist(), whole.end_id)) == sorted(documents)
    one = run(replace(job, folder=job.folder.parent / "one task", tasks=1))
    assert one[:].tolist() == [id_ for document in documents for id_ in document]


def cut(ids: list[int], end: int | None) -> list[tuple[int, ...]]:
    begins = [0, *(place + 1 for place, id_ in enumerate(ids) if id_ == end)]
    return [tuple(ids[begin:stop]) for begin, stop in pairwise(begins)]


WORK = """
import sys
from pathlib import Path
from llm_core.recipes import at_scale
from llm_core.recipes.at_scale import Job, run

if __name__ == "__main__":
    dump, folder, tokenizer = map(Path, sys.argv[1:4])
    plain_text = at_scale.plain_text
    def slower(text):
        import time
        time.sleep(0.3)
        return plain_text(text)
    at_scale.plain_text = slower
    run(Job(dump, folder, tokenizer, tasks=3, part_bytes=60_000), 2, start_method="fork")
"""


def test_a_worker_that_is_killed_and_a_job_that_is_resumed_change_no_byte(job: Job, whole: TokenShards, tmp_path: Path):
    disturbed = replace(job, folder=tmp_path / "job")
    command = [sys.executable, "-c", WORK, str(job.dump), str(disturbed.folder), str(job.tokenizer)]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    completions, ends = disturbed.folder / "logs" / "clean" / "completions", time.monotonic() + 120
    try:
        while not list(completions.glob("0*")):  # one task is done, another one is being done
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if p.cpu_times().user > 0]
        assert len(workers) >= 2
        workers[-1].kill()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = {path.name for path in completions.glob("0*")}
    assert 0 < len(done) < TASKS, f"it was too late to disturb anything: {done}"
    with pytest.raises(ValueError, match=r"tasks are not done.*run the job again"):
        finish(disturbed)
    before = {name: (disturbed.folder / "texts" / f"{name}.npy").stat().st_mtime_ns for name in done}
    again = run(disturbed, 2, start_method="fork")
    assert files(again.folder) == files(whole.folder)
    assert before == {n: (disturbed.folder / "texts" / f"{n}.npy").stat().st_mtime_ns for n in done}, "done twice"
    assert run(disturbed, 2).fingerprint == whole.fingerprint  # there is nothing left to do
    # Killed when the shards of a task were written, and before it was noted.
    (disturbed.folder / "logs" / "tokens" / "completions" / "00001").unlink()
    shutil.rmtree(again.folder)
    assert files(run(disturbed).folder) == files(whole.folder)


def test_near_duplicates_are_those_of_one_after_another():
    draws = np.random.default_rng(3)
    minhash = MinHash.drawn(32, torch.Generator().manual_seed(0))
    base = draws.integers(1 << 40, size=(60, 32), dtype=np.uint64)
    rows = list(base)
    for number in range(200):  # copies of copies, some of them far from the first
        row = rows[int(draws.integers(len(rows)))].copy()
        changed = draws.integers(32, size=int(draws.integers(0, 12)))
        row[changed] = draws.integers(1 << 40, size=len(changed), dtype=np.uint64)
        rows.insert(int(draws.integers(len(rows))) if number % 3 else len(rows), row)
    signatures = np.array(rows)
    for n_bands, threshold in ((8, 0.8), (32, 0.6), (1, 0.5)):
        one = NearDuplicates(minhash, n_bands, threshold)
        expected = [one.find_or_keep_signature(i, row) is not None for i, row in enumerate(signatures)]
        for cuts in ([], [100], [0, 7, 7, 259]):
            found = near_duplicates(np.split(signatures, cuts), NearDuplicates(minhash, n_bands, threshold))
            assert found.tolist() == expected
        assert n_bands == 1 or 10 < sum(expected) < 250


def test_without_rules_more_is_kept_and_a_task_without_a_text_is_no_hole(job: Job, tmp_path: Path):
    unruled = replace(job, folder=tmp_path / "many", tasks=20, rules=None)
    documents = by_hand(unruled)
    assert len(documents) > len(by_hand(job))
    many = run(unruled)
    assert sorted(cut(many[:].tolist(), many.end_id)) == sorted(documents)
    assert len(list((unruled.folder / "tokens").iterdir())) < 20
    assert damage(unruled) == []


def test_a_dump_that_was_cut_gives_what_is_good_and_says_so(job: Job, tmp_path: Path):
    dump = tmp_path / "cut.xml.bz2"
    dump.write_bytes(job.dump.read_bytes()[: job.dump.stat().st_size * 2 // 3])
    arguments = [str(dump), str(tmp_path / "job"), "--tokenizer", str(job.tokenizer), "--tasks", "2"]
    result = CliRunner().invoke(app, ["wikipedia", "shards", *arguments])
    assert result.exit_code == 1, result.output
    found = damage(replace(job, dump=dump, folder=tmp_path / "job", tasks=2))
    assert found
    assert all(f"Damaged: {sentence}" in result.stderr for sentence in found)
    assert TokenShards(tmp_path / "job" / "shards").n_documents > 1


def test_two_runs_in_one_folder_are_refused(job: Job, whole: TokenShards):
    with FileLock(job.folder / "lock"), pytest.raises(ValueError, match=r"another run is at work in .*job"):
        run(job)


def test_what_goes_wrong_is_said(job: Job, whole: TokenShards, tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere\.xml"):
        replace(job, dump=tmp_path / "nowhere.xml")
    with pytest.raises(ValueError, match="tasks"):
        replace(job, tasks=0)
    with pytest.raises(ValueError, match=r"begun with tasks 3, and now 2"):
        begin(replace(job, tasks=2))
    with pytest.raises(ValueError, match=r"begun with hashing"):
        begin(replace(job, hashing=Hashing(threshold=0.5)))
    with pytest.raises(ValueError, match=r"no text of .* was left"):
        run(replace(job, folder=tmp_path / "german", language="de", tasks=1))
    broken = tmp_path / "dump.xml"
    broken.write_text("this is no dump")
    with pytest.raises(ValueError, match=r"dump\.xml"):
        run(replace(job, dump=broken, folder=tmp_path / "broken", tasks=1))


def test_the_command_does_the_same(job: Job, whole: TokenShards, tmp_path: Path):
    arguments = [str(job.dump), str(tmp_path / "job"), "--tokenizer", str(job.tokenizer), "--tasks", "1"]
    result = CliRunner().invoke(app, ["wikipedia", "shards", *arguments])
    assert result.exit_code == 0, result.output
    assert f"{whole.n_documents:,} documents, {len(whole):,} tokens" in result.stdout
    refused = CliRunner().invoke(app, ["wikipedia", "shards", *arguments[:-1], "2"])
    assert refused.exit_code == 2
    assert "begun with tasks 1, and now 2" in refused.stderr
