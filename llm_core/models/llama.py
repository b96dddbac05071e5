"""Llama and its relatives: the decoder of the years after GPT-2.

    ids (B, T) -> token embedding -> L blocks -> norm -> logits (B, T, V)

What has changed since GPT-2, each for its own reason:

    RMSNorm for LayerNorm       less work, the same effect
    RoPE for learned positions  the score depends on the distance; no table to run out of
    SwiGLU for GELU             better for the same number of weights
    grouped-query attention     a smaller cache: K < H key/value heads
    no biases

The relatives are settings of the same class. Qwen2 has biases on query, key and value; Qwen3 norms them instead;
Mistral looks back no further than a window; Mixtral has a mixture of experts in each block, Qwen3-MoE many small ones;
Phi-3 may turn only a part of each head's columns; Gemma bends with GELU, scales its embeddings, and learns how far each
norm's weight is from one.

Source: Touvron et al. 2023 (Llama), Grattafiori et al. 2024 (Llama 3), Jiang et al. 2023 (Mistral), Jiang et al. 2024
(Mixtral), Yang et al. 2024 (Qwen2), Yang et al. 2025 (Qwen3), Abdin et al. 2024 (Phi-3), Gemma Team 2024 (Gemma).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.checks import check_sizes
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import PreNormBlock
from llm_core.layers.cache import Cache, StaticCache, check_context
from llm_core.layers.embedding import Scaled, TokenEmbedding
from llm_core.layers.feedforward import ACTIVATIONS, GatedFeedForward
from llm_core.layers.masks import causal, sliding_window
from llm_core.layers.mixture import MixtureOfExperts
from llm_core.layers.norms import RMSNorm, RMSNormPlusOne
from llm_core.layers.positions import LengthScaling, Llama3Scaling, PartialRope, Rope, RopeScaling, rotate_halves


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama, and what tells its relatives apart.

    Args:
        vocab_size: V.
        context: the longest text, in tokens.
        n_layers: L.
        n_heads: query heads H.
        n_kv_heads: key/value heads K.
        d_model: width D.
        d_ff: width F of the feed-forward layers.
        d_head: width E of a head; D / H unless given.
        rope_base: the larger, the slower the slowest pair of RoPE turns.
        rope_scaling: how RoPE was slowed down for longer texts.
        rope_turn: which columns of a head RoPE turns as a pair, `rotate_halves` or `rotate_neighbours`.
        rope_width: how many columns of a head RoPE turns, the first ones; all unless given (Phi-3).
        activation: what the gate of the feed-forward layers bends with, a name of `feedforward.ACTIVATIONS`.
        norm_eps: what the norms add to the mean square.
        norm_plus_one: norms multiply by one plus their weight (Gemma).
        scaled_embedding: the embeddings are multiplied by sqrt(D) (Gemma).
        tied: whether the output head is the embedding table.
        qkv_bias: biases on query, key and value (Qwen2).
        output_bias: a bias on the attention's output.
        qk_norm: norms on each head's queries and keys (Qwen3).
        mlp_bias: biases in the feed-forward layers (there are none in experts).
        window: how far back attention looks, the own position counted (Mistral). None: to the beginning.
        full_layers: numbers of the layers, from 0, that look back to the beginning all the same (Qwen2).
        n_experts: feed-forward layers in each block, of which a token uses `experts_per_token` (Mixtral). None: one,
            and no router. What follows is of no effect without experts.
        experts_per_token: how many experts a token uses.
        d_expert: width of each expert; F unless given (Qwen3-MoE).
        rescale_experts: whether the weights of a token's experts are rescaled to sum to one.
        dense_layers: numbers of the layers, from 0, that have one feed-forward layer all the same (Qwen3-MoE).

    Raises:
        ValueError: a size is below 1, sizes do not divide, an odd number of columns would have to be turned, the
            activation is none of the known, or full_layers or dense_layers has a number that no layer has.
    """

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_ff: int
    d_head: int | None = None
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | LengthScaling | None = None
    rope_turn: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate_halves
    rope_width: int | None = None
    activation: str = "silu"
    norm_eps: float = 1e-5
    norm_plus_one: bool = False
    scaled_embedding: bool = False
    tied: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    n_experts: int | None = None
    experts_per_token: int = 2
    d_expert: int | None = None
    rescale_experts: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "context", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_ff")
        optional = ("d_head", "rope_width", "window", "n_experts", "experts_per_token", "d_expert")
        check_sizes(**{name: getattr(self, name) for name in (*sizes, *optional)})
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads must divide n_heads: got n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}"
            )
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                "n_heads must divide d_model, or d_head must be given: got "
                f"d_model={self.d_model}, n_heads={self.n_heads}"
            )
        if self.turned_width % 2:
            raise ValueError(f"RoPE turns pairs of columns, so a head must be of even width: got {self.turned_width}")
        if self.turned_width > self.head_width:
            raise ValueError(f"a head has {self.head_width} columns that RoPE could turn: got {self.turned_width}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: got {self.activation}")
        if not self.rope_base > 1:
            raise ValueError(f"rope_base must be above 1: got {self.rope_base}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be above 0: got {self.norm_eps}")
        if self.n_experts is not None and self.experts_per_token > self.n_experts:
            raise ValueError(
                "a token cannot use more experts than there are: got "
                f"experts_per_token={self.experts_per_token}, n_experts={self.n_experts}"
            )
        for name in ("full_layers", "dense_layers"):
            if not all(0 <= layer < self.n_layers for layer in getattr(self, name)):
                raise ValueError(f"{name} must be of 0 ... {self.n_layers - 1}: got {getattr(self, name)}")

    @property
    def head_width(self) -> int:
        """E: `d_head`, or D / H."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def turned_width(self) -> int:
        """Columns of a head that RoPE turns: `rope_width`, or E."""
        return self.head_width if self.rope_width is None else self.rope_width

    @property
    def expert_width(self) -> int:
        """Width of each expert: `d_expert`, or F."""
        return self.d_ff if self.d_expert is None else self.d_expert

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts."""
        return () if self.n_experts is None else tuple(i for i in range(self.n_layers) if i not in self.dense_layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return tuple(None if i in self.full_layers else self.window for i in range(self.n_layers))


# Published configs. A test holds their parameter counts to those of the published checkpoints.
LLAMA_SIZES = {
    "llama-2-7b": LlamaConfig(32000, 4096, 32, 32, 32, 4096, 11008, tied=False),
    "llama-3-8b": LlamaConfig(128256, 8192, 32, 32, 8, 4096, 14336, rope_base=500_000.0, tied=False),
    "llama-3.2-1b": LlamaConfig(
        128256, 131072, 16, 32, 8, 2048, 8192, rope_base=500_000.0, rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192)
    ),
    "mistral-7b": LlamaConfig(32000, 32768, 32, 32, 8, 4096, 14336, tied=False, window=4096),
    "mixtral-8x7b": LlamaConfig(
        32000, 32768, 32, 32, 8, 4096, 14336, rope_base=1_000_000.0, tied=False, n_experts=8, experts_per_token=2
    ),
    "qwen2.5-0.5b": LlamaConfig(
        151936, 32768, 24, 14, 2, 896, 4864, rope_base=1_000_000.0, norm_eps=1e-6, qkv_bias=True
    ),
    "qwen3-0.6b": LlamaConfig(
        151936, 40960, 28, 16, 8, 1024, 3072, d_head=128, rope_base=1_000_000.0, norm_eps=1e-6, qk_norm=True
    ),
    "smollm2-135m": LlamaConfig(49152, 8192, 30, 9, 3, 576, 1536, rope_base=100_000.0),
}


