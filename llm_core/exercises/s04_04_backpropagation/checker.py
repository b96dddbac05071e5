"""Checks `softmax_backward`, `cross_entropy_backward` and `attention_backward` against torch's autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Explanation, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

SOFTMAX = (
    Mistake(
        "row_sum_forgotten",
        "The row sum is missing: each weight is treated as if it depended on its own score alone.",
        "A score that grows takes weight from all others of its row; that is what "
        "`(weights * d_weights).sum(-1)` accounts for. Each row of d_scores has to add up to zero.",
        ({"formula": "no sum"},),
    ),
    Mistake(
        "sum_over_wrong_axis",
        "The sum in the softmax runs over the wrong dimension, or over all of them.",
        "A softmax shares out the weight within a row: it is the last dimension, whatever stands in front.",
        ({"formula": "axis -2"}, {"formula": "axis 0"}, {"formula": "axis 1"}, {"formula": "all"}),
    ),
    Mistake(
        "keepdim_forgotten",
        "The row sums are subtracted along the wrong dimension: the sum of row i meets column i.",
        "`sum(-1)` drops a dimension, and in a square matrix what is left fits the other way as well. "
        "`keepdim=True` keeps the sum of a row beside its row.",
        ({"formula": "keepdim"},),
    ),
    Mistake(
        "sigmoid_derivative",
        "This is the derivative of the sigmoid, w (1 - w), in the place of that of the softmax.",
        "w (1 - w) is the diagonal of the Jacobian: what a score does to its own weight. Its effect on the other "
        "weights is missing.",
        ({"formula": "sigmoid"},),
    ),
    Mistake(
        "sum_not_weighted",
        "What is taken off d_weights is its plain sum or mean, not the mean weighted with the weights.",
        "Inside the sum, each d_weights is multiplied by its weight. The weights sum to one, so nothing is divided.",
        ({"formula": "plain mean"}, {"formula": "plain sum"}),
    ),
    Mistake(
        "sum_added",
        "The row sum is added; it has to be subtracted.",
        "The slopes beside the diagonal of the Jacobian are negative.",
        ({"formula": "added"},),
    ),
    Mistake(
        "not_multiplied_by_weights",
        "The difference of d_weights and the row sum is not multiplied by the weights.",
        "Where a weight is 0, as behind a mask, the derivative of its score has to be 0.",
        ({"formula": "no factor"},),
    ),
)

CROSS_ENTROPY = (
    Mistake(
        "one_hot_not_subtracted",
        "These are the probabilities: no 1 is taken off at the targets.",
        "What the model said, minus what was so: p - onehot(target).",
        ({"off": "p"},),
    ),
    Mistake(
        "only_the_target",
        "Only the target's logit gets a gradient.",
        "The other logits are in the sum below the fraction bar: where they grow, the target's probability falls.",
        ({"off": "target only"},),
    ),
    Mistake(
        "softmax_forgotten",
        "The one-hot is taken off the logits themselves, or off their log-softmax; it has to be the probabilities.",
        "p is the softmax of the logits.",
        ({"off": "logits"}, {"off": "log p"}),
    ),
    Mistake(
        "softmax_over_wrong_axis",
        "The probabilities of a token do not sum to one: the softmax runs over the tokens.",
        "The logits have the shape (N, V): the vocabulary is the last dimension.",
        ({"axis": 0},),
    ),
    Mistake(
        "not_divided_by_n",
        "This is the gradient of the sum of the losses; the gradient of their mean is asked for.",
        "Divide by the number of tokens, N.",
        ({"divide": "1"},),
    ),
    Mistake(
        "divided_by_v",
        "The gradient is divided by V, or by N times V.",
        "The loss is a mean over N tokens. The vocabulary is summed over, in the softmax, and never averaged.",
        ({"divide": "V"}, {"divide": "N V"}),
    ),
    Mistake(
        "sign_reversed",
        "The gradient has the wrong sign.",
        "It points to where the loss *grows*: at the target it is p - 1, which is never positive.",
        ({"sign": -1.0},),
    ),
)

ATTENTION = (
    Mistake(
        "scale_forgotten",
        "The scale is missing on the way back.",
        "The scores are divided by the square root of d_k, so their derivative is as well, for query and key alike.",
        ({"divide": "1"},),
    ),
    Mistake(
        "scaled_twice",
        "The scale is applied twice: the result is divided by d_k.",
        "Once for d_query and once for d_key. What was divided in d_scores is not divided again.",
        ({"divide": "d_k"},),
    ),
    Mistake(
        "multiplied_by_sqrt_d_k",
        "The result is multiplied by the square root of d_k.",
        "The derivative of x / c is 1 / c: the way back divides as the way forward does.",
        ({"divide": "1 / sqrt(d_k)"},),
    ),
    Mistake(
        "scaled_by_wrong_dimension",
        "The result is divided by the square root of the width of the values, or of a number of tokens.",
        "d_k is the width of queries and keys: `query.shape[-1]`.",
        ({"divide": "sqrt(d_v)"}, {"divide": "sqrt(T)"}, {"divide": "sqrt(S)"}),
    ),
    Mistake(
        "d_value_scaled",
        "d_value is divided by the square root of d_k.",
        "The values meet the weights after the softmax; the scale belongs to the scores, before it.",
        ({"scale_value": True},),
    ),
    Mistake(
        "d_scores_not_transposed",
        "d_scores is not transposed for d_key.",
        "Column j of d_scores belongs to key j. With as many keys as queries the shape fits either way.",
        ({"transpose_scores": False},),
    ),
    Mistake(
        "weights_not_transposed",
        "The weights are not transposed for d_value.",
        "Value j gets what every query i that read it sends back: the sum over i of weights[i, j] d_output[i].",
        ({"transpose_weights": False},),
    ),
    Mistake(
        "multiplied_by_itself",
        "d_query is made with the query, or d_key with the key; each is made with the other.",
        "A score is a product of query and key. Its slope for the one is the other.",
        ({"factors": "own"},),
    ),
    Mistake(
        "d_weights_not_d_scores",
        "The derivative of the weights is used where that of the scores belongs: the softmax is left out.",
        "Queries and keys make the scores. From d_weights to d_scores it takes `softmax_backward`.",
        ({"formula": "d_weights"},),
    ),
    Mistake(
        "results_exchanged",
        "The three results are right, but they are not in the order d_query, d_key, d_value.",
        "Look at the `return`. With as many keys as queries they have the same shapes.",
        ({"order": (1, 0, 2)}, {"order": (2, 1, 0)}, {"order": (0, 2, 1)}, {"order": (1, 2, 0)}, {"order": (2, 0, 1)}),
    ),
)

ONE_BY_ONE = Finding(
    "one_by_one",
    "Where the model is sure and wrong, the gradient is NaN or infinite.",
    "That comes from 1 / p or ln p of a probability that has become 0. Softmax and logarithm together have a formula "
    "without either: p - onehot(target).",
    known=True,
)

OVERFLOW = Finding(
    "overflow",
    "With large logits the gradient is NaN or infinite.",
    "exp(710) no longer fits into float64. `torch.softmax` takes the largest logit off first.",
    known=True,
)

RESULTS = ("d_query", "d_key", "d_value")
ARGUMENTS = ("query", "key", "value", "weights", "d_output")


def softmax_variant(weights: Tensor, d_weights: Tensor, *, formula: str = "right") -> Tensor:
    """The softmax's way back, with a knob for every usual mistake; as it stands, it is right."""
    product = weights * d_weights

    def minus(mean: Tensor) -> Tensor:
        return weights * (d_weights - mean)

    return {
        "right": lambda: minus(product.sum(-1, keepdim=True)),
        "no sum": lambda: product,
        "axis -2": lambda: minus(product.sum(-2, keepdim=True)),
        "axis 0": lambda: minus(product.sum(0, keepdim=True)),
        "axis 1": lambda: minus(product.sum(1, keepdim=True)),
        "all": lambda: minus(product.sum()),
        "keepdim": lambda: minus(product.sum(-1)),
        "sigmoid": lambda: product * (1 - weights),
        "plain mean": lambda: minus(d_weights.mean(-1, keepdim=True)),
        "plain sum": lambda: minus(d_weights.sum(-1, keepdim=True)),
        "added": lambda: weights * (d_weights + product.sum(-1, keepdim=True)),
        "no factor": lambda: d_weights - product.sum(-1, keepdim=True),
        "d_weights": lambda: d_weights,
    }[formula]()


