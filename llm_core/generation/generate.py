"""Generation: run the model, choose a token, append it, and again.

    prompt (B, T) -> model -> logits (B, V) after the last token -> adjust -> choose -> ids (B,), the next prompt

`stream` yields the tokens one by one; `generate` collects them. The prompt is read in one pass (prefill) and fills
the cache; from then on each pass reads one token (decode). Prompts of unequal length are padded on the left, so that
all end, and go on, at the same place; the cache knows what is padding and nothing attends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.generation.sampling import Adjust, greedy

Choose = Callable[[Tensor, torch.Generator | None], Tensor]


@runtime_checkable
class LanguageModel(Protocol):
    """What generation asks of a model."""

    @property
    def context(self) -> int:
        """The longest text, in tokens."""

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows: ids run from 0 to vocab_size - 1."""

    def __call__(self, ids: Tensor, cache: Any = None) -> Tensor:
        """Ids (B, T) -> logits (B, T, V); with a cache, the ids continue what it holds."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for `batch` texts of up to `capacity` tokens; with `pad_left` if it can hold unequal ones."""


@runtime_checkable
class HasHead(Protocol):
    """A model whose last layer can be asked for single positions."""

    def hidden(self, ids: Tensor, cache: Any = None) -> Tensor:
        """Ids (B, T) -> hidden states (B, T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, D) -> logits (B, T, V)."""


def stream(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Int[Tensor, " B"]]:
    """The tokens that continue the prompts, one for each row at a time.

    A row gets the greedy tokens it would get alone, up to rounding; drawn ones depend on the whole batch, which
    shares one generator.

    Args:
        model: put it in eval mode first if it has dropout.
        prompt: ids, at least one for each row: a tensor, or one list for each row, which may differ in length.
        max_new_tokens: how many tokens at most.
        choose: (logits (B, V), generator) -> ids (B,): `greedy`, or a `Sampler`.
        adjust: (logits, text so far (B, T), padding (B,) or None) -> logits, before `choose`: a `RepetitionPenalty`,
            or several with `in_turn`.
        stop_id: the token, or tokens, that end a row: it repeats that token from then on; when every row has got one,
            the stream ends.
        generator: for a `choose` that draws.
        use_cache: without it every step reads the whole text anew. Same tokens, more work.

    Raises:
        ValueError: there is no prompt or an empty one, or an id is no token of the model; prompt and new tokens
            together are longer than the context; or the prompts are unequal and the model's cache cannot pad. Raised
            by the call itself, before any work is done.
    """
    ids, padding = batch_prompts(model, prompt, max_new_tokens)
    stops = stop_ids(model, stop_id)
    cache = None
    if use_cache or padding is not None:
        cache = padded_cache(model, ids.shape[0], ids.shape[1] + max_new_tokens - 1, padding)
    return _stream(model, ids, padding, cache if use_cache else None, max_new_tokens, choose, adjust, stops, generator)


def _stream(
    model: LanguageModel,
    text: Tensor,
    padding: Tensor | None,
    cache: Any,
    max_new_tokens: int,
    choose: Choose,
    adjust: Adjust | None,
    stops: tuple[int, ...],
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    unread, ids, stopped = text, text[:, -1], None
    for _ in range(max_new_tokens):
        # Not around the whole loop: a generator would leave gradients off for its caller between two tokens. And not
        # inference mode, which saves a little more: its tensors cannot be used in training, where generated ids often
        # go, and whatever table the model builds on the way. A caller who knows better can wrap the call in it.
        with torch.no_grad():
            logits = _read_anew(model, text, padding) if cache is None else last_logits(model, unread, cache)
            if adjust is not None:
                logits = adjust(logits, text, padding)
            new = choose(logits, generator)
        ids = new if stopped is None else ids.where(stopped, new)  # a row that has stopped repeats its stop token
        yield ids
        if stops:
            ended = [token in stops for token in ids.tolist()]
            if all(ended):
                return
            stopped = torch.tensor(ended, device=ids.device) if any(ended) else None
        unread = ids[:, None]
        if cache is None or adjust is not None:
            text = torch.cat([text, unread], dim=1)


def generate(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
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
            adjust=adjust,
            stop_id=stop_id,
            generator=generator,
            use_cache=use_cache,
        )
    )
    return torch.stack(tokens, dim=1)


