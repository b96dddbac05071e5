"""Quantised weights: codes as torch and gguf give them, errors inside the bounds, layers that run."""

from __future__ import annotations

import copy
import warnings

import gguf.quants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.compression.quantize import (
    FusedInt4Linear,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    dequantize_int4,
    pack_int4,
    quantize_4bit,
    quantize_8bit,
    quantize_int4,
    quantize_int8,
    rounding_bound,
    unpack_int4,
)
from llm_core.generation.generate import generate
from llm_core.layers.embedding import TokenEmbedding
from llm_core.models.gpt import GPT, GPTConfig

# Rounding of x and of the result to bfloat16, which has 8 significant bits: at most 2^-8 of the sum of the parts each.
BFLOAT16 = 2.0**-8


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def small_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=48, context=24, n_layers=2, n_heads=4, d_model=64)).eval()


def test_int8_codes_are_those_of_torchs_own_quantiser():
    weight = draw(33, 70)
    codes, scale = quantize_int8(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop this kind of tensor some day
        theirs = torch.quantize_per_channel(weight, scale.double(), torch.zeros(33, dtype=torch.long), 0, torch.qint8)
    assert torch.equal(codes, theirs.int_repr())
    torch.testing.assert_close(codes * scale[:, None], theirs.dequantize(), rtol=1e-6, atol=0)


def test_int8_scales_are_those_of_ggufs_q8_0():
    # Q8_0 does to blocks of 32 what we do to rows: give it rows of 32.
    weight = draw(50, 32)
    codes, scale = quantize_int8(weight)
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(blocks[:, 2:].view(np.int8), codes.numpy())
    np.testing.assert_allclose(blocks[:, :2].view(np.float16)[:, 0], scale.numpy(), rtol=1e-3)  # they keep 16 bits


def test_int8_moves_no_weight_by_more_than_half_a_step_and_uses_the_whole_range():
    weight = torch.cat([draw(20, 64), draw(20, 64, seed=1, scale=1e-6), draw(20, 64, seed=2, scale=1e4)])
    codes, scale = quantize_int8(weight)
    error = (codes * scale[:, None] - weight).abs()
    assert (error <= scale[:, None] / 2 * (1 + 1e-5)).all()
    assert (codes.abs().amax(dim=1) == 127).all()


def test_int8_of_a_row_of_zeros_is_zeros():
    codes, scale = quantize_int8(torch.zeros(2, 5))
    assert (codes == 0).all()
    assert torch.equal(scale, torch.ones(2))


@pytest.mark.parametrize("group", [2, 16, 64])
def test_int4_moves_no_weight_by_more_than_half_a_step_and_keeps_both_ends(group):
    weight = torch.cat([draw(9, 64), draw(9, 64, seed=1, scale=1e-3) + 5, torch.full((1, 64), -0.3)])
    codes, step, lowest = quantize_int4(weight, group)
    restored = dequantize_int4(codes, step, lowest)
    error = (restored - weight).abs().unflatten(1, (-1, group))
    assert (error <= step[..., None] / 2 + 1e-6 * weight.abs().max()).all()
    groups = restored.unflatten(1, (-1, group))
    torch.testing.assert_close(groups.amin(dim=2), weight.unflatten(1, (-1, group)).amin(dim=2))
    torch.testing.assert_close(groups.amax(dim=2), weight.unflatten(1, (-1, group)).amax(dim=2))
    assert int(codes.max()) == 15


def test_int4_is_as_close_as_ggufs_q4_1():
    # Q4_1 is the same scheme on groups of 32 with 16-bit numbers.
    weight = draw(40, 128)
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1)
    theirs = torch.from_numpy(gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q4_1))
    ours = dequantize_int4(*quantize_int4(weight, 32))
    assert (ours - theirs).abs().max() < 0.01
    assert F.mse_loss(ours, weight) <= 1.01 * F.mse_loss(theirs, weight)


def test_two_codes_go_into_one_byte_and_come_out_again():
    codes = torch.randint(0, 16, (7, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack_int4(codes)
    assert packed.shape == (7, 5)
    assert torch.equal(packed, codes[:, 0::2] + 16 * codes[:, 1::2])
    assert torch.equal(unpack_int4(packed), codes)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5)])
def test_an_int8_layer_stays_inside_its_bound(shape):
    linear = nn.Linear(96, 40)
    layer = Int8Linear.of(linear)
    x = draw(*shape, 96, seed=3)
    with torch.no_grad():
        bound = rounding_bound(x, layer.scale[:, None])
        kernel = 2 * BFLOAT16 * (x.abs() @ linear.weight.abs().T)
        error = (layer(x) - linear(x)).abs()
    assert error.shape == (*shape, 40)
    assert (error <= bound + kernel).all()
    assert error.max() > 0


