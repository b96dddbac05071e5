"""Blocks: attention and a feed-forward layer around one residual stream.

A residual is an addition: each part reads the stream and adds what it found. The blocks differ in where the
norm stands and in what is read; their parts are handed in.

    PreNormBlock                 x + part(norm(x))   GPT-2, Llama: the stream itself is never normed
    PostNormBlock                norm(x + part(x))   the 2017 encoder, BERT
    CrossAttentionBlock          post-norm, and a second attention that reads the encoder: the 2017 decoder
    PreNormCrossAttentionBlock   the same with the norms before the parts: T5's decoder
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn


class PreNormBlock(nn.Module):
    """Norm, attend, add; norm, feed forward, add."""

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.feed_forward_norm = norms
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        cache: object | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after this block."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, cache=cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class PostNormBlock(nn.Module):
    """Attend, add, norm; feed forward, add, norm."""

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.feed_forward_norm = norms
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        cache: object | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after this block."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask, cache=cache)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class CrossAttentionBlock(nn.Module):
    """The 2017 decoder's block: attend to oneself, then to the encoder's output, then feed forward; post-norm."""

    def __init__(
        self,
        attention: nn.Module,
        cross_attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.cross_attention, self.feed_forward = attention, cross_attention, feed_forward
        self.attention_norm, self.cross_attention_norm, self.feed_forward_norm = norms
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B2 S D"],
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        memory_mask: Bool[Tensor, " ..."] | None = None,
        cache: object | None = None,
        memory_cache: object | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after this block; `memory` is the encoder's output, read unless `memory_cache` holds it."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask, cache=cache)))
        read = self.cross_attention(x, memory, mask=memory_mask, cache=memory_cache)
        x = self.cross_attention_norm(x + self.dropout(read))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class PreNormCrossAttentionBlock(CrossAttentionBlock):
    """The same three parts, with the norm before each: T5's decoder."""

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B2 S D"],
        *,
        mask: Bool[Tensor, " ..."] | None = None,
        memory_mask: Bool[Tensor, " ..."] | None = None,
        cache: object | None = None,
        memory_cache: object | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after this block; `memory` is the encoder's output, read unless `memory_cache` holds it."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, cache=cache))
        read = self.cross_attention(self.cross_attention_norm(x), memory, mask=memory_mask, cache=memory_cache)
        x = x + self.dropout(read)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
