"""Recorded maps are the weights that the model used, and recording changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llm_core.interpret.attention_maps import recorded_attention
from llm_core.layers.attention import MultiHeadAttention, attention, fused_attention
from llm_core.layers.masks import causal, padding
from llm_core.layers.positions import Alibi
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, context=8, n_layers=2, n_heads=3, d_model=12))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def by_hand(module: MultiHeadAttention, x, memory, allowed):
    """softmax(q k / sqrt(E)) by torch's softmax, head by head."""
    E = module.d_head
    maps = []
    for h in range(module.n_heads):
        q = module.query(x)[..., h * E : (h + 1) * E]
        k = module.key(memory)[..., h * E : (h + 1) * E]
        scores = q @ k.transpose(1, 2) / math.sqrt(E)
        maps.append(scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1))
    return torch.stack(maps, dim=1)


def test_the_maps_of_a_gpt():
    model, ids = gpt(), torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    read = {}
    for i, block in enumerate(model.blocks):
        block.attention_norm.register_forward_hook(lambda _m, _x, out, i=i: read.__setitem__(i, out))
    with recorded_attention(model) as maps:
        model(ids)
    assert list(maps) == ["blocks.0.attention", "blocks.1.attention"]
    for i, block in enumerate(model.blocks):
        (recorded,) = maps[f"blocks.{i}.attention"]
        assert recorded.shape == (2, 3, 5, 5)
        assert not recorded.requires_grad
        torch.testing.assert_close(recorded, by_hand(block.attention, read[i], read[i], causal(5)))


def test_the_maps_of_an_encoder_decoder():
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(11, 8, n_layers=1, n_heads=2, d_model=8, d_ff=16)).eval()
    source, target = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([[1, 2, 3], [4, 5, 6]])
    read = {}
    cross = model.decoder[0].cross_attention
    cross.register_forward_hook(lambda _m, inputs, _out: read.update(x=inputs[0], memory=inputs[1]))
    with recorded_attention(model) as maps:
        model(source, target)
    assert set(maps) == {"encoder.0.attention", "decoder.0.attention", "decoder.0.cross_attention"}
    (recorded,) = maps["decoder.0.cross_attention"]
    torch.testing.assert_close(recorded, by_hand(cross, read["x"], read["memory"], padding(source, 0)[:, 0]))
    assert (recorded[1, :, :, 2:] == 0).all()


def test_the_output_does_not_change():
    model, ids = gpt(), torch.tensor([[1, 2, 3, 4, 5]])
    before = model(ids)
    with recorded_attention(model):
        torch.testing.assert_close(model(ids), before)
    assert torch.equal(model(ids), before)


def test_a_bias_and_dropout_are_kept_while_recording():
    torch.manual_seed(0)
    module = MultiHeadAttention(8, 2, position_bias=Alibi(2), attend=attention, dropout=0.5)
    x = torch.randn(1, 4, 8)
    torch.manual_seed(1)
    expected = module(x)
    with recorded_attention(module) as maps:
        torch.manual_seed(1)
        torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(maps[""][0].sum(dim=-1), torch.ones(1, 2, 4))  # before dropout


def test_every_pass_is_recorded_with_a_cache_too():
    model, ids = gpt(), torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad(), recorded_attention(model) as whole:
        model(ids)
    cache = model.new_cache(1)
    with torch.no_grad(), recorded_attention(model) as maps:
        for part in ids.split([3, 1, 1], dim=1):
            model(part, cache)
    recorded = maps["blocks.1.attention"]
    assert [m.shape for m in recorded] == [(1, 3, 3, 3), (1, 3, 1, 4), (1, 3, 1, 5)]
    torch.testing.assert_close(recorded[2][:, :, 0], whole["blocks.1.attention"][0][:, :, 4])


def crash(*_args):
    raise RuntimeError("in the middle")


def test_afterwards_all_is_as_before_even_after_an_exception():
    model = gpt()
    model.blocks[1].attention.attend = attention
    model.blocks[0].feed_forward.register_forward_pre_hook(crash)
    with pytest.raises(RuntimeError, match="in the middle"), recorded_attention(model):
        model(torch.tensor([[1, 2]]))
    assert model.blocks[0].attention.attend is fused_attention
    assert model.blocks[1].attention.attend is attention


def test_gradients_flow_while_recording():
    model = gpt()
    with recorded_attention(model):
        model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.blocks[0].attention.query.weight.grad.abs().sum() > 0


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="no MultiHeadAttention in this Linear"), recorded_attention(nn.Linear(2, 2)):
        pass
