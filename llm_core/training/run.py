"""A training run and its folder: what must outlive a crash, a full disk, an interrupt and a kill.

    runs/mine/
        checkpoints/step-00000200.safetensors    everything that the next step depends on; the last few are kept
        records.jsonl                            one line a step: loss, gradient norm, learning rate
        records.jsonl.damaged                    lines of it that a disk or an editor has spoiled, if there were any
        lock                                     held while a run is in the folder; freed by the system, in any case

The loop stays where a reader sees it:

    with Run("runs/mine", model=model, optimizer=optimizer, generators={"batches": draws}) as run:
        for step in run.steps(total=2000, save_every=200, bar=tqdm):
            batch = random_crops(ids, 16, 128, generator=draws)
            run.log(train_step(model, batch, optimizer, lr=schedule(step)))

A model that several processes train together has its checkpoints in a `ShardedStore`: `Run(..., store=...)`.

The same program, started again, goes on where the last whole checkpoint was, and ends with the same bits as a run that
was never stopped. What a step draws at random must come from a generator that the run was given, or from torch's own.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from llm_core.checks import check_sizes
from llm_core.files import NotWritten, write_whole
from llm_core.training.checkpoint import CheckpointError, name_of
from llm_core.training.lock import FolderLock
from llm_core.training.records import append_record, cut_records, read_records
from llm_core.training.step import NotFinite
from llm_core.training.store import FileStore, Store, latest

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a cluster sends before it takes the machine back


class RunError(ValueError):
    """A run that cannot start in this folder."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has saved itself."""


