"""Llama and its relatives against transformers: logits, gradients, generated text, and the files in both directions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import GemmaConfig as TheirGemma
from transformers import LlamaConfig as TheirLlama
from transformers import MistralConfig as TheirMistral
from transformers import MixtralConfig as TheirMixtral
from transformers import Phi3Config as TheirPhi3
from transformers import Qwen2Config as TheirQwen2
from transformers import Qwen3Config as TheirQwen3
from transformers import Qwen3MoeConfig as TheirQwen3Moe

from llm_core.generation.generate import generate
from llm_core.layers.positions import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
    rotate_neighbours,
)
from llm_core.models.llama import LLAMA_SIZES, Llama, LlamaConfig
from llm_core.pretrained.files import read_weights
from llm_core.pretrained.llama import llama_config, llama_config_json, llama_table, load_llama, save_llama
from llm_core.pretrained.names import Line, to_ours, to_theirs

SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 10}
TURNS = ["sliding_attention", "full_attention", "sliding_attention"]
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 3.0], "long_factor": [1.5, 4.0, 9.0]}
LONGROPE |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
HALF = {"rope_type": "default", "partial_rotary_factor": 0.67}  # of 6 columns: 4
PHI_LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.5, 9.0], "factor": 2.0}
PHI_LONG |= {"partial_rotary_factor": 0.67}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
THEIRS = {
    "llama": lambda: TheirLlama(**SIZES),
    "llama, tied": lambda: TheirLlama(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama, biases, wide heads": lambda: TheirLlama(**SIZES, attention_bias=True, head_dim=10),
    "llama 3": lambda: TheirLlama(**SIZES, rope_parameters={**LLAMA3, "rope_theta": 500.0}),
    "llama, yarn": lambda: TheirLlama(**SIZES, rope_parameters={**YARN, "rope_theta": 100.0}),
    "llama, linear": lambda: TheirLlama(
        **SIZES, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
    ),
    "mistral": lambda: TheirMistral(**SIZES, sliding_window=5),
    "mistral, no window": lambda: TheirMistral(**SIZES, sliding_window=None),
    "mixtral": lambda: TheirMixtral(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "mixtral, window": lambda: TheirMixtral(**SIZES, num_local_experts=3, num_experts_per_tok=1, sliding_window=6),
    "qwen2": lambda: TheirQwen2(**SIZES, tie_word_embeddings=True),
    "qwen2, window": lambda: TheirQwen2(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    "qwen2, windows of some": lambda: TheirQwen2(
        **SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3, windows in turn": lambda: TheirQwen3(
        **SIZES, head_dim=6, use_sliding_window=True, sliding_window=5, layer_types=TURNS
    ),
    "llama, biases everywhere": lambda: TheirLlama(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, longrope": lambda: TheirLlama(**SIZES, rope_parameters={**LONGROPE, "rope_theta": 100.0}),
    "llama, dynamic": lambda: TheirLlama(
        **(SIZES | {"max_position_embeddings": 8}),
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    ),
    "llama, gelu": lambda: TheirLlama(**SIZES, hidden_act="gelu"),
    "gemma": lambda: TheirGemma(**(SIZES | {"num_key_value_heads": 1}), head_dim=10),
    "gemma, untied, biases": lambda: TheirGemma(
        **SIZES, head_dim=6, tie_word_embeddings=False, attention_bias=True, hidden_act="relu"
    ),
    "phi3, part of a head": lambda: TheirPhi3(**SIZES, sliding_window=9, rope_parameters={**HALF, "rope_theta": 100.0}),
    "phi3, longrope": lambda: TheirPhi3(
        **SIZES, tie_word_embeddings=True, rope_parameters={**PHI_LONG, "rope_theta": 100.0}
    ),
    "qwen3 moe": lambda: TheirQwen3Moe(**SIZES, **EXPERTS, head_dim=10, norm_topk_prob=True),
    "qwen3 moe, some layers": lambda: TheirQwen3Moe(
        **SIZES, **EXPERTS, decoder_sparse_step=2, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5
    ),
    "qwen3 moe, named layers": lambda: TheirQwen3Moe(**SIZES, **EXPERTS, mlp_only_layers=[2, 0], attention_bias=True),
    "qwen3": lambda: TheirQwen3(**SIZES, head_dim=10),
    "qwen3, biases": lambda: TheirQwen3(**SIZES, head_dim=6, attention_bias=True),
}
EACH = pytest.mark.parametrize("name", THEIRS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints that transformers wrote, one of each kind."""
    found = {}
    for name, config in THEIRS.items():
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(config())
        for parameter_name, parameter in theirs.named_parameters():  # sharp attention; no bias of 0, no norm of 1
            one = "norm" in parameter_name and "gemma" not in name  # whose norms add one themselves
            torch.nn.init.normal_(parameter, mean=float(one), std=0.2)
        found[name] = tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(found[name])
    return found


