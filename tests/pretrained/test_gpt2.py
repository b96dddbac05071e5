"""GPT-2's files in both directions, and against transformers. Logits and gradients are in tests/models/test_gpt.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from llm_core.generation.generate import generate
from llm_core.models.gpt import GPT, GPT2_SIZES, GPTConfig
from llm_core.pretrained.gpt2 import gpt2_config, gpt2_table, load_gpt2, save_gpt2
from llm_core.pretrained.names import to_ours, to_theirs

# As published: huggingface.co/openai-community/gpt2.
GPT2_JSON = """{
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
  "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
  "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
  "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
  "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that transformers wrote."""
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=37, n_positions=24, n_layer=3, n_head=4, n_embd=24, bos_token_id=None, eos_token_id=None)
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(path)
    return path


def draw_ids(batch: int, T: int) -> Tensor:
    return torch.randint(37, (batch, T), generator=torch.Generator().manual_seed(0))


def as_first_published(folder: Path, to: Path) -> Path:
    """Without the prefix, and with the causal mask as a tensor of each layer: so is OpenAI's GPT-2 on the Hub."""
    weights = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for i in range(3):
        weights[f"h.{i}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
        weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, to / "model.safetensors")
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def test_a_checkpoint_of_transformers_gives_its_logits_and_its_text(folder):
    ours, theirs = load_gpt2(folder), GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = draw_ids(3, 9)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    expected = theirs.generate(
        ids, do_sample=False, max_new_tokens=15, attention_mask=torch.ones_like(ids), pad_token_id=0
    )
    assert torch.equal(generate(ours, ids, 15), expected[:, 9:])
    assert not ours.training
    assert ours.config == GPTConfig(37, 24, 3, 4, 24, dropout=0.1)


def test_the_form_that_was_first_published_is_the_same_model(folder, tmp_path):
    ours, first = load_gpt2(folder), load_gpt2(as_first_published(folder, tmp_path))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor), name


def test_what_we_write_transformers_reads(folder, tmp_path):
    save_gpt2(load_gpt2(folder), tmp_path)
    ours, theirs = load_gpt2(folder), GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = draw_ids(2, 24)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    assert theirs.config.attn_pdrop == theirs.config.embd_pdrop == theirs.config.resid_pdrop == 0.1


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_theirs_to_ours_to_theirs_is_the_identity(prefix, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights = {prefix + name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    table = gpt2_table(load_gpt2(folder).config, prefix)
    back = to_theirs(table, to_ours(table, weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    save_gpt2(load_gpt2(folder), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(written.pop(name), tensor), name
    assert not written


def test_a_new_model_survives_the_journey(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(11, 8, 2, 2, 8))
    save_gpt2(model, tmp_path)
    back = load_gpt2(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_parts_of_a_split_matrix_are_tensors_of_their_own(folder):
    """Else each would be saved with the memory of all three, and safetensors would refuse."""
    model = load_gpt2(folder)
    for name, tensor in model.state_dict().items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_numbers_are_kept_as_stored_or_brought_to_one_type(folder, tmp_path):
    GPT2LMHeadModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_gpt2(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_gpt2(tmp_path, dtype=None).parameters()} == {torch.bfloat16}


# ---- config.json ----


def json_of(**changes: object) -> dict[str, object]:
    """GPT-2's config.json with changes; a change to ... takes an entry out."""
    config = json.loads(GPT2_JSON) | changes
    return {key: value for key, value in config.items() if value is not ...}


def test_the_published_config_is_read():
    assert gpt2_config(json_of()) == dataclasses.replace(GPT2_SIZES["gpt2"], dropout=0.1)
    assert gpt2_config(json_of(n_inner=4 * 768, resid_pdrop=0, embd_pdrop=0.0, attn_pdrop=0.0)) == GPT2_SIZES["gpt2"]
    assert gpt2_config(json_of(resid_pdrop=...)).dropout == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (json_of(model_type="llama"), '"model_type": "llama".*only does "gpt2"'),
        (json_of(model_type=...), 'no "model_type"'),
        (json_of(activation_function="tanh"), '"activation_function": "tanh".*gelu_new'),
        (json_of(layer_norm_epsilon=1e-6), '"layer_norm_epsilon": 1e-06'),
        (json_of(n_inner=0), 'd_ff.*"n_inner": 0'),
        (json_of(scale_attn_weights=False), '"scale_attn_weights": false'),
        (json_of(scale_attn_by_inverse_layer_idx=True), '"scale_attn_by_inverse_layer_idx": true'),
        (json_of(add_cross_attention=True), '"add_cross_attention": true'),
        (json_of(tie_word_embeddings=False), '"tie_word_embeddings": false'),
        (json_of(attn_pdrop=0.2), r"got \[0.1, 0.1, 0.2\]"),
        (json_of(quantization_config={"bits": 8}), '"quantization_config": {"bits": 8}'),
        (json_of(n_head=5), "d_model=768, n_heads=5"),
        (json_of(n_embd=None), '"n_embd": null, which is no int'),
    ],
)
def test_what_the_model_does_not_do_is_refused_by_key_and_value(config, message):
    with pytest.raises(ValueError, match=message):
        gpt2_config(config)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vocab_size": 40}, r"wte.weight is of another shape: \(37, 24\) among the weights, \(40, 24\)"),
        ({"n_positions": 25}, r"wpe.weight is of another shape: \(24, 24\) among the weights, \(25, 24\)"),
        ({"n_layer": 4}, "lacks transformer.h.3"),
        ({"n_layer": 2}, "the weights have transformer.h.2"),
    ],
)
def test_weights_of_another_config_are_refused_before_they_are_read(entries, message, folder, tmp_path, monkeypatch):
    def read(folder):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("llm_core.pretrained.gpt2.read_weights", read)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | entries))
    with pytest.raises(ValueError, match=message):
        load_gpt2(tmp_path)


def test_a_head_that_is_stored_must_be_the_table(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    load_gpt2(tmp_path)
    weights["lm_head.weight"][3, 3] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight and transformer.wte.weight are one table"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("change", [{"d_ff": 10}, {"activation": "relu"}, {"activation": "gelu"}, {"d_ff": 96}])
def test_other_widths_and_activations_are_those_of_transformers(change, tmp_path):
    torch.manual_seed(0)
    ours = GPT(GPTConfig(37, 24, 2, 4, 24, **change)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_gpt2(ours, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = draw_ids(2, 20)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    again = load_gpt2(tmp_path)
    assert again.config == (dataclasses.replace(ours.config, d_ff=None) if ours.config.d_ff == 96 else ours.config)
    assert torch.equal(again(ids), ours(ids))


@pytest.mark.parametrize(("change", "message"), [({"d_ff": 0}, "d_ff"), ({"activation": "swish"}, "activation")])
def test_settings_that_there_are_not_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(37, 24, 2, 4, 24, **change)
