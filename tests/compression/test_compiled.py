"""A token in one compiled function: the logits and the text of the same quantised weights on PyTorch."""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.compression.compiled import CompiledDecoder, compile_decoder
from llm_core.compression.quantize import Int4Linear, Int8Embedding, Int8Linear, quantize_4bit, quantize_8bit
from llm_core.compression.replace import replace_layers
from llm_core.generation.beam_search import beam_search
from llm_core.generation.generate import generate, stream
from llm_core.generation.sampling import Sampler
from llm_core.layers.positions import Llama3Scaling, rotate_neighbours
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig

# Sizes are few and odd: heads that do not fill sixteen numbers, widths that do not fill a group, a window, biases.
SMALL = LlamaConfig(97, 48, 3, 6, 2, 96, 128)
MODELS = {
    "grouped queries": SMALL,
    "one layer, one head of one": LlamaConfig(37, 48, 1, 1, 1, 32, 32),
    "odd heads, untied, biases": LlamaConfig(
        61, 48, 2, 9, 3, 96, 160, d_head=10, tied=False, qkv_bias=True, output_bias=True
    ),
    "norms on queries and keys": LlamaConfig(61, 48, 2, 4, 4, 64, 96, d_head=32, qk_norm=True, norm_eps=1e-3),
    "a window": LlamaConfig(61, 48, 3, 5, 1, 160, 64, window=5),
    "a window of one": LlamaConfig(61, 48, 2, 2, 1, 64, 64, window=1),
    "slowed rotation": LlamaConfig(61, 48, 2, 4, 2, 64, 64, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16)),
    "gpt": GPTConfig(61, 48, 2, 5, 160),
    "gpt, small": GPTConfig(33, 48, 1, 2, 32),
}


def make(config: LlamaConfig | GPTConfig, seed: int = 0, size: float = 0.3) -> Llama | GPT:
    """A model whose weights are large enough that every part of it shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = (Llama if isinstance(config, LlamaConfig) else GPT)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * (size if parameter.ndim > 1 else 0.2)
            parameter.copy_(drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def dequantized(model: nn.Module, bits: int) -> nn.Module:
    """The same model on PyTorch in float32, each weight where rounding has moved it."""

    def linear(layer: nn.Linear) -> nn.Linear:
        layer.weight.data = (Int4Linear.of(layer) if bits == 4 else Int8Linear.of(layer)).dequantized()
        return layer

    def embedding(layer: nn.Embedding) -> nn.Embedding:
        codes = Int8Embedding.of(layer)
        layer.weight.data = codes.codes * codes.scale[:, None]
        return layer

    return replace_layers(copy.deepcopy(model), linear, embedding)


def compiled(model: nn.Module, bits: int = 4, threads: int = 1) -> CompiledDecoder:
    result = compile_decoder(model, bits=bits, threads=threads)
    assert isinstance(result, CompiledDecoder)
    return result


def text(vocab_size: int, B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * (1 + theirs.abs().max())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_same_weights_on_torch(name, bits):
    model = make(MODELS[name])
    if bits == 4 and name == "odd heads, untied, biases":  # its output projection is 90 wide
        with pytest.raises(ValueError, match="a group of 32, a width of 90"):
            compile_decoder(model, bits=4)
        return
    ours, theirs = compiled(model, bits), dequantized(model, bits).double()
    ids = text(model.vocab_size, 3, 48)  # as long as the context
    with torch.no_grad():
        expected = theirs(ids).float()
        assert_near(ours(ids), expected)
        for first in (1, 7):  # a prompt, then token by token until the cache is full
            cache = ours.new_cache(3, 48)
            read = [ours(ids[:, :first], cache), *(ours(ids[:, i : i + 1], cache) for i in range(first, 48))]
            assert_near(torch.cat(read, dim=1), expected)


@pytest.mark.parametrize(("threads", "bits"), [(1, 8), (2, 4), (3, 4)])
def test_text_is_that_of_torch_for_any_number_of_threads(threads, bits):
    for config in (SMALL, MODELS["gpt"]):
        model = make(config)
        ours, theirs = compiled(model, bits, threads), dequantized(model, bits)
        prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]  # of unequal length
        assert torch.equal(generate(ours, prompts, 30), generate(theirs, prompts, 30))
        sampler = Sampler(temperature=0.8, top_k=20)
        drawn = [
            generate(m, prompts, 20, choose=sampler, generator=torch.Generator().manual_seed(3)) for m in (ours, theirs)
        ]
        assert torch.equal(*drawn)


def test_beams_are_reordered_as_on_torch():
    model = make(SMALL)
    found = [beam_search(m, text(97, 1, 4), 12, n_beams=3)[0] for m in (compiled(model), dequantized(model, 4))]
    assert [hypothesis.ids for hypothesis in found[0]] == [hypothesis.ids for hypothesis in found[1]]


def test_layers_that_are_quantised_already_are_taken_as_they_are():
    for bits, quantize in ((8, quantize_8bit), (4, quantize_4bit)):
        for config in (SMALL, MODELS["gpt"]):
            model = make(config)
            ids = text(model.vocab_size, 1, 9)
            expected = compiled(model, bits)(ids)
            assert torch.equal(compiled(quantize(model), bits=12 - bits)(ids), expected)


def test_larger_groups_are_taken_too_and_smaller_ones_refused_by_name():
    model = quantize_4bit(make(LlamaConfig(61, 48, 1, 2, 2, 64, 128)), group=64)
    with torch.no_grad():
        assert_near(compiled(model)(text(61, 1, 5)), _on_float(model)(text(61, 1, 5)))
    with pytest.raises(ValueError, match=r"attention.query is not compiled: its 4-bit weights are in groups of 16"):
        compile_decoder(quantize_4bit(make(SMALL), group=16))


def _on_float(model: nn.Module) -> nn.Module:
    """A model of `Int4Linear`s, its embedding back in float32: torch's kernel for 8 bits takes bfloat16."""
    codes = model.token_embedding
    model.token_embedding = make(model.config).token_embedding
    model.token_embedding.weight.data = codes.codes * codes.scale[:, None]
    return model


