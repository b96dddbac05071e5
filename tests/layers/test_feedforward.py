"""Feed-forward layers against torch's activations and transformers' LlamaMLP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from llm_core.layers.feedforward import (
    FeedForward,
    GatedFeedForward,
    fused_gelu,
    fused_gelu_tanh,
    gelu,
    gelu_tanh,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gelu_in_both_forms_equals_torch():
    x = torch.linspace(-8, 8, 401, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), F.gelu(x))
    torch.testing.assert_close(gelu_tanh(x), F.gelu(x, approximate="tanh"))
    torch.testing.assert_close(fused_gelu(x), gelu(x))
    torch.testing.assert_close(fused_gelu_tanh(x), gelu_tanh(x))
    # The two forms are close, and not the same.
    assert 1e-5 < (gelu(x) - gelu_tanh(x)).abs().max() < 1e-3


def test_gelu_is_x_times_the_normal_distribution_function():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = x * torch.tensor([0.158655253931457, 0.5, 0.841344746068543, 0.977249868051821], dtype=torch.float64)
    torch.testing.assert_close(gelu(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_equals_its_formula(bias):
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10, bias=bias).double(), draw(2, 3, 6)
    W1, W2 = layer.up.weight, layer.down.weight
    b1, b2 = (layer.up.bias, layer.down.bias) if bias else (0, 0)
    torch.testing.assert_close(layer(x), torch.clamp(x @ W1.T + b1, min=0) @ W2.T + b2)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 60 + 16 * bias


def test_feed_forward_drops_in_training_only():
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10, dropout=0.5).double(), draw(2, 3, 6)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), layer.down(F.relu(layer.up(x))))


def test_the_activation_is_the_one_given():
    layer, x = FeedForward(6, 10, activation=gelu_tanh).double(), draw(2, 3, 6)
    torch.testing.assert_close(layer(x), layer.down(F.gelu(layer.up(x), approximate="tanh")))


@pytest.mark.parametrize("bias", [True, False])
def test_gated_feed_forward_equals_llamas(bias):
    torch.manual_seed(0)
    llamas = LlamaMLP(LlamaConfig(hidden_size=6, intermediate_size=10, num_attention_heads=1, mlp_bias=bias)).double()
    ours = GatedFeedForward(6, 10, bias=bias).double()
    ours.load_state_dict({name.replace("_proj", ""): weight for name, weight in llamas.state_dict().items()})
    x = draw(2, 3, 6)
    torch.testing.assert_close(ours(x), llamas(x))
