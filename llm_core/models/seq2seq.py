"""A recurrent encoder and decoder: reads a source and writes a target.

Without attention the encoder's last state is all that the decoder learns of the source, however long it is; with
attention each step of the decoder looks at every state of the encoder, and weighs them anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.embedding import TokenEmbedding
from llm_core.models.cells import (
    AdditiveAttention,
    Cell,
    RecurrentCache,
    as_tuple,
    check_cell,
    check_text,
    fused_loop,
    run_fused,
)


@dataclass(frozen=True)
class SequenceToSequenceConfig:
    """The sizes of an encoder-decoder of LSTMs: V, D of the embedding, N of the states, L of each of the two.

    With `attention` the decoder looks at all states of the encoder, without it at the last alone.

    Raises:
        ValueError: a size is below 1, there is no such cell, pad_id is no token, or dropout is outside 0 ... 1.
    """

    vocab_size: int
    d_model: int
    d_hidden: int
    n_layers: int = 1
    cell: Cell = "lstm"
    attention: bool = True
    pad_id: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(vocab_size=self.vocab_size, d_model=self.d_model, d_hidden=self.d_hidden, n_layers=self.n_layers)
        check_cell(self.cell)
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be a token, 0 ... {self.vocab_size - 1}: got {self.pad_id}")
        check_shares(dropout=self.dropout)


class SequenceToSequence(nn.Module):
    """An encoder and a decoder of LSTMs, (source ids, target ids) -> logits (B, T, V) of the token after each position.

    The decoder starts from the encoder's last state (Sutskever et al. 2014). With attention, each step first asks, with
    the state before it, what to read from the encoder's states, and takes that in beside the token; the head sees it
    too (Bahdanau, Cho and Bengio 2015, whose encoder reads in both directions and whose cell is a gated unit). Encoder
    and decoder share one embedding table. The source is padded with `pad_id` on the right.
    """

    def __init__(self, config: SequenceToSequenceConfig) -> None:
        super().__init__()
        self.config = config
        D, N = config.d_model, config.d_hidden
        read = N if config.attention else 0
        self.embedding = TokenEmbedding(config.vocab_size, D)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = fused_loop(config.cell, D, N, config.n_layers, config.dropout)
        self.decoder = fused_loop(config.cell, D + read, N, config.n_layers, config.dropout)
        if config.attention:
            self.attention = AdditiveAttention(N, N, N)
        self.head = nn.Linear(N + read, config.vocab_size)

    def forward(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position of the target, given the whole source.

        Raises:
            ValueError: a source has no token or is not padded on the right, the target is empty, an id is no token, or
                there are not as many sources as targets.
        """
        return self.decode(target, self.encode(source))

    def encode(self, source: Int[Tensor, "B S"]) -> RecurrentCache:
        """The source read: the state to start the decoder from and, for attention, all states (B, S, N)."""
        real = source != self.config.pad_id
        lengths = real.sum(dim=1)
        padded_right = (real == (torch.arange(source.shape[1], device=source.device) < lengths[:, None])).all()
        if source.numel() == 0 or not padded_right or lengths.min() < 1:
            raise ValueError(
                f"each source needs a token, and pad_id={self.config.pad_id} after its last token only: "
                f"got sources {tuple(source.shape)} with {lengths.tolist()} real tokens"
                + ("" if padded_right else ", some of them after padding")
            )
        x = self.dropout(self.embedding(source))
        # Packed: the loop of each row ends with its last real token, and so does its last state.
        packed, last = self.encoder(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        if not self.config.attention:
            return RecurrentCache(as_tuple(last))
        states, _ = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])
        return RecurrentCache(as_tuple(last), states, real)

    def decode(
        self, target: Int[Tensor, "B T"], read: RecurrentCache, cache: RecurrentCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits after each target position, from what `encode` gave.

        With a cache, `target` continues what it holds, and the source is the cache's own: its rows may have moved.
        """
        return self._decode(target, read, cache)[0]

    def attention_weights(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T S"]:
        """How much each target position reads from each source position; every row sums to one, padding gets zero.

        Raises:
            ValueError: the model has no attention.
        """
        if not self.config.attention:
            raise ValueError("this model has no attention: build it with attention=True")
        return torch.cat(self._decode(target, self.encode(source), None)[1], dim=1)

    def given(self, source: Int[Tensor, "B S"]) -> GivenSource:
        """The decoder with its source read: a language model of the target, which `generation` can run."""
        return GivenSource(self, source)

    def n_parameters(self) -> int:
        """Number of learned numbers; the shared embedding table counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _decode(
        self, target: Int[Tensor, "B T"], read: RecurrentCache, cache: RecurrentCache | None
    ) -> tuple[Float[Tensor, "B T V"], list[Float[Tensor, "B 1 S"]]]:
        """Logits, and the attention weights of each step (none without attention)."""
        memory = read if cache is None else cache
        check_text(target, memory)
        x = self.dropout(self.embedding(target))
        state = memory.state
        weights: list[Tensor] = []
        if memory.states is None:
            hidden, state = run_fused(self.decoder, x, state)
        else:
            # One position at a time: what a step reads depends on the state before it.
            steps = []
            key = self.attention.key(memory.states)
            mask = None if memory.mask is None else memory.mask[:, None]
            for token in x.split(1, dim=1):
                query = state[0][-1][:, None]  # the last layer's
                seen, weight = self.attention(query, memory.states, mask, key=key)
                out, state = run_fused(self.decoder, torch.cat([token, seen], dim=-1), state)
                steps.append(torch.cat([out, seen], dim=-1))
                weights.append(weight)
            hidden = torch.cat(steps, dim=1)
        if cache is not None:
            cache.advance(state, target.shape[1])
        return self.head(self.dropout(hidden)), weights


class GivenSource:
    """A decoder whose source has been read: target ids (B, T) -> logits (B, T, V)."""

    def __init__(self, model: SequenceToSequence, source: Int[Tensor, "B S"]) -> None:
        self.model = model
        self.read = model.encode(source)

    def __call__(self, target: Int[Tensor, "B T"], cache: RecurrentCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits after each target position."""
        return self.model.decode(target, self.read, cache)

    @property
    def context(self) -> int:
        """The longest target, in tokens: a recurrent model has no limit."""
        return sys.maxsize

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.model.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    def new_cache(self, batch: int, capacity: int | None = None) -> RecurrentCache:
        """The state before the first target token; there are as many targets as sources, whatever the capacity.

        Raises:
            ValueError: the numbers of targets and sources differ.
        """
        if batch != self.read.batch:
            raise ValueError(f"each source has one target: got {self.read.batch} sources and a batch of {batch}")
        return RecurrentCache(self.read.state, self.read.states, self.read.mask)
