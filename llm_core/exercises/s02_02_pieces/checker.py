"""Checks `best_pair`, `merge` and `longest_match` against `llm_core.text`."""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report
from llm_core.exercises.s02_02_pieces.spec import ABLE, AFFABLE, matching, merging, text, tied
from llm_core.text.bpe_training import learn_merges
from llm_core.text.wordpiece_matching import longest_match as longest_of_the_package

PAIRS = (
    Mistake(
        "words_counted_once",
        "Each word is counted once, however often it comes.",
        "A pair comes as often as its word: `counts` says how often that is.",
        ({"weight": "one"},),
    ),
    Mistake(
        "overlaps_left_out",
        "In a a a the pair (a, a) is counted once.",
        "Count all pairs of neighbours; that only one of the two can be merged does not matter yet.",
        ({"places": "apart"},),
    ),
    Mistake(
        "pair_once_a_word",
        "A pair that stands twice in a word is counted once.",
        "Every place counts: in a b a b the pair (a, b) stands twice.",
        ({"places": "different"},),
    ),
    Mistake(
        "first_of_equals",
        "Of pairs that are equally frequent you take the one that is met first.",
        "It has to be the one with the smaller left id, and of these the one with the smaller right id.",
        ({"ties": "first"},),
    ),
    Mistake(
        "greatest_of_equals",
        "Of pairs that are equally frequent you take the one with the larger ids.",
        "`max` on (count, pair) does that. The smaller ids go first.",
        ({"ties": "greatest"},),
    ),
    Mistake(
        "equals_by_the_right",
        "Of pairs that are equally frequent you compare the right ids first.",
        "The left ids decide, and where they are equal the right ones.",
        ({"ties": "right"},),
    ),
    Mistake(
        "rarest",
        "This is the rarest pair.",
        "The most frequent one is wanted: a minus before the count, or `max`.",
        ({"best": "least"},),
    ),
    Mistake(
        "across_words",
        "The last token of a word and the first of the next are counted as a pair.",
        "Words stand by themselves; no token reaches across.",
        ({"across": True},),
    ),
)

MERGES = (
    Mistake(
        "from_the_right",
        "The pairs are merged from the right.",
        "In a a a the first two become one, from left to right.",
        ({"side": "right"},),
    ),
    Mistake(
        "first_place_only",
        "Only the first such pair becomes one token.",
        "Go on to the end of the word.",
        ({"places": "first"},),
    ),
    Mistake(
        "right_token_kept",
        "The right token of a merged pair is still there.",
        "Two tokens become one: go on two places further.",
        ({"keep": True},),
    ),
    Mistake(
        "a_token_used_twice",
        "A token belongs to two merged pairs.",
        "In a a a the middle one can be merged once.",
        ({"places": "overlapping"},),
    ),
    Mistake(
        "order_ignored",
        "The pair is merged the other way round too.",
        "(a, b) is not (b, a).",
        ({"order": "any"},),
    ),
)

MATCHES = (
    Mistake(
        "shortest",
        "Each piece is the shortest that fits.",
        "Begin with the whole rest of the word, and take letters off its end.",
        ({"which": "shortest"},),
    ),
    Mistake(
        "no_mark",
        "Pieces inside a word are looked up without the mark.",
        "What goes on begins with ## in the vocabulary.",
        ({"mark": "never"},),
    ),
    Mistake(
        "mark_from_the_start",
        "The first piece is looked up with the mark.",
        "A word begins without ##.",
        ({"mark": "always"},),
    ),
    Mistake(
        "known_pieces_kept",
        "Of a word that cannot be built, the pieces before the gap are kept.",
        "The word as a whole is [UNK], and nothing else.",
        ({"unknown": "rest"},),
    ),
    Mistake(
        "one_letter_unknown",
        "Where nothing fits, one letter becomes [UNK], and the word goes on.",
        "The word as a whole is [UNK].",
        ({"unknown": "letter"},),
    ),
    Mistake(
        "nothing_for_unknown",
        "A word that cannot be built disappears.",
        "It has to leave a trace: the one id of [UNK].",
        ({"unknown": "nothing"},),
    ),
    Mistake(
        "another_way_found",
        "Where the longest piece leads nowhere, a shorter one is tried.",
        "Greedy means that no choice is taken back: the word is [UNK], though another cut might exist.",
        ({"back": True},),
    ),
)


