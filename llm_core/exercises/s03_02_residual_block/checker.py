"""Checks `layer_norm`, `dropout` and `pre_norm_block`.

The right norms are torch's own. The right block is written as one sum, x + a + f, and a test holds it against
`torch.nn.TransformerEncoderLayer`.
"""

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
        "norm_over_wrong_axis",
        "Mean and variance are taken over the wrong dimension.",
        "Every position is normed by itself, over the D numbers of its own vector: the last dimension, and only that.",
        ({"axes": (-2,)}, {"axes": (-3,)}, {"axes": (-2, -1)}, {"axes": (-3, -2, -1)}),
    ),
    Mistake(
        "unbiased_variance",
        "The variance is divided by D - 1.",
        "That is what `torch.var` and `torch.std` do unless told otherwise. The norm divides by D: "
        "`x.var(dim=-1, keepdim=True, correction=0)`.",
        ({"correction": 1},),
    ),
    Mistake(
        "missing_epsilon",
        "eps is missing.",
        "A vector whose numbers are all equal has variance 0. The formula adds eps before the root is taken.",
        ({"epsilon": "missing"},),
    ),
    Mistake(
        "epsilon_outside_root",
        "eps is added to the standard deviation, not to the variance.",
        "It stands under the root.",
        ({"epsilon": "outside"},),
    ),
    Mistake(
        "fixed_epsilon",
        "eps is always 1e-5, whatever the argument says.",
        "Use the argument.",
        ({"epsilon": "1e-5"}, {"epsilon": "1e-5, outside"}),
    ),
    Mistake(
        "gain_or_bias_forgotten",
        "Gain or bias has no effect.",
        "The normed vector is multiplied by the gain, number by number, and then the bias is added.",
        ({"affine": "none"}, {"affine": "gain"}, {"affine": "bias"}),
    ),
    Mistake(
        "bias_times_gain",
        "The bias is added before the gain multiplies.",
        "First times the gain, then plus the bias.",
        ({"affine": "exchanged"},),
    ),
    Mistake(
        "mean_not_subtracted",
        "The mean is not taken off.",
        "Without it this is RMS norm or something close to it. Layer norm centres the vector first.",
        ({"centre": "never"}, {"centre": "for the variance"}),
    ),
    Mistake(
        "divided_by_variance",
        "The vector is divided by the variance, not by its root.",
        "The standard deviation is the square root of the variance.",
        ({"divide": "variance"},),
    ),
)

DROPOUT = (
    Mistake(
        "dropout_scaled_by_p",
        "What is kept is divided by p.",
        "A share of 1 - p is kept, so dividing by 1 - p keeps the expected value. With p = 0.5 both are the same, "
        "which is why a test with 0.5 finds nothing.",
        ({"scale": "p"},),
    ),
    Mistake(
        "dropout_not_scaled",
        "What is kept is not enlarged.",
        "The expected value then shrinks to 1 - p of what it was, and in evaluation everything is suddenly larger.",
        ({"scale": "1"},),
    ),
    Mistake(
        "dropout_scaled_down",
        "What is kept is multiplied by 1 - p.",
        "It is divided by 1 - p: what is kept stands in for what was dropped.",
        ({"scale": "1 / (1 - p)"},),
    ),
    Mistake(
        "dropout_in_evaluation",
        "Dropout is active in evaluation.",
        "With `training` False the result is x, unchanged.",
        ({"evaluation": "dropped"},),
    ),
    Mistake(
        "evaluation_scaled",
        "In evaluation x is scaled.",
        "That belongs to the older form of dropout, which does not scale in training. Here evaluation returns x.",
        ({"evaluation": "times 1 - p"}, {"evaluation": "divided by 1 - p"}),
    ),
    Mistake(
        "dropout_never_on",
        "Nothing is dropped, not even in training.",
        "Where `keep` is False the result is 0.",
        ({"keeps": "everything"}, {"keeps": "everything", "scale": "1"}),
    ),
    Mistake(
        "keep_inverted",
        "What should be kept is dropped, and the other way round.",
        "True in `keep` means: this number stays.",
        ({"keeps": "inverted"},),
    ),
)

