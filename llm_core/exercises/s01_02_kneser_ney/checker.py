"""Checks `continuation`, `kneser_ney` and `discounts` against `llm_core.models.ngram`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report
from llm_core.exercises.s01_02_kneser_ney.spec import ONE_WORD, every_count, table
from llm_core.models.ngram import KneserNey, ModifiedKneserNey, NGramModel

CONTINUATION = (
    Mistake(
        "occurrences_not_neighbours",
        "How often a word came is counted; it has to be after how many different words.",
        "A pair counts once, however often it came: `counts > 0`.",
        ({"what": "occurrences"},),
    ),
    Mistake(
        "words_that_follow",
        "The words that follow are counted, not the words before.",
        "Row c of the table holds what came after c. The words before w stand in its column.",
        ({"axis": 1},),
    ),
    Mistake(
        "not_shares",
        "The numbers of neighbours are no probabilities yet.",
        "Divide by their sum, which is the number of different pairs.",
        ({"divide": "no"},),
    ),
    Mistake(
        "divided_by_the_vocabulary",
        "The numbers of neighbours are divided by V.",
        "They have to sum to one: divide by the number of different pairs.",
        ({"divide": "by V"},),
    ),
)

SMOOTHED = (
    Mistake(
        "rest_without_types",
        "The rest of a context is the discount of one word, not of all that gave it up.",
        "Every different word that followed the context gave up d: multiply by their number, types(c).",
        ({"types": "one"},),
    ),
    Mistake(
        "rest_of_all_words",
        "The rest is counted as if every word of the vocabulary had given up something.",
        "types(c) is the number of different words that followed c, not V.",
        ({"types": "V"},),
    ),
    Mistake(
        "rest_of_all_occurrences",
        "The rest is counted as if every occurrence had given up something.",
        "A word gives up d once, however often it came after the context: types(c), not count(c).",
        ({"types": "occurrences"},),
    ),
    Mistake(
        "rest_not_divided",
        "What was collected is not divided by count(c).",
        "It is a share of the context's count, like the first part of the formula.",
        ({"rest": "not divided"},),
    ),
    Mistake(
        "no_rest",
        "What was taken away goes to nobody.",
        "The second part of the formula hands it to the words by their neighbours; each row then sums to one.",
        ({"rest": "none"},),
    ),
    Mistake(
        "below_zero",
        "Words that never came get less than nothing in the first part.",
        "max(count - d, 0): a count of zero has nothing to give up.",
        ({"clip": False},),
    ),
    Mistake(
        "nothing_taken",
        "The counts are not discounted.",
        "max(count - d, 0) in the first part; what is not taken away there cannot be handed on.",
        ({"discounted": False},),
    ),
    Mistake(
        "rest_to_all_alike",
        "The rest goes to all words alike.",
        "It goes to each word by its share of neighbours, which is your `continuation`.",
        ({"below": "uniform"},),
    ),
    Mistake(
        "rest_by_occurrences",
        "The rest goes to the words by how often they came.",
        "By after how many different words they came: that is what Kneser and Ney changed.",
        ({"below": "occurrences"},),
    ),
    Mistake(
        "columns_for_rows",
        "The sums run over the wrong dimension.",
        "Row c belongs to the context c: count(c) and types(c) are sums over a row.",
        ({"axis": 0},),
    ),
    Mistake(
        "unseen_context",
        "A context that never came gets no probabilities.",
        "It has nothing to say, so it leaves all to the words alone: its row is `continuation(counts)`.",
        ({"unseen": "nothing"}, {"unseen": "uniform"}),
    ),
)

DISCOUNTS = (
    Mistake(
        "at_least_r",
        "n_r is taken for the number of pairs that came r times or more.",
        "It counts those that came exactly r times.",
        ({"count": "at least"},),
    ),
    Mistake(
        "occurrences_of_r",
        "n_r is taken for the occurrences of pairs that came r times.",
        "It is the number of such pairs; each counts once.",
        ({"count": "occurrences"},),
    ),
    Mistake(
        "without_the_two",
        "y is n_1 / (n_1 + n_2).",
        "There is a 2 before n_2.",
        ({"y": "no two"},),
    ),
    Mistake(
        "what_is_left",
        "This is what is left of a count, not what it gives up.",
        "The discount is r minus that.",
        ({"out": "left"},),
    ),
    Mistake(
        "one_discount_for_all",
        "This is the first discount, y, in all three places.",
        "With r = 1 the formula gives y itself. With 2 and 3 it gives something else.",
        ({"out": "y"},),
    ),
    Mistake(
        "fraction_upside_down",
        "n_(r+1) and n_r have changed places.",
        "n_(r+1) stands above the fraction bar.",
        ({"ratio": "inverse"},),
    ),
    Mistake(
        "r_for_r_plus_one",
        "The factor before y is r; it has to be r + 1.",
        "Of the pairs with count r + 1, each stands for r + 1 occurrences.",
        ({"factor": 0},),
    ),
)


def continuation_variant(counts: Tensor, *, what: str = "neighbours", axis: int = 0, divide: str = "by all") -> Tensor:
    """Each word's share of neighbours, with a knob for every usual mistake; as it stands, it is right."""
    numbers = (counts if what == "occurrences" else counts > 0).sum(axis).double()
    divisors = {"by all": float(numbers.sum()), "by V": float(len(counts)), "no": 1.0}
    return numbers / divisors[divide]