def pair_variant(
    words: list[list[int]],
    counts: list[int],
    *,
    weight: str = "count",
    places: str = "all",
    ties: str = "smallest",
    best: str = "most",
    across: bool = False,
) -> Tensor:
    """The most frequent pair, with a knob for every usual mistake; as it stands, it is right."""
    totals: dict[tuple[int, int], int] = {}
    rows = list(zip(words, counts, strict=True))
    if across:  # the first tokens that follow belong to the word before
        rows = [([*word, *after[:1]], count) for (word, count), after in zip(rows, [*words[1:], []], strict=True)]
    for word, count in rows:
        pairs = list(pairwise(word))
        if places == "different":
            pairs = list(dict.fromkeys(pairs))
        if places == "apart":
            pairs = [pair for i, pair in enumerate(pairs) if not _overlaps(pairs, i)]
        for pair in pairs:
            totals[pair] = totals.get(pair, 0) + (1 if weight == "one" else count)
    order = {
        "smallest": lambda pair: pair,
        "first": lambda pair: 0,
        "greatest": lambda pair: (-pair[0], -pair[1]),
        "right": lambda pair: pair[::-1],
    }[ties]
    sign = 1 if best == "least" else -1
    return torch.tensor(min(totals, key=lambda pair: (sign * totals[pair], order(pair))))


def _overlaps(pairs: list[tuple[int, int]], i: int) -> bool:
    """Whether a pair of equals takes a token that the one before it has taken, counted from the left."""
    run = 0
    while i - run > 0 and pairs[i - run - 1] == pairs[i] and pairs[i][0] == pairs[i][1]:
        run += 1
    return run % 2 == 1


def merge_variant(
    word: list[int],
    pair: tuple[int, int],
    new: int,
    *,
    side: str = "left",
    places: str = "all",
    keep: bool = False,
    order: str = "given",
) -> Tensor:
    """The merged word, with a knob for every usual mistake; as it stands, it is right."""
    if side == "right":
        return merge_variant(word[::-1], pair[::-1], new, places=places, keep=keep, order=order).flip(0)
    wanted = {pair, pair[::-1]} if order == "any" else {pair}
    merged: list[int] = []
    i, done = 0, False
    while i < len(word):
        if tuple(word[i : i + 2]) in wanted and not done:
            merged.append(new)
            overlaps = places == "overlapping" and tuple(word[i + 1 : i + 3]) in wanted
            i += 1 if keep or overlaps else 2
            done = places == "first"
        else:
            merged.append(word[i])
            i += 1
    return torch.tensor(merged)


def match_variant(
    word: str,
    ids: dict[str, int],
    *,
    which: str = "longest",
    mark: str = "later",
    unknown: str = "word",
    back: bool = False,
) -> Tensor:
    """The ids of the pieces, with a knob for every usual mistake; as it stands, it is right."""
    if back:
        found = _any_way(word, ids, 0)
        return torch.tensor([ids["[UNK]"]] if found is None else found)
    found, start = [], 0
    while start < len(word):
        sign = {"later": "##" if start else "", "never": "", "always": "##"}[mark]
        ends = [end for end in range(start + 1, len(word) + 1) if sign + word[start:end] in ids]
        if ends:
            end = ends[0 if which == "shortest" else -1]
            found.append(ids[sign + word[start:end]])
        elif unknown in ("word", "nothing"):
            return torch.tensor([ids["[UNK]"]] if unknown == "word" else [])
        else:
            found.append(ids["[UNK]"])
            end = len(word) if unknown == "rest" else start + 1
        start = end
    return torch.tensor(found)


def _any_way(word: str, ids: dict[str, int], start: int) -> list[int] | None:
    if start == len(word):
        return []
    for end in range(len(word), start, -1):
        id_ = ids.get(("##" if start else "") + word[start:end])
        rest = None if id_ is None else _any_way(word, ids, end)
        if id_ is not None and rest is not None:
            return [id_, *rest]
    return None


