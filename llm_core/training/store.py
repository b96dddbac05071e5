"""Where a run's checkpoints lie: one vocabulary, whether each is one file or a folder that several processes write.

    save        write the checkpoint of a step                 name_of(200) == "step-00000200"
    finished    those that are whole, the newest first
    load        verify one, for `restore`
    latest      the newest that can be loaded
    prune       drop the oldest, but for as many as are kept

`FileStore` keeps one safetensors file a step; `llm_core.distributed.checkpoint.ShardedStore` keeps a folder a step. A
`Run` works with either.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from llm_core.files import NotWritten
from llm_core.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, name_of, save_checkpoint


@runtime_checkable
class Saved(Protocol):
    """A checkpoint that was found whole."""

    @property
    def step(self) -> int:
        """Steps taken before it was saved."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was saved with it."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        *,
        scheduled: Collection[str] = (),
    ) -> int:
        """Put the model, the optimizer and the generators where they were; returns the step."""


@runtime_checkable
class Store(Protocol):
    """Checkpoints of one run. Where several processes share it, all of them call each method, at the same time."""

    @property
    def folder(self) -> Path:
        """Where they lie."""

    @property
    def rank(self) -> int:
        """This process among those that share it; 0 is the one that does what only one should do."""

    def save(
        self,
        *,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of a step; returns its path. A CheckpointError leaves those before it as they were."""

    def finished(self) -> list[Path]:
        """The checkpoints that are whole, the newest first."""

    def load(self, path: Path) -> Saved:
        """Verify a checkpoint and read what it is; a CheckpointError if it is damaged."""

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep`, and what killed saves have left."""

    def set_aside(self, path: Path) -> None:
        """Give a damaged checkpoint another name, so that it does not count as one of those to keep."""

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""


class FileStore:
    """Checkpoints of one process: a file for each step. The folder is made if it is missing."""

    rank = 0

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(
        self,
        *,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of a step; returns its path. Arguments and errors are those of `save_checkpoint`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(str(NotWritten(self.folder, error.strerror or str(error)))) from error
        path = self.folder / f"{name_of(step)}.safetensors"
        return save_checkpoint(
            path, step=step, model=model, optimizer=optimizer, generators=generators, settings=settings
        )

    def finished(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def load(self, path: Path) -> Checkpoint:
        """Read a checkpoint and verify it; errors are those of `load_checkpoint`."""
        return load_checkpoint(path)

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep`, and what killed saves have left."""
        for path in [*self.finished()[keep:], *self.folder.glob("step-*.part")]:
            with _moving(path):
                path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> None:
        """Call a damaged checkpoint `step-....damaged`."""
        with _moving(path):
            path.replace(path.with_suffix(".damaged"))

    def any(self, flag: bool) -> bool:
        """`flag`: there is only this process."""
        return flag


@contextmanager
def _moving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be moved or removed: {error.strerror or error}. Give the right to, or remove it yourself"
        ) from error


def latest(store: Store) -> Saved | None:
    """The newest checkpoint that can be loaded; None if there is none yet. Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged: a run should not begin anew unasked.
    """
    damaged = []
    for path in store.finished():
        try:
            found = store.load(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(
                f"going on from {path}, step {found.step}, since what is newer cannot be used: {'; '.join(damaged)}",
                stacklevel=2,
            )
        return found
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {store.folder} can be used: {'; '.join(damaged)}. Move them away to begin at step 0"
        )
    return None
