"""Adapters on disk: peft loads ours onto transformers' models, and ours load peft's; logits and gradients are equal."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from llm_core.adaptation.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_layers,
    lora_parameters,
    merge_lora,
    over_rank,
    over_root_rank,
)
from llm_core.adaptation.peft_files import CONFIG, WEIGHTS, load_lora, save_lora
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.gpt2 import gpt2_table, load_gpt2, save_gpt2
from llm_core.pretrained.llama import llama_table, load_llama, save_llama

SIZES = {"vocab_size": 31, "context": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_model": 16, "d_ff": 24}
ATTENTION = ("*.query", "*.key", "*.value", "*.output")
WHOLE = (*ATTENTION, "*.gate", "*.up", "*.down")
GPT2 = ("*.output", "*.up", "*.down")
CASES = {
    "llama": (LlamaConfig(**SIZES, tied=False), WHOLE),
    "llama, tied, one layer": (LlamaConfig(**SIZES), ("blocks.1.attention.query", "*.down")),
    "llama, head": (LlamaConfig(**SIZES, tied=False), ("head",)),
    "qwen2": (LlamaConfig(**SIZES, qkv_bias=True), WHOLE),
    "qwen3": (LlamaConfig(**SIZES, qk_norm=True, d_head=6), WHOLE),
    "mistral": (LlamaConfig(**SIZES, tied=False, window=5), WHOLE),
    "mixtral": (LlamaConfig(**SIZES, tied=False, n_experts=3), ATTENTION),
    "gpt2": (GPTConfig(31, 24, n_layers=2, n_heads=2, d_model=16), GPT2),
}
EACH = pytest.mark.parametrize("name", CASES)


def build(name: str) -> nn.Module:
    config = CASES[name][0]
    torch.manual_seed(0)
    model = GPT(config) if isinstance(config, GPTConfig) else Llama(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def table_of(model: nn.Module) -> list:
    return gpt2_table(model.config) if isinstance(model, GPT) else llama_table(model.config)


def adapted(name: str, scaling=over_rank, targets: tuple[str, ...] | None = None) -> nn.Module:
    config = LoRAConfig(rank=3, alpha=5, targets=targets or CASES[name][1], dropout=0.25, scaling=scaling)
    model = add_lora(build(name), config).eval()
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    return model


def theirs_of(name: str, folder: Path) -> nn.Module:
    """The same weights in transformers."""
    model = build(name)
    (save_gpt2 if isinstance(model, GPT) else save_llama)(model, folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def with_adapter(theirs: nn.Module, folder: Path) -> PeftModel:
    """What a user of peft does; it only warns of tensors that it misses, so warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(theirs, folder, is_trainable=True).eval()


def draw() -> torch.Tensor:
    return torch.randint(31, (3, 9), generator=torch.Generator().manual_seed(1))


@EACH
@pytest.mark.parametrize("scaling", [over_rank, over_root_rank])
def test_peft_loads_ours_with_equal_logits_and_gradients(name, scaling, tmp_path):
    ours = adapted(name, scaling)
    save_lora(ours, tmp_path / "adapter", table_of(ours))
    theirs = with_adapter(theirs_of(name, tmp_path / "model"), tmp_path / "adapter")
    ids = draw()
    a, b = ours(ids), theirs(ids).logits
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert (a - build(name)(ids)).abs().max() > 0.01
    for logits in (a, b):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    names = {line.ours[0].removesuffix(".weight"): line.theirs.removesuffix(".weight") for line in table_of(ours)}
    their_parameters = {n: p for n, p in theirs.named_parameters() if "lora_" in n}
    assert len(their_parameters) == len(lora_parameters(ours))
    for layer_name, layer in lora_layers(ours).items():
        for letter in "AB":
            expected = their_parameters[f"base_model.model.{names[layer_name]}.lora_{letter}.default.weight"].grad
            scale = expected.abs().max().item()
            torch.testing.assert_close(getattr(layer, letter).grad, expected, rtol=1e-3, atol=1e-5 * scale + 1e-7)
    # Merged there and merged here.
    torch.testing.assert_close(theirs.merge_and_unload()(ids).logits, merge_lora(ours)(ids), rtol=1e-4, atol=1e-4)


