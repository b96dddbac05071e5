"""Attention: every query reads a weighted mean of the values.

    scores  = query @ key^T / sqrt(E)        how well query i fits key j
    scores  = -inf where the mask is False   what may not be read
    weights = softmax(scores) over the keys  each row sums to one
    output  = weights @ value                the weighted mean

The functions come first and need no weights: `softmax`, `attention_weights`, `attention`.
`fused_attention` is the same function on torch's fused kernel. `MultiHeadAttention` adds the learned
projections and the heads; what varies between models (a rotation, a position bias, the function that
attends) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def softmax(scores: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """Positive numbers that sum to one along a dimension, the last unless given, in proportion to exp(scores).

    The largest score is taken off first: the result is the same and exp() cannot overflow. A row in which
    every score is -inf (nothing may be read) becomes zeros rather than NaN, as in torch's own attention.

    Raises:
        ValueError: the scores have no such dimension.

    >>> softmax(torch.tensor([0.0, 0.0, float("-inf")]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    if not -scores.ndim <= dim < scores.ndim:
        raise ValueError(f"scores {tuple(scores.shape)} have {scores.ndim} dimensions: got dim={dim}")
    lowest = torch.finfo(scores.dtype).min
    peak = scores.detach().amax(dim=dim, keepdim=True).clamp(min=lowest)
    raised = (scores - peak).exp()
    # exp(0) = 1 stands in every row that has a key, so its sum is at least 1; the clamp only acts on rows
    # that have none.
    return raised / raised.sum(dim=dim, keepdim=True).clamp(min=1.0)


def attention_weights(
    query: Float[Tensor, "*batch T E"],
    key: Float[Tensor, "*batch S E"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    bias: Float[Tensor, " ..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch T S"]:
    """How much each of the T queries reads from each of the S keys; every row sums to one.

    Args:
        query: what each position looks for.
        key: what each position offers.
        mask: True where a query may attend to a key, broadcast to the scores. For heads, (B, H, T, E), it is (T, S), or
            has all four dimensions, (B, 1, T, S) for one: of three it would be open what the first stands for. None:
            everywhere.
        bias: added to the scores before the softmax (ALiBi, for one), broadcast to (T, S).
        scale: multiplies the scores; 1 / sqrt(E) unless given.

    Raises:
        ValueError: query and key differ in width, or the mask is not boolean, does not fit, or has three dimensions
            where there are heads.

    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    _check_inputs(query, key, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * query @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores)


def attention(
    query: Float[Tensor, "*batch T E"],
    key: Float[Tensor, "*batch S E"],
    value: Float[Tensor, "*batch S Ev"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    bias: Float[Tensor, " ..."] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch T Ev"]:
    """The weighted mean of the values that each query reads: softmax(query key^T / sqrt(E)) value.

    Arguments and errors are those of `attention_weights`; `dropout` is the share of weights that is set to
    zero (the rest grows by 1 / (1 - dropout)), for training only. A query that may read nothing gets zeros.

    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    _check_values(key, value)
    weights = attention_weights(query, key, mask, bias=bias, scale=scale)
    return F.dropout(weights, dropout, training=dropout > 0) @ value


def fused_attention(
    query: Float[Tensor, "*batch T E"],
    key: Float[Tensor, "*kv_batch S E"],
    value: Float[Tensor, "*kv_batch S Ev"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    bias: Float[Tensor, " ..."] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch T Ev"]:
    """`attention`, computed by torch's fused kernel, which never writes the (T, S) weights to memory.

    Same arguments, same errors, same result up to rounding. This is what the models run. Keys and values may have
    fewer heads, (B, K, S, E), than the queries, (B, H, T, E): H / K query heads share one. On a CPU it is read
    where it lies, not copied for each of them.
    """
    _check_inputs(query, key, mask)
    _check_values(key, value)
    shared = query.ndim > 2 and key.ndim > 2 and key.shape[-3] != query.shape[-3]
    if shared and query.shape[-3] % key.shape[-3]:
        raise ValueError(
            f"query heads share key heads in groups of one size: got {query.shape[-3]} query heads and "
            f"{key.shape[-3]} key heads"
        )
    if shared and query.device.type != "cpu":
        # On a GPU torch has no fused kernel for a mask and shared heads at once; it would write the weights to memory.
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        shared = False
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    if mask is not None:
        mask = torch.atleast_2d(mask)  # torch takes no mask of keys alone, (S,)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


@runtime_checkable
class KeyValueStore(Protocol):
    """What attention asks of a cache: how much it holds, what it holds, and to add to it."""

    @property
    def length(self) -> int | Tensor:
        """Tokens it holds; a tensor if the device alone knows."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T more tokens, (B, K, T, E) each, and return all."""

    def contents(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (B, K, S, E) each."""


class MultiHeadAttention(nn.Module):
    """Attention in H heads of width E, each with its own projections, joined by an output projection.

    With `memory` the keys and values come from there (cross-attention), else from x (self-attention).

    Args:
        d_model: width D of the input and of the output.
        n_heads: number of query heads H.
        n_kv_heads: number of key/value heads K; H / K query heads share one. H unless given (multi-head);
            1 is multi-query attention (Shazeer 2019), between the two lies grouped-query attention
            (Ainslie et al. 2023).
        d_head: width E of a head; D / H unless given.
        bias: whether the projections of query, key and value have a bias.
        output_bias: whether the output projection has one; as `bias` unless given.
        query_norm, key_norm: norm each head's queries and keys, before they are turned; width E
            (QK-norm: Dehghani et al. 2023, section 2). None: no norm.
        rotate: applied to queries and keys with their positions, `rotate(x, start)`; a `Rope`, for one.
            Self-attention only: a memory has positions of its own.
        position_bias: `position_bias(T, S)` -> (H, T, S), added to the scores; an `Alibi`, for one. It too is for
            self-attention only.
        attend: the function that attends; `attention` gives the same result step by step. `fused_attention` reads the K
            key/value heads where they lie; any other gets H of them, those that are shared repeated.
        dropout: share of the attention weights dropped in training.

    Raises:
        ValueError: H does not divide D (and no d_head is given), or K does not divide H.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        rotate: Callable[[Tensor, int | Tensor], Tensor] | None = None,
        position_bias: Callable[[int, int], Tensor] | None = None,
        attend: Callable[..., Tensor] = fused_attention,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if n_heads < 1 or n_kv_heads < 1:
            raise ValueError(f"attention needs at least one head: got n_heads={n_heads}, n_kv_heads={n_kv_heads}")
        if d_head is None:
            if d_model % n_heads:
                raise ValueError(
                    f"n_heads must divide d_model, or d_head must be given: got d_model={d_model}, n_heads={n_heads}"
                )
            d_head = d_model // n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads: got n_heads={n_heads}, n_kv_heads={n_kv_heads}")
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.query = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.key = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.value = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.output = nn.Linear(n_heads * d_head, d_model, bias=bias if output_bias is None else output_bias)
        self.query_norm = nn.Identity() if query_norm is None else query_norm
        self.key_norm = nn.Identity() if key_norm is None else key_norm
        self.rotate = rotate
        self.position_bias = position_bias
        self.attend = attend
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B2 S D"] | None = None,
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        cache: KeyValueStore | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What each position of x reads from x, or from `memory`.

        With a cache, self-attention adds the keys and values of x to it and attends to all it holds;
        cross-attention fills it from the memory once and reads it from then on. The mask is (T, S), broadcast
        over B and H, where S counts what the cache still holds of the tokens before; or it has four dimensions,
        (B, 1, T, S) if it differs from text to text.
        """
        query = self.query_norm(self._split(self.query(x), self.n_heads))
        if memory is None:
            start = 0 if cache is None else cache.length
            key, value = self.key_norm(self._split(self.key(x))), self._split(self.value(x))
            if self.rotate is not None:
                query, key = self.rotate(query, start), self.rotate(key, start)
            if cache is not None:
                key, value = cache.append(key, value)
        elif cache is not None and cache.length:
            key, value = cache.contents()
        else:
            key, value = self.key_norm(self._split(self.key(memory))), self._split(self.value(memory))
            if cache is not None:
                key, value = cache.append(key, value)

        bias = None
        if self.position_bias is not None and memory is None:
            bias = self.position_bias(query.shape[-2], key.shape[-2])
        group = self.n_heads // self.n_kv_heads
        if group > 1 and self.attend is not fused_attention:
            key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        dropout = self.dropout if self.training else 0.0
        heads = self.attend(query, key, value, mask, bias=bias, dropout=dropout)  # (B, H, T, E)
        return self.output(heads.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "B T HE"], n_heads: int | None = None) -> Float[Tensor, "B H T E"]:
        return x.unflatten(-1, (n_heads or self.n_kv_heads, self.d_head)).transpose(1, 2)


def _check_inputs(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"queries and keys must have the same width: got query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(
            f"the mask must be boolean, True where a query may attend: got {mask.dtype}. "
            "A number to add to the scores belongs in bias="
        )
    scores = (*query.shape[:-1], key.shape[-2])
    if len(scores) == 4 and mask.ndim == 3:
        raise ValueError(
            f"the scores are (B, H, T, S) = {scores}, and a mask of three dimensions could be one for each text or one "
            f"for each head: got a mask {tuple(mask.shape)}. Write mask[:, None] if it is one for each text, "
            "mask[None] if it is one for each head"
        )
    fits = all(m in (1, n) for m, n in zip(reversed(mask.shape), reversed(scores), strict=False))
    if mask.ndim > len(scores) or not fits:
        raise ValueError(
            f"the mask must fit the scores, (..., T, S) = {scores}, a 1 or a missing dimension standing for all: "
            f"got a mask {tuple(mask.shape)}"
        )


def _check_values(key: Tensor, value: Tensor) -> None:
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"there must be one value for each key: got {key.shape[-2]} keys and {value.shape[-2]} values")