BLOCK = (
    Mistake(
        "residual_overwritten",
        "The stream is overwritten: x = part(norm(x)) where x = x + part(norm(x)) belongs.",
        "No shape tells, and a shallow model still learns. Look for the `+` in both lines of the block.",
        ({"first": "part"}, {"second": "part"}, {"first": "part", "second": "part"}),
    ),
    Mistake(
        "residual_added_twice",
        "The stream is added twice.",
        "A part adds what it found to the stream, once. See whether a helper adds x already.",
        ({"first": "twice"}, {"second": "twice"}, {"second": "x too"}, {"first": "twice", "second": "twice"}),
    ),
    Mistake(
        "residual_from_normed",
        "The normed vector goes on instead of the stream: norm(x) + part(norm(x)).",
        "The norm is for what the part reads. What it gives is added to x as it was, so keep both.",
        ({"first": "normed"}, {"second": "normed"}, {"first": "normed", "second": "normed"}),
    ),
    Mistake(
        "attention_lost",
        "What attention added is lost: the second line adds to the block's input.",
        "The second addition starts from the stream as it is after the first one.",
        ({"second": "x"},),
    ),
    Mistake(
        "parallel_parts",
        "The feed-forward layer reads the block's input, not the stream after attention.",
        "There are blocks like that, with both parts side by side. This one has them one after the other.",
        ({"reads": "x"},),
    ),
    Mistake(
        "post_norm",
        "This is the post-norm block: norm(x + part(x)).",
        "In the pre-norm block the norm stands before the part, and the stream itself is never normed.",
        ({"place": "post"},),
    ),
    Mistake(
        "norm_after_part",
        "The norm stands after the part: x + norm(part(x)).",
        "It stands before: the part reads the normed stream.",
        ({"place": "after part"},),
    ),
    Mistake(
        "no_norm",
        "A norm is missing.",
        "Each of the two parts reads the stream through its own norm.",
        ({"place": "none"}, {"which": "first only"}, {"which": "second only"}),
    ),
    Mistake(
        "norms_mixed_up",
        "The two norms are mixed up.",
        "`norms[0]` belongs to attention and `norms[1]` to the feed-forward layer; each has its own weights.",
        ({"which": "exchanged"}, {"which": "first twice"}, {"which": "second twice"}),
    ),
    Mistake(
        "parts_exchanged",
        "The feed-forward layer comes before attention.",
        "First attention, then the feed-forward layer.",
        ({"order": "exchanged"}, {"order": "exchanged", "which": "exchanged"}),
    ),
    Mistake(
        "dropout_forgotten",
        "`drop` is not used everywhere.",
        "It works on what each part gives, in both lines.",
        ({"dropped": "none"}, {"dropped": "first"}, {"dropped": "second"}),
    ),
    Mistake(
        "dropout_on_stream",
        "`drop` works on the sum.",
        "Dropped numbers of the stream would be lost for all later layers. It works on what a part gives, before that "
        "is added.",
        ({"dropped": "sum"},),
    ),
    Mistake(
        "dropout_before_part",
        "`drop` works on what a part reads.",
        "It works on what the part gives.",
        ({"dropped": "input"},),
    ),
)

Function = Callable[[Tensor], Tensor]


