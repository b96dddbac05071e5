"""Checks `rotate(x, positions, base)` and `alibi_bias(n_heads, T, S)`; complex numbers and NumPy have the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report

ROTATE = (
    Mistake(
        "positions_ignored",
        "The argument `positions` is not used: the tokens are counted from 0.",
        "With a cache a new token arrives alone, as a text of length 1, and still has all those before it. Take the "
        "angles from `positions`.",
        ({"place": "from zero"},),
    ),
    Mistake(
        "positions_along_heads",
        "The angle depends on the head, not on the token.",
        "x is (B, H, T, E). Angles of shape (T, E/2) line up with the last two dimensions by themselves: no "
        "`[:, None]` is needed, and `x.shape[1]` is the number of heads.",
        ({"place": "head"}, {"place": "given, heads"}),
    ),
    Mistake(
        "not_turned",
        "Nothing is turned: x comes back as it was.",
        "Look whether the turned halves are what is returned.",
        ({"turn": "none"},),
    ),
    Mistake(
        "pairs_are_neighbours",
        "The pairs are neighbouring columns, 2i and 2i + 1.",
        "That is the paper's convention. Here, as in Llama's weights, column i goes with column i + E/2.",
        ({"pairs": "neighbours"},),
    ),
    Mistake(
        "angles_do_not_fit_pairs",
        "The columns are paired in one way and the angles are laid out in the other, so the two columns of a pair "
        "are turned by different angles.",
        "For pairs of halves the angles are theta_0 ... theta_last twice over, not each of them twice.",
        ({"pairs": "halves, neighbours' angles"}, {"pairs": "neighbours, halves' angles"}),
    ),
    Mistake(
        "turned_backwards",
        "The pairs are turned the other way round.",
        "(a, b) becomes (a cos - b sin, a sin + b cos). Scores would not change if queries and keys were both turned "
        "backwards, but weights that were trained with one direction do not work with the other.",
        ({"sign": -1.0},),
    ),
    Mistake(
        "exponent_positive",
        "The pairs turn ever faster: the sign of the exponent is wrong.",
        "theta_i is base to the power of minus 2i / E: 1 for the first pair, and less for every other.",
        ({"power": -1.0},),
    ),
    Mistake(
        "exponent_off_by_two",
        "The exponent is wrong by a factor of 2.",
        "It is 2i / E with i = 0 ... E/2 - 1. `torch.arange(0, E, 2)` holds 2i already.",
        ({"power": 0.5}, {"power": 2.0}),
    ),
    Mistake(
        "pairs_counted_from_one",
        "The pairs are counted from 1, so that the first one turns too slowly.",
        "i starts at 0: the first pair turns by one radian a position.",
        ({"first": 1},),
    ),
    Mistake(
        "sine_and_cosine_exchanged",
        "Sine and cosine are exchanged.",
        "At position 0 nothing turns: cos 0 = 1 stands where the column itself is kept.",
        ({"turn": "exchanged"},),
    ),
    Mistake(
        "length_not_kept",
        "The vectors come back longer or shorter: one of the two signs is wrong.",
        "A rotation keeps lengths. It has one minus and one plus: (a cos - b sin, a sin + b cos).",
        ({"turn": "both plus"}, {"turn": "both minus"}),
    ),
    Mistake(
        "halves_not_exchanged",
        "The sines are multiplied with a column's own numbers, not with those of the other column of its pair.",
        "Each of the two new columns is made from both old ones.",
        ({"turn": "own column"}, {"turn": "own column, minus"}),
    ),
    Mistake(
        "base_ignored",
        "The argument `base` is not used: it is always 10,000.",
        "Published models have other bases, 500,000 for one.",
        ({"base": 10_000.0},),
    ),
)

ALIBI = (
    Mistake(
        "slopes_not_per_head",
        "All heads have the same slope.",
        "Head h of 1 ... H has the slope 2^(-8h / H).",
        ({"slopes": "first"}, {"slopes": "last"}, {"slopes": "one half"}, {"slopes": "one"}),
    ),
    Mistake(
        "slopes_counted_from_zero",
        "The heads are counted from 0, so that the first slope is 1.",
        "h runs from 1 to H: the last slope is 2^-8.",
        ({"slopes": "from zero"},),
    ),
    Mistake(
        "slopes_for_eight_heads",
        "The slopes are 1/2, 1/4, 1/8, ... whatever the number of heads is.",
        "That is right for 8 heads. The formula has 2^(-8h / H).",
        ({"slopes": "eight"},),
    ),
    Mistake(
        "slopes_reversed",
        "The order of the slopes is reversed.",
        "The first head is the steepest.",
        ({"slopes": "reversed"},),
    ),
    Mistake(
        "wrong_sign",
        "The sign is wrong: far keys are preferred to near ones.",
        "The bias is added to the scores and lowers them: it is never positive.",
        ({"sign": 1.0},),
    ),
    Mistake(
        "distance_from_the_wrong_end",
        "With fewer queries than keys, the queries are taken for the first T positions; they are the last.",
        "That is how a cache is read: query t stands at position S - T + t.",
        ({"align": "first"},),
    ),
    Mistake(
        "keys_after_the_query",
        "Keys after the query do not have a bias of 0.",
        "Cut the distances off at 0: `clamp(min=0)`. Those keys are the causal mask's part.",
        ({"after": "negative"}, {"after": "absolute"}),
    ),
    Mistake(
        "queries_and_keys_exchanged",
        "Rows and columns are exchanged.",
        "Rows are queries, columns are keys.",
        ({"exchanged": True},),
    ),
)


def rotate_variant(
    x: Tensor,
    positions: Tensor,
    base_given: float,
    *,
    place: str = "given",
    turn: str = "right",
    pairs: str = "halves",
    sign: float = 1.0,
    power: float = 1.0,
    first: int = 0,
    base: float | None = None,
) -> Tensor:
    """RoPE with a knob for every usual mistake; as it stands, it is right."""
    H, T, E = x.shape[1:]
    theta = (base_given if base is None else base) ** (-power * 2 * (torch.arange(E // 2) + first) / E)
    at = {
        "given": lambda: positions[:, None],
        "from zero": lambda: torch.arange(T)[:, None],
        "head": lambda: torch.arange(H)[:, None, None],
        "given, heads": lambda: positions[:, None, None],  # fits only where there are as many tokens as heads
    }[place]()
    angles = at * theta
    if pairs.startswith("halves"):
        a, b = x.chunk(2, dim=-1)
    else:
        a, b = x[..., 0::2], x[..., 1::2]
    own = {  # the angles of the first and of the second column of each pair
        "halves": (angles, angles),
        "neighbours": (angles, angles),
        "halves, neighbours' angles": angles.repeat_interleave(2, -1).chunk(2, dim=-1),
        "neighbours, halves' angles": (
            torch.cat([angles, angles], -1)[..., 0::2],
            torch.cat([angles, angles], -1)[..., 1::2],
        ),
    }[pairs]
    (cos_a, cos_b), (sin_a, sin_b) = (t.cos() for t in own), (sign * t.sin() for t in own)
    new_a, new_b = {
        "right": lambda: (a * cos_a - b * sin_a, a * sin_b + b * cos_b),
        "none": lambda: (a, b),
        "exchanged": lambda: (a * sin_a - b * cos_a, a * cos_b + b * sin_b),
        "both plus": lambda: (a * cos_a + b * sin_a, a * sin_b + b * cos_b),
        "both minus": lambda: (a * cos_a - b * sin_a, b * cos_b - a * sin_b),
        "own column": lambda: (a * cos_a + a * sin_a, b * cos_b + b * sin_b),
        "own column, minus": lambda: (a * cos_a - a * sin_a, b * cos_b + b * sin_b),
    }[turn]()
    if pairs.startswith("halves"):
        return torch.cat([new_a, new_b], dim=-1)
    return torch.stack([new_a, new_b], dim=-1).flatten(-2)


def alibi_variant(
    n_heads: int,
    T: int,
    S: int,
    *,
    slopes: str = "right",
    sign: float = -1.0,
    align: str = "last",
    after: str = "zero",
    exchanged: bool = False,
) -> Tensor:
    """ALiBi's bias with a knob for every usual mistake; as it stands, it is right."""
    h = torch.arange(1, n_heads + 1)
    right = 2.0 ** (-8.0 * h / n_heads)
    chosen = {
        "right": right,
        "first": right[:1].expand(n_heads),
        "last": right[-1:].expand(n_heads),
        "one half": torch.full((n_heads,), 0.5),
        "one": torch.ones(n_heads),
        "from zero": 2.0 ** (-8.0 * (h - 1) / n_heads),
        "eight": 2.0**-h,
        "reversed": right.flip(0),
    }[slopes]
    start = S - T if align == "last" else 0
    distances = torch.arange(start, start + T)[:, None] - torch.arange(S)
    distances = {
        "zero": distances.clamp(min=0),
        "negative": distances,
        "absolute": distances.abs(),
    }[after]
    bias = sign * chosen[:, None, None] * distances
    return bias.transpose(-2, -1) if exchanged else bias


