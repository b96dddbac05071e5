"""Checks `attention(query, key, value, mask)`; the right results are torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

MISTAKES = (
    Mistake(
        "not_scaled",
        "The scores are not divided by the square root of d_k.",
        "Without it the scores grow with the width of the keys, and the softmax turns into a choice of one key.",
        ({"divide": "1"},),
    ),
    Mistake(
        "scaled_by_d_k",
        "The scores are divided by d_k, not by its square root.",
        "The sum of d_k products of independent numbers has a standard deviation of sqrt(d_k); that is what the "
        "division undoes.",
        ({"divide": "d_k"},),
    ),
    Mistake(
        "multiplied_by_sqrt_d_k",
        "The scores are multiplied by the square root of d_k.",
        "The root stands below the fraction bar.",
        ({"divide": "1 / sqrt(d_k)"},),
    ),
    Mistake(
        "scaled_by_sqrt_d_v",
        "The scores are divided by the square root of the width of the values.",
        "d_k is the width of the keys (and queries). The values may have another one.",
        ({"divide": "sqrt(d_v)"},),
    ),
    Mistake(
        "scaled_by_wrong_dimension",
        "The scores are divided by the square root of a number of tokens, heads or sentences, not of the width.",
        "`shape[0]` and `shape[1]` are other dimensions as soon as there is a batch: the width is `shape[-1]`.",
        ({"divide": "sqrt(T)"}, {"divide": "sqrt(S)"}, {"divide": "sqrt(shape[0])"}, {"divide": "sqrt(shape[1])"}),
    ),
    Mistake(
        "softmax_over_wrong_axis",
        "The softmax runs over the wrong dimension: it makes the weights of each key sum to one.",
        "Every query spreads a weight of one over the keys, and the keys are the last dimension of the scores, "
        "also when there is a batch.",
        ({"axis": -2}, {"axis": 0}, {"axis": 1}),
    ),
    Mistake(
        "mask_inverted",
        "The mask is used the wrong way round.",
        "True means: may attend. `masked_fill` fills where its mask is True, so it needs `~mask`.",
        ({"masking": "inverted, -inf"}, {"masking": "inverted, finite"}),
    ),
    Mistake(
        "mask_after_softmax",
        "The mask is applied after the softmax, so the weights of a row no longer sum to one.",
        "Masked scores become -inf before the softmax; the softmax then shares out the whole weight among the rest.",
        ({"masking": "after"},),
    ),
    Mistake(
        "masked_with_zero",
        "Masked scores are set to 0, which is an ordinary score.",
        "exp(0) = 1: such keys still get weight. It takes -inf, whose exp() is 0.",
        ({"masking": "zero"},),
    ),
    Mistake(
        "mask_added",
        "The mask is added to the scores as zeros and ones.",
        "Adding is for masks made of 0 and -inf. This one is boolean: `scores.masked_fill(~mask, -inf)`.",
        ({"masking": "added"},),
    ),
    Mistake(
        "mask_ignored",
        "The mask has no effect.",
        "Every key gets weight, also those that may not be read.",
        ({"masking": "none"},),
    ),
    Mistake(
        "weights_transposed",
        "The weights are transposed before they meet the values.",
        "Row i of the weights belongs to query i; output i is that row times the values.",
        ({"transposed": True},),
    ),
)

OVERFLOW = Finding(
    "overflow",
    "With large scores the result is NaN or infinite.",
    "exp(89) no longer fits into float32. Take the largest score of a row off all its scores first, or use "
    "torch.softmax, which does.",
    known=True,
)


def variant(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    divide: str = "sqrt(d_k)",
    axis: int = -1,
    masking: str = "-inf",
    transposed: bool = False,
) -> Tensor:
    """Attention with a knob for every usual mistake; as it stands, it is right."""
    d_k = query.shape[-1]
    divisors = {
        "sqrt(d_k)": d_k**0.5,
        "1": 1.0,
        "d_k": float(d_k),
        "1 / sqrt(d_k)": d_k**-0.5,
        "sqrt(d_v)": value.shape[-1] ** 0.5,
        "sqrt(T)": query.shape[-2] ** 0.5,
        "sqrt(S)": key.shape[-2] ** 0.5,
        "sqrt(shape[0])": query.shape[0] ** 0.5,
        "sqrt(shape[1])": query.shape[1] ** 0.5,
    }
    scores = query @ key.transpose(-2, -1) / divisors[divide]
    if mask is not None:
        scores = {
            "-inf": lambda: scores.masked_fill(~mask, float("-inf")),
            "inverted, -inf": lambda: scores.masked_fill(mask, float("-inf")),
            "inverted, finite": lambda: scores.masked_fill(mask, -1e9),
            "zero": lambda: scores.masked_fill(~mask, 0.0),
            "added": lambda: scores + mask,
            "after": lambda: scores,
            "none": lambda: scores,
        }[masking]()
    weights = scores.softmax(axis)
    if mask is not None and masking == "after":
        weights = weights.masked_fill(~mask, 0.0)
    return (weights.transpose(-2, -1) if transposed else weights) @ value


def examine(attention: Any, *, seed: int, n_tokens: int, d_k: int, d_v: int, causal: bool) -> Report:
    """Check a learner's `attention(query, key, value, mask=None)`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_tokens=n_tokens, d_k=d_k, d_v=d_v)
    source = generator(seed)
    exam = Exam(
        "04/01_dot_product_attention",
        {"seed": seed, "n_tokens": n_tokens, "d_k": d_k, "d_v": d_v, "causal": bool(causal)},
    )

    def drawn(*batch: int, T: int, S: int, d_k: int, d_v: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes = (*batch, T, d_k), (*batch, S, d_k), (*batch, S, d_v)
        query, key, value = (torch.randn(shape, generator=source) for shape in shapes)
        return query, key, value

    def compare(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rtol: float | None = None) -> None:
        given = (query, key, value) if mask is None else (query, key, value, mask)
        got = exam.tensor(exam.call(attention, *given), "the output")
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        exam.compare(
            got,
            expected,
            mistakes(variant, MISTAKES, query=query, key=key, value=value, mask=mask),
            what="the output",
            clue=lambda: exam.suspect(attention, given, "query, key, value") or _weights_clue(exam, attention, *given),
            rtol=rtol,
        )

    def lower(n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).tril()

    with exam.part("your numbers"):
        compare(*drawn(T=n_tokens, S=n_tokens, d_k=d_k, d_v=d_v), lower(n_tokens) if causal else None)
    with exam.part("three queries, five keys"):
        compare(*drawn(T=3, S=5, d_k=4, d_v=6), None)
    with exam.part("two sentences, three heads"):
        compare(*drawn(2, 3, T=4, S=4, d_k=8, d_v=5), None)
    with exam.part("a causal mask"):
        compare(*drawn(2, T=5, S=5, d_k=6, d_v=3), lower(5))
    with exam.part("a padding mask for each sentence"):
        lengths = torch.tensor([3, 5])
        compare(*drawn(2, 3, T=4, S=5, d_k=6, d_v=3), (torch.arange(5) < lengths[:, None])[:, None, None, :])
    with exam.part("a single token"):
        compare(*drawn(T=1, S=1, d_k=3, d_v=2), None)
    with exam.part("large scores"):
        query, key, value = drawn(T=4, S=4, d_k=4, d_v=3)
        query[:, 0] = key[:, 0] = 20.0  # adds 200 to every scaled score, which the softmax must not notice
        got = exam.tensor(exam.call(attention, query, key, value), "the output")
        small = exam.tensor(exam.call(attention, query / 100, key, value), "the output")
        if small.isfinite().all() and not got.isfinite().all():
            raise Wrong((OVERFLOW,))
        compare(query, key, value, None, rtol=1e-3)
    return exam.report()


def _weights_clue(
    exam: Exam, attention: Any, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor
) -> Finding | None:
    """What the weights look like: with the identity matrix as values they are the output."""
    S = key.shape[-2]
    identity = torch.eye(S).expand(*key.shape[:-1], S)
    try:
        weights = exam.tensor(exam.call(attention, query, key, identity, *mask), "the weights")
    except Wrong:
        return None
    if weights.shape != (*query.shape[:-1], S) or not weights.isfinite().all():
        return None
    if mask and bool((weights.masked_select(~mask[0].expand(weights.shape)).abs() > 1e-6).any()):
        return Finding(
            "masked_keys_have_weight",
            "Keys that may not be read still get weight.",
            "Their scores have to be -inf when the softmax sees them.",
        )
    first = float(weights.sum(-1).flatten()[0])
    if not torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-3):
        return Finding(
            "rows_do_not_sum_to_one",
            f"The weights of a query do not sum to one: those of the first sum to {first:.3g}.",
            "The softmax comes last, over the keys; nothing may change the weights after it.",
        )
    return None