def norm_variant(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    *,
    axes: tuple[int, ...] = (-1,),
    correction: int = 0,
    epsilon: str = "inside",
    affine: str = "both",
    centre: str = "always",
    divide: str = "root",
) -> Tensor:
    """Layer norm with a knob for every usual mistake; as it stands, it is right."""
    if -min(axes) > x.ndim:
        raise RuntimeError("there is no such axis")
    centred = x if centre == "never" else x - x.mean(axes, keepdim=True)
    n = centred.mean(axes, keepdim=True).numel()
    variance = centred.square().sum(axes, keepdim=True) / torch.tensor(x.numel() // n - correction)
    if epsilon.startswith("1e-5"):
        eps = 1e-5
    inside = 0.0 if epsilon == "missing" or epsilon.endswith("outside") else eps
    size = variance + inside if divide == "variance" else (variance + inside).sqrt()
    if epsilon.endswith("outside"):
        size = size + eps
    normed = (x if centre == "for the variance" else centred) / size
    return {
        "both": lambda: normed * gain + bias,
        "exchanged": lambda: (normed + bias) * gain,
        "gain": lambda: normed * gain,
        "bias": lambda: normed + bias,
        "none": lambda: normed,
    }[affine]()


def dropout_variant(
    x: Tensor,
    keep: Tensor,
    p: float,
    training: bool,
    *,
    scale: str = "1 - p",
    evaluation: str = "x",
    keeps: str = "given",
) -> Tensor:
    """Dropout with a knob for every usual mistake; as it stands, it is right."""
    stays = {"given": keep, "inverted": ~keep, "everything": torch.ones_like(keep)}[keeps]
    divisor = {"1 - p": 1 - p, "p": p, "1": 1.0, "1 / (1 - p)": 1 / (1 - p)}[scale]
    if not training and evaluation != "dropped":
        return {"x": x, "times 1 - p": x * (1 - p), "divided by 1 - p": x / (1 - p)}[evaluation]
    return torch.where(stays, x / torch.tensor(divisor), torch.zeros(()))


def block_variant(
    x: Tensor,
    attention: Function,
    feed_forward: Function,
    norms: tuple[Function, Function],
    drop: Function,
    *,
    first: str = "added",
    second: str = "added",
    reads: str = "stream",
    place: str = "pre",
    which: str = "own",
    order: str = "attention first",
    dropped: str = "both",
) -> Tensor:
    """The block with a knob for every usual mistake; as it stands, it is right."""

    def same(y: Tensor) -> Tensor:
        return y

    def line(y: Tensor, part: Function, norm: Function, sums: str, drop: Function) -> Tensor:
        if place == "post":
            return norm(y + drop(part(y)))
        read = y if place in ("none", "after part") else norm(y)
        if reads == "x" and y is not x:
            read = norm(x)
        if dropped == "input":
            read = drop(read)
        found = part(read)
        if place == "after part":
            found = norm(found)
        added = found if dropped in ("sum", "input") else drop(found)
        total = {
            "added": lambda: y + added,
            "part": lambda: added,
            "twice": lambda: y + y + added,
            "normed": lambda: norm(y) + added,
            "x": lambda: x + added,
            "x too": lambda: x + y + added,
        }[sums]()
        return drop(total) if dropped == "sum" else total

    one, two = {
        "own": norms,
        "exchanged": (norms[1], norms[0]),
        "first twice": (norms[0], norms[0]),
        "second twice": (norms[1], norms[1]),
        "first only": (norms[0], same),
        "second only": (same, norms[1]),
    }[which]
    parts = (attention, feed_forward) if order == "attention first" else (feed_forward, attention)
    h = line(x, parts[0], one, first, same if dropped in ("none", "second") else drop)
    return line(h, parts[1], two, second, same if dropped in ("none", "first") else drop)


def reference(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The right block: the input, and two things that were added to it."""
    a = drop(attention(norms[0](x)))
    f = drop(feed_forward(norms[1](x + a)))
    return x + a + f


def examine(
    layer_norm: Any, dropout: Any, pre_norm_block: Any, *, seed: int, n_tokens: int, d_model: int, p: float
) -> Report:
    """Check a learner's `layer_norm`, `dropout` and `pre_norm_block`.

    Raises:
        ValueError: a size, the seed or p is out of range.
    """
    positive(n_tokens=n_tokens, d_model=d_model)
    if not 0 <= p < 1:
        raise ValueError(f"p is a share, 0 <= p < 1: got {p!r}. Change the parameters cell")
    source = generator(seed)
    exam = Exam("03/02_residual_block", {"seed": seed, "n_tokens": n_tokens, "d_model": d_model, "p": p})

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    def norm(x: Tensor, eps: float = 1e-5) -> None:
        D = x.shape[-1]
        gain, bias = randn(D) + 2.0, randn(D) + 1.0
        got = exam.tensor(exam.call(layer_norm, x, gain, bias, eps), "the norm")
        exam.compare(
            got,
            F.layer_norm(x, (D,), gain, bias, eps),
            mistakes(norm_variant, NORM, x=x, gain=gain, bias=bias, eps=eps),
            what="the norm",
            clue=lambda: exam.suspect(layer_norm, (x, gain, bias, eps), "x, gain, bias"),
        )

    def drops(x: Tensor, p: float, training: bool = True) -> None:
        keep = torch.rand(x.shape, generator=source) >= p
        keep.flatten()[0] = p == 0  # at least one goes, and one stays
        keep.flatten()[-1] = True
        got = exam.tensor(exam.call(dropout, x, keep, p, training), "dropout's result")
        exam.compare(
            got,
            torch.addcdiv(torch.zeros(()), x * keep, torch.tensor(1 - p)) if training else x,
            mistakes(dropout_variant, DROPOUT, x=x, keep=keep, p=p, training=training),
            what="dropout's result",
            clue=lambda: exam.suspect(dropout, (x, keep, p, training), "x"),
        )

    def pieces(T: int, D: int, B: int = 2) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
        """The block's arguments after x, and the weights in them; dropout has a fixed pattern."""
        weights = {name: 1.5 * randn(D, D) / D**0.5 for name in ("attention", "up", "down")}
        gains = [randn(D) + 2.0 for _ in range(2)]
        biases = [randn(D) for _ in range(2)]
        keep = torch.rand(B, T, D, generator=source) >= 0.3
        keep[0, 0, 0] = False

        def attention(y: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(y, y, y, is_causal=True) @ weights["attention"]

        def feed_forward(y: Tensor) -> Tensor:
            return F.gelu(y @ weights["up"]) @ weights["down"]

        def first(y: Tensor) -> Tensor:
            return F.layer_norm(y, (D,), gains[0], biases[0])

        def second(y: Tensor) -> Tensor:
            return F.layer_norm(y, (D,), gains[1], biases[1])

        def drop(y: Tensor) -> Tensor:
            return y * keep / 0.7

        return (attention, feed_forward, (first, second), drop), weights

    def block(B: int, T: int, D: int) -> None:
        x = 2.0 * randn(B, T, D) + 0.5
        given, _ = pieces(T, D, B)
        got = exam.tensor(exam.call(pre_norm_block, x, *given), "the block's result")
        names = dict(zip(("attention", "feed_forward", "norms", "drop"), given, strict=True))
        exam.compare(
            got,
            reference(x, *given),
            mistakes(block_variant, BLOCK, x=x, **names),
            what="the block's result",
            clue=lambda: exam.suspect(pre_norm_block, (x, *given), "x"),
        )

    with exam.part("the norm of your numbers"):
        norm(randn(2, n_tokens, d_model) + 1.0)
    with exam.part("the norm of three sentences"):
        norm(2.0 * randn(3, 4, 5) + 1.0)
    with exam.part("the norm of a single vector"):
        norm(randn(7) - 1.0)
    with exam.part("the norm of nearly equal numbers"):
        norm(1e-3 * randn(2, 3, 4))
    with exam.part("the norm with another eps"):
        norm(randn(2, 3, 6), eps=0.3)
    with exam.part("dropout of your numbers"):
        drops(randn(2, n_tokens, d_model) + 3.0, p)
    with exam.part("dropout with p = 0.1"):
        drops(randn(3, 4, 5) + 3.0, 0.1)
    with exam.part("dropout with p = 0.8"):
        drops(randn(2, 3, 4) + 3.0, 0.8)
    with exam.part("dropout in evaluation"):
        drops(randn(2, 3, 4) + 3.0, 0.4, training=False)
    with exam.part("the block on your numbers"):
        block(2, n_tokens, d_model)
    with exam.part("the block on three sentences"):
        block(3, 4, 6)
    with exam.part("the block on a single token"):
        block(1, 1, 5)
    with exam.part("gradients reach every weight"):
        x = randn(2, 3, 4).requires_grad_()
        given, weights = pieces(3, 4)
        for weight in weights.values():
            weight.requires_grad_()
        got = exam.tensor(exam.call(pre_norm_block, x, *given), "the block's result")
        exam.learns(got.square(), {"x": x, **weights})
    return exam.report()