def ids_of(result: Any, what: str) -> Tensor:
    """A learner's ids, as a tensor.

    Raises:
        Wrong: it is no list or tuple of whole numbers.
    """
    if isinstance(result, list | tuple) and all(isinstance(x, Integral) and not isinstance(x, bool) for x in result):
        return torch.tensor([int(x) for x in result])
    raise wrong(
        "not_ids",
        f"{what[0].upper()}{what[1:]} has to be a list of whole numbers; you return a {type(result).__name__}.",
        "Ids are whole numbers, one for each token.",
    )


def examine(best_pair: Any, merge: Any, longest_match: Any, *, seed: int, n_words: int, length: int) -> Report:
    """Check a learner's `best_pair`, `merge` and `longest_match`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_words=n_words, length=length)
    source = generator(seed)
    exam = Exam("02/02_pieces", {"seed": seed, "n_words": n_words, "length": length})

    def most(words: list[list[int]], counts: list[int]) -> None:
        got = ids_of(exam.call(best_pair, words, counts), "the pair")
        n_ids = 1 + max(max(word) for word in words)
        tokens = [f"<{id_}>" for id_ in range(n_ids)]
        expected = learn_merges([list(word) for word in words], counts, tokens, n_ids + 1, 1)[0]
        known = mistakes(pair_variant, PAIRS, words=words, counts=counts)
        exam.compare(got, torch.tensor(expected), known, what="the pair")

    def merged(word: list[int], pair: tuple[int, int], new: int) -> None:
        got = ids_of(exam.call(merge, word, pair, new), "the word")
        text_of = " ".join(f"<{id_}>" for id_ in word) + " "
        changed = text_of.replace("<{}> <{}> ".format(*pair), f"<{new}> ")  # from left to right, without overlaps
        expected = torch.tensor([int(token.strip("<>")) for token in changed.split()])
        exam.compare(got, expected, mistakes(merge_variant, MERGES, word=word, pair=pair, new=new), what="the word")

    def matched(word: str, ids: dict[str, int]) -> None:
        got = ids_of(exam.call(longest_match, word, ids), "the ids of the pieces")
        pieces = longest_of_the_package(word, ids) or ["[UNK]"]
        known = mistakes(match_variant, MATCHES, word=word, ids=ids)
        exam.compare(got, torch.tensor([ids[piece] for piece in pieces]), known, what="the ids of the pieces")

    with exam.part("the most frequent pair of your words"):
        most(*text(source, n_words, 4))
    with exam.part("the most frequent pair of forty words"):
        most(*text(source, 40, 5))
    with exam.part("pairs that are equally frequent"):
        most(*tied(source))
    with exam.part("a word that comes often"):
        most([[0, 1], [0, 2], [0, 2], [0, 2]], [9, 1, 1, 1])
    with exam.part("a pair that stands three times in a word"):
        most([[1, 2, 1, 2, 1, 2], [3, 1]], [2, 5])
    with exam.part("a pair of equals, three times in a row"):
        most([[1, 1, 1, 1], [0, 2]], [2, 5])
    with exam.part("words of one token"):
        most([[0], [1], [0], [1], [2, 3]], [5, 5, 5, 5, 1])
    with exam.part("a merge in your word"):
        merged(*merging(source, length, 2))
    with exam.part("a merge of equals"):
        merged([1, 1, 1, 0, 1, 1, 1, 1, 2, 1], (1, 1), 5)
    with exam.part("a merge with its mirror image beside it"):
        merged([2, 1, 2, 0, 1, 2, 1], (1, 2), 8)
    with exam.part("the pieces of your word"):
        matched(*matching(source, length))
    with exam.part("unaffable"):
        matched("unaffable", AFFABLE)
    with exam.part("able, as one piece or as four"):
        matched("able", ABLE)
    with exam.part("able behind un"):
        matched("unable", ABLE)
    with exam.part("a word that cannot be built"):
        matched("unaxable", AFFABLE)
    with exam.part("a word that another cut would build"):
        matched("unablea", AFFABLE)
    return exam.report()
