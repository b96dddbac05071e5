"""GGUF files against transformers' own reader: small files of every kind, and SmolLM2 as it is published."""

from __future__ import annotations

import functools
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf_files import shapes, theirs_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llm_core.generation.generate import generate
from llm_core.models.llama import LLAMA_SIZES, Llama, LlamaConfig
from llm_core.pretrained.chat import SMOLLM2_CHAT
from llm_core.pretrained.gguf import (
    gguf_metadata,
    gguf_table,
    gguf_tokenizer,
    gguf_weights,
    load_gguf,
    load_smollm2,
    read_gguf,
    smollm2_tokenizer,
)
from llm_core.pretrained.names import to_ours, to_theirs
from llm_core.pretrained.packages import MissingPackage
from llm_core.text.bpe_fast import BPETokenizer

CORPUS = runpy.run_path(str(Path(__file__).parents[1] / "text" / "corpus.py"))
SIZES = {
    "context_length": 40,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "vocab_size": 50,
}
REALS = {"rope.freq_base": 500.0, "attention.layer_norm_rms_epsilon": 1e-5}
FORMATS = {
    "32 bits": GGMLQuantizationType.F32,
    "16 bits": GGMLQuantizationType.F16,
    "8 bits": GGMLQuantizationType.Q8_0,
    "4 bits": GGMLQuantizationType.Q4_1,
}


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}