def theirs_of(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def table_of(name: str, model: Llama) -> list[Line]:
    return llama_table(model.config, joined=name.startswith("phi3"))


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(41, (batch, T), generator=torch.Generator().manual_seed(seed))


@EACH
def test_logits_equal_transformers(name, folders):
    ours, theirs = load_llama(folders[name]), theirs_of(folders[name])
    for batch, T in [(1, 1), (2, 7), (3, 32)]:
        ids = draw_ids(batch, T)
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


@EACH
def test_gradients_of_all_weights_equal_transformers(name, folders, tmp_path):
    ours, theirs = load_llama(folders[name]), theirs_of(folders[name])
    ids = draw_ids(3, 20)
    for model, logits in ((ours, ours(ids)), (theirs, theirs(ids).logits)):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    # transformers joins the experts in memory. It takes them apart when it saves: gradients too, put in as weights.
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    theirs.save_pretrained(tmp_path)
    expected = to_ours(table_of(name, ours), read_weights(tmp_path))
    assert expected.keys() == {name for name, _ in ours.named_parameters()}
    for parameter_name, parameter in ours.named_parameters():
        scale = expected[parameter_name].abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected[parameter_name], rtol=1e-3, atol=1e-6 + 1e-5 * scale, msg=parameter_name
        )


@EACH
def test_greedy_generation_is_that_of_transformers(name, folders):
    ours, theirs = load_llama(folders[name]), theirs_of(folders[name])
    prompt = draw_ids(3, 9)
    expected = theirs.generate(prompt, do_sample=False, max_new_tokens=20, attention_mask=torch.ones_like(prompt))
    assert torch.equal(generate(ours, prompt, 20), expected[:, 9:])


@EACH
def test_theirs_to_ours_to_theirs_is_the_identity(name, folders, tmp_path):
    ours = load_llama(folders[name])
    weights = load_file(folders[name] / "model.safetensors")
    back = to_theirs(table_of(name, ours), ours.state_dict())
    save_llama(ours, tmp_path, eos_id=3)
    written = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == back.keys() == written.keys()
    for key, tensor in weights.items():
        assert torch.equal(back[key], tensor), key
        assert torch.equal(written[key], tensor), key
    assert load_llama(tmp_path).config == ours.config


@EACH
def test_what_we_write_transformers_reads(name, folders, tmp_path):
    ours = load_llama(folders[name])
    save_llama(ours, tmp_path, eos_id=3)
    theirs = theirs_of(tmp_path)
    assert (theirs.config.eos_token_id, theirs.config.bos_token_id) == (3, None)
    if name != "mistral, no window":  # which is a llama in all but the name
        assert type(theirs) is type(theirs_of(folders[name]))
    ids = draw_ids(2, 30)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LLAMA_SIZES)
def test_published_configs_come_back_as_they_were(name):
    assert llama_config(llama_config_json(LLAMA_SIZES[name])) == LLAMA_SIZES[name]


def test_a_checkpoint_in_several_files_is_the_same_model(folders, tmp_path):
    theirs = theirs_of(folders["llama"])
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours, whole = load_llama(tmp_path), load_llama(folders["llama"])
    for key, tensor in whole.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key


