"""GPT-2: a decoder-only Transformer with learned positions and pre-norm blocks.

    ids (B, T) -> token embedding + position embedding -> L blocks -> norm -> logits (B, T, V)

The output head is the embedding table again (tied), as in GPT-2: the logit of a token is the dot product of its
embedding with the last hidden state.

Source: Radford et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import PreNormBlock
from llm_core.layers.cache import Cache, StaticCache, check_context
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import ACTIVATIONS, FeedForward
from llm_core.layers.masks import causal
from llm_core.layers.norms import LayerNorm
from llm_core.layers.positions import LearnedPositions


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT: V, the longest T, L, H, D. The feed-forward layers are 4 D wide unless `d_ff` is given.

    `activation` is a name of `feedforward.ACTIVATIONS`; GPT-2's is GELU, approximated by tanh.

    Raises:
        ValueError: a size is below 1, n_heads does not divide d_model, dropout is outside 0 ... 1, or the activation is
            none of the known.
    """

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    d_ff: int | None = None
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, context=self.context, n_layers=self.n_layers, n_heads=self.n_heads)
        check_sizes(d_model=self.d_model, d_ff=self.d_ff)
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads must divide d_model: got d_model={self.d_model}, n_heads={self.n_heads}")
        check_shares(dropout=self.dropout)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: got {self.activation}")

    @property
    def feed_forward_width(self) -> int:
        """F: `d_ff`, or 4 D."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff


# The four published sizes. A test holds their parameter counts to those of the published checkpoints (124M, 355M,
# 774M, 1558M); the paper's Table 2 says 117M, 345M, 762M, 1542M, which its authors later called wrong.
GPT2_SIZES = {
    "gpt2": GPTConfig(vocab_size=50257, context=1024, n_layers=12, n_heads=12, d_model=768),
    "gpt2-medium": GPTConfig(vocab_size=50257, context=1024, n_layers=24, n_heads=16, d_model=1024),
    "gpt2-large": GPTConfig(vocab_size=50257, context=1024, n_layers=36, n_heads=20, d_model=1280),
    "gpt2-xl": GPTConfig(vocab_size=50257, context=1024, n_layers=48, n_heads=25, d_model=1600),
}


class GPT(nn.Module):
    """GPT-2, ids (B, T) -> logits (B, T, V). Weights are drawn from torch's global generator (`torch.manual_seed`)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.token_embedding = TokenEmbedding(config.vocab_size, D)
        self.positions = LearnedPositions(D, config.context)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                attention=MultiHeadAttention(D, config.n_heads, dropout=config.dropout),
                feed_forward=FeedForward(D, config.feed_forward_width, activation=ACTIVATIONS[config.activation]),
                norms=(LayerNorm(D), LayerNorm(D)),
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        self.norm = LayerNorm(D)
        self._init_weights()

    def forward(self, ids: Int[Tensor, "B T"], cache: Cache | StaticCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position.

        With a cache, `ids` continue what it holds, and it holds them too afterwards.

        Raises:
            ValueError: the text, with what the cache holds, is longer than the context; or an id is no token.
        """
        return self.logits(self.hidden(ids, cache))

    def hidden(self, ids: Int[Tensor, "B T"], cache: Cache | StaticCache | None = None) -> Float[Tensor, "B T D"]:
        """The last hidden states, before the output head."""
        T = ids.shape[1]
        check_context(self.config.context, T, cache)
        S, at = (T, None) if cache is None else (cache.keys_after(T), cache.at)
        mask = causal(T, S, at=at, device=ids.device)
        text = None if cache is None else cache.text_after(T)  # rows of unequal length
        mask = mask if text is None else mask & text
        x = self.positions(self.token_embedding(ids), 0 if cache is None else cache.start)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, mask=mask, cache=None if cache is None else cache.layers[i])
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """The output head: logits of the token that follows each hidden state."""
        return self.token_embedding.logits(hidden)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head: its product with a hidden state is the logits."""
        return self.token_embedding.weight

    @property
    def context(self) -> int:
        """The longest text, in tokens, that the model can read."""
        return self.config.context

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.config.vocab_size

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `batch` texts of up to `capacity` tokens (the whole context unless given)."""
        weight = self.norm.weight  # in full precision in a quantised model too
        return Cache(
            self.config.n_layers,
            batch,
            self.config.n_heads,
            self.config.context if capacity is None else capacity,
            self.config.d_model // self.config.n_heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def n_parameters(self) -> int:
        """Number of learned numbers; the embedding table counts once, though it is the output head too."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _init_weights(self) -> None:
        """N(0, 0.02), and less by sqrt(2L) for what is added to the residual stream 2L times (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                nn.init.normal_(parameter, std=0.02 * (2 * self.config.n_layers) ** -0.5)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
