"""One run in a folder at a time: a lock that cannot be deleted away.

The file `lock` in the folder is locked, and wherever the system allows it, so is the folder itself. Who deletes the
file makes room for another lock file; but the folder cannot be deleted while the run's files are in it, and the next
run finds it locked. On Windows a folder cannot be locked, and there a file that is locked cannot be deleted either. The
system gives both locks back when the process ends, in whatever way.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout

if sys.platform != "win32":
    import fcntl


class FolderLock:
    """The lock of one folder; `acquire` does not wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = FileLock(folder / "lock", timeout=0)
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it; False if another has it.

        Raises:
            OSError: the lock's file cannot be made or opened.
        """
        try:
            self._file.acquire()
        except Timeout:
            return False
        try:
            free = self._lock_folder()
        except BaseException:
            self.release()
            raise
        if not free:
            self.release()
        return free

    def release(self) -> None:
        """Give it back, if it was taken."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # which unlocks it
            self._descriptor = None
        self._file.release()

    def _lock_folder(self) -> bool:
        if sys.platform == "win32":
            return True
        self._descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network disks lock files and no folders: there the file has to do.
            return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        return True
