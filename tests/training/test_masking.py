"""Masking: how often, what by, and never where it must not; frequencies are held to binomial bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm_core.training.batches import Batch
from llm_core.training.losses import cross_entropy
from llm_core.training.masking import IGNORE_ID, mask_tokens

V, MASK, SPECIAL = 1000, 4, [0, 2, 3]
BATCH, T = 200, 100


def texts(seed: int = 0) -> Tensor:
    """[CLS], tokens 5 ... V - 1 (no [MASK]), [SEP], padding; every row of another length."""
    ids = torch.randint(5, V, (BATCH, T), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    for row in range(BATCH):
        end = T - 1 - row % 50
        ids[row, end] = 3
        ids[row, end + 1 :] = 0
    return ids


def masked(ids: Tensor, seed: int = 0, **settings: object) -> tuple[Tensor, Tensor]:
    batch = mask_tokens(
        ids,
        mask_id=MASK,
        vocab_size=V,
        special_ids=SPECIAL,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )
    assert isinstance(batch, Batch)
    (inputs,) = batch.inputs
    return inputs, batch.targets


def likely(count: int, n: int, p: float) -> bool:
    """Within five standard deviations of a binomial: one run in 1.7 million would fall outside by chance."""
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_targets_are_the_tokens_that_were_there_and_nothing_else_changes():
    ids = texts()
    before = ids.clone()
    inputs, targets = masked(ids)
    assert torch.equal(ids, before)
    chosen = targets != IGNORE_ID
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert inputs.shape == targets.shape == ids.shape
    assert inputs.dtype == targets.dtype == ids.dtype


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_special_tokens_and_padding_are_never_chosen(share):
    ids = texts()
    special = (ids == 0) | (ids == 2) | (ids == 3)
    inputs, targets = masked(ids, share=share)
    assert (targets[special] == IGNORE_ID).all()
    assert torch.equal(inputs[special], ids[special])
    assert (share < 1) or (targets[~special] == ids[~special]).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.15, 0.8, 0.1)),
        ({"share": 0.4}, (0.4, 0.8, 0.1)),
        ({"masked": 0.3, "swapped": 0.5}, (0.15, 0.3, 0.5)),
        ({"masked": 0.0, "swapped": 0.0}, (0.15, 0.0, 0.0)),
        ({"masked": 1.0, "swapped": 0.0}, (0.15, 1.0, 0.0)),
        ({"masked": 0.0, "swapped": 1.0}, (0.15, 0.0, 1.0)),
    ],
)
def test_shares_are_those_that_were_asked_for(settings, expected):
    ids = texts()
    inputs, targets = masked(ids, **settings)
    share, hidden, swapped = expected
    eligible = int((~torch.isin(ids, torch.tensor(SPECIAL))).sum())
    chosen = targets != IGNORE_ID
    n = int(chosen.sum())
    assert likely(n, eligible, share)
    # A swapped token is by chance [MASK] or the same again once in V times each.
    assert likely(int((inputs[chosen] == MASK).sum()), n, hidden + swapped / V)
    assert likely(int((inputs[chosen] == ids[chosen]).sum()), n, 1 - hidden - swapped + swapped / V)


def test_swapped_tokens_are_drawn_from_the_whole_vocabulary_alike():
    ids = texts()
    inputs, targets = masked(ids, share=1.0, masked=0.0, swapped=1.0)
    drawn = inputs[targets != IGNORE_ID]
    assert (drawn.min().item(), drawn.max().item()) == (0, V - 1)
    tenths = torch.bincount(drawn * 10 // V, minlength=10)
    assert all(likely(count, len(drawn), 0.1) for count in tenths.tolist())


def test_each_token_is_chosen_and_hidden_by_itself():
    """Numbers in a row vary as a binomial does: not less (so many for each row), nor more (rows treated alike)."""
    ids = torch.full((2000, 40), 7)
    inputs, targets = masked(ids)
    chosen = (targets != IGNORE_ID).sum(dim=1).double()
    assert chosen.mean().item() == pytest.approx(6.0, abs=5 * math.sqrt(5.1 / 2000))
    assert chosen.var().item() == pytest.approx(40 * 0.15 * 0.85, rel=0.2)
    hidden = (inputs == MASK).sum(dim=1).double()
    assert hidden.var().item() == pytest.approx(40 * 0.12 * 0.88, rel=0.2)
    columns = (targets != IGNORE_ID).sum(dim=0)
    assert all(likely(count, 2000, 0.15) for count in columns.tolist())


def test_the_generator_decides_alone():
    ids = texts()
    first, again, other = masked(ids, 0), masked(ids, 0), masked(ids, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_the_smallest_batches():
    inputs, targets = masked(torch.tensor([[7]]), share=1.0, masked=1.0, swapped=0.0)
    assert (inputs.item(), targets.item()) == (MASK, 7)
    inputs, targets = masked(torch.tensor([[2, 3, 0]]), share=1.0)
    assert inputs.tolist() == [[2, 3, 0]]
    assert (targets == IGNORE_ID).all()
    assert masked(torch.zeros(0, 5, dtype=torch.long))[0].shape == (0, 5)


def test_without_special_ids_every_token_can_be_chosen():
    batch = mask_tokens(torch.zeros(2, 3, dtype=torch.long), mask_id=1, vocab_size=2, special_ids=(), share=1.0)
    assert (batch.targets == 0).all()


def test_the_loss_leaves_out_what_was_not_chosen():
    ids = texts()[:20]
    for ignore_id in (IGNORE_ID, 0):  # padding is never chosen, so its id would do as well
        _, targets = masked(ids, ignore_id=ignore_id)
        logits = torch.randn(*ids.shape, V, generator=torch.Generator().manual_seed(0))
        chosen = targets != ignore_id
        expected = torch.nn.functional.cross_entropy(logits[chosen], ids[chosen])
        torch.testing.assert_close(cross_entropy(logits, targets, ignore_id=ignore_id), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_id": V}, r"mask_id must be a token, 0 \.\.\. 999: got 1000"),
        ({"mask_id": -1}, "mask_id must be a token.*got -1"),
        ({"special_ids": [0, 1000]}, "a special id must be a token.*got 1000"),
        ({"share": 0.0}, r"got share=0\.0"),
        ({"share": 1.1}, r"got share=1\.1"),
        ({"masked": -0.1}, r"got masked=-0\.1, swapped=0\.1"),
        ({"swapped": -0.1}, r"got masked=0\.8, swapped=-0\.1"),
        ({"masked": 0.8, "swapped": 0.3}, r"got masked=0\.8, swapped=0\.3"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    given = {"mask_id": MASK, "vocab_size": V, "special_ids": SPECIAL, **settings}
    with pytest.raises(ValueError, match=message):
        mask_tokens(torch.tensor([[7]]), **given)
