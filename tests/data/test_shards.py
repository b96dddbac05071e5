"""Token shards: what was written is read, or an error names the file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_core.data import shards
from llm_core.data.shards import ShardError, TokenShards, join_shards, write_shards
from llm_core.training.windows import WindowSampler

ROOT = Path(__file__).resolve().parents[2]


def some_documents(vocab_size: int = 1000, n: int = 40) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(vocab_size) for _ in range(draw.randrange(60))] for _ in range(n)]


def joined(documents, end_id=None) -> list[int]:
    return [id_ for document in documents for id_ in [*document, *([] if end_id is None else [end_id])]]


@pytest.fixture
def written(tmp_path) -> Path:
    """A small folder of shards: 5 of 7 tokens and one of 4; the first one holds the ends of three documents."""
    documents = [range(2), range(2, 3), range(3, 6), range(6, 39)]
    return write_shards(tmp_path / "shards", documents, vocab_size=50, shard_tokens=7).folder


@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 100_000])
@pytest.mark.parametrize("end_id", [None, 999])
def test_what_was_written_is_what_is_read(shard_tokens, end_id, tmp_path):
    documents = some_documents(n=6)
    tokens = write_shards(tmp_path, iter(documents), vocab_size=1000, end_id=end_id, shard_tokens=shard_tokens)
    expected = joined(documents, end_id)
    assert len(tokens) == len(expected)
    assert tokens[:].tolist() == expected
    assert tokens[:].dtype == torch.long
    assert (tokens.n_documents, tokens.vocab_size, tokens.end_id) == (6, 1000, end_id)


def test_slices_cross_from_shard_to_shard(written):
    tokens, ids = TokenShards(written), list(range(39))
    for begin in range(-41, 42):
        for end in [None, *range(-41, 42)]:
            assert tokens[begin:end].tolist() == ids[begin:end]
    assert list(tokens) == ids
    assert tokens[-1] == 38
    for beyond in (39, -40):
        with pytest.raises(IndexError):
            tokens[beyond]
    with pytest.raises(ValueError, match="got a step of 2"):
        tokens[::2]


def test_what_is_read_may_be_changed_and_the_disk_is_not(written):
    tokens = TokenShards(written)
    tokens[3:20].fill_(0)
    assert tokens[:].tolist() == list(range(39))


@pytest.mark.parametrize(("vocab_size", "numpy_type"), [(1, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (1 << 32, "<u4")])
def test_files_are_bare_little_endian_numbers_as_wide_as_the_vocabulary_needs(vocab_size, numpy_type, tmp_path):
    ids = [0, vocab_size - 1, vocab_size // 2]
    write_shards(tmp_path, [ids], vocab_size=vocab_size)
    assert (tmp_path / "tokens-00000.bin").read_bytes() == np.array(ids, dtype=numpy_type).tobytes()
    assert TokenShards(tmp_path)[:].tolist() == ids


def test_the_manifest_says_what_there_is(written, tmp_path):
    manifest = json.loads((written / "manifest.json").read_text())
    assert [shard["tokens"] for shard in manifest["shards"]] == [7, 7, 7, 7, 7, 4]
    assert (manifest["dtype"], manifest["tokens"], manifest["documents"]) == ("uint16", 39, 4)
    for shard in manifest["shards"]:
        assert shard["sha256"] == hashlib.sha256((written / shard["file"]).read_bytes()).hexdigest()
    # whole at a border: no empty shard after it
    even = write_shards(tmp_path / "even", [[1] * 14], vocab_size=2, shard_tokens=7)
    assert sorted(path.name for path in even.folder.iterdir()) == [
        "manifest.json", "tokens-00000.bin", "tokens-00001.bin"
    ]  # fmt: skip


def test_settings_are_kept_and_the_fingerprint_is_of_the_tokens(tmp_path):
    settings = {"tokenizer": "9f2c", "lower": True, "names": ["黄"], "none": None}
    folders = [tmp_path / name for name in "abc"]
    a = write_shards(folders[0], [[1, 2, 3]], vocab_size=9, settings=settings)
    b = write_shards(folders[1], [[1], [2, 3]], vocab_size=9)
    c = write_shards(folders[2], [[1, 2, 4]], vocab_size=9)
    assert a.settings == settings
    assert TokenShards(folders[1]).settings == {}
    assert a.fingerprint == b.fingerprint != c.fingerprint


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.uint16)])
def test_documents_may_be_lists_arrays_or_tensors(convert, tmp_path):
    assert write_shards(tmp_path, [convert([3, 1, 2])], vocab_size=4)[:].tolist() == [3, 1, 2]


def test_an_empty_document_is_a_document(tmp_path):
    tokens = write_shards(tmp_path, [[], [5], []], vocab_size=9, end_id=8)
    assert tokens[:].tolist() == [8, 5, 8, 8]
    assert tokens.n_documents == 3


def test_writing_takes_the_memory_of_one_document(tmp_path):
    def documents():
        for number in range(200):
            yield np.full(20_000, number)

    write_shards(tmp_path / "warm", [[1]], vocab_size=2)
    tracemalloc.start()
    tokens = write_shards(tmp_path / "shards", documents(), vocab_size=200, shard_tokens=1_500_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tokens) == 4_000_000
    assert peak < 1_500_000  # bytes: a document has 160,000, and one shard on the disk 3,000,000


def test_shards_go_to_another_process_by_the_name_of_their_folder(tmp_path):
    tokens = write_shards(tmp_path, [range(10_000)], vocab_size=10_000)
    sent = pickle.dumps(WindowSampler(tokens, batch_size=2, length=5, seed=0))
    assert len(sent) < 2000
    assert torch.equal(
        pickle.loads(sent).batch(3).targets, WindowSampler(tokens, batch_size=2, length=5, seed=0).batch(3).targets
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([3, 50], r"document 2 \(from 0\) has ids 3 ... 50, but the vocabulary has 0 ... 49"),
        ([-1], r"has ids -1 ... -1"),
        ([0.5], "float64"),
        (["a"], "<U1"),
        ([True], "bool"),
        ([1 << 70], "object"),
        ([[1, 2]], r"\(1, 2\)"),
    ],
)
def test_ids_out_of_the_vocabulary_are_refused_and_nothing_is_left(bad, message, tmp_path):
    with pytest.raises(ShardError, match=message):
        write_shards(tmp_path, iter([[1] * 20, [2], bad]), vocab_size=50, shard_tokens=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "got 0"),
        ({"vocab_size": (1 << 32) + 1}, "got 4294967297"),
        ({"vocab_size": 5, "end_id": 5}, "0 ... 4: got 5"),
        ({"vocab_size": 5, "end_id": -1}, "got -1"),
        ({"vocab_size": 5, "shard_tokens": 0}, "shard_tokens=0"),
        ({"vocab_size": 5, "settings": {"a": object()}}, "JSON"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_document_is_taken(arguments, message, tmp_path):
    documents = iter([[1], [2]])
    with pytest.raises(ShardError, match=message):
        write_shards(tmp_path / "new", documents, **arguments)
    assert next(documents) == [1]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_no_tokens_are_no_shards(documents, tmp_path):
    with pytest.raises(ShardError, match=f"{len(documents)} documents without a token"):
        write_shards(tmp_path, documents, vocab_size=5)
    assert list(tmp_path.iterdir()) == []


def test_shards_that_are_there_are_not_written_over(written):
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    with pytest.raises(ShardError, match="holds token shards already"):
        write_shards(written, [[1]], vocab_size=5)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"file.*cannot be written"):
        write_shards(tmp_path / "file", [[1]], vocab_size=5)


class Full:
    """A file on a disk with room for `room` bytes."""

    room = 0

    def __init__(self, file) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        Full.room -= len(content)
        if Full.room < 0:
            self.file.write(content[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 5, 40, 78])  # in the first shard, in a later one, in the manifest
def test_a_full_disk_is_said_and_nothing_is_left(room, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path.parent / f"{tmp_path.name}.part").write_text("mine too")
    opened = Path.open
    monkeypatch.setattr(Full, "room", room)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args: Full(opened(self, *args)))
        with pytest.raises(ShardError, match=r"tokens-0000|manifest.*No space left on device.*has room"):
            write_shards(tmp_path, [range(39)], vocab_size=50, shard_tokens=7)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path.parent / f"{tmp_path.name}.part").exists()
    assert len(write_shards(tmp_path, [range(39)], vocab_size=50, shard_tokens=7)) == 39


def test_a_disk_that_is_full_only_when_it_is_told_to_keep_leaves_nothing_either(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShardError, match=r"tokens-00000\.bin cannot be written: No space left on device"):
        write_shards(tmp_path, [range(39)], vocab_size=50, shard_tokens=7)
    assert list(tmp_path.iterdir()) == []


def test_every_file_is_on_the_disk_before_the_manifest_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def kept(number):
        events.append(f"fsync {os.fstat(number).st_size}")
        fsync(number)

    def named(self, target):
        events.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", kept)
    monkeypatch.setattr(Path, "replace", named)
    tokens = write_shards(tmp_path, [range(10)], vocab_size=50, shard_tokens=7)
    size = (tokens.folder / "manifest.json").stat().st_size
    assert events[:4] == ["fsync 14", "fsync 6", f"fsync {size}", "manifest.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no such corpus")])
def test_an_error_of_the_documents_is_their_own_and_nothing_is_left(error, tmp_path):
    def documents():
        yield list(range(20))
        raise error

    with pytest.raises(type(error)) as caught:
        write_shards(tmp_path, documents(), vocab_size=50, shard_tokens=7)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_as_late_as_can_be_leaves_no_manifest_without_its_shards(tmp_path, monkeypatch):
    replace = Path.replace

    def named(self, target):
        replace(self, target)
        if target.name == "manifest.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", named)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, [range(20)], vocab_size=50, shard_tokens=7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_write_that_was_killed_leaves_no_manifest_and_is_begun_again(tmp_path):
    program = """
