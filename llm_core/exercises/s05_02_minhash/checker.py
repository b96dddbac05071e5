"""Checks `signature`, `similarity` and `meet` against sums and comparisons of whole arrays."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report
from llm_core.exercises.s05_02_minhash.spec import P, hashing, pair

SIGNATURES = (
    Mistake("largest", "This is the largest number of each way.", "The smallest is kept.", ({"keep": "max"},)),
    Mistake("no_summand", "b is left out.", "A way is a h + b.", ({"summand": False},)),
    Mistake(
        "modulo_of_the_smallest",
        "The smallest is taken first, and the remainder of it afterwards.",
        "The remainder is what puts the shingles into another order: take it of each number, and then the smallest.",
        ({"modulo": "after"},),
    ),
    Mistake("no_modulo", "The remainder is left out.", "Without mod p all ways have one order.", ({"modulo": "no"},)),
    Mistake("one_way", "All numbers are of the first way.", "Each way gives one number.", ({"which": "first"},)),
    Mistake("sorted", "The signature is sorted.", "Its n-th number belongs to the n-th way.", ({"which": "sorted"},)),
)

SHARES = (
    Mistake(
        "as_sets",
        "The signatures are compared as sets.",
        "A number counts only where it stands in the same place in both.",
        ({"how": "sets"},),
    ),
    Mistake("not_a_share", "This is a number of places.", "Divide by how many there are.", ({"how": "number"},)),
    Mistake("share_that_differs", "This is the share that differs.", "That which agrees.", ({"how": "differs"},)),
)

MEETINGS = (
    Mistake(
        "across_bands",
        "A run that begins in the midst of a band counts.",
        "Bands begin at 0, r, 2 r, ... and do not overlap.",
        ({"starts": "any"},),
    ),
    Mistake("any_number", "One number that agrees is enough for you.", "All of a band have to.", ({"join": "any"},)),
    Mistake("all_bands", "All bands have to agree for you.", "One is enough.", ({"join": "all"},)),
    Mistake(
        "any_place",
        "A band may agree with another band of the other signature.",
        "The n-th band is compared with the n-th.",
        ({"starts": "crossed"},),
    ),
    Mistake(
        "bands_for_rows",
        "The bands are as long as there are bands.",
        "A band has len(one) // n_bands numbers.",
        ({"length": "bands"},),
    ),
)


def signature_variant(
    hashes: list[int],
    ways: list[tuple[int, int]],
    p: int,
    *,
    keep: str = "min",
    summand: bool = True,
    modulo: str = "before",
    which: str = "all",
) -> Tensor:
    """The signature, with a knob for every usual mistake; as it stands, it is right."""
    a, b = (np.array([way[i] for way in ways], dtype=object) for i in (0, 1))
    table = a[:, None] * np.array(hashes, dtype=object) + (b[:, None] if summand else 0)
    if modulo == "before":
        table = table % p
    kept = table.min(axis=1) if keep == "min" else table.max(axis=1)
    if modulo == "after":
        kept = kept % p
    found = [int(x) for x in kept]
    if which == "first":
        found = found[:1] * len(found)
    return torch.tensor(sorted(found) if which == "sorted" else found)


def share_variant(one: list[int], other: list[int], *, how: str = "share") -> Tensor:
    """The share that agrees, with a knob for every usual mistake; as it stands, it is right."""
    equal = torch.tensor(one) == torch.tensor(other)
    if how == "sets":
        return torch.tensor(len(set(one) & set(other)) / len(set(one) | set(other)))
    if how == "number":
        return equal.sum().float()
    return (equal if how == "share" else ~equal).float().mean()


def meeting_variant(
    one: list[int], other: list[int], n_bands: int, *, join: str = "band", starts: str = "own", length: str = "rows"
) -> Tensor:
    """Whether they meet, with a knob for every usual mistake; as it stands, it is right."""
    rows = len(one) // n_bands if length == "rows" else n_bands
    first, second = ([side[i : i + rows] for i in range(0, len(one), rows)] for side in (one, other))
    if join == "any":
        return torch.tensor(any(x == y for x, y in zip(one, other, strict=True)))
    if join == "all":
        return torch.tensor(one == other)
    if starts == "any":
        return torch.tensor(any(one[i : i + rows] == other[i : i + rows] for i in range(len(one) - rows + 1)))
    if starts == "crossed":
        return torch.tensor(any(band in second for band in first))
    return torch.tensor(any(x == y for x, y in zip(first, second, strict=True)))


def numbers_of(result: Any) -> Tensor:
    """A learner's signature, as a tensor.

    Raises:
        Wrong: it is no list of whole numbers.
    """
    if isinstance(result, list | tuple) and all(isinstance(x, Integral) and not isinstance(x, bool) for x in result):
        return torch.tensor([int(x) for x in result])
    raise wrong(
        "not_numbers",
        f"The signature has to be a list of whole numbers; you return a {type(result).__name__}.",
        "One number for each way.",
    )


def examine(
    signature: Any, similarity: Any, meet: Any, *, seed: int, n_shingles: int, n_bands: int, rows: int
) -> Report:
    """Check a learner's `signature`, `similarity` and `meet`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_shingles=n_shingles, n_bands=n_bands, rows=rows)
    source = generator(seed)
    settings = {"seed": seed, "n_shingles": n_shingles, "n_bands": n_bands, "rows": rows}
    exam = Exam("05/02_minhash", settings)

    def signed(hashes: list[int], ways: list[tuple[int, int]], p: int) -> None:
        got = numbers_of(exam.call(signature, hashes, ways, p))
        known = mistakes(signature_variant, SIGNATURES, hashes=hashes, ways=ways, p=p)
        exam.compare(got, signature_variant(hashes, ways, p), known, what="the signature")

    def shared(one: list[int], other: list[int]) -> None:
        result = exam.call(similarity, one, other)
        if not isinstance(result, Real) or isinstance(result, bool):
            raise wrong("not_a_number", f"The share has to be a number; you return a {type(result).__name__}.")
        known = mistakes(share_variant, SHARES, one=one, other=other)
        exam.compare(torch.tensor(float(result)), share_variant(one, other), known, what="the share")

    def met(one: list[int], other: list[int], bands: int) -> None:
        result = exam.call(meet, one, other, bands)
        if not isinstance(result, bool | np.bool_):
            raise wrong("not_yes_or_no", f"`meet` has to return True or False; you return a {type(result).__name__}.")
        known = mistakes(meeting_variant, MEETINGS, one=one, other=other, n_bands=bands)
        exam.compare(torch.tensor(bool(result)), meeting_variant(one, other, bands), known, what="whether they meet")

    with exam.part("the signature of your shingles"):
        signed(*hashing(source, n_shingles, n_bands * rows))
    with exam.part("a signature of four ways"):
        signed([3, 9_000, 77, 123_456], [(5_000, 9), (1, 0), (17, 4_321), (2, 10_000)], P)
    with exam.part("the share of your signatures"):
        shared(*pair(source, n_bands, rows))
    with exam.part("the same numbers in other places"):
        shared([1, 2, 3, 4, 5], [2, 1, 3, 4, 6])
    with exam.part("your signatures in bands"):
        met(*pair(source, n_bands, rows, 2), n_bands)
    with exam.part("a band in the midst"):
        met([1, 2, 3, 4, 5, 6], [9, 9, 3, 4, 9, 9], 3)
    with exam.part("a run across two bands"):
        met([1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 3, 4, 5, 6, 9, 9], 2)
    with exam.part("the same band in another place"):
        met([1, 2, 3, 4], [3, 4, 1, 2], 2)
    with exam.part("half of each band"):
        met([1, 2, 3, 4, 5, 6], [1, 9, 3, 9, 5, 9], 3)
    return exam.report()
