"""The published weights of Llama and its relatives in `Llama`, and back.

    folder = "..."               # config.json and model.safetensors (one or several), as published
    model = load_llama(folder)
    save_llama(model, "copy")    # a folder that transformers reads

Which relative it is stands in config.json as "model_type": llama (SmolLM2 too), mistral, mixtral, qwen2 or qwen3. What
such a file asks for and `Llama` does not do is refused, by key and value: a rotation or a window that is left out would
not fail, it would answer a little worse. What it does not say is what transformers takes for nothing said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llm_core.layers.positions import (
    DynamicScaling,
    LengthScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    YarnScaling,
)
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.files import (
    check_config,
    entry,
    naming,
    obeyed,
    read_config,
    read_shapes,
    read_weights,
    write,
)
from llm_core.pretrained.names import Line, check_shapes, check_tied, load, same, to_ours, to_theirs

_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
_READ = {*_SIZES, *_ROPE, "head_dim", "rms_norm_eps", "tie_word_embeddings", "partial_rotary_factor"}
# What transformers takes for an entry that is not there: Llama's class, and where its relatives' differ.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_MISTRAL = {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8}
_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
_DEFAULTS_BY_TYPE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": _MISTRAL,
    "mixtral": {**_MISTRAL, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "sliding_window": None},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
_WINDOW = {"sliding_window"}
_LAYER_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
# What each relative's config.json says beyond what all say.
_READ_BY_TYPE = {
    "llama": {"attention_bias", "mlp_bias", "pretraining_tp", "is_llama_config"},
    "mistral": _WINDOW,
    "mixtral": _WINDOW | {"num_local_experts", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"},
    "qwen2": _LAYER_WINDOWS,
    "qwen3": _LAYER_WINDOWS | {"attention_bias"},
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LAYERS = (_FULL, _SLIDING)
# The ways of slowing RoPE down, and what each has to say.
_ROPE_KEYS: dict[Any, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}
# What Llama does in one way only.
_FIXED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "use_mrope": False,
    "router_jitter_noise": 0.0,
}


def llama_table(config: LlamaConfig) -> list[Line]:
    """The published names of the weights, and ours."""
    table = [
        same("token_embedding.weight", "model.embed_tokens.weight"),
        same("norm.weight", "model.norm.weight"),
    ]
    if not config.tied:
        table.append(same("head.weight", "lm_head.weight"))
    for i in range(config.n_layers):
        new, old = f"blocks.{i}", f"model.layers.{i}"
        table.append(same(f"{new}.attention_norm.weight", f"{old}.input_layernorm.weight"))
        table.append(same(f"{new}.feed_forward_norm.weight", f"{old}.post_attention_layernorm.weight"))
        for ours, theirs, bias in (
            ("query", "q_proj", config.qkv_bias),
            ("key", "k_proj", config.qkv_bias),
            ("value", "v_proj", config.qkv_bias),
            ("output", "o_proj", config.output_bias),
        ):
            for kind in ("weight", "bias") if bias else ("weight",):
                table.append(same(f"{new}.attention.{ours}.{kind}", f"{old}.self_attn.{theirs}.{kind}"))
        if config.qk_norm:
            table.append(same(f"{new}.attention.query_norm.weight", f"{old}.self_attn.q_norm.weight"))
            table.append(same(f"{new}.attention.key_norm.weight", f"{old}.self_attn.k_norm.weight"))
        if config.n_experts is None:
            for name in ("gate", "up", "down"):
                for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
                    table.append(same(f"{new}.feed_forward.{name}.{kind}", f"{old}.mlp.{name}_proj.{kind}"))
        else:
            table.append(same(f"{new}.feed_forward.router.weight", f"{old}.block_sparse_moe.gate.weight"))
            for e in range(config.n_experts):
                for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                    expert = f"{old}.block_sparse_moe.experts.{e}.{theirs}.weight"
                    table.append(same(f"{new}.feed_forward.experts.{e}.{ours}.weight", expert))
    return table


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """What a config.json says, as ours.

    Raises:
        ValueError: it asks for something that `Llama` does not do, by the key and value that ask for it.
    """
    kind = entry(config, "model_type", str)
    if kind not in _READ_BY_TYPE:
        raise ValueError(
            f'config.json says "model_type": "{kind}", but this model only does {", ".join(_READ_BY_TYPE)}'
        )
    fixed = _FIXED if kind == "llama" else {**_FIXED, "mlp_bias": False}
    check_config(config, read=_READ | _READ_BY_TYPE[kind], fixed=fixed)
    defaults = _DEFAULTS | _DEFAULTS_BY_TYPE[kind]
    sizes = {ours: obeyed(config, theirs, defaults[theirs]) for theirs, ours in _SIZES.items() if theirs in _DEFAULTS}
    n_kv_heads = _number(config, "num_key_value_heads", defaults.get("num_key_value_heads"))
    # Qwen3's heads have a width of their own; Qwen2's class knows no such entry, but obeys one.
    d_head = _number(config, "head_dim", defaults.get("head_dim"), null=kind not in ("qwen2", "qwen3"))
    if d_head is not None and d_head * sizes["n_heads"] == sizes["d_model"]:
        d_head = None  # said or not, a width of D / H is one config, not two
    rope_base, rope_scaling = _rope(config, defaults["rope_theta"], sizes["context"])
    if isinstance(rope_scaling, DynamicScaling):
        sizes["context"] = int(rope_scaling.original_context * rope_scaling.factor)
    window, full_layers = _windows(config, kind, defaults, sizes["n_layers"])
    bias = obeyed(config, "attention_bias", False)
    experts: dict[str, Any] = {}
    if kind == "mixtral":
        experts = {
            "n_experts": obeyed(config, "num_local_experts", defaults["num_local_experts"]),
            "experts_per_token": obeyed(config, "num_experts_per_tok", defaults["num_experts_per_tok"]),
        }
    others = {
        "norm_eps": obeyed(config, "rms_norm_eps", defaults["rms_norm_eps"]),
        "tied": obeyed(config, "tie_word_embeddings", False),
        "mlp_bias": obeyed(config, "mlp_bias", False),
    }
    with naming(config, _named(kind)):
        return LlamaConfig(
            **sizes,
            **others,
            n_kv_heads=sizes["n_heads"] if n_kv_heads is None else n_kv_heads,
            d_head=d_head,
            rope_base=rope_base,
            rope_scaling=rope_scaling,
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            qk_norm=kind == "qwen3",
            window=window,
            full_layers=full_layers,
            **experts,
        )


def llama_config_json(config: LlamaConfig) -> dict[str, Any]:
    """The config.json of a config of ours, in the form that the checkpoints of 2024 have and all versions read.

    Raises:
        ValueError: no published model has this combination, so no config.json can say it.
    """
    kind = _kind(config)
    theirs: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind}
    theirs |= {key: getattr(config, name) for key, name in _SIZES.items()}
    theirs |= {
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _rope_json(config.rope_scaling),
        "tie_word_embeddings": config.tied,
    }
    if isinstance(config.rope_scaling, DynamicScaling):
        theirs["max_position_embeddings"] = config.rope_scaling.original_context
    if kind == "llama":
        theirs["mlp_bias"] = config.mlp_bias
    if kind in ("llama", "qwen3"):
        theirs["attention_bias"] = config.output_bias
    if kind in ("mistral", "mixtral"):
        theirs["sliding_window"] = config.window
    if kind in ("qwen2", "qwen3"):
        # max_window_layers: the layers below it read everything.
        windowed = config.window is not None
        theirs |= {"use_sliding_window": windowed, "sliding_window": config.window, "max_window_layers": 0}
        if config.full_layers:
            theirs["layer_types"] = [_FULL if window is None else _SLIDING for window in config.windows]
    if kind == "mixtral":
        theirs |= {"num_local_experts": config.n_experts, "num_experts_per_tok": config.experts_per_token}
    back = llama_config(theirs)
    differing = [name for name in vars(config) if getattr(back, name) != getattr(config, name)]
    differing = [name for name in differing if name != "d_head" or back.head_width != config.head_width]
    if differing:
        wanted = ", ".join(f"{name}={getattr(config, name)}" for name in differing)
        raise ValueError(f"of the published models this is most like {kind}, but {kind} cannot have {wanted}")
    return theirs


def load_llama(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Llama:
    """The model of a checkpoint, in eval mode. `dtype=None` keeps the numbers as they are stored.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `Llama` does not do; or the weights
            are not those of the config.
    """
    said = read_config(folder)
    config = llama_config(said)
    named = _named(said["model_type"])
    with torch.device("meta"), naming(said, named):
        model = Llama(config)
    table = llama_table(config)
    # Old checkpoints hold RoPE's frequencies. Tied ones may hold the table a second time, as the head.
    spare = (".rotary_emb.inv_freq", "lm_head.weight") if config.tied else (".rotary_emb.inv_freq",)
    with naming(said, named):
        check_shapes(table, model, read_shapes(folder), may_be_left=spare)
    weights = read_weights(folder)
    if config.tied:
        check_tied(weights, "model.embed_tokens.weight", "lm_head.weight")
    load(model, {name: tensor.to(dtype or tensor.dtype) for name, tensor in to_ours(table, weights).items()})
    return model.eval()


def save_llama(model: Llama, folder: Path | str, *, bos_id: int | None = None, eos_id: int | None = None) -> None:
    """Write a checkpoint that transformers reads, as the relative that the config describes.

    Raises:
        ValueError: no published model has this combination. Nothing is written then.
    """
    config = llama_config_json(model.config) | {"bos_token_id": bos_id, "eos_token_id": eos_id}
    write(folder, config, to_theirs(llama_table(model.config), model.state_dict()))


def _kind(config: LlamaConfig) -> str:
    """The relative that a config is most like."""
    if config.n_experts is not None:
        return "mixtral"
    if config.qk_norm:
        return "qwen3"
    if config.qkv_bias and not config.output_bias:
        return "qwen2"
    return "llama" if config.window is None else "mistral"


def _named(kind: str) -> list[str]:
    """The entries that decide which weights there are, and how large, and those whose numbers may be out of range."""
    return [*_SIZES, "head_dim", "tie_word_embeddings", "rms_norm_eps", "rope_theta", *sorted(_READ_BY_TYPE[kind])]


def _number(config: Mapping[str, Any], key: str, default: int | None, *, null: bool = True) -> int | None:
    """A whole number that may be left to the model; so it is if there is no default and the entry is absent."""
    if key not in config:
        return default
    return obeyed(config, key, 0, null=null)


def _windows(
    config: Mapping[str, Any], kind: str, defaults: Mapping[str, Any], n_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """How far back the layers look, and the numbers of those that look back to the beginning all the same."""
    if kind == "llama":
        return None, ()
    window = _number(config, "sliding_window", defaults["sliding_window"])
    if kind in ("mistral", "mixtral"):
        return window, ()
    first = obeyed(config, "max_window_layers", defaults["max_window_layers"])
    if not obeyed(config, "use_sliding_window", False):
        window = None
    layers = config.get("layer_types")
    if layers is None:
        layers = [_FULL if window is None or i < first else _SLIDING for i in range(n_layers)]
    if not isinstance(layers, list) or len(layers) != n_layers or any(layer not in _LAYERS for layer in layers):
        raise _unknown("layer_types", layers, f"a list of {' or '.join(_LAYERS)} for each of num_hidden_layers")
    if window is None and _SLIDING in layers:
        raise _unknown("layer_types", layers, f"{_FULL} where sliding_window or use_sliding_window says no window")
    if _SLIDING not in layers:
        return None, ()
    return window, tuple(i for i, layer in enumerate(layers) if layer == _FULL)


def _rope(
    config: Mapping[str, Any], default_base: float, context: int
) -> tuple[float, RopeScaling | LengthScaling | None]:
    """Base and scaling, as transformers finds them.

    `rope_scaling`, if it says anything, stands before `rope_parameters`, the one of before 2025 before the one since;
    a `rope_theta` within stands before the one beside it.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    for part in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(part, {}), dict | None):
            raise _unknown(part, config[part], "an object, or null")
    rope = dict(config.get(key) or {})
    base = obeyed(rope if "rope_theta" in rope else config, "rope_theta", default_base)
    name = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(name, str) or name not in _ROPE_KEYS:
        raise _unknown(key, config[key], f"the rope_type {', '.join(_ROPE_KEYS)}")
    unknown = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_KEYS[name]}
    if any(rope[entry] is not None for entry in unknown):
        raise _unknown(key, config[key], f"the rope_type {name} without {', '.join(sorted(unknown))}")
    beside = config.get("partial_rotary_factor")
    for factor in (1.0 if beside is None else beside, rope.get("partial_rotary_factor", 1.0)):
        if type(factor) not in (int, float) or factor != 1:
            raise _unknown("partial_rotary_factor", factor, "1: all columns of a head turn")
    with naming(config, ["max_position_embeddings", *(entry for entry in _ROPE if entry in config)]):
        return base, _scaling(name, rope, config, context)


