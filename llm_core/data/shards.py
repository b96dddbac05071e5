"""Token shards: more token ids than memory holds, on disk.

`write_shards` makes a folder of files of bare numbers, little-endian, 2 bytes each up to 65,536 tokens in the
vocabulary and 4 beyond. A shard gets its name when it is whole and on the disk, and the manifest, which says what there
is and with which checksums, gets its name last: a folder without one is not finished. `join_shards` makes one folder of
what several processes have written.

`TokenShards` reads no more than what is asked for, and holds each piece against the size it should have. A file that is
mapped into memory would be as fast; but a process that touches a map of a file that has become shorter is killed by the
system, without a word. `llm_core.training.windows` draws batches from the shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from llm_core.files import NotWritten, digest, sync, write_whole

FORMAT = "llm_core token shards 2"
MANIFEST = "manifest.json"
DTYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}  # the same bytes on every machine
BLOCK = 1 << 16  # bytes at both ends of a shard that are checked whenever it is opened
OURS = re.compile(r"tokens-\d{5,}\.bin|manifest\.json\.[0-9a-f]{8}\.part")  # what an interrupted write may leave

# ---------------------------------------------------------------------------------------------------------------------
# Writing

Document = Sequence[int] | Integer[np.ndarray, " N"] | Integer[Tensor, " N"]


class ShardError(ValueError):
    """Token shards that cannot be written or read; the message says which and what to do."""


def write_shards(
    folder: str | Path,
    documents: Iterable[Document],
    *,
    vocab_size: int,
    end_id: int | None = None,
    shard_tokens: int = 1 << 26,
    settings: Mapping[str, Any] | None = None,
) -> TokenShards:
    """Write the token ids of documents, one after another, and open what was written.

    Documents are taken one at a time: memory holds one of them, whatever the size of all. A shard may end in the midst
    of a document. Where an earlier write into the folder was interrupted, what it left is removed first. Only one
    process may write into a folder.

    Args:
        folder: made if it is not there; files in it that are not shards are left alone.
        documents: ids of each, from a generator for one.
        vocab_size: ids are below it.
        end_id: written after every document, so that a model sees where one ends; None writes nothing there.
        shard_tokens: tokens of each file; the last one may hold fewer.
        settings: anything that JSON can hold, kept in the manifest (the tokenizer's fingerprint, for one).

    Raises:
        ShardError: an id is outside 0 ... vocab_size - 1, there is no token, a setting is not JSON, a size is out of
            range, the folder holds shards already, or it cannot be written to (a full disk, for one). In each case, and
            when `documents` itself raises, none of the new files is left.
    """
    folder = Path(folder)
    if not 1 <= vocab_size <= 1 << 32:
        raise ShardError(f"ids have 1 to 4 bytes, so vocab_size is 1 ... 2^32: got {vocab_size}")
    if end_id is not None and not 0 <= end_id < vocab_size:
        raise ShardError(f"end_id must be in the vocabulary, 0 ... {vocab_size - 1}: got {end_id}")
    if shard_tokens < 1:
        raise ShardError(f"a shard holds at least 1 token: got shard_tokens={shard_tokens}")
    try:
        kept = json.loads(json.dumps(dict(settings or {})))
    except (TypeError, ValueError) as error:
        raise ShardError(f"settings must be what JSON can hold: {error}") from error
    with _disk(folder):
        _empty(folder)

    name = "uint16" if vocab_size <= 1 << 16 else "uint32"
    writer = _Writer(folder, DTYPES[name], shard_tokens)
    end = np.array([] if end_id is None else [end_id], dtype=np.int64)
    n_documents = 0
    try:
        for document in documents:
            writer.write(_checked(document, vocab_size, n_documents))
            writer.write(end)
            n_documents += 1
        writer.finish_shard()
        if not writer.shards:
            raise ShardError(f"there is nothing to write: {n_documents} documents without a token")
        writer.write_manifest(_manifest(name, vocab_size, end_id, n_documents, writer.shards, kept))
    except BaseException:  # Ctrl-C too
        writer.discard()
        raise
    return TokenShards(folder)


def join_shards(folder: str | Path, parts: Sequence[TokenShards]) -> TokenShards:
    """One folder of all the shards of several, in their order: what several processes have written side by side.

    Where the disk allows it, a shard of the new folder is a second name of the same file and takes no room.

    Args:
        folder: made if it is not there; what an interrupted join has left in it is removed.
        parts: all of the same vocabulary, end and settings.

    Raises:
        ShardError: there are no parts, they differ in these, the folder holds shards already, or the disk is full.
    """
    folder = Path(folder)
    if not parts:
        raise ShardError("there are no shards to join: give those of at least one folder")
    kinds = [(part.vocab_size, part.end_id, part.settings) for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise ShardError(
                f"{part.folder} has another vocabulary, end or settings than {parts[0].folder}: {kind} and {kinds[0]}"
            )
    shards: list[dict[str, Any]] = []
    with _disk(folder):
        _empty(folder)
        for part in parts:
            for shard in part._shards:
                path = folder / f"tokens-{len(shards):05}.bin"
                _second_name(part.folder / shard["file"], path)
                shards.append(shard | {"file": path.name})
        sync(folder)
        n_documents = sum(part.n_documents for part in parts)
        vocab_size, end_id, settings = kinds[0]
        write_whole(
            folder / MANIFEST, _manifest(parts[0]._dtype_name, vocab_size, end_id, n_documents, shards, settings)
        )
    return TokenShards(folder)


def _empty(folder: Path) -> None:
    """Make the folder, and remove what an interrupted write has left in it."""
    if (folder / MANIFEST).exists():
        raise ShardError(f"{folder} holds token shards already: give another folder, or delete this one first")
    folder.mkdir(parents=True, exist_ok=True)
    for path in _left(folder):
        path.unlink()


def _second_name(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # another disk, or one that knows no second names
        shutil.copyfile(path, new)
        sync(new)


def _manifest(
    dtype: str,
    vocab_size: int,
    end_id: int | None,
    n_documents: int,
    shards: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    manifest = {
        "format": FORMAT,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "end_id": end_id,
        "documents": n_documents,
        "tokens": sum(shard["tokens"] for shard in shards),
        "shards": shards,
        "settings": settings,
    }
    manifest["sha256"] = _seal(manifest)
    return json.dumps(manifest, indent=1) + "\n"


def _checked(document: Any, vocab_size: int, number: int) -> Integer[np.ndarray, " N"]:
    """The ids of a document as an array, all of them in the vocabulary."""
    ids = np.asarray(document)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ShardError(
            f"document {number} (from 0) is not a sequence of ids of 64 bits: as an array it is {ids.dtype} {ids.shape}"
        )
    if len(ids) == 0:
        return np.empty(0, dtype=np.int64)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ShardError(
            f"document {number} (from 0) has ids {low} ... {high}, but the vocabulary has 0 ... {vocab_size - 1}: "
            "is it another tokenizer's?"
        )
    return ids


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotWritten) as error:
        reason = error.reason if isinstance(error, NotWritten) else error.strerror or error
        raise ShardError(
            f"{path} cannot be written: {reason}. None of the new shards is kept; "
            "give a folder that can be written to and has room, and write again"
        ) from error


class _Writer:
    """Cuts a stream of ids into files.

    Errors of the disk become ShardErrors here and nowhere else: an OSError of the documents is the caller's own.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._path, self._tokens, self._digest = folder, 0, hashlib.sha256()  # of the file that is being written

    def write(self, ids: Integer[np.ndarray, " N"]) -> None:
        while len(ids):
            file = self._file or self._begin()
            room = self.shard_tokens - self._tokens
            part, ids = ids[:room], ids[room:]
            content = part.astype(self.dtype).tobytes()
            with _disk(self._path):
                file.write(content)
            self._digest.update(content)
            self._tokens += len(part)
            if self._tokens == self.shard_tokens:
                self.finish_shard()

    def _begin(self) -> BinaryIO:
        self._path = self.folder / f"tokens-{len(self.shards):05}.bin"
        self._tokens, self._digest = 0, hashlib.sha256()
        with _disk(self._path):
            self._file = self._path.open("wb")
        return self._file

    def finish_shard(self) -> None:
        if self._file is None:
            return
        with _disk(self._path):
            self._file.close()
            sync(self._path)
            ends = _ends(self._path)
        self._file = None
        digests = {"ends": ends, "sha256": self._digest.hexdigest()}
        self.shards.append({"file": self._path.name, "tokens": self._tokens, **digests})

    def write_manifest(self, content: str) -> None:
        """The last file: what has a manifest is whole, and on the disk."""
        with _disk(self.folder / MANIFEST):
            write_whole(self.folder / MANIFEST, content)

    def discard(self) -> None:
        """Remove everything written. What cannot be removed has no manifest, and the next write removes it."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()  # which writes out what it still holds, and may find the disk full again
        with suppress(OSError):
            for path in [self.folder / MANIFEST, *_left(self.folder)]:
                with suppress(OSError):
                    path.unlink()


def _left(folder: Path) -> list[Path]:
    """The shards of a folder without a manifest, and what is not yet a shard."""
    return [path for path in folder.iterdir() if OURS.fullmatch(path.name)]


def _ends(path: Path) -> str:
    """The SHA-256 of a file's first and last block: what a copy that stopped, or zeros from a crash, will change."""
    with path.open("rb") as file:
        first = file.read(BLOCK)
        file.seek(max(0, path.stat().st_size - BLOCK))
        return hashlib.sha256(first + file.read(BLOCK)).hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its own line for it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reading

REMEDY = "copy it again from where it came, or delete the folder and write the shards again"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: {REMEDY}") from None
    except OSError as error:
        raise ShardError(
            f"{path} cannot be read: {error.strerror or error}. Give the right to read it, or {REMEDY}"
        ) from error


class TokenShards:
    """The tokens of a folder written by `write_shards`, as one long sequence that stays on the disk.

    Args:
        folder: where the manifest is.
        verify: hold every shard against its checksum now, which reads all of it. The manifest's own checksum, the
            sizes, and the first and the last 64 KiB of each shard are checked in any case.

    Attributes:
        vocab_size: ids are below it.
        end_id: the id after every document, or None.
        n_documents: how many there are.
        settings: what was kept with them.
        fingerprint: a checksum over those of all shards: the same for the same tokens in the same shards. Kept in a
            checkpoint, it says which tokens a run was trained on.

    Raises:
        ShardError: there is no manifest, or it is not one of ours or was changed; or a shard is missing, has another
            size, other ends or, with `verify`, another content. Reading raises it too, for a shard that was cut or
            removed since.
    """

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ShardError(
                f"there is no {MANIFEST} in {self.folder}: nothing was written there, or a write was interrupted. "
                "Write the shards (again)"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{self.folder / MANIFEST} is damaged ({error}): {REMEDY}") from error
        except OSError as error:
            raise ShardError(
                f"{self.folder / MANIFEST} cannot be read: {error.strerror or error}. "
                "Give the folder that write_shards wrote, and the right to read it"
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ShardError(
                f"{self.folder / MANIFEST} does not say {FORMAT!r}: write_shards did not write it, "
                "or another version of it did. Write the shards again"
            )
        try:
            self.vocab_size: int = manifest["vocab_size"]
            self.end_id: int | None = manifest["end_id"]
            self.n_documents: int = manifest["documents"]
            self.settings: dict[str, Any] = manifest["settings"]
            self._shards: list[dict[str, Any]] = manifest["shards"]
            self._dtype_name: str = manifest["dtype"]
            self._dtype = DTYPES[self._dtype_name]
            # Where each shard begins, and where the last one ends.
            self._begins = [0, *accumulate(shard["tokens"] for shard in self._shards)]
            whole = self._begins[-1] == manifest["tokens"] > 0
            sealed = manifest["sha256"] == _seal(manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ShardError(f"{self.folder / MANIFEST} is damaged, it lacks {error}: {REMEDY}") from error
        if not whole:
            raise ShardError(
                f"{self.folder / MANIFEST} says {manifest['tokens']} tokens and names shards with "
                f"{self._begins[-1]}: {REMEDY}"
            )
        if not sealed:
            raise ShardError(f"{self.folder / MANIFEST} is not what was written, its checksum is another: {REMEDY}")

        for shard in self._shards:
            path = self.folder / shard["file"]
            with _reading(path):
                size, expected = path.stat().st_size, shard["tokens"] * self._dtype.itemsize
                ends = _ends(path)
            if size != expected:
                raise ShardError(
                    f"{path} should have {expected:,} bytes and has {size:,}, so it was cut short or changed: {REMEDY}"
                )
            if ends != shard["ends"]:
                raise ShardError(
                    f"{path} is damaged: its first or last {BLOCK:,} bytes are not what was written; {REMEDY}"
                )
        self.fingerprint = hashlib.sha256(" ".join(shard["sha256"] for shard in self._shards).encode()).hexdigest()
        if verify:
            self.verify()

    def verify(self) -> None:
        """Hold every shard against its checksum; this reads all of it.

        Raises:
            ShardError: a shard is not what was written.
        """
        for shard in self._shards:
            path = self.folder / shard["file"]
            with _reading(path):
                sha256 = digest(path)
            if sha256 != shard["sha256"]:
                raise ShardError(
                    f"{path} is damaged: its sha256 is {sha256}, the manifest says {shard['sha256']}; {REMEDY}"
                )

    def __len__(self) -> int:
        return self._begins[-1]

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> Int[Tensor, " N"]: ...
    def __getitem__(self, where: int | slice) -> int | Int[Tensor, " N"]:
        """One id, or a stretch of them as a tensor of its own; stretches may cross from shard to shard."""
        if isinstance(where, int):
            at = range(len(self))[where]  # counts from the end where it is negative, raises IndexError
            return int(self[at : at + 1])
        begin, end, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens are read one after another: got a step of {step}")
        ids = torch.empty(max(0, end - begin), dtype=torch.long)
        at = begin
        while at < end:
            shard = bisect_right(self._begins, at) - 1
            here = self._begins[shard]
            part = self._read(shard, at - here, min(end, self._begins[shard + 1]) - here)
            ids[at - begin : at - begin + len(part)] = torch.from_numpy(part.astype(np.int64))
            at += len(part)
        return ids

    def _read(self, shard: int, begin: int, end: int) -> Integer[np.ndarray, " N"]:
        """The tokens begin ... end - 1 of one shard."""
        path, width = self.folder / self._shards[shard]["file"], self._dtype.itemsize
        with _reading(path):
            ids = np.fromfile(path, dtype=self._dtype, count=end - begin, offset=begin * width)
        if len(ids) < end - begin:
            raise ShardError(f"{path} was cut short since it was opened: {REMEDY}")
        return ids

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path]]:
        # To another process goes the folder, not the tokens.
        return TokenShards, (self.folder,)
