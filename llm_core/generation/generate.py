"""Generation: run the model, choose a token, append it, and again.

    prompt (B, T) -> model -> logits (B, V) after the last token -> adjust -> choose -> ids (B,), the next prompt

`stream` yields the tokens one by one; `generate` collects them. The prompt is read in one pass (prefill) and fills
the cache; from then on each pass reads one token (decode). Prompts of unequal length are padded on the left, so that
all end, and go on, at the same place; the cache knows what is padding and nothing attends to it.

A step looks at the numbers once, for what ends a row and for logits from which nothing can be chosen: on a GPU each
look waits until all that was asked for is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.checks import check_whole
from llm_core.generation.adjust import Adjust, ids_on, whole_ids
from llm_core.generation.sampling import ImpossibleLogits, check_logits, greedy, impossible_rows

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
        adjust: (logits, text so far (B, T), padding (B,) or None, n_prompt) -> logits, before `choose`: see
            `llm_core.generation.adjust`. Several become one with `in_turn`.
        stop_id: the token, or tokens, that end a row: it repeats that token from then on; when every row has got one,
            the stream ends.
        generator: for a `choose` that draws.
        use_cache: without it every step reads the whole text anew. Same tokens, more work.

    Raises:
        ValueError: there is no prompt or an empty one, or an id is no token of the model; prompt and new tokens
            together are longer than the context; the prompts are unequal and the model's cache cannot pad; or prompt,
            model and generator are not on one device. Raised by the call itself, before any work is done. While it
            runs: there are logits from which no token can be chosen, NaN for one; it names the step and the row.
    """
    steps_ = steps(
        model,
        prompt,
        max_new_tokens,
        choose=choose,
        adjust=adjust,
        stop_id=stop_id,
        generator=generator,
        use_cache=use_cache,
    )
    return (step.ids for step in steps_)


@dataclass(frozen=True)
class Step:
    """One more token for each row.

    Args:
        ids: the tokens.
        numbers: the same, as Python's numbers: the step has looked at them.
        logits: what they were chosen from.
        ended: the rows that had ended before, and only repeat their stop token (None: none had).
    """

    ids: Int[Tensor, " B"]
    numbers: list[int]
    logits: Float[Tensor, "B V"]
    ended: Bool[Tensor, " B"] | None


def steps(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    n_samples: int = 1,
) -> Iterator[Step]:
    """What `stream` yields, with all that a step knows; `n_samples` rows for each prompt, side by side."""
    ids, padding = batch_prompts(model, prompt, max_new_tokens)
    stops = stop_ids(model, stop_id)
    check_generator(generator, ids.device)
    cache = None
    if use_cache or padding is not None:
        cache = padded_cache(model, ids.shape[0], ids.shape[1] + max_new_tokens - 1, padding)
    if n_samples > 1 and not hasattr(cache, "reorder"):
        raise ValueError(
            f"the cache of this model, a {type(cache).__name__}, cannot reorder its rows, so it can hold one text for "
            f"each prompt: got n={n_samples}"
        )
    return _steps(
        model, ids, padding, cache if use_cache else None, max_new_tokens, choose, adjust, stops, generator, n_samples
    )


