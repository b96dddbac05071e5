"""Adjustments: logits that take the text so far into account, before a token is chosen.

    logits (B, V), text (B, T) -> adjust -> logits (B, V)          what is ruled out is -inf

    RepetitionPenalty    what the text holds already is less likely           (Keskar et al. 2019)
    PresencePenalty      what was generated already is less likely, once      (OpenAI)
    FrequencyPenalty     and once more for each time that it was generated    (OpenAI)
    NoRepeatNgram        no sequence of n tokens comes twice                  (Paulus et al. 2018)
    Forbid               some tokens, and sequences of tokens, never come
    MinNewTokens         the text does not end before it has so many

An adjustment is a function, `Adjust`, and any function of that shape will do; `in_turn` makes one of several. They are
handed to `generate`, `beam_search` and `speculative` as `adjust`.

The text has columns that are no text where rows were padded on the left: `padding` says how many in each row, and
`n_prompt` how many columns the prompt has, its padding counted; what comes after was generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.checks import check_whole, is_number

# (logits (B, V), text (B, T), padding (B,) or None, n_prompt) -> logits (B, V)
Adjust = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Make the tokens that the text holds already less likely: hand it to `generate` as `adjust`.

    A positive logit is divided by the penalty, a negative one multiplied; once, however often the token occurred.

    Args:
        penalty: above 1 discourages repetition, below 1 encourages it.

    Raises:
        ValueError: the penalty is not positive, or not finite.

    Source: Keskar et al. 2019 (CTRL), section 4.1. The paper divides negative logits too, which would make their
    tokens likelier; that they are multiplied is transformers' rule.
    """

    penalty: float | int

    def __post_init__(self) -> None:
        if not (is_number(self.penalty) and 0 < self.penalty < math.inf):
            raise ValueError(f"a repetition penalty is positive, and 1 changes nothing: got {self.penalty}")

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits after each text, whose first `padding` tokens are none of it (None: all are)."""
        text = text.long()
        if padding is not None:
            # What is no text is replaced by the last token, which always is and counts once in any case.
            is_text = torch.arange(text.shape[1], device=text.device) >= padding[:, None]
            text = text.where(is_text, text[:, -1:])
        seen = logits.gather(-1, text)
        return logits.scatter(-1, text, torch.where(seen < 0, seen * self.penalty, seen / self.penalty))


@dataclass(frozen=True)
class PresencePenalty:
    """Take the penalty off the logits of all tokens that were generated already; the prompt does not count.

    Args:
        penalty: above 0 the text goes on to other words, below 0 it stays with those it has.

    Raises:
        ValueError: the penalty is not a finite number.

    Source: the reference of OpenAI's API, "Frequency and presence penalties": logit - penalty, if the count is not 0.
    """

    penalty: float | int

    def __post_init__(self) -> None:
        _check_finite("a presence penalty", self.penalty)

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits, less where a token stands among the new ones."""
        return torch.where(_counts(logits, text, n_prompt) > 0, logits - self.penalty, logits)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Take the penalty off a token's logit once for each time that it was generated; the prompt does not count.

    Args:
        penalty: above 0 discourages repetition, and the more, the more there was of it; below 0 encourages it.

    Raises:
        ValueError: the penalty is not a finite number.

    Source: the reference of OpenAI's API, "Frequency and presence penalties": logit - count * penalty.
    """

    penalty: float | int

    def __post_init__(self) -> None:
        _check_finite("a frequency penalty", self.penalty)

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits, less by a multiple of how often each token stands among the new ones."""
        return logits - (self.penalty * _counts(logits, text, n_prompt)).to(logits.dtype)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Rule out each token that would complete a sequence of n tokens that the text, the prompt counted, holds already.

    Raises:
        ValueError: n is no whole number, or below 1.

    Source: Paulus et al. 2018, section 2.5. As in transformers, but padding is no part of the text.
    """

    n: int

    def __post_init__(self) -> None:
        check_whole("n", self.n, at_least=1)

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits, -inf where a token would repeat n of them."""
        T, n = text.shape[1], self.n
        if n > T:
            return logits
        windows = text.long().unfold(1, n, 1)  # all n-grams of the text, (B, T - n + 1, n)
        repeated = (windows[..., :-1] == text[:, None, T - n + 1 :]).all(dim=-1)  # those that begin as the text ends
        if padding is not None:
            repeated = repeated & (torch.arange(T - n + 1, device=text.device) >= padding[:, None])
        # A token may end one n-gram that is repeated and one that is not: count.
        hits = torch.zeros_like(logits, dtype=torch.int32).scatter_add(-1, windows[..., -1], repeated.int())
        return logits.masked_fill(hits > 0, -math.inf)


