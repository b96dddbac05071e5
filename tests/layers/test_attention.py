"""Attention against torch's own, in float64: the functions, their gradients, and the module in all its forms."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_core.layers.attention import MultiHeadAttention, attention, attention_weights, fused_attention, softmax
from llm_core.layers.cache import Cache, LayerCache
from llm_core.layers.masks import causal, padding, sliding_window
from llm_core.layers.norms import RMSNorm
from llm_core.layers.positions import Alibi, Rope

BOTH = pytest.mark.parametrize("attend", [attention, fused_attention], ids=["readable", "fused"])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_qkv(*batch: int, T: int, S: int, E: int, Ev: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*batch, T, E, seed=seed), draw(*batch, S, E, seed=seed + 1), draw(*batch, S, Ev, seed=seed + 2)


def draw_mask(*shape: int, seed: int = 3) -> Tensor:
    """About a third of the places closed, the first key always open."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.35
    mask[..., 0] = True
    return mask


def by_loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula, one number at a time: (T, E), (S, E), (S, Ev) -> (T, Ev)."""
    out = torch.zeros(query.shape[0], value.shape[1], dtype=query.dtype)
    for i, q in enumerate(query.tolist()):
        scores = []
        for j, k in enumerate(key.tolist()):
            may = mask is None or bool(mask[i, j])
            scores.append(math.fsum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) if may else None)
        total = math.fsum(math.exp(s) for s in scores if s is not None)
        for j, s in enumerate(scores):
            if s is not None:
                out[i] += math.exp(s) / total * value[j]
    return out


@BOTH
def test_equals_the_formula_by_loops(attend):
    query, key, value = draw_qkv(T=3, S=5, E=4, Ev=2)
    mask = draw_mask(3, 5)
    torch.testing.assert_close(attend(query, key, value), by_loops(query, key, value))
    torch.testing.assert_close(attend(query, key, value, mask), by_loops(query, key, value, mask))


@BOTH
@pytest.mark.parametrize(
    ("batch", "T", "S", "E", "Ev"),
    [((2, 3), 5, 5, 8, 8), ((2, 3), 3, 7, 8, 6), ((2,), 7, 3, 4, 9), ((), 4, 4, 5, 5), ((2, 3), 1, 1, 4, 4)],
)
def test_equals_torch(attend, batch, T, S, E, Ev):
    query, key, value = draw_qkv(*batch, T=T, S=S, E=E, Ev=Ev)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value), expected)
    torch.testing.assert_close(attention_weights(query, key) @ value, expected)


@BOTH
@pytest.mark.parametrize(
    "shape", [(7,), (1, 7), (5, 1), (5, 7), (2, 1, 1, 7), (2, 3, 5, 7), (1, 3, 1, 7), (1, 3, 5, 1)]
)
def test_masks_of_every_shape_equal_torch(attend, shape):
    query, key, value = draw_qkv(2, 3, T=5, S=7, E=4, Ev=6)
    mask = draw_mask(*shape)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.expand(2, 3, 5, 7))
    torch.testing.assert_close(attend(query, key, value, mask), expected)
    weights = attention_weights(query, key, mask)
    assert (weights[~mask.expand(2, 3, 5, 7)] == 0).all()
    torch.testing.assert_close(weights @ value, expected)


@BOTH
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 3, 5, 7)])
def test_bias_is_added_to_the_scaled_scores(attend, shape):
    query, key, value = draw_qkv(2, 3, T=5, S=7, E=4, Ev=6)
    bias, mask = draw(*shape, seed=9), draw_mask(2, 1, 1, 7)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(2, 3, 5, 7))
    torch.testing.assert_close(attend(query, key, value, bias=bias), expected)
    both = bias.expand(2, 3, 5, 7).masked_fill(~mask, float("-inf"))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=both)
    torch.testing.assert_close(attend(query, key, value, mask, bias=bias), expected)


@BOTH
def test_a_bias_in_another_precision_is_brought_to_that_of_the_queries(attend):
    query, key, value = (x.to(torch.bfloat16) for x in draw_qkv(2, 3, T=5, S=5, E=8, Ev=8))
    bias = draw(3, 5, 5, dtype=torch.float32)
    out = attend(query, key, value, bias=bias)
    assert out.dtype == torch.bfloat16
    expected = attention(query.double(), key.double(), value.double(), bias=bias.double())
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.05)


@BOTH
def test_scale_can_be_given(attend):
    query, key, value = draw_qkv(2, 3, T=5, S=7, E=4, Ev=6)
    expected = F.scaled_dot_product_attention(query, key, value, scale=0.37)
    torch.testing.assert_close(attend(query, key, value, scale=0.37), expected)
    torch.testing.assert_close(attend(query, key, value, scale=0.0)[0, 0, 0], value[0, 0].mean(0))


@BOTH
def test_a_query_that_may_read_nothing_gets_zeros(attend):
    query, key, value = draw_qkv(2, 3, T=4, S=4, E=4, Ev=4)
    mask = causal(4).clone()
    mask[2] = False
    out = attend(query, key, value, mask)
    assert (out[:, :, 2] == 0).all()
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    biased = attend(query, key, value, mask, bias=draw(4, 4, seed=5))
    assert (biased[:, :, 2] == 0).all()
    assert biased.isfinite().all()
    assert (attention_weights(query, key, mask)[:, :, 2] == 0).all()


@BOTH
def test_a_bias_of_minus_infinity_closes_like_a_mask(attend):
    query, key, value = draw_qkv(2, 3, T=4, S=5, E=4, Ev=4)
    mask = draw_mask(4, 5)
    mask[1] = False
    bias = torch.zeros(4, 5, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    out = attend(query, key, value, bias=bias)
    assert (out[:, :, 1] == 0).all()
    torch.testing.assert_close(out, attend(query, key, value, mask))


@BOTH
def test_a_query_that_may_read_nothing_does_not_spoil_the_gradients(attend):
    query, key, value = (x.requires_grad_() for x in draw_qkv(2, 3, T=4, S=4, E=4, Ev=4))
    mask = causal(4).clone()
    mask[2] = False
    attend(query, key, value, mask).square().sum().backward()
    for x in (query, key, value):
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert query.grad is not None
    assert (query.grad[:, :, 2] == 0).all()


@BOTH
def test_large_scores_do_not_overflow(attend):
    query, key, value = draw_qkv(2, 3, T=5, S=7, E=4, Ev=6)
    query = (query * 1e4).float()
    key, value = (key * 1e4).float(), value.float()
    out = attend(query, key, value)
    assert out.isfinite().all()
    # So far apart are the scores that each query reads one value alone.
    winner = (query @ key.transpose(-2, -1)).argmax(dim=-1)
    torch.testing.assert_close(out, torch.gather(value, 2, winner[..., None].expand(-1, -1, -1, 6)))


@BOTH
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_finite_differences(attend, masked):
    query, key, value = (x.requires_grad_() for x in draw_qkv(2, 2, T=3, S=4, E=3, Ev=2))
    bias = draw(2, 3, 4, seed=8).requires_grad_()
    mask = causal(3, 4) if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, mask), (query, key, value))
    assert torch.autograd.gradcheck(lambda q, k, v, b: attend(q, k, v, mask, bias=b), (query, key, value, bias))


def test_gradcheck_where_a_row_may_read_nothing_and_another_one_key():
    query, key, value = (x.requires_grad_() for x in draw_qkv(T=3, S=3, E=3, Ev=2))
    mask = torch.tensor([[False, False, False], [True, False, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, mask), (query, key, value))


@pytest.mark.parametrize("shape", [(6,), (1,), (4, 6), (2, 3, 5)])
def test_softmax_equals_torch(shape):
    scores = draw(*shape) * 10
    torch.testing.assert_close(softmax(scores), scores.softmax(dim=-1))
    scores.view(-1)[0] = float("-inf")
    if shape != (1,):
        torch.testing.assert_close(softmax(scores), scores.softmax(dim=-1))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_softmax_over_any_dimension_equals_torch(dim):
    scores = draw(2, 3, 5) * 10
    scores[1, 2, 3] = float("-inf")
    torch.testing.assert_close(softmax(scores, dim), scores.softmax(dim=dim))
    assert torch.autograd.gradcheck(lambda x: softmax(x, dim=dim), draw(2, 3, 4).requires_grad_())
    scores[:] = float("-inf")
    assert (softmax(scores, dim) == 0).all()


def test_softmax_over_a_dimension_that_is_not_there_is_refused():
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"\(2, 3\) have 2 dimensions: got dim={dim}"):
            softmax(draw(2, 3), dim)


def test_softmax_at_the_edges():
    inf = float("inf")
    assert softmax(torch.tensor([-inf, -inf])).tolist() == [0, 0]
    assert softmax(torch.tensor([-inf, 3.0])).tolist() == [0, 1]
    assert softmax(torch.tensor([5e4, 5e4])).tolist() == [0.5, 0.5]
    assert softmax(torch.tensor([-3e38, 3e38])).tolist() == [0, 1]
    assert softmax(torch.tensor([6e4, -6e4], dtype=torch.float16)).tolist() == [1, 0]
    assert torch.autograd.gradcheck(softmax, draw(3, 4).requires_grad_())


def test_dropout_drops_a_share_of_the_weights_and_raises_the_rest():
    query, key, value = draw_qkv(T=50, S=40, E=8, Ev=8)
    weights = attention_weights(query, key)
    torch.manual_seed(0)
    dropped = attention(query, key, torch.eye(40, dtype=torch.float64), dropout=0.25)
    kept = dropped != 0
    assert 0.7 < kept.double().mean() < 0.8
    torch.testing.assert_close(dropped[kept], (weights / 0.75)[kept])
    torch.testing.assert_close(attention(query, key, value, dropout=0.0), weights @ value)


def test_fused_dropout_is_dropout_too():
    query, key, _ = draw_qkv(T=50, S=40, E=8, Ev=8)
    torch.manual_seed(0)
    dropped = fused_attention(query, key, torch.eye(40, dtype=torch.float64), dropout=0.25)
    kept = dropped != 0
    assert 0.7 < kept.double().mean() < 0.8
    torch.testing.assert_close(dropped[kept], (attention_weights(query, key) / 0.75)[kept])


@BOTH
@pytest.mark.usefixtures("unchecked")
class TestErrorsSayWhatCame:
    def test_widths(self, attend):
        with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 5, 6\)"):
            attend(draw(2, 3, 4), draw(2, 5, 6), draw(2, 5, 6))

    def test_as_many_values_as_keys(self, attend):
        with pytest.raises(ValueError, match="5 keys and 6 values"):
            attend(draw(2, 3, 4), draw(2, 5, 4), draw(2, 6, 4))

    def test_mask_must_be_boolean(self, attend):
        with pytest.raises(ValueError, match=r"boolean.*float64.*bias="):
            attend(draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4), draw(3, 5))

    @pytest.mark.parametrize("shape", [(5, 3), (4,), (2, 5), (4, 3, 5), (2, 1, 1, 5)])
    def test_mask_must_fit(self, attend, shape):
        with pytest.raises(ValueError, match=re.escape("(2, 3, 5)") + ".*" + re.escape(f"got a mask {shape}")):
            attend(draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4), torch.ones(shape, dtype=torch.bool))

    @pytest.mark.parametrize("shape", [(2, 5, 5), (2, 1, 5), (1, 5, 5), (4, 5, 5)])
    def test_a_mask_of_three_dimensions_could_be_for_texts_or_for_heads(self, attend, shape):
        # Two texts and two heads: (2, 5, 5) would fit either way.
        query, key, value = draw_qkv(2, 2, T=5, S=5, E=4, Ev=4)
        with pytest.raises(ValueError, match=re.escape(str(shape)) + r".*mask\[:, None\] .* each text, mask\[None\]"):
            attend(query, key, value, torch.ones(shape, dtype=torch.bool))
        with pytest.raises(ValueError, match="three dimensions"):
            MultiHeadAttention(8, 2, attend=attend).double()(draw(2, 5, 8), mask=torch.ones(shape, dtype=torch.bool))
        # Without heads, texts are all that the first can stand for.
        if shape != (4, 5, 5):
            attend(query[:, 0], key[:, 0], value[:, 0], torch.ones(shape, dtype=torch.bool))


# ---- the module ----


def pair(d_model: int, n_heads: int, *, bias: bool = True) -> tuple[nn.MultiheadAttention, MultiHeadAttention]:
    """torch's module and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(d_model, n_heads, bias=bias, batch_first=True, dtype=torch.float64)
    ours = MultiHeadAttention(d_model, n_heads, bias=bias).double()
    with torch.no_grad():
        weights = dict(zip(("query", "key", "value"), theirs.in_proj_weight.chunk(3), strict=True))
        for name, weight in weights.items():
            getattr(ours, name).weight.copy_(weight)
        ours.output.weight.copy_(theirs.out_proj.weight)
        if bias:
            for parameter in (theirs.in_proj_bias, theirs.out_proj.bias):
                nn.init.normal_(parameter)
            for name, b in zip(("query", "key", "value"), theirs.in_proj_bias.chunk(3), strict=True):
                getattr(ours, name).bias.copy_(b)
            ours.output.bias.copy_(theirs.out_proj.bias)
    return theirs, ours