def cross_entropy_variant(
    logits: Tensor, targets: Tensor, *, off: str = "p - one-hot", axis: int = -1, divide: str = "N", sign: float = 1.0
) -> Tensor:
    """Cross-entropy's way back, with a knob for every usual mistake; as it stands, it is right."""
    N, V = logits.shape
    p, one_hot = logits.softmax(axis), F.one_hot(targets, V)
    found = {
        "p - one-hot": lambda: p - one_hot,
        "p": lambda: p,
        "target only": lambda: (p - 1) * one_hot,
        "logits": lambda: logits - one_hot,
        "log p": lambda: logits.log_softmax(axis) - one_hot,
    }[off]()
    return sign * found / {"N": N, "1": 1, "V": V, "N V": N * V}[divide]


def attention_variant(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    d_output: Tensor,
    which: str,
    *,
    formula: str = "right",
    divide: str = "sqrt(d_k)",
    scale_value: bool = False,
    transpose_scores: bool = True,
    transpose_weights: bool = True,
    factors: str = "other",
    order: tuple[int, int, int] = (0, 1, 2),
) -> Tensor:
    """One of attention's three gradients, with a knob for every usual mistake; as it stands, it is right."""
    d_k = query.shape[-1]
    divisor = {
        "sqrt(d_k)": d_k**0.5,
        "1": 1.0,
        "d_k": float(d_k),
        "1 / sqrt(d_k)": d_k**-0.5,
        "sqrt(d_v)": value.shape[-1] ** 0.5,
        "sqrt(T)": query.shape[-2] ** 0.5,
        "sqrt(S)": key.shape[-2] ** 0.5,
    }[divide]
    d_scores = softmax_variant(weights, d_output @ value.mT, formula=formula) / divisor
    first, second = (key, query) if factors == "other" else (query, key)
    results = {
        "d_query": lambda: d_scores @ first,
        "d_key": lambda: (d_scores.mT if transpose_scores else d_scores) @ second,
        "d_value": lambda: (
            (weights.mT if transpose_weights else weights) @ d_output / (d_k**0.5 if scale_value else 1.0)
        ),
    }
    return results[RESULTS[order[RESULTS.index(which)]]]()


