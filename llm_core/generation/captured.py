"""Decoding with a recorded step: on a GPU, a small model spends its time on starting kernels, not on their work.

A decode step reads one token for each row. With a `StaticCache` every step is the same list of kernels with the same
shapes and addresses, and what changes, the position and the ids, lies in tensors. So the list is recorded once, as a
CUDA graph, and each token replays it with a single call.

    generate(Captured(model), prompt, 100)      the tokens of generate(model, prompt, 100)

The prompt is read as always. What records is handed in: `cuda_graph`, or anything of the shape of `Capture`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.generation.generate import HasHead, LanguageModel
from llm_core.layers.cache import StaticCache

Run = Callable[[Tensor], Tensor]  # ids (B, 1) -> logits (B, 1, V)
# (a step, ids to record it with, what brings its state back) -> what replays it; it may hand out one tensor each time
Capture = Callable[[Run, Tensor, Callable[[], None]], Run]


def cuda_graph(step: Run, ids: Int[Tensor, "B 1"], reset: Callable[[], None]) -> Run:
    """Record a step as a CUDA graph.

    Raises:
        ValueError: the ids are not on a GPU.
    """
    if not ids.is_cuda:
        raise ValueError(f"a CUDA graph is recorded on a GPU: these ids are on {ids.device}")
    read = ids.clone()  # where every replay finds its ids
    beside = torch.cuda.Stream(ids.device)
    beside.wait_stream(torch.cuda.current_stream(ids.device))
    with torch.cuda.stream(beside):  # libraries take their memory at the first calls, which a graph must not
        for _ in range(3):
            step(read)
            reset()
    torch.cuda.current_stream(ids.device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step(read)

    def run(ids: Tensor) -> Tensor:
        read.copy_(ids)
        graph.replay()
        return logits

    return run


class Captured:
    """A model whose decode step is recorded when a cache is made; a `LanguageModel` for `generate`.

    Args:
        model: a decoder whose `new_cache` gives a `Cache`, and that reads a `StaticCache`: `GPT`, `Llama`. A mixture of
            experts cannot be recorded: how many tokens an expert gets is looked at.
        capture: what records.

    The logits of a step are overwritten by the next one. One cache is in use at a time: the last that was made.
    """

    def __init__(self, model: LanguageModel, capture: Capture = cuda_graph) -> None:
        self.model, self.capture = model, capture
        self._cache: StaticCache | None = None
        self._run: Run | None = None

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.model.context

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows."""
        return self.model.vocab_size

    def new_cache(self, batch: int, capacity: int) -> StaticCache:
        """An empty static cache, and a step that was recorded with it.

        Raises:
            ValueError: the model's cache is no `Cache`.
        """
        cache = StaticCache(self.model.new_cache(batch, capacity))
        with torch.no_grad():
            ids = torch.zeros(batch, 1, dtype=torch.long, device=cache.length.device)
            self._run = self.capture(lambda ids: self.model(ids, cache), ids, lambda: cache.rewind(0))
        cache.rewind(0)
        self._cache = cache
        return cache

    def __call__(self, ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T V"]:
        """Logits after each position; of one token with the last cache, by the recorded step."""
        if self._run is not None and cache is self._cache and ids.shape[1] == 1:
            return self._run(ids)
        return self.model(ids, cache)

    def hidden(self, ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B T D"]:
        """Hidden states: those of the model."""
        assert isinstance(self.model, HasHead)
        return self.model.hidden(ids, cache)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Logits of hidden states: those of the model."""
        assert isinstance(self.model, HasHead)
        return self.model.logits(hidden)
