"""Recurrent models: one state, carried from token to token, has to hold all that was read.

    RNN     h' = tanh(x W_x + h W_h + b)

    LSTM    i, f, o = sigmoid(...), g = tanh(...)     three gates and a proposal, each from x W_x + h W_h + b
            c' = f * c + i * g                        the cell forgets, and takes in
            h' = o * tanh(c')                         what it shows

`rnn_cell` and `lstm_cell` are the definitions, `Recurrent` loops them over positions and layers, and the models run
torch's fused loop, which a test holds equal to it.

`RecurrentLM` reads ids (B, T) and gives logits (B, T, V). `SequenceToSequence` reads a source and writes a target.
Without attention the encoder's last state is all that the decoder learns of the source, however long it is; with
attention each step of the decoder looks at every state of the encoder, and weighs them anew.

What a model keeps between two calls is a `RecurrentCache`. It does not grow with the text, unless there is attention.

Taught, once it is written, in 01_background/04_recurrent_models_and_attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llm_core.checks import check_shares, check_sizes
from llm_core.layers.attention import softmax
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.masks import causal

Cell = Literal["rnn", "lstm"]
State = tuple[Tensor, ...]  # (h,) of an RNN, (h, c) of an LSTM: (L, B, N) each, N numbers a layer


def rnn_cell(
    x: Float[Tensor, "B D"],
    state: tuple[Float[Tensor, "B N"]],
    weight_input: Float[Tensor, "N D"],
    weight_hidden: Float[Tensor, "N N"],
    bias: Float[Tensor, " N"],
) -> tuple[Float[Tensor, "B N"]]:
    """One step of a simple recurrent network: the new state from the input and the old one.

    Source: Elman 1990.
    """
    (hidden,) = state
    return ((x @ weight_input.T + hidden @ weight_hidden.T + bias).tanh(),)


def lstm_cell(
    x: Float[Tensor, "B D"],
    state: tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]],
    weight_input: Float[Tensor, "N4 D"],
    weight_hidden: Float[Tensor, "N4 N"],
    bias: Float[Tensor, " N4"],
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """One step of a long short-term memory: the new (hidden, cell) from the input and the old ones.

    The weights of input gate, forget gate, proposal and output gate lie one below the other, as in torch.

    Source: Hochreiter and Schmidhuber 1997; the forget gate is that of Gers et al. 2000.
    """
    hidden, cell = state
    gates = x @ weight_input.T + hidden @ weight_hidden.T + bias
    take_in, forget, proposal, show = gates.chunk(4, dim=-1)
    cell = forget.sigmoid() * cell + take_in.sigmoid() * proposal.tanh()
    return show.sigmoid() * cell.tanh(), cell


class Recurrent(nn.Module):
    """L layers of cells, one position after the other: the definition, slow and readable.

    Its weights have the names and shapes of those of `torch.nn.RNN` and `torch.nn.LSTM`, so that each can load the
    other's. torch keeps two biases where one would do; the cell gets their sum.

    Args:
        cell: "rnn" or "lstm".
        d_input: width D of the input.
        d_hidden: width N of the state.
        n_layers: number of layers L; each reads the hidden states of the one below.

    Raises:
        ValueError: a size is below 1, or there is no such cell.
    """

    def __init__(self, cell: Cell, d_input: int, d_hidden: int, n_layers: int = 1) -> None:
        super().__init__()
        _check_cell(cell)
        check_sizes(d_input=d_input, d_hidden=d_hidden, n_layers=n_layers)
        self.cell, self.d_hidden, self.n_layers = cell, d_hidden, n_layers
        rows = {"rnn": 1, "lstm": 4}[cell] * d_hidden
        for i in range(n_layers):
            shapes = {
                "weight_ih": (rows, d_input if i == 0 else d_hidden),
                "weight_hh": (rows, d_hidden),
                "bias_ih": (rows,),
                "bias_hh": (rows,),
            }
            for name, shape in shapes.items():
                weight = torch.empty(shape).uniform_(-(d_hidden**-0.5), d_hidden**-0.5)
                self.register_parameter(f"{name}_l{i}", nn.Parameter(weight))

    def forward(self, x: Float[Tensor, "B T D"], state: State | None = None) -> tuple[Float[Tensor, "B T N"], State]:
        """The hidden states of the last layer, and the state after the last position; the first state is zero."""
        step: Callable[..., State] = rnn_cell if self.cell == "rnn" else lstm_cell
        if state is None:
            state = _zero_state(self.cell, self.n_layers, x.shape[0], self.d_hidden, like=x)
        last: list[State] = []
        for i in range(self.n_layers):
            weight_input, weight_hidden = self.get_parameter(f"weight_ih_l{i}"), self.get_parameter(f"weight_hh_l{i}")
            bias = self.get_parameter(f"bias_ih_l{i}") + self.get_parameter(f"bias_hh_l{i}")
            layer_state: State = tuple(part[i] for part in state)
            hidden = []
            for t in range(x.shape[1]):
                layer_state = step(x[:, t], layer_state, weight_input, weight_hidden, bias)
                hidden.append(layer_state[0])
            x = torch.stack(hidden, dim=1)
            last.append(layer_state)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def additive_attention_weights(
    query: Float[Tensor, "B T A"],
    key: Float[Tensor, "B S A"],
    vector: Float[Tensor, " A"],
    mask: Bool[Tensor, " ..."] | None = None,
) -> Float[Tensor, "B T S"]:
    """How much each query reads from each key: softmax over the keys of vector . tanh(query + key).

    Query and key come projected to one width A. Where `mask`, broadcast to (B, T, S), is False nothing is read; a query
    that may read nothing gets zeros.

    Source: Bahdanau, Cho and Bengio 2015, section 3.1 and appendix A.1.2.
    """
    scores = (query[:, :, None] + key[:, None]).tanh() @ vector
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores)


def additive_attention(
    query: Float[Tensor, "B T A"],
    key: Float[Tensor, "B S A"],
    value: Float[Tensor, "B S N"],
    vector: Float[Tensor, " A"],
    mask: Bool[Tensor, " ..."] | None = None,
) -> Float[Tensor, "B T N"]:
    """The weighted mean of the values that each query reads; arguments are those of `additive_attention_weights`."""
    return additive_attention_weights(query, key, vector, mask) @ value


class AdditiveAttention(nn.Module):
    """Additive attention with its learned projections of query and key, and the vector that scores."""

    def __init__(self, d_query: int, d_key: int, d_attention: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_query, d_attention)
        self.key = nn.Linear(d_key, d_attention, bias=False)  # the query has one, and they are added
        self.vector = nn.Parameter(torch.empty(d_attention).uniform_(-(d_attention**-0.5), d_attention**-0.5))

    def forward(
        self,
        query: Float[Tensor, "B T Q"],
        states: Float[Tensor, "B S N"],
        mask: Bool[Tensor, " ..."] | None = None,
        *,
        key: Float[Tensor, "B S A"] | None = None,
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B T S"]]:
        """What each query reads from the states, and the weights with which it does.

        `key` is `self.key(states)`, for who asks the same states again and again.
        """
        key = self.key(states) if key is None else key
        weights = additive_attention_weights(self.query(query), key, self.vector, mask)
        return weights @ states, weights


class RecurrentCache:
    """What a recurrent model has made of the tokens so far.

    Attributes:
        length: tokens seen so far.
        state: (h,) or (h, c), (L, B, N) each. Cut off from the gradient: with a cache, training goes back to the
            beginning of one call and no further (truncated backpropagation through time).
        states: (B, S, N), what attention reads: the past states of a language model, or those of the encoder. None
            without attention.
        mask: (B, S), which of the encoder's states are real tokens. None for all.
    """

    def __init__(
        self,
        state: State,
        states: Float[Tensor, "B S N"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> None:
        self.state, self.states, self.mask = state, states, mask
        self.length = 0

    @property
    def batch(self) -> int:
        """Number of texts B."""
        return self.state[0].shape[1]

    def advance(self, state: State, tokens: int) -> None:
        """Keep the state after `tokens` more tokens."""
        self.state = tuple(part.detach() for part in state)
        self.length += tokens

    def rewind(self, length: int) -> None:
        """A recurrent state cannot go back: only the length that it has is allowed.

        Raises:
            ValueError: any other length is asked for.
        """
        if length != self.length:
            raise ValueError(
                f"a recurrent state of {self.length} tokens cannot be rewound to {length}: each token overwrites what "
                "was there. Read the text anew into a new cache"
            )

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds; rows may repeat (beam search)."""
        self.state = tuple(part.index_select(1, rows) for part in self.state)
        self.states = None if self.states is None else self.states.index_select(0, rows)
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)


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
        _check_cell(self.cell)
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
        self.recurrent = _fused(config.cell, D, N, config.n_layers, config.dropout)
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
        state = _zero_state(config.cell, config.n_layers, batch, config.d_hidden, like=weight)
        return RecurrentCache(state, weight.new_zeros(batch, 0, config.d_hidden) if config.attention else None)

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _run(
        self, ids: Int[Tensor, "B T"], cache: RecurrentCache | None
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B T S"] | None]:
        """What the head reads, and the attention weights."""
        _check_text(ids, cache)
        x = self.dropout(self.embedding(ids))
        hidden, state = _run_fused(self.recurrent, x, None if cache is None else cache.state)
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
        _check_cell(self.cell)
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
        self.encoder = _fused(config.cell, D, N, config.n_layers, config.dropout)
        self.decoder = _fused(config.cell, D + read, N, config.n_layers, config.dropout)
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
            return RecurrentCache(_as_tuple(last))
        states, _ = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])
        return RecurrentCache(_as_tuple(last), states, real)

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
        _check_text(target, memory)
        x = self.dropout(self.embedding(target))
        state = memory.state
        weights: list[Tensor] = []
        if memory.states is None:
            hidden, state = _run_fused(self.decoder, x, state)
        else:
            # One position at a time: what a step reads depends on the state before it.
            steps = []
            key = self.attention.key(memory.states)
            mask = None if memory.mask is None else memory.mask[:, None]
            for token in x.split(1, dim=1):
                query = state[0][-1][:, None]  # the last layer's
                seen, weight = self.attention(query, memory.states, mask, key=key)
                out, state = _run_fused(self.decoder, torch.cat([token, seen], dim=-1), state)
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


