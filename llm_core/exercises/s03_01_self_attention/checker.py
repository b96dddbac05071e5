"""Checks `self_attention(x, w_q, w_k, w_v, w_o, n_heads)`; the right results are torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, wrong
from llm_core.exercises.report import Finding, Report

MISTAKES = (
    Mistake(
        "no_mask",
        "There is no causal mask: tokens read those that come after them.",
        "A model trained like this sees the answer it has to predict. Token i may read tokens 0 to i.",
        ({"masking": "none"},),
    ),
    Mistake(
        "mask_excludes_itself",
        "The mask is off by one: a token cannot read itself, and the first token can read nothing.",
        "The lower triangle includes its diagonal: `tril()`, not `tril(-1)`.",
        ({"masking": "strict, -inf"}, {"masking": "strict, finite"}),
    ),
    Mistake(
        "mask_reads_one_ahead",
        "The mask is off by one the other way: every token can read the one after it.",
        "`tril(1)` lets one diagonal too many through; `triu()` as a mask of what is forbidden is `triu(1)`.",
        ({"masking": "ahead"},),
    ),
    Mistake(
        "mask_transposed",
        "The mask is transposed: tokens read what follows and not what came before.",
        "Rows are queries, columns are keys. What may be read lies below the diagonal.",
        ({"masking": "upper, -inf"},),
    ),
    Mistake(
        "mask_after_softmax",
        "The mask is applied after the softmax, so the weights of a row no longer sum to one.",
        "Set the masked scores to -inf before the softmax.",
        ({"masking": "after"},),
    ),
    Mistake(
        "scaled_by_d_model",
        "The scores are divided by the square root of d_model.",
        "Each head compares vectors of width d_model / n_heads: that is the d_k of the formula.",
        ({"divide": "sqrt(D)"},),
    ),
    Mistake(
        "scaled_by_head_width",
        "The scores are divided by the width of a head, not by its square root.",
        "The formula divides by sqrt(d_k).",
        ({"divide": "E"},),
    ),
    Mistake(
        "not_scaled",
        "The scores are not divided by the square root of the width of a head.",
        "The formula divides by sqrt(d_k).",
        ({"divide": "1"},),
    ),
    Mistake(
        "view_instead_of_transpose",
        "The heads are cut out with a reshape to (B, H, T, E), which mixes tokens and heads.",
        "The last dimension is what is split: first (B, T, H, E), then exchange T and H with a transpose.",
        ({"split": "view"}, {"split": "view", "merge": "view"}),
    ),
    Mistake(
        "merge_without_transpose",
        "The heads are joined with a reshape straight from (B, H, T, E), which mixes tokens and heads.",
        "First back to (B, T, H, E) with a transpose, then join the last two dimensions.",
        ({"merge": "view"},),
    ),
    Mistake(
        "heads_interleaved",
        "A head takes every H-th number of a vector instead of E neighbouring ones.",
        "Split the width as (H, E), not as (E, H).",
        ({"split": "interleaved"}, {"split": "interleaved", "merge": "interleaved"}),
    ),
    Mistake(
        "one_head",
        "The result is that of a single head, whatever n_heads says.",
        "Split the width into n_heads parts before the scores are computed.",
        ({"heads": 1},),
    ),
    Mistake(
        "softmax_over_wrong_axis",
        "The softmax runs over the wrong dimension.",
        "Every query spreads a weight of one over the keys: the last dimension of the scores.",
        ({"axis": -2}, {"axis": 1}),
    ),
    Mistake(
        "no_output_projection",
        "The output projection w_o is missing.",
        "The joined heads are multiplied by w_o; without it no head can use what another one found.",
        ({"output": "none"},),
    ),
    Mistake(
        "weights_transposed",
        "The weight matrices are used transposed.",
        "This exercise multiplies as the formula does: x @ w_q. (torch.nn.Linear stores the transpose.)",
        ({"weights": "transposed"},),
    ),
    Mistake(
        "projections_mixed_up",
        "Two of the projections are exchanged.",
        "Queries come from w_q, keys from w_k, values from w_v.",
        ({"order": "kqv"}, {"order": "qvk"}, {"order": "vkq"}, {"order": "qqv"}, {"order": "qkk"}),
    ),
)


def variant(
    x: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    n_heads: int,
    *,
    masking: str = "causal",
    divide: str = "sqrt(E)",
    split: str = "transpose",
    merge: str = "transpose",
    heads: int | None = None,
    axis: int = -1,
    output: str = "w_o",
    weights: str = "as given",
    order: str = "qkv",
) -> Tensor:
    """Causal self-attention with a knob for every usual mistake; as it stands, it is right."""
    B, T, D = x.shape
    H = heads or n_heads
    E = D // H
    if weights == "transposed":
        w_q, w_k, w_v, w_o = w_q.T, w_k.T, w_v.T, w_o.T
    projections = {"q": w_q, "k": w_k, "v": w_v}

    query, key, value = (_cut(x @ projections[letter], H, split) for letter in order)
    divisor = {"sqrt(E)": E**0.5, "sqrt(D)": D**0.5, "E": float(E), "1": 1.0}[divide]
    scores = query @ key.transpose(-2, -1) / divisor
    every = torch.ones(T, T, dtype=torch.bool)
    allowed = {
        "causal": every.tril(),
        "none": every,
        "after": every,
        "ahead": every.tril(1),
        "strict, -inf": every.tril(-1),
        "strict, finite": every.tril(-1),
        "upper, -inf": every.triu(),
    }[masking]
    scores = scores.masked_fill(~allowed, -1e9 if masking.endswith("finite") else float("-inf"))
    shares = scores.softmax(axis)
    if masking == "after":
        shares = shares.masked_fill(~every.tril(), 0.0)
    result = shares @ value
    if merge == "view":
        joined = result.reshape(B, T, D)
    elif merge == "interleaved":
        joined = result.permute(0, 2, 3, 1).reshape(B, T, D)
    else:
        joined = result.transpose(1, 2).reshape(B, T, D)
    return joined if output == "none" else joined @ w_o


def _cut(y: Tensor, H: int, split: str) -> Tensor:
    B, T, D = y.shape
    if split == "view":
        return y.reshape(B, H, T, D // H)
    if split == "interleaved":
        return y.reshape(B, T, D // H, H).permute(0, 3, 1, 2)
    return y.reshape(B, T, H, D // H).transpose(1, 2)


def reference(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int) -> Tensor:
    """The right result, computed by torch."""
    T, D = x.shape[1:]
    steps = x.transpose(0, 1)  # torch wants (T, B, D), weights as nn.Linear keeps them, True = may not attend
    output, _ = F.multi_head_attention_forward(
        steps,
        steps,
        steps,
        D,
        n_heads,
        torch.cat([w_q.T, w_k.T, w_v.T]),
        None,
        None,
        None,
        False,
        0.0,
        w_o.T,
        None,
        need_weights=False,
        attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
    )
    return output.transpose(0, 1)


def examine(self_attention: Any, *, seed: int, n_tokens: int, d_model: int, n_heads: int) -> Report:
    """Check a learner's `self_attention(x, w_q, w_k, w_v, w_o, n_heads)`.

    Raises:
        ValueError: a size or the seed is out of range, or n_heads does not divide d_model.
    """
    positive(n_tokens=n_tokens, d_model=d_model, n_heads=n_heads)
    if d_model % n_heads:
        raise ValueError(f"n_heads must divide d_model: got d_model={d_model}, n_heads={n_heads}")
    source = generator(seed)
    exam = Exam("03/01_self_attention", {"seed": seed, "n_tokens": n_tokens, "d_model": d_model, "n_heads": n_heads})

    def drawn(B: int, T: int, D: int) -> tuple[Tensor, ...]:
        # The projections keep the size of the numbers: a sum of D products is divided by sqrt(D). The factor
        # 1.5 makes the weights uneven enough to tell one scale from another.
        x = torch.randn(B, T, D, generator=source)
        return x, *(1.5 * torch.randn(D, D, generator=source) / D**0.5 for _ in range(4))

    def compare(H: int, *given: Tensor) -> None:
        got = exam.tensor(exam.call(self_attention, *given, H), "the output")
        names = dict(zip(("x", "w_q", "w_k", "w_v", "w_o"), given, strict=True))
        exam.compare(
            got,
            reference(**names, n_heads=H),
            mistakes(variant, MISTAKES, **names, n_heads=H),
            what="the output",
            clue=lambda: (
                exam.suspect(self_attention, (*given, H), "x, w_q, w_k, w_v, w_o")
                or _leak(exam, self_attention, H, *given)
            ),
        )

    with exam.part("your numbers"):
        compare(n_heads, *drawn(2, n_tokens, d_model))
    with exam.part("a single head"):
        compare(1, *drawn(2, 4, 6))
    with exam.part("three sentences, two heads"):
        compare(2, *drawn(3, 5, 8))
    with exam.part("as many heads as numbers"):
        compare(4, *drawn(2, 6, 4))
    with exam.part("a single token"):
        compare(2, *drawn(1, 1, 4))
    with exam.part("no token reads ahead"):
        given = drawn(2, 5, 8)
        exam.tensor(exam.call(self_attention, *given, 2), "the output")
        if found := _leak(exam, self_attention, 2, *given):
            raise wrong(found.id, found.message, found.hint)
    with exam.part("gradients reach every weight"):
        x, *weights = drawn(2, 4, 8)
        named = {"x": x, **dict(zip(("w_q", "w_k", "w_v", "w_o"), weights, strict=True))}
        for tensor in named.values():
            tensor.requires_grad_()
        got = exam.tensor(exam.call(self_attention, *named.values(), 2), "the output")
        # Squared: the plain sum of a row of softmax weights has no gradient, whatever the scores are.
        exam.learns(got.square(), named)
    return exam.report()


def _leak(exam: Exam, self_attention: Any, n_heads: int, x: Tensor, *weights: Tensor) -> Finding | None:
    """Whether another last token changes what comes out for the tokens before it."""
    if x.shape[1] == 1:
        return None
    changed = x.clone()
    changed[:, -1] += 3.0
    before = exam.tensor(exam.call(self_attention, x, *weights, n_heads), "the output")
    after = exam.tensor(exam.call(self_attention, changed, *weights, n_heads), "the output")
    if before.shape != x.shape or after.shape != x.shape:
        return None
    if torch.allclose(before[:, :-1], after[:, :-1], atol=1e-4, equal_nan=True):
        return None
    return Finding(
        "reads_ahead",
        "When only the last token changes, the output of tokens before it changes too: they read ahead.",
        "Check the mask, and every reshape: a reshape in the wrong order also lets tokens meet that must not.",
    )
