"""Positions: attention alone cannot tell word order; these tell it.

Four ways, in the order they were published:

    SinusoidalPositions   added to the embeddings, computed     (Vaswani et al. 2017, section 3.5)
    LearnedPositions      added to the embeddings, a table      (Gehring et al. 2017; GPT-2, BERT)
    Rope                  turns queries and keys by their place (Su et al. 2021); `PartialRope`, a part of their columns
    Alibi                 lowers the scores with the distance   (Press et al. 2022)

The first two are called as `positions(x, start)`, as is `Rope` (on queries and keys); `Alibi` as
`alibi(T, S)`. `start` is the position of the first token of x: what a cache holds already.

A model that learned with RoPE reads texts longer than it was trained on if its pairs turn more slowly. Which pairs,
and by how much, is a `RopeScaling` that `Rope` is given:

    LinearScaling   all pairs, by the same factor             (Chen et al. 2023)
    YarnScaling     the slow ones; a ramp over the pairs      (Peng et al. 2023)
    Llama3Scaling   the slow ones; a ramp over the rotations  (Llama 3.1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
        self.base = base

    def reset_tables(self) -> None:
        """Compute the table anew, on torch's default device: for a model that was made on the meta device."""
        context, d_model = self.table.shape
        self.table = sinusoidal(context, d_model, base=self.base)

    def forward(self, x: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T D"]:
        """x plus the rows `start` ... `start + T` of the table."""
        _check_room(x.shape[1], start, self.table.shape[0])
        return x + self.table[start : start + x.shape[1]].to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position, up to `context` of them."""

    def __init__(self, d_model: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context, d_model)

    def forward(self, x: Float[Tensor, "B T D"], start: int | Int[Tensor, "#B"] = 0) -> Float[Tensor, "B T D"]:
        """x plus the vectors of the positions `start` ... `start + T`; `start` may differ from row to row.

        A position below zero is padding, which nothing reads: it gets the vector of position 0.
        """
        T = x.shape[1]
        if isinstance(start, int):
            _check_room(T, start, self.embedding.num_embeddings)
            return x + self.embedding(torch.arange(start, start + T, device=x.device))
        positions = start[:, None] + torch.arange(T, device=x.device)
        try:  # rather than to look first: a GPU would have to stop for it
            return x + self.embedding(positions.clamp(min=0))
        except IndexError:
            _check_room(T, int(start.max()), self.embedding.num_embeddings)
            raise


def rotate_halves(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "... T E2"], sin: Float[Tensor, "... T E2"]
) -> Float[Tensor, "*batch T E"]:
    """Turn the points (column i, column i + E/2): the pairs of GPT-NeoX, and of Llama's weights in transformers."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotate_neighbours(
    x: Float[Tensor, "*batch T E"], cos: Float[Tensor, "... T E2"], sin: Float[Tensor, "... T E2"]
) -> Float[Tensor, "*batch T E"]:
    """Turn the points (column 2i, column 2i + 1): the pairs of the RoPE paper, and of GGUF files."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


@runtime_checkable
class RopeScaling(Protocol):
    """How RoPE is changed for texts longer than those of the training."""

    @property
    def amplitude(self) -> float:
        """What sines and cosines are multiplied with; the scores grow by its square."""

    def __call__(self, frequencies: Tensor) -> Tensor:
        """Radians a position for each pair, the fastest first -> the same, slowed down."""


@dataclass(frozen=True)
class LinearScaling:
    """Every pair turns `factor` times slower: position 4000 looks as position 1000 did, for a factor of 4.

    Raises:
        ValueError: the factor is below 1.

    Source: Chen et al. 2023 (Position Interpolation).

    >>> LinearScaling(4.0)(torch.tensor([1.0, 0.5]))
    tensor([0.2500, 0.1250])
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def amplitude(self) -> float:
        """1: the length of queries and keys is kept."""
        return 1.0

    def __call__(self, frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """All of them, divided by the factor."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slows down the pairs that turn less than once or so in the original context, and leaves the fast ones alone.

    A pair's share s of the old frequency follows from how often it turns within `original_context`: at
    `low_frequency_factor` turns or fewer s = 0 (slower by `factor`), at `high_frequency_factor` or more s = 1
    (as it was), and linear between.

    Raises:
        ValueError: the factor is below 1, there is no original context, or the second bound is not above the first.

    Source: the reference code of Llama 3.1 (Grattafiori et al. 2024).
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_original(self.original_context)
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                "high_frequency_factor must be above low_frequency_factor, and both above 0: got "
                f"low_frequency_factor={self.low_frequency_factor}, high_frequency_factor={self.high_frequency_factor}"
            )

    @property
    def amplitude(self) -> float:
        """1: the length of queries and keys is kept."""
        return 1.0

    def __call__(self, frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """The slow ones divided by the factor, the fast ones as they are."""
        turns = self.original_context * frequencies / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return share * frequencies + (1 - share) * frequencies / self.factor


@dataclass(frozen=True)
class YarnScaling:
    """Slows down the slow pairs, leaves the fast ones alone, and sharpens the attention a little.

    Pairs that turn `fast` times or more within `original_context` stay as they are, those that turn `slow` times or
    fewer are divided by `factor`; in between the share is linear in the number of the pair. (The paper's formula is
    linear in the turns; its code, and every checkpoint trained with it, is linear in the pair.)

    Args:
        factor: how many times longer the texts are.
        original_context: the longest text of the training before.
        fast, slow: turns within the original context.
        attention_factor: what sines and cosines are multiplied with; 0.1 ln(factor) + 1 unless given.

    Raises:
        ValueError: the factor is below 1, there is no original context, or fast is not above slow; when called, there
            is a single pair, so that none can be slower than another.

    Source: Peng et al. 2023, sections 3.2 to 3.4.
    """

    factor: float
    original_context: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_original(self.original_context)
        if not 0 < self.slow < self.fast:
            raise ValueError(f"fast must be above slow, and both above 0: got fast={self.fast}, slow={self.slow}")
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ValueError(f"attention_factor must be above 0: got {self.attention_factor}")

    @property
    def amplitude(self) -> float:
        """The attention factor."""
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def __call__(self, frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """The slow ones divided by the factor, the fast ones as they are."""
        n = frequencies.shape[0]
        if n < 2:
            raise ValueError(f"YaRN tells slow pairs from fast ones, so d_head must be at least 4: got {2 * n}")
        # From the fastest pair on, each is slower than the one before by the same step, as a logarithm.
        fastest = float(frequencies[0])
        step = math.log(fastest / float(frequencies[1]))

        def pair_that_turns(turns: float) -> float:
            """The number of that pair: a fraction, below 0 or beyond the last pair if there is none."""
            return math.log(self.original_context * fastest / (2 * math.pi * turns)) / step

        first = max(math.floor(pair_that_turns(self.fast)), 0)
        # 2n - 1, not n - 1: the published code bounds the pair by the number of columns, and weights learned with it.
        last = min(math.ceil(pair_that_turns(self.slow)), 2 * n - 1)
        # Where both meet, a step in place of the ramp.
        ramp = (torch.arange(n, dtype=frequencies.dtype) - first) / max(last - first, 1e-3)
        slowed = ramp.clamp(0, 1)
        return slowed * frequencies / self.factor + (1 - slowed) * frequencies


@dataclass(frozen=True)
class PairScaling:
    """Each pair turns slower by a factor of its own; `amplitude` multiplies sines and cosines.

    >>> PairScaling((1.0, 4.0))(torch.tensor([1.0, 0.5]))
    tensor([1.0000, 0.1250])
    """

    factors: tuple[float, ...]
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if not all(factor > 0 for factor in (*self.factors, self.amplitude)):
            raise ValueError(f"factors and amplitude must be above 0: got {self.factors}, amplitude={self.amplitude}")

    def __call__(self, frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Each divided by its factor.

        Raises:
            ValueError: there is not one factor for each.
        """
        if len(self.factors) != len(frequencies):
            raise ValueError(f"there must be one factor for each of {len(frequencies)} pairs: got {len(self.factors)}")
        return frequencies / torch.tensor(self.factors, dtype=frequencies.dtype)


@dataclass(frozen=True)
class NtkScaling:
    """The slowest pair turns `factor` times slower, the fastest as it was; between them by powers of the factor.

    The same as a larger base. Source: the post of "bloc97" of 2023 that YaRN's paper (section 3.1) works out.

    Raises:
        ValueError: the factor is below 1; when called, there is a single pair.

    >>> NtkScaling(4.0)(torch.tensor([1.0, 1.0, 1.0]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def amplitude(self) -> float:
        """1: the length of queries and keys is kept."""
        return 1.0

    def __call__(self, frequencies: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Pair i of n divided by factor^(i / (n - 1))."""
        n = frequencies.shape[0]
        if n < 2:
            raise ValueError(f"the slowest pair must not be the fastest, so d_head must be at least 4: got {2 * n}")
        return frequencies * self.factor ** -(torch.arange(n, dtype=frequencies.dtype) / (n - 1))


@runtime_checkable
class LengthScaling(Protocol):
    """A scaling that depends on how long the text is.

    The text grows while it is written, and the scaling with it. Keys that lie in a cache stay as they were turned: each
    step is turned by the length that the text has then, as transformers does it. So a text read in one pass and the
    same text read token by token may differ once the text is longer than `original_context`.
    """

    @property
    def original_context(self) -> int:
        """The longest text of the training before: up to there nothing depends on the length."""

    def at(self, length: int) -> RopeScaling | None:
        """The scaling for a text of so many tokens; None leaves the pairs as they are."""


@dataclass(frozen=True)
class DynamicScaling:
    """NTK scaling by just as much as the text needs: nothing up to the original context, then ever more.

    Raises:
        ValueError: the factor is below 1, or there is no original context.

    >>> DynamicScaling(2.0, original_context=100).at(200)
    NtkScaling(factor=3.0)
    """

    factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_original(self.original_context)

    def at(self, length: int) -> NtkScaling | None:
        """The slowest pair turns slower by factor * length / original context - (factor - 1)."""
        if length <= self.original_context:
            return None
        return NtkScaling(self.factor * length / self.original_context - (self.factor - 1))


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE: a factor for each pair, found by search; one set for texts within the original context, one beyond.

    Raises:
        ValueError: a factor is not above 0, the two sets are not of one length, or there is no original context.

    Source: Ding et al. 2024.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_original(self.original_context)
        if len(self.short) != len(self.long):
            raise ValueError(f"short and long must be of one length: got {len(self.short)} and {len(self.long)}")
        self.at(0), self.at(self.original_context + 1)

    def at(self, length: int) -> PairScaling:
        """The factors for a text of so many tokens."""
        return PairScaling(self.short if length <= self.original_context else self.long, self.attention_factor)


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
        scaling: slows the pairs down for texts longer than those of the training. None: as they are. With a
            `LengthScaling` there is no table (`cos` and `sin` have no rows), as the angles depend on the text's length.

    Raises:
        ValueError: d_head is odd; when called, a position below 0 or beyond the context.

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
        scaling: RopeScaling | LengthScaling | None = None,
    ) -> None:
        super().__init__()
        if d_head % 2:
            raise ValueError(f"RoPE turns pairs of columns, so the width of a head must be even: got d_head={d_head}")
        self.d_head, self.context, self.base, self.turn, self.scaling = d_head, context, base, turn, scaling
        self.by_length = scaling if isinstance(scaling, LengthScaling) else None
        rows = context if self.by_length is None else 0
        # Sines and cosines rather than angles: a model cast to bfloat16 would round an angle of 1000 by several.
        self.register_buffer("cos", torch.empty(rows, d_head // 2), persistent=False)
        self.register_buffer("sin", torch.empty(rows, d_head // 2), persistent=False)
        self.reset_tables()

    def reset_tables(self) -> None:
        """Compute the tables anew, on torch's default device: for a model that was made on the meta device."""
        scaling = self.scaling
        if isinstance(scaling, LengthScaling):
            scaling = scaling.at(0)  # there are no rows, but a scaling that does not fit should fail here
        frequencies, amplitude = self._frequencies(scaling)
        device = torch.get_default_device()
        if device.type == "meta":
            return  # there is nothing to compute, and torch would import 800 modules to find that out
        self.cos, self.sin = _tables(torch.arange(self.cos.shape[0], device=device), frequencies, amplitude)

    def forward(
        self,
        x: Float[Tensor, "*batch T E"],
        start: int | Int[Tensor, ""] = 0,
        *,
        positions: Int[Tensor, " T"] | Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "*batch T E"]:
        """x (queries or keys), turned as positions `start` ... `start + T`, or as the `positions` that are given.

        Positions (B, T) are those of each row of a batch: x is then (B, T, E) or (B, H, T, E). Of a `start` that is a
        tensor no number is looked at, so that a step can be recorded.

        Raises:
            ValueError: a position is outside the context, or the scaling depends on a length that is not looked at.
        """
        T = x.shape[-2]
        if isinstance(start, Tensor):
            if self.by_length is not None:
                raise ValueError(
                    f"{type(self.by_length).__name__} depends on how long the text is, and of a start that is a tensor "
                    "no number is looked at: give a number, or generate with a cache that grows"
                )
            rows: Tensor | slice = start + torch.arange(T, device=start.device)
            return self.turn(x, self.cos[rows].to(x.dtype), self.sin[rows].to(x.dtype))
        rows, length = slice(start, start + T), start + T
        if positions is None:
            _check_room(T, start, self.context)
        else:
            rows, length = positions, _check_positions(positions, x, self.context)
        if self.by_length is not None:
            if positions is None:
                positions = torch.arange(start, length, device=x.device)
            cos, sin = _tables(positions, *self._frequencies(self.by_length.at(length)))
        else:
            cos, sin = self.cos[rows], self.sin[rows]
        if cos.ndim == 3 and x.ndim == 4:
            cos, sin = cos[:, None], sin[:, None]  # the same for all heads
        return self.turn(x, cos.to(x.dtype), sin.to(x.dtype))

    def _frequencies(self, scaling: RopeScaling | None) -> tuple[Float[Tensor, " E2"], float]:
        """The angle of each pair at position 1, and what cosines and sines are multiplied by."""
        with torch.device("cpu"):  # a scaling looks at the numbers, of which the meta device has none
            frequencies = _inverse_frequencies(self.d_head, self.base)
            return (frequencies, 1.0) if scaling is None else (scaling(frequencies), scaling.amplitude)


class PartialRope(nn.Module):
    """Turns the first columns of each head with `rope`, as many as it is made for; the others know no position.

    Raises:
        ValueError: when called, heads are narrower than the rope, or see `Rope`.

    Source: Wang and Komatsuzaki 2021 (GPT-J, which turned a quarter of each head).
    """

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope = rope

    def forward(
        self,
        x: Float[Tensor, "*batch T E"],
        start: int | Int[Tensor, ""] = 0,
        *,
        positions: Int[Tensor, " T"] | Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "*batch T E"]:
        """x, its first columns turned; arguments as those of `Rope`."""
        turned, kept = x.tensor_split([self.rope.d_head], dim=-1)
        return torch.cat([self.rope(turned, start, positions=positions), kept], dim=-1)


def _tables(
    positions: Int[Tensor, "*batch T"], frequencies: Float[Tensor, " E2"], amplitude: float
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of these positions, (..., T, E/2) each."""
    angles = positions[..., None].double() * frequencies.to(positions.device)
    dtype = torch.get_default_dtype()
    return (amplitude * angles.cos()).to(dtype), (amplitude * angles.sin()).to(dtype)


def alibi_slopes(n_heads: int) -> Float[Tensor, " H"]:
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

    def reset_tables(self) -> None:
        """Compute the slopes anew, on torch's default device: for a model that was made on the meta device."""
        self.slopes = alibi_slopes(len(self.slopes))

    def forward(self, T: int, S: int) -> Float[Tensor, "H T S"]:
        """The bias of the last T of S positions; keys after the query get none, they are the causal mask's part."""
        queries = torch.arange(S - T, S, device=self.slopes.device)
        keys = torch.arange(S, device=self.slopes.device)
        distance = (queries[:, None] - keys).clamp(min=0)
        return -self.slopes[:, None, None] * distance


def _inverse_frequencies(D: int, base: float) -> Float[Tensor, " pairs"]:
    """base^(-2i / D) for i = 0 ... D/2, in radians a position. In float64, or far positions come out wrong."""
    return base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)


def _check_factor(factor: float) -> None:
    if not factor >= 1:
        raise ValueError(f"a longer text needs slower pairs, so the factor is at least 1: got factor={factor}")


def _check_original(context: int) -> None:
    if context < 1:
        raise ValueError(f"the original context holds at least one token: got original_context={context}")


def _check_room(T: int, start: int, context: int) -> None:
    if start + T > context:
        raise ValueError(
            f"positions {start} to {start + T - 1} do not fit a table of {context}: "
            f"shorten the text by {start + T - context} tokens or build the model with a longer context"
        )


def _check_positions(positions: Tensor, x: Tensor, context: int) -> int:
    """Hold positions to x and to the context; the length of the text that they reach to."""
    if (
        positions.shape[-1:] != x.shape[-2:-1]
        or positions.ndim > 2
        or (positions.ndim == 2 and (x.ndim < 3 or positions.shape[0] not in (1, x.shape[0])))
    ):
        raise ValueError(
            f"positions must be (T,) or (B, T), as x {tuple(x.shape)} has it: got positions {tuple(positions.shape)}"
        )
    if positions.dtype.is_floating_point or positions.dtype == torch.bool:
        raise ValueError(f"positions must be whole numbers: got {positions.dtype}")
    if positions.numel() == 0:
        return 0
    first, last = int(positions.min()), int(positions.max())
    if first < 0 or last >= context:
        raise ValueError(f"positions must lie in 0 ... {context - 1}: got {first} to {last}")
    return last + 1