class Llama(nn.Module):
    """Llama, ids (B, T) -> logits (B, T, V). Weights are drawn from torch's global generator (`torch.manual_seed`)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        D, E = config.d_model, config.head_width
        self.token_embedding = TokenEmbedding(config.vocab_size, D)
        self.scale = Scaled(math.sqrt(D)) if config.scaled_embedding else None
        # One table of sines and cosines, which all blocks share.
        rope = _rope(config)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                attention=MultiHeadAttention(
                    D,
                    config.n_heads,
                    n_kv_heads=config.n_kv_heads,
                    d_head=E,
                    bias=config.qkv_bias,
                    output_bias=config.output_bias,
                    query_norm=_norm(config, E) if config.qk_norm else None,
                    key_norm=_norm(config, E) if config.qk_norm else None,
                    rotate=rope,
                ),
                feed_forward=_mixture(config) if i in config.expert_layers else _feed_forward(config),
                norms=(_norm(config, D), _norm(config, D)),
            )
            for i in range(config.n_layers)
        )
        self.norm = _norm(config, D)
        self.head = None if config.tied else nn.Linear(D, config.vocab_size, bias=False)
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
        windows = self.config.windows
        masks = {window: _mask(T, S, window, at, ids.device) for window in set(windows)}
        # Rows of unequal length. They need no positions of their own: RoPE sees distances only.
        text = None if cache is None else cache.text_after(T)
        masks = masks if text is None else {window: mask & text for window, mask in masks.items()}
        x = self.token_embedding(ids)
        x = x if self.scale is None else self.scale(x)
        for i, block in enumerate(self.blocks):
            x = block(x, mask=masks[windows[i]], cache=None if cache is None else cache.layers[i])
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """The output head: logits of the token that follows each hidden state."""
        return self.token_embedding.logits(hidden) if self.head is None else self.head(hidden)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head: its product with a hidden state is the logits."""
        return self.token_embedding.weight if self.head is None else self.head.weight

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
            self.config.n_kv_heads,
            self.config.context if capacity is None else capacity,
            self.config.head_width,
            # All layers of a cache hold the same tokens: if one looks back to the beginning, all are kept.
            window=None if self.config.full_layers else self.config.window,
            device=weight.device,
            dtype=weight.dtype,
        )

    def n_parameters(self) -> int:
        """Number of learned numbers; a tied embedding table counts once. Of experts, all count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _init_weights(self) -> None:
        """As in `GPT`: N(0, 0.02), and less by sqrt(2L) for what is added to the residual stream 2L times."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attention.output.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 * (2 * self.config.n_layers) ** -0.5)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)


