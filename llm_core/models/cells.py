"""Recurrent cells: one state, carried from token to token, has to hold all that was read.

    RNN     h' = tanh(x W_x + h W_h + b)

    LSTM    i, f, o = sigmoid(...), g = tanh(...)     three gates and a proposal, each from x W_x + h W_h + b
            c' = f * c + i * g                        the cell forgets, and takes in
            h' = o * tanh(c')                         what it shows

`rnn_cell` and `lstm_cell` are the definitions, `Recurrent` loops them over positions and layers. The models run torch's
fused loop (`fused_loop`), which a test holds equal to it. Additive attention lets a step look at more than the last
state, and weigh the states anew each time.

What a model keeps between two calls is a `RecurrentCache`. It does not grow with the text, unless there is attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.checks import check_sizes
from llm_core.layers.attention import softmax

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
        check_cell(cell)
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
            state = zero_state(self.cell, self.n_layers, x.shape[0], self.d_hidden, like=x)
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


def fused_loop(cell: Cell, d_input: int, d_hidden: int, n_layers: int, dropout: float) -> nn.RNN | nn.LSTM:
    """torch's loop. The forget gates of an LSTM start open (bias 1), so that it remembers before it has learned to."""
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell]
    # torch drops out between layers, and warns where there is nothing between them.
    loop = kind(d_input, d_hidden, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)
    if cell == "lstm":
        for name, bias in loop.named_parameters():
            if name.startswith("bias"):  # there are two, which are added
                nn.init.constant_(bias[d_hidden : 2 * d_hidden], 1.0 if name.startswith("bias_ih") else 0.0)
    return loop


def run_fused(
    loop: nn.RNN | nn.LSTM, x: Float[Tensor, "B T D"], state: State | None
) -> tuple[Float[Tensor, "B T N"], State]:
    """torch's loop with the state as a tuple; its RNN wants a tensor alone."""
    if state is None:
        output, last = loop(x)
    else:
        output, last = loop(x, state[0] if isinstance(loop, nn.RNN) else state)
    return output, as_tuple(last)


def as_tuple(state: Tensor | Sequence[Tensor]) -> State:
    """A state as torch gives it, always as a tuple."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def zero_state(cell: Cell, n_layers: int, batch: int, d_hidden: int, *, like: Tensor) -> State:
    """The state before the first token, on the device and of the type of `like`."""
    return tuple(like.new_zeros(n_layers, batch, d_hidden) for _ in range({"rnn": 1, "lstm": 2}[cell]))


def check_text(ids: Tensor, cache: RecurrentCache | None) -> None:
    """Refuse a text without a token, and a cache of another batch, with a ValueError."""
    if ids.shape[1] < 1:
        raise ValueError("the text is empty: give at least one token, a start token for one")
    if cache is not None and cache.batch != ids.shape[0]:
        raise ValueError(f"the state is that of {cache.batch} texts: got a batch of {ids.shape[0]}")


def check_cell(cell: str) -> None:
    """Refuse what is neither "rnn" nor "lstm" with a ValueError."""
    if cell not in ("rnn", "lstm"):
        raise ValueError(f"the cell is 'rnn' or 'lstm': got {cell!r}")