def rotate_reference(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """The right result: each pair a complex number, multiplied by exp(i angle), in float64."""
    E = x.shape[-1]
    points = torch.complex(x[..., : E // 2].double(), x[..., E // 2 :].double())
    exponents = [-2 * i / E for i in range(E // 2)]
    angles = positions.double()[:, None] * torch.tensor([float(base) ** e for e in exponents], dtype=torch.float64)
    turned = points * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def alibi_reference(n_heads: int, T: int, S: int) -> Tensor:
    """The right result, entry by entry, as the formula has it."""
    bias = np.zeros((n_heads, T, S))
    for h, t, j in np.ndindex(bias.shape):
        bias[h, t, j] = -(2 ** (-8 * (h + 1) / n_heads)) * max(0, S - T + t - j)
    return torch.from_numpy(bias).float()


def examine(
    rotate: Any, alibi_bias: Any, *, seed: int, n_heads: int, n_tokens: int, d_head: int, base: float
) -> Report:
    """Check a learner's `rotate(x, positions, base)` and `alibi_bias(n_heads, T, S)`.

    Raises:
        ValueError: a size, the base or the seed is out of range, d_head is odd, or n_heads is no power of two.
    """
    positive(n_heads=n_heads, n_tokens=n_tokens, d_head=d_head)
    if d_head % 2:
        raise ValueError(f"RoPE turns pairs of columns, so d_head must be even: got d_head={d_head}")
    if n_heads & (n_heads - 1):
        raise ValueError(f"the formula of the slopes is for powers of two: got n_heads={n_heads}")
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base <= 1e6:
        raise ValueError(f"base must be a number above 1, up to 1,000,000: got {base!r}")
    source = generator(seed)
    # A position of 500 has an angle of 500 radians, which float32 rounds by 3e-5.
    exam = Exam(
        "03/03_rope",
        {"seed": seed, "n_heads": n_heads, "n_tokens": n_tokens, "d_head": d_head, "base": base},
        atol=5e-4,
    )

    def turned(B: int, H: int, E: int, positions: Tensor, base: float) -> None:
        x = torch.randn(B, H, len(positions), E, generator=source)
        given = {"x": x, "positions": positions, "base_given": base}
        exam.compare(
            exam.tensor(exam.call(rotate, x, positions, base), "the turned x"),
            rotate_reference(x, positions, base),
            mistakes(rotate_variant, ROTATE, **given),
            what="the turned x",
            clue=lambda: exam.suspect(rotate, (x, positions, base), "x"),
        )

    def biased(H: int, T: int, S: int) -> None:
        exam.compare(
            exam.tensor(exam.call(alibi_bias, H, T, S), "the bias"),
            alibi_reference(H, T, S),
            mistakes(alibi_variant, ALIBI, n_heads=H, T=T, S=S),
            what="the bias",
        )

    with exam.part("your numbers, turned"):
        turned(2, n_heads, d_head, torch.arange(n_tokens) + 3, base)
    with exam.part("positions from 0, three heads"):
        turned(2, 3, 8, torch.arange(6), 100.0)
    with exam.part("as many heads as tokens"):
        turned(1, 4, 6, torch.arange(4) + 1, 50.0)
    with exam.part("one new token, at position 9"):
        turned(3, 2, 8, torch.tensor([9]), 100.0)
    with exam.part("positions out of order"):
        turned(1, 2, 4, torch.tensor([7, 2, 11, 2]), 10.0)
    with exam.part("position 500"):
        turned(1, 2, 6, torch.tensor([499, 500]), 500_000.0)
    with exam.part("a single pair"):
        turned(2, 2, 2, torch.arange(5), 100.0)
    with exam.part("a gradient reaches x"):
        x = torch.randn(1, 2, 3, 4, generator=source, requires_grad=True)
        got = exam.tensor(exam.call(rotate, x, torch.arange(3), 100.0), "the turned x")
        exam.learns(got.square(), {"x": x})
    with exam.part("the bias at your sizes"):
        biased(n_heads, n_tokens, n_tokens)
    with exam.part("the bias of four heads"):
        biased(4, 5, 5)
    with exam.part("the bias of eight heads"):
        biased(8, 3, 3)
    with exam.part("two queries, five keys"):
        biased(2, 2, 5)
    with exam.part("a single head"):
        biased(1, 2, 6)
    return exam.report()
