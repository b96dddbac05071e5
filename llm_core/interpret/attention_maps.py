"""Attention maps: the weights with which each head of each layer read, written down while a model runs.

The fused kernel that models use never forms these weights; while recording, every attention module uses the readable
one instead, which gives the same output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.layers.attention import MultiHeadAttention, attention_weights


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record the attention weights of every forward pass inside the `with` block.

    Yields:
        For each `MultiHeadAttention` by its name in the model, one tensor (B, H, T, S) a forward pass, detached.

    Raises:
        ValueError: there is no attention module in the model.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, MultiHeadAttention)}
    if not modules:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}: nothing could be recorded")
    maps: dict[str, list[Tensor]] = {name: [] for name in modules}
    before = {name: module.attend for name, module in modules.items()}

    def recorder(name: str) -> Any:
        def attend(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, bias: Tensor | None, dropout: float
        ) -> Tensor:
            weights = attention_weights(query, key, mask, bias=bias)
            maps[name].append(weights.detach())
            return F.dropout(weights, dropout, training=dropout > 0) @ value

        return attend

    try:
        for name, module in modules.items():
            module.attend = recorder(name)
        yield maps
    finally:
        for name, module in modules.items():
            module.attend = before[name]