def batch_prompts(
    model: LanguageModel, prompt: Tensor | Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"] | None]:
    """The prompts as one tensor, padded on the left, and how much of each row is padding (None: nothing is).

    Raises:
        ValueError: the prompts, with so many new tokens, are not for this model. See `stream`.
    """
    ids, padding = _left_padded(prompt, _device(model))
    if max_new_tokens < 1:
        raise ValueError(f"there must be at least one new token to choose: got max_new_tokens={max_new_tokens}")
    check_room("the context", model.context, ids.shape[1], max_new_tokens)
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= model.vocab_size:
        raise ValueError(
            f"the model knows {model.vocab_size} tokens, 0 ... {model.vocab_size - 1}: got a prompt with ids from "
            f"{lowest} to {highest}. Was it made with another tokenizer?"
        )
    return ids, padding


def check_room(what: str, context: int, T: int, max_new_tokens: int) -> None:
    """Raise a ValueError if T prompt tokens and the new ones are more than a model can read."""
    # The last token is chosen, never read, so it needs no room.
    if T + max_new_tokens - 1 > context:
        raise ValueError(
            f"{T} prompt tokens and {max_new_tokens} new ones do not fit {what} of {context}: "
            f"at most {max(0, context - T + 1)} new tokens do"
        )


def padded_cache(model: LanguageModel, batch: int, capacity: int, padding: Int[Tensor, " B"] | None) -> Any:
    """A new cache of the model that knows the padding.

    Raises:
        ValueError: there is padding, and this model's cache cannot leave it out.
    """
    cache = model.new_cache(batch, capacity)
    if padding is not None:
        if not hasattr(cache, "pad_left"):
            raise ValueError(
                f"the prompts differ in length, by up to {int(padding.max())} tokens, and the cache of this model, "
                f"a {type(cache).__name__}, cannot pad: give prompts of equal length, or one at a time"
            )
        cache.pad_left(padding)
    return cache


def last_logits(model: LanguageModel, ids: Int[Tensor, "B T"], cache: Any = None) -> Float[Tensor, "B V"]:
    """The logits after the last of the ids.

    Of a prompt nobody asks for the others. Where a model says how it gets from hidden states to logits, they are not
    computed: for GPT-2 they are a third of the work, and 200 kB for each token of the prompt.
    """
    if ids.shape[1] > 1 and isinstance(model, HasHead):
        return model.logits(model.hidden(ids, cache)[:, -1:])[:, -1]
    return model(ids, cache)[:, -1]


def _read_anew(model: LanguageModel, text: Tensor, padding: Tensor | None) -> Tensor:
    """Logits after the whole text, with nothing kept."""
    if padding is None:
        return last_logits(model, text)
    cache = padded_cache(model, text.shape[0], text.shape[1], padding)  # a cache alone knows of padding
    return last_logits(model, text, cache)


def _left_padded(prompt: Tensor | Sequence[Sequence[int]], device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(prompt, Tensor):
        if prompt.ndim != 2:
            raise ValueError(f"prompts are a tensor (B, T), one row for each: got shape {tuple(prompt.shape)}")
        lengths = [prompt.shape[1]] * prompt.shape[0]
    else:
        lengths = [len(row) for row in prompt]
    if not lengths:
        raise ValueError("there is no prompt: give at least one row")
    if min(lengths) < 1:
        row = lengths.index(min(lengths))
        raise ValueError(f"the prompt is empty (row {row}): give at least one token, a start token for one")
    if isinstance(prompt, Tensor):
        return prompt, None
    T = max(lengths)
    # Any token will do: nothing reads it.
    ids = torch.tensor([[0] * (T - len(row)) + list(row) for row in prompt], device=device)
    if min(lengths) == T:
        return ids, None
    return ids, torch.tensor([T - length for length in lengths], device=device)


def stop_ids(model: LanguageModel, stop_id: int | Collection[int] | None) -> tuple[int, ...]:
    """The stop tokens, in order; none for None.

    Raises:
        ValueError: one is no token of the model.
    """
    stops = tuple(sorted({stop_id} if isinstance(stop_id, int) else set(stop_id or ())))
    if stops and (stops[0] < 0 or stops[-1] >= model.vocab_size):
        raise ValueError(
            f"a stop token must be one of the model's {model.vocab_size}, 0 ... {model.vocab_size - 1}: got {stops}"
        )
    return stops


def _device(model: LanguageModel) -> torch.device | None:
    """Where ids that come as lists belong: beside the weights. None: torch's default device."""
    if isinstance(model, nn.Module):
        return next((parameter.device for parameter in model.parameters()), None)
    return getattr(model, "device", None)