def _scaling(
    name: str, rope: Mapping[str, Any], config: Mapping[str, Any], context: int
) -> RopeScaling | LengthScaling | None:
    if name == "default":
        return None
    if name == "linear":
        return LinearScaling(entry(rope, "factor", float))
    if name == "dynamic":
        return DynamicScaling(entry(rope, "factor", float), context)
    # The entry beside it stands first here, as that of Phi-3 does.
    said = config if "original_max_position_embeddings" in config else rope
    original = obeyed(said, "original_max_position_embeddings", context)
    attention_factor = obeyed(rope, "attention_factor", 1.0, null=True) if "attention_factor" in rope else None
    if name == "llama3":
        low, high = entry(rope, "low_freq_factor", float), entry(rope, "high_freq_factor", float)
        return Llama3Scaling(entry(rope, "factor", float), low, high, original)
    if name == "yarn":
        if rope.get("truncate", True) is not True:
            raise _unknown("truncate", rope["truncate"], "true")
        fast, slow = entry(rope, "beta_fast", float, 32.0), entry(rope, "beta_slow", float, 1.0)
        return YarnScaling(entry(rope, "factor", float), original, fast, slow, attention_factor)
    factor = entry(rope, "factor", float, context / original if original > 0 else 1.0)
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return LongScaling(_numbers(rope, "short_factor"), _numbers(rope, "long_factor"), original, attention_factor)


def _numbers(rope: Mapping[str, Any], key: str) -> tuple[float, ...]:
    numbers = rope.get(key)
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise _unknown(key, numbers, "a list of numbers")
    return tuple(float(number) for number in numbers)


def _rope_json(scaling: RopeScaling | LengthScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, _):
            return {"rope_type": "dynamic", "factor": factor}
        case LongScaling(short, long, context, attention_factor):
            return {
                "rope_type": "longrope",
                "short_factor": list(short),
                "long_factor": list(long),
                "original_max_position_embeddings": context,
                "attention_factor": attention_factor,
            }
        case Llama3Scaling(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
        case YarnScaling(factor, context, fast, slow, attention_factor):
            rope = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": context,
                "beta_fast": fast,
                "beta_slow": slow,
            }
            return rope if attention_factor is None else rope | {"attention_factor": attention_factor}
    raise ValueError(f"no config.json can say {scaling}: only the scalings of llm_core.layers.positions")


def _unknown(key: str, value: object, does: str) -> ValueError:
    return ValueError(f'config.json says "{key}": {value}, but this model only does {does}')