@BOTH
@pytest.mark.parametrize(("d_model", "n_heads", "bias"), [(12, 4, True), (12, 3, False), (10, 1, True)])
def test_module_equals_torch(attend, d_model, n_heads, bias):
    theirs, ours = pair(d_model, n_heads, bias=bias)
    ours.attend = attend
    x, memory = draw(2, 5, d_model), draw(2, 7, d_model, seed=1)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, memory), theirs(x, memory, memory)[0])
    torch.testing.assert_close(ours(x, mask=causal(5)), theirs(x, x, x, attn_mask=~causal(5))[0])
    ids = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    mask = padding(ids, pad_id=0)
    torch.testing.assert_close(ours(x, memory, mask=mask), theirs(x, memory, memory, key_padding_mask=ids == 0)[0])


def test_module_gradients_equal_torchs():
    theirs, ours = pair(12, 3)
    x, up = draw(2, 5, 12), draw(2, 5, 12, seed=1)
    ours(x, mask=causal(5)).backward(up)
    theirs(x, x, x, attn_mask=~causal(5))[0].backward(up)
    grads = torch.cat([ours.query.weight.grad, ours.key.weight.grad, ours.value.weight.grad])
    torch.testing.assert_close(grads, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.output.weight.grad, theirs.out_proj.weight.grad)


