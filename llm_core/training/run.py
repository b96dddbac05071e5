"""A training run and its folder: what must outlive a crash, a full disk, an interrupt and a kill.

    runs/mine/
        checkpoints/step-00000200.safetensors    everything that the next step depends on; the last few are kept
        records.jsonl                            one line a step: loss, gradient norm, learning rate
        lock                                     held while a run is in the folder; freed by the system, in any case

The loop stays where a reader sees it:

    with Run("runs/mine", model=model, optimizer=optimizer, generators={"batches": draws}) as run:
        for step in run.steps(total=2000, save_every=200, bar=tqdm):
            batch = random_crops(ids, 16, 128, generator=draws)
            run.log(train_step(model, batch, optimizer, lr=schedule(step)))

The same program, started again, goes on where the last whole checkpoint was, and ends with the same bits as a run that
was never stopped. What a step draws at random must come from a generator that the run was given, or from torch's own.

Taught in chapters/03_algorithms/09_save_kill_resume and, once it is written, in 05_project/04_train.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from llm_core.files import NotWritten, write_whole
from llm_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llm_core.training.step import NotFinite

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

    Raises:
        RunError: on entering, when another run is in the folder, or the folder's run had other settings.
        CheckpointError: on entering, when no checkpoint fits the model, or all of them are damaged.
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
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept: got keep={keep}")
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.records = self.folder / "records.jsonl"
        self.model, self.optimizer, self.generators = model, optimizer, dict(generators or {})
        self.settings = json.loads(json.dumps(dict(settings or {})))  # as it will be read again: tuples are lists
        self.keep = keep
        self.step = 0  # steps taken
        self.saved: Path | None = None  # the newest checkpoint that is known to be good
        self._lock = FileLock(self.folder / "lock", timeout=0)
        self._stop: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._bar: Any = None

    def __enter__(self) -> Run:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"another run is at work in {self.folder}. Two would overwrite each other's checkpoints: "
                "wait until it ends, stop it, or give this one a folder of its own"
            ) from None
        try:
            self._resume()
            self._cut_records()
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
            if self._stop is not None and not last:
                self.save()
                raise Stopped(
                    f"stopped by {self._stop.name} after step {self.step} of {total}; all is saved in {self.saved}. "
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

        A line that cannot be written (a full disk) is a warning: training goes on.
        """
        fields = asdict(record) if is_dataclass(record) and not isinstance(record, type) else dict(record)
        line = {"step": self.step, "time": round(time.time(), 3), **fields, **more}
        try:
            with self.records.open("a", encoding="utf-8") as file:  # opened anew: nothing is left in a buffer
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            warnings.warn(f"step {self.step} was not recorded in {self.records}: {error.strerror}", stacklevel=2)
        if self._bar is not None and "loss" in line:
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)

    def save(self) -> Path:
        """Write a checkpoint of the steps taken so far, and drop the oldest that are not to be kept.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are still there.
        """
        self.saved = save_checkpoint(
            self.checkpoints / f"step-{self.step:08d}.safetensors",
            step=self.step,
            model=self.model,
            optimizer=self.optimizer,
            generators=self.generators,
            settings=self.settings,
        )
        for old in self._found()[self.keep :]:
            old.unlink()
        return self.saved

    def history(self) -> list[dict[str, Any]]:
        """The records so far, oldest first."""
        return _whole_lines(self.records)

    def _found(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def _resume(self) -> None:
        for leftover in self.checkpoints.glob("*.part"):  # of a run that was killed while it saved
            leftover.unlink()
        damaged = []
        for path in self._found():
            try:
                checkpoint = load_checkpoint(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if checkpoint.settings != self.settings:
                names = sorted(checkpoint.settings.keys() | self.settings.keys())
                differ = [
                    f"{name}: {checkpoint.settings.get(name)!r} there, {self.settings.get(name)!r} here"
                    for name in names
                    if checkpoint.settings.get(name) != self.settings.get(name)
                ]
                raise RunError(
                    f"the run in {self.folder} has other settings ({'; '.join(differ)}). "
                    "Go on with its own, or give this run another folder"
                )
            self.step = checkpoint.restore(self.model, self.optimizer, self.generators)
            self.saved = path
            if damaged:
                warnings.warn(
                    f"going on from {path}, step {self.step}, since what is newer cannot be used: {'; '.join(damaged)}",
                    stacklevel=3,
                )
                for newer in self._found():
                    if newer > path:
                        newer.rename(newer.with_suffix(".damaged"))  # it would count as one of those to keep
            return
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} can be used: {'; '.join(damaged)}. "
                "Move them away to begin at step 0"
            )

    def _cut_records(self) -> None:
        """Drop the records of steps that will be taken again, and a line that was cut off."""
        if not self.records.exists():
            return
        kept = [line for line in _whole_lines(self.records) if line["step"] < self.step]
        write_whole(self.records, "".join(json.dumps(line) + "\n" for line in kept))

    def _post_mortem(self, error: NotFinite) -> str:
        report = self.folder / f"not-finite-step-{self.step:08d}.json"
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


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # cut off by a kill or a full disk
                lines.append(json.loads(line))
    return lines
