"""A recurrent language model: ids (B, T) -> logits (B, T, V), with additive attention or without."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.masks import causal
from llm_core.models.cells import (
    AdditiveAttention,
    Cell,
    RecurrentCache,
    check_cell,
    check_text,
    fused_loop,
    run_fused,
    zero_state,
)


@dataclass(frozen=True)
class RecurrentConfig:
    """The sizes of a recurrent language model: V, D of the embedding, N of the state, L.

    `cell` is "rnn" or "lstm". With `attention` each position also reads all states up to its own.

    Raises:
        ValueError: a size is below 1, there is no such cell, or dropout is outside 0 ... 1.
    """

    vocab_size: int
    d_model: int
    d_hidden: int
    n_layers: int = 1
    cell: Cell = "lstm"
    attention: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, d_model=self.d_model, d_hidden=self.d_hidden, n_layers=self.n_layers)
        check_cell(self.cell)
        check_shares(dropout=self.dropout)


class RecurrentLM(nn.Module):
    """A recurrent language model, ids (B, T) -> logits (B, T, V), on torch's fused loop.

    With attention, what a position reads from the states so far joins its own: tanh(W [state, read]), before the head
    (as in Daniluk et al. 2017, there over a window of states).

    Weights are drawn from torch's global generator (`torch.manual_seed`).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        D, N = config.d_model, config.d_hidden
        self.embedding = TokenEmbedding(config.vocab_size, D)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = fused_loop(config.cell, D, N, config.n_layers, config.dropout)
        if config.attention:
            self.attention = AdditiveAttention(N, N, N)
            self.join = nn.Linear(2 * N, N)
        self.head = nn.Linear(N, config.vocab_size)

    def forward(self, ids: Int[Tensor, "B T"], cache: RecurrentCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position.

        With a cache, `ids` continue what it holds, and it holds them too afterwards.

        Raises:
            ValueError: there is no id, an id is no token, or the cache was made for another batch.
        """
        hidden, _ = self._run(ids, cache)
        return self.head(self.dropout(hidden))

    def attention_weights(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T T"]:
        """How much each position reads from each state; every row sums to one.

        Raises:
            ValueError: the model has no attention.
        """
        _, weights = self._run(ids, None)
        if weights is None:
            raise ValueError("this model has no attention: build it with RecurrentConfig(..., attention=True)")
        return weights

    @property
    def context(self) -> int:
        """The longest text, in tokens: a recurrent model has no limit."""
        return sys.maxsize

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.config.vocab_size

    def new_cache(self, batch: int, capacity: int | None = None) -> RecurrentCache:
        """The state before the first token, for `batch` texts. It takes any number of tokens, whatever the capacity."""
        config, weight = self.config, self.embedding.weight
        state = zero_state(config.cell, config.n_layers, batch, config.d_hidden, like=weight)
        return RecurrentCache(state, weight.new_zeros(batch, 0, config.d_hidden) if config.attention else None)

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _run(
        self, ids: Int[Tensor, "B T"], cache: RecurrentCache | None
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B T S"] | None]:
        """What the head reads, and the attention weights."""
        check_text(ids, cache)
        x = self.dropout(self.embedding(ids))
        hidden, state = run_fused(self.recurrent, x, None if cache is None else cache.state)
        weights = None
        states = hidden
        if self.config.attention:
            if cache is not None and cache.states is not None:
                states = torch.cat([cache.states, hidden], dim=1)
            mask = causal(hidden.shape[1], states.shape[1], device=ids.device)
            read, weights = self.attention(hidden, states, mask)
            hidden = self.join(torch.cat([hidden, read], dim=-1)).tanh()
        if cache is not None:
            cache.advance(state, ids.shape[1])
            if self.config.attention:
                cache.states = states.detach()
        return hidden, weights