@EACH
@pytest.mark.parametrize("rslora", [False, True])
def test_ours_load_what_peft_wrote(name, rslora, tmp_path):
    targets = {
        "gpt2": ["attn.c_proj", "c_fc", "mlp.c_proj"],
        "llama, head": ["lm_head", "q_proj"],
        "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    }.get(name, ["q_proj", "o_proj", "down_proj"])
    theirs = theirs_of(name, tmp_path / "model")
    settings = {"r": 2, "lora_alpha": 7, "lora_dropout": 0.5, "use_rslora": rslora, "fan_in_fan_out": name == "gpt2"}
    theirs = get_peft_model(theirs, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings))
    torch.manual_seed(2)
    for n, parameter in theirs.named_parameters():
        if "lora_" in n:
            nn.init.normal_(parameter, std=0.3)
    theirs.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)

    load = load_gpt2 if name == "gpt2" else load_llama
    ours = load(tmp_path / "model")
    assert load_lora(ours, tmp_path / "adapter", table_of(ours)) is ours
    ids = draw()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    config = next(iter(lora_layers(ours).values())).config
    assert (config.rank, config.alpha, config.dropout) == (2, 7, 0.5)
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        f"{n}.{letter}" for n in lora_layers(ours) for letter in "AB"
    }

    save_lora(ours, tmp_path / "again", table_of(ours))
    before, after = (load_file(tmp_path / folder / WEIGHTS) for folder in ("adapter", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@EACH
def test_what_was_saved_is_what_is_loaded_bit_for_bit(name, tmp_path):
    ours = adapted(name, over_root_rank)
    for table in (table_of(ours), None):
        save_lora(ours, tmp_path, table)
        again = load_lora(build(name), tmp_path, table)
        assert torch.equal(again(draw()), ours(draw()))
        before, after = (next(iter(lora_layers(model).values())).config for model in (ours, again))
        assert (before.alpha, before.dropout, before.scaling) == (after.alpha, after.dropout, after.scaling)


def test_under_our_own_names_peft_puts_it_on_our_own_model(tmp_path):
    """GPT-2's query, key and value are layers here, so here they can be corrected one by one."""
    ours = adapted("gpt2", targets=(*ATTENTION, "blocks.1.feed_forward.up"))
    save_lora(ours, tmp_path)
    theirs = with_adapter(build("gpt2"), tmp_path)
    torch.testing.assert_close(ours(draw()), theirs(draw()), rtol=1e-5, atol=1e-5)


def test_the_files_hold_the_adapter_and_nothing_else(tmp_path):
    ours = adapted("llama", targets=("*.query",))
    save_lora(ours, tmp_path / "new" / "folder", table_of(ours))
    folder = tmp_path / "new" / "folder"
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, CONFIG}
    tensors = load_file(folder / WEIGHTS)
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in lora_parameters(ours))
    assert all(".self_attn.q_proj.lora_" in key for key in tensors)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("*.query", "*.up"), ["q_proj", "up_proj"]),
        (("blocks.1.*.query",), ["model.layers.1.self_attn.q_proj"]),
        (
            ("*.query", "blocks.0.*.up"),
            ["model.layers.0.mlp.up_proj"] + [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)],
        ),
    ],
)
def test_targets_are_short_if_all_layers_of_that_name_are_meant(targets, expected, tmp_path):
    ours = adapted("llama", targets=targets)
    save_lora(ours, tmp_path, table_of(ours))
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == expected


def test_conv1d_is_told_to_peft(tmp_path):
    for name, transposed in (("gpt2", True), ("llama", False)):
        ours = adapted(name)
        save_lora(ours, tmp_path, table_of(ours))
        assert json.loads((tmp_path / CONFIG).read_text())["fan_in_fan_out"] is transposed


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        (
            "gpt2",
            ("*.query",),
            r"blocks\.0\.attention\.query .* transformer\.h\.0\.attn\.c_attn\.weight belongs to a larger",
        ),
        ("mixtral", ("*.experts.1.up",), r"experts\.1\.up .*experts\.1\.w3\.weight belongs to a larger"),
        ("mixtral", ("*.router",), r"router .*block_sparse_moe\.gate\.weight belongs to a larger"),
    ],
)
def test_a_layer_without_a_counterpart_is_not_saved(name, targets, message, tmp_path):
    ours = adapted(name, targets=targets)
    with pytest.raises(ValueError, match=message):
        save_lora(ours, tmp_path, table_of(ours))
    assert not list(tmp_path.iterdir())


