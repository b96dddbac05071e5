"""The published weights of Llama and its relatives in `Llama`, and back.

    folder = "..."               # config.json and model.safetensors (one or several), as published
    model = load_llama(folder)
    save_llama(model, "copy")    # a folder that transformers reads

Which relative it is stands in config.json as "model_type": llama (SmolLM2 too), mistral, mixtral, qwen2, qwen3,
qwen3_moe, phi3 or gemma. What such a file asks for and `Llama` does not do is refused, by key and value: a rotation or
a window that is left out would not fail, it would answer a little worse. What it does not say is what transformers
takes for nothing said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_core.layers.positions import DynamicScaling
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.files import check_config, entry, naming, obeyed, read_config, read_shapes, read_weights, write
from llm_core.pretrained.names import (
    ACTIVATIONS,
    Line,
    activation_name,
    check_shapes,
    check_tied,
    load,
    same,
    to_ours,
    to_theirs,
)
from llm_core.pretrained.rope import ROPE_ENTRIES, phi_rope_json, read_rope, rope_json

_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
}
_READ = {*_SIZES, *ROPE_ENTRIES, "head_dim", "hidden_act", "rms_norm_eps", "tie_word_embeddings"}
# What transformers takes for an entry that is not there: Llama's class, and below where its relatives' differ.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": 4096,
}


@dataclass(frozen=True)
class _Relative:
    """A model class of transformers: its name, what its config.json says beyond what all say, and its own defaults."""

    name: str
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)


_MISTRAL = {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8}
_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32}
_ROUTER = {"output_router_logits", "router_aux_loss_coef"}  # of a mixture's training
_LAYER_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
# The same number under two names: transformers 5 writes the first, published files have the second.
_N_EXPERTS = ("num_local_experts", "num_experts")
_RELATIVES = {
    "llama": _Relative(
        "LlamaForCausalLM", frozenset({"attention_bias", "mlp_bias", "pretraining_tp", "is_llama_config"})
    ),
    "mistral": _Relative("MistralForCausalLM", frozenset({"sliding_window"}), _MISTRAL),
    "mixtral": _Relative(
        "MixtralForCausalLM",
        frozenset({"sliding_window", "num_local_experts", "num_experts_per_tok", *_ROUTER}),
        {
            **_MISTRAL,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen2": _Relative("Qwen2ForCausalLM", frozenset(_LAYER_WINDOWS), _QWEN),
    "qwen3": _Relative("Qwen3ForCausalLM", frozenset({"attention_bias", *_LAYER_WINDOWS}), {**_QWEN, "head_dim": 128}),
    "qwen3_moe": _Relative(
        "Qwen3MoeForCausalLM",
        # Its class has windows in all layers or in none, whatever max_window_layers says.
        frozenset(
            {"attention_bias", "sliding_window", "use_sliding_window", "max_window_layers", *_ROUTER, *_N_EXPERTS}
        )
        | {"num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers"},
        {
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    ),
    "phi3": _Relative(
        "Phi3ForCausalLM",
        frozenset({"sliding_window", "resid_pdrop", "embd_pdrop"}),
        {
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
    ),
    "gemma": _Relative(
        "GemmaForCausalLM",
        frozenset({"attention_bias", "hidden_activation", "use_bidirectional_attention"}),
        {
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
    ),
}
# Those whose numbers of heads and widths cannot be left to the model, by null.
_NO_NULL = {"num_key_value_heads": ("qwen3_moe", "gemma"), "head_dim": ("qwen2", "qwen3", "qwen3_moe", "phi3", "gemma")}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LAYERS = (_FULL, _SLIDING)
# What Llama does in one way only.
_FIXED = {
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "use_mrope": False,
    "router_jitter_noise": 0.0,
}


def llama_table(config: LlamaConfig, *, joined: bool = False) -> list[Line]:
    """The published names of the weights, and ours.

    Args:
        config: the model's.
        joined: whether query, key and value are one matrix there, and gate and up another: Phi-3's are.
    """
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
        table += _attention_lines(config, f"{new}.attention", f"{old}.self_attn", joined)
        if i in config.expert_layers:
            table += _mixture_lines(config, f"{new}.feed_forward", old)
        else:
            table += _feed_forward_lines(config, f"{new}.feed_forward", f"{old}.mlp", joined)
    return table


def _attention_lines(config: LlamaConfig, new: str, old: str, joined: bool) -> list[Line]:
    table: list[Line] = []
    projections = [("output", "o_proj", config.output_bias)]
    if joined:
        widths = [heads * config.head_width for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
        table.append(
            _stacked([f"{new}.{name}.weight" for name in ("query", "key", "value")], f"{old}.qkv_proj", widths)
        )
    else:
        projections[:0] = [(name, f"{name[0]}_proj", config.qkv_bias) for name in ("query", "key", "value")]
    for ours, theirs, bias in projections:
        table += [same(f"{new}.{ours}.{kind}", f"{old}.{theirs}.{kind}") for kind in _kinds(bias)]
    if config.qk_norm:
        table += [same(f"{new}.{name}_norm.weight", f"{old}.{name[0]}_norm.weight") for name in ("query", "key")]
    return table


def _feed_forward_lines(config: LlamaConfig, new: str, old: str, joined: bool) -> list[Line]:
    if joined:
        gate_up = _stacked([f"{new}.gate.weight", f"{new}.up.weight"], f"{old}.gate_up_proj", [config.d_ff] * 2)
        return [gate_up, same(f"{new}.down.weight", f"{old}.down_proj.weight")]
    return [
        same(f"{new}.{name}.{kind}", f"{old}.{name}_proj.{kind}")
        for name in ("gate", "up", "down")
        for kind in _kinds(config.mlp_bias)
    ]


def _mixture_lines(config: LlamaConfig, new: str, old: str) -> list[Line]:
    """Qwen3's norm of queries tells its names from Mixtral's."""
    part, names = ("mlp", ("gate_proj", "up_proj", "down_proj"))
    if not config.qk_norm:
        part, names = ("block_sparse_moe", ("w1", "w3", "w2"))
    return [same(f"{new}.router.weight", f"{old}.{part}.gate.weight")] + [
        same(f"{new}.experts.{e}.{ours}.weight", f"{old}.{part}.experts.{e}.{theirs}.weight")
        for e in range(config.n_experts or 0)
        for ours, theirs in zip(("gate", "up", "down"), names, strict=True)
    ]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _stacked(ours: Sequence[str], theirs: str, rows: Sequence[int]) -> Line:
    """A matrix of theirs whose rows are those of several of ours, one below the other."""
    return Line(tuple(ours), f"{theirs}.weight", split=partial(_split_rows, rows=list(rows)), join=_join_rows)


def _split_rows(tensor: Tensor, rows: list[int]) -> Sequence[Tensor]:
    return tensor.split(rows)


def _join_rows(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """What a config.json says, as ours.

    Raises:
        ValueError: it asks for something that `Llama` does not do, by the key and value that ask for it.
    """
    kind = entry(config, "model_type", str)
    if kind not in _RELATIVES:
        raise ValueError(f'config.json says "model_type": "{kind}", but this model only does {", ".join(_RELATIVES)}')
    check_config(config, read=_READ | _RELATIVES[kind].reads, fixed=_fixed(kind))
    defaults = {**_DEFAULTS, **_RELATIVES[kind].defaults}
    sizes = {ours: obeyed(config, theirs, defaults[theirs]) for theirs, ours in _SIZES.items() if theirs in _DEFAULTS}
    n_kv_heads = _number(config, kind, "num_key_value_heads", defaults)
    d_head = _number(config, kind, "head_dim", defaults)
    if d_head is not None and d_head * sizes["n_heads"] == sizes["d_model"]:
        d_head = None  # said or not, a width of D / H is one config, not two
    width = sizes["d_model"] // max(sizes["n_heads"], 1) if d_head is None else d_head
    turning = read_rope(config, base=defaults["rope_theta"], context=sizes["context"], d_head=width, phi=kind == "phi3")
    if isinstance(turning.scaling, DynamicScaling):
        sizes["context"] = int(turning.scaling.original_context * turning.scaling.factor)
    window, full_layers = _windows(config, kind, defaults, sizes["n_layers"])
    if obeyed(config, "use_bidirectional_attention", False, null=True):
        raise _unknown("use_bidirectional_attention", True, "false: a token reads what stands before it")
    bias = obeyed(config, "attention_bias", False)
    others = {
        "activation": _activation(config, kind, defaults["hidden_act"]),
        "norm_eps": obeyed(config, "rms_norm_eps", defaults["rms_norm_eps"]),
        "tied": obeyed(config, "tie_word_embeddings", defaults["tie_word_embeddings"]),
        "mlp_bias": obeyed(config, "mlp_bias", False),
    }
    others |= _experts(config, kind, defaults, sizes)
    with naming(config, _named(kind)):
        return LlamaConfig(
            **sizes,
            **others,
            n_kv_heads=sizes["n_heads"] if n_kv_heads is None else n_kv_heads,
            d_head=d_head,
            rope_base=turning.base,
            rope_scaling=turning.scaling,
            rope_width=turning.width,
            norm_plus_one=kind == "gemma",
            scaled_embedding=kind == "gemma",
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            qk_norm=kind in ("qwen3", "qwen3_moe"),
            window=window,
            full_layers=full_layers,
        )


def llama_config_json(config: LlamaConfig) -> dict[str, Any]:
    """The config.json of a config of ours, in the form that the checkpoints of 2024 have and all versions read.

    Raises:
        ValueError: no published model has this combination, so no config.json can say it.
    """
    kind = _kind(config)
    theirs: dict[str, Any] = {"architectures": [_RELATIVES[kind].name], "model_type": kind}
    theirs |= {key: getattr(config, name) for key, name in _SIZES.items()}
    theirs |= {
        "head_dim": config.head_width,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": rope_json(config.rope_scaling),
        "tie_word_embeddings": config.tied,
    }
    if isinstance(config.rope_scaling, DynamicScaling):
        theirs["max_position_embeddings"] = config.rope_scaling.original_context
    theirs |= _of_its_own(config, kind)
    back = llama_config(theirs)
    differing = [name for name in vars(config) if getattr(back, name) != getattr(config, name)]
    # A width that is given and one that follows are the same.
    same_width = {"d_head": "head_width", "rope_width": "turned_width", "d_expert": "expert_width"}
    differing = [
        name
        for name in differing
        if name not in same_width or getattr(back, same_width[name]) != getattr(config, same_width[name])
    ]
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
    table = llama_table(config, joined=said["model_type"] == "phi3")
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
    table = llama_table(model.config, joined=config["model_type"] == "phi3")
    write(folder, config, to_theirs(table, model.state_dict()))


def _kind(config: LlamaConfig) -> str:
    """The relative that a config is most like."""
    if config.norm_plus_one or config.scaled_embedding:
        return "gemma"
    if config.n_experts is not None:
        return "qwen3_moe" if config.qk_norm else "mixtral"
    if config.qk_norm:
        return "qwen3"
    if config.qkv_bias and not config.output_bias:
        return "qwen2"
    if config.turned_width != config.head_width:
        return "phi3"
    return "llama" if config.window is None else "mistral"


def _of_its_own(config: LlamaConfig, kind: str) -> dict[str, Any]:
    """The entries of a config.json that only this relative has, or only some."""
    said: dict[str, Any] = {}
    if kind == "llama":
        said["mlp_bias"] = config.mlp_bias
    if "attention_bias" in _RELATIVES[kind].reads:
        said["attention_bias"] = config.output_bias
    if "sliding_window" in _RELATIVES[kind].reads:
        said["sliding_window"] = config.window
    if "use_sliding_window" in _RELATIVES[kind].reads:
        # max_window_layers: the layers below it read everything.
        said |= {"use_sliding_window": config.window is not None, "max_window_layers": 0}
    if "layer_types" in _RELATIVES[kind].reads and config.full_layers:
        said["layer_types"] = [_FULL if window is None else _SLIDING for window in config.windows]
    if kind == "phi3":
        said |= phi_rope_json(config.rope_scaling, config.turned_width, config.head_width)
        said["pad_token_id"] = None  # its class would take 32000, which need not be a token
    if kind == "mixtral":
        said["num_local_experts"] = config.n_experts
    if config.n_experts is not None:
        said["num_experts_per_tok"] = config.experts_per_token
    if kind == "qwen3_moe":
        said |= {
            "num_experts": config.n_experts,
            "norm_topk_prob": config.rescale_experts,
            "moe_intermediate_size": config.expert_width,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
        }
    return said


def _fixed(kind: str) -> dict[str, Any]:
    """What a relative's config.json may say in one way only, since `Llama` does it in no other."""
    fixed = _FIXED if kind == "llama" else {**_FIXED, "mlp_bias": False}
    return {**fixed, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if kind == "phi3" else fixed


def _named(kind: str) -> list[str]:
    """The entries that decide which weights there are, and how large, and those whose numbers may be out of range."""
    own = sorted(_RELATIVES[kind].reads)
    return [*_SIZES, "head_dim", "tie_word_embeddings", "rms_norm_eps", *ROPE_ENTRIES, *own]


def _number(config: Mapping[str, Any], kind: str, key: str, defaults: Mapping[str, Any]) -> int | None:
    """A whole number that may be left to the model; so it is if there is no default and the entry is absent."""
    if key not in config:
        return defaults.get(key)
    return obeyed(config, key, 0, null=kind not in _NO_NULL.get(key, ()))


def _activation(config: Mapping[str, Any], kind: str, default: str) -> str:
    """Our name of the activation. Gemma's first files say "gelu" where they mean the approximation by tanh."""
    names = {**ACTIVATIONS, "gelu": "gelu_tanh"} if kind == "gemma" else ACTIVATIONS
    ours = names.get(obeyed(config, "hidden_act", default))
    for key in ("hidden_act", "hidden_activation"):  # the second is what corrected files say besides
        said = config.get(key)
        if said is not None and (not isinstance(said, str) or names.get(said) != ours or ours is None):
            raise _unknown(key, said, f"one of {', '.join(names)}, and not two")
    return str(ours)


def _experts(
    config: Mapping[str, Any], kind: str, defaults: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """What is said about experts, as arguments of ours."""
    if kind not in ("mixtral", "qwen3_moe"):
        return {}
    per_token = obeyed(config, "num_experts_per_tok", defaults["num_experts_per_tok"])
    if kind == "mixtral":
        n_experts = obeyed(config, "num_local_experts", defaults["num_local_experts"])
        return {"n_experts": n_experts, "experts_per_token": per_token}
    several = {obeyed(config, key, 0) for key in _N_EXPERTS if key in config} or {defaults["num_experts"]}
    if len(several) > 1:
        raise _unknown("num_experts", config["num_experts"], f'what "num_local_experts" says, {several}')
    d_expert = obeyed(config, "moe_intermediate_size", defaults["moe_intermediate_size"])
    return {
        "n_experts": several.pop(),
        "experts_per_token": per_token,
        "d_expert": None if d_expert == sizes["d_ff"] else d_expert,
        "rescale_experts": obeyed(config, "norm_topk_prob", False),
        "dense_layers": _dense_layers(config, sizes["n_layers"]),
    }


def _dense_layers(config: Mapping[str, Any], n_layers: int) -> tuple[int, ...]:
    """The layers without experts: those that are named, and all but every n-th, where `decoder_sparse_step` is n."""
    step, named = obeyed(config, "decoder_sparse_step", 1), config.get("mlp_only_layers")
    named = [] if named is None else named
    if step < 1:
        raise _unknown("decoder_sparse_step", step, "every first, second, ... layer")
    if not isinstance(named, list) or any(type(layer) is not int for layer in named):
        raise _unknown("mlp_only_layers", named, "a list of numbers of layers")
    return tuple(i for i in range(n_layers) if i in named or (i + 1) % step)


def _windows(
    config: Mapping[str, Any], kind: str, defaults: Mapping[str, Any], n_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """How far back the layers look, and the numbers of those that look back to the beginning all the same."""
    reads = _RELATIVES[kind].reads
    if "sliding_window" not in reads:
        return None, ()
    window = _number(config, kind, "sliding_window", defaults)
    if "use_sliding_window" in reads and not obeyed(config, "use_sliding_window", False):
        window = None
    if "layer_types" not in reads:
        return window, ()
    first = obeyed(config, "max_window_layers", 28)
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


def _unknown(key: str, value: object, does: str) -> ValueError:
    return ValueError(f'config.json says "{key}": {value}, but this model only does {does}')
