"""The numbers of a run for TensorBoard, besides its own records.jsonl: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = {"loss": "loss/training", "held_out": "loss/held out", "grad_norm": "step/gradient norm", "lr": "step/rate"}


class TensorBoard:
    """Writes event files into a folder.

    Args:
        folder: made if it is missing.
        begin: the step at which the run goes on. What TensorBoard was told of this step and later is taken back: a run
            that was killed takes them again.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path, begin: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=begin)

    def __call__(self, step: int, record: Mapping[str, float]) -> None:
        """The numbers of a step."""
        for name, value in record.items():
            self._writer.add_scalar(NAMES.get(name, name), value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
