"""Llama and its relatives by themselves: sizes, caches, windows, padding, errors. Parity is in tests/pretrained."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llm_core.generation.generate import LanguageModel, generate
from llm_core.layers.positions import LinearScaling, Llama3Scaling, rotate_neighbours
from llm_core.models.llama import LLAMA_SIZES, Llama, LlamaConfig
from llm_core.pretrained.llama import llama_config_json

CONFIG = LlamaConfig(vocab_size=37, context=24, n_layers=3, n_heads=4, n_kv_heads=2, d_model=24, d_ff=40)
RELATIVES = {
    "llama": CONFIG,
    "llama, untied, long": dataclasses.replace(
        CONFIG, tied=False, d_head=8, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 10)
    ),
    "mistral": dataclasses.replace(CONFIG, window=4, n_kv_heads=1),
    "mixtral": dataclasses.replace(CONFIG, n_experts=4, window=5),
    "qwen2": dataclasses.replace(CONFIG, qkv_bias=True, n_kv_heads=4),
    "qwen3": dataclasses.replace(CONFIG, qk_norm=True, d_head=10),
    "qwen3 moe": dataclasses.replace(
        CONFIG, qk_norm=True, n_experts=4, d_expert=5, rescale_experts=False, dense_layers=(0,)
    ),
    "phi3": dataclasses.replace(CONFIG, d_head=10, rope_width=4),
    "gemma": dataclasses.replace(
        CONFIG, d_head=8, n_kv_heads=1, activation="gelu_tanh", norm_plus_one=True, scaled_embedding=True
    ),
}
RELATED = pytest.mark.parametrize("name", RELATIVES)
# Parameters of the published checkpoints, as the Hub counts them. Qwen3's file stores its tied table twice
# (751,632,384 there).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
    "smollm2-135m": 134_515_008,
}


def model_of(config: LlamaConfig, std: float = 0.4) -> Llama:
    """Large weights, so that attention is far from even and a key too many or too few shows."""
    torch.manual_seed(0)
    model = Llama(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=std)
    return model.eval()


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LLAMA_SIZES)
def test_named_sizes_have_the_published_number_of_parameters(name):
    config = llama_config_json(LLAMA_SIZES[name])
    config_class = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        ours = Llama(LLAMA_SIZES[name])
        theirs = transformers.AutoModelForCausalLM.from_config(config_class)
    assert ours.n_parameters() == PUBLISHED[name] == sum(p.numel() for p in theirs.parameters())


@RELATED
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [11, 9], [1, 19], [19, 1], [3, 1, 7, 2, 6, 1]])
def test_cached_equals_uncached_in_any_chunking(name, chunks):
    model, ids = model_of(RELATIVES[name]), draw_ids(3, 20)
    cache = model.new_cache(3, 20)
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-4)
    assert cache.length == 20


@RELATED
def test_padded_rows_read_as_if_alone(name):
    model = model_of(RELATIVES[name])
    texts = [draw_ids(1, T, seed=T) for T in (9, 4, 1)]
    padding = torch.tensor([0, 5, 8])
    ids = torch.cat([F.pad(text, (int(p), 0)) for text, p in zip(texts, padding, strict=True)])
    cache = model.new_cache(3, 14)
    cache.pad_left(padding)
    more = draw_ids(3, 5, seed=50)
    with torch.no_grad():
        logits = torch.cat([model(ids[:, :7], cache), model(ids[:, 7:], cache), model(more, cache)], dim=1)
        assert logits.isfinite().all()
        for i, text in enumerate(texts):
            alone = model(torch.cat([text, more[i : i + 1]], dim=1))
            torch.testing.assert_close(logits[i : i + 1, int(padding[i]) :], alone, rtol=1e-4, atol=1e-4)


@RELATED
def test_rewound_and_reordered_caches_continue_rightly(name):
    model, ids = model_of(RELATIVES[name]), draw_ids(3, 12)
    cache = model.new_cache(3)
    assert cache.capacity == 24
    with torch.no_grad():
        model(ids, cache)
        cache.rewind(7)
        cache.reorder(torch.tensor([2, 0, 2, 1]))
        tail = draw_ids(4, 9, seed=1)
        whole = torch.cat([ids[[2, 0, 2, 1], :7], tail], dim=1)
        torch.testing.assert_close(model(tail, cache), model(whole)[:, 7:], rtol=1e-4, atol=1e-4)


def test_a_window_reaches_further_with_every_layer_and_no_further():
    config = dataclasses.replace(CONFIG, window=3, n_layers=2)
    model, ids = model_of(config), draw_ids(1, 12)
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 1) % 37
    with torch.no_grad():
        changed = (model(other) - model(ids)).abs().amax(dim=-1)[0] > 1e-5
    # Two layers, each looking back two places: up to position 2 + 2 * 2.
    assert changed.tolist() == [2 <= t <= 6 for t in range(12)]


def test_a_cache_with_a_window_takes_no_more_memory_for_a_longer_text():
    config = dataclasses.replace(CONFIG, context=4000, window=8)
    cache = Llama(config).new_cache(2)
    assert cache.capacity == 4000
    assert cache.layers[0]._keys.shape[2] < 100


@RELATED
def test_generation_with_and_without_a_cache_is_the_same(name):
    model = model_of(RELATIVES[name])
    assert isinstance(model, LanguageModel)
    prompt = draw_ids(3, 5)
    assert torch.equal(generate(model, prompt, 15), generate(model, prompt, 15, use_cache=False))


def test_no_position_reads_what_comes_after_it():
    model, ids = model_of(CONFIG), draw_ids(1, 9)
    before = model(ids)
    for changed in range(9):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 37
        after = model(other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        assert (after[:, changed:] - before[:, changed:]).abs().amax(dim=-1).min() > 1e-4


@RELATED
def test_hidden_is_what_the_head_reads(name):
    model, ids = model_of(RELATIVES[name]), draw_ids(2, 7)
    head = model.token_embedding.weight if model.config.tied else model.head.weight
    torch.testing.assert_close(model(ids), model.hidden(ids) @ head.T)
    assert (model.context, model.vocab_size) == (24, 37)


def test_all_blocks_share_one_table_of_sines():
    model = model_of(CONFIG)
    assert len({id(block.attention.rotate) for block in model.blocks}) == 1
    assert not [name for name in model.state_dict() if "rotate" in name]


def test_a_model_in_bfloat16_runs_with_its_cache():
    model = model_of(dataclasses.replace(CONFIG, window=4), std=0.1).to(torch.bfloat16)
    ids = draw_ids(2, 12)
    cache = model.new_cache(2)
    with torch.no_grad():
        logits = torch.cat([model(ids[:, :6], cache), model(ids[:, 6:], cache)], dim=1)
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), model.float()(ids), rtol=0.1, atol=0.1)


def test_more_than_the_context_is_refused_before_any_work():
    model = model_of(CONFIG)
    touched = []
    model.token_embedding.register_forward_hook(lambda *_: touched.append(1))
    with pytest.raises(ValueError, match=r"0 tokens in the cache and 25 new.*context is 24"):
        model(draw_ids(1, 25))
    cache = model.new_cache(1, 99)
    with torch.no_grad():
        model(draw_ids(1, 20), cache)
        touched.clear()
        with pytest.raises(ValueError, match="20 tokens in the cache and 5 new ones make 25, the context is 24"):
            model(draw_ids(1, 5), cache)
    assert not touched
    assert cache.length == 20


@pytest.mark.parametrize("wrong", [37, -1])
def test_an_id_that_is_no_token_is_refused(wrong):
    ids = draw_ids(1, 4)
    ids[0, 2] = wrong
    with pytest.raises(ValueError, match=rf"0 \.\.\. 36.*{wrong}"):
        model_of(CONFIG)(ids)


@pytest.mark.parametrize(
    "name",
    [
        *("vocab_size", "context", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_ff"),
        *("d_head", "window", "n_experts", "experts_per_token"),
    ],
)
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(CONFIG, **{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5, "n_kv_heads": 5}, "d_model=24, n_heads=5"),
        ({"n_kv_heads": 3}, "n_heads=4, n_kv_heads=3"),
        ({"n_kv_heads": 8}, "n_heads=4, n_kv_heads=8"),
        ({"n_heads": 8}, "even width: got 3"),
        ({"d_head": 7}, "even width: got 7"),
        ({"n_experts": 4, "experts_per_token": 5}, "experts_per_token=5, n_experts=4"),
        ({"rope_base": 1.0}, "above 1: got 1.0"),
        ({"norm_eps": 0.0}, "above 0: got 0.0"),
    ],
)
def test_other_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.n_heads = 2  # type: ignore[misc]


def test_a_new_model_guesses_evenly_and_depends_on_the_seed_alone():
    config = LlamaConfig(500, 32, 4, 4, 2, 64, 128, tied=False, qkv_bias=True, n_experts=4)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(Llama(config))
    same, again, other = models
    ids = torch.randint(500, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(same(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), abs=0.05)
    assert torch.equal(same(ids), again(ids))
    assert not torch.equal(same(ids), other(ids))
    for name, parameter in same.named_parameters():
        if parameter.ndim == 2:
            into_stream = name.endswith(("attention.output.weight", "down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / (8**0.5 if into_stream else 1), rel=0.15), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_a_scaling_of_rope_changes_what_is_said():
    ids = draw_ids(1, 12)
    plain = model_of(CONFIG)
    scaled = Llama(dataclasses.replace(CONFIG, rope_scaling=LinearScaling(4.0))).eval()
    scaled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(ids), scaled(ids), atol=1e-2)


def test_neighbours_turn_as_halves_do_when_the_columns_are_put_in_their_order():
    config = LlamaConfig(17, 12, 2, 4, 2, 24, 20)
    halves, neighbours = Llama(config), Llama(dataclasses.replace(config, rope_turn=rotate_neighbours))
    weights = halves.state_dict()
    for name, tensor in weights.items():
        if name.endswith(("query.weight", "key.weight")):  # of each head: 0, E/2, 1, E/2 + 1, ...
            weights[name] = tensor.unflatten(0, (-1, 2, 3)).transpose(1, 2).flatten(0, 2)
    ids = torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(0))
    neighbours.load_state_dict(halves.state_dict())
    assert not torch.allclose(neighbours(ids), halves(ids), atol=1e-4)
    neighbours.load_state_dict(weights)
    torch.testing.assert_close(neighbours(ids), halves(ids), rtol=0, atol=1e-5)


def test_layers_without_a_window_see_the_beginning_with_a_cache_too():
    config = LlamaConfig(17, 40, 2, 2, 2, 8, 12, window=3, full_layers=(1,))
    assert config.windows == (3, None)
    model = Llama(config).eval()
    ids = torch.randint(17, (2, 40), generator=torch.Generator().manual_seed(0))
    cache, whole = model.new_cache(2), model(ids)
    with torch.no_grad():
        steps = [model(ids[:, :30], cache), *(model(ids[:, t : t + 1], cache) for t in range(30, 40))]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"full_layers must be of 0 ... 1: got \(2,\)"):
        dataclasses.replace(config, full_layers=(2,))
