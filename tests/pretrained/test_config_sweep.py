"""Each entry of a config.json taken out, made null and changed: the logits are transformers', or the entry is named.

For every family a small model that transformers wrote, with its config.json in the form of 2024 and in that of 2025. An
entry of it, or one that transformers' config class knows, gets each of a list of other values. Then both load the same
weights. Logits equal to 1e-5, or a ValueError of ours that names the entry; nothing else passes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from llm_core.pretrained import bert, gpt2, marian
from llm_core.pretrained.bert import load_bert
from llm_core.pretrained.files import NOTES
from llm_core.pretrained.gpt2 import load_gpt2
from llm_core.pretrained.llama import load_llama
from llm_core.pretrained.marian import load_marian

COMPUTED = "embed_positions.weight"  # Marian's sines and cosines, which transformers counts as weights
T = 40  # longer than windows and original contexts
IDS = torch.randint(5, 41, (1, T), generator=torch.Generator().manual_seed(0))
DECODER = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2}
DECODER |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
QWEN = DECODER | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PART = {"rope_type": "default", "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 2}
EXPERTS |= {"use_sliding_window": True, "sliding_window": 9, "norm_topk_prob": True}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0], "factor": 2.0}


@dataclass(frozen=True)
class Family:
    """A model class of transformers, the small config, entries in the older form, and how both give logits."""

    model: str
    config: dict[str, Any]
    older: dict[str, Any] | None
    load: Callable[[Path], torch.nn.Module]
    ours: Callable[[Any], Tensor] = lambda model: model(IDS)
    theirs: Callable[[Any], Tensor] = lambda model: model(IDS).logits
    keys: Set[str] | None = None  # those to edit; all unless given


def llama(
    model: str, config: dict[str, Any], rope: dict[str, Any] | None = None, keys: Set[str] | None = None
) -> Family:
    rope = {"rope_type": "default"} if rope is None else rope
    older = {"rope_theta": 500.0, "rope_scaling": None if rope["rope_type"] == "default" else rope}
    return Family(
        f"{model}ForCausalLM", config | {"rope_parameters": rope | {"rope_theta": 500.0}}, older, load_llama, keys=keys
    )


BERT = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 4, "max_position_embeddings": 64}
MARIAN = {"vocab_size": 41, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
MARIAN |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_position_embeddings": 64}
MARIAN |= {"pad_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 3, "scale_embedding": True}
# What is new in a Llama with another scaling.
VARIED = {"rope_parameters", "max_position_embeddings", "tie_word_embeddings", "head_dim"}
# What the newer relatives say that the older do not, or take another way.
OF_GEMMA = {"hidden_act", "head_dim", "num_key_value_heads", "tie_word_embeddings", "attention_bias", "hidden_size"}
OF_GEMMA |= {"use_bidirectional_attention", "rms_norm_eps"}
OF_EXPERTS = {"num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers"}
OF_EXPERTS |= {"decoder_sparse_step", "use_sliding_window", "sliding_window", "max_window_layers", "head_dim"}
OF_PHI = {"rope_parameters", "original_max_position_embeddings", "partial_rotary_factor", "sliding_window"}
OF_PHI |= {"resid_pdrop", "embd_pdrop", "num_attention_heads", "head_dim"}
FAMILIES = {
    "llama": llama("Llama", DECODER | {"attention_bias": True, "mlp_bias": True}, YARN),
    "llama, tied, llama3": llama("Llama", DECODER | {"tie_word_embeddings": True}, LLAMA3, VARIED),
    "llama, longrope": llama("Llama", DECODER, LONG | {"original_max_position_embeddings": 16}, VARIED),
    "llama, dynamic": llama(
        "Llama", DECODER | {"max_position_embeddings": 24}, {"rope_type": "dynamic", "factor": 4.0}
    ),
    "mistral": llama("Mistral", DECODER | {"sliding_window": 7}, {"rope_type": "linear", "factor": 2.0}),
    # With a head_dim: Mixtral's config has none, and transformers 5 then fails at every rope_scaling.
    "mixtral": llama("Mixtral", DECODER | {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 4}),
    "qwen2": llama("Qwen2", QWEN),
    "qwen3": llama("Qwen3", QWEN | {"head_dim": 6}),
    "gemma": llama("Gemma", DECODER | {"head_dim": 6, "num_key_value_heads": 1}, keys=OF_GEMMA),
    "qwen3_moe": llama("Qwen3Moe", DECODER | EXPERTS | {"head_dim": 6, "num_hidden_layers": 3}, keys=OF_EXPERTS),
    "phi3": llama("Phi3", DECODER | {"pad_token_id": 0, "sliding_window": 9}, PART, keys=OF_PHI),
    "phi3, longrope": llama(
        "Phi3",
        DECODER | {"pad_token_id": 0, "original_max_position_embeddings": 16},
        PART | LONG | {"short_factor": [1.5], "long_factor": [5.0]},
        VARIED | {"partial_rotary_factor", "original_max_position_embeddings"},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": 41, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24},
        None,
        load_gpt2,
    ),
    "bert": Family(
        "BertModel",
        BERT,
        None,
        load_bert,
        ours=lambda model: model(IDS, mask=torch.ones_like(IDS, dtype=torch.bool)),
        theirs=lambda model: model(IDS).last_hidden_state,
    ),
    "marian": Family(
        "MarianMTModel",
        MARIAN,
        None,
        load_marian,
        ours=lambda model: model(IDS, IDS[:, :20]),
        theirs=lambda model: model(IDS, IDS.ne(model.config.pad_token_id), decoder_input_ids=IDS[:, :20]).logits,
    ),
}
_ROPE = frozenset({"rope_theta", "rope_scaling"})  # the entries that the older form has for rope_parameters
# Where transformers refuses and we do not, and why that is right.
ACCEPTED = {
    **dict.fromkeys(NOTES, "says nothing about the logits, so it is not looked at"),
    **dict.fromkeys(
        {*gpt2._OF_NO_EFFECT, *bert._OF_NO_EFFECT, *marian._OF_NO_EFFECT, "pretraining_tp"},
        "of a part that we have not",
    ),
    **dict.fromkeys(
        ["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"],
        "of a mixture's training, not its logits",
    ),
}


def others(key: str, value: object) -> Iterator[object]:
    """Other values for an entry: null, of the same type, of other types, out of range."""
    yield None
    same: list[object] = []
    if isinstance(value, bool):
        same = [not value]
    elif isinstance(value, int):
        same = [value + 1, value * 2, max(value // 2, 1)]
    elif isinstance(value, float):
        same = [value * 2 + 0.001, 1.0, math.nan]
    elif isinstance(value, str):
        same = ["relu", "gelu", "silu", "default", "linear", "yarn", "dynamic"]
    elif isinstance(value, list):
        same = [value[:-1], value[::-1], value * 2]
    for other in (*same, 0, -1, 0.5, True, "x", []):
        if type(other) is not type(value) or other != value:
            yield other


def edits(
    config: dict[str, Any], known: dict[str, Any], keys: Set[str] | None = None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of the entry, what is done to it, and the config that results; entries within an object too."""
    for key in sorted(keys or {*config, *known} - {"model_type"}):
        if key in config:
            yield key, "taken out", {name: value for name, value in config.items() if name != key}
        for other in (None, "x") if key in NOTES else others(key, config.get(key, known.get(key))):
            yield key, repr(other), config | {key: other}
        inner = config.get(key)
        if isinstance(inner, dict):
            for part in sorted(
                {*inner, "factor", "type", "mscale", "partial_rotary_factor", "attention_factor", "new"}
            ):
                if part in inner:
                    yield part, "taken out", config | {key: {n: v for n, v in inner.items() if n != part}}
                for other in others(part, inner.get(part, 1.0)):
                    yield part, repr(other), config | {key: inner | {part: other}}
    if "rope_parameters" in config:
        for rope in (
            YARN,
            {"type": "linear", "factor": 3.0},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 99.0},
        ):
            yield "rope_scaling", repr(rope), config | {"rope_scaling": rope}
        for theta in (99.0, 0, "x", None):
            yield "rope_theta", repr(theta), config | {"rope_theta": theta}
    if "num_hidden_layers" in config:
        for layers in (
            ["full_attention", "sliding_attention"],
            ["sliding_attention"] * 2,
            ["full_attention"] * 2,
            ["x"] * 2,
        ):
            yield "layer_types", repr(layers), config | {"layer_types": layers}
        for more in (
            {"quantization_config": {"bits": 4}},
            {"rope_interleaved": True},
            {"partial_rotary_factor": 0.5},
            {"original_max_position_embeddings": 8},
            {"head_dim": 4},
            {"head_dim": 8},
        ):
            yield next(iter(more)), repr(more), config | more