def small_file(
    path: Path,
    *,
    tied: bool = True,
    stored: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    said: dict[str, Any] | None = None,
    tensors: dict[str, tuple[int, ...]] | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> Path:
    """A small model in a GGUF file, by the package gguf."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("small")
    for key, value in (SIZES | REALS | (said or {})).items():
        if isinstance(value, float):
            writer.add_float32(f"llama.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"llama.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"llama.{key}", value)
        elif value is not None:
            writer.add_string(f"llama.{key}", value)
    for key, value in (tokenizer or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(f"tokenizer.ggml.{key}", value)
    draw = np.random.default_rng(0)
    for name, shape in (tensors or shapes(tied)).items():
        numbers = draw.normal(float("norm" in name), 0.3, shape).astype(np.float32)
        kind = stored if len(shape) == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", FORMATS)
def test_small_files_give_the_logits_of_transformers(stored, tied, tmp_path):
    file = small_file(tmp_path / "small.gguf", tied=tied, stored=FORMATS[stored])
    ours, theirs = load_gguf(file), theirs_of(file)
    assert ours.config == LlamaConfig(50, 40, 2, 4, 2, 32, 64, rope_base=500.0, tied=tied)
    assert not ours.training
    ids = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=2e-5)


def test_heads_of_another_width_are_read(tmp_path):
    said = {"attention.key_length": 10, "attention.value_length": 10, "rope.dimension_count": 10}
    model = load_gguf(small_file(tmp_path / "small.gguf", said=said, tensors=shapes(E=10)))
    assert model.config.head_width == 10
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


def test_theirs_to_ours_to_theirs_is_the_identity(tmp_path):
    file = small_file(tmp_path / "small.gguf", tied=False)
    theirs = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    config = load_gguf(file).config
    ours = to_ours(gguf_table(config), theirs)
    back = to_theirs(gguf_table(config), ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())
    assert not torch.equal(ours["blocks.0.attention.query.weight"], theirs["blk.0.attn_q.weight"])


def test_weights_come_one_at_a_time_as_float32_of_their_own(tmp_path):
    file = small_file(tmp_path / "small.gguf", stored=GGMLQuantizationType.Q8_0)
    weights = gguf_weights(file)
    assert isinstance(weights, Iterator)
    found = dict(weights)
    state = load_gguf(file).state_dict()
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name]), name
        tensor.add_(1.0)  # writes to its own memory, not to the file
    assert all(torch.equal(tensor, state[name]) for name, tensor in gguf_weights(file))


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    file = small_file(tmp_path / "small.gguf")
    assert load_gguf(file).config.context == 40
    file.unlink()
    assert load_gguf(small_file(file, said={"context_length": 30})).config.context == 30


@pytest.mark.parametrize("betas", [{}, {"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0}])
def test_yarn_gives_the_logits_of_transformers(betas, tmp_path):
    said = YARN | {f"rope.scaling.{key}": value for key, value in betas.items()}
    file = small_file(tmp_path / "small.gguf", said=said)
    theirs = theirs_of(file)  # transformers leaves it out when it reads a GGUF file, so it is told
    theirs.config.rope_parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500.0,
        **{key.removeprefix("yarn_"): value for key, value in betas.items()},
    }
    theirs.model.rotary_emb = LlamaRotaryEmbedding(theirs.config)
    ids = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_gguf(file)(ids), theirs(ids).logits, rtol=1e-5, atol=2e-5)


def test_experts_give_the_logits_of_transformers(tmp_path):
    plain = shapes()
    for i in range(2):
        for name in ("gate", "up", "down"):
            shape = plain.pop(f"blk.{i}.ffn_{name}.weight")
            plain[f"blk.{i}.ffn_{name}_exps.weight"] = (3, *shape)
        plain[f"blk.{i}.ffn_gate_inp.weight"] = (3, 32)
    file = small_file(tmp_path / "small.gguf", said={"expert_count": 3, "expert_used_count": 2}, tensors=plain)
    ours = load_gguf(file)
    assert (ours.config.n_experts, ours.config.experts_per_token) == (3, 2)
    theirs = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, sliding_window=None,
            tie_word_embeddings=True, max_position_embeddings=40, attn_implementation="eager",
        )
    )  # fmt: skip
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    state = theirs.state_dict()
    for name, value in theirs_named(stored).items():
        assert state[name].copy_(value).shape == value.shape
    ids = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, rtol=1e-5, atol=2e-5)
    assert dict(gguf_weights(file)).keys() == ours.state_dict().keys()


def theirs_named(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a converter to GGUF reads, from what it wrote: Mixtral's names in transformers, and its order of rows."""
    named = {
        "model.embed_tokens.weight": stored["token_embd.weight"],
        "model.norm.weight": stored["output_norm.weight"],
    }
    for i in range(2):
        old, new = f"blk.{i}", f"model.layers.{i}"
        for theirs, ours in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            named[f"{new}.{ours}.weight"] = stored[f"{old}.{theirs}.weight"]
        for theirs, ours, heads in (
            ("q", "q_proj", 4),
            ("k", "k_proj", 2),
            ("v", "v_proj", 0),
            ("output", "o_proj", 0),
        ):
            weight = stored[f"{old}.attn_{theirs}.weight"]
            if heads:
                weight = weight.view(heads, 4, 2, 32).transpose(1, 2).reshape(weight.shape)
            named[f"{new}.self_attn.{ours}.weight"] = weight
        gate, up, down = (stored[f"{old}.ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
        named[f"{new}.mlp.gate.weight"] = stored[f"{old}.ffn_gate_inp.weight"]
        named[f"{new}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), 1)
        named[f"{new}.mlp.experts.down_proj"] = down
    return named


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, '"general.architecture": \'mamba\', but this loader only reads "llama"'),
        (
            {"said": {"rope.scaling.type": "longrope"}},
            "\"llama.rope.scaling.type\": 'longrope', which this loader does not know",
        ),
        ({"said": {"rope.scaling.type": "yarn"}}, '"llama.rope.scaling.original_context_length": None, where "yarn"'),
        (
            {"said": YARN | {"rope.scaling.yarn_beta_fast": 0.5}},
            'fast must be above slow.*"llama.rope.scaling.yarn_beta_fast"',
        ),
        (
            {"said": {"rope.scaling.yarn_beta_slow": 2.0}},
            '"llama.rope.scaling.yarn_beta_slow", but "llama.rope.scaling.type": \'none\'',
        ),
        ({"said": YARN | {"rope.scaling.attn_factor": 0.5}}, '"llama.rope.scaling.attn_factor": 0.5, which'),
        ({"said": {"expert_count": 8}}, '"llama.expert_count": 8 and "llama.expert_used_count": 0, but a token uses'),
        ({"said": {"expert_count": 2, "expert_used_count": 3}}, '"llama.expert_used_count": 3, but'),
        ({"said": {"expert_count": 8, "expert_used_count": 2}}, '"llama.expert_count" is 8, and block 0 has 0 experts'),
        ({"said": {"expert_weights_norm": 1}}, '"llama.expert_weights_norm": 1, which'),
        ({"said": {"leaky": 1}}, '"llama.leaky": 1, which'),
        ({"said": {"embedding_length": None}}, 'no "llama.embedding_length"'),
        ({"said": {"attention.layer_norm_rms_epsilon": None}}, 'no "llama.attention.layer_norm_rms_epsilon"'),
        ({"said": {"rope.dimension_count": 4}}, '"llama.rope.dimension_count": 4, but.*d_head=8'),
        ({"said": {"attention.value_length": 6}}, '"llama.attention.value_length": 6, but.*d_head=8'),
        ({"said": {"attention.head_count_kv": [2, 4]}}, r'"llama.attention.head_count_kv": \[2, 4\].*one size'),
        ({"said": {"attention.head_count": 0}}, '"llama.attention.head_count": 0, but'),
        ({"said": {"vocab_size": 51}}, r"token_embd.weight is of another shape: \(50, 32\).*\(51, 32\)"),
        ({"said": {"block_count": 3}}, "lacks blk.2"),
        ({"said": {"block_count": 1}}, "have blk.1"),
        ({"tensors": shapes() | {"rope_freqs.weight": (4,)}}, "the weights have rope_freqs.weight"),
    ],
)
def test_what_the_model_does_not_do_is_refused_before_a_weight_is_read(options, message, tmp_path, monkeypatch):
    file = small_file(tmp_path / "small.gguf", **options)

    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("gguf.quants.dequantize", read)
    for load in (load_gguf, gguf_weights):
        with pytest.raises(ValueError, match=message):
            load(file)


@pytest.mark.parametrize("kept", [0, 3, 4, 23, 24, 100, 900, 0.3, 0.7, 0.999])
def test_a_file_that_is_not_whole_is_refused(kept, tmp_path):
    file = small_file(tmp_path / "small.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"small.gguf is no whole GGUF file \(.*\): download it again"):
        load_gguf(file)


def test_other_files_and_none_are_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("GGML is another format, this is a text." * 9)
    with pytest.raises(ValueError, match="is no whole GGUF file"):
        read_gguf(tmp_path / "text.gguf")
    with pytest.raises(ValueError, match=r"there is no file .*none.gguf"):
        gguf_metadata(tmp_path / "none.gguf")


def test_without_the_package_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    file = small_file(tmp_path / "small.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingPackage, match=r"`pip install gguf==0.19.0`"):
        load_gguf(file)


def tokenizer_entries(**changes: Any) -> dict[str, Any]:
    """A tokenizer of bytes, one merge and a control token."""
    alphabet = sorted(BPETokenizer.train("", 256).vocabulary)
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["<|end|>", *alphabet, "ab"],
        "token_type": [3] + [1] * 257,
        "merges": ["a b"],
    } | changes


def test_a_small_tokenizer_is_read(tmp_path):
    file = small_file(tmp_path / "small.gguf", tokenizer=tokenizer_entries())
    tokenizer = gguf_tokenizer(file)
    ids = tokenizer.encode("<|end|>abc")
    assert ids == [0, 257, tokenizer.vocabulary.ids["c"]]
    assert len(tokenizer.encode(" 12")) == 3
    assert tokenizer.decode(ids) == "<|end|>abc"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (tokenizer_entries(model="llama"), '"tokenizer.ggml.model": \'llama\'.*only reads "gpt2"'),
        (tokenizer_entries(pre="tekken"), "'tekken'.*gpt-2, smollm"),
        ({}, '"tokenizer.ggml.model": None'),
    ],
)
def test_other_tokenizers_are_refused(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer(small_file(tmp_path / "small.gguf", tokenizer=entries))


# ---- SmolLM2-135M-Instruct, as published ----


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Llama:
    return load_smollm2()


@pytest.fixture(scope="session")
def tokenizer(smollm2_file: Path) -> BPETokenizer:
    return smollm2_tokenizer()


@pytest.fixture(scope="session")
def their_tokenizer(smollm2_file: Path) -> Tokenizer:
    """The engine behind tokenizer.json, with SmolLM2's vocabulary and merges."""
    said = gguf_metadata(smollm2_file)
    vocabulary = {token: i for i, token in enumerate(said["tokenizer.ggml.tokens"])}
    theirs = Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ")) for m in said["tokenizer.ggml.merges"]]))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(vocabulary, said["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    assert len(control) == 17
    theirs.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return theirs


def test_smollm2_is_the_published_model(smollm2):
    assert smollm2.config == LLAMA_SIZES["smollm2-135m"]
    assert smollm2.n_parameters() == 134_515_008
    assert not smollm2.training


def test_smollm2_gives_the_logits_of_transformers_on_text(smollm2, smollm2_file, tokenizer, monkeypatch):
    opened = gguf.GGUFReader(smollm2_file)
    fields = {key: field for key, field in opened.fields.items() if "tokenizer" not in key}
    # Theirs would parse the file twice more, with all tokens and merges, for many seconds.
    monkeypatch.setattr(gguf, "GGUFReader", lambda _: SimpleNamespace(fields=fields, tensors=opened.tensors))
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    theirs = theirs_of(smollm2_file)
    texts = [CORPUS["english"](), CORPUS["chinese"](), CORPUS["code"]()]
    ids = torch.tensor([tokenizer.encode(text[:2000])[:40] for text in texts])
    with torch.no_grad():
        # Thirty layers in float32, summed in another order: 1.3e-4 has been seen between two processors.
        torch.testing.assert_close(smollm2(ids), theirs(ids).logits, rtol=0, atol=4e-4)


def test_smollm2s_tokens_are_those_of_the_package_tokenizers(tokenizer, their_tokenizer):
    for text in (*CORPUS["AWKWARD"], CORPUS["mixed_text"]()[:100_000]):
        ids = tokenizer.encode(text)
        assert ids == their_tokenizer.encode(text).ids, text[:80]
        assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 49152


def test_smollm2_answers(smollm2, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = torch.tensor([tokenizer.encode(SMOLLM2_CHAT(messages))])
    end = tokenizer.vocabulary.ids["<|im_end|>"]
    answer = tokenizer.decode(generate(smollm2, prompt, 12, stop_id=end)[0].tolist())
    assert "Paris" in answer


def test_layers_are_converted_as_soon_as_they_have_their_weights(smollm2_file):
    from llm_core.compression.quantize import Int8Embedding, Int8Linear, quantize_8bit, to_8bit

    seen: list[nn.Module] = []

    def convert(layer: nn.Module) -> nn.Module:
        assert not any(parameter.is_meta for parameter in layer.parameters())
        seen.append(layer)
        return to_8bit(layer)

    model = load_gguf(smollm2_file, convert=convert)
    assert not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert sum(isinstance(layer, nn.Linear) for layer in seen) == 7 * 30
    assert not any(isinstance(layer, nn.Linear) for layer in model.modules())
    assert isinstance(model.token_embedding, Int8Embedding)
    assert isinstance(model.blocks[29].feed_forward.down, Int8Linear)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids), quantize_8bit(load_gguf(smollm2_file))(ids))
