"""Spans and their scores against seqeval, in its default and its strict mode."""

from __future__ import annotations

import random
import warnings

import pytest
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from llm_core.evaluation.tagging import Span, lenient, span_report, strict_iob1, strict_iob2, strict_iobes

STRICT = {"iob1": (strict_iob1, IOB1, "BI"), "iob2": (strict_iob2, IOB2, "BI"), "iobes": (strict_iobes, IOBES, "BIES")}


def draw_tags(rng: random.Random, prefixes: str, types: list[str]) -> list[str]:
    """Any tags in any order: hardly ever what a scheme allows."""
    tags = ["O"] + [f"{prefix}-{type_}" if type_ else prefix for prefix in prefixes for type_ in types]
    return rng.choices(tags, weights=[len(types)] + [1] * (len(tags) - 1), k=rng.randint(0, 9))


def many_tags(n: int, prefixes: str, types) -> list[list[str]]:
    rng = random.Random(0)
    return [draw_tags(rng, prefixes, list(types)) for _ in range(n)]


@pytest.mark.parametrize("types", [("X",), ("PER", "LOC"), ("PER", "")], ids=["one", "two", "untyped"])
@pytest.mark.parametrize("prefixes", ["BI", "BIES", "IE", "IS"])
@pytest.mark.usefixtures("unchecked")  # quicker
def test_lenient_finds_the_spans_of_seqevals_default(prefixes, types):
    for tags in many_tags(3000, prefixes, types):
        theirs = [Span(type_, first, last + 1) for type_, first, last in get_entities(tags)]
        assert lenient(tags) == theirs, tags


@pytest.mark.parametrize("types", [("X",), ("PER", "LOC"), ("PER", "")], ids=["one", "two", "untyped"])
@pytest.mark.parametrize("scheme", STRICT)
@pytest.mark.usefixtures("unchecked")
def test_strict_readers_find_the_spans_of_seqevals_strict_mode(scheme, types):
    read, theirs, prefixes = STRICT[scheme]
    for tags in many_tags(3000, prefixes, types):
        (entities,) = Entities([tags], theirs).entities
        assert read(tags) == [Span(entity.tag, entity.start, entity.end) for entity in entities], tags


@pytest.mark.parametrize("scheme", ["lenient", *STRICT])
@pytest.mark.usefixtures("unchecked")
def test_scores_are_those_of_seqeval(scheme):
    read, theirs, prefixes = STRICT.get(scheme, (lenient, None, "BIES"))
    rng = random.Random(1)
    for n in (1, 2, 30) * 30:
        expected = [draw_tags(rng, prefixes, ["PER", "LOC", "ORG"]) for _ in range(n)]
        # Nine in ten tags are kept, so that some spans are right.
        predicted = [
            [tag if rng.random() < 0.9 else rng.choice(["O", f"{rng.choice(prefixes)}-LOC"]) for tag in tags]
            for tags in expected
        ]
        report = span_report(expected, predicted, read=read)

        def score(average, expected=expected, predicted=predicted):
            options = {"average": average, "zero_division": 0}
            if theirs is None:
                return precision_recall_fscore_support(expected, predicted, **options)
            return strict_scores(expected, predicted, scheme=theirs, **options)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(zip(*score(None), strict=True))
            assert len(rows) == len(report.per_class)
            assert list(report.per_class) == sorted(report.per_class)
            for scores, row in zip(report.per_class.values(), rows, strict=True):
                assert [scores.precision, scores.recall, scores.f1, scores.support] == pytest.approx(list(row))
            for average in ("micro", "macro", "weighted") if rows else ("micro",):
                scores = getattr(report, average)
                row = score(average)
                if average == "weighted" and scores.support == 0:
                    row = (0, 0, 0, 0)  # theirs divides by zero
                assert [scores.precision, scores.recall, scores.f1, scores.support] == pytest.approx(list(row))


def test_a_name_is_right_only_as_a_whole():
    expected = [["B-PER", "I-PER", "O", "B-LOC"]]
    for predicted, correct in [
        (["B-PER", "I-PER", "O", "B-LOC"], 2),
        (["B-PER", "O", "O", "B-LOC"], 1),  # too short
        (["B-PER", "I-PER", "I-PER", "B-LOC"], 1),  # too long
        (["B-LOC", "I-LOC", "O", "B-LOC"], 1),  # the wrong type
    ]:
        assert span_report(expected, [predicted]).micro.recall == correct / 2


def test_a_span_belongs_to_its_text():
    assert span_report([["B-X"], ["O"]], [["O"], ["B-X"]]).micro.f1 == 0
    assert span_report([["B-X", "I-X"], ["I-X"]], [["B-X", "I-X"], ["I-X"]]).micro.support == 2


def test_texts_without_spans_have_zero():
    report = span_report([["O"], []], [["O"], []])
    assert report.per_class == {}
    assert (report.micro.f1, report.macro.f1, report.weighted.f1, report.micro.support) == (0, 0, 0, 0)


@pytest.mark.parametrize("tag", ["PER", "X-PER", "", "-PER", "B-", "BPER", "o", "O-PER", "BI-PER"])
@pytest.mark.parametrize("read", [lenient, strict_iob1, strict_iob2, strict_iobes])
def test_a_tag_that_no_scheme_knows_is_refused(read, tag):
    with pytest.raises(ValueError, match=f"B-TYPE.*got '{tag}'"):
        read(["O", tag])


@pytest.mark.parametrize("tag", ["E-PER", "S-PER"])
@pytest.mark.parametrize("read", [strict_iob1, strict_iob2])
def test_a_strict_reader_refuses_the_tags_of_another_scheme(read, tag):
    with pytest.raises(ValueError, match=f"O, B-TYPE, I-TYPE: got '{tag}'"):
        read(["B-PER", tag])


def test_texts_and_tokens_must_come_in_pairs():
    with pytest.raises(ValueError, match="2 expected and 1 predicted"):
        span_report([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="text 1 has 2 expected and 1 predicted"):
        span_report([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="got no tags"):
        span_report([], [])
    with pytest.raises(ValueError, match="got the string 'OO'"):
        span_report(["OO"], ["OO"])
