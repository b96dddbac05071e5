"""From a dump to token shards on many processes or machines, as a job for datatrove.

    dump -> clean    each task: its parts of the dump, the functions of chapter 5.2, a signature of each text
         -> find     one task: which texts are near-duplicates of an earlier one
         -> tokens   each task: what is left of its texts, as ids, in shards of its own
         -> one folder of shards

The steps are small classes around functions that know nothing of datatrove, which brings what a job needs: a list of
the tasks that are done, logs, statistics, and executors for one machine, for Slurm and for Ray. A task that was killed
leaves nothing under its name and is done again. The number of tasks decides which text lies in which shard; the number
of workers, and what was interrupted, changes no byte.

datatrove is an extra: pip install "llm-core[scale]". Chapter: 5.2, Wikipedia.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from jaxtyping import Bool, UInt64

from llm_core.checks import check_sizes
from llm_core.data.corpora import CorpusError
from llm_core.data.duplicates import MinHash, NearDuplicates, shingles
from llm_core.data.extraction import agree, alone, chunks_of, dump_parts, known_by
from llm_core.data.filters import GopherRules, language
from llm_core.data.shards import TokenShards, join_shards, write_shards
from llm_core.data.wikipedia import parse_page
from llm_core.data.wikitext import plain_text
from llm_core.files import digest, write_whole
from llm_core.recipes.text import end_id
from llm_core.text.load import load_tokenizer

GOPHER = GopherRules()
Executor = Callable[..., Any]  # LocalPipelineExecutor, or what is called like it


@dataclass(frozen=True)
class Hashing:
    """How near-duplicates are found: the same hashes in every process.

    Args:
        threshold: two texts are duplicates whose signatures agree in this share.
        n_hashes: numbers of a signature.
        n_bands: into how many bands it is cut.
        n: words in a shingle.
        seed: of the hashes.
    """

    threshold: float = 0.8
    n_hashes: int = 128
    n_bands: int = 16
    n: int = 5
    seed: int = 0

    def near(self) -> NearDuplicates:
        """An empty collection."""
        minhash = MinHash.drawn(self.n_hashes, torch.Generator().manual_seed(self.seed))
        return NearDuplicates(minhash, self.n_bands, self.threshold, self.n)


class DumpReader(PipelineStep):
    """The articles of a dump, as wikitext; each task reads its own parts.

    Where the dump has many bzip2 streams, a task decompresses its own. Where it has one, each task decompresses all of
    it and parses its own part of it.
    """

    name, type = "Wikipedia dump", "READER"

    def __init__(self, dump: Path, folder: Path, index: Path | None = None, part_bytes: int = 1 << 25) -> None:
        super().__init__()
        self.dump, self.folder, self.index, self.part_bytes = dump, folder, index, part_bytes

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The articles of parts `rank`, `rank + world_size`, ...; and then a file that says what was damaged."""
        damage: list[str] = []
        for part in dump_parts(self.dump, self.index, self.part_bytes, damage.append):
            if part.number % world_size != rank:
                continue
            for chunk in chunks_of(part, damage.append):
                try:
                    page = parse_page(chunk)
                except CorpusError as error:
                    damage.append(str(error))
                    continue
                self.stat_update("pages")
                if page.namespace == 0 and page.redirect is None:
                    self.stat_update("articles")
                    yield Document(page.wikitext, str(page.id), metadata={"title": page.title})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(_damage(self.folder, rank), json.dumps(damage))


class PlainText(PipelineStep):
    """Wikitext to text; what has none is dropped."""

    name, type = "Plain text", "FORMAT"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents with their text."""
        for document in data:
            document.text = plain_text(document.text)
            if document.text:
                yield document


class LanguageFilter(BaseFilter):
    """Keeps what is in one language, by `data.filters.language`."""

    name = "Language"

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code

    def filter(self, doc: Document) -> bool:
        """Whether it is."""
        return language(doc.text) == self.code


class QualityFilter(BaseFilter):
    """Keeps what the rules of Gopher do not refuse."""

    name = "Gopher's rules"

    def __init__(self, rules: GopherRules) -> None:
        super().__init__()
        self.rules = rules

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether it is kept, and why not."""
        why = self.rules.why_not(doc.text)
        return why is None or (False, why)