def _steps(
    model: LanguageModel,
    text: Tensor,
    padding: Tensor | None,
    cache: Any,
    max_new_tokens: int,
    choose: Choose,
    adjust: Adjust | None,
    stops: tuple[int, ...],
    generator: torch.Generator | None,
    n_samples: int,
) -> Iterator[Step]:
    unread, ids, ended, n_prompt = text, text[:, -1], None, text.shape[1]
    for step in range(max_new_tokens):
        # Not around the whole loop: a generator would leave gradients off for its caller between two tokens. And not
        # inference mode, which saves a little more: its tensors cannot be used in training, where generated ids often
        # go, and whatever table the model builds on the way. A caller who knows better can wrap the call in it.
        with torch.no_grad():
            logits = _read_anew(model, text, padding) if cache is None else last_logits(model, unread, cache)
            if step == 0 and n_samples > 1:  # the prompt was read once; from here on each has its own row
                rows = torch.arange(len(text), device=text.device).repeat_interleave(n_samples)
                cache.reorder(rows)
                text, ids, logits = text[rows], ids[rows], logits[rows]
                padding = None if padding is None else padding[rows]
            if adjust is not None:
                logits = adjust(logits, text, padding, n_prompt)
            try:
                new = choose(logits, generator)
                ids = new if ended is None else ids.where(ended, new)  # a row that has ended repeats its stop token
                now_ended = torch.isin(ids, ids_on(stops, ids.device)) if stops else torch.zeros_like(ids).bool()
                # The look of this step: all that is asked for, at once.
                numbers, impossible, ends = torch.stack([ids, impossible_rows(logits), now_ended]).tolist()
                check_logits(logits, impossible)
            except ImpossibleLogits as error:
                raise ImpossibleLogits(f"after {step} new tokens, {error}") from None
        yield Step(ids, numbers, logits, ended)
        if all(ends):
            return
        ended = now_ended if any(ends) else None
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


@dataclass(frozen=True)
class Scored:
    """Texts with the probabilities of their tokens: n for each of B prompts, up to T tokens long.

    Args:
        ids: the new tokens, without the prompt. A text that has ended repeats its stop token.
        log_probabilities: of each token, by the distribution that it was drawn from (that of the adjusted logits, if
            it was not drawn by a `Sampler`); 0 after the stop token.
        lengths: how many tokens each text has, its stop token counted.
    """

    ids: Int[Tensor, "B n T"]
    log_probabilities: Float[Tensor, "B n T"]
    lengths: Int[Tensor, "B n"]

    @property
    def log_probability(self) -> Float[Tensor, "B n"]:
        """Of each text as a whole: the sum over its tokens."""
        return self.log_probabilities.sum(dim=-1)


def generate_scored(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    n: int = 1,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
) -> Scored:
    """Several texts that continue each prompt, and how probable their tokens were. The prompts are read once.

    Args:
        n: how many texts for each prompt. The model's cache must be able to `reorder` its rows if it is more than one.
        model, prompt, max_new_tokens, choose, adjust, stop_id, generator: as in `stream`.

    Raises:
        ValueError: n is below 1, or more than 1 with `greedy`, which would give the same text n times (`beam_search`
            gives the n likeliest that it finds); or see `stream`.
    """
    check_whole("n", n, at_least=1)
    if n > 1 and choose is greedy:
        raise ValueError(f"greedy gives one text for each prompt: got n={n}. Draw with a Sampler, or use beam_search")
    tokens, chances, running = [], [], []
    for step in steps(
        model,
        prompt,
        max_new_tokens,
        choose=choose,
        adjust=adjust,
        stop_id=stop_id,
        generator=generator,
        n_samples=n,
    ):
        chance = _log_probabilities(choose, step.logits).gather(-1, step.ids[:, None].long()).squeeze(-1)
        runs = torch.ones_like(step.ids).bool() if step.ended is None else ~step.ended
        tokens.append(step.ids)
        chances.append(chance.masked_fill(~runs, 0.0))
        running.append(runs)
    shape = (-1, n, len(tokens))
    return Scored(
        torch.stack(tokens, dim=1).view(shape),
        torch.stack(chances, dim=1).view(shape),
        torch.stack(running, dim=1).sum(dim=1).view(-1, n),
    )