def test_what_the_files_cannot_say_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="this Llama has no LoRA to save"):
        save_lora(build("llama"), tmp_path)
    with pytest.raises(ValueError, match="over_rank and over_root_rank"):
        save_lora(adapted("llama", lambda alpha, rank: alpha), tmp_path)
    ours = adapted("llama")
    with pytest.raises(ValueError, match="table of this model"):
        save_lora(ours, tmp_path, llama_table(LlamaConfig(**SIZES | {"n_layers": 1})))
    ours.blocks[0].attention.query = LoRALinear(nn.Linear(16, 16), LoRAConfig(rank=2, alpha=5))
    with pytest.raises(ValueError, match=r"one config: got .*rank=2.* and .*rank=3"):
        save_lora(ours, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_leaves_the_older_adapter(tmp_path, monkeypatch):
    older = adapted("llama")
    save_lora(older, tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("llm_core.adaptation.peft_files.save_file", full)
    with pytest.raises(ValueError, match="cannot be written: no space"):
        save_lora(older, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {WEIGHTS, CONFIG}
    assert (tmp_path / WEIGHTS).read_bytes() == before


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    ours = adapted("llama")
    save_lora(ours, folder, table_of(ours))
    return folder


def refused(folder: Path, message: str, name: str = "llama") -> None:
    model = build(name)
    with pytest.raises(ValueError, match=message):
        load_lora(model, folder, table_of(model))
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"peft_type": "IA3"}, '"peft_type": "IA3", but this is for "LORA"'),
        ({"use_dora": True}, '"use_dora": true, which LoRALinear does not do'),
        ({"bias": "all"}, '"bias": "all"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 9}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 9}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, '"init_lora_weights": "pissa"'),
        ({"lora_bias": True}, "lora_bias"),
        ({"an_option_of_2030": 3}, "an_option_of_2030"),
        ({"r": None}, 'must say "r", a number: got null'),
        ({"lora_alpha": "16"}, 'must say "lora_alpha", a number: got "16"'),
        ({"lora_alpha": 0}, "alpha must be above 0"),
        (
            {"r": 4},
            r"A and B of .* are \(3, \d+\) and \(\d+, 3\) in the adapter, \(4, \d+\) and \(\d+, 4\) by its rank",
        ),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(entries, message, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((saved / CONFIG).read_text()) | entries
    (tmp_path / CONFIG).write_text(json.dumps(config))
    refused(tmp_path, message)


def test_files_that_are_missing_or_broken(saved, tmp_path):
    refused(tmp_path, f"there is no {CONFIG}")
    (tmp_path / CONFIG).write_text("{")
    refused(tmp_path, "is not JSON")
    (tmp_path / CONFIG).write_text("[]")
    refused(tmp_path, "no JSON object: got list")
    shutil.copy(saved / CONFIG, tmp_path)
    refused(tmp_path, f"there is no {WEIGHTS}")
    content = (saved / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-7])
    refused(tmp_path, "no whole safetensors file")
    save_file({}, tmp_path / WEIGHTS)
    refused(tmp_path, "holds no tensor")


def test_tensors_that_do_not_fit_are_refused(saved, tmp_path):
    shutil.copy(saved / CONFIG, tmp_path)
    tensors = load_file(saved / WEIGHTS)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file({k: v for k, v in tensors.items() if k != key}, tmp_path / WEIGHTS)
    refused(tmp_path, r"only lora_B of blocks\.1\.feed_forward\.up")
    save_file(tensors | {key: tensors[key].to(torch.int8)}, tmp_path / WEIGHTS)
    refused(tmp_path, rf"{key} in torch\.int8")
    save_file(tensors | {key: torch.zeros(3, 17)}, tmp_path / WEIGHTS)
    refused(tmp_path, r"\(3, 17\)")
    save_file(tensors | {key.replace("up_proj", "side_proj"): torch.zeros(3, 16)}, tmp_path / WEIGHTS)
    refused(tmp_path, r"side_proj\.lora_A\.weight, for which this Llama has no linear layer")
    save_file(tensors | {key.replace("layers.1", "layers.7"): torch.zeros(3, 16)}, tmp_path / WEIGHTS)
    refused(tmp_path, "layers.7")
    save_file(tensors | {key.replace("mlp.up_proj", "input_layernorm"): torch.zeros(3, 16)}, tmp_path / WEIGHTS)
    refused(tmp_path, "input_layernorm")
    refused(saved, "for which this GPT has no linear layer", name="gpt2")


def test_an_adapter_of_gpt2s_joined_matrix_is_refused(tmp_path):
    theirs = get_peft_model(
        theirs_of("gpt2", tmp_path / "model"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    theirs.save_pretrained(tmp_path / "adapter")
    refused(tmp_path / "adapter", r"c_attn\.lora_A.*that join several of ours are not supported", name="gpt2")


def test_a_model_that_has_lora_gets_no_second_adapter(saved):
    model = adapted("llama")
    before = model(draw())
    with pytest.raises(ValueError, match="has LoRA already"):
        load_lora(model, saved, table_of(model))
    assert torch.equal(model(draw()), before)