class SignatureWriter(PipelineStep):
    """Writes the texts of a task, and a MinHash signature of each."""

    name, type = "Texts and signatures", "WRITER"

    def __init__(self, folder: Path, hashing: Hashing) -> None:
        super().__init__()
        self.folder, self.hashing = folder, hashing

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Both files, whole or not at all."""
        near = self.hashing.near()
        content, signatures = io.BytesIO(), []
        with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=6, mtime=0) as file:
            for document in data:
                line = {"id": document.id, **document.metadata, "text": document.text}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                signatures.append(near.minhash.signature(shingles(document.text, near.n)))
        array = np.array(signatures, np.uint64).reshape(len(signatures), len(near.minhash.a))
        stored = io.BytesIO()
        np.save(stored, array)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(_texts(self.folder, rank), content.getvalue())
        write_whole(_signatures(self.folder, rank), stored.getvalue())


class DuplicateFinder(PipelineStep):
    """Writes which texts of all tasks are near-duplicates of an earlier one."""

    name, type = "Near-duplicates", "DEDUP"

    def __init__(self, folder: Path, tasks: int, hashing: Hashing) -> None:
        super().__init__()
        self.folder, self.tasks, self.hashing = folder, tasks, hashing

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """The places of the duplicates among the texts of each task."""
        arrays = [np.load(_signatures(self.folder, task), mmap_mode="r") for task in range(self.tasks)]
        twice = iter(near_duplicates(arrays, self.hashing.near()))
        of_task = [np.flatnonzero([next(twice) for _ in array]).tolist() for array in arrays]
        self.stat_update("duplicates", value=sum(map(len, of_task)))
        write_whole(self.folder / "duplicates.json", json.dumps(of_task))


def near_duplicates(arrays: Sequence[UInt64[np.ndarray, "_ N"]], near: NearDuplicates) -> Bool[np.ndarray, " T"]:
    """Which of all texts are near-duplicates of one before them, as `near` finds them one after another.

    A text that shares no band with any other can have no duplicate. All others are found by sorting one band of all
    texts at a time, so that memory holds that band and not all of them.

    Args:
        arrays: signatures of the texts, in their order; they may lie on the disk.
        near: keeps those that are none.
    """
    n, width = sum(map(len, arrays)), len(near.minhash.a) // near.n_bands
    # Odd, so that no bit of a band is lost. Two bands that mix to the same number are compared in full further down.
    mix = np.random.default_rng(0).integers(1 << 62, size=width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    meets = np.zeros(n, bool)
    for band in range(near.n_bands):
        columns = slice(band * width, (band + 1) * width)
        keys = np.concatenate([(array[:, columns] * mix).sum(axis=1, dtype=np.uint64) for array in arrays])
        _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
        meets |= count[which] > 1
    begins = np.cumsum([0, *map(len, arrays)])
    twice = np.zeros(n, bool)
    for number in np.flatnonzero(meets).tolist():
        task = int(np.searchsorted(begins, number, side="right")) - 1
        signature = np.array(arrays[task][number - begins[task]])
        twice[number] = near.find_or_keep_signature(number, signature) is not None
    return twice


class KeptReader(PipelineStep):
    """The texts of a task without the duplicates."""

    name, type = "Texts that are there once", "READER"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """In their order."""
        twice = set(json.loads((self.folder / "duplicates.json").read_text())[rank])
        with gzip.open(_texts(self.folder, rank), "rt", encoding="utf-8") as file:
            for place, line in enumerate(file):
                if place not in twice:
                    entry = json.loads(line)
                    yield Document(entry["text"], entry["id"], metadata={"title": entry["title"]})


class ShardWriter(PipelineStep):
    """Writes the ids of the documents of a task as token shards of its own."""

    name, type = "Token shards", "WRITER"

    def __init__(self, folder: Path, tokenizer: Path, settings: dict[str, Any], shard_tokens: int) -> None:
        super().__init__()
        self.folder, self.tokenizer, self.settings, self.shard_tokens = folder, tokenizer, settings, shard_tokens

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """A folder; none where a task has no document left."""
        if _is_whole(self.folder / f"{rank:05}"):
            return  # killed between the shards and the note that they are done
        tokenizer = load_tokenizer(self.tokenizer)
        n_documents = 0

        def ids() -> Iterator[list[int]]:
            nonlocal n_documents
            for document in data:
                n_documents += 1
                yield tokenizer.encode(document.text, allowed_special=())

        documents = ids()
        first = next(documents, None)
        if first is not None:
            shards = write_shards(
                self.folder / f"{rank:05}",
                chain([first], documents),
                vocab_size=tokenizer.vocab_size,
                end_id=end_id(tokenizer),
                shard_tokens=self.shard_tokens,
                settings=self.settings,
            )
            self.stat_update("documents", value=n_documents)
            self.stat_update("tokens", value=len(shards))


@dataclass(frozen=True)
class Job:
    """What is to be made of a dump, and how it is cut into tasks: all that decides about the bytes.

    Args:
        dump: `*-pages-articles*.xml`, also .bz2 of one stream or many, or .gz.
        folder: for everything that the job writes; the shards will be in `folder / "shards"`.
        tokenizer: a tokenizer.json.
        tasks: into how many the work is cut, at least as many as there will be workers.
        language: the code of the language that is kept.
        rules: of quality; None: none.
        hashing: how near-duplicates are found.
        index: of a multistream dump; None: it is looked for in the dump itself.
        part_bytes: XML of a part, at least. A task does whole parts.
        shard_tokens: tokens of a shard.

    Raises:
        ValueError: a size is below 1, or a file is missing.
    """

    dump: Path
    folder: Path
    tokenizer: Path
    tasks: int = 1
    language: str = "en"
    rules: GopherRules | None = GOPHER
    hashing: Hashing = Hashing()
    index: Path | None = None
    part_bytes: int = 1 << 25
    shard_tokens: int = 1 << 26

    def __post_init__(self) -> None:
        check_sizes(tasks=self.tasks, part_bytes=self.part_bytes, shard_tokens=self.shard_tokens)
        for file in (self.dump, self.tokenizer, *([self.index] if self.index else [])):
            if not file.is_file():
                raise ValueError(f"there is no file {file}")

    def settings(self) -> dict[str, Any]:
        """What the folder and its shards are held to."""
        said = {
            "dump": self.dump.name,
            **known_by(self.dump),
            "tokenizer_sha256": digest(self.tokenizer),
            "tasks": self.tasks,
            "language": self.language,
            "rules": None if self.rules is None else asdict(self.rules),
            "hashing": asdict(self.hashing),
            "part_bytes": self.part_bytes,
            "shard_tokens": self.shard_tokens,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(said, default=sorted))  # sets of words, in one order
        return as_json


def executors(job: Job, executor: Executor = LocalPipelineExecutor, **options: Any) -> list[Any]:
    """The three stages of a job, each waiting for the one before it: run them in turn, or the last one on Slurm.

    Args:
        job: what is to be made.
        executor: LocalPipelineExecutor; or SlurmPipelineExecutor or RayPipelineExecutor of datatrove.
        options: of the executor: `workers` for one machine; `partition`, `time`, `cpus_per_task` ... for Slurm.
    """
    texts, shards = job.folder / "texts", job.folder / "tokens"
    keep = [LanguageFilter(job.language)] + ([] if job.rules is None else [QualityFilter(job.rules)])
    stages: list[tuple[str, int, list[PipelineStep]]] = [
        (
            "clean",
            job.tasks,
            [
                DumpReader(job.dump, texts, job.index, job.part_bytes),
                PlainText(),
                *keep,
                SignatureWriter(texts, job.hashing),
            ],
        ),
        ("find", 1, [DuplicateFinder(texts, job.tasks, job.hashing)]),
        (
            "tokens",
            job.tasks,
            [KeptReader(texts), ShardWriter(shards, job.tokenizer, job.settings(), job.shard_tokens)],
        ),
    ]
    made: list[Any] = []
    for name, tasks, steps in stages:
        here = options | ({"workers": min(options["workers"], tasks)} if "workers" in options else {})
        logs = str(job.folder / "logs" / name)
        before = made[-1] if made else None
        made.append(executor(pipeline=steps, tasks=tasks, logging_dir=logs, depends=before, **here))
    return made


def begin(job: Job) -> None:
    """Make the job's folder, or see that it is this job's.

    Raises:
        CorpusError: it belongs to another job.
        OSError: it cannot be made.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    agree(job.folder / "job.json", job.settings())