def test_the_bound_is_reached_by_the_worst_input():
    # The largest weight makes the step 1; all others lie nearly halfway between two codes, and are rounded down.
    weight = torch.cat([torch.tensor([127.0]), torch.arange(63) + 0.499])[None]
    codes, scale = quantize_int8(weight)
    x = torch.cat([torch.zeros(1), torch.ones(63)])[None]
    reached = (x @ (weight - codes * scale[:, None]).T).squeeze()
    bound = rounding_bound(x, scale[:, None]).squeeze()
    assert 0.99 * bound < reached <= bound


def test_the_kernel_follows_the_definition():
    # Inputs that bfloat16 holds exactly: what is left is the rounding of the result.
    for layer in (Int8Linear.of(nn.Linear(64, 48)), Int4Linear.of(nn.Linear(64, 48), 32).for_generation()):
        x = draw(5, 64, seed=1).to(torch.bfloat16).float()
        if isinstance(layer, Int8Linear):
            exact = F.linear(x, layer.dequantized(), layer.bias)
        else:
            torch.manual_seed(0)
            linear = nn.Linear(64, 48)
            portable = Int4Linear.of(linear, 32)
            layer, exact = portable.for_generation(), portable(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), exact, rtol=2 * BFLOAT16, atol=0.02)
            torch.testing.assert_close(layer(x[:1]), exact[:1], rtol=2 * BFLOAT16, atol=0.02)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("fused", [False, True])
def test_an_int4_layer_stays_inside_its_bound(group, fused):
    linear = nn.Linear(128, 48)
    layer = Int4Linear.of(linear, group)
    x = draw(4, 128, seed=3)
    with torch.no_grad():
        bound = rounding_bound(x, layer.step)
        # The kernel rounds x, the steps, the middles and the result.
        kernel = 4 * BFLOAT16 * (x.abs() @ layer.dequantized().abs().T) if fused else torch.tensor(1e-5)
        error = ((layer.for_generation() if fused else layer)(x) - linear(x)).abs()
    assert (error <= bound + kernel).all()
    assert error.max() > 0


def test_gradients_pass_through_to_what_comes_before():
    # Small matrices trained beside frozen quantised ones (LoRA) need them.
    linear = nn.Linear(64, 32)
    x = draw(3, 64).requires_grad_()
    for layer in (Int8Linear.of(linear), Int4Linear.of(linear, 32)):
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        torch.testing.assert_close(gradient, layer.dequantized().sum(dim=0).expand(3, -1))


def test_an_8_bit_embedding_gives_vectors_and_logits():
    embedding = TokenEmbedding(48, 64)
    quantised = Int8Embedding.of(embedding)
    ids = torch.tensor([[0, 5], [47, 5]])
    half_a_step = quantised.scale[ids][..., None] / 2
    assert ((quantised(ids) - embedding(ids)).abs() <= half_a_step * (1 + 1e-5)).all()
    x = draw(2, 1, 64)
    bound = rounding_bound(x, quantised.scale[:, None]) + 2 * BFLOAT16 * (x.abs() @ embedding.weight.abs().T)
    assert ((quantised.logits(x) - embedding.logits(x)).abs() <= bound).all()
    with pytest.raises(ValueError, match=r"0 \.\.\. 47: got 0 to 48"):
        quantised(torch.tensor([[0, 48]]))
    with pytest.raises(ValueError, match="got -1 to 3"):
        quantised(torch.tensor([[-1, 3]]))
    assert quantised(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, 64)