def examine(
    softmax_backward: Any,
    cross_entropy_backward: Any,
    attention_backward: Any,
    *,
    seed: int,
    n_tokens: int,
    n_heads: int,
    d_head: int,
    vocab_size: int,
) -> Report:
    """Check a learner's `softmax_backward`, `cross_entropy_backward` and `attention_backward`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_tokens=n_tokens, n_heads=n_heads, d_head=d_head, vocab_size=vocab_size)
    source = generator(seed)
    exam = Exam(
        "04/04_backpropagation",
        {"seed": seed, "n_tokens": n_tokens, "n_heads": n_heads, "d_head": d_head, "vocab_size": vocab_size},
        atol=1e-8,  # everything is float64, and a gradient of many tokens is small
    )

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    def lower(n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).tril()

    def through_softmax(scores: Tensor) -> None:
        scores, d_weights = scores.requires_grad_(), randn(*scores.shape)
        weights = F.softmax(scores, dim=-1)
        (expected,) = torch.autograd.grad(weights, scores, d_weights)
        given = (weights.detach(), d_weights)
        exam.compare(
            exam.tensor(exam.call(softmax_backward, *given), "d_scores"),
            expected,
            mistakes(softmax_variant, SOFTMAX, weights=given[0], d_weights=given[1]),
            what="d_scores",
            clue=lambda: exam.suspect(softmax_backward, given, "weights, d_weights"),
        )

    def through_loss(logits: Tensor, targets: Tensor, *not_finite: Explanation) -> None:
        got = exam.tensor(exam.call(cross_entropy_backward, logits, targets), "d_logits")
        if not_finite and not got.isfinite().all():
            raise Wrong(*not_finite)
        tracked = logits.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(tracked, targets), tracked)
        exam.compare(
            got,
            expected,
            mistakes(cross_entropy_variant, CROSS_ENTROPY, logits=logits, targets=targets),
            what="d_logits",
            clue=lambda: exam.suspect(cross_entropy_backward, (logits, targets), "logits, targets"),
        )

    def drawn(N: int, V: int) -> tuple[Tensor, Tensor]:
        return 2 * randn(N, V), torch.randint(V, (N,), generator=source)

    def through_attention(
        *batch: int, T: int, S: int, d_k: int, d_v: int, masked: bool = False, size: float = 1.0
    ) -> None:
        query, key, value = size * randn(*batch, T, d_k), randn(*batch, S, d_k), randn(*batch, S, d_v)
        d_output, mask = randn(*batch, T, d_v), lower(T) if masked else torch.ones(T, S, dtype=torch.bool)
        scores = query @ key.mT / d_k**0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        q, k, v = tracked = [x.clone().requires_grad_() for x in (query, key, value)]
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        right = dict(zip(RESULTS, torch.autograd.grad(output, tracked, d_output), strict=True))
        given = dict(zip(ARGUMENTS, (query, key, value, weights, d_output), strict=True))

        got = exam.unpack(exam.call(attention_backward, *given.values()), ", ".join(RESULTS))
        results = dict(zip(RESULTS, got, strict=True))
        for which in ("d_value", "d_query", "d_key"):
            exam.compare(
                exam.tensor(results[which], which),
                right[which],
                mistakes(attention_variant, (*ATTENTION, *SOFTMAX), which=which, **given),
                what=which,
                clue=partial(_attention_clue, exam, attention_backward, given, which),
            )

    with exam.part("softmax, your sizes"):
        through_softmax(2 * randn(n_tokens, n_tokens))
    with exam.part("softmax, batch and heads in front"):
        through_softmax(2 * randn(2, 3, 4, 5))
    with exam.part("softmax, a causal mask"):
        through_softmax(randn(5, 5).masked_fill(~lower(5), float("-inf")))
    with exam.part("softmax, a single key"):
        through_softmax(randn(3, 1))
    with exam.part("softmax, peaked weights"):
        scores = 8 * randn(4, 6)
        scores[1, 2] = 1000.0  # one weight of this row is 1, all others are 0
        through_softmax(scores)
    with exam.part("cross-entropy, your sizes"):
        through_loss(*drawn(n_tokens, vocab_size))
    with exam.part("cross-entropy, three tokens"):
        through_loss(*drawn(3, 7))
    with exam.part("cross-entropy, a single token"):
        through_loss(*drawn(1, 6))
    with exam.part("cross-entropy, sure and wrong"):
        # exp(400) fits into float64, and the probability exp(-800) does not.
        logits, targets = drawn(3, 4)
        logits[:, 0], logits[:, 1], targets[:] = 400.0, -400.0, 1
        through_loss(logits, targets, (ONE_BY_ONE,))
    with exam.part("cross-entropy, large logits"):
        logits, targets = drawn(3, 5)
        through_loss(logits + 2000, targets, (OVERFLOW,), (ONE_BY_ONE,))
    with exam.part("attention, your sizes"):
        through_attention(n_heads, T=n_tokens, S=n_tokens, d_k=d_head, d_v=d_head)
    with exam.part("attention, batch and heads in front"):
        through_attention(2, 3, T=4, S=4, d_k=6, d_v=3)
    with exam.part("attention, a causal mask"):
        through_attention(2, T=5, S=5, d_k=3, d_v=7, masked=True)
    with exam.part("attention, three queries, five keys"):
        through_attention(T=3, S=5, d_k=6, d_v=2)
    with exam.part("attention, a single token"):
        through_attention(T=1, S=1, d_k=3, d_v=2)
    with exam.part("attention, peaked weights"):
        through_attention(T=4, S=4, d_k=5, d_v=5, size=6.0)
    return exam.report()


def _attention_clue(exam: Exam, attention_backward: Any, given: dict[str, Tensor], which: str) -> Finding | None:
    """Whether this result is random, or ignores an argument that it depends on."""
    names = {
        "d_query": ("key", "value", "weights", "d_output"),
        "d_key": ("query", "value", "weights", "d_output"),
        "d_value": ("weights", "d_output"),
    }[which]

    def again(*changed: Tensor) -> Any:
        inputs = {**given, **dict(zip(names, changed, strict=True))}
        results = exam.unpack(attention_backward(*inputs.values()), ", ".join(RESULTS))
        return results[RESULTS.index(which)]

    again.__name__ = getattr(attention_backward, "__name__", "attention_backward")
    return exam.suspect(again, [given[name] for name in names], ", ".join(names))
