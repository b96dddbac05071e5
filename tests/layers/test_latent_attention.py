"""Latent attention beside transformers' DeepSeek-V2, whole and step by step."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import DeepseekV2Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as theirs

from llm_core.layers.attention import attention, fused_attention
from llm_core.layers.cache import LayerCache
from llm_core.layers.latent_attention import LatentAttention
from llm_core.layers.masks import causal
from llm_core.layers.norms import RMSNorm
from llm_core.layers.positions import Rope, rotate_neighbours

SIZES = [
    # D, H, R, E, Er, Ev, query latent; transformers cannot do an odd R or E
    (24, 3, 10, 6, 4, 6, None),
    (16, 1, 6, 4, 2, 7, 6),
    (20, 5, 8, 2, 6, 4, 9),
]


def pair(D, H, R, E, Er, Ev, query_latent):
    """Ours and theirs with the same weights; norms that are not all ones."""
    torch.manual_seed(D)
    config = DeepseekV2Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H, kv_lora_rank=R, q_lora_rank=query_latent,
        qk_nope_head_dim=E, qk_rope_head_dim=Er, v_head_dim=Ev, head_dim=Er, max_position_embeddings=64,
        rms_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    reference = theirs.DeepseekV2Attention(config, layer_idx=0).eval()
    ours = LatentAttention(
        D, H, d_latent=R, d_head=E, d_turned=Er, d_value=Ev, d_query_latent=query_latent,
        latent_norm=RMSNorm(R, eps=1e-6), query_norm=RMSNorm(query_latent, eps=1e-6) if query_latent else None,
        rotate=Rope(Er, 64, turn=rotate_neighbours), attend=fused_attention,
    )  # fmt: skip
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 2 else 0.2) + (weight.ndim == 1))
        down, up = reference.kv_a_proj_with_mqa.weight, reference.kv_b_proj.weight.view(H, E + Ev, R)
        state = {
            "latent.weight": down[:R],
            "turned_key.weight": down[R:],
            "latent_norm.weight": reference.kv_a_layernorm.weight,
            "key.weight": up[:, :E].reshape(H * E, R),
            "value.weight": up[:, E:].reshape(H * Ev, R),
            "output.weight": reference.o_proj.weight,
        }
        if query_latent is None:
            state["query.weight"] = reference.q_proj.weight
        else:
            state["query_latent.weight"] = reference.q_a_proj.weight
            state["query_norm.weight"] = reference.q_a_layernorm.weight
            state["query.weight"] = reference.q_b_proj.weight
        ours.load_state_dict(state)
    return ours, reference, theirs.DeepseekV2RotaryEmbedding(config)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("T", [1, 9])
def test_it_is_deepseeks_attention(sizes, T):
    ours, reference, rope = pair(*sizes)
    x = torch.randn(3, T, sizes[0])
    mask = causal(T)
    with torch.no_grad():
        additive = torch.zeros(T, T).masked_fill(~mask, float("-inf"))[None, None]
        expected = reference(x, attention_mask=additive, position_embeddings=rope(x, torch.arange(T)[None]))[0]
        assert_close(ours(x, mask=mask), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 5], [12]])
@pytest.mark.parametrize("attend", [fused_attention, attention])
def test_with_a_cache_step_by_step_it_is_the_same(sizes, chunks, attend):
    ours, *_ = pair(*sizes)
    ours.attend = attend
    x = torch.randn(2, 12, sizes[0])
    cache = LayerCache(2, 1, 12, ours.d_latent, d_value=ours.d_turned)
    with torch.no_grad():
        whole = ours(x, mask=causal(12))
        parts, at = [], 0
        for n in chunks:
            parts.append(ours(x[:, at : at + n], mask=causal(n, at + n), cache=cache))
            at += n
    assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    latents, turned = cache.contents()
    assert latents.shape == (2, 1, 12, ours.d_latent)
    assert turned.shape == (2, 1, 12, ours.d_turned)


def test_padded_rows_do_not_read_their_padding():
    ours, *_ = pair(*SIZES[0])
    x = torch.randn(2, 6, 24)
    text = torch.ones(2, 1, 6, 6, dtype=torch.bool) & causal(6)
    text[0, :, :, :2] = False
    with torch.no_grad():
        padded = ours(x, mask=text)
        other = ours(torch.cat([torch.randn(2, 2, 24), x[:, 2:]], dim=1), mask=text)
    assert_close(padded[0, 2:], other[0, 2:])


def test_gradients_reach_every_weight():
    ours, *_ = pair(*SIZES[2])
    ours(torch.randn(2, 5, 20), mask=causal(5)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in ours.parameters())


def test_sizes_that_cannot_be_are_refused():
    norm, rope = RMSNorm(4), Rope(2, 8)
    sizes = {"d_latent": 4, "d_head": 4, "d_turned": 2, "latent_norm": norm, "rotate": rope, "attend": attention}
    with pytest.raises(ValueError, match=r"each width must be at least 1: .*d_latent=0"):
        LatentAttention(8, 2, **{**sizes, "d_latent": 0})
    with pytest.raises(ValueError, match="come together: got d_query_latent=3, query_norm=None"):
        LatentAttention(8, 2, **sizes, d_query_latent=3)
    with pytest.raises(ValueError, match="come together"):
        LatentAttention(8, 2, **sizes, query_norm=RMSNorm(3))


def test_the_cache_refuses_values_of_another_width():
    cache = LayerCache(2, 1, 8, 5, d_value=3)
    with pytest.raises(ValueError, match=r"the values should be \(2, 1, 4, 3\).*got \(2, 1, 4, 1\)"):
        cache.append(torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 1))
    assert cache.length == 0
    assert [tuple(t.shape) for t in cache.room_for_all()] == [(2, 1, 8, 5), (2, 1, 8, 3)]