def test_numbers_are_kept_as_stored_or_brought_to_one_type(folders, tmp_path):
    half = theirs_of(folders["llama"]).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert {p.dtype for p in load_llama(tmp_path).parameters()} == {torch.float32}
    kept = load_llama(tmp_path, dtype=None)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    assert torch.equal(kept.norm.weight, half.model.norm.weight)
    save_llama(kept, tmp_path / "again")
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[key], tensor)


def test_a_loaded_model_learns_and_leaves_its_files_alone(folders, tmp_path):
    save_llama(load_llama(folders["llama"]), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_llama(tmp_path)
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    save_llama(model, tmp_path)  # over the files that it was read from
    assert torch.equal(load_llama(tmp_path).norm.weight, model.norm.weight)


# ---- config.json ----

# As published: huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct and huggingface.co/Qwen/Qwen2.5-0.5B.
SMOLLM2_JSON = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
  "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
  "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152
}"""
QWEN_JSON = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
  "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
  "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936
}"""


# huggingface.co/google/gemma-2b, from public copies: "gelu" stands for the approximation there.
GEMMA_JSON = """{
  "architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 2,
  "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
  "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0", "use_cache": true,
  "vocab_size": 256000
}"""


def test_gemmas_config_file_is_read_and_its_model_has_as_many_parameters():
    config = llama_config(json.loads(GEMMA_JSON))
    with torch.device("meta"):
        assert Llama(config).n_parameters() == 2_506_172_416
    assert (config.activation, config.head_width, config.n_kv_heads, config.tied) == ("gelu_tanh", 256, 1, True)
    assert llama_config(llama_config_json(config)) == config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_activation": "relu"}, '"hidden_activation": relu'),
        ({"hidden_activation": 3}, '"hidden_activation": 3'),
        ({"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"}, '"hidden_activation": gelu_pytorch_tanh'),
        ({"use_bidirectional_attention": True}, '"use_bidirectional_attention": True'),
        ({"use_bidirectional_attention": "x"}, '"use_bidirectional_attention": "x"'),
        ({"head_dim": None}, '"head_dim": null'),
        ({"num_key_value_heads": None}, '"num_key_value_heads": null'),
        ({"query_pre_attn_scalar": 256}, '"query_pre_attn_scalar": 256, which this loader does not know'),
    ],
)
def test_what_gemma_does_not_do_is_refused(entries, message):
    same = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
    assert llama_config(json.loads(GEMMA_JSON) | same) == llama_config(json.loads(GEMMA_JSON))
    with pytest.raises(ValueError, match=message):
        llama_config(json.loads(GEMMA_JSON) | entries)


MOE = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "intermediate_size": 6144}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, ()),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"decoder_sparse_step": 9}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [3, 1, 17]}, (1, 3)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (0, 1, 2)),
        ({"mlp_only_layers": None}, ()),
    ],
)
def test_layers_without_experts_are_those_of_transformers(entries, expected):
    config = llama_config(MOE | entries)
    assert config.dense_layers == expected
    assert (config.n_experts, config.experts_per_token, config.d_expert, config.rescale_experts) == (128, 8, 768, False)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**MOE, **entries, num_experts=8, hidden_size=64, vocab_size=9)
        )
    assert expected == tuple(i for i, layer in enumerate(theirs.model.layers) if not hasattr(layer.mlp, "experts"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"decoder_sparse_step": 0}, '"decoder_sparse_step": 0'),
        ({"decoder_sparse_step": -2}, '"decoder_sparse_step": -2'),
        ({"mlp_only_layers": 0}, '"mlp_only_layers": 0'),
        ({"mlp_only_layers": [True]}, '"mlp_only_layers"'),
        ({"mlp_only_layers": ["1"]}, '"mlp_only_layers"'),
        ({"num_experts": 4, "num_local_experts": 8}, '"num_experts": 4.*num_local_experts'),
        ({"num_experts_per_tok": 200}, '"num_experts_per_tok": 200'),
        ({"moe_intermediate_size": 0}, '"moe_intermediate_size": 0'),
        ({"norm_topk_prob": 1}, '"norm_topk_prob": 1, which is no bool'),
        ({"shared_expert_intermediate_size": 4}, '"shared_expert_intermediate_size": 4, which this loader'),
    ],
)
def test_what_is_said_about_experts_is_obeyed_or_refused(entries, message):
    assert llama_config(MOE | {"num_local_experts": 16}).n_experts == 16
    assert llama_config(MOE | {"num_experts": 16}).n_experts == 16
    with pytest.raises(ValueError, match=message):
        llama_config(MOE | entries)


