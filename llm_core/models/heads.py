"""Heads: what a trained encoder is made to say, by one small layer on its hidden states.

    SequenceClassifier   one label for a text        pool the hidden states to one vector, then (B, C)
    TokenClassifier      one label for each token    (B, T, C)
    SpanFinder           where an answer stands      where it starts (B, T) and where it ends (B, T)
    SentenceEncoder      one vector for a text       pool, bring to length 1: (B, D), no weights of its own

Pooling is handed in as a function `pool(hidden, real)`, where `real` (B, T) is True at tokens and False at padding.
BERT reads both ways, so its first token or the mean of all of them can stand for the text; in a model that reads from
left to right only the last token has read everything.

    first_token, mean_of_tokens, last_token, and `llm_core.models.bert.Pooler`

Source: Devlin et al. 2019, section 4 (the first three); Reimers and Gurevych 2019, section 3 (the fourth).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.models.bert import init_weights

Pool = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Encoder(Protocol):
    """What a head asks of a model: hidden states. `Bert`, `GPT` and every other model of this package has them."""

    def hidden(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Ids (B, T), and for BERT `segments` and `mask`, -> hidden (B, T, D)."""


def first_token(hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The vector of the first token: BERT's [CLS]."""
    return hidden[:, 0]


def mean_of_tokens(hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The mean of the tokens' vectors, padding left out; zeros for a text that is nothing but padding."""
    total = (hidden * real[..., None]).sum(dim=1)
    return total / real.sum(dim=1, keepdim=True).clamp(min=1)


def last_token(hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The vector of the last token that is no padding; of the first one for a text that is nothing but padding."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (positions * real).amax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


class SequenceClassifier(nn.Module):
    """One label for a text: pool, dropout, one linear layer; ids (B, T) -> logits (B, C).

    Args:
        encoder: a model with `hidden`; it learns along.
        d_model: width D of its hidden states.
        n_classes: number of labels C.
        pool: how a text becomes one vector; BERT's own is `Pooler(d_model)`.
        pad_id: the id that is padding. None: texts are never padded.
        dropout: share of the pooled vector that is dropped in training.
    """

    def __init__(
        self, encoder: Encoder, d_model: int, n_classes: int, *, pool: Pool, pad_id: int | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.pool, self.pad_id = encoder, pool, pad_id
        self.dropout = nn.Dropout(dropout)
        self.output = _linear(d_model, n_classes)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Logits of each label. Segments and mask are for encoders that take them, as `Bert` does."""
        hidden = _read(self.encoder, ids, segments, mask)
        return self.output(self.dropout(self.pool(hidden, _real(ids, mask, self.pad_id))))


class TokenClassifier(nn.Module):
    """One label for each token: dropout, one linear layer; ids (B, T) -> logits (B, T, C)."""

    def __init__(self, encoder: Encoder, d_model: int, n_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.output = _linear(d_model, n_classes)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Logits of each token's labels; those of padding mean nothing, and the loss is to leave them out."""
        return self.output(self.dropout(_read(self.encoder, ids, segments, mask)))


class SpanFinder(nn.Module):
    """Where the answer to a question stands in a text; ids of both (B, T) -> logits of its start and of its end (B, T).

    `best_spans` makes spans of the logits.
    """

    def __init__(self, encoder: Encoder, d_model: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = _linear(d_model, 2)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Logits of "the answer starts here" and of "it ends here", at each position."""
        start, end = self.output(_read(self.encoder, ids, segments, mask)).unbind(dim=-1)
        return start, end


class SentenceEncoder(nn.Module):
    """One vector of length 1 for a text, ids (B, T) -> (B, D): the dot product of two is the cosine between them."""

    def __init__(self, encoder: Encoder, *, pad_id: int | None, pool: Pool = mean_of_tokens) -> None:
        super().__init__()
        self.encoder, self.pool, self.pad_id = encoder, pool, pad_id

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """The texts' vectors."""
        hidden = _read(self.encoder, ids, segments, mask)
        return F.normalize(self.pool(hidden, _real(ids, mask, self.pad_id)), dim=-1)


class Spans(NamedTuple):
    """One span for each text: its first token, its last token (both belong to it), and its score."""

    start: Int[Tensor, " B"]
    end: Int[Tensor, " B"]
    score: Float[Tensor, " B"]


def best_spans(
    start_logits: Float[Tensor, "B T"],
    end_logits: Float[Tensor, "B T"],
    context: Bool[Tensor, "B T"],
    *,
    max_length: int = 30,
) -> Spans:
    """The span with the highest start logit + end logit among those that can be an answer.

    The likeliest start and the likeliest end need not make a span: the end may come first, or stand in the question.
    So all pairs are scored, (B, T, T) of them, and those that cannot be are ruled out.

    Args:
        start_logits: as `SpanFinder` gives them.
        end_logits: likewise.
        context: True at the tokens that may be part of an answer: not the question, not the marks, not padding.
        max_length: the longest span, in tokens.

    Raises:
        ValueError: a text has no token that may be part of an answer, or max_length is below 1.

    Returns:
        The spans; of those that tie, the one that starts first, and of these the shortest.

    Source: Devlin et al. 2019, section 4.2.
    """
    if max_length < 1:
        raise ValueError(f"a span has at least one token: got max_length={max_length}")
    empty = (~context.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"each text needs a token that may be part of the answer, True in `context`: there is none in rows {empty}"
        )
    T = start_logits.shape[1]
    length = torch.ones(T, T, dtype=torch.bool, device=start_logits.device).triu().tril(max_length - 1)
    # Tokens outside the context seen so far: the same at both ends, so none lies between them.
    outside = (~context).cumsum(dim=1)
    unbroken = context[:, :, None] & (outside[:, :, None] == outside[:, None, :])
    scores = start_logits[:, :, None] + end_logits[:, None, :]
    score, place = scores.masked_fill(~(length & unbroken), float("-inf")).flatten(1).max(dim=1)
    return Spans(place // T, place % T, score)


def _linear(d_model: int, n: int) -> nn.Linear:
    if n < 1:
        raise ValueError(f"a head needs at least one label: got {n}")
    layer = nn.Linear(d_model, n)
    init_weights(layer)
    return layer


def _read(encoder: Encoder, ids: Tensor, segments: Tensor | None, mask: Tensor | None) -> Tensor:
    """The hidden states. What is not given is not handed on: a decoder's `hidden` has no such arguments."""
    inputs = {"segments": segments, "mask": mask}
    return encoder.hidden(ids, **{name: given for name, given in inputs.items() if given is not None})


def _real(ids: Tensor, mask: Tensor | None, pad_id: int | None) -> Tensor:
    """Where there are tokens: where the mask says so, else all that is not padding."""
    if mask is not None:
        return mask
    return torch.ones_like(ids, dtype=torch.bool) if pad_id is None else ids != pad_id
