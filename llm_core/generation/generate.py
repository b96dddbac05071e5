"""Generation: run the model, choose a token, append it, and again.

`stream` yields the tokens one by one; `generate` collects them. The prompt is read in one pass (prefill) and fills
the cache; from then on each pass reads one token (decode).

Used in chapters/03_algorithms/06_three_sentences; taught, once it is written, in 03_algorithms/05_inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from llm_core.generation.sampling import greedy


@runtime_checkable
class LanguageModel(Protocol):
    """What generation asks of a model."""

    @property
    def context(self) -> int:
        """The longest text, in tokens."""

    def __call__(self, ids: Tensor, cache: Any = None) -> Tensor:
        """Ids (B, T) -> logits (B, T, V); with a cache, the ids continue what it holds."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for `batch` texts of up to `capacity` tokens."""


def stream(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"],
    max_new_tokens: int,
    *,
    choose: Callable[[Tensor, torch.Generator | None], Tensor] = greedy,
    stop_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Int[Tensor, "B"]]:
    """The tokens that continue the prompts, one for each row at a time.

    Args:
        model: put it in eval mode first if it has dropout.
        prompt: prompts of equal length, at least one token.
        max_new_tokens: how many tokens at most.
        choose: (logits (B, V), generator) -> ids (B,): `greedy`, or a `Sampler`.
        stop_id: a row that has got this token gets nothing else from then on; when every row has, it ends.
        generator: for a `choose` that draws.
        use_cache: without it every step reads the whole text anew. Same tokens, more work.

    Raises:
        ValueError: the prompt is empty, or prompt and new tokens together are longer than the context. Raised by
            the call itself, before any work is done.
    """
    T = prompt.shape[1]
    if T < 1:
        raise ValueError("the prompt is empty: give at least one token, a start token for one")
    if max_new_tokens < 1:
        raise ValueError(f"there must be at least one new token to choose: got max_new_tokens={max_new_tokens}")
    # The last token is chosen, never read, so it needs no room.
    if T + max_new_tokens - 1 > model.context:
        raise ValueError(
            f"{T} prompt tokens and {max_new_tokens} new ones do not fit the context of {model.context}: "
            f"at most {max(0, model.context - T + 1)} new tokens do"
        )
    return _stream(model, prompt, max_new_tokens, choose, stop_id, generator, use_cache)


def _stream(
    model: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    choose: Callable[[Tensor, torch.Generator | None], Tensor],
    stop_id: int | None,
    generator: torch.Generator | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    batch, T = prompt.shape
    cache = model.new_cache(batch, T + max_new_tokens - 1) if use_cache else None
    text = unread = prompt
    stopped = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    for _ in range(max_new_tokens):
        # Not around the whole loop: a generator would leave gradients off for its caller between two tokens.
        with torch.no_grad():
            logits = model(unread, cache)[:, -1] if use_cache else model(text)[:, -1]
            ids = choose(logits, generator)
        if stop_id is not None:
            ids = ids.masked_fill(stopped, stop_id)
            stopped = stopped | (ids == stop_id)
        yield ids
        if stop_id is not None and stopped.all():
            return
        unread = ids[:, None]
        if not use_cache:
            text = torch.cat([text, unread], dim=1)


def generate(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"],
    max_new_tokens: int,
    *,
    choose: Callable[[Tensor, torch.Generator | None], Tensor] = greedy,
    stop_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "B new"]:
    """The tokens that continue the prompts, without the prompts. Arguments and errors are those of `stream`."""
    tokens = list(
        stream(
            model,
            prompt,
            max_new_tokens,
            choose=choose,
            stop_id=stop_id,
            generator=generator,
            use_cache=use_cache,
        )
    )
    return torch.stack(tokens, dim=1)
