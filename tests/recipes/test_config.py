"""A configuration is understood, or refused in a sentence that names the key, what came, and what to do."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llm_core.recipes.config import KNOWN, ConfigError, TokenizerConfig, presets, read_config, settings, to_toml
from llm_core.recipes.parts import model_of

GOOD = '[data]\ncorpus = "shakespeare"\n[run]\nsteps = 10\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


SLIPS = [
    # a key or a section that does not exist, and the one that was meant
    ("[model]\nd_modell = 64", "there is no key model.d_modell; did you mean model.d_model?"),
    ("[model]\nlayers = 2", "there is no key model.layers; did you mean model.n_layers?"),
    ("[optimizer]\npeak = 1e-3", "there is no key optimizer.peak; did you mean schedule.peak?"),
    ("[run]\ndropout = 0.1", "there is no key run.dropout; did you mean model.dropout?"),
    ("steps = 5", "there is no key steps; did you mean run.steps?"),
    ("kind = 'gpt'", "did you mean tokenizer.kind or model.kind or optimizer.kind or schedule.kind?"),
    ("[optimiser]\npeak = 1e-3", "there is no section [optimiser]"),
    ("[optimiser]\npeak = 1e-3", "did you mean [optimizer]?"),
    ("[run]\nqqq = 1", "there is no key run.qqq; there are run.steps, run.epochs"),
    ("model = 'gpt'", "[model] is a section of keys: got model = 'gpt'"),
    ("[[model]]\nd_model = 64", "[model] is a section of keys"),
    # another type
    ("[model]\nd_model = '64'", "model.d_model must be a whole number: got '64' (D, the width)"),
    ("[model]\nd_model = 64.0", "model.d_model must be a whole number: got 64.0"),
    ("[model]\nd_model = true", "model.d_model must be a whole number: got True"),
    ("[run]\ncompile = 1", "run.compile must be true or false: got 1"),
    ("[schedule]\npeak = '1e-3'", "schedule.peak must be a number: got '1e-3'"),
    ("[schedule]\npeak = nan", "schedule.peak must be a number: got nan"),
    ("[schedule]\npeak = inf", "schedule.peak must be a number: got inf"),
    ("[data]\nfiles = 'a.txt'", "data.files must be a list of texts, such as [\"a.txt\"]: got 'a.txt'"),
    ("[data]\ncorpus = ''", "data.corpus must be a text that is not empty: got ''"),
    ("[optimizer]\nbetas = [0.9]", "optimizer.betas must be two numbers, such as [0.9, 0.95]: got [0.9]"),
    # a value that cannot be
    ("objective = 'casual'", "objective must be one of 'causal', 'masked': got 'casual'; did you mean causal?"),
    ("[model]\nkind = 'lama'", "model.kind must be one of 'gpt', 'llama', 'bert': got 'lama'; did you mean llama?"),
    ("[run]\ndtype = 'float16'", "run.dtype must be one of 'float32', 'bfloat16': got 'float16'"),
    ("[model]\nd_model = 0", "model.d_model must be at least 1: got 0"),
    ("[schedule]\npeak = 0", "schedule.peak must be above 0: got 0"),
    ("[schedule]\nwarmup = 1.0", "schedule.warmup must be a share, at least 0 and below 1: got 1.0"),
    ("[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas must be shares, each at least 0 and below 1"),
    ("[run]\nseed = -1", "run.seed must be at least 0: got -1"),
    ("[data]\nvalidation_share = 1", "data.validation_share must be a share, above 0 and below 1: got 1"),
    # what does not go together
    ("[model]\nn_heads = 7", "model.n_heads must divide model.d_model: got 7 and 512"),
    ("[model]\nkind = 'llama'\nd_model = 24", "model.d_model / model.n_heads must be even, since RoPE"),
    ("[model]\nkind = 'llama'\nn_kv_heads = 3", "model.n_kv_heads must divide model.n_heads: got 3 and 8"),
    ("[model]\nn_kv_heads = 2", "model.n_kv_heads is of llama: got model.kind = 'gpt'"),
    ("[model]\nkind = 'llama'\ndropout = 0.1", "model.dropout is of gpt and bert, and llama has none"),
    ("[model]\nkind = 'bert'", 'model.kind = "bert" sees the token that objective = "causal"'),
    ("objective = 'masked'", 'objective = "masked" needs a model that reads both ways'),
    ("objective='masked'\n[model]\nkind='bert'\n[tokenizer]\nkind='bpe'", 'take tokenizer.kind = "wordpiece"'),
    ("objective='masked'\n[model]\nkind='bert'\ncontext = 2", "model.context must have room for [CLS], a token and"),
    ("objective='masked'\n[model]\nkind='bert'\n[optimizer]\nkind='muon'", 'optimizer.kind = "muon" goes with gpt and'),
    ("[optimizer]\nkind = 'adam'", 'optimizer.kind = "adam" has no weight decay: got optimizer.weight_decay = 0.1'),
    ("[schedule]\nfloor = 0.1", "schedule.floor must not be above schedule.peak: got 0.1 and 0.001"),
    ("[schedule]\nkind = 'stable'\nwarmup = 0.9", "schedule.warmup and schedule.decay must fit into the whole"),
    ("[run]\nepochs = 1", "run.steps or run.epochs says how long, one of the two: got both"),
    ("[run]\nbatch_size = 10\nparts = 3", "run.parts must divide run.batch_size: got 3 and 10"),
    ("[data]\nfiles = ['a']", "says where the text is: got data.corpus and data.files"),
    ("[data]\nvalidation_files = ['a']", "data.corpus brings a part of its own"),
    # no TOML
    ("[model", "is no TOML"),
    ("[model]\nd_model = 64\nd_model = 32", "is no TOML"),
]  # fmt: skip


def _merged(slip: str) -> str:
    """The slip in a configuration that is good without it."""
    if slip == "[model" or slip.count("d_model =") == 2:
        return slip
    sections: dict[str, list[str]] = {"": []}
    for text in (GOOD, slip):
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line
            else:
                sections.setdefault(section, [])
                taken = [old for old in sections[section] if old.split(" =")[0] == line.split(" =")[0]]
                for old in taken:
                    sections[section].remove(old)
                sections[section].append(line)
    return "\n".join(line for section, lines in sections.items() for line in [section, *lines])


@pytest.mark.parametrize(("slip", "message"), SLIPS, ids=[message[:40] for _, message in SLIPS])
def test_a_slip_is_refused_with_the_file_the_key_and_what_to_do(slip: str, message: str, tmp_path: Path):
    path = written(tmp_path, _merged(slip))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(path)


def test_the_configuration_of_the_slips_is_good_without_them(tmp_path: Path):
    config = read_config(written(tmp_path, GOOD))
    assert (config.data.corpus, config.run.steps, config.model.d_model) == ("shakespeare", 10, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nsteps = 5", "data.shards says where the text is: got none of them"),
        ('[data]\ncorpus = "shakespeare"', "one of the two: got neither"),
        ('[data]\nshards = "s"\n[run]\nsteps = 1', "tokenizer.file must name the tokenizer.json that made them"),
        ('[data]\nshards = "s"\n[tokenizer]\nfile = "t"\n[run]\nsteps = 1', "data.shards has no held-out text"),
    ],
)
def test_what_is_missing_is_named(text: str, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(written(tmp_path, text))


def test_the_source_of_a_slip_is_named(tmp_path: Path):
    path = written(tmp_path, "[model]\nd_model = -1")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: model.d_model")):
        read_config(path)
    with pytest.raises(ConfigError, match=re.escape("-o model.d_model=-1: model.d_model")):
        read_config(preset="book", options=["model.d_model=-1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "bok"}, "there is no preset 'bok': there are article, book, gpu; did you mean book?"),
        ({"file": "nowhere.toml"}, "there is no file nowhere.toml: give a TOML file, or a preset"),
        ({"file": "."}, "cannot be read: Is a directory"),
        ({"preset": "book", "options": ["model.d_model"]}, "an option is written key=value"),
        ({"preset": "book", "options": ["=3"]}, "an option is written key=value"),
        ({"preset": "book", "options": ["model.width=3"]}, "there is no key model.width"),
        ({"preset": "book", "options": ["d_model=64"]}, "there is no key d_model; did you mean model.d_model?"),
        ({"preset": "book", "options": ["model.d_model=many"]}, "must be a whole number: got 'many'"),
        ({"preset": "book", "options": ["run.steps=1e3"]}, "must be a whole number: got 1000.0"),
        ({"preset": "book", "options": ["model.d_model=64\n[run]"]}, "model.d_model must be a whole number"),
    ],
)
def test_a_call_that_cannot_be_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(**arguments)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'objective = "\xff"')
    with pytest.raises(ConfigError, match="is no text in UTF-8"):
        read_config(path)


def test_the_later_changes_the_earlier(tmp_path: Path):
    path = written(tmp_path, "[model]\nd_model = 64\n[run]\nepochs = 2")
    config = read_config(path, preset="book", options=["model.d_model=32", "data.files=['a.txt', 'b.txt']"])
    assert config.model.d_model == 32
    assert (config.run.steps, config.run.epochs) == (None, 2.0)  # the preset's steps are replaced, not added to
    assert (config.data.corpus, config.data.files) == (None, ("a.txt", "b.txt"))
    assert config.optimizer.kind == "muon"  # the preset's


def test_options_are_toml_and_text_needs_no_quotes():
    options = ["tokenizer.file=my file.json", 'model.kind="gpt"', "optimizer.betas=[0.5, 0.6]", "schedule.peak=1"]
    config = read_config(preset="book", options=options)
    assert (config.tokenizer.file, config.model.kind, config.optimizer.betas) == ("my file.json", "gpt", (0.5, 0.6))
    assert (config.schedule.peak, type(config.schedule.peak)) == (1.0, float)
    assert read_config(preset="book", options=["tokenizer.file=12"]).tokenizer.file == "12"


@pytest.mark.parametrize("name", presets())
def test_what_is_written_is_read_again_with_every_key_explained(name: str, tmp_path: Path):
    odd = 'a "b" \\ c\x7f\u2028é😀.json'
    config = replace(read_config(preset=name), tokenizer=TokenizerConfig(file=odd))
    text = to_toml(config)
    assert read_config(written(tmp_path, text)) == config
    assert config.tokenizer.file == odd
    lines = [line for line in text.split("\n") if " = " in line or line.startswith("# ")]
    assert len(lines) == len(KNOWN)
    assert all(line.partition("  # ")[2] for line in lines)


def test_settings_are_all_keys_but_those_that_change_no_weight():
    config = read_config(preset="book")
    assert set(KNOWN) - settings(config).keys() == {
        "run.device", "run.evaluate_every", "run.evaluate_tokens", "run.save_every", "run.keep"
    }  # fmt: skip
    assert settings(config)["schedule.peak"] == config.schedule.peak


def published(name: str, objective: str) -> transformers.PretrainedConfig:
    """The same sizes as a model of transformers."""
    model, V = read_config(preset=name).model, read_config(preset=name).tokenizer.vocab_size
    D, L, H, F, T = model.d_model, model.n_layers, model.n_heads, model.d_ff, model.context
    if objective == "masked":
        return transformers.BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=H,
            intermediate_size=F,
            max_position_embeddings=T,
        )
    if model.kind == "gpt":
        return transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=H, n_inner=F)
    return transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=model.n_kv_heads or H,
        max_position_embeddings=T,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize(
    ("name", "objective", "millions"),
    [("article", "causal", 21.73), ("article", "masked", 22.03), ("book", "causal", 0.90), ("gpu", "causal", 100.68)],
)
def test_the_presets_have_as_many_weights_as_the_same_models_of_transformers(
    name: str, objective: str, millions: float
):
    options = ["objective=masked", "model.kind=bert"] if objective == "masked" else []
    config = read_config(preset=name, options=options)
    with torch.device("meta"):
        ours = sum(p.numel() for p in model_of(config.model, config.tokenizer.vocab_size).parameters())
        kind = transformers.AutoModelForMaskedLM if objective == "masked" else transformers.AutoModelForCausalLM
        theirs = sum(p.numel() for p in kind.from_config(published(name, objective)).parameters())
    assert ours == theirs
    assert math.isclose(ours / 1e6, millions, abs_tol=0.005)


def test_the_article_preset_is_the_articles_setting():
    config = read_config(preset="article")
    model = config.model
    assert (config.tokenizer.vocab_size, config.tokenizer.lowercase) == (30000, True)
    assert (model.d_model, model.n_heads, model.n_layers, model.d_ff) == (512, 8, 2, 2048)
    assert (config.optimizer.kind, config.schedule.kind, config.schedule.peak) == ("adam", "constant", 1e-4)
    assert (config.run.epochs, config.run.batch_size) == (3, 32)
