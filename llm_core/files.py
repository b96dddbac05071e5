"""Files that are whole or not there: how everything in this package writes, and how a file is told from another.

A new file is written beside its place, brought onto the disk, and moved there. So a crash, a full disk, a kill or a
Ctrl-C leaves the old file or the new one, and never half of one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class NotWritten(ValueError):
    """A file that could not be written; the message names it and says what to do, `reason` is what the system said."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be written: {reason}. What was there before is still there; "
            "give a folder that exists, can be written to and has room"
        )
        self.path, self.reason = path, reason


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The name of a new file beside `path`, for the `with` block to write; at its end it takes the place of `path`.

    When the block raises, the new file is removed and the old one is as it was. A process that is killed leaves the
    new file behind, under a name that ends in `.part`.

    Raises:
        NotWritten: the folder is missing or read-only, or the disk is full. An OSError in the block counts as that.
    """
    path = Path(path)
    # Not tempfile: its files can be read by their owner alone, and these are files like any other.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        sync(part)  # before it takes the old file's name: a power cut must not leave the name on nothing
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise NotWritten(path, error.strerror or str(error)) from error
    finally:
        with suppress(OSError):  # it has become the file, or was never made
            part.unlink()


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file at once, text as UTF-8 with its line ends as they are; returns its path.

    Raises:
        NotWritten: see `replacing`.
    """
    path = Path(path)
    with replacing(path) as part, part.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # there a folder cannot be opened, and its names are on the disk without it
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def return_memory() -> None:
    """Give freed memory back to the system, after a large file was read: the C library of Linux keeps it otherwise."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
