"""Blocks against torch's encoder and decoder layers, with the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import CrossAttentionBlock, PostNormBlock, PreNormBlock
from llm_core.layers.cache import LayerCache
from llm_core.layers.feedforward import FeedForward
from llm_core.layers.masks import causal, padding
from llm_core.layers.norms import LayerNorm

D, H, FF = 12, 3, 20
IDS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    for name, weight, bias in zip(
        ("query", "key", "value"), theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
    ):
        getattr(ours, name).load_state_dict({"weight": weight, "bias": bias})
    ours.output.load_state_dict(theirs.out_proj.state_dict())


def parts(n_norms: int, activation, dropout: float = 0.0):
    return {
        "attention": MultiHeadAttention(D, H),
        "feed_forward": FeedForward(D, FF, activation=activation),
        "norms": tuple(LayerNorm(D) for _ in range(n_norms)),
        "dropout": dropout,
    }


def scramble(module: nn.Module) -> nn.Module:
    """Weights of which none is at its start: no zero biases, no norms of one."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("activation", [F.relu, F.gelu])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_blocks_equal_torchs(norm_first, activation):
    theirs = scramble(nn.TransformerEncoderLayer(D, H, FF, 0.0, activation, norm_first=norm_first, batch_first=True))
    ours = (PreNormBlock if norm_first else PostNormBlock)(**parts(2, activation)).double()
    copy_attention(ours.attention, theirs.self_attn)
    ours.attention_norm.load_state_dict(theirs.norm1.state_dict())
    ours.feed_forward_norm.load_state_dict(theirs.norm2.state_dict())
    ours.feed_forward.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.down.load_state_dict(theirs.linear2.state_dict())
    x, y = draw(2, 6, D).requires_grad_(), draw(2, 6, D).requires_grad_()
    torch.testing.assert_close(ours(x, mask=causal(6)), theirs(y, src_mask=~causal(6)))
    mask = padding(IDS, 0)
    up = draw(2, 6, D, seed=2) * (IDS != 0)[..., None]  # torch's fast path may do as it likes with padding
    out, their_out = ours(x, mask=mask), theirs(y, src_key_padding_mask=IDS == 0)
    torch.testing.assert_close(out * (IDS != 0)[..., None], their_out * (IDS != 0)[..., None])
    out.backward(up)
    their_out.backward(up)
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("activation", [F.relu, F.gelu])
def test_decoder_block_equals_torchs(activation):
    theirs = scramble(nn.TransformerDecoderLayer(D, H, FF, 0.0, activation, batch_first=True))
    ours = CrossAttentionBlock(**parts(3, activation), cross_attention=MultiHeadAttention(D, H)).double()
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    ours.attention_norm.load_state_dict(theirs.norm1.state_dict())
    ours.cross_attention_norm.load_state_dict(theirs.norm2.state_dict())
    ours.feed_forward_norm.load_state_dict(theirs.norm3.state_dict())
    ours.feed_forward.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.down.load_state_dict(theirs.linear2.state_dict())
    x, memory = draw(2, 4, D), draw(2, 6, D, seed=1)
    expected = theirs(x, memory, tgt_mask=~causal(4), memory_key_padding_mask=IDS == 0)
    torch.testing.assert_close(ours(x, memory, mask=causal(4), memory_mask=padding(IDS, 0)), expected)


def blocks():
    return {
        "pre": PreNormBlock(**parts(2, F.relu, dropout=0.5)),
        "post": PostNormBlock(**parts(2, F.relu, dropout=0.5)),
        "cross": CrossAttentionBlock(**parts(3, F.relu, dropout=0.5), cross_attention=MultiHeadAttention(D, H)),
    }


@pytest.mark.parametrize("kind", ["pre", "post", "cross"])
def test_dropout_acts_on_what_is_added_and_in_training_only(kind):
    torch.manual_seed(0)
    block = blocks()[kind].double()
    x = draw(2, 4, D)
    arguments = (x, draw(2, 6, D, seed=1)) if kind == "cross" else (x,)
    assert not torch.allclose(block(*arguments), block(*arguments))
    block.eval()
    torch.testing.assert_close(block(*arguments), block(*arguments), rtol=0, atol=0)
    # With everything that is added dropped, the stream passes: unchanged, or normed once for each part.
    block.train()
    block.dropout.p = 1.0
    expected = x
    for name in {"pre": [], "post": ["attention", "feed_forward"]}.get(
        kind, ["attention", "cross_attention", "feed_forward"]
    ):
        expected = getattr(block, f"{name}_norm")(expected)
    torch.testing.assert_close(block(*arguments), expected)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_block_passes_its_cache_on(kind):
    torch.manual_seed(0)
    block = blocks()[kind].double().eval()
    x = draw(2, 5, D)
    whole = block(x, mask=causal(5))
    cache = LayerCache(2, H, 5, D // H, dtype=torch.float64)
    with torch.no_grad():
        first = block(x[:, :2], mask=causal(2), cache=cache)
        second = block(x[:, 2:], mask=causal(3, 5), cache=cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_the_decoder_block_passes_both_caches_on():
    torch.manual_seed(0)
    block = blocks()["cross"].double().eval()
    x, memory = draw(2, 5, D), draw(2, 6, D, seed=1)
    mask = padding(IDS, 0)
    whole = block(x, memory, mask=causal(5), memory_mask=mask)
    caches = {
        "cache": LayerCache(2, H, 5, D // H, dtype=torch.float64),
        "memory_cache": LayerCache(2, H, 6, D // H, dtype=torch.float64),
    }
    with torch.no_grad():
        first = block(x[:, :2], memory, mask=causal(2), memory_mask=mask, **caches)
        second = block(x[:, 2:], memory, mask=causal(3, 5), memory_mask=mask, **caches)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    assert (caches["cache"].length, caches["memory_cache"].length) == (5, 6)
