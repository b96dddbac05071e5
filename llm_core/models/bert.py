"""BERT: the encoder of a Transformer, which reads a whole text in both directions at once.

    ids, segments (B, T) -> token + segment + position embedding -> norm -> L post-norm blocks -> hidden (B, T, D)

There is no causal mask, so every position reads every token, and the model cannot be trained to guess the next one: it
would see it. It guesses tokens that were hidden from it instead (`llm_core.training.masking`), and whether the second
of two sentences followed the first. Those two guesses are heads: small layers on the hidden states, thrown away when
the encoder goes on to another task (`llm_core.models.heads`).

    Bert                 ids -> hidden (B, T, D)
    Pooler               hidden -> tanh(W hidden[:, 0]), one vector for the text: that of its first token, [CLS]
    MaskedLanguageModel  ids -> logits (B, T, V) of the token that stood at each position
    BertPretraining      ids -> the same, and logits (B, 2) of "follows" and "does not follow"

Source: Devlin et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import PostNormBlock
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import FeedForward, fused_gelu
from llm_core.layers.masks import padding
from llm_core.layers.norms import LayerNorm
from llm_core.layers.positions import LearnedPositions


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT: V, the longest T, L, H, D, F, and the number of segments (2: sentence A and sentence B).

    Raises:
        ValueError: a size is below 1, n_heads does not divide d_model, pad_id is no token, dropout is outside 0 ... 1,
            or norm_eps is not positive.
    """

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    n_segments: int = 2
    pad_id: int = 0
    dropout: float = 0.0
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, context=self.context, n_layers=self.n_layers, n_heads=self.n_heads)
        check_sizes(d_model=self.d_model, d_ff=self.d_ff, n_segments=self.n_segments)
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model: got d_model={self.d_model}, n_heads={self.n_heads}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be a token, 0 ... {self.vocab_size - 1}: got {self.pad_id}")
        check_shares(dropout=self.dropout)
        if not self.norm_eps > 0:
            raise ValueError(
                f"norm_eps keeps a norm from dividing by zero, so it must be positive: got {self.norm_eps}"
            )


# The two sizes of the paper (section 3: 110M and 340M), and the one of the sentence encoder all-MiniLM-L6-v2. With the
# pooler they have 109.5M, 335.1M and 22.7M parameters: a test holds them to transformers' models of these sizes.
BERT_SIZES = {
    "bert-base-uncased": BertConfig(30522, 512, n_layers=12, n_heads=12, d_model=768, d_ff=3072, dropout=0.1),
    "bert-large-uncased": BertConfig(30522, 512, n_layers=24, n_heads=16, d_model=1024, d_ff=4096, dropout=0.1),
    "minilm-l6": BertConfig(30522, 512, n_layers=6, n_heads=12, d_model=384, d_ff=1536, dropout=0.1),
}


class Bert(nn.Module):
    """BERT's encoder, ids (B, T) -> hidden (B, T, D). Weights are drawn from torch's global generator."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        D, eps = config.d_model, config.norm_eps
        self.token_embedding = TokenEmbedding(config.vocab_size, D)
        self.segment_embedding = nn.Embedding(config.n_segments, D)
        self.positions = LearnedPositions(D, config.context)
        self.norm = LayerNorm(D, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                attention=MultiHeadAttention(D, config.n_heads, dropout=config.dropout),
                feed_forward=FeedForward(D, config.d_ff, activation=fused_gelu),
                norms=(LayerNorm(D, eps=eps), LayerNorm(D, eps=eps)),
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        init_weights(self)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The vector of each position, which has read the whole text.

        Args:
            ids: the texts. What comes out at padding means nothing.
            segments: which sentence each token belongs to; all to the first unless given.
            mask: True where there is a token to read, False at padding; `ids != pad_id` unless given.

        Raises:
            ValueError: the text is empty or longer than the context, an id is no token, a segment is none, or segments
                or mask are not shaped as the ids.
        """
        self._check(ids, segments, mask)
        keys = padding(ids, self.config.pad_id) if mask is None else mask[:, None, None, :]
        x = self.token_embedding(ids) + self._segment_vectors(torch.zeros_like(ids) if segments is None else segments)
        x = self.dropout(self.norm(self.positions(x)))
        for block in self.blocks:
            x = block(x, mask=keys)
        return x

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The hidden states, under the name that every model of this package has for them."""
        return self(ids, segments, mask)

    @property
    def context(self) -> int:
        """The longest text, in tokens, that the model can read."""
        return self.config.context

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.config.vocab_size

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _segment_vectors(self, segments: Tensor) -> Tensor:
        try:
            return self.segment_embedding(segments)
        except IndexError:
            known = f"0 ... {self.config.n_segments - 1}"
            got = f"{segments.min().item()} to {segments.max().item()}"
            raise ValueError(f"segments must be {known}: got {got}") from None

    def _check(self, ids: Tensor, segments: Tensor | None, mask: Tensor | None) -> None:
        if not 1 <= ids.shape[1] <= self.config.context:
            raise ValueError(
                f"the text is {ids.shape[1]} tokens long, the context is {self.config.context}: "
                "give at least one token and at most as many, or build the model with a longer context"
            )
        for name, given in (("segments", segments), ("mask", mask)):
            if given is not None and given.shape != ids.shape:
                raise ValueError(
                    f"{name} must be shaped as the ids, (B, T) = {tuple(ids.shape)}: got {tuple(given.shape)}"
                )


class Pooler(nn.Module):
    """One vector for a text, from that of its first token: tanh(W hidden[:, 0] + b)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        init_weights(self)

    def forward(self, hidden: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
        """The vector; the first token is no padding, so `real`, which other ways of pooling ask for, is not read."""
        return torch.tanh(self.dense(hidden[:, 0]))


class MaskedTokenHead(nn.Module):
    """Hidden states -> logits of the token at each position: a layer of its own, then the embedding table (tied)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        init_weights(self)

    def forward(self, hidden: Float[Tensor, "B T D"], embedding: TokenEmbedding) -> Float[Tensor, "B T V"]:
        """The logits. The table is handed in, as it belongs to the encoder."""
        return embedding.logits(self.norm(fused_gelu(self.dense(hidden)))) + self.bias


class MaskedLanguageModel(nn.Module):
    """An encoder that guesses tokens that were hidden from it, ids (B, T) -> logits (B, T, V)."""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = MaskedTokenHead(encoder.config)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that stood at each position; arguments and errors are those of `Bert`."""
        return self.head(self.encoder(ids, segments, mask), self.encoder.token_embedding)


class BertPretraining(nn.Module):
    """An encoder with both heads it is trained with: which token was hidden, and does sentence B follow sentence A?"""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        D = encoder.config.d_model
        self.encoder = encoder
        self.head = MaskedTokenHead(encoder.config)
        self.pooler = Pooler(D)
        self.next_sentence = nn.Linear(D, 2)
        init_weights(self.next_sentence)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B 2"]]:
        """Logits of the token at each position, and of "B follows A" (0) and "it does not" (1)."""
        hidden = self.encoder(ids, segments, mask)
        return self.head(hidden, self.encoder.token_embedding), self.next_sentence(self.pooler(hidden))


def init_weights(module: nn.Module) -> None:
    """N(0, 0.02) for tables and matrices, zero for biases; norms are left at one and zero (as published BERTs are)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
