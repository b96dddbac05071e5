"""The published weights of Llama and its relatives in `Llama`, and back.

    folder = "..."               # config.json and model.safetensors (one or several), as published
    model = load_llama(folder)
    save_llama(model, "copy")    # a folder that transformers reads

Which relative it is stands in config.json as "model_type": llama (SmolLM2 too), mistral, mixtral, qwen2 or qwen3. What
such a file asks for and `Llama` does not do is refused, by key and value: a rotation or a window that is left out would
not fail, it would answer a little worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llm_core.layers.positions import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.files import check_config, entry, read_config, read_shapes, read_weights, write
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
_READ = {*_SIZES, "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings"}
_WINDOW = {"sliding_window"}
_LAYER_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
# What each relative's config.json says beyond what all say.
_READ_BY_TYPE = {
    "llama": {"attention_bias", "pretraining_tp", "is_llama_config"},
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
# What Llama does in one way only.
_FIXED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "rope_interleaved": False,
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
                table.append(same(f"{new}.feed_forward.{name}.weight", f"{old}.mlp.{name}_proj.weight"))
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
    check_config(config, read=_READ | _READ_BY_TYPE[kind], fixed=_FIXED)
    sizes = {ours: entry(config, theirs, int) for theirs, ours in _SIZES.items() if theirs != "num_key_value_heads"}
    # The first Llama had no grouped queries, and its config no word for them. The others always say it, and
    # transformers would take different numbers for nothing said.
    n_kv_heads = entry(config, "num_key_value_heads", int, sizes["n_heads"] if kind == "llama" else None)
    d_head = entry(config, "head_dim", int) if kind == "qwen3" else entry(config, "head_dim", int, 0) or None
    rope_base, rope_scaling = _rope(config, kind)
    bias = entry(config, "attention_bias", bool, False)
    experts: dict[str, int] = {}
    if kind == "mixtral":
        experts = {
            "n_experts": entry(config, "num_local_experts", int),
            "experts_per_token": entry(config, "num_experts_per_tok", int),
        }
    return LlamaConfig(
        **sizes,
        n_kv_heads=n_kv_heads,
        # Said or not, a width of D / H is one config, not two.
        d_head=None if d_head is None or d_head * sizes["n_heads"] == sizes["d_model"] else d_head,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_eps=entry(config, "rms_norm_eps", float),
        tied=entry(config, "tie_word_embeddings", bool, False),
        qkv_bias=bias or kind == "qwen2",
        output_bias=bias,
        qk_norm=kind == "qwen3",
        window=_window(config, kind, sizes["n_layers"]),
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
    if kind in ("llama", "qwen3"):
        theirs["attention_bias"] = config.output_bias
    if kind in ("mistral", "mixtral"):
        theirs["sliding_window"] = config.window
    if kind in ("qwen2", "qwen3"):
        # max_window_layers: the layers below it read everything.
        windowed = config.window is not None
        theirs |= {"use_sliding_window": windowed, "sliding_window": config.window, "max_window_layers": 0}
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
    config = llama_config(read_config(folder))
    with torch.device("meta"):
        model = Llama(config)
    table = llama_table(config)
    # Old checkpoints hold RoPE's frequencies. Tied ones may hold the table a second time, as the head.
    spare = (".rotary_emb.inv_freq", "lm_head.weight") if config.tied else (".rotary_emb.inv_freq",)
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


def _window(config: Mapping[str, Any], kind: str, n_layers: int) -> int | None:
    """How far back all layers look; some far and some near is refused."""
    if kind == "llama" or config.get("use_sliding_window") is False:
        mixed = set(config.get("layer_types") or ["full_attention"])
        if mixed != {"full_attention"}:
            raise _unknown("layer_types", config["layer_types"], 'only "full_attention", without a window')
        return None
    if kind in ("mistral", "mixtral"):
        if "sliding_window" not in config:  # transformers would take 4096 or none, by the version
            raise ValueError('config.json has no "sliding_window": say null if there is no window')
        return entry(config, "sliding_window", int, 0) or None
    window = entry(config, "sliding_window", int, 0) or None
    if window is None or not entry(config, "use_sliding_window", bool, False):
        return None
    first = entry(config, "max_window_layers", int)
    derived = ["sliding_attention" if i >= first else "full_attention" for i in range(n_layers)]
    layers = set(config.get("layer_types") or derived)
    if layers == {"full_attention"}:
        return None
    if layers != {"sliding_attention"}:
        raise _unknown("layer_types", config.get("layer_types") or derived, "the same window in all layers")
    return window


def _rope(config: Mapping[str, Any], kind: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from the entries of before 2025 (rope_theta, rope_scaling) or since (rope_parameters)."""
    key = "rope_scaling" if config.get("rope_parameters") is None else "rope_parameters"
    rope = dict(config.get(key) or {})
    said = {"rope_theta": rope.pop("rope_theta")} if "rope_theta" in rope else config
    # The first Llama's config had no word for it either.
    base = entry(said, "rope_theta", float, 10_000.0 if kind == "llama" else None)
    name = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    context = entry(config, "max_position_embeddings", int)

    scaling: RopeScaling | None = None
    if name == "linear":
        scaling = LinearScaling(_take(rope, "factor", float))
    elif name == "llama3":
        scaling = Llama3Scaling(
            _take(rope, "factor", float),
            _take(rope, "low_freq_factor", float),
            _take(rope, "high_freq_factor", float),
            _take(rope, "original_max_position_embeddings", int),
        )
    elif name == "yarn":
        scaling = YarnScaling(
            _take(rope, "factor", float),
            _take(rope, "original_max_position_embeddings", int, context),
            fast=_take(rope, "beta_fast", float, 32.0),
            slow=_take(rope, "beta_slow", float, 1.0),
            attention_factor=_take(rope, "attention_factor", float, 0.0) or None,
        )
    elif name != "default":
        raise _unknown(key, config[key], "default, linear, llama3 and yarn")
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    if any(value is not None for value in rope.values()):
        raise _unknown(key, config[key], f"{name} without {', '.join(rope)}")
    return base, scaling


def _rope_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
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
    raise ValueError(f"no config.json can say {scaling}: only LinearScaling, Llama3Scaling and YarnScaling")


def _take(rope: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = entry(rope, key, kind, default)
    rope.pop(key, None)
    return value


def _unknown(key: str, value: object, does: str) -> ValueError:
    return ValueError(f'config.json says "{key}": {value}, but this model only does {does}')
