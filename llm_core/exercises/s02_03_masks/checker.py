"""Checks `encoder_mask`, `decoder_mask` and `cross_mask` against the masks with which the package's models run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report
from llm_core.layers.masks import causal, padding

INVERTED = Mistake(
    "inverted",
    "The mask is True where a token may not attend.",
    "True means: may attend.",
    ({"inverted": True},),
)
PADDING_FORGOTTEN = Mistake(
    "padding_forgotten",
    "Padding may be attended to.",
    "A key that is padding is False for every query.",
    ({"hidden": "nothing"},),
)
QUERIES_HIDDEN = Mistake(
    "queries_hidden",
    "The rows of padding are hidden, and not its columns.",
    "Rows are queries, columns are keys. What must not be attended to are keys.",
    ({"hidden": "queries"},),
)
BOTH_HIDDEN = Mistake(
    "rows_hidden_too",
    "The rows of padding are hidden as well as its columns.",
    "A row without any True has nothing to attend to, and its softmax would be NaN. Hide the keys only.",
    ({"hidden": "both"},),
)
OF_NO_USE_HERE = Mistake(
    "causal_mask_added",
    "Tokens may attend to the left only.",
    "What is read is there as a whole: this mask looks to both sides.",
    ({"order": "left"},),
)

ENCODER = (INVERTED, PADDING_FORGOTTEN, QUERIES_HIDDEN, BOTH_HIDDEN, OF_NO_USE_HERE)

# With padding on the right, nobody on its left sees it: rows hidden alone look like rows and columns hidden.
DECODER = (
    INVERTED,
    PADDING_FORGOTTEN,
    BOTH_HIDDEN,
    Mistake(
        "future_seen",
        "Tokens may attend to what follows them.",
        "A decoder that sees the next token cannot learn to predict it.",
        ({"order": "all"},),
    ),
    Mistake(
        "wrong_way_round",
        "Tokens may attend to the right instead of to the left.",
        "The row is the query: row i is True up to column i.",
        ({"order": "right"},),
    ),
    Mistake(
        "not_to_itself",
        "A token may not attend to itself.",
        "Position i may attend to all positions up to and including i.",
        ({"order": "strictly left"},),
    ),
    Mistake(
        "one_too_many",
        "A token may attend to the one after it.",
        "Position i may attend to all positions up to and including i, and no further.",
        ({"order": "left and next"},),
    ),
)

CROSS = (
    INVERTED,
    Mistake(
        "left_part_of_the_source",
        "Tokens may attend to the left part of the source only.",
        "The whole source has been read before the first word is written.",
        ({"order": "left"},),
    ),
    PADDING_FORGOTTEN,
)


def mask_variant(
    queries: Tensor, keys: Tensor, pad: int, *, order: str, hidden: str = "keys", inverted: bool = False
) -> Tensor:
    """A mask of (B, T, S) with a knob for every usual mistake."""
    T, S = queries.shape[1], keys.shape[1]
    i, j = torch.arange(T)[:, None], torch.arange(S)[None, :]
    may = {
        "all": j >= 0,
        "left": j <= i,
        "right": j >= i,
        "strictly left": j < i,
        "left and next": j <= i + 1,
    }[order].expand(len(keys), T, S)
    if hidden in ("keys", "both"):
        may = may & (keys != pad)[:, None, :]
    if hidden in ("queries", "both"):
        may = may & (queries != pad)[:, :, None]
    return (may ^ inverted).long()


def encoder_variant(ids: Tensor, pad: int, *, order: str = "all", **knobs: Any) -> Tensor:
    """An encoder's mask with a knob for every usual mistake; as it stands, it is right."""
    return mask_variant(ids, ids, pad, order=order, **knobs)


def decoder_variant(ids: Tensor, pad: int, *, order: str = "left", **knobs: Any) -> Tensor:
    """A decoder's mask with a knob for every usual mistake; as it stands, it is right."""
    return mask_variant(ids, ids, pad, order=order, **knobs)


def cross_variant(source: Tensor, target: Tensor, pad: int, *, order: str = "all", **knobs: Any) -> Tensor:
    """The mask of cross-attention with a knob for every usual mistake; as it stands, it is right."""
    return mask_variant(target, source, pad, order=order, **knobs)


def draw(source: torch.Generator, B: int, T: int) -> Tensor:
    """Ids of B texts, padded with 0 to T; the first fills all of it, the last half."""
    lengths = torch.randint(1, T + 1, (B, 1), generator=source)
    lengths[-1] = max(1, T // 2)
    lengths[0] = T
    ids = torch.randint(1, 50, (B, T), generator=source)
    return torch.where(torch.arange(T) < lengths, ids, 0)


def examine(
    encoder_mask: Any,
    decoder_mask: Any,
    cross_mask: Any,
    *,
    seed: int,
    batch_size: int,
    source_length: int,
    target_length: int,
) -> Report:
    """Check a learner's three masks.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    given = {"batch_size": batch_size, "source_length": source_length, "target_length": target_length}
    positive(**given)
    source = generator(seed)
    exam = Exam("02/03_masks", {"seed": seed, **given})

    def encoder(ids: Tensor) -> None:
        right = padding(ids, 0)[:, 0].expand(-1, ids.shape[1], -1)
        got = exam.tensor(exam.call(encoder_mask, ids, 0), "the encoder's mask")
        known = mistakes(encoder_variant, ENCODER, ids=ids, pad=0)
        exam.compare(got, right.long(), known, what="the encoder's mask")

    def decoder(ids: Tensor) -> None:
        right = causal(ids.shape[1]) & padding(ids, 0)[:, 0]
        got = exam.tensor(exam.call(decoder_mask, ids, 0), "the decoder's mask")
        known = mistakes(decoder_variant, DECODER, ids=ids, pad=0)
        exam.compare(got, right.long(), known, what="the decoder's mask")

    def cross(read: Tensor, write: Tensor) -> None:
        right = padding(read, 0)[:, 0].expand(-1, write.shape[1], -1)
        got = exam.tensor(exam.call(cross_mask, read, write, 0), "the mask of cross-attention")
        known = mistakes(cross_variant, CROSS, source=read, target=write, pad=0)
        exam.compare(got, right.long(), known, what="the mask of cross-attention")

    yours, written = draw(source, batch_size, source_length), draw(source, batch_size, target_length)
    long, short = draw(source, 4, 7), draw(source, 4, 5)
    with exam.part("the encoder's mask of your texts"):
        encoder(yours)
    with exam.part("the encoder's mask of other texts"):
        encoder(long)
    with exam.part("the decoder's mask of your texts"):
        decoder(written)
    with exam.part("the decoder's mask of other texts"):
        decoder(long)
    with exam.part("the decoder's mask of a single text"):
        decoder(long[:1])
    with exam.part("the mask of cross-attention of your texts"):
        cross(yours, written)
    with exam.part("a long source, a short target"):
        cross(long, short)
    with exam.part("a short source, a long target"):
        cross(short, long)
    return exam.report()
