"""T5: an encoder and a decoder with relative positions, which takes every task as one text to read and one to write.

    source (B, S) -> embedding -> L encoder blocks -> norm -------------------> memory (B, S, D)
    target (B, T) -> embedding -> L2 decoder blocks (read memory) -> norm -> logits (B, T, V)

What it does in another way than the Transformer of 2017 (`llm_core.models.encoder_decoder`):

    the norm stands before each part, is an RMSNorm, and there is one more at the end of each stack
    there are no biases, and no positions in the stream: a number for each distance is added to the scores instead,
        the same in all blocks of a stack
    scores are not divided by sqrt(E): the queries' matrix starts smaller by that much
    a tied head gets the hidden states times 1 / sqrt(D)

Version 1.1 (and Flan-T5, mT5) has a gated GELU where the first has ReLU, and a head of its own.

Source: Raffel et al. 2020; Shazeer 2020 for the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.attention import MultiHeadAttention, fused_attention
from llm_core.layers.blocks import PreNormBlock, PreNormCrossAttentionBlock
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from llm_core.layers.masks import causal, padding
from llm_core.layers.norms import RMSNorm
from llm_core.layers.relative_positions import RelativePositions, check_buckets
from llm_core.models.encoder_decoder import DecoderCache, GivenSource


@dataclass(frozen=True)
class T5Config:
    """The sizes of a T5: V, L of the encoder and of the decoder, H, D, E, F, and the buckets of its positions.

    `activation` is a name of `feedforward.ACTIVATIONS`; with `gated` it opens and closes a second projection. With
    `tied` the table of the tokens is the head too; with `scaled_logits` the hidden states are divided by sqrt(D) before
    the head. The model itself has no longest text: `context` is the room that a cache has for a target if nothing else
    is asked for.

    Raises:
        ValueError: a size is below 1, the buckets are too few or end too early, pad_id is no token, dropout is outside
            0 ... 1, norm_eps is not positive, or the activation is none of the known.
    """

    vocab_size: int
    n_layers: int
    n_decoder_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_ff: int
    n_buckets: int = 32
    max_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    scaled_logits: bool = True
    pad_id: int = 0
    dropout: float = 0.0
    norm_eps: float = 1e-6
    context: int = 512

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, context=self.context, n_layers=self.n_layers, n_heads=self.n_heads)
        check_sizes(n_decoder_layers=self.n_decoder_layers, d_model=self.d_model, d_head=self.d_head, d_ff=self.d_ff)
        for both_ways in (True, False):
            check_buckets(self.n_buckets, self.max_distance, both_ways=both_ways)
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be a token, 0 ... {self.vocab_size - 1}: got {self.pad_id}")
        check_shares(dropout=self.dropout)
        if not self.norm_eps > 0:
            raise ValueError(
                f"norm_eps keeps a norm from dividing by zero, so it must be positive: got {self.norm_eps}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: got {self.activation}")


class T5(nn.Module):
    """T5, (source ids, target ids) -> logits (B, T, V) of the token after each target position.

    Targets begin with `pad_id`, as those that it was trained on.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        D, eps = config.d_model, config.norm_eps
        self.embedding = TokenEmbedding(config.vocab_size, D)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder_positions, self.decoder_positions = (
            RelativePositions(config.n_heads, config.n_buckets, config.max_distance, both_ways=both_ways)
            for both_ways in (True, False)
        )
        self.encoder = nn.ModuleList(
            PreNormBlock(
                attention=self._attention(self.encoder_positions),
                feed_forward=self._feed_forward(),
                norms=(RMSNorm(D, eps=eps), RMSNorm(D, eps=eps)),
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        self.decoder = nn.ModuleList(
            PreNormCrossAttentionBlock(
                attention=self._attention(self.decoder_positions),
                cross_attention=self._attention(None),
                feed_forward=self._feed_forward(),
                norms=(RMSNorm(D, eps=eps), RMSNorm(D, eps=eps), RMSNorm(D, eps=eps)),
                dropout=config.dropout,
            )
            for _ in range(config.n_decoder_layers)
        )
        self.encoder_norm = RMSNorm(D, eps=eps)
        self.decoder_norm = RMSNorm(D, eps=eps)
        self.head = None if config.tied else nn.Linear(D, config.vocab_size, bias=False)
        self._init_weights()

    def forward(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position of the target, given the whole source.

        Raises:
            ValueError: an id is no token.
        """
        return self.decode(target, self.encode(source), source)

    def encode(self, source: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """The memory: one vector for each source position, which has read the whole source (padding aside)."""
        mask = padding(source, self.config.pad_id)
        x = self.dropout(self.embedding(source))
        for block in self.encoder:
            x = block(x, mask=mask)
        return self.dropout(self.encoder_norm(x))

    def decode(
        self,
        target: Int[Tensor, "B T"],
        memory: Float[Tensor, "B2 S D"],
        source: Int[Tensor, "B2 S"],
        cache: DecoderCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits after each target position; `source` only says which positions of the memory are padding.

        With a cache, `target` continues what it holds, and source and memory are the cache's own, as in
        `EncoderDecoder.decode`.
        """
        if cache is not None:
            source = cache.source
        T = target.shape[1]
        mask = causal(T, T + (0 if cache is None else cache.length), device=target.device)
        memory_mask = padding(source, self.config.pad_id)
        x = self.dropout(self.embedding(target))
        for i, block in enumerate(self.decoder):
            x = block(
                x,
                memory,
                mask=mask,
                memory_mask=memory_mask,
                cache=None if cache is None else cache.target.layers[i],
                memory_cache=None if cache is None else cache.memory.layers[i],
            )
        return self._logits(self.dropout(self.decoder_norm(x)))

    def given(self, source: Int[Tensor, "B S"]) -> GivenSource:
        """The decoder with its source read: a language model of the target, which `generation` can run."""
        return GivenSource(self, source)

    def n_parameters(self) -> int:
        """Number of learned numbers; a tied table counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _logits(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        if self.config.scaled_logits:
            x = x * self.config.d_model**-0.5
        logits: Tensor = self.embedding.logits(x) if self.head is None else self.head(x)
        return logits

    def _attention(self, positions: RelativePositions | None) -> MultiHeadAttention:
        return MultiHeadAttention(
            self.config.d_model,
            self.config.n_heads,
            d_head=self.config.d_head,
            bias=False,
            # The method, not the module: the numbers belong to the stack, and all its blocks add the same.
            position_bias=None if positions is None else positions.forward,
            attend=partial(fused_attention, scale=1.0),
            dropout=self.config.dropout,
        )

    def _feed_forward(self) -> nn.Module:
        D, F_, activation = self.config.d_model, self.config.d_ff, ACTIVATIONS[self.config.activation]
        if self.config.gated:
            return GatedFeedForward(D, F_, activation=activation)
        return FeedForward(D, F_, activation=activation, bias=False, dropout=self.config.dropout)

    def _init_weights(self) -> None:
        """Every matrix keeps the size of what goes through it; the queries' also does what sqrt(E) does elsewhere."""
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                nn.init.normal_(parameter)
            elif name.endswith("query.weight"):
                nn.init.normal_(parameter, std=(self.config.d_model * self.config.d_head) ** -0.5)
            elif name.endswith("positions.weight"):
                nn.init.normal_(parameter, std=self.config.d_model**-0.5)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