@dataclass(frozen=True)
class Forbid:
    """Rule out tokens, and the last token of sequences whose others stand at the end of the text.

    What transformers calls `bad_words_ids`; but a stop token that is forbidden is forbidden here.

    Args:
        tokens: ids, and sequences of ids.

    Raises:
        ValueError: a sequence is empty, or an id is no whole number or below 0; when called, an id is no token of the
            model.

    >>> Forbid([2, [0, 1]])(torch.zeros(2, 4), torch.tensor([[3, 0], [0, 3]]))
    tensor([[0., -inf, -inf, 0.],
            [0., 0., -inf, 0.]])
    """

    tokens: Collection[int | Sequence[int]]
    alone: tuple[int, ...] = field(init=False)
    """The tokens that never come."""
    sequences: tuple[tuple[int, ...], ...] = field(init=False)
    """The sequences that never come."""

    def __post_init__(self) -> None:
        rows = [(token,) if _is_whole(token) else _sequence(token) for token in _listed(self.tokens)]
        sequences = [tuple(check_whole("a forbidden id", id_, at_least=0) for id_ in row) for row in rows]
        if () in sequences:
            raise ValueError(f"a forbidden sequence has at least one token: got {self.tokens}")
        object.__setattr__(self, "tokens", tuple(sequences))
        object.__setattr__(self, "alone", tuple(sorted({row[0] for row in sequences if len(row) == 1})))
        object.__setattr__(self, "sequences", tuple(row for row in sequences if len(row) > 1))

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits, -inf where a token is forbidden after this text."""
        V, T = logits.shape[-1], text.shape[1]
        highest = max((max(row) for row in (self.alone, *self.sequences) if row), default=0)
        if highest >= V:
            raise ValueError(f"the model knows {V} tokens, 0 ... {V - 1}: got {highest} among the forbidden ones")
        if self.alone:
            logits = logits.index_fill(-1, ids_on(self.alone, logits.device), -math.inf)
        for row in self.sequences:
            n = len(row) - 1
            if n <= T:
                begun = (text[:, T - n :] == ids_on(row[:-1], text.device)).all(dim=-1)
                if padding is not None:
                    begun = begun & (padding <= T - n)
                last = logits[:, row[-1]].masked_fill(begun, -math.inf)
                logits = logits.index_copy(-1, ids_on(row[-1:], logits.device), last[:, None])
        return logits


@dataclass(frozen=True)
class MinNewTokens:
    """Rule out the stop tokens until the text has so many new ones.

    Args:
        n: how many tokens come before the first stop token, at least.
        stop_id: the stop token, or tokens: those that `generate` is given.

    Raises:
        ValueError: n is no whole number or below 0, or there is no stop token, or one is no whole number or below 0.
    """

    n: int
    stop_id: int | Collection[int]

    def __post_init__(self) -> None:
        check_whole("n", self.n, at_least=0)
        if not whole_ids("a stop token", self.stop_id):
            raise ValueError("name the stop tokens that have to wait: got none")

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        text: Int[Tensor, "B T"],
        padding: Int[Tensor, " B"] | None = None,
        n_prompt: int = 0,
    ) -> Float[Tensor, "B V"]:
        """The logits, -inf at the stop tokens while there are fewer than n new tokens."""
        if text.shape[1] - n_prompt >= self.n:
            return logits
        return Forbid(whole_ids("a stop token", self.stop_id))(logits, text)


def in_turn(*adjustments: Adjust) -> Adjust:
    """Several adjustments as one: each gets the logits that the one before it has left."""

    def adjust(logits: Tensor, text: Tensor, padding: Tensor | None = None, n_prompt: int = 0) -> Tensor:
        for adjustment in adjustments:
            logits = adjustment(logits, text, padding, n_prompt)
        return logits

    return adjust


def whole_ids(what: str, ids: int | Iterable[int] | None) -> tuple[int, ...]:
    """One id or several as a tuple, in order, each once; none for None.

    Raises:
        ValueError: one is no whole number, or below 0.
    """
    listed = () if ids is None else (ids,) if _is_whole(ids) else _listed(ids)
    return tuple(sorted({check_whole(what, id_, at_least=0) for id_ in listed}))


@lru_cache(maxsize=256)
def ids_on(ids: tuple[int, ...], device: torch.device) -> Int[Tensor, " n"]:
    """The ids as a tensor on a device, brought there once: to bring something to a GPU is to wait for it."""
    with torch.inference_mode(False):  # or it could not be used where gradients are
        return torch.tensor(ids, dtype=torch.long, device=device)


def _counts(logits: Tensor, text: Tensor, n_prompt: int) -> Tensor:
    """How often each token stands among the new ones, (B, V)."""
    new = text[:, n_prompt:].long()
    zeros = torch.zeros_like(logits, dtype=torch.float32)
    return zeros.scatter_add(-1, new, torch.ones_like(new, dtype=torch.float32))


def _check_finite(what: str, value: float) -> None:
    if not (is_number(value) and math.isfinite(value)):
        raise ValueError(f"{what} is a number, and 0 changes nothing: got {value!r}")


def _is_whole(value: object) -> bool:
    """Whether it is one number: what a collection of ids is not."""
    return isinstance(value, (int, float)) or (hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0)


def _listed(ids: object) -> list[object]:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise ValueError(f"ids are whole numbers, one or a collection: got {ids!r}")
    return list(ids)


def _sequence(row: object) -> tuple[object, ...]:
    return tuple(_listed(row))
