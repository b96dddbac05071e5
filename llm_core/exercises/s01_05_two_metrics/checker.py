"""Checks `token_share`, `whole_share` and `bits_learned` against counts in plain Python, and torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report
from llm_core.exercises.s01_05_two_metrics.spec import predictions

TOKENS = (
    Mistake(
        "padding_counted",
        "Tokens outside the answers are counted.",
        "Where the mask is False stands the question or padding. Neither its hits nor its number belong to the share.",
        ({"over": "all"},),
    ),
    Mistake(
        "divided_by_everything",
        "The right tokens of the answers are divided by the number of all tokens.",
        "Above the fraction bar the mask was applied, below it was not.",
        ({"over": "hits in mask / all"},),
    ),
    Mistake(
        "mean_of_rows",
        "The shares of the rows are averaged, though the answers are of unequal length.",
        "A token of a short answer then counts more than one of a long answer. Divide once.",
        ({"over": "rows"},),
    ),
    Mistake(
        "probability_not_hit",
        "The probabilities of the targets are averaged.",
        "That is a metric too, and a smooth one. Here a token is right or wrong: argmax.",
        ({"hit": "probability"},),
    ),
    Mistake(
        "count_not_share",
        "This is the number of right tokens, not their share.",
        "Divide by the number of tokens in the answers.",
        ({"over": "none"},),
    ),
    Mistake(
        "share_of_wrong",
        "This is the share of wrong tokens.",
        "Right is where the argmax equals the target.",
        ({"hit": "wrong"},),
    ),
)

WHOLE = (
    Mistake(
        "padding_must_be_right",
        "An answer only counts as right if the tokens outside it are right as well.",
        "Outside the mask anything may stand: `right | ~mask`.",
        ({"outside": "must be right"},),
    ),
    Mistake(
        "padding_is_wrong",
        "An answer that is shorter than its row never counts as right.",
        "`right & mask` is False outside the answer, and then not all of the row is True. `right | ~mask`.",
        ({"outside": "is wrong"},),
    ),
    Mistake(
        "empty_answers_counted",
        "Rows without an answer are counted as right.",
        "Of no tokens all are right, as Python sees it. Such rows are no answers and have to be left out.",
        ({"empty": "right"},),
    ),
    Mistake(
        "any_not_all",
        "An answer counts as right as soon as one of its tokens is.",
        "`all`, not `any`.",
        ({"join": "any"},),
    ),
    Mistake(
        "share_of_tokens",
        "This is the share of right tokens.",
        "One answer is one case: it is right or it is not.",
        ({"join": "mean"},),
    ),
    Mistake(
        "first_token_only",
        "Only the first token of each answer is looked at.",
        "All tokens of the answer have to be right.",
        ({"join": "first"},),
    ),
    Mistake(
        "share_of_wrong_answers",
        "This is the share of wrong answers.",
        "An answer is right where all of its tokens are.",
        ({"join": "not all"},),
    ),
)

BITS = (
    Mistake(
        "nats_not_bits",
        "The result is in nats.",
        "One bit is ln 2 nats: divide by math.log(2), or take logarithms to the base 2 throughout.",
        ({"unit": "nats"},),
    ),
    Mistake(
        "units_mixed",
        "Bits of guessing and nats of the model are mixed.",
        "`log2(choices)` is in bits and `log_softmax` in nats. Divide the latter by math.log(2).",
        ({"unit": "mixed"},),
    ),
    Mistake(
        "mean_not_sum",
        "This is the mean of a token; the sum over all tokens of the answers is asked for.",
        "What a network has stored is a total.",
        ({"over": "mean"},),
    ),
    Mistake(
        "padding_learned",
        "Tokens outside the answers are counted.",
        "Apply the mask before the sum.",
        ({"over": "all"},),
    ),
    Mistake(
        "surprise_not_gain",
        "This is what the tokens cost; asked for is how much less that is than by guessing.",
        "log2(choices) for each token of the answers, minus its cost.",
        ({"gain": "cost"},),
    ),
    Mistake(
        "wrong_sign",
        "The result has the wrong sign.",
        "What was learned is what guessing costs minus what the model costs.",
        ({"gain": "negative"},),
    ),
    Mistake(
        "vocabulary_not_choices",
        "Guessing is taken to be among the whole vocabulary.",
        "The number of choices is an argument: among 10 digits blind guessing costs log2(10) bits, whatever else the "
        "model could say.",
        ({"guess": "vocabulary"},),
    ),
    Mistake(
        "negative_gain_dropped",
        "Tokens that the model finds less likely than guessing count as nothing.",
        "They cost more than guessing, and that has to be paid for.",
        ({"gain": "clamped"},),
    ),
)

OVERFLOW = Finding(
    "overflow",
    "With large logits the bits are NaN or infinite.",
    "exp(89) no longer fits into float32, and the logarithm of a probability that is rounded to 0 is infinite. "
    "`log_softmax` takes both at once.",
    known=True,
)


def token_variant(logits: Tensor, targets: Tensor, mask: Tensor, *, over: str = "mask", hit: str = "right") -> Tensor:
    """The share of right tokens, with a knob for every usual mistake; as it stands, it is right."""
    right = (logits.argmax(-1) == targets).float()
    if hit == "probability":
        right = logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
    if hit == "wrong":
        right = 1 - right
    rows = mask.any(1)
    return {
        "mask": lambda: right[mask].mean(),
        "all": lambda: right.mean(),
        "hits in mask / all": lambda: (right * mask).mean(),
        "rows": lambda: ((right * mask).sum(1)[rows] / mask.sum(1)[rows]).mean(),
        "none": lambda: right[mask].sum(),
    }[over]()


def whole_variant(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    outside: str = "ignored",
    empty: str = "left out",
    join: str = "all",
) -> Tensor:
    """The share of right answers, with a knob for every usual mistake; as it stands, it is right."""
    right = logits.argmax(-1) == targets
    rows = mask.any(1)
    filled = {"ignored": right | ~mask, "must be right": right, "is wrong": right & mask}[outside]
    first = mask.int().argmax(1)
    whole = {
        "all": lambda: filled.all(1).float(),
        "not all": lambda: 1 - filled.all(1).float(),
        "any": lambda: (right & mask).any(1).float(),
        "first": lambda: right.gather(1, first[:, None])[:, 0].float(),
        "mean": lambda: None,
    }[join]()
    if whole is None:
        return right[mask].float().mean()
    return whole.mean() if empty == "right" else whole[rows].mean()


def bits_variant(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    choices: int,
    *,
    unit: str = "bits",
    over: str = "sum",
    gain: str = "gain",
    guess: str = "choices",
) -> Tensor:
    """The bits that were learned, with a knob for every usual mistake; as it stands, it is right."""
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    among = math.log(choices if guess == "choices" else logits.shape[-1])
    guessed, cost = {
        "bits": (among / math.log(2), nats / math.log(2)),
        "nats": (among, nats),
        "mixed": (among / math.log(2), nats),
    }[unit]
    each = {
        "gain": guessed - cost,
        "cost": cost,
        "negative": cost - guessed,
        "clamped": (guessed - cost).clamp(min=0),
    }[gain]
    return {"sum": each[mask].sum, "mean": each[mask].mean, "all": each.sum}[over]()


def examine(
    token_share: Any, whole_share: Any, bits_learned: Any, *, seed: int, n_answers: int, n_tokens: int, vocab_size: int
) -> Report:
    """Check a learner's `token_share`, `whole_share` and `bits_learned`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_answers=n_answers, n_tokens=n_tokens, vocab_size=vocab_size)
    source = generator(seed)
    exam = Exam(
        "01/05_two_metrics",
        {"seed": seed, "n_answers": n_answers, "n_tokens": n_tokens, "vocab_size": vocab_size},
    )

    def drawn(B: int, T: int, V: int, **how: float) -> tuple[Tensor, Tensor, Tensor]:
        logits, targets, mask = predictions(source, B, T, V, **how)
        return logits, targets, mask

    def tokens(logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        got = exam.number(exam.call(token_share, logits, targets, mask), "the share of tokens")
        pairs = list(zip(targets[mask].tolist(), logits.argmax(-1)[mask].tolist(), strict=True))
        share = sum(a == b for a, b in pairs) / len(pairs)
        known = mistakes(token_variant, TOKENS, logits=logits, targets=targets, mask=mask)
        exam.compare(got, torch.tensor(share), known, what="the share of tokens")

    def whole(logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        got = exam.number(exam.call(whole_share, logits, targets, mask), "the share of whole answers")
        said = [row[keep].tolist() for row, keep in zip(logits.argmax(-1), mask, strict=True) if keep.any()]
        asked = [row[keep].tolist() for row, keep in zip(targets, mask, strict=True) if keep.any()]
        share = sum(a == b for a, b in zip(said, asked, strict=True)) / len(asked)
        known = mistakes(whole_variant, WHOLE, logits=logits, targets=targets, mask=mask)
        exam.compare(got, torch.tensor(share), known, what="the share of whole answers")

    def bits(logits: Tensor, targets: Tensor, mask: Tensor, choices: int) -> None:
        got = exam.number(exam.call(bits_learned, logits, targets, mask, choices), "the bits")
        if not got.isfinite().all():
            raise Wrong((OVERFLOW,))
        cost = F.cross_entropy(logits[mask].double(), targets[mask], reduction="sum") / math.log(2)
        expected = int(mask.sum()) * math.log2(choices) - cost
        known = mistakes(bits_variant, BITS, logits=logits, targets=targets, mask=mask, choices=choices)
        exam.compare(got, expected, known, what="the bits")

    with exam.part("the tokens of your answers"):
        tokens(*drawn(n_answers, n_tokens, vocab_size))
    with exam.part("the tokens of a dozen answers"):
        tokens(*drawn(12, 6, 9, right=0.7))
    with exam.part("the only token of one answer"):
        tokens(*drawn(1, 1, 4))
    with exam.part("your answers as wholes"):
        whole(*drawn(n_answers, n_tokens, vocab_size))
    with exam.part("thirty answers as wholes"):
        whole(*drawn(30, 4, 9, right=0.75))
    with exam.part("rows without an answer"):
        logits, targets, mask = drawn(12, 5, 9, right=0.6)
        mask[3:7] = False
        whole(logits, targets, mask)
    with exam.part("the bits of your answers"):
        bits(*drawn(n_answers, n_tokens, vocab_size), vocab_size)
    with exam.part("digits in a vocabulary of 74"):
        bits(*drawn(6, 8, 74, right=0.4), 10)
    with exam.part("bits with large logits"):
        bits(*drawn(3, 4, 6, size=100.0), 6)
    return exam.report()
