"""Multi-head latent attention: all heads read their keys and values from one short vector for each token.

    latent  c = norm(Wc x)              R numbers; this is what the cache holds
    key     k_h = [Wk_h c ; turn(Wr x)] E numbers of the head's own, and Er turned ones that all heads share
    value   v_h = Wv_h c
    query   q_h = [Wq_h x ; turn(Wt_h x)]

RoPE cannot turn a key that is made from the latent: the turn depends on the position and would stand between two
matrices that could otherwise be multiplied once and for all. So the position travels in a few columns of its own.

Multiplied together they are when a text is written: q^T (Wk c) = (Wk^T q)^T c. Each head compares its query with the
latent itself and reads latents, and the keys and values of the past are never made. What is then computed is attention
with a single key head, whose values are a part of its keys.

Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1. Chapter: 2.4, The modern decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@runtime_checkable
class LatentStore(Protocol):
    """What latent attention asks of a cache: a `LayerCache` of one head, `d_head` R and `d_value` Er wide."""

    @property
    def length(self) -> int | Tensor:
        """Tokens it holds."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add latents (B, 1, T, R) and turned keys (B, 1, T, Er) of T more tokens, and return all."""


class LatentAttention(nn.Module):
    """Causal self-attention whose cache holds R + Er numbers a token, however many heads there are.

    Args:
        d_model: width D of the input and of the output.
        n_heads: heads H.
        d_latent: width R of what keys and values are made from.
        d_head: columns E of a key that each head makes from the latent.
        d_turned: columns Er of a key that are turned by position and shared by all heads.
        d_value: columns of a value; E unless given.
        d_query_latent: width of a latent that queries are made from, to spare weights; None: from x.
        latent_norm: norms the latent; width R.
        query_norm: norms the latent of the queries, if there is one.
        rotate: turns (B, H, T, Er) from a position on: a `Rope` of that width.
        attend: `fused_attention`, or `attention`.

    Raises:
        ValueError: a width is below 1, or there is one of query_norm and d_query_latent without the other.

    Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        d_latent: int,
        d_head: int,
        d_turned: int,
        latent_norm: nn.Module,
        rotate: Callable[[Tensor, int | Tensor], Tensor],
        attend: Callable[..., Tensor],
        d_value: int | None = None,
        d_query_latent: int | None = None,
        query_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        d_value = d_head if d_value is None else d_value
        if min(d_model, n_heads, d_latent, d_head, d_turned, d_value) < 1:
            raise ValueError(
                f"each width must be at least 1: got d_model={d_model}, n_heads={n_heads}, d_latent={d_latent}, "
                f"d_head={d_head}, d_turned={d_turned}, d_value={d_value}"
            )
        if (d_query_latent is None) != (query_norm is None):
            raise ValueError(
                f"a latent for queries and its norm come together: got d_query_latent={d_query_latent}, "
                f"query_norm={query_norm}"
            )
        self.n_heads, self.d_latent, self.d_head, self.d_turned, self.d_value = (
            n_heads, d_latent, d_head, d_turned, d_value,
        )  # fmt: skip
        query_from = d_model if d_query_latent is None else d_query_latent
        self.query_latent = None if d_query_latent is None else nn.Linear(d_model, d_query_latent, bias=False)
        self.query_norm = query_norm
        self.query = nn.Linear(query_from, n_heads * (d_head + d_turned), bias=False)
        self.latent = nn.Linear(d_model, d_latent, bias=False)
        self.latent_norm = latent_norm
        self.turned_key = nn.Linear(d_model, d_turned, bias=False)
        self.key = nn.Linear(d_latent, n_heads * d_head, bias=False)
        self.value = nn.Linear(d_latent, n_heads * d_value, bias=False)
        self.output = nn.Linear(n_heads * d_value, d_model, bias=False)
        self.rotate, self.attend = rotate, attend
        self.scale = (d_head + d_turned) ** -0.5

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        cache: LatentStore | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What each position of x reads from x, and with a cache from what was there before.

        The mask is (T, S), or (B, 1, T, S); None: everything may be read.
        """
        start = 0 if cache is None else cache.length
        own, turned = self._queries(x, start)
        latent = self.latent_norm(self.latent(x))[:, None]  # (B, 1, T, R)
        turned_key = self.rotate(self.turned_key(x)[:, None], start)  # (B, 1, T, Er)
        if cache is not None:
            latent, turned_key = cache.append(latent, turned_key)
        # With one new token for many old ones it is dear to make their keys and values anew.
        read = self._absorbed if cache is not None and x.shape[1] == 1 else self._expanded
        heads = read(own, turned, latent, turned_key, mask)  # (B, H, T, Ev)
        return self.output(heads.transpose(1, 2).flatten(2))

    def _queries(self, x: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """The columns of a head's own, (B, H, T, E), and the turned ones, (B, H, T, Er)."""
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        query = self.query(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        own, turned = query.split([self.d_head, self.d_turned], dim=-1)
        return own, self.rotate(turned, start)

    def _expanded(self, own: Tensor, turned: Tensor, latent: Tensor, turned_key: Tensor, mask: Tensor | None) -> Tensor:
        """Make the keys and values of all heads, then attend as ever: what training does."""
        split = (self.n_heads, -1)
        key = self.key(latent[:, 0]).unflatten(-1, split).transpose(1, 2)
        value = self.value(latent[:, 0]).unflatten(-1, split).transpose(1, 2)
        key = torch.cat([key, turned_key.expand(-1, self.n_heads, -1, -1)], dim=-1)
        return self.attend(torch.cat([own, turned], dim=-1), key, value, mask, scale=self.scale)

    def _absorbed(self, own: Tensor, turned: Tensor, latent: Tensor, turned_key: Tensor, mask: Tensor | None) -> Tensor:
        """Compare queries with the latents, and read latents: the same result, and no key or value is made."""
        per_head = self.key.weight.view(self.n_heads, self.d_head, self.d_latent)
        query = torch.cat([own @ per_head, turned], dim=-1)  # (B, H, T, R + Er)
        key = torch.cat([latent, turned_key], dim=-1).expand(-1, self.n_heads, -1, -1)
        read = self.attend(query, key, latent.expand(-1, self.n_heads, -1, -1), mask, scale=self.scale)
        per_head = self.value.weight.view(self.n_heads, self.d_value, self.d_latent)
        return read @ per_head.transpose(-2, -1)
