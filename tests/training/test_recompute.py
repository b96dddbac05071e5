"""Activation checkpointing: the same bits, with less kept between forward and backward."""

from __future__ import annotations

import contextlib

import pytest
import torch

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import shift
from llm_core.training.losses import CrossEntropy
from llm_core.training.recompute import recomputed

CONFIG = GPTConfig(vocab_size=11, context=16, n_layers=3, n_heads=2, d_model=8, dropout=0.3)
BATCH = shift(torch.randint(11, (4, 17), generator=torch.Generator().manual_seed(0)))


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def gradients(gpt) -> list[torch.Tensor]:
    torch.manual_seed(5)  # dropout
    loss = CrossEntropy().total(gpt, BATCH)
    return [loss.detach(), *torch.autograd.grad(loss, list(gpt.parameters()))]


def kept(gpt) -> int:
    """Numbers that autograd keeps for the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        CrossEntropy().total(gpt, BATCH)
    weights = {p.data_ptr() for p in gpt.parameters()}
    return sum(n for pointer, n in sizes.items() if pointer not in weights)


def test_losses_and_gradients_are_the_same_bits_with_dropout_too():
    plain = gradients(model())
    other = model()
    with recomputed(other.blocks):
        again = gradients(other)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_what_the_blocks_computed_is_not_kept():
    gpt = model()
    all_of_it = kept(gpt)
    with recomputed(gpt.blocks):
        some = kept(gpt)
    assert some < all_of_it / 2
    assert kept(gpt) == all_of_it


def test_every_block_runs_twice_inside_and_once_outside():
    gpt, runs = model(), []
    for block in gpt.blocks:
        block.feed_forward.register_forward_hook(lambda *_: runs.append(1))
    with recomputed(gpt.blocks):
        gradients(gpt)
    assert len(runs) == 2 * CONFIG.n_layers
    gradients(gpt)
    assert len(runs) == 3 * CONFIG.n_layers


def test_names_of_the_weights_stay_and_the_models_own_forward_comes_back():
    gpt = model()
    names = list(gpt.state_dict())
    with contextlib.suppress(RuntimeError), recomputed(gpt.blocks):
        assert list(gpt.state_dict()) == names
        raise RuntimeError("on the way")
    assert not any("forward" in vars(block) for block in gpt.blocks)


def test_nothing_to_recompute_is_an_error():
    with pytest.raises(ValueError, match="no block"), recomputed([]):
        pass
