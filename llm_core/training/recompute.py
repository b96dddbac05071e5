"""Activation checkpointing: forget what the blocks computed, and compute it again when its gradient is wanted.

Backpropagation needs the activations inside every block. Kept, they are most of the memory of a long text. Recomputed
block by block on the way back, only the stream between the blocks is kept, at the price of one more forward pass: a
third more work.

    kept          L x (all that a block computes)
    recomputed    L x (B T D) + (all that one block computes)

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the `with` block, each of these modules keeps its input alone and runs again in the backward pass.

    Dropout draws the same numbers again, so losses and gradients are the same bits.

    Raises:
        ValueError: there is no module to recompute.

    >>> from llm_core.models.gpt import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=5, context=4, n_layers=2, n_heads=1, d_model=4))
    >>> with recomputed(model.blocks):
    ...     pass  # train here
    """
    modules = list(blocks)
    if not modules:
        raise ValueError("there is no block to recompute: hand in the blocks, `recomputed(model.blocks)`")
    for module in modules:
        # On the object, over its class's forward: names in the state dict stay as they are.
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