def test_peaked_logits_and_scores_stay_finite_and_right():
    model = make(SMALL, size=3.0)  # attention looks at one key, scores reach thousands
    ours, theirs = compiled(model, 8), dequantized(model, 8).double()
    ids = text(97, 2, 20)
    with torch.no_grad():
        logits, expected = ours(ids), theirs(ids).float()
    assert logits.isfinite().all()
    assert expected.abs().max() > 50
    assert (logits - expected).abs().max() <= 2e-3 * expected.abs().max()
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_neighbours_are_turned_as_pairs_where_the_model_does():
    model = make(SMALL)
    for block in model.blocks:
        block.attention.rotate.turn = rotate_neighbours
    with torch.no_grad():
        assert_near(compiled(model)(text(97, 1, 12)), dequantized(model, 4)(text(97, 1, 12)))


def test_a_cache_goes_back_and_goes_on():
    ours, ids = compiled(make(SMALL)), text(97, 1, 10)
    cache = ours.new_cache(1, 10)
    ours(ids, cache)
    cache.rewind(4)
    again = ours(ids[:, 4:], cache)
    assert_near(again, ours(ids)[:, 4:])
    with pytest.raises(ValueError, match="cannot be rewound to 11"):
        cache.rewind(11)


def test_long_prompts_are_read_in_pieces():
    model = make(LlamaConfig(61, 600, 1, 2, 1, 32, 32))
    ids = text(61, 1, 600)
    ours = compiled(model)
    with torch.no_grad():
        assert_near(ours.hidden(ids, ours.new_cache(1, 600)), dequantized(model, 4).hidden(ids))


def test_the_cache_of_a_row_is_its_own():
    ours, ids = compiled(make(SMALL)), text(97, 4, 9)
    together = ours(ids)
    for b in range(4):
        assert_near(ours(ids[b : b + 1]), together[b : b + 1])


def test_what_cannot_be_read_is_refused_and_the_cache_stays_as_it_was(unchecked):
    ours = compiled(make(SMALL))
    cache = ours.new_cache(1, 5)
    ours(text(97, 1, 3), cache)
    for ids, reason in (
        (text(97, 1, 3), "the cache is full: it holds 3 of 5 tokens and 3 more"),
        (torch.tensor([[97]]), "ids must be tokens, 0 ... 96: got 97 to 97"),
        (torch.tensor([[-1, 2]]), "got -1 to 2"),
        (text(97, 2, 1), "the cache is not one of this model for 2 texts"),
    ):
        with pytest.raises(ValueError, match=reason):
            ours(ids, cache)
    with pytest.raises(ValueError, match="the cache is not one of this model"):
        ours(text(97, 1, 1), make(SMALL).new_cache(1, 5))
    with pytest.raises(ValueError, match="longer than the context: 0 tokens in the cache and 49 new ones"):
        ours(text(97, 1, 49))
    assert cache.length == 3