import os, signal, sys
from llm_core.data.shards import write_shards
def documents():
    yield list(range(45))
    os.kill(os.getpid(), signal.SIGKILL)
write_shards(sys.argv[1], documents(), vocab_size=50, shard_tokens=7)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert {"tokens-00005.bin", "tokens-00006.bin"} <= left
    assert "manifest.json" not in left
    with pytest.raises(ShardError, match=r"no manifest\.json .* a write was interrupted"):
        TokenShards(tmp_path)
    (tmp_path / "tokens-of-mine.bin").write_text("not a shard")
    write_shards(tmp_path, [range(9)], vocab_size=50, shard_tokens=7)
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json", "tokens-00000.bin", "tokens-00001.bin", "tokens-of-mine.bin"
    }  # fmt: skip
    assert TokenShards(tmp_path, verify=True)[:].tolist() == list(range(9))


def test_a_shard_that_is_missing_is_named(written):
    (written / "tokens-00003.bin").unlink()
    with pytest.raises(ShardError, match=r"tokens-00003\.bin is missing: copy it again .* or delete the folder"):
        TokenShards(written)


@pytest.mark.parametrize("change", [-14, -1, 1, 14])
def test_a_shard_of_another_size_is_named_with_both_sizes(change, written):
    path = written / "tokens-00002.bin"
    path.write_bytes((path.read_bytes() + b"\0" * 14)[: 14 + change])
    with pytest.raises(
        ShardError, match=rf"tokens-00002\.bin should have 14 bytes and has {14 + change},.*copy it again"
    ):
        TokenShards(written)