def _mask(T: int, S: int, window: int | None, at: Tensor | None, device: torch.device) -> Bool[Tensor, "T S"]:
    if window is None:
        return causal(T, S, at=at, device=device)
    return sliding_window(T, S, window=window, at=at, device=device)


def _norm(config: LlamaConfig, width: int) -> RMSNorm:
    kind = RMSNormPlusOne if config.norm_plus_one else RMSNorm
    return kind(width, eps=config.norm_eps)


def _rope(config: LlamaConfig) -> nn.Module:
    width, base = config.turned_width, config.rope_base
    rope = Rope(width, config.context, base=base, turn=config.rope_turn, scaling=config.rope_scaling)
    return rope if width == config.head_width else PartialRope(rope)


def _feed_forward(config: LlamaConfig) -> nn.Module:
    activation = ACTIVATIONS[config.activation]
    return GatedFeedForward(config.d_model, config.d_ff, activation=activation, bias=config.mlp_bias)


def _mixture(config: LlamaConfig) -> nn.Module:
    activation = ACTIVATIONS[config.activation]
    experts = [
        GatedFeedForward(config.d_model, config.expert_width, activation=activation)
        for _ in range(config.n_experts or 0)
    ]
    return MixtureOfExperts(config.d_model, experts, config.experts_per_token, rescale=config.rescale_experts)
