"""Tagging: tags say where names begin and end; what is scored are the spans, not the tags.

    tokens   Ada    Lovelace  was  born  in  London
    tags     B-PER  I-PER     O    O     O   B-LOC        spans: PER 0 ... 1, LOC 5

A span is right if its type, its first and its last token are. Models also give sequences that no scheme allows (I-LOC
after B-PER, for one). Readers differ in what they make of these:

    lenient        any mixture of B, I, E, S; wherever a type changes or a span has ended, the next one begins
    strict_iob1    I-X is inside, also at the beginning; B-X only where a span of the same type ends just before
    strict_iob2    BIO: a span is B-X I-X ... I-X, all else is none
    strict_iobes   BIOES: a span is S-X or B-X I-X ... E-X, all else is none

`lenient` is the default of seqeval, and reads as the script of CoNLL-2000 does, with which most published scores were
made; the others are seqeval's strict mode. A score is no better than the word for its reader: say which.

Source: Ramshaw and Marcus 1995 for the tags; Tjong Kim Sang and De Meulder 2003 for the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm_core.evaluation.classification import Report

Tags = Sequence[str]
OUTSIDE = ("O", "")


class Span(NamedTuple):
    """A name of this type: the tokens from `start` on, `stop` not included."""

    type: str
    start: int
    stop: int


def lenient(tags: Tags) -> list[Span]:
    """The spans of a sequence, whether or not it keeps to a scheme.

    Raises:
        ValueError: a tag is neither "O" nor one of B, I, E, S with a type.

    >>> lenient(["I-PER", "I-LOC", "E-LOC", "I-LOC"])
    [Span(type='PER', start=0, stop=1), Span(type='LOC', start=1, stop=3), Span(type='LOC', start=3, stop=4)]
    """
    read = _read(tags, "BIES")
    spans: list[Span] = []
    start = 0
    for i, ((prefix, type_), (before, type_before)) in enumerate(zip([*read, OUTSIDE], [OUTSIDE, *read], strict=True)):
        begins = prefix in "BS" or before in "OES" or type_ != type_before
        if begins and before != "O":
            spans.append(Span(type_before, start, i))
        if begins:
            start = i
    return spans


def strict_iob1(tags: Tags) -> list[Span]:
    """The spans of a sequence in IOB1.

    A B that does not follow its own type is in no span. Nor are the tokens of a span that is B alone, if a B of another
    type follows: seqeval has no rule that ends it.

    Raises:
        ValueError: a tag is neither "O" nor one of B, I with a type.

    >>> strict_iob1(["I-PER", "B-PER", "O", "B-LOC", "I-LOC"])
    [Span(type='PER', start=0, stop=1), Span(type='PER', start=1, stop=2), Span(type='LOC', start=4, stop=5)]
    """
    read = _read(tags, "BI")
    spans: list[Span] = []
    start = None
    for i, ((prefix, type_), (before, type_before)) in enumerate(zip([*read, OUTSIDE], [OUTSIDE, *read], strict=True)):
        same = type_ == type_before
        if start is not None and prefix == "I" and same:
            continue
        if start is not None and not (before == prefix == "B" and not same):
            spans.append(Span(type_before, start, i))
        start = i if prefix == "I" or (prefix == "B" and same) else None
    return spans


def strict_iob2(tags: Tags) -> list[Span]:
    """The spans of a sequence in BIO (IOB2). An I that continues nothing is in no span.

    Raises:
        ValueError: a tag is neither "O" nor one of B, I with a type.

    >>> strict_iob2(["I-PER", "O", "B-LOC", "I-LOC", "I-PER"])
    [Span(type='LOC', start=2, stop=4)]
    """
    read = _read(tags, "BI")
    return [span for span in lenient(tags) if read[span.start][0] == "B"]


def strict_iobes(tags: Tags) -> list[Span]:
    """The spans of a sequence in BIOES. One that does not begin and end as it should is none.

    Raises:
        ValueError: a tag is neither "O" nor one of B, I, E, S with a type.

    >>> strict_iobes(["B-PER", "E-PER", "S-LOC", "B-LOC", "I-LOC"])
    [Span(type='PER', start=0, stop=2), Span(type='LOC', start=2, stop=3)]
    """
    read = _read(tags, "BIES")
    return [span for span in lenient(tags) if read[span.start][0] + read[span.stop - 1][0] in ("SS", "BE")]


def span_report(
    expected: Sequence[Tags], predicted: Sequence[Tags], *, read: Callable[[Tags], list[Span]] = lenient
) -> Report:
    """Precision, recall and F1 of the spans: of each type, micro, macro and weighted.

    Micro is the number that CoNLL-2003 reports. A share of nothing is 0, so that texts without any span, in which none
    is found, have an F1 of 0.

    Args:
        expected: the tags that are right, one sequence a text.
        predicted: the tags that were given.
        read: finds the spans of one sequence: `lenient`, or a strict reader.

    Raises:
        ValueError: the numbers of texts or of tags differ, there is no text, or a tag is none of the scheme's.

    >>> report = span_report([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "B-LOC"]])
    >>> report.micro
    Scores(precision=0.5, recall=0.5, f1=0.5, support=2)
    """
    if len(expected) != len(predicted):
        raise ValueError(f"each text needs both taggings: got {len(expected)} expected and {len(predicted)} predicted")
    if not expected:
        raise ValueError("there is no text to score: got no tags")
    for i, (right, given) in enumerate(zip(expected, predicted, strict=True)):
        if len(right) != len(given):
            raise ValueError(
                f"each token needs both tags: text {i} has {len(right)} expected and {len(given)} predicted ones"
            )
    # A span of one text is not that of another: the text's number is part of it.
    actual = {(i, span) for i, tags in enumerate(expected) for span in read(tags)}
    called = {(i, span) for i, tags in enumerate(predicted) for span in read(tags)}
    by_type = [Counter(span.type for _, span in spans) for spans in (actual & called, called, actual)]
    types = sorted(by_type[1] | by_type[2])
    return Report.of_counts({type_: (by_type[0][type_], by_type[1][type_], by_type[2][type_]) for type_ in types})


def _read(tags: Tags, prefixes: str) -> list[tuple[str, str]]:
    """Each tag as its prefix and its type; ("O", "") outside."""
    if isinstance(tags, str):
        raise ValueError(f"a text's tags are a sequence, one tag a token: got the string {tags[:40]!r}")
    return [OUTSIDE if tag == "O" else _split(tag, prefixes) for tag in tags]


def _split(tag: str, prefixes: str) -> tuple[str, str]:
    prefix, dash, type_ = tag.partition("-")
    if len(prefix) != 1 or prefix not in prefixes or (dash and not type_):
        known = ", ".join(f"{letter}-TYPE" for letter in prefixes)
        raise ValueError(f"a tag is O, {known}: got {tag!r}. Other schemes (IOE, BILOU) can be renamed to these")
    return prefix, type_ or "_"  # as in seqeval, a tag of nothing but "B" has a type of its own