def test_a_shard_with_one_bit_changed_at_an_end_is_found_at_once(written):
    path = written / "tokens-00005.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"tokens-00005\.bin is damaged: its first or last 65,536 bytes"):
        TokenShards(written)  # the size is right


def test_whole_shards_pass(written):
    TokenShards(written, verify=True).verify()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "is damaged"),
        ('{"format": "llm_core tok', "is damaged"),
        ("[]", "does not say 'llm_core token shards 2'"),
        ('{"format": "another"}', "does not say 'llm_core token shards 2'"),
        ('{"format": "llm_core token shards 2"}', "lacks 'vocab_size'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(manifest, message, written):
    (written / "manifest.json").write_text(manifest)
    with pytest.raises(ShardError, match=message):
        TokenShards(written)


def test_a_manifest_that_lost_a_shard_is_refused(written):
    manifest = json.loads((written / "manifest.json").read_text())
    del manifest["shards"][-1]
    (written / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="says 39 tokens and names shards with 35"):
        TokenShards(written)


def test_a_bit_in_the_middle_of_a_large_shard_is_found_when_asked_for(tmp_path):
    tokens = write_shards(tmp_path, [[7] * 100_000], vocab_size=50)
    with (tmp_path / "tokens-00000.bin").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\x06")
    TokenShards(tmp_path)
    with pytest.raises(ShardError, match=r"tokens-00000\.bin is damaged: its sha256"):
        tokens.verify()
    with pytest.raises(ShardError, match=r"tokens-00000\.bin is damaged: its sha256"):
        TokenShards(tmp_path, verify=True)


def places(value, path=()):
    """The way to everything inside a manifest."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield (*path, key)
        yield from places(part, (*path, key))


def test_a_manifest_with_any_entry_deleted_or_replaced_is_refused(tmp_path):
    settings = {"tokenizer": "9f2c", "sizes": [1, 2], "lower": True, "none": None}
    folder = write_shards(tmp_path, [range(9)], vocab_size=50, shard_tokens=7, end_id=3, settings=settings).folder
    text = (folder / "manifest.json").read_text()
    tried = 0
    for *way, key in list(places(json.loads(text))):
        for change in ("delete", "rename", None, 0, -1, 1.5, True, "x", [], {}, [None], {"a": 1}, 10**30):
            manifest = json.loads(text)
            inside = manifest
            for step in way:
                inside = inside[step]
            if change == "delete":
                del inside[key]
            elif change == "rename" and isinstance(inside, dict):
                inside["another"] = inside.pop(key)
            elif type(inside[key]) is type(change) and inside[key] == change:
                continue
            else:
                inside[key] = change
            (folder / "manifest.json").write_text(json.dumps(manifest))
            with pytest.raises(ShardError, match=r"manifest\.json .*(write|written)"):
                TokenShards(folder)
            tried += 1
    assert tried > 250


def test_a_manifest_with_any_bit_flipped_or_cut_anywhere_is_refused(written):
    content = (written / "manifest.json").read_bytes()
    whole = json.loads(content)
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        place = draw.randrange(len(damaged))
        damaged[place] ^= 1 << draw.randrange(8)
        if draw.random() < 0.2:
            del damaged[place:]
        (written / "manifest.json").write_bytes(damaged)
        try:
            if json.loads(damaged) == whole:  # a space that became another one
                continue
        except ValueError:
            pass
        with pytest.raises(ShardError, match=r"manifest\.json"):
            TokenShards(written)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"null", b"7"])
def test_a_manifest_that_is_no_json_of_ours_is_refused(content, written):
    (written / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json"):
        TokenShards(written)


def test_what_lies_where_the_manifest_or_a_shard_should_be_is_named(written):
    shard = written / "tokens-00001.bin"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(ShardError, match=r"tokens-00001\.bin"):
        TokenShards(written)
    (written / "manifest.json").unlink()
    (written / "manifest.json").mkdir()
    with pytest.raises(ShardError, match=r"manifest\.json cannot be read"):
        TokenShards(written)
    with pytest.raises(ShardError, match=r"manifest\.json cannot be read"):
        TokenShards(shard.parent / "tokens-00000.bin")


def test_a_shard_that_is_cut_or_removed_after_it_was_opened_is_an_error_and_not_the_end_of_the_process(written):
    tokens = TokenShards(written)
    os.truncate(written / "tokens-00002.bin", 6)
    assert tokens[:17].tolist() == list(range(17))
    with pytest.raises(ShardError, match=r"tokens-00002\.bin was cut short since it was opened: copy it again"):
        tokens[:]
    (written / "tokens-00002.bin").unlink()
    with pytest.raises(ShardError, match=r"tokens-00002\.bin is missing"):
        tokens[15]


# ---------------------------------------------------------------------------------------------------------------------
# Several folders made one


def two_parts(folder, **second):
    options = {"vocab_size": 300, "end_id": 9, "settings": {"tokenizer": "a"}}
    first = write_shards(folder / "a", [[1, 2, 3], [4]], shard_tokens=4, **options)
    return [first, write_shards(folder / "b", [[5, 299]], shard_tokens=4, **(options | second))]


def test_joined_shards_are_those_of_the_parts_in_their_order(tmp_path):
    parts = two_parts(tmp_path)
    joined = join_shards(tmp_path / "all", parts)
    assert joined[:].tolist() == [1, 2, 3, 9, 4, 9, 5, 299, 9] == [*parts[0][:].tolist(), *parts[1][:].tolist()]
    assert joined[3:7].tolist() == [9, 4, 9, 5]
    assert (joined.n_documents, joined.end_id, joined.vocab_size, joined.settings) == (3, 9, 300, {"tokenizer": "a"})
    joined.verify()
    assert join_shards(tmp_path / "again", parts).fingerprint == joined.fingerprint
    assert join_shards(tmp_path / "other", parts[::-1]).fingerprint != joined.fingerprint


def test_where_no_second_name_can_be_had_the_file_is_copied(tmp_path, monkeypatch):
    parts = two_parts(tmp_path)
    linked = join_shards(tmp_path / "linked", parts)

    def no_links(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_links)
    copied = join_shards(tmp_path / "copied", parts)
    assert copied[:].tolist() == linked[:].tolist()
    inodes = {file.stat().st_ino for part in parts for file in part.folder.glob("*.bin")}
    assert {file.stat().st_ino for file in linked.folder.glob("*.bin")} == inodes
    assert not inodes & {file.stat().st_ino for file in copied.folder.glob("*.bin")}


@pytest.mark.parametrize("second", [{"vocab_size": 301}, {"end_id": None}, {"settings": {"tokenizer": "b"}}])
def test_parts_that_are_not_alike_are_not_joined(second, tmp_path):
    with pytest.raises(ShardError, match=r"b has another vocabulary, end or settings"):
        join_shards(tmp_path / "all", two_parts(tmp_path, **second))
    assert not (tmp_path / "all").exists()


def test_a_join_that_was_interrupted_is_begun_again_and_a_finished_one_is_left_alone(tmp_path, monkeypatch):
    parts = two_parts(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_whole", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            join_shards(tmp_path / "all", parts)
    (tmp_path / "all" / "tokens-00007.bin").write_bytes(b"left over")
    joined = join_shards(tmp_path / "all", parts)
    assert len(list(joined.folder.iterdir())) == 4
    with pytest.raises(ShardError, match="holds token shards already"):
        join_shards(tmp_path / "all", parts)
    with pytest.raises(ShardError, match="no shards to join"):
        join_shards(tmp_path / "none", [])
