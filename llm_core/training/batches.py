"""Batches: from token ids to (inputs, targets), where the target of each position is the token after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from llm_core.checks import check_sizes


class Batch(NamedTuple):
    """What one step learns from: the model is called as `model(*inputs)`, its logits are held against `targets`."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


def shift(ids: Int[Tensor, "B T1"]) -> Batch:
    """All tokens but the last as inputs, all but the first as targets: each position learns its next token.

    Raises:
        ValueError: the texts have fewer than two tokens, so that nothing follows anything.
    """
    if ids.shape[1] < 2:
        raise ValueError(f"next-token targets need texts of at least 2 tokens: got {ids.shape[1]}")
    return Batch((ids[:, :-1],), ids[:, 1:])


def random_crops(
    ids: Int[Tensor, " N"], batch_size: int, length: int, *, generator: torch.Generator | None = None
) -> Batch:
    """`batch_size` pieces of `length` tokens, from random places of one long text, and their next tokens.

    Raises:
        ValueError: the text has no room for one piece and its next token, or a size is below 1.
    """
    check_sizes(batch_size=batch_size, length=length)
    places = len(ids) - length
    if places < 1:
        raise ValueError(
            f"a piece of {length} tokens and the one after it need a text of at least {length + 1} tokens: "
            f"got {len(ids)}. Shorten the pieces or give more text"
        )
    starts = torch.randint(places, (batch_size,), generator=generator)
    return shift(torch.stack([ids[start : start + length + 1] for start in starts.tolist()]))


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> Int[Tensor, "B T"]:
    """Sequences of unequal length as one tensor, filled up with `pad_id` on the right.

    Raises:
        ValueError: there is no sequence.
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence: got none")
    longest = max(len(sequence) for sequence in sequences)
    padded = [[*sequence, *[pad_id] * (longest - len(sequence))] for sequence in sequences]
    return torch.tensor(padded, dtype=torch.long)  # torch would take empty ones for floats


def teacher_forcing(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, bos_id: int, eos_id: int, pad_id: int
) -> Batch:
    """The batch of an encoder-decoder: it reads the source and the target so far, and learns the target's next token.

    Inputs are the padded sources (B, S) and `<bos> target` (B, T); targets are `target <eos>` (B, T). Padding in the
    targets is for the loss to leave out: `cross_entropy(..., ignore_id=pad_id)`.

    Raises:
        ValueError: the numbers of sources and targets differ, or there are none.
    """
    if len(sources) != len(targets):
        raise ValueError(f"each source needs its target: got {len(sources)} sources and {len(targets)} targets")
    decoder_inputs = pad([[bos_id, *target] for target in targets], pad_id)
    return Batch((pad(sources, pad_id), decoder_inputs), pad([[*target, eos_id] for target in targets], pad_id))


def epoch(n: int, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[list[int]]:
    """The numbers 0 ... n - 1 once each, in random order, `batch_size` at a time; the last batch may be smaller."""
    check_sizes(batch_size=batch_size)
    order = torch.randperm(n, generator=generator).tolist()
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]
