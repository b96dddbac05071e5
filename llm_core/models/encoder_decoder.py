"""The Transformer of 2017: an encoder that reads a source, a decoder that writes a target.

    source (B, S) -> embedding + positions -> L encoder blocks ------------> memory (B, S, D)
    target (B, T) -> embedding + positions -> L decoder blocks (read memory) -> logits (B, T, V)

Post-norm, sinusoidal positions, and one embedding table for source, target and output head (section 3.4 of the
paper), multiplied by sqrt(D) where it embeds. Encoder and decoder are one model: one loss, one backward pass.

The paper's model has plain matrices in its attention, ReLU, and no bias on the logits. Others that were trained later
(Marian's, for one: `llm_core.pretrained.marian`) differ in these three, so the config can say so.

Source: Vaswani et al. 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import CrossAttentionBlock, PostNormBlock
from llm_core.layers.cache import Cache
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import ACTIVATIONS, FeedForward
from llm_core.layers.masks import causal, padding
from llm_core.layers.norms import LayerNorm
from llm_core.layers.positions import SinusoidalPositions


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """The sizes of a 2017 Transformer: V, the longest S and T, L of each stack, H, D, F.

    `activation` is a name of `feedforward.ACTIVATIONS`; `attention_bias` gives the projections of attention a bias
    each, `logit_bias` the logits a learned one; `scaled_embedding` multiplies the embeddings by sqrt(D). The paper has
    relu, no biases there, and the scale.

    Raises:
        ValueError: a size is below 1, n_heads does not divide d_model, d_model is odd, pad_id is no token, dropout is
            outside 0 ... 1, or the activation is none of the known.
    """

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    pad_id: int = 0
    dropout: float = 0.0
    activation: str = "relu"
    attention_bias: bool = False
    logit_bias: bool = False
    scaled_embedding: bool = True

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, context=self.context, n_layers=self.n_layers, n_heads=self.n_heads)
        check_sizes(d_model=self.d_model, d_ff=self.d_ff)
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model: got d_model={self.d_model}, n_heads={self.n_heads}")
        if self.d_model % 2:
            raise ValueError(f"sinusoidal positions need an even width: got d_model={self.d_model}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be a token, 0 ... {self.vocab_size - 1}: got {self.pad_id}")
        check_shares(dropout=self.dropout)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: got {self.activation}")

    @property
    def d_head(self) -> int:
        """E, the width of a head."""
        return self.d_model // self.n_heads


# Table 3 of the paper. Its counts, 65M and 213M, are those of a vocabulary of about 37,000 tokens.
TRANSFORMER_SIZES = {
    "base": EncoderDecoderConfig(37000, 512, n_layers=6, n_heads=8, d_model=512, d_ff=2048, dropout=0.1),
    "big": EncoderDecoderConfig(37000, 512, n_layers=6, n_heads=16, d_model=1024, d_ff=4096, dropout=0.3),
}


class DecoderCache:
    """What the decoder keeps: keys and values of the target so far, those of the memory (computed once), the source."""

    def __init__(self, target: Cache, memory: Cache, source: Int[Tensor, "B S"]) -> None:
        self.target, self.memory, self.source = target, memory, source

    @property
    def length(self) -> int:
        """Target tokens seen so far: the position of the next one."""
        return self.target.length

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` target tokens; the memory stays."""
        self.target.rewind(length)

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds."""
        self.target.reorder(rows)
        self.memory.reorder(rows)
        self.source = self.source.index_select(0, rows)


class EncoderDecoder(nn.Module):
    """The 2017 Transformer, (source ids, target ids) -> logits (B, T, V) of the token after each target position."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.embedding = TokenEmbedding(config.vocab_size, D)
        self.positions = SinusoidalPositions(D, config.context)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(
            PostNormBlock(
                attention=self._attention(),
                feed_forward=self._feed_forward(),
                norms=(LayerNorm(D), LayerNorm(D)),
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        self.decoder = nn.ModuleList(
            CrossAttentionBlock(
                attention=self._attention(),
                cross_attention=self._attention(),
                feed_forward=self._feed_forward(),
                norms=(LayerNorm(D), LayerNorm(D), LayerNorm(D)),
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None
        self._init_weights()

    def forward(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position of the target, given the whole source.

        Raises:
            ValueError: source or target is longer than the context, or an id is no token.
        """
        return self.decode(target, self.encode(source), source)

    def encode(self, source: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """The memory: one vector for each source position, which has read the whole source (padding aside)."""
        mask = padding(source, self.config.pad_id)
        x = self._embed(source, start=0)
        for block in self.encoder:
            x = block(x, mask=mask)
        return x

    def decode(
        self,
        target: Int[Tensor, "B T"],
        memory: Float[Tensor, "B2 S D"],
        source: Int[Tensor, "B2 S"],
        cache: DecoderCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits after each target position; `source` only says which positions of the memory are padding.

        With a cache, `target` continues what it holds, and source and memory are the cache's own: its rows may have
        moved, and multiplied (beam search), so that B2 is not B any more.
        """
        if cache is not None:
            source = cache.source
        start = 0 if cache is None else cache.length
        T = target.shape[1]
        mask = causal(T, start + T, device=target.device)
        memory_mask = padding(source, self.config.pad_id)
        x = self._embed(target, start)
        for i, block in enumerate(self.decoder):
            x = block(
                x,
                memory,
                mask=mask,
                memory_mask=memory_mask,
                cache=None if cache is None else cache.target.layers[i],
                memory_cache=None if cache is None else cache.memory.layers[i],
            )
        logits = self.embedding.logits(x)
        return logits if self.logit_bias is None else logits + self.logit_bias

    def given(self, source: Int[Tensor, "B S"]) -> GivenSource:
        """The decoder with its source read: a language model of the target, which `generation` can run."""
        return GivenSource(self, source)

    def n_parameters(self) -> int:
        """Number of learned numbers; the shared embedding table counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _embed(self, ids: Int[Tensor, "B T"], start: int) -> Float[Tensor, "B T D"]:
        end = start + ids.shape[1]
        if end > self.config.context:
            raise ValueError(
                f"the text is {end} tokens long, the context is {self.config.context}: "
                "give fewer tokens, or build the model with a longer context"
            )
        x = self.embedding(ids)
        if self.config.scaled_embedding:
            # The table is small (std 1 / sqrt(D)) since it is the output head too; as an input it is brought to size 1.
            x = x * math.sqrt(self.config.d_model)
        return self.dropout(self.positions(x, start))

    def _attention(self) -> MultiHeadAttention:
        # The paper's projections are plain matrices, without biases.
        return MultiHeadAttention(self.config.d_model, self.config.n_heads, bias=self.config.attention_bias)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.config.d_model, self.config.d_ff, activation=ACTIVATIONS[self.config.activation])

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class GivenSource:
    """A decoder whose source has been read: target ids (B, T) -> logits (B, T, V).

    The model is an `EncoderDecoder`, or another with the same `encode`, `decode`, `decoder` and the same names in its
    config, as `T5` is.
    """

    def __init__(self, model: Any, source: Int[Tensor, "B S"]) -> None:
        self.model, self.source = model, source
        self.memory = model.encode(source)

    def __call__(self, target: Int[Tensor, "B T"], cache: DecoderCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits after each target position."""
        logits: Tensor = self.model.decode(target, self.memory, self.source, cache)
        return logits

    @property
    def context(self) -> int:
        """The longest target, in tokens."""
        return int(self.model.config.context)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return int(self.model.config.vocab_size)

    def new_cache(self, batch: int, capacity: int | None = None) -> DecoderCache:
        """An empty cache for `batch` targets of up to `capacity` tokens (the whole context unless given)."""
        config = self.model.config

        def cache(tokens: int) -> Cache:
            device, dtype = self.memory.device, self.memory.dtype
            n_layers = len(self.model.decoder)
            return Cache(n_layers, batch, config.n_heads, tokens, config.d_head, device=device, dtype=dtype)

        return DecoderCache(
            target=cache(config.context if capacity is None else capacity),
            memory=cache(self.source.shape[1]),
            source=self.source,
        )