def _fused(cell: Cell, d_input: int, d_hidden: int, n_layers: int, dropout: float) -> nn.RNN | nn.LSTM:
    """torch's loop. The forget gates of an LSTM start open (bias 1), so that it remembers before it has learned to."""
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell]
    # torch drops out between layers, and warns where there is nothing between them.
    loop = kind(d_input, d_hidden, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)
    if cell == "lstm":
        for name, bias in loop.named_parameters():
            if name.startswith("bias"):  # there are two, which are added
                nn.init.constant_(bias[d_hidden : 2 * d_hidden], 1.0 if name.startswith("bias_ih") else 0.0)
    return loop


def _run_fused(
    loop: nn.RNN | nn.LSTM, x: Float[Tensor, "B T D"], state: State | None
) -> tuple[Float[Tensor, "B T N"], State]:
    """torch's loop with the state as a tuple; its RNN wants a tensor alone."""
    if state is None:
        output, last = loop(x)
    else:
        output, last = loop(x, state[0] if isinstance(loop, nn.RNN) else state)
    return output, _as_tuple(last)


def _as_tuple(state: Tensor | Sequence[Tensor]) -> State:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _zero_state(cell: Cell, n_layers: int, batch: int, d_hidden: int, *, like: Tensor) -> State:
    return tuple(like.new_zeros(n_layers, batch, d_hidden) for _ in range({"rnn": 1, "lstm": 2}[cell]))


def _check_text(ids: Tensor, cache: RecurrentCache | None) -> None:
    if ids.shape[1] < 1:
        raise ValueError("the text is empty: give at least one token, a start token for one")
    if cache is not None and cache.batch != ids.shape[0]:
        raise ValueError(f"the state is that of {cache.batch} texts: got a batch of {ids.shape[0]}")


def _check_cell(cell: str) -> None:
    if cell not in ("rnn", "lstm"):
        raise ValueError(f"the cell is 'rnn' or 'lstm': got {cell!r}")
