"""Checks `log_likelihood`, `gain` and `join` against entropies by torch and a replacement in a string."""

from __future__ import annotations

from collections import Counter
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report
from llm_core.exercises.s05_03_wordpiece.spec import joining, numbers, text

LIKELIHOODS = (
    Mistake(
        "words_counted_once",
        "Each word is counted once, however often it comes.",
        "`counts` says how often a word comes, and so do its pieces.",
        ({"weight": "one"},),
    ),
    Mistake(
        "no_shares",
        "This is the sum of n log n, without the total.",
        "p is a share: n divided by the number of all pieces.",
        ({"total": "none"},),
    ),
    Mistake(
        "total_of_kinds",
        "The total is how many *different* pieces there are.",
        "It is how many pieces the text has, each as often as it comes.",
        ({"total": "kinds"},),
    ),
    Mistake(
        "total_of_words",
        "The total is how many words there are.",
        "It is how many pieces the text has.",
        ({"total": "words"},),
    ),
    Mistake("binary", "This is in bits, by log2.", "The natural logarithm is wanted.", ({"base": 2.0},)),
    Mistake(
        "a_mean",
        "This is the mean over the pieces.",
        "The likelihood of a text is a product over all of its pieces, so its logarithm is a sum.",
        ({"reduce": "mean"},),
    ),
    Mistake(
        "kinds_once",
        "Each different piece gives log p once.",
        "A piece that comes n times gives n log p.",
        ({"reduce": "kinds"},),
    ),
    Mistake("a_loss", "The sign is turned round.", "A log-likelihood is not above zero.", ({"sign": -1},)),
)

GAINS = (
    Mistake(
        "count", "This is how often the pair is met.", "That is the rule of byte-pair encoding.", ({"rule": "count"},)
    ),
    Mistake(
        "fraction",
        "This is the fraction, pair by product of the pieces.",
        "It is what tutorials have in place of the likelihood.",
        ({"rule": "fraction"},),
    ),
    Mistake(
        "an_approximation",
        "This is n log (n N / (n_a n_b)), or that less n.",
        "That is close where n is small. The gain is wanted exactly.",
        ({"rule": "about"}, {"rule": "about, less n"}),
    ),
    Mistake(
        "no_new_piece", "The new piece is forgotten.", "It comes n times, and gives n log n.", ({"forget": "new"},)
    ),
    Mistake(
        "left_as_it_was",
        "The left piece is as frequent as before.",
        "Each join takes one of the left pieces away.",
        ({"forget": "left"},),
    ),
    Mistake(
        "right_as_it_was",
        "The right piece is as frequent as before.",
        "Each join takes one of the right pieces away.",
        ({"forget": "right"},),
    ),
    Mistake(
        "total_as_it_was",
        "The text has as many pieces as before.",
        "Each join makes one of two: there are n fewer.",
        ({"forget": "total"},),
    ),
    Mistake("gain_in_bits", "This is in bits, by log2.", "The natural logarithm is wanted.", ({"base": 2.0},)),
    Mistake("a_fall", "The sign is turned round.", "After less before.", ({"sign": -1},)),
)

JOINS = (
    Mistake(
        "mark_inside",
        "The mark of the right piece stands in the middle of the new one.",
        "Take the ## off the right piece: a and ##b are ab.",
        ({"marks": "both"},),
    ),
    Mistake(
        "no_mark_left",
        "The new piece has lost the mark of the left one.",
        "What goes on in a word keeps its mark: ##a and ##b are ##ab.",
        ({"marks": "none"},),
    ),
    Mistake(
        "from_the_right",
        "The pairs are joined from the right.",
        "Of three equal pieces the first two become one.",
        ({"side": "right"},),
    ),
    Mistake(
        "first_place_only",
        "Only the first such pair is joined.",
        "Go on to the end of the word.",
        ({"where": "first"},),
    ),
    Mistake(
        "right_piece_kept",
        "The right piece of a joined pair is still there.",
        "Two pieces become one: go on two places further.",
        ({"keep": True},),
    ),
    Mistake(
        "order_ignored", "The pair is joined the other way round too.", "(a, b) is not (b, a).", ({"order": "any"},)
    ),
)


def _counted(words: list[list[str]], counts: list[int], weight: str = "count") -> Counter[str]:
    found: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for piece in word:
            found[piece] += 1 if weight == "one" else count
    return found


def likelihood_variant(
    words: list[list[str]],
    counts: list[int],
    *,
    weight: str = "count",
    total: str = "pieces",
    base: float = 0.0,
    reduce: str = "sum",
    sign: int = 1,
) -> Tensor:
    """The log-likelihood, with a knob for every usual mistake; as it stands, it is right."""
    n = torch.tensor(list(_counted(words, counts, weight).values()), dtype=torch.float64)
    of_words = len(words) if weight == "one" else sum(counts)
    all_of_them = {"pieces": float(n.sum()), "none": 1.0, "kinds": float(len(n)), "words": float(of_words)}[total]
    logs = (n / all_of_them).log2() if base else (n / all_of_them).log()
    if reduce == "kinds":
        return sign * logs.sum()
    likelihood = (n * logs).sum()
    return sign * (likelihood / n.sum() if reduce == "mean" else likelihood)


def join_variant(
    word: list[str],
    pair: tuple[str, str],
    *,
    marks: str = "left",
    side: str = "left",
    where: str = "all",
    keep: bool = False,
    order: str = "given",
) -> Tensor:
    """The joined word, as numbers, with a knob for every usual mistake; as it stands, it is right."""
    left, right = pair
    if marks != "both":
        right = right.removeprefix("##")
    joined = (left.removeprefix("##") if marks == "none" else left) + right
    wanted = {pair, pair[::-1]} if order == "any" else {pair}
    pieces = word[::-1] if side == "right" else word
    pieces, found = list(pieces), []
    i, done = 0, False
    while i < len(pieces):
        two = tuple(pieces[i : i + 2])
        if (two[::-1] if side == "right" else two) in wanted and not done:
            found.append(joined)
            i += 1 if keep else 2
            done = where == "first"
        else:
            found.append(pieces[i])
            i += 1
    return spelled(found[::-1] if side == "right" else found)


