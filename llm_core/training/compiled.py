"""torch.compile around forward pass and loss: one graph, so that the work between matrix products is fused.

The compiler writes a program of its own for the model, the loss and their gradients. That takes from half a minute to
minutes, once for each shape of a batch, and pays where steps are many. With the loss inside the graph, logits and
softmax need not be written out in between. On a CPU it pays together with bf16 most of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.training.batches import Batch
from llm_core.training.losses import Loss


@dataclass(frozen=True)
class Compiled:
    """A loss whose forward and backward pass are compiled at its first use, and again for batches of another shape.

    Args:
        loss: what is compiled, the model's forward pass with it.
        options: handed to `torch.compile`: `{"mode": "max-autotune"}`, for one.
    """

    loss: Loss
    options: dict[str, Any] = field(default_factory=dict)
    _total: Callable[[nn.Module, Batch], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_total", torch.compile(self.loss.total, **self.options))

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """What the loss would give."""
        return self._total(model, batch)

    def count(self, batch: Batch) -> int | float:
        """What the loss counts."""
        return self.loss.count(batch)