@BOTH
@pytest.mark.parametrize(("H", "K"), [(6, 6), (6, 3), (6, 2), (6, 1), (3, 1)])
def test_grouped_queries_equal_repeated_keys(attend, H, K):
    torch.manual_seed(0)
    module = MultiHeadAttention(24, H, n_kv_heads=K, d_head=5, attend=attend).double()
    x = draw(2, 5, 24)
    query = module.query(x).view(2, 5, H, 5).transpose(1, 2)
    key, value = (f(x).view(2, 5, K, 5).transpose(1, 2) for f in (module.key, module.value))
    torch_says = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    # By hand: query heads 0 ... H/K - 1 read key head 0, the next H/K key head 1, and so on.
    by_hand = torch.stack(
        [attention(query[:, h], key[:, h // (H // K)], value[:, h // (H // K)], causal(5)) for h in range(H)], dim=1
    )
    torch.testing.assert_close(by_hand, torch_says)
    expected = module.output(by_hand.transpose(1, 2).reshape(2, 5, H * 5))
    torch.testing.assert_close(module(x, mask=causal(5)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("H", "K", "T", "S"), [(6, 2, 5, 5), (6, 1, 1, 9), (9, 3, 7, 12), (4, 2, 3, 3)])
def test_shared_heads_give_what_their_copies_give_and_the_same_gradients(H, K, T, S, dtype):
    query = draw(2, H, T, 8, dtype=dtype).requires_grad_()
    key, value = (draw(2, K, S, 8, seed=seed, dtype=dtype).requires_grad_() for seed in (1, 2))
    up = draw(2, H, T, 8, seed=3, dtype=dtype)
    one_each = draw_mask(2, 1, T, S)
    for mask, bias in ((None, None), (causal(T, S), None), (one_each, None), (causal(T, S), draw(H, T, S, seed=4))):
        ours = fused_attention(query, key, value, mask, bias=bias)
        copies = (t.repeat_interleave(H // K, dim=1) for t in (key, value))
        expected = attention(query, *copies, mask, bias=bias)
        torch.testing.assert_close(ours, expected)
        for a, b in zip(
            torch.autograd.grad(ours, (query, key, value), up),
            torch.autograd.grad(expected, (query, key, value), up),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-7, atol=1e-5)


class Allocated(TorchDispatchMode):
    """Notes how many numbers the largest result of an operation has that is no view of what went in."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        there = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for out in result if isinstance(result, tuple) else (result,):
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in there:
                self.largest = max(self.largest, out.numel())
        return result


def test_shared_keys_and_values_are_not_copied():
    module = MultiHeadAttention(24, 6, n_kv_heads=2, bias=False)
    cache = LayerCache(1, 2, 501, 4)
    x = draw(1, 1, 24, dtype=torch.float32)
    with torch.no_grad():
        cache.append(draw(1, 2, 500, 4, dtype=torch.float32), draw(1, 2, 500, 4, seed=1, dtype=torch.float32))
        with Allocated() as fused:
            ours = module(x, cache=cache)
        cache.rewind(500)
        module.attend = attention
        with Allocated() as copied:
            torch.testing.assert_close(ours, module(x, cache=cache))
    assert fused.largest < 500
    assert copied.largest >= 6 * 501 * 4


def test_head_numbers_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 query heads and 4 key heads"):
        fused_attention(draw(2, 6, 3, 4), draw(2, 4, 3, 4), draw(2, 4, 3, 4))


def test_heads_need_not_divide_the_width_when_theirs_is_given():
    module = MultiHeadAttention(10, 3, d_head=4)
    assert module(draw(2, 5, 10, dtype=torch.float32)).shape == (2, 5, 10)
    assert module.query.weight.shape == (12, 10)
    assert module.output.weight.shape == (10, 12)


def test_number_of_parameters():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(MultiHeadAttention(64, 8)) == 4 * 64 * 64 + 4 * 64
    assert count(MultiHeadAttention(64, 8, bias=False)) == 4 * 64 * 64
    assert count(MultiHeadAttention(64, 8, n_kv_heads=2, bias=False)) == 2 * 64 * 64 + 2 * 64 * 16


@BOTH
def test_dropout_acts_in_training_only(attend):
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 4, attend=attend, dropout=0.5).double()
    x = draw(2, 6, 16)
    without = MultiHeadAttention(16, 4, attend=attend).double()
    without.load_state_dict(module.state_dict())
    first, second = module(x), module(x)
    assert not torch.allclose(first, second)
    module.eval()
    torch.testing.assert_close(module(x), without(x))
    torch.testing.assert_close(without.train()(x), without.eval()(x))


def test_position_bias_and_rotation_reach_the_scores():
    torch.manual_seed(0)
    alibi, rope = Alibi(4).double(), Rope(6, 16).double()
    module = MultiHeadAttention(24, 4, position_bias=alibi, rotate=rope).double()
    x = draw(2, 5, 24)
    query, key, value = (f(x).view(2, 5, 4, 6).transpose(1, 2) for f in (module.query, module.key, module.value))
    bias = alibi(5, 5).double().masked_fill(~causal(5), float("-inf")).expand(2, 4, 5, 5)
    heads = F.scaled_dot_product_attention(rope(query), rope(key), value, attn_mask=bias)
    expected = module.output(heads.transpose(1, 2).reshape(2, 5, 24))
    torch.testing.assert_close(module(x, mask=causal(5)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 10, "n_heads": 3}, "d_model=10, n_heads=3"),
        ({"d_model": 12, "n_heads": 6, "n_kv_heads": 4}, "n_heads=6, n_kv_heads=4"),
        ({"d_model": 12, "n_heads": 0}, "n_heads=0"),
        ({"d_model": 12, "n_heads": 4, "n_kv_heads": 0}, "n_kv_heads=0"),
    ],
)
def test_impossible_heads_are_refused_with_both_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**options)


# ---- with a cache ----

CHUNKS = [[7], [1] * 7, [3, 4], [1, 6], [6, 1], [2, 1, 3, 1], [5, 1, 1]]
VARIANTS = {
    "plain": (lambda: {}, causal),
    "rope": (lambda: {"rotate": Rope(6, 16).double()}, causal),
    "alibi": (lambda: {"position_bias": Alibi(4).double()}, causal),
    "window": (lambda: {"rotate": Rope(6, 16).double()}, lambda T, S=None: sliding_window(T, S, window=3)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("K", [1, 2, 4])
def test_cached_equals_uncached_in_any_chunking(variant, K):
    torch.manual_seed(0)
    options, mask = VARIANTS[variant]
    module = MultiHeadAttention(24, 4, n_kv_heads=K, **options()).double()
    x = draw(3, 7, 24)
    whole = module(x, mask=mask(7))
    for attend, chunks in itertools.product([attention, fused_attention], CHUNKS):
        module.attend = attend
        cache = LayerCache(3, K, 7, 6, dtype=torch.float64)
        parts = []
        with torch.no_grad():
            for part in x.split(chunks, dim=1):
                T = part.shape[1]
                parts.append(module(part, mask=mask(T, cache.length + T), cache=cache))
        assert cache.length == 7
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, msg=f"chunks {chunks}, {attend.__name__}")


@pytest.mark.parametrize("K", [1, 2, 4])
def test_cross_attention_fills_its_cache_once(K):
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, n_kv_heads=K).double()
    x, memory = draw(3, 5, 24), draw(3, 6, 24, seed=1)
    mask = draw_mask(3, 1, 1, 6)
    whole = module(x, memory, mask=mask)
    cache = LayerCache(3, K, 6, 6, dtype=torch.float64)
    read = []
    module.key.register_forward_hook(lambda *_: read.append(1))
    with torch.no_grad():
        parts = [module(part, memory, mask=mask, cache=cache) for part in x.split([2, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert cache.length == 6
    assert len(read) == 1


@BOTH
def test_queries_and_keys_are_normed_head_by_head_before_they_are_turned(attend):
    torch.manual_seed(0)
    norms = [RMSNorm(6).double() for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    rope = Rope(6, 16)
    module = MultiHeadAttention(
        24, 4, n_kv_heads=2, query_norm=norms[0], key_norm=norms[1], rotate=rope, attend=attend
    ).double()
    x = draw(2, 5, 24)
    query, key, value = (f(x).view(2, 5, -1, 6).transpose(1, 2) for f in (module.query, module.key, module.value))
    query = rope(F.rms_norm(query, (6,), norms[0].weight, 1e-5))
    key = rope(F.rms_norm(key, (6,), norms[1].weight, 1e-5))
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    expected = module.output(heads.transpose(1, 2).reshape(2, 5, 24))
    torch.testing.assert_close(module(x, mask=causal(5)), expected)


def test_keys_of_a_memory_are_normed_too():
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, query_norm=RMSNorm(6), key_norm=RMSNorm(6)).double()
    x, memory = draw(2, 5, 24), draw(2, 7, 24, seed=1)
    query = module.query(x).view(2, 5, 4, 6).transpose(1, 2)
    key, value = (f(memory).view(2, 7, 4, 6).transpose(1, 2) for f in (module.key, module.value))
    heads = F.scaled_dot_product_attention(
        F.rms_norm(query, (6,), None, 1e-5), F.rms_norm(key, (6,), None, 1e-5), value
    )
    torch.testing.assert_close(module(x, memory), module.output(heads.transpose(1, 2).reshape(2, 5, 24)))


@pytest.mark.parametrize(
    ("bias", "output_bias", "expected"),
    [(True, None, 4), (False, None, 0), (True, False, 3), (False, True, 1), (True, True, 4)],
)
def test_the_output_has_a_bias_as_the_others_unless_said(bias, output_bias, expected):
    module = MultiHeadAttention(24, 4, bias=bias, output_bias=output_bias)
    assert sum(name.endswith("bias") for name, _ in module.named_parameters()) == expected
    assert (module.output.bias is not None) == (expected in (1, 4))


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 3, 6])
def test_a_cache_that_drops_old_keys_changes_nothing(window, K):
    """Longer than the cache's memory, with steps back and padding."""
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, n_kv_heads=K, rotate=Rope(6, 128)).double()
    x, pads = draw(2, 100, 24), torch.tensor([0, 4])
    text = (torch.arange(100) >= pads[:, None])[:, None, None, :]
    whole = module(x, mask=sliding_window(100, window=window) & text)
    for chunks in ([1] * 100, [7] * 14 + [2], [60, 1, 1, 38], [100]):
        cache = Cache(1, 2, K, 100, 6, window=window, dtype=torch.float64)
        cache.pad_left(pads)
        parts, at = [], 0
        with torch.no_grad():
            for i, T in enumerate(chunks):
                if i % 5 == 3:  # what a draft got wrong is read again
                    at -= 2
                    cache.rewind(at)
                    parts = [torch.cat(parts, dim=1)[:, :at]]
                    T = min(T + 2, 100 - at)
                mask = sliding_window(T, cache.keys_after(T), window=window) & cache.text_after(T)
                parts.append(module(x[:, at : at + T], mask=mask, cache=cache.layers[0]))
                at += T
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, msg=f"chunks {chunks[:4]}")


def test_rotation_and_position_bias_are_for_self_attention_only():
    torch.manual_seed(0)
    plain = MultiHeadAttention(24, 4).double()
    torch.manual_seed(0)
    placed = MultiHeadAttention(24, 4, rotate=Rope(6, 8), position_bias=Alibi(4).double()).double()
    x, memory = draw(3, 5, 24), draw(3, 6, 24, seed=1)
    torch.testing.assert_close(placed(x, memory), plain(x, memory))
    assert not torch.allclose(placed(x), plain(x))


@BOTH
def test_rows_of_a_batch_do_not_touch(attend):
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, attend=attend).double()
    x = draw(3, 5, 24)
    together = module(x, mask=causal(5))
    alone = torch.cat([module(row[None], mask=causal(5)) for row in x])
    torch.testing.assert_close(together, alone)
