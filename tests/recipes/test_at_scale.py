"""A dump made into shards by datatrove: what the functions give one after another, whoever does the work, and whatever
kills it."""

from __future__ import annotations

import bz2
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from loguru import logger
from typer.testing import CliRunner

from llm_core.cli import app
from llm_core.data.corpora import corpus_path, load_documents
from llm_core.data.duplicates import MinHash, NearDuplicates
from llm_core.data.filters import GopherRules, language
from llm_core.data.shards import TokenShards
from llm_core.data.wikipedia import pages
from llm_core.data.wikitext import plain_text
from llm_core.recipes.at_scale import Hashing, Job, begin, finish, near_duplicates, run
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
    """The sample and, in a second stream, its first page again under another name: a duplicate in another task."""
    text = bz2.decompress(SAMPLE.read_bytes()).decode()
    head, tail = text[: text.index("  <page>")], "</mediawiki>\n"
    found = text[len(head) : text.rindex("</mediawiki>")].split("  <page>")[1:]
    again = found[1].replace("<id>", "<id>9", 1) + ""
    chosen = [*found[:8], again]
    folder = tmp_path_factory.mktemp("dump")
    dump = folder / "dump.xml.bz2"
    dump.write_bytes(bz2.compress((head + "".join("  <page>" + page for page in chosen) + tail).encode()))
    return Job(dump, folder / "job", tokenizer, tasks=TASKS, part_bytes=60_000)


@pytest.fixture(scope="module")
def whole(job: Job) -> TokenShards:
    """What one process makes, which nothing disturbs."""
    return run(job)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_tokens_are_what_the_functions_give_one_after_another(job: Job, whole: TokenShards):
    near, tokenizer = job.hashing.near(), BPETokenizer.load(job.tokenizer)
    read = [p for p in pages(job.dump) if p.namespace == 0 and p.redirect is None]
    texts = [text for page in read if (text := plain_text(page.wikitext))]
    good = [text for text in texts if language(text) == "en" and GopherRules().why_not(text) is None]
    once = [text for number, text in enumerate(good) if near.find_or_keep(number, text) is None]
    assert len(texts) > len(good) or len(good) > len(once), "nothing was refused: the test says little"
    assert len(good) == len(once) + 1, "the second copy has to go"
    documents = [[*tokenizer.encode(text), tokenizer.special_tokens["<|endoftext|>"]] for text in once]
    ids = whole[:].tolist()
    assert len(ids) == sum(map(len, documents))
    assert whole.n_documents == len(once)
    # Tasks take the parts in turn, so that the order is another one.
    assert sorted(map(tuple, documents)) == sorted(map(tuple, cut(ids, whole.end_id)))
    one = run(replace(job, folder=job.folder.parent / "one task", tasks=1))
    assert one[:].tolist() == [id_ for document in documents for id_ in document]


def cut(ids: list[int], end: int | None) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for id_ in ids:
        found[-1].append(id_)
        if id_ == end:
            found.append([])
    return found[:-1]


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


def test_a_task_without_a_text_is_no_hole(job: Job, whole: TokenShards, tmp_path: Path):
    many = run(replace(job, folder=tmp_path / "many", tasks=9))
    assert sorted(map(tuple, cut(many[:].tolist(), many.end_id))) == sorted(
        map(tuple, cut(whole[:].tolist(), whole.end_id))
    )


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