def gain_variant(
    made: int,
    left: int,
    right: int,
    total: int,
    *,
    rule: str = "exact",
    forget: str = "",
    base: float = 0.0,
    sign: int = 1,
) -> Tensor:
    """The gain, with a knob for every usual mistake; as it stands, it is right."""
    n, a, b, of_all = (torch.tensor(float(x), dtype=torch.float64) for x in (made, left, right, total))
    unit = torch.tensor(base or torch.e, dtype=torch.float64).log()
    if rule == "count":
        return sign * n
    if rule == "fraction":
        return sign * n / (a * b)
    if rule != "exact":
        return sign * (n * (n * of_all / (a * b)).log() / unit - (n if "less" in rule else 0))
    terms = {"left": (a - n, a), "right": (b - n, b), "new": (n, n - n), "total": (of_all - n, of_all)}
    rise = {key: torch.special.xlogy(now, now) - torch.special.xlogy(was, was) for key, (now, was) in terms.items()}
    rise["total"] = -rise["total"]
    return sign * sum(rise[key] for key in rise if key != forget) / unit


def spelled(pieces: list[str] | tuple[str, ...]) -> Tensor:
    """Pieces as the numbers of their characters, a space behind each."""
    return torch.tensor([ord(character) for piece in pieces for character in piece + " "], dtype=torch.long)


def pieces_of(result: Any, what: str) -> Tensor:
    """A learner's pieces, as numbers.

    Raises:
        Wrong: it is no list or tuple of strings.
    """
    if isinstance(result, list | tuple) and all(isinstance(piece, str) for piece in result):
        return spelled(result)
    raise wrong(
        "not_pieces",
        f"{what[0].upper()}{what[1:]} has to be made of strings; you return a {type(result).__name__}.",
        'Pieces are strings, as in ["a", "##b"].',
    )


def number_of(result: Any, what: str) -> Tensor:
    """A learner's number, as a tensor.

    Raises:
        Wrong: it is no number.
    """
    if isinstance(result, Real) and not isinstance(result, bool):
        return torch.tensor(float(result), dtype=torch.float64)
    raise wrong(
        "not_a_number", f"{what[0].upper()}{what[1:]} has to be a number; you return a {type(result).__name__}."
    )


def entropy_times(counts: list[int]) -> Tensor:
    """The log-likelihood of pieces that come so often: less the entropy of their shares, times how many there are."""
    n = torch.tensor([float(count) for count in counts if count], dtype=torch.float64)
    return -n.sum() * torch.distributions.Categorical(n).entropy()


def examine(log_likelihood: Any, gain: Any, join: Any, *, seed: int, n_words: int, length: int, largest: int) -> Report:
    """Check a learner's `log_likelihood`, `gain` and `join`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_words=n_words, length=length, largest=largest)
    source = generator(seed)
    settings = {"seed": seed, "n_words": n_words, "length": length, "largest": largest}
    exam = Exam("05/03_wordpiece", settings)

    def likely(words: list[list[str]], counts: list[int]) -> None:
        got = number_of(exam.call(log_likelihood, words, counts), "the log-likelihood")
        known = mistakes(likelihood_variant, LIKELIHOODS, words=words, counts=counts)
        expected = entropy_times(list(_counted(words, counts).values()))
        exam.compare(got, expected, known, what="the log-likelihood")

    def gained(made: int, left: int, right: int, total: int) -> None:
        got = number_of(exam.call(gain, made, left, right, total), "the gain")
        others = total - left - right
        after = entropy_times([made, left - made, right - made, others])
        known = mistakes(gain_variant, GAINS, made=made, left=left, right=right, total=total)
        exam.compare(got, after - entropy_times([left, right, others]), known, what="the gain")

    def joined(word: list[str], pair: tuple[str, str]) -> None:
        got = pieces_of(exam.call(join, word, pair), "the word")
        line = " ".join(["", *word, ""]).replace(" ", "  ")  # a space for each side of a piece
        new = pair[0] + pair[1].removeprefix("##")
        expected = line.replace(f" {pair[0]}  {pair[1]} ", f" {new} ").split()
        exam.compare(got, spelled(expected), mistakes(join_variant, JOINS, word=word, pair=pair), what="the word")

    with exam.part("the likelihood of your words"):
        likely(*text(source, n_words, 3))
    with exam.part("the likelihood of thirty words"):
        likely(*text(source, 30, 4))
    with exam.part("a piece with the mark and without"):
        likely([["a", "##a"], ["a"]], [4, 3])
    with exam.part("the gain of your pair"):
        gained(*numbers(source, largest))
    with exam.part("the gain of a rare pair"):
        gained(3, 40, 70, 500)
    with exam.part("two pieces that come together only"):
        gained(8, 8, 8, 100)
    with exam.part("a join in your word"):
        joined(*joining(source, length, 2))
    with exam.part("the beginning of a word"):
        joined(["a", "##b", "##a", "##b"], ("a", "##b"))
    with exam.part("the middle of a word, twice"):
        joined(["a", "##b", "##c", "##a", "##b", "##c"], ("##b", "##c"))
    with exam.part("equal pieces"):
        joined(["a", "##a", "##a", "##a", "##b"], ("##a", "##a"))
    with exam.part("the pair the other way round"):
        joined(["a", "##c", "##b", "##c"], ("##b", "##c"))
    return exam.report()