PHI = {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, None),
        ({"partial_rotary_factor": 0.75}, 96),
        ({"partial_rotary_factor": 1}, None),
        ({"partial_rotary_factor": 0.76}, '"partial_rotary_factor": 0.76'),  # 97 columns
        ({"partial_rotary_factor": 0.001}, '"partial_rotary_factor": 0.001'),
        ({"partial_rotary_factor": 1.5}, '"partial_rotary_factor": 1.5'),
        ({"partial_rotary_factor": None}, '"partial_rotary_factor": null'),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75}}, 96),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, '"rope_scaling".*default, longrope, su'),
        ({"resid_pdrop": 0.1}, '"resid_pdrop": 0.1'),
        ({"original_max_position_embeddings": None}, '"original_max_position_embeddings": null'),
    ],
)
def test_phi_turns_the_part_of_each_head_that_is_said(entries, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            llama_config(PHI | entries)
    else:
        assert llama_config(PHI | entries).rope_width == expected


def test_phis_first_name_of_longrope_is_longrope():
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    su, longrope = (llama_config(PHI | {"rope_scaling": {"type": name, **factors}}) for name in ("su", "longrope"))
    assert su == longrope
    assert isinstance(su.rope_scaling, LongScaling)
    assert su.rope_scaling.original_context == 4096  # that of its class


def test_published_config_files_are_read():
    assert llama_config(json.loads(SMOLLM2_JSON)) == LLAMA_SIZES["smollm2-135m"]
    assert llama_config(json.loads(QWEN_JSON)) == LLAMA_SIZES["qwen2.5-0.5b"]


def json_of(**changes: object) -> dict[str, object]:
    """SmolLM2's config.json with changes; a change to ... takes an entry out."""
    config = json.loads(SMOLLM2_JSON) | changes
    return {key: value for key, value in config.items() if value is not ...}


def qwen(**changes: object) -> dict[str, object]:
    return json.loads(QWEN_JSON) | changes


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"rope_theta": ...}, {"rope_base": 10_000.0}),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}, {"rope_base": 300.0}),
        ({"num_key_value_heads": ...}, {"n_kv_heads": 9}),
        ({"tie_word_embeddings": ...}, {"tied": False}),
        ({"head_dim": 64}, {"d_head": None}),
        ({"head_dim": 80}, {"d_head": 80}),
        ({"attention_bias": True}, {"qkv_bias": True, "output_bias": True}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": LinearScaling(2.0)}),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, {"rope_scaling": YarnScaling(2.0, 8192)}),
        (
            {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5}},
            {"rope_scaling": YarnScaling(4.0, 8, 16.0, 2.0, 1.5)},
        ),
        (
            {"rope_scaling": {**LLAMA3, "type": "llama3", "partial_rotary_factor": 1.0}},
            {"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 10)},
        ),
    ],
)
def test_entries_become_ours(entries, expected):
    assert llama_config(json_of(**entries)) == dataclasses.replace(LLAMA_SIZES["smollm2-135m"], **expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma"])
def test_what_is_not_said_is_what_transformers_takes(kind):
    said = {
        key: value for key, value in AutoConfig.for_model(kind).to_dict().items() if key in llama_config_json_keys()
    }
    assert llama_config({"model_type": kind}) == llama_config({**said, "model_type": kind})


def llama_config_json_keys() -> set[str]:
    """The entries of a config.json that say something about a Llama or one of its relatives."""
    of_all = {"rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers", "mlp_bias"}
    of_all |= {"num_local_experts", "num_experts_per_tok", "attention_bias", "norm_topk_prob", "moe_intermediate_size"}
    of_all |= {"decoder_sparse_step", "mlp_only_layers", "num_experts", "original_max_position_embeddings"}
    return of_all | set(llama_config_json(LLAMA_SIZES["llama-3-8b"]))


def test_rope_scaling_stands_before_rope_parameters():
    parameters = {"rope_type": "default", "rope_theta": 77.0}
    both = json_of(rope_theta=99.0, rope_parameters=parameters, rope_scaling=YARN)
    assert (llama_config(both).rope_base, llama_config(both).rope_scaling) == (99.0, YarnScaling(4.0, 8))
    for nothing in (None, {}, ...):
        config = llama_config(json_of(rope_theta=99.0, rope_parameters=parameters, rope_scaling=nothing))
        assert (config.rope_base, config.rope_scaling) == (77.0, None)


def test_windows_are_those_of_all_layers_or_of_some():
    mistral = json_of(model_type="mistral", attention_bias=..., is_llama_config=..., pretraining_tp=...)
    assert llama_config({**mistral, "sliding_window": 7}).window == 7
    assert llama_config({**mistral, "sliding_window": None}).window is None
    assert llama_config(qwen()).window is None
    windowed = {"use_sliding_window": True, "sliding_window": 9}
    assert llama_config(qwen(**windowed, max_window_layers=0)).window == 9
    some = llama_config(qwen(**windowed, max_window_layers=5))
    assert (some.window, some.full_layers) == (9, (0, 1, 2, 3, 4))
    turned = llama_config(qwen(**windowed, layer_types=["sliding_attention", "full_attention"] * 12))
    assert turned.windows == (9, None) * 12
    assert llama_config(qwen(**windowed, max_window_layers=24)).window is None
    assert llama_config(qwen(**windowed, max_window_layers=24, layer_types=["sliding_attention"] * 24)).window == 9


REFUSED = [
    (json_of(model_type="gemma2"), '"model_type": "gemma2".*llama, mistral'),
    (json_of(model_type=...), 'no "model_type"'),
    (json_of(hidden_act="gelu_fast"), '"hidden_act": gelu_fast.*only does one of relu, silu'),
    (json_of(hidden_act=None), '"hidden_act": null'),
    (qwen(mlp_bias=True), '"mlp_bias": true.*only does false'),
    (json_of(rope_interleaved=True), '"rope_interleaved": true'),
    (json_of(attention_dropout=0.1), '"attention_dropout": 0.1'),
    (json_of(quantization_config={"bits": 4}), '"quantization_config": {"bits": 4}, which this loader does not know'),
    (json_of(sliding_window=5), '"sliding_window": 5, which this loader does not know'),
    (json_of(num_local_experts=4), '"num_local_experts": 4, which'),
    (json_of(hidden_size="576"), '"hidden_size": "576", which is no int'),
    (json_of(rms_norm_eps=None), '"rms_norm_eps": null, which is no float'),
    (json_of(rms_norm_eps=0), 'norm_eps must be above 0.*"rms_norm_eps": 0'),
    (json_of(vocab_size=True), '"vocab_size": true, which is no int'),
    (json_of(num_attention_heads=7), "n_heads=7"),
    (json_of(rope_scaling={"rope_type": "dynamic", "factor": 0.5}), "factor=0.5.*rope_scaling.*dynamic"),
    (json_of(rope_scaling={"type": "longrope"}), '"short_factor": None, but this model only does a list'),
    (json_of(rope_scaling=[2.0]), "rope_scaling.*an object"),
    (json_of(rope_scaling={"type": "linear"}), 'no "factor"'),
    (json_of(rope_scaling={"type": "linear", "factor": 0.5}), "factor=0.5"),
    (json_of(rope_scaling={**YARN, "mscale": 0.7}), "mscale.*yarn without mscale"),
    (json_of(rope_scaling={"type": "default", "partial_rotary_factor": 0.5}), '"partial_rotary_factor": 0.5'),
    (json_of(rope_parameters={"rope_type": "nope", "rope_theta": 1e4}), "rope_parameters.*nope"),
    (json_of(layer_types=["full_attention"]), '"layer_types"'),
    (qwen(use_mrope=True), '"use_mrope": true'),
    (qwen(rope_theta=None), '"rope_theta": null, which is no float'),
    (qwen(model_type="qwen3", head_dim=None), '"head_dim": null'),
    (qwen(use_sliding_window=True, sliding_window=0, max_window_layers=0), '"sliding_window": 0'),
    (qwen(layer_types=["full_attention", "sliding_attention"]), '"layer_types"'),
    (qwen(layer_types=["linear_attention"] * 24), "linear_attention"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_the_model_does_not_do_is_refused_by_key_and_value(config, message):
    with pytest.raises(ValueError, match=message):
        llama_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_experts": 4, "qkv_bias": True}, "mixtral cannot have qkv_bias=True"),
        ({"qkv_bias": True, "output_bias": True, "window": 3}, "mistral cannot have qkv_bias=True, output_bias=True"),
        ({"output_bias": True}, "llama cannot have qkv_bias=False"),
        ({"rope_scaling": (lambda x: x)}, "no config.json can say"),
        ({"window": 3, "full_layers": (0,)}, r"mistral cannot have full_layers=\(0,\)"),
        ({"rope_turn": rotate_neighbours}, "llama cannot have rope_turn="),
        ({"rope_scaling": DynamicScaling(2.0, 3)}, "llama cannot have context=8"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_combination_that_nobody_published_is_not_written(change, message, tmp_path):
    config = LlamaConfig(11, 8, 1, 2, 1, 8, 12)
    model = Llama(config)
    model.config = dataclasses.replace(config, **change)
    with pytest.raises(ValueError, match=message):
        save_llama(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- weights that are not those of the config ----


@pytest.fixture
def no_weights_read(monkeypatch):
    """Fails if a weight is read."""

    def read(folder):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("llm_core.pretrained.llama.read_weights", read)


def changed(folder: Path, to: Path, config: dict[str, object] | None = None, drop: str = "", **tensors: Tensor) -> Path:
    said = json.loads((folder / "config.json").read_text()) | (config or {})
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != drop}
    (to / "config.json").write_text(json.dumps(said))
    save_file(weights | tensors, to / "model.safetensors")
    return to


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 43}, r"embed_tokens.weight is of another shape: \(41, 24\) among the weights, \(43, 24\)"),
        ({"intermediate_size": 41}, r"\(40, 24\) among the weights, \(41, 24\)"),
        ({"num_key_value_heads": 4}, r"k_proj.weight is of another shape: \(12, 24\).*\(24, 24\)"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "the weights have model.layers.2"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_weights_of_another_config_are_refused_before_they_are_read(config, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_llama(changed(folders["llama"], tmp_path, config))


@pytest.mark.usefixtures("no_weights_read")
def test_tensors_that_the_model_has_not_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"the weights have model.layers.0.mlp.gate_proj.bias, which"):
        load_llama(changed(folders["llama"], tmp_path, **{"model.layers.0.mlp.gate_proj.bias": torch.zeros(40)}))


@pytest.mark.usefixtures("no_weights_read")
def test_an_untied_checkpoint_needs_its_head(folders, tmp_path):
    with pytest.raises(ValueError, match=r"lacks lm_head.weight"):
        load_llama(changed(folders["llama"], tmp_path, drop="lm_head.weight"))


def test_what_old_and_tied_checkpoints_hold_besides_is_no_weight(folders, tmp_path):
    embedding = load_file(folders["llama, tied"] / "model.safetensors")["model.embed_tokens.weight"]
    more = {"lm_head.weight": embedding.clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    ours = load_llama(changed(folders["llama, tied"], tmp_path, **more))
    assert torch.equal(ours.token_embedding.weight, embedding)
    more["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="have two that differ"):
        load_llama(changed(folders["llama, tied"], tmp_path, **more))