def smoothed_variant(
    counts: Tensor,
    discount: float,
    *,
    types: str = "types",
    rest: str = "divided",
    clip: bool = True,
    discounted: bool = True,
    below: str = "neighbours",
    axis: int = 1,
    unseen: str = "below",
) -> Tensor:
    """The table of probabilities, with a knob for every usual mistake; as it stands, it is right."""
    counts = counts.double()
    totals = counts.sum(axis, keepdim=True)
    number = {
        "types": (counts > 0).double().sum(axis, keepdim=True),
        "one": torch.ones_like(totals),
        "V": torch.full_like(totals, len(counts)),
        "occurrences": totals,
    }[types]
    lower = {
        "neighbours": continuation_variant(counts),
        "occurrences": continuation_variant(counts, what="occurrences"),
        "uniform": torch.full((len(counts),), 1 / len(counts), dtype=torch.float64),
    }[below]
    seen = totals.clamp(min=1)
    own = counts - discount if discounted else counts
    collected = discount * number / (1 if rest == "not divided" else seen)
    second = 0 if rest == "none" else collected * lower
    result = (own.clamp(min=0) if clip else own) / seen + second
    fallback = {"below": lower, "nothing": torch.zeros(()), "uniform": torch.tensor(1 / len(counts))}[unseen]
    return torch.where(totals > 0, result, fallback)


def discounts_variant(
    counts: Tensor, *, count: str = "exactly", y: str = "two", out: str = "given up", ratio: str = "", factor: int = 1
) -> Tensor:
    """The three discounts, with a knob for every usual mistake; as it stands, it is right."""
    numbers = [(counts >= r if count == "at least" else counts == r).sum().double() for r in range(5)]
    n = [r * number if count == "occurrences" else number for r, number in enumerate(numbers)]
    share = n[1] / (n[1] + (1 if y == "no two" else 2) * n[2])
    left = [(r + factor) * share * (n[r] / n[r + 1] if ratio == "inverse" else n[r + 1] / n[r]) for r in (1, 2, 3)]
    return torch.stack([{"given up": r - x, "left": x, "y": share}[out] for r, x in enumerate(left, 1)])


def text_of(counts: Tensor) -> list[list[int]]:
    """Texts of two words each, in which the pairs come as often as the table says."""
    return [[c, w] for c, w in counts.nonzero().tolist() for _ in range(int(counts[c, w]))]


def examine(
    continuation: Any, kneser_ney: Any, discounts: Any, *, seed: int, vocab_size: int, discount: float
) -> Report:
    """Check a learner's `continuation`, `kneser_ney` and `discounts`.

    Raises:
        ValueError: a size, the discount or the seed is out of range.
    """
    positive(vocab_size=vocab_size)
    if vocab_size < 3:
        raise ValueError(f"seven pairs need three words: vocab_size must be at least 3, got {vocab_size}")
    if not 0 <= discount <= 1:
        raise ValueError(f"a discount is a share of one count, 0 <= discount <= 1: got {discount}")
    source = generator(seed)
    exam = Exam("01/02_kneser_ney", {"seed": seed, "vocab_size": vocab_size, "discount": discount})

    def neighbours(counts: Tensor) -> None:
        got = exam.tensor(exam.call(continuation, counts), "the shares")
        model = NGramModel(text_of(counts), 2, vocab_size=len(counts), smoothing=KneserNey(uniform=False))
        continuations = model.grams[0].continuations
        expected = np.zeros(len(counts))
        expected[model.grams[0].codes] = continuations / continuations.sum()
        known = mistakes(continuation_variant, CONTINUATION, counts=counts)
        exam.compare(got, torch.from_numpy(expected), known, what="the shares")

    def smoothed(counts: Tensor, d: float) -> None:
        got = exam.tensor(exam.call(kneser_ney, counts, d), "the probabilities")
        model = NGramModel(text_of(counts), 2, vocab_size=len(counts), smoothing=KneserNey(d, uniform=False))
        expected = torch.from_numpy(np.stack([model.distribution([c]) for c in range(len(counts))]))
        known = mistakes(smoothed_variant, SMOOTHED, counts=counts, discount=d)
        exam.compare(got, expected, known, what="the probabilities")

    def three(counts: Tensor) -> None:
        got = exam.tensor(exam.call(discounts, counts), "the discounts")
        n = np.bincount(counts.flatten().clamp(max=5).numpy(), minlength=6)
        y = n[1] / (n[1] + 2 * n[2])
        expected = torch.tensor([r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3)], dtype=torch.float64)
        if all(0 <= d <= r for r, d in enumerate(expected, 1)):  # or else the package falls back to one discount
            package = ModifiedKneserNey().discounts(counts[counts > 0].numpy())
            torch.testing.assert_close(torch.tensor(package, dtype=torch.float64), expected)
        exam.compare(got, expected, mistakes(discounts_variant, DISCOUNTS, counts=counts), what="the discounts")

    with exam.part("the neighbours of your words"):
        neighbours(table(source, vocab_size))
    with exam.part("the neighbours of twelve words"):
        neighbours(table(source, 12))
    with exam.part("the probabilities of your words"):
        smoothed(table(source, vocab_size), discount)
    with exam.part("the probabilities of twelve words"):
        smoothed(table(source, 12), 0.4)
    with exam.part("a context that never came"):
        smoothed(ONE_WORD, discount)
    with exam.part("the discounts of your counts"):
        three(every_count(source, vocab_size))
    with exam.part("the discounts of twelve words"):
        three(every_count(source, 12))
    return exam.report()
