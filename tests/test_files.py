"""Files that are whole or not there."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_core import files
from llm_core.files import NotWritten, digest, replacing, write_whole


def through(path: Path, write: Callable[[Path], object]) -> None:
    with replacing(path) as part:
        write(part)


@pytest.mark.parametrize("content", [b"\x00\xff\r\n", "ä\r\n€\n", "", b""])
def test_what_is_written_is_what_is_read(content: bytes | str, tmp_path: Path):
    path = tmp_path / "file"
    for _ in range(2):  # a new file, and one that is there
        assert write_whole(str(path), content) == path
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_pieces(tmp_path: Path):
    with replacing(tmp_path / "file") as part:
        assert part.parent == tmp_path  # on the same disk, so that a move is one step
        with part.open("w") as file:
            file.write("one ")
            file.write("two")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "one two"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_has_the_rights_of_any_other(umask: int, tmp_path: Path):
    old = os.umask(umask)
    try:
        write_whole(tmp_path / "ours", "")
        (tmp_path / "any").write_text("")
    finally:
        os.umask(old)
    ours, other = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "any"))
    assert ours == other == 0o666 & ~umask


def test_a_disk_without_room_for_all_of_it_leaves_the_old_file(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="a limit on files is a thing of Unix")
    path = write_whole(tmp_path / "file", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(NotWritten, match=r"file cannot be written: File too large.*has room") as caught:
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_truly_full(tmp_path: Path):
    path = write_whole(tmp_path / "file", "old")
    with pytest.raises(NotWritten, match="No space left"):
        through(path, lambda part: (part.symlink_to("/dev/full"), part.write_text("new")))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["sync", "replace"])
def test_a_disk_that_fails_later(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_whole(tmp_path / "file", "old")

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    if step == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(NotWritten, match="Input/output error"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path):
    path = write_whole(tmp_path / "file", "old")

    def stop(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(error):
        through(path, stop)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(NotWritten, match=r"nowhere/file cannot be written: No such file.*give a folder that exists"):
        write_whole(tmp_path / "nowhere" / "file", "")
    with pytest.raises(NotWritten):
        through(tmp_path / "file", lambda part: None)  # a block that writes nothing
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Windows has other rights")
def test_a_folder_that_is_read_only():
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: only its owner may look into it
        path = write_whole(Path(name) / "file", "old")
        Path(name).chmod(0o555)
        user = os.geteuid()
        if user == 0:  # root may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(NotWritten, match=r"file cannot be written: Permission denied.*can be written to"):
                write_whole(path, "new")
        finally:
            os.seteuid(user)
        Path(name).chmod(0o755)
        assert path.read_text() == "old"
        assert list(Path(name).iterdir()) == [path]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_whole(tmp_path / "file", "old")
    events = []
    sync, replace = files.sync, Path.replace

    def synced(which: Path) -> None:
        events.append((which.suffix, which.read_bytes() if which.is_file() else b"", path.read_text()))
        sync(which)

    def replaced(part: Path, to: Path) -> Path:
        events.append("replace")
        return replace(part, to)

    monkeypatch.setattr(files, "sync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(path, "new")
    assert events == [(".part", b"new", "old"), "replace", (tmp_path.suffix, b"", "new")]


def test_the_digest_is_that_of_the_system(tmp_path: Path):
    path = write_whole(tmp_path / "file", b"abc" * 100_000)
    assert digest(path) == digest(str(path)) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    # NIST's example for SHA-256, FIPS 180-2, appendix B.1
    assert digest(write_whole(path, "abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_it_needs_no_torch():
    code = "import sys, llm_core.files, llm_core.checks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
