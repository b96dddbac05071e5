"""Models to generate with: ours with large random weights, transformers' in our call shape, and a table of chances."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig

V, CONTEXT = 19, 16
Model = TypeVar("Model", bound=nn.Module)


def enlarged(model: Model, std: float = 0.4, seed: int = 0) -> Model:
    """Random, with large weights, so that what comes next depends on what was read."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def gpt(vocab_size: int = V, context: int = CONTEXT, seed: int = 0, d_model: int = 32) -> GPT:
    config = GPTConfig(vocab_size=vocab_size, context=context, n_layers=2, n_heads=2, d_model=d_model)
    return enlarged(GPT(config), seed=seed)


def llama(window: int | None = None, context: int = CONTEXT, seed: int = 0) -> Llama:
    config = LlamaConfig(
        V, context, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_ff=64, qkv_bias=True, window=window
    )
    return enlarged(Llama(config), seed=seed)


def prompts(batch: int = 3, T: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(3, V, (batch, T), generator=torch.Generator().manual_seed(seed))


class TextCache:
    """The whole text so far: a cache that keeps nothing computed, for a model whose own caches are not in question."""

    def __init__(self, batch: int, source: Tensor | None = None) -> None:
        self.text = torch.zeros(batch, 0, dtype=torch.long)
        self.padding = torch.zeros(batch, dtype=torch.long)
        self.source = source

    @property
    def length(self) -> int:
        return self.text.shape[1]

    def pad_left(self, padding: Tensor) -> None:
        self.padding = padding

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.text = self.text[:, :length]

    def reorder(self, rows: Tensor) -> None:
        self.text, self.padding = self.text[rows], self.padding[rows]
        self.source = None if self.source is None else self.source[rows]


class Theirs:
    """A model of transformers in the shape that generation asks for; with a source, an encoder-decoder."""

    def __init__(self, model: Any, context: int, source: Tensor | None = None) -> None:
        self.model, self.context, self.source = model, context, source
        self.vocab_size = model.config.vocab_size

    def __call__(self, ids: Tensor, cache: TextCache | None = None) -> Tensor:
        cache = TextCache(len(ids), self.source) if cache is None else cache
        cache.text = torch.cat([cache.text, ids], dim=1)
        mask = (torch.arange(cache.length) >= cache.padding[:, None]).long()
        if cache.source is not None:
            logits = self.model(
                input_ids=cache.source, attention_mask=(cache.source != 0).long(), decoder_input_ids=cache.text
            ).logits
        else:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = self.model(cache.text, attention_mask=mask, position_ids=positions).logits
        return logits[:, -ids.shape[1] :]

    def new_cache(self, batch: int, capacity: int) -> TextCache:
        return TextCache(batch, self.source)


class Markov:
    """What follows depends on the last token alone: row i of the table holds the logits after token i."""

    def __init__(self, table: Tensor, context: int = 100) -> None:
        self.table, self.context, self.vocab_size = table, context, len(table)
        self.passes = 0

    def __call__(self, ids: Tensor, cache: TextCache | None = None) -> Tensor:
        self.passes += 1
        if cache is not None:
            cache.text = torch.cat([cache.text, ids], dim=1)
            assert cache.length <= self.context
        return self.table[ids]

    def new_cache(self, batch: int, capacity: int) -> TextCache:
        return TextCache(batch)


def markov(vocab_size: int, seed: int, spread: float = 1.5) -> Markov:
    return Markov(torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread)


class Script:
    """Writes the given ids, whatever it reads; counts how many it has been asked for."""

    context = 10_000

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        self.ids, self.vocab_size, self.asked = ids, vocab_size, 0

    def __call__(self, ids: Tensor, cache: TextCache | None = None) -> Tensor:
        logits = torch.zeros(1, ids.shape[1], self.vocab_size)
        logits[0, -1, self.ids[self.asked]] = 1.0
        self.asked += 1
        return logits

    def new_cache(self, batch: int, capacity: int) -> TextCache:
        return TextCache(batch)
