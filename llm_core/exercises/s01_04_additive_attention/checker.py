"""Checks `scores`, `weights` and `read` against `llm_core.models.cells`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report
from llm_core.exercises.s01_04_additive_attention.spec import layer, padded
from llm_core.models.cells import additive_attention, additive_attention_weights

SCORES = (
    Mistake(
        "no_tanh",
        "The sum goes into the dot product as it is.",
        "There is a tanh around it. Without one the query adds the same number to all scores, and the softmax does "
        "not notice it at all.",
        ({"squeeze": "none"},),
    ),
    Mistake(
        "tanh_of_each",
        "Query and state go through a tanh each, before they are added.",
        "They are added first; one tanh goes around the sum.",
        ({"squeeze": "each"},),
    ),
    Mistake(
        "sigmoid",
        "This is a sigmoid where a tanh should be.",
        "The score is v . tanh(...).",
        ({"squeeze": "sigmoid"},),
    ),
    Mistake(
        "no_bias",
        "The bias is missing.",
        "It is added to the projected query (or to the sum, which is the same).",
        ({"biases": 0},),
    ),
    Mistake(
        "two_biases",
        "The bias is added to the query and to the state.",
        "They are added to one another, so that it comes twice. Once is right.",
        ({"biases": 2},),
    ),
    Mistake(
        "multiplied",
        "Query and state are multiplied.",
        "Additive attention adds the two projections.",
        ({"join": "product"},),
    ),
    Mistake(
        "query_ignored",
        "The query has no effect on the scores.",
        "Each query has scores of its own: its projection is added to that of every state.",
        ({"join": "states alone"},),
    ),
    Mistake(
        "mean_not_dot",
        "The last step takes a mean over the width.",
        "`@ vector` is a sum of products; it is not divided by their number.",
        ({"divided": True},),
    ),
)

WEIGHTS = (
    Mistake(
        "mask_ignored",
        "The padding gets weight.",
        "The length of each source says how many of its states are real. The others' scores become -inf.",
        ({"mask": "none"},),
    ),
    Mistake(
        "mask_inverted",
        "The mask is the wrong way round: the padding is read, and what is real is not.",
        "`masked_fill` fills where its mask is True. It needs the places of the padding.",
        ({"mask": "inverted"},),
    ),
    Mistake(
        "one_too_many",
        "One place of the padding is read too.",
        "A source of length 3 has the places 0, 1 and 2: smaller than its length, not up to it.",
        ({"mask": "one more"},),
    ),
    Mistake(
        "one_too_few",
        "The last letter of each source is not read.",
        "A source of length 3 has the places 0, 1 and 2.",
        ({"mask": "one less"},),
    ),
    Mistake(
        "padding_on_the_left",
        "The mask has the padding on the left.",
        "The sources are filled up on the right.",
        ({"mask": "left"},),
    ),
    Mistake(
        "mask_after_softmax",
        "The padding is masked after the softmax, so that a row no longer sums to one.",
        "Masked scores become -inf before the softmax.",
        ({"mask": "after"},),
    ),
    Mistake(
        "masked_with_zero",
        "Masked scores are set to 0, which is an ordinary score.",
        "exp(0) = 1. It takes -inf, whose exp() is 0.",
        ({"mask": "zero"},),
    ),
    Mistake(
        "wrong_axis",
        "The softmax runs over the wrong dimension.",
        "Each query spreads a weight of one over the states, which are the last dimension.",
        ({"axis": 1}, {"axis": 0}),
    ),
)


def scores_variant(
    query: Tensor,
    states: Tensor,
    w_query: Tensor,
    w_state: Tensor,
    bias: Tensor,
    vector: Tensor,
    *,
    squeeze: str = "sum",
    biases: int = 1,
    join: str = "sum",
    divided: bool = False,
) -> Tensor:
    """The scores, with a knob for every usual mistake; as it stands, it is right."""
    asked, offered = (query @ w_query.T + biases * bias)[:, :, None], (states @ w_state.T)[:, None]
    if squeeze == "each":
        asked, offered = asked.tanh(), offered.tanh()
    joined = {"sum": asked + offered, "product": asked * offered, "states alone": 0 * asked + offered}[join]
    joined = {"sum": joined.tanh(), "each": joined, "none": joined, "sigmoid": joined.sigmoid()}[squeeze]
    return joined @ vector / (len(vector) if divided else 1)


def weights_variant(scores: Tensor, lengths: Tensor, *, mask: str = "right", axis: int = -1) -> Tensor:
    """The weights, with a knob for every usual mistake; as it stands, it is right."""
    S = scores.shape[-1]
    places, ends = torch.arange(S), lengths[:, None]
    shift = {"one more": 1, "one less": -1}.get(mask, 0)
    real = (places >= S - ends if mask == "left" else places < ends + shift)[:, None]
    hidden = {"none": real & False, "after": real & False, "inverted": real}.get(mask, ~real)
    masked = scores.masked_fill(hidden, 0.0 if mask == "zero" else float("-inf"))
    weights = masked.softmax(axis)
    return weights * real if mask == "after" else weights


def examine(scores: Any, weights: Any, read: Any, *, seed: int, n_sources: int, longest: int, d_state: int) -> Report:
    """Check a learner's `scores`, `weights` and `read`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_sources=n_sources, longest=longest, d_state=d_state)
    source = generator(seed)
    exam = Exam(
        "01/04_additive_attention",
        {"seed": seed, "n_sources": n_sources, "longest": longest, "d_state": d_state},
    )

    def fits(B: int, T: int, S: int, Q: int, N: int, A: int) -> None:
        query, states = torch.randn(B, T, Q, generator=source), torch.randn(B, S, N, generator=source)
        w_query, w_state, bias, vector = layer(source, Q, N, A)
        got = exam.tensor(exam.call(scores, query, states, w_query, w_state, bias, vector), "the scores")
        expected = ((query @ w_query.T + bias)[:, :, None] + (states @ w_state.T)[:, None]).tanh() @ vector
        # The package has no scores, only their softmax.
        package = additive_attention_weights(query @ w_query.T + bias, states @ w_state.T, vector)
        torch.testing.assert_close(expected.softmax(-1), package, rtol=1e-4, atol=1e-5)
        given = {"query": query, "states": states, "w_query": w_query, "w_state": w_state}
        known = mistakes(scores_variant, SCORES, **given, bias=bias, vector=vector)
        exam.compare(got, expected, known, what="the scores")

    def spread(drawn: Tensor, lengths: Tensor) -> None:
        got = exam.tensor(exam.call(weights, drawn, lengths), "the weights")
        real = torch.arange(drawn.shape[-1]) < lengths[:, None]
        expected = drawn.masked_fill(~real[:, None], float("-inf")).softmax(-1)
        exam.compare(
            got, expected, mistakes(weights_variant, WEIGHTS, scores=drawn, lengths=lengths), what="the weights"
        )

    def mean(B: int, T: int, S: int, N: int) -> None:
        query, key = torch.randn(B, T, 4, generator=source), torch.randn(B, S, 4, generator=source)
        vector, states = torch.randn(4, generator=source), torch.randn(B, S, N, generator=source)
        given = additive_attention_weights(query, key, vector)
        got = exam.tensor(exam.call(read, given, states), "what is read")
        exam.compare(got, additive_attention(query, key, states, vector), what="what is read")

    with exam.part("the scores of your sources"):
        fits(n_sources, 2, longest, d_state, d_state, 4)
    with exam.part("the scores of widths that differ"):
        fits(2, 3, 5, 4, 6, 7)
    with exam.part("the weights of your sources"):
        spread(torch.randn(n_sources, 2, longest, generator=source), padded(source, n_sources, longest))
    with exam.part("the weights of two sources, three and five letters long"):
        spread(torch.randn(2, 4, 5, generator=source), torch.tensor([3, 5]))
    with exam.part("what your decoder reads"):
        mean(n_sources, 2, longest, d_state)
    with exam.part("what three queries read from five states"):
        mean(2, 3, 5, 6)
    return exam.report()