def _log_probabilities(choose: Choose, logits: Tensor) -> Tensor:
    """Of the distribution that `choose` draws from; that of the logits themselves, if it does not say."""
    if hasattr(choose, "probabilities"):
        return choose.probabilities(logits).log()
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def batch_prompts(
    model: LanguageModel, prompt: Tensor | Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"] | None]:
    """The prompts as one tensor, padded on the left, and how much of each row is padding (None: nothing is).

    Raises:
        ValueError: the prompts, with so many new tokens, are not for this model. See `stream`.
    """
    check_whole("max_new_tokens", max_new_tokens, at_least=1)
    ids, padding = _left_padded(prompt, _device(model))
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


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Raise a ValueError if a generator draws on another device than that of the ids."""
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"the generator draws on {generator.device.type}, the model runs on {device.type}: "
            f'make it with torch.Generator("{device.type}")'
        )


def _left_padded(prompt: Tensor | Sequence[Sequence[int]], device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(prompt, Tensor):
        return _checked_tensor(prompt, device), None
    rows = _rows(prompt)
    if not rows:
        raise ValueError("there is no prompt: give at least one row")
    lengths = [len(row) for row in rows]
    T = max(lengths)
    # Any token will do: nothing reads it.
    ids = torch.tensor([[0] * (T - len(row)) + row for row in rows], device=device)
    if min(lengths) == T:
        return ids, None
    return ids, torch.tensor([T - length for length in lengths], device=device)


def _checked_tensor(prompt: Tensor, device: torch.device | None) -> Tensor:
    if prompt.ndim != 2:
        raise ValueError(
            f"prompts are a tensor (B, T), one row for each: got shape {tuple(prompt.shape)}"
            + (". Write prompt[None] for a single one" if prompt.ndim == 1 else "")
        )
    if prompt.dtype == torch.bool or prompt.is_floating_point() or prompt.is_complex():
        raise ValueError(f"ids are whole numbers: got a prompt of {prompt.dtype}")
    if device is not None and prompt.device.type != device.type:
        raise ValueError(
            f"the prompt lies on {prompt.device.type}, the model on {device.type}: move it with prompt.to(...)"
        )
    if not len(prompt):
        raise ValueError("there is no prompt: give at least one row")
    if not prompt.shape[1]:
        raise ValueError("the prompt is empty (row 0): give at least one token, a start token for one")
    return prompt


def _rows(prompt: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows of a prompt that comes as lists, or anything like it, with ids that are ints."""
    if isinstance(prompt, (str, bytes)):
        raise ValueError(f"a prompt is ids, not text: got {prompt[:20]!r}. generate_text takes text, and a tokenizer")
    rows = []
    for i, row in enumerate(prompt):
        if isinstance(row, (str, bytes)):
            raise ValueError(f"a prompt is ids, not text: got {row[:20]!r} in row {i}. Encode it with a tokenizer")
        if not hasattr(row, "__len__") or getattr(row, "ndim", 1) != 1:
            raise ValueError(
                f"a prompt is a list of rows, [[3, 4, 5]] if there is one: got {row!r} where row {i} should be"
            )
        if not len(row):
            raise ValueError(f"the prompt is empty (row {i}): give at least one token, a start token for one")
        rows.append([_id(id_, i) for id_ in row])
    return rows


def _id(id_: object, row: int) -> int:
    try:
        whole = check_whole("an id", id_, at_least=-sys.maxsize)  # which of them are tokens the model says
    except ValueError:
        raise ValueError(f"ids are whole numbers: got {id_!r} in row {row} of the prompt") from None
    if whole > sys.maxsize:
        raise ValueError(f"no token of a model is as large: got {whole} in row {row} of the prompt")
    return whole


def stop_ids(model: LanguageModel, stop_id: int | Collection[int] | None) -> tuple[int, ...]:
    """The stop tokens, in order; none for None.

    Raises:
        ValueError: one is no whole number, or no token of the model.
    """
    stops = whole_ids("a stop token", stop_id)
    if stops and stops[-1] >= model.vocab_size:
        raise ValueError(
            f"a stop token must be one of the model's {model.vocab_size}, 0 ... {model.vocab_size - 1}: got {stops}"
        )
    return stops


def _device(model: LanguageModel) -> torch.device | None:
    """Where ids that come as lists belong: beside the weights. None: torch's default device."""
    if isinstance(model, nn.Module):
        return next((parameter.device for parameter in model.parameters()), None)
    return getattr(model, "device", None)
