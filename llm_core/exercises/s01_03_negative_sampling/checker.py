"""Checks `noise_shares`, `sgns_loss` and `sgns_gradients` against `llm_core.models.word2vec` and torch's autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Explanation, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report
from llm_core.exercises.s01_03_negative_sampling.spec import far_off, frequencies, pairs
from llm_core.models.word2vec import negative_sampling_gradients, negative_sampling_loss, noise_distribution

RESULTS = ("d_predictor", "d_target", "d_negatives")

NOISE = (
    Mistake(
        "power_forgotten",
        "These are the shares of the counts; the power is missing.",
        "Raise each count to the power, and divide by the sum of what comes out.",
        ({"power": "none"},),
    ),
    Mistake(
        "power_after_shares",
        "The shares are raised to the power, and then they no longer sum to one.",
        "Divide last: by the sum of the raised counts.",
        ({"power": "last"},),
    ),
    Mistake(
        "not_shares",
        "The raised counts are no probabilities yet.",
        "Divide by their sum.",
        ({"power": "undivided"},),
    ),
)

LOSS = (
    Mistake(
        "noise_pulled",
        "The noise is treated like a true pair: its score should be low, and here it is rewarded for being high.",
        "There is a minus inside the sigmoid of each noise word.",
        ({"noise": "pulled"},),
    ),
    Mistake(
        "target_pushed",
        "The true pair is treated like noise.",
        "Its score stands in the sigmoid as it is, without a minus.",
        ({"true": "pushed"},),
    ),
    Mistake(
        "noise_left_out",
        "The noise does not count.",
        "The second term of the loss sums over the K noise words of each pair.",
        ({"noise": "none"},),
    ),
    Mistake(
        "target_left_out",
        "The true pairs do not count.",
        "The first term of the loss is theirs.",
        ({"true": "none"},),
    ),
    Mistake(
        "sign",
        "The loss has the wrong sign: it is what should be made large.",
        "Both terms have a minus in front.",
        ({"sign": -1.0},),
    ),
    Mistake(
        "mean_of_noise",
        "The noise words of a pair are averaged.",
        "They are summed: more noise weighs more.",
        ({"noise": "mean"},),
    ),
    Mistake(
        "mean_of_pairs",
        "The loss is a mean over the pairs.",
        "It is their sum.",
        ({"pairs": "mean"},),
    ),
    Mistake(
        "one_score_for_all_noise",
        "The noise vectors of a pair are added up before the sigmoid.",
        "Each noise word has a score and a sigmoid of its own.",
        ({"noise": "together"},),
    ),
    Mistake(
        "no_logarithm",
        "The probabilities are summed, not their logarithms.",
        "Each term is a logarithm: `F.logsigmoid`.",
        ({"log": False},),
    ),
)
NOT_FINITE = Finding(
    "not_finite",
    "With scores of thousands the loss is infinite or not a number.",
    "The sigmoid of -1000 is 0 in floating point, and its logarithm infinite. `F.logsigmoid` computes both in one.",
    known=True,
)

GRADIENTS = (
    Mistake(
        "label_forgotten",
        "The true pair is pushed away: the 1 of its label is missing.",
        "The slope of the loss in a score is sigmoid(score) - label, and the label of a true pair is 1.",
        ({"label": 0.0},),
    ),
    Mistake(
        "label_of_noise",
        "The noise is pulled: its label is taken for 1.",
        "The label of a noise word is 0, so its slope is sigmoid(score).",
        ({"noise_label": 1.0},),
    ),
    Mistake(
        "uphill",
        "All gradients have the wrong sign.",
        "The slope is sigmoid(score) - label, in this order.",
        ({"sign": -1.0},),
    ),
    Mistake(
        "predictor_without_noise",
        "The predictor learns from the target alone.",
        "It takes part in 1 + K scores, so K further terms push it away from the noise.",
        ({"taken": "target"},),
    ),
    Mistake(
        "predictor_without_target",
        "The predictor learns from the noise alone.",
        "It takes part in 1 + K scores; the first one is that with the target.",
        ({"taken": "noise"},),
    ),
    Mistake(
        "noise_averaged",
        "The predictor takes the mean over its noise words.",
        "The loss sums over them, and so does its gradient.",
        ({"taken": "mean"},),
    ),
    Mistake(
        "own_vector",
        "Target and noise are moved along themselves.",
        "The derivative of a dot product in one vector is the other one: both move along the predictor.",
        ({"along": "itself"},),
    ),
    Mistake(
        "sigmoid_derivative",
        "The slope is multiplied by the derivative of the sigmoid.",
        "That of the logarithm cancels it: what is left is sigmoid(score) - label.",
        ({"slope": "twice"},),
    ),
    Mistake(
        "mean_gradient",
        "The gradients are divided by the number of pairs.",
        "The loss is a sum over pairs.",
        ({"pairs": "mean"},),
    ),
)


def noise_variant(counts: Tensor, exponent: float, *, power: str = "first") -> Tensor:
    """The shares of noise, with a knob for every usual mistake; as it stands, it is right."""
    counts = counts.double()
    raised = counts**exponent
    return {
        "first": raised / raised.sum(),
        "none": counts / counts.sum(),
        "last": (counts / counts.sum()) ** exponent,
        "undivided": raised,
    }[power]


def loss_variant(
    predictor: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    noise: str = "pushed",
    true: str = "pulled",
    sign: float = 1.0,
    pairs: str = "sum",
    log: bool = True,
) -> Tensor:
    """The loss, with a knob for every usual mistake; as it stands, it is right."""
    of = F.logsigmoid if log else torch.sigmoid
    scores = (predictor * target).sum(-1)
    others = (negatives * predictor[:, None]).sum(-1)
    first = {"pulled": of(scores), "pushed": of(-scores), "none": 0 * scores}[true]
    second = {
        "pushed": of(-others).sum(1),
        "pulled": of(others).sum(1),
        "none": 0 * scores,
        "mean": of(-others).mean(1),
        "together": of(-others.sum(1)),
    }[noise]
    total = -(first + second).sum()
    return sign * total / (len(predictor) if pairs == "mean" else 1)


def gradients_variant(
    predictor: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    which: str,
    label: float = 1.0,
    noise_label: float = 0.0,
    sign: float = 1.0,
    taken: str = "both",
    along: str = "the other",
    slope: str = "once",
    pairs: str = "sum",
) -> Tensor:
    """One of the three gradients, with a knob for every usual mistake; as it stands, it is right."""
    true = (predictor * target).sum(-1, keepdim=True).sigmoid()
    false = (negatives * predictor[:, None]).sum(-1, keepdim=True).sigmoid()
    pull, push = true - label, false - noise_label
    if slope == "twice":
        pull, push = pull * true * (1 - true), push * false * (1 - false)
    noise = push * negatives
    terms = {
        "both": pull * target + noise.sum(1),
        "target": pull * target,
        "noise": noise.sum(1),
        "mean": pull * target + noise.mean(1),
    }
    results = {
        "d_predictor": terms[taken],
        "d_target": pull * (target if along == "itself" else predictor),
        "d_negatives": push * (negatives if along == "itself" else predictor[:, None]),
    }
    return sign * results[which] / (len(predictor) if pairs == "mean" else 1)


def examine(
    noise_shares: Any, sgns_loss: Any, sgns_gradients: Any, *, seed: int, n_pairs: int, n_noise: int, d_model: int
) -> Report:
    """Check a learner's `noise_shares`, `sgns_loss` and `sgns_gradients`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_pairs=n_pairs, n_noise=n_noise, d_model=d_model)
    source = generator(seed)
    parameters = {"seed": seed, "n_pairs": n_pairs, "n_noise": n_noise, "d_model": d_model}
    exam = Exam("01/03_negative_sampling", parameters, atol=1e-8)

    def shares(counts: Tensor, power: float) -> None:
        got = exam.tensor(exam.call(noise_shares, counts, power), "the shares")
        known = mistakes(noise_variant, NOISE, counts=counts, exponent=power)
        exam.compare(got, noise_distribution(counts, power), known, what="the shares")

    def loss(given: tuple[Tensor, ...], *not_finite: Explanation) -> None:
        got = exam.tensor(exam.call(sgns_loss, *given), "the loss")
        if not_finite and not got.isfinite().all():
            raise Wrong(*not_finite)
        known = mistakes(loss_variant, LOSS, **_named(given))
        exam.compare(got, negative_sampling_loss(*given), known, what="the loss")

    def gradients(given: tuple[Tensor, ...]) -> None:
        tracked = [x.clone().requires_grad_() for x in given]
        expected = torch.autograd.grad(negative_sampling_loss(*tracked), tracked)
        for ours, theirs in zip(negative_sampling_gradients(*given), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        got = exam.unpack(exam.call(sgns_gradients, *given), ", ".join(RESULTS))
        for which, result, right in zip(RESULTS, got, expected, strict=True):
            known = mistakes(gradients_variant, GRADIENTS, which=which, **_named(given))
            exam.compare(exam.tensor(result, which), right, known, what=which)

    with exam.part("the noise of seven words"):
        shares(frequencies(source, 7), 0.75)
    with exam.part("the noise with another power"):
        shares(frequencies(source, 12), 0.5)
    with exam.part("the loss of your pairs"):
        loss(pairs(source, n_pairs, n_noise, d_model))
    with exam.part("the loss of four pairs"):
        loss(pairs(source, 4, 3, 5))
    with exam.part("the loss with scores of thousands"):
        loss(far_off(source), (NOT_FINITE,))
    with exam.part("the gradients of your pairs"):
        gradients(pairs(source, n_pairs, n_noise, d_model))
    with exam.part("the gradients of four pairs"):
        gradients(pairs(source, 4, 3, 5))
    with exam.part("the gradients with scores of thousands"):
        gradients(far_off(source))
    return exam.report()


def _named(given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(("predictor", "target", "negatives"), given, strict=True))