def finish(job: Job) -> TokenShards:
    """The shards of all tasks in one folder.

    Raises:
        ValueError: a task is not done, or no text was left.
    """
    folder = job.folder / "shards"
    if _is_whole(folder):
        return TokenShards(folder)
    done = job.folder / "logs" / "tokens" / "completions"
    missing = [task for task in range(job.tasks) if not (done / f"{task:05}").exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {job.tasks} tasks are not done, task {missing[0]} for one: run the job again"
        )
    parts = [job.folder / "tokens" / f"{task:05}" for task in range(job.tasks)]
    written = [TokenShards(part) for part in parts if _is_whole(part)]
    if not written:
        raise ValueError(f"no text of {job.dump} was left: {job.folder / 'logs'} says what the filters refused")
    return join_shards(folder, written)


def damage(job: Job) -> list[str]:
    """A sentence for each damage that the dump had; what was good in it is kept."""
    found = [json.loads(_damage(job.folder / "texts", task).read_text()) for task in range(job.tasks)]
    return list(dict.fromkeys(sentence for of_task in found for sentence in of_task))  # several may have met the same


def run(job: Job, workers: int = 1, **options: Any) -> TokenShards:
    """The whole job on this machine; what was interrupted goes on where it stopped.

    Args:
        job: what is to be made.
        workers: processes. They change the time, and nothing in the files.
        options: others of datatrove's LocalPipelineExecutor.

    Raises:
        ValueError: see `begin` and `finish`; or the dump or the tokenizer cannot be read, or another run is at work in
            the folder.
    """
    check_sizes(workers=workers)
    with alone(job.folder):
        begin(job)
        for stage in executors(job, workers=workers, **options):
            stage.run()
        return finish(job)


def _is_whole(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _texts(folder: Path, task: int) -> Path:
    return folder / f"{task:05}.jsonl.gz"


def _damage(folder: Path, task: int) -> Path:
    return folder / f"{task:05}.damage.json"


def _signatures(folder: Path, task: int) -> Path:
    return folder / f"{task:05}.npy"
