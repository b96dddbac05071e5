"""Positions: attention alone cannot tell word order; these tell it.

Four ways, in the order they were published:

    SinusoidalPositions   added to the embeddings, computed     (Vaswani et al. 2017, section 3.5)
    LearnedPositions      added to the embeddings, a table      (Gehring et al. 2017; GPT-2, BERT)
    Rope                  turns queries and keys by their place (Su et al. 2021)
    Alibi                 lowers the scores with the distance   (Press et al. 2022)

The first two are called as `positions(x, start)`, as is `Rope` (on queries and keys); `Alibi` as
`alibi(T, S)`. `start` is the position of the first token of x: what a cache holds already.

Taught in chapters/03_algorithms/06_three_sentences (the sinusoidal one) and, once it is written, in
03_algorithms/03_positional_encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoidal(T: int, D: int, *, start: int = 0, base: float = 10_000.0) -> Float[Tensor, "T D"]:
    """The table of the 2017 paper: sines at even and cosines at odd columns, ever slower to the right.

    table[p, 2i] = sin(p / base^(2i / D)), table[p, 2i + 1] = cos(p / base^(2i / D)).

    Raises:
        ValueError: D is odd.
    """
    if D % 2:
        raise ValueError(f"sines and cosines come in pairs, so the width must be even: got D={D}")
    positions = torch.arange(start, start + T, dtype=torch.float64)
    angles = positions[:, None] * _inverse_frequencies(D, base)  # (T, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(torch.get_default_dtype())


class SinusoidalPositions(nn.Module):
    """Adds `sinusoidal` to the embeddings. No weights, any length."""

    table: Tensor

    def __init__(self, d_model: int, context: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal(context, d_model, base=base), persistent=False)

    def forward(self, x: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T D"]:
        """x plus the rows `start` ... `start + T` of the table."""
        _check_room(x.shape[1], start, self.table.shape[0])
        return x + self.table[start : start + x.shape[1]].to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position, up to `context` of them."""

    def __init__(self, d_model: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context, d_model)

    def forward(self, x: Float[Tensor, "B T D"], start: int | Int[Tensor, "B"] = 0) -> Float[Tensor, "B T D"]:
        """x plus the vectors of the positions `start` ... `start + T`; `start` may differ from row to row.

        A position below zero is padding, which nothing reads: it gets the vector of position 0.
        """
        T = x.shape[1]
        if isinstance(start, int):
            _check_room(T, start, self.embedding.num_embeddings)
            return x + self.embedding(torch.arange(start, start + T, device=x.device))
        _check_room(T, int(start.max()), self.embedding.num_embeddings)
        positions = start[:, None] + torch.arange(T, device=x.device)
        return x + self.embedding(positions.clamp(min=0))


def rotate_halves(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "T E2"], sin: Float[Tensor, "T E2"]
) -> Float[Tensor, "*batch T E"]:
    """Turn the points (column i, column i + E/2): the pairs of GPT-NeoX, and of Llama's weights in transformers."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotate_neighbours(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "T E2"], sin: Float[Tensor, "T E2"]
) -> Float[Tensor, "*batch T E"]:
    """Turn the points (column 2i, column 2i + 1): the pairs of the RoPE paper, and of GGUF files."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


class Rope(nn.Module):
    """Rotary position embedding: turns each pair of columns by an angle that grows with the position.

    At position p, pair i is turned by p / base^(2i / E) radians. The score of a turned query with a turned
    key then depends on how far apart they stand, not on where.

    Args:
        d_head: width E of a head; even.
        context: the number of positions to make room for.
        base: the larger, the slower the slowest pair turns.
        turn: which columns form a pair, `rotate_halves` or `rotate_neighbours`. The two differ only in the
            order of the columns, but weights trained with one do not work with the other.

    Raises:
        ValueError: d_head is odd; when called, a position beyond the context.

    Source: Su et al. 2021, section 3.2.2.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        d_head: int,
        context: int,
        *,
        base: float = 10_000.0,
        turn: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate_halves,
    ) -> None:
        super().__init__()
        if d_head % 2:
            raise ValueError(f"RoPE turns pairs of columns, so the width of a head must be even: got d_head={d_head}")
        angles = torch.arange(context, dtype=torch.float64)[:, None] * _inverse_frequencies(d_head, base)
        # Sines and cosines rather than angles: a model cast to bfloat16 would round an angle of 1000 by several.
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.get_default_dtype()), persistent=False)
        self.turn = turn

    def forward(self, x: Float[Tensor, "*batch T E"], start: int = 0) -> Float[Tensor, "*batch T E"]:
        """x (queries or keys), turned as positions `start` ... `start + T`."""
        T = x.shape[-2]
        _check_room(T, start, self.cos.shape[0])
        return self.turn(x, self.cos[start : start + T].to(x.dtype), self.sin[start : start + T].to(x.dtype))


def alibi_slopes(n_heads: int) -> Float[Tensor, "H"]:
    """How steeply each head's scores fall with the distance.

    For H a power of two: 2^(-8/H), 2^(-16/H), ..., 2^-8. Else those of the power of two below H, and then
    every other one of those of the power of two above, as in the paper's own code.
    """

    def powers(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(n_heads))
    return torch.tensor((powers(below) + powers(2 * below)[0::2])[:n_heads])


class Alibi(nn.Module):
    """Attention with linear biases: takes slope x distance off each score, so that the near is read more.

    Raises:
        ValueError: there is no head.

    Source: Press et al. 2022, section 3.
    """

    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        if n_heads < 1:
            raise ValueError(f"ALiBi needs at least one head: got n_heads={n_heads}")
        self.register_buffer("slopes", alibi_slopes(n_heads), persistent=False)

    def forward(self, T: int, S: int) -> Float[Tensor, "H T S"]:
        """The bias of the last T of S positions; keys after the query get none, they are the causal mask's part."""
        queries = torch.arange(S - T, S, device=self.slopes.device)
        keys = torch.arange(S, device=self.slopes.device)
        distance = (queries[:, None] - keys).clamp(min=0)
        return -self.slopes[:, None, None] * distance


def _inverse_frequencies(D: int, base: float) -> Float[Tensor, "pairs"]:
    """base^(-2i / D) for i = 0 ... D/2, in radians a position. In float64, or far positions come out wrong."""
    return base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)


def _check_room(T: int, start: int, context: int) -> None:
    if start + T > context:
        raise ValueError(
            f"positions {start} to {start + T - 1} do not fit a table of {context}: "
            f"shorten the text by {start + T - context} tokens or build the model with a longer context"
        )
