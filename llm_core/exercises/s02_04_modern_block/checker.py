"""Checks `rms_norm`, `swiglu` and `half_block` against torch's own norm and activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report

NORM = (
    Mistake(
        "layer_norm",
        "The mean is taken off.",
        "That is LayerNorm. RMSNorm leaves the mean where it is, in the vector and in what it divides by.",
        ({"centre": "both"}, {"centre": "for the size"}, {"centre": "vector only"}),
    ),
    Mistake(
        "norm_over_wrong_axis",
        "The mean square is taken over the wrong dimension.",
        "Every position is normed by itself, over the D numbers of its own vector: the last dimension, and only that.",
        ({"axes": (-2,)}, {"axes": (-3,)}, {"axes": (-2, -1)}, {"axes": (-3, -2, -1)}),
    ),
    Mistake(
        "sum_not_mean",
        "The squares are summed, and not divided by D.",
        "The sum would make vectors of length 1. The mean makes numbers of size 1, whatever the width.",
        ({"size": "sum"},),
    ),
    Mistake(
        "not_squared",
        "The size is the mean of the absolute numbers.",
        "It is the root of the mean of their squares.",
        ({"size": "absolute"},),
    ),
    Mistake(
        "divided_by_mean_square",
        "The vector is divided by the mean square, not by its root.",
        "The root is what has the unit of x.",
        ({"size": "square"},),
    ),
    Mistake(
        "missing_epsilon",
        "eps is missing.",
        "A vector of zeros would be divided by zero. The formula adds eps before the root is taken.",
        ({"epsilon": "missing"},),
    ),
    Mistake(
        "epsilon_outside_root",
        "eps is added to the root.",
        "It stands under the root.",
        ({"epsilon": "outside"},),
    ),
    Mistake(
        "fixed_epsilon",
        "eps is always 1e-5, whatever the argument says.",
        "Use the argument.",
        ({"epsilon": "1e-5"},),
    ),
    Mistake(
        "weight_unused",
        "The weight has no effect.",
        "The normed vector is multiplied by the weight, number by number.",
        ({"scales": "never"},),
    ),
    Mistake(
        "weight_plus_one",
        "The normed vector is multiplied by one plus the weight.",
        "Gemma does so. Here it is the weight itself.",
        ({"scales": "plus one"},),
    ),
    Mistake(
        "weight_first",
        "The weight multiplies before the norm.",
        "First the norm, then the weight: else the norm would take most of it away again.",
        ({"scales": "before"},),
    ),
)

GATED = (
    Mistake(
        "gate_and_up_exchanged",
        "The activation is on `up` and not on `gate`.",
        "silu bends what comes through `gate`; what comes through `up` is multiplied as it is.",
        ({"bends": "up"},),
    ),
    Mistake(
        "both_bent",
        "Both projections are bent.",
        "Only the gate's is.",
        ({"bends": "both"},),
    ),
    Mistake(
        "no_activation",
        "There is no activation.",
        "silu(z) = z sigmoid(z) bends what comes through `gate`.",
        ({"bends": "none"},),
    ),
    Mistake(
        "sigmoid_gate",
        "The gate is a sigmoid: that is GLU.",
        "In SwiGLU it is silu(z) = z sigmoid(z), which can be larger than 1.",
        ({"activation": "sigmoid"},),
    ),
    Mistake(
        "other_activation",
        "The activation is another one, ReLU or GELU.",
        "silu(z) = z sigmoid(z). With ReLU it is ReGLU, with GELU GEGLU.",
        ({"activation": "relu"}, {"activation": "gelu"}, {"activation": "gelu tanh"}, {"activation": "tanh"}),
    ),
    Mistake(
        "added_not_multiplied",
        "Gate and up are added.",
        "They are multiplied, number by number.",
        ({"meet": "sum"},),
    ),
    Mistake(
        "ungated",
        "`up` has no effect: this is a plain feed-forward layer.",
        "silu(gate) multiplies what comes through `up`.",
        ({"meet": "gate only"}, {"meet": "up only"}),
    ),
)

BLOCK = (
    Mistake(
        "residual_overwritten",
        "The stream is lost.",
        "What the feed-forward layer gives is added to x as it was.",
        ({"adds": "nothing"},),
    ),
    Mistake(
        "residual_from_normed",
        "The normed vector goes on instead of the stream.",
        "The norm is for what the layer reads. What it gives is added to x as it was.",
        ({"adds": "normed"},),
    ),
    Mistake(
        "residual_added_twice",
        "The stream is added twice.",
        "Once.",
        ({"adds": "twice"},),
    ),
    Mistake(
        "no_norm",
        "The layer reads the stream without a norm.",
        "It reads the normed stream.",
        ({"place": "none"},),
    ),
    Mistake(
        "post_norm",
        "This is the post-norm block: norm(x + part(x)).",
        "In the block of today the norm stands before the part.",
        ({"place": "post"},),
    ),
    Mistake(
        "norm_after_part",
        "The norm stands after the part: x + norm(part(x)).",
        "It stands before: the part reads the normed stream.",
        ({"place": "after part"},),
    ),
    Mistake(
        "fixed_epsilon_in_the_block",
        "The block's norm has an eps of 1e-5, whatever the argument says.",
        "Hand the argument on.",
        ({"epsilon": "1e-5"},),
    ),
)


def norm_variant(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    axes: tuple[int, ...] = (-1,),
    centre: str = "never",
    size: str = "root",
    epsilon: str = "inside",
    scales: str = "after",
) -> Tensor:
    """RMSNorm with a knob for every usual mistake; as it stands, it is right."""
    axes = tuple(axis for axis in axes if -axis <= x.ndim) or (-1,)
    if scales == "before":
        x = x * weight
    centred = x - x.mean(dim=axes, keepdim=True)
    measured = centred if centre in ("both", "for the size") else x
    eps = 1e-5 if epsilon == "1e-5" else eps
    inside = eps if epsilon in ("inside", "1e-5") else 0.0
    if size == "absolute":
        by = measured.abs().mean(dim=axes, keepdim=True) + inside
    else:
        squares = measured.square()
        by = (squares.sum(dim=axes, keepdim=True) if size == "sum" else squares.mean(dim=axes, keepdim=True)) + inside
        by = by if size == "square" else by.sqrt()
    by = by + eps if epsilon == "outside" else by
    normed = (centred if centre in ("both", "vector only") else x) / by
    if scales == "after":
        return normed * weight
    return normed * (1 + weight) if scales == "plus one" else normed


def gated_variant(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    bends: str = "gate",
    activation: str = "silu",
    meet: str = "product",
) -> Tensor:
    """SwiGLU with a knob for every usual mistake; as it stands, it is right."""
    bends_with: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu tanh": lambda z: F.gelu(z, approximate="tanh"),
        "tanh": torch.tanh,
    }
    bend = bends_with[activation]
    opened, passed = F.linear(x, gate), F.linear(x, up)
    opened = bend(opened) if bends in ("gate", "both") else opened
    passed = bend(passed) if bends in ("up", "both") else passed
    met = {
        "product": opened * passed,
        "sum": opened + passed,
        "gate only": opened,
        "up only": F.silu(passed),
    }[meet]
    return F.linear(met, down)


def block_variant(
    x: Tensor,
    weight: Tensor,
    eps: float,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    adds: str = "x",
    place: str = "before",
    epsilon: str = "given",
) -> Tensor:
    """The half block with a knob for every usual mistake; as it stands, it is right."""
    eps = 1e-5 if epsilon == "1e-5" else eps

    def norm(z: Tensor) -> Tensor:
        return F.rms_norm(z, weight.shape, weight, eps)

    found = gated_variant(norm(x) if place == "before" else x, gate, up, down)
    if place == "post":
        return norm(x + found)
    if place == "after part":
        found = norm(found)
    return {"x": x, "nothing": torch.zeros_like(x), "normed": norm(x), "twice": 2 * x}[adds] + found


def examine(
    rms_norm: Any,
    swiglu: Any,
    half_block: Any,
    *,
    seed: int,
    n_tokens: int,
    d_model: int,
    d_ff: int,
) -> Report:
    """Check a learner's norm, feed-forward layer and half block.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    given = {"n_tokens": n_tokens, "d_model": d_model, "d_ff": d_ff}
    positive(**given)
    source = generator(seed)
    exam = Exam("02/04_modern_block", {"seed": seed, **given})

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    def matrices(D: int, width: int) -> dict[str, Tensor]:
        return {
            "gate": randn(width, D) / D**0.5,
            "up": randn(width, D) / D**0.5,
            "down": randn(D, width) / width**0.5,
        }

    def norm(x: Tensor, eps: float) -> None:
        weight = randn(x.shape[-1]) + 2.0
        right = F.rms_norm(x, weight.shape, weight, eps)
        got = exam.tensor(exam.call(rms_norm, x, weight, eps), "the normed vectors")
        known = mistakes(norm_variant, NORM, x=x, weight=weight, eps=eps)
        exam.compare(got, right, known, what="the normed vectors")

    def gated(x: Tensor, width: int) -> None:
        weights = matrices(x.shape[-1], width)
        right = F.linear(F.silu(F.linear(x, weights["gate"])) * F.linear(x, weights["up"]), weights["down"])
        got = exam.tensor(exam.call(swiglu, x, *weights.values()), "what the layer gives")
        exam.compare(got, right, mistakes(gated_variant, GATED, x=x, **weights), what="what the layer gives")

    def half(x: Tensor, eps: float, width: int) -> None:
        weight, weights = randn(x.shape[-1]) + 2.0, matrices(x.shape[-1], width)
        right = block_variant(x, weight, eps, weights["gate"], weights["up"], weights["down"])
        got = exam.tensor(exam.call(half_block, x, weight, eps, *weights.values()), "the stream")
        exam.compare(
            got, right, mistakes(block_variant, BLOCK, x=x, weight=weight, eps=eps, **weights), what="the stream"
        )

    yours, other = 2.0 * randn(n_tokens, d_model) + 1.0, 2.0 * randn(3, 5, 6) + 1.0
    with exam.part("the norm of your vectors"):
        norm(yours, 1e-5)
    with exam.part("the norm of three dimensions, with a large eps"):
        norm(other, 0.5)
    with exam.part("the norm of small numbers"):
        norm(1e-3 * randn(4, 7), 1e-6)
    with exam.part("SwiGLU of your vectors"):
        gated(yours, d_ff)
    with exam.part("SwiGLU of three dimensions"):
        gated(other, 11)
    with exam.part("the half block of your vectors"):
        half(yours, 1e-5, d_ff)
    with exam.part("the half block of three dimensions"):
        half(other, 0.5, 11)
    return exam.report()
