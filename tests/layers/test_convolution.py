"""Short convolutions against torch's own, and what they may see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_core.layers.convolution import ShortConvolution, short_convolution


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reach", [1, 3, 4, 9])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_is_torchs_depthwise_convolution_and_the_input(T, reach):
    x, weight = draws(2, T, 5), draws(5, reach, seed=1)
    # torch slides the kernel without turning it round, so its last weight is that of the position itself.
    theirs = F.conv1d(F.pad(x.transpose(1, 2), (reach - 1, 0)), weight.flip(1)[:, None], groups=5).transpose(1, 2)
    torch.testing.assert_close(short_convolution(x, weight), x + theirs)


def test_no_position_sees_a_later_one():
    x, weight = draws(1, 6, 3).requires_grad_(), draws(3, 4, seed=1)
    short_convolution(x, weight)[0, 3].sum().backward()
    seen = x.grad[0].abs().sum(dim=1) > 0
    assert seen.tolist() == [True, True, True, True, False, False]


def test_it_begins_as_the_identity_and_can_learn():
    layer, x = ShortConvolution(3).double(), draws(2, 5, 3)
    out = layer(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert (layer.weight.grad != 0).all()


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        ShortConvolution(*sizes)
