"""Norms against torch's, in float64, with gradients; and what tells the right epsilon from the wrong one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llm_core.layers.norms import LayerNorm, RMSNorm, RMSNormPlusOne, layer_norm, rms_norm


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_layer_norm_equals_torch(size, eps):
    x, weight, bias = draw(2, 3, 8) * size + size, draw(8, seed=1), draw(8, seed=2)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps=eps), F.layer_norm(x, (8,), weight, bias, eps))
    torch.testing.assert_close(layer_norm(x, eps=eps), F.layer_norm(x, (8,), eps=eps))
    torch.testing.assert_close(layer_norm(x, weight, eps=eps), F.layer_norm(x, (8,), weight, eps=eps))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_rms_norm_equals_torch(size, eps):
    x, weight = draw(2, 3, 8) * size + size, draw(8, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, eps=eps), F.rms_norm(x, (8,), weight, eps))
    torch.testing.assert_close(rms_norm(x, eps=eps), F.rms_norm(x, (8,), eps=eps))


def test_known_answers():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(layer_norm(x, eps=0.0) * 1.25**0.5, x - 2.5)  # variance 1.25, divided by D
    torch.testing.assert_close(rms_norm(x, eps=0.0) * 7.5**0.5, x)  # mean square 7.5


def test_a_constant_vector_does_not_divide_by_zero():
    assert layer_norm(torch.full((2, 4), 3.0)).tolist() == [[0.0] * 4] * 2
    assert rms_norm(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2


def test_gradients():
    x, weight, bias = (t.requires_grad_() for t in (draw(3, 5), draw(5, seed=1), draw(5, seed=2)))
    assert torch.autograd.gradcheck(layer_norm, (x, weight, bias))
    assert torch.autograd.gradcheck(rms_norm, (x, weight))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_layer_norm_module_equals_the_function_and_torchs_module(bias, eps):
    ours, theirs = LayerNorm(8, eps=eps, bias=bias).double(), nn.LayerNorm(8, eps=eps, bias=bias).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = draw(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), layer_norm(x, ours.weight, ours.bias, eps=eps))


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_rms_norm_module_equals_the_function_and_llamas(eps):
    ours, llamas = RMSNorm(8, eps=eps), LlamaRMSNorm(8, eps=eps)
    nn.init.normal_(llamas.weight)
    ours.load_state_dict(llamas.state_dict())
    x = draw(2, 3, 8).float()
    torch.testing.assert_close(ours(x), llamas(x))
    torch.testing.assert_close(ours(x), rms_norm(x, ours.weight, eps=eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_by_one_plus_its_weight_is_gemmas(dtype):
    ours, theirs = RMSNormPlusOne(8, eps=1e-3).to(dtype), GemmaRMSNorm(8, eps=1e-3).to(dtype)
    x = draw(2, 3, 8).to(dtype)
    assert torch.equal(ours(x), RMSNorm(8, eps=1e-3).to(dtype)(x))  # it starts as the plain norm
    ours.weight.data = 0.01 * draw(8, seed=1).to(dtype)  # in bfloat16 one plus such a number is mostly one
    theirs.weight.data = ours.weight.data.clone()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0}[dtype]
    assert ours(x).dtype == dtype
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=tolerance)


def test_modules_start_as_the_plain_norm():
    x = draw(2, 3, 8)
    torch.testing.assert_close(LayerNorm(8).double()(x), layer_norm(x))
    torch.testing.assert_close(RMSNorm(8).double()(x), rms_norm(x))
