"""Checks `log_likelihood`, `join` and `best_pair` against an entropy by torch, string replacement, and counts alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report
from llm_core.exercises.s05_03_wordpiece.spec import RARE, RUN, decided, gains_of, joining, text

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

PAIRS = (
    Mistake(
        "by_count",
        "This is the pair that is met most often.",
        "That is the rule of byte-pair encoding. Here the likelihood after the join decides.",
        ({"rule": "count"},),
    ),
    Mistake(
        "by_fraction",
        "This is the pair with the largest n_ab / (n_a n_b).",
        "That is the fraction. Here the likelihood after the join decides.",
        ({"rule": "fraction"},),
    ),
    Mistake(
        "least",
        "This is the pair after whose join the text is least likely.",
        "The greatest log-likelihood is wanted.",
        ({"rule": "least"},),
    ),
    Mistake(
        "words_counted_once",
        "Each word is counted once, however often it comes.",
        "`counts` says how often a word comes.",
        ({"weight": "one"},),
    ),
    Mistake(
        "total_kept",
        "The number of all pieces is left as it was.",
        "A join leaves fewer pieces, and that makes each of the others likelier.",
        ({"rule": "total kept"},),
    ),
    Mistake(
        "overlaps_counted",
        "In a a a the pair (a, a) is counted as joined twice.",
        "From left to right it can be joined once there.",
        ({"rule": "overlaps"},),
    ),
    Mistake(
        "mean_likelihood",
        "This is the pair that makes the *mean* of log p largest.",
        "The number of pieces changes with a join, so that the mean and the sum are different rules.",
        ({"rule": "mean"},),
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


def pair_variant(words: list[list[str]], counts: list[int], *, rule: str = "gain", weight: str = "count") -> Tensor:
    """The pair that is joined, as numbers, with a knob for every usual mistake; as it stands, it is right."""
    if weight == "one":
        counts = [1] * len(words)
    pieces, total = _counted(words, counts), sum(len(w) * n for w, n in zip(words, counts, strict=True))
    met: Counter[tuple[str, str]] = Counter()
    for word, count in zip(words, counts, strict=True):
        for pair in pairwise(word):
            met[pair] += count
    scores = gains_of(words, counts)
    if rule == "least":
        return spelled(min(scores, key=lambda pair: scores[pair]))
    if rule == "count":
        scores = {pair: float(n) for pair, n in met.items()}
    elif rule == "fraction":
        scores = {pair: n / (pieces[pair[0]] * pieces[pair[1]]) for pair, n in met.items()}
    elif rule != "gain":
        base = float(likelihood_variant(words, counts))
        for pair, gained in scores.items():
            made = met[pair]
            left = total - _joined_places(words, counts, pair)
            if rule == "total kept":
                scores[pair] = gained - _xlogx(total) + _xlogx(left)
            elif rule == "mean":
                scores[pair] = (base + gained) / left
            else:  # overlaps
                change = Counter({pair[0] + pair[1].removeprefix("##"): made})
                for piece in pair:
                    change[piece] -= made
                touched = (_xlogx(pieces[p] + n) - _xlogx(pieces[p]) for p, n in change.items())
                scores[pair] = sum(touched) - _xlogx(total - made)
    return spelled(max(scores, key=lambda pair: scores[pair]))


def _joined_places(words: list[list[str]], counts: list[int], pair: tuple[str, str]) -> int:
    return sum(n * (len(w) - _length(join_variant(w, pair))) for w, n in zip(words, counts, strict=True))


def _length(numbers: Tensor) -> int:
    return int((numbers == ord(" ")).sum())


def _xlogx(n: float) -> float:
    x = torch.tensor(max(float(n), 0.0), dtype=torch.float64)
    return float(torch.special.xlogy(x, x))


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


def examine(log_likelihood: Any, join: Any, best_pair: Any, *, seed: int, n_words: int, length: int) -> Report:
    """Check a learner's `log_likelihood`, `join` and `best_pair`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_words=n_words, length=length)
    source = generator(seed)
    exam = Exam("05/03_wordpiece", {"seed": seed, "n_words": n_words, "length": length})

    def likely(words: list[list[str]], counts: list[int]) -> None:
        result = exam.call(log_likelihood, words, counts)
        if not isinstance(result, Real) or isinstance(result, bool):
            raise wrong("not_a_number", f"The log-likelihood has to be a number; you return a {type(result).__name__}.")
        n = torch.tensor(list(_counted(words, counts).values()), dtype=torch.float64)
        entropy = torch.distributions.Categorical(n, validate_args=False).entropy()
        known = mistakes(likelihood_variant, LIKELIHOODS, words=words, counts=counts)
        got = torch.tensor(float(result), dtype=torch.float64)
        exam.compare(got, -n.sum() * entropy, known, what="the log-likelihood")

    def joined(word: list[str], pair: tuple[str, str]) -> None:
        got = pieces_of(exam.call(join, word, pair), "the word")
        line = " ".join(["", *word, ""]).replace(" ", "  ")  # a space for each side of a piece
        new = pair[0] + pair[1].removeprefix("##")
        expected = line.replace(f" {pair[0]}  {pair[1]} ", f" {new} ").split()
        exam.compare(got, spelled(expected), mistakes(join_variant, JOINS, word=word, pair=pair), what="the word")

    def best(words: list[list[str]], counts: list[int]) -> None:
        got = pieces_of(exam.call(best_pair, words, counts), "the pair")
        known = mistakes(pair_variant, PAIRS, words=words, counts=counts)
        exam.compare(got, pair_variant(words, counts), known, what="the pair")

    with exam.part("the likelihood of your words"):
        likely(*text(source, n_words, 3))
    with exam.part("the likelihood of thirty words"):
        likely(*text(source, 30, 4))
    with exam.part("a piece with the mark and without"):
        likely([["a", "##a"], ["a"]], [4, 3])
    with exam.part("a join in your word"):
        joined(*joining(source, length, 2))
    with exam.part("the beginning of a word"):
        joined(["a", "##b", "##a", "##b"], ("a", "##b"))
    with exam.part("the middle of a word, twice"):
        joined(["a", "##b", "##c", "##a", "##b", "##c"], ("##b", "##c"))
    with exam.part("equal pieces"):
        joined(["a", "##a", "##a", "##a", "##b"], ("##a", "##a"))
    with exam.part("the pair the other way round"):
        joined(["a", "##b", "##c", "##b"], ("##b", "##c"))
    with exam.part("the best pair of your words"):
        best(*decided(source, n_words, 3))
    with exam.part("the best pair of twenty words"):
        best(*decided(source, 20, 4))
    with exam.part("a rare pair of rare pieces"):
        best(*RARE)
    with exam.part("equal pieces in a row"):
        best(*RUN)
    return exam.report()