@pytest.mark.parametrize(
    ("quantize", "bytes_per_weight"),
    [(quantize_8bit, 1.1), (quantize_4bit, 0.75 + 0.1), (lambda m: quantize_4bit(m, group=64), 0.65)],
)
def test_a_quantised_model_is_smaller_and_nearly_the_same(quantize, bytes_per_weight):
    model = small_gpt()
    quantised = quantize(copy.deepcopy(model))
    ids = torch.randint(48, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = model(ids), quantised(ids)
    assert (ours - theirs).norm() < (0.03 if quantize is quantize_8bit else 0.2) * theirs.norm()
    assert (ours - theirs).abs().max() > 0
    blocks = quantised.blocks[0]
    linears = [m for m in model.blocks[0].modules() if isinstance(m, nn.Linear)]
    n_weights = sum(linear.weight.numel() for linear in linears)
    n_biases = sum(linear.bias.numel() for linear in linears)
    stored = sum(b.numel() * b.element_size() for b in blocks.buffers()) - 4 * n_biases
    assert stored <= bytes_per_weight * n_weights
    assert not any(isinstance(m, nn.Linear | TokenEmbedding) for m in quantised.modules())


@pytest.mark.parametrize("quantize", [quantize_8bit, quantize_4bit, lambda m: quantize_4bit(m, for_generation=True)])
def test_a_quantised_model_generates_the_same_with_and_without_a_cache(quantize):
    model = quantize(small_gpt())
    prompt = torch.randint(48, (2, 5), generator=torch.Generator().manual_seed(1))
    # Not token for token: bfloat16 sums depend on the shape. The logits of the cached text must agree.
    tokens = generate(model, prompt, 6)
    text = torch.cat([prompt, tokens], dim=1)
    with torch.no_grad():
        whole = model(text)
        cache = model.new_cache(2, 11)
        parts = torch.cat([model(text[:, :5], cache), model(text[:, 5:6], cache), model(text[:, 6:], cache)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=0.02, atol=0.02)


def test_quantised_weights_can_be_saved_and_loaded(tmp_path):
    model = quantize_4bit(small_gpt())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = quantize_4bit(GPT(model.config).eval())
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(other(ids), model(ids))


def test_layers_can_be_kept():
    from llm_core.compression.replace import replace_layers

    model = small_gpt()
    kept = model.blocks[1].feed_forward.down
    replace_layers(model, Int8Linear.of, keep={"blocks.1.feed_forward.down"})
    assert model.blocks[1].feed_forward.down is kept
    assert isinstance(model.blocks[0].feed_forward.down, Int8Linear)
    assert isinstance(model.token_embedding, TokenEmbedding)
    with pytest.raises(ValueError, match=r"no layer to keep called 'blocks\.7'.*blocks\.1\.feed_forward\.down"):
        replace_layers(model, Int8Linear.of, keep={"blocks.7"})


def test_what_cannot_be_quantised_is_refused_before_anything_changes():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="1 of 6 weights are not finite"):
            quantize_int8(torch.tensor([[1.0, 2.0, bad], [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="group of 24, a width of 64"):
        quantize_int4(draw(2, 64), 24)
    with pytest.raises(ValueError, match="group of 1,"):
        quantize_int4(draw(2, 64), 1)
    model = small_gpt()
    with pytest.raises(ValueError, match="group of 48, a width of 64"):
        quantize_4bit(model, group=48)
    assert not any(isinstance(m, Int4Linear | Int8Embedding) for m in model.modules())
    with pytest.raises(ValueError, match=r"multiple of 16.*width of 24 and groups of 32"):
        Int4Linear.of(nn.Linear(64, 24), 32).for_generation()
    with pytest.raises(ValueError, match="nothing to replace in this GPT"):
        quantize_8bit(quantize_8bit(small_gpt()))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("quantize", [quantize_8bit, quantize_4bit])
def test_weights_that_are_codes_already_get_no_second_scale(kind, quantize):
    model = nn.Sequential(nn.Linear(32, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 32).to(kind), requires_grad=False)
    with pytest.raises(ValueError, match=f"to be given a scale: got {kind}"):
        quantize(model)


def test_a_model_that_the_kernel_cannot_take_stays_as_it_was():
    model = GPT(GPTConfig(vocab_size=48, context=8, n_layers=1, n_heads=2, d_model=40))
    with pytest.raises(ValueError, match=r"multiple of 16.*width of 40"):
        quantize_4bit(model, group=8, for_generation=True)
    assert not any(isinstance(m, FusedInt4Linear | Int8Embedding) for m in model.modules())


@pytest.mark.parametrize("width", [8, 17, 24, 40, 100])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_width_that_the_8_bit_kernel_cannot_take_gets_the_right_product(width, rows):
    """Torch's kernel takes 16 numbers at a time, and does not look whether there are as many."""
    layer = Int8Linear.of(nn.Linear(width, 7))
    x = draw(rows, width, seed=1)
    expected = F.linear(x, layer.dequantized(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=2e-2, atol=2e-2)


def test_quantised_layers_say_how_wide_they_are():
    linear = nn.Linear(64, 32)
    four = Int4Linear.of(linear)
    for layer in (Int8Linear.of(linear), four, four.for_generation()):
        assert (layer.in_features, layer.out_features) == (64, 32)