class Run:
    """One training run in a folder of its own. A context manager: the folder is locked inside the `with`.

    Args:
        folder: made if it is missing. If it holds a checkpoint, the run goes on from it.
        model: its weights are saved, and restored.
        optimizer: so is its state.
        generators: random generators besides torch's global one, by name.
        settings: what makes this run what it is (sizes, learning rate, seed), as JSON can hold it. A run goes on only
            with the settings it began with.
        keep: how many checkpoints are kept; an older one is what is left when the newest is damaged.
        store: where checkpoints go: a `FileStore` in the folder unless given. With one that several processes share
            (`ShardedStore`), each of them makes the run, and all take the same steps; rank 0 keeps the records.
        scheduled: settings of the optimizer that a schedule changes, besides the learning rate ("weight_decay", for
            one). Any other must be what the run began with.

    Raises:
        RunError: on entering, when another run is in the folder, the folder's run had other settings, or a file of the
            run cannot be read or written.
        CheckpointError: on entering, when no checkpoint fits the model and the optimizer, or all of them are damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generators: Mapping[str, torch.Generator] | None = None,
        settings: Mapping[str, Any] | None = None,
        keep: int = 2,
        store: Store | None = None,
        scheduled: Collection[str] = (),
    ) -> None:
        check_sizes(keep=keep)
        self.folder = Path(folder)
        self.store = FileStore(self.folder / "checkpoints") if store is None else store
        self.records = self.folder / "records.jsonl"
        self.model, self.optimizer, self.generators = model, optimizer, dict(generators or {})
        self.settings = json.loads(json.dumps(dict(settings or {})))  # as it will be read again: tuples are lists
        self.keep, self.scheduled = keep, tuple(scheduled)
        self.step = 0  # steps taken
        self.saved: Path | None = None  # the newest checkpoint that is known to be good
        self._lock = FolderLock(self.folder)
        self._stop: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._bar: Any = None

    def __enter__(self) -> Run:
        problem = self._take_folder() if self.store.rank == 0 else None
        if self.store.any(problem is not None):
            self._lock.release()
            raise problem or RunError(
                f"the process of rank 0 could not begin the run in {self.folder}, for instance because another run is "
                "at work there: its own error says why"
            )
        try:
            self._resume()
            if self.store.rank == 0:
                self._cut_records()
        except OSError as error:
            self._lock.release()
            raise RunError(
                f"{error.filename or self.folder} cannot be read or written: {error.strerror or error}. "
                "Nothing was lost: give the rights to it, or make room, and start again"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        if threading.current_thread() is threading.main_thread():  # signals can be caught there only
            self._handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._bar is not None:
            self._bar.close()
        try:
            if isinstance(error, NotFinite):
                error.add_note(self._post_mortem(error))
        finally:
            self._lock.release()

    def steps(self, total: int, *, save_every: int, bar: Callable[..., Any] | None = None) -> Iterator[int]:
        """The steps still to be taken, up to `total`; saves after every `save_every` of them and after the last.

        Args:
            total: steps of the whole run, those before a resume included.
            save_every: steps between checkpoints. A save that fails (a full disk) is a warning, and tried again at the
                next; that of the last step is an error.
            bar: `tqdm`, to see them go by.

        Raises:
            Stopped: the run was interrupted; the step was finished and saved first.
            CheckpointError: the last checkpoint cannot be written.
        """
        if save_every < 1 or total < 0:
            raise ValueError(f"steps are counted: got total={total}, save_every={save_every}")
        if bar is not None:
            self._bar = bar(total=total, initial=self.step, unit="step")
        while self.step < total:
            yield self.step
            self.step += 1
            if self._bar is not None:
                self._bar.update()
            last, due = self.step == total, self.step % save_every == 0
            if self.store.any(self._stop is not None) and not last:
                self.save()
                by = "another process" if self._stop is None else self._stop.name
                raise Stopped(
                    f"stopped by {by} after step {self.step} of {total}; all is saved in {self.saved}. "
                    "Start the same program again to go on from there"
                )
            if last:
                self.save()
            elif due:
                try:
                    self.save()
                except CheckpointError as error:
                    warnings.warn(f"step {self.step} was not saved, and training goes on. {error}", stacklevel=2)

    def log(self, record: Any, **more: float | int | str | None) -> None:
        """Write one line about the step that is under way: a record (`StepRecord`, or a mapping) and more.

        A line that cannot be written (a full disk) is a warning: training goes on. Of several processes only the one of
        rank 0 writes.

        Raises:
            ValueError: JSON cannot hold the record.
        """
        if self.store.rank != 0:
            return
        fields = asdict(record) if is_dataclass(record) and not isinstance(record, type) else dict(record)
        line = {"step": self.step, "time": round(time.time(), 3), **fields, **more}
        try:
            append_record(self.records, line)
        except OSError as error:
            reason = error.strerror or str(error)
            warnings.warn(f"step {self.step} was not recorded in {self.records}: {reason}", stacklevel=2)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the record of step {self.step} cannot be written to {self.records}: {error}. "
                "Give numbers and texts (tensor.item() for a number)"
            ) from error
        if self._bar is not None and "loss" in line:
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)

    def save(self) -> Path:
        """Write a checkpoint of the steps taken so far, and drop the oldest that are not to be kept.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are still there.
        """
        self.saved = self.store.save(
            step=self.step,
            model=self.model,
            optimizer=self.optimizer,
            generators=self.generators,
            settings=self.settings,
        )
        self.store.prune(self.keep)
        return self.saved

    def history(self) -> list[dict[str, Any]]:
        """The records so far, oldest first."""
        return read_records(self.records)

    def _take_folder(self) -> RunError | None:
        """Make the folder and lock it; what is in the way, if it cannot be done."""
        try:
            _check_kind(self.folder, folder=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            _check_kind(self.store.folder, folder=True)
            for name in ("lock", "records.jsonl", "records.jsonl.damaged"):
                _check_kind(self.folder / name, folder=False)
            if self._lock.acquire():
                return None
        except RunError as error:
            return error
        except (OSError, ValueError, NotImplementedError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or error
            where = getattr(error, "filename", None) or self.folder
            return RunError(
                f"the run cannot begin in {self.folder}: {where}: {reason}. "
                "Give a folder that exists or can be made, with the right to write into it, on a disk that has room"
            )
        return RunError(
            f"another run is at work in {self.folder}. Two would overwrite each other's checkpoints: "
            "wait until it ends, stop it, or give this one a folder of its own"
        )

    def _resume(self) -> None:
        self.store.prune(sys.maxsize)  # nothing but what a run that was killed while it saved has left
        found = latest(self.store)
        if found is None:
            return
        if found.settings != self.settings:
            names = sorted(found.settings.keys() | self.settings.keys())
            differ = [
                f"{name}: {found.settings.get(name)!r} there, {self.settings.get(name)!r} here"
                for name in names
                if found.settings.get(name) != self.settings.get(name)
            ]
            raise RunError(
                f"the run in {self.folder} has other settings ({'; '.join(differ)}). "
                "Go on with its own, or give this run another folder"
            )
        self.step = found.restore(self.model, self.optimizer, self.generators, scheduled=self.scheduled)
        self.saved = found.path
        for newer in self.store.finished():
            if newer.name > found.path.name:
                self.store.set_aside(newer)

    def _cut_records(self) -> None:
        """Drop the records of steps that will be taken again, and set lines aside that are none."""
        cut_records(self.records, self.step)

    def _post_mortem(self, error: NotFinite) -> str:
        process = f".{self.store.rank}" * (self.store.rank > 0)  # each has a part of the batch
        report = self.folder / f"not-finite-{name_of(self.step)}{process}.json"
        ids = [{"inputs": [x.tolist() for x in part.inputs], "targets": part.targets.tolist()} for part in error.batch]
        where = f"the batch's ids are in {report}"
        try:
            write_whole(report, json.dumps({"step": self.step, "error": str(error), "batch": ids}))
        except NotWritten as failure:
            where = f"the batch's ids could not be written to {report} ({failure.reason})"
        good = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return f"This was step {self.step}; {where}; {good}."

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:  # asked twice: at once then
            raise KeyboardInterrupt
        self._stop = signal.Signals(number)


def _check_kind(path: Path, *, folder: bool) -> None:
    """Raise a RunError if something else is where a file or a folder of a run belongs."""
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to nothing ({path.readlink()}): remove it, or bring back what it points to")
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        kind = "a folder" if path.is_dir() else "no folder" if folder else "no plain file"
        raise RunError(
            f"{path} is {kind}, and the run needs a {'folder' if folder else 'file'} of that name: "
            "move it away, or give the run another folder"
        )