def draw(model: PreTrainedModel) -> None:
    """Sharp attention; no bias of 0 and no norm of 1, which would hide that they are missing."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(COMPUTED):
            continue
        norm = ("norm" in name.lower() or ".ln_" in name) and model.config.model_type != "gemma"  # it adds one itself
        table = "embed_tokens" in name or "lm_head" in name  # so that logits are of the size of one
        torch.nn.init.normal_(parameter, mean=float(norm and name.endswith("weight")), std=0.1 if table else 0.3)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def their_logits(family: Family, said: dict[str, Any], weights: dict[str, Tensor]) -> Tensor | None:
    """transformers' logits by this config, or None if it has none: it raises, or the weights do not fit."""
    try:
        kind = getattr(transformers, family.model)
        config = kind.config_class.from_dict(copy.deepcopy(said))
        config._attn_implementation = "eager"
        model = kind(config)
        fitting = model.load_state_dict(weights, strict=False)
        model.tie_weights()
        if any(not name.endswith(COMPUTED) for name in fitting.missing_keys):
            return None
        with torch.no_grad():
            return family.theirs(model.eval())
    except Exception:  # whatever it raises: it does not load that
        return None


def sweep(family: Family, folder: Path, weights: dict[str, Tensor]) -> tuple[Counter[str], list[str]]:
    """How many edits were tried, equal and refused, and those that were neither."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    newer = json.loads((folder / "config.json").read_text())
    known = getattr(transformers, family.model).config_class().to_dict()
    forms = [newer]
    if family.older is not None:
        forms.append({key: value for key, value in newer.items() if key != "rope_parameters"} | family.older)
    for form in forms:
        keys = family.keys if form is newer else _ROPE
        for key, done, said in [("model_type", "nothing", form), *edits(form, known, keys)]:
            counts["tried"] += 1
            (folder / "config.json").write_text(json.dumps(said))
            try:
                model = family.load(folder)
            except ValueError as error:
                counts["refused"] += 1
                if key not in str(error):
                    wrong.append(f"{key} {done}: not named: {error}")
                continue
            except Exception as error:
                wrong.append(f"{key} {done}: {type(error).__name__}: {error}")
                continue
            if model.config.context < T:  # transformers reads beyond the context, we refuse the text
                counts["refused"] += 1
                continue
            with torch.no_grad():
                ours = family.ours(model)
            theirs = their_logits(family, said, weights)
            if theirs is None:
                counts["accepted"] += 1
                if key not in ACCEPTED:
                    wrong.append(f"{key} {done}: transformers refuses it")
            elif theirs.shape == ours.shape and (ours - theirs).abs().max() <= 1e-5:
                counts["equal"] += 1
            else:
                wrong.append(f"{key} {done}: differs by {(ours - theirs).abs().max().item():.2g}")
    return counts, wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_every_entry_is_obeyed_or_refused_by_name(name, tmp_path):
    family = FAMILIES[name]
    kind = getattr(transformers, family.model)
    with quietly():
        theirs = kind(kind.config_class(**copy.deepcopy(family.config)))
        draw(theirs)
        theirs.save_pretrained(tmp_path)
        weights = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith(COMPUTED)}
        counts, wrong = sweep(family, tmp_path, weights)
    assert not wrong, f"{len(wrong)} of {counts['tried']}:\n" + "\n".join(wrong[:60])
    # Most edits are slips, and a sixth or more are other models: a sweep that refuses all, or nothing, shows nothing.
    assert counts["equal"] + counts["accepted"] + counts["refused"] == counts["tried"] > 125, counts
    assert counts["equal"] >= 0.12 * counts["tried"], counts
    assert counts["refused"] >= 0.5 * counts["tried"], counts