def test_what_is_not_compiled_is_refused_by_name(unchecked):
    experts = LlamaConfig(61, 48, 1, 2, 2, 32, 32, n_experts=2)
    with pytest.raises(ValueError, match="n_experts=2 are not compiled"):
        compile_decoder(make(experts))
    with pytest.raises(ValueError, match="only Llama and GPT are compiled: got a Linear"):
        compile_decoder(nn.Linear(3, 3))
    model = make(SMALL)
    model.blocks[1].feed_forward.activation = F.relu
    with pytest.raises(ValueError, match=r"blocks.1.feed_forward is not compiled: its activation is .*relu"):
        compile_decoder(model)
    model = make(SMALL)
    model.blocks[0].attention.output = nn.Sequential(nn.Linear(96, 96), nn.BatchNorm1d(96))
    with pytest.raises(ValueError, match=r"attention.output.1 is not compiled: a BatchNorm1d"):
        compile_decoder(model)
    model = make(SMALL)
    model.blocks[2].attention.position_bias = lambda T, S: torch.zeros(6, T, S)
    with pytest.raises(ValueError, match=r"blocks.2.attention is not compiled: its attention has a position_bias"):
        compile_decoder(model)
    for wrong in ({"bits": 3}, {"threads": 0}):
        with pytest.raises(ValueError, match=f"got {next(iter(wrong))}"):
            compile_decoder(make(SMALL), **wrong)


def test_without_numba_the_same_weights_run_on_torch_and_a_warning_says_how_to_get_it(monkeypatch):
    model = make(SMALL)
    expected = compiled(model, 4)(text(97, 1, 8))
    find = importlib.util.find_spec
    monkeypatch.setattr("llm_core.compression.compiled.find_spec", lambda name: None if name == "numba" else find(name))
    with pytest.warns(UserWarning, match=r"numba is not installed.*pip install"):
        fallback = compile_decoder(model)
    with torch.no_grad():
        logits = fallback(text(97, 1, 8))
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()  # torch's 8-bit kernel takes bfloat16
    assert isinstance(model.blocks[0].attention.query, nn.Linear)  # the model itself is as it was
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = quantize_8bit(model)
        assert compile_decoder(quantised) is quantised


def test_a_stream_can_be_left_and_another_begun():
    ours = compiled(make(SMALL), threads=2)
    first = stream(ours, text(97, 1, 3), 20)
    begun = [next(first).item() for _ in range(4)]
    other = generate(ours, text(97, 1, 5, seed=1), 6)
    rest = [token.item() for token in first]
    assert begun + rest == generate(ours, text(97, 1, 3), 20)[0].tolist()
    assert other.shape == (1, 6)


def test_the_products_are_those_of_numpy_for_every_number_of_tokens():
    step = pytest.importorskip("llm_core.compression.decode_step")
    rng = np.random.default_rng(0)
    rows, groups = 11, 3
    codes = rng.integers(0, 16, (2 * rows, groups, 32), dtype=np.uint8)
    steps, lowest = (rng.standard_normal((2 * rows, groups)).astype(np.float32) for _ in range(2))
    packed = codes[..., :16] | codes[..., 16:] << 4
    weights = step.Weights4(packed.reshape(-1), steps.reshape(-1), lowest.reshape(-1), rows, groups)
    dense = (codes * steps[..., None] + lowest[..., None]).reshape(2, rows, -1)
    bias = rng.standard_normal((2, rows)).astype(np.float32)
    for N in range(1, 10):
        x = rng.standard_normal((N, 96)).astype(np.float32)
        before = rng.standard_normal((N, rows)).astype(np.float32)
        for add in (False, True):
            y = before.copy()
            for thread in range(3):
                step.product(weights, 1, bias, x, y, add, thread, 3)
            expected = x @ dense[1].T + bias[1] + (before if add else 0)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
            assert math.isfinite(float(y.sum()))
