"""Batches: every target is the token after its position."""

from __future__ import annotations

import pytest
import torch

from llm_core.training.batches import epoch, pad, random_crops, shift, teacher_forcing


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shift():
    batch = shift(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert len(batch.inputs) == 1
    assert batch.inputs[0].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.targets.tolist() == [[2, 3, 4], [6, 7, 8]]
    with pytest.raises(ValueError, match="at least 2 tokens: got 1"):
        shift(torch.tensor([[1], [2]]))


def test_random_crops_are_pieces_of_the_text_with_their_next_tokens():
    ids = torch.arange(100, 130)  # the token at position p is 100 + p
    batch = random_crops(ids, 16, 7, generator=gen())
    (inputs,) = batch.inputs
    assert inputs.shape == batch.targets.shape == (16, 7)
    assert torch.equal(batch.targets, inputs + 1)
    assert torch.equal(inputs[:, 1:], inputs[:, :-1] + 1)
    assert inputs.min() >= 100
    assert batch.targets.max() <= 129


def test_random_crops_come_from_every_place_and_no_other():
    ids = torch.arange(10)
    starts = random_crops(ids, 2000, 6, generator=gen()).inputs[0][:, 0]
    counts = torch.bincount(starts)
    assert len(counts) == 4  # 0 ... 3: the last piece ends with the last token as its last target
    expected = 500
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, 0.1 %
    assert random_crops(torch.arange(7), 3, 6).inputs[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 3


def test_random_crops_depend_on_their_generator_alone():
    ids = torch.arange(1000)
    first, again = (random_crops(ids, 8, 5, generator=gen(3)).targets for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_crops(ids, 8, 5, generator=gen(4)).targets)
    one = gen(3)
    random_crops(ids, 8, 5, generator=one)
    assert not torch.equal(first, random_crops(ids, 8, 5, generator=one).targets)


def test_random_crops_errors():
    with pytest.raises(ValueError, match="at least 7 tokens: got 6"):
        random_crops(torch.arange(6), 2, 6)
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        random_crops(torch.arange(9), 0, 6)
    with pytest.raises(ValueError, match="length must be at least 1: got 0"):
        random_crops(torch.arange(9), 2, 0)


def test_pad():
    assert pad([[1, 2, 3], [4], []], 9).tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert pad([[], []], 9).dtype == torch.long
    assert pad([(1, 2)], 0).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="at least one sequence"):
        pad([], 0)


def test_teacher_forcing():
    batch = teacher_forcing([[5, 6], [7, 8, 9]], [[10, 11, 12], [13]], bos_id=1, eos_id=2, pad_id=0)
    source, decoder_input = batch.inputs
    assert source.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert decoder_input.tolist() == [[1, 10, 11, 12], [1, 13, 0, 0]]
    assert batch.targets.tolist() == [[10, 11, 12, 2], [13, 2, 0, 0]]
    with pytest.raises(ValueError, match="1 sources and 2 targets"):
        teacher_forcing([[5]], [[6], [7]], bos_id=1, eos_id=2, pad_id=0)


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (10, 99), (9, 3), (1, 1), (0, 4)])
def test_an_epoch_has_every_number_once(n, size):
    batches = list(epoch(n, size, generator=gen()))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert [len(batch) for batch in batches] == [size] * (n // size) + ([n % size] if n % size else [])


def test_epochs_are_shuffled_by_their_generator():
    one = gen()
    first, second = list(epoch(50, 8, generator=one)), list(epoch(50, 8, generator=one))
    assert first != second
    assert first == list(epoch(50, 8, generator=gen()))
    assert first[0] != list(range(8))
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        list(epoch(5, 0))
