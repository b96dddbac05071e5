"""T5's published weights in our `T5`, and back.

    model = load_t5(folder)                  # T5, T5 1.1, Flan-T5: a folder with config.json and safetensors
    save_t5(model, "copy", eos_id=1)         # a folder that transformers reads

The two have the same tensors under other names. What takes care is the config: three of its entries say one thing each
in more than one way (the activation, whether it is gated, whether the logits are scaled), later versions of the file
write out what earlier ones implied, and whether the head is tied only the weights say: the library transformers takes a
head of its own for one if it differs from the table, whatever the config says of it.

Decoding begins with the padding token and ends with `eos_token_id` (1, in all that were published).

Source: Raffel et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_core.models.t5 import T5, T5Config
from llm_core.pretrained.files import check_config, entry, read_config, read_shapes, read_weights, write
from llm_core.pretrained.names import Line, check_shapes, check_tied, load, same, to_ours, to_theirs

# Theirs: ours, its type, and what transformers takes where nothing is said.
_READ: dict[str, tuple[str, type, Any]] = {
    "vocab_size": ("vocab_size", int, 32128),
    "d_model": ("d_model", int, 512),
    "d_kv": ("d_head", int, 64),
    "d_ff": ("d_ff", int, 2048),
    "num_layers": ("n_layers", int, 6),
    "num_heads": ("n_heads", int, 8),
    "relative_attention_num_buckets": ("n_buckets", int, 32),
    "relative_attention_max_distance": ("max_distance", int, 128),
    "dropout_rate": ("dropout", float, 0.1),
    "layer_norm_epsilon": ("norm_eps", float, 1e-6),
    "pad_token_id": ("pad_id", int, 0),
}
_ALSO_READ = {
    "num_decoder_layers",
    "feed_forward_proj",
    "dense_act_fn",
    "is_gated_act",
    "tie_word_embeddings",
    "scale_decoder_outputs",
}
# Names that transformers takes for some of these. A value under one of them is refused as an entry that is not known.
_OTHER_NAMES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim")
_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}  # theirs: ours
# What T5 does in one way only.
_FIXED = {"model_type": "t5", "is_encoder_decoder": True, "is_decoder": False}
# How weights are drawn, other heads, how text is decoded, and a longest text that the model does not have.
_OF_NO_EFFECT = {
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "id2label",
    "initializer_factor",
    "label2id",
    "n_positions",
    "output_past",
    "problem_type",
}
_EMBEDDING, _HEAD = "shared.weight", "lm_head.weight"
# The table under its other names; and a bias that the first checkpoints hold and no model reads.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_PARTS = {"query": "q", "key": "k", "value": "v", "output": "o"}


def t5_table(config: T5Config) -> list[Line]:
    """T5's names and ours."""
    up = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    table = {"embedding.weight": _EMBEDDING}
    for stack, n_layers, attentions in (
        ("encoder", config.n_layers, {"attention": "SelfAttention"}),
        ("decoder", config.n_decoder_layers, {"attention": "SelfAttention", "cross_attention": "EncDecAttention"}),
    ):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        table |= {
            f"{stack}_positions.weight": f"{first}.weight",
            f"{stack}_norm.weight": f"{stack}.final_layer_norm.weight",
        }
        for i in range(n_layers):
            ours, theirs = f"{stack}.{i}", f"{stack}.block.{i}.layer"
            for place, (name, their_name) in enumerate(attentions.items()):
                table[f"{ours}.{name}_norm.weight"] = f"{theirs}.{place}.layer_norm.weight"
                for part, letter in _PARTS.items():
                    table[f"{ours}.{name}.{part}.weight"] = f"{theirs}.{place}.{their_name}.{letter}.weight"
            last = f"{theirs}.{len(attentions)}"
            table[f"{ours}.feed_forward_norm.weight"] = f"{last}.layer_norm.weight"
            for part, their_part in up.items():
                table[f"{ours}.feed_forward.{part}.weight"] = f"{last}.DenseReluDense.{their_part}.weight"
    if not config.tied:
        table["head.weight"] = _HEAD
    return [same(ours, theirs) for ours, theirs in table.items()]


def t5_config(config: Mapping[str, Any], *, tied: bool = True) -> T5Config:
    """What T5's config.json says, as ours. The one dropout is that of all places.

    Args:
        config: see `files.read_config`.
        tied: whether the head is the table of the tokens; only the weights say it.

    Raises:
        ValueError: it asks for something that `T5` does not do, by the key and value that ask for it.
    """
    check_config(config, read={*_READ, *_ALSO_READ, *_OF_NO_EFFECT}, fixed=_FIXED)
    for key in (*_READ, *_OTHER_NAMES, "feed_forward_proj", "dense_act_fn", "is_gated_act", "scale_decoder_outputs"):
        if key in config and config[key] is None:
            raise ValueError(f'config.json says "{key}": null, and this model needs to know: take the entry out')
    for key in ("is_encoder_decoder", "is_decoder"):
        entry(config, key, bool, _FIXED[key])  # 1 is not true there
    said = {ours: entry(config, theirs, kind, default) for theirs, (ours, kind, default) in _READ.items()}
    activation, gated = _feed_forward(config)
    scaled = entry(config, "tie_word_embeddings", bool, True)
    try:
        return T5Config(
            **said,
            n_decoder_layers=entry(config, "num_decoder_layers", int, said["n_layers"]),
            activation=activation,
            gated=gated,
            tied=tied,
            scaled_logits=entry(config, "scale_decoder_outputs", bool, scaled),
        )
    except ValueError as error:
        names = {ours: theirs for theirs, (ours, _, _) in _READ.items()} | {"n_decoder_layers": "num_decoder_layers"}
        meant = [f'"{theirs}"' for ours, theirs in names.items() if ours in str(error)]
        raise ValueError(f"config.json says something impossible of {', '.join(meant)}: {error}") from None


def load_t5(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> T5:
    """The model of a checkpoint, in eval mode. `dtype=None` keeps the numbers as they are stored.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `T5` does not do; or the weights
            are not those of the config.
    """
    said, shapes = read_config(folder), read_shapes(folder)
    t5_config(said)  # what is wrong with it is told before any weight is read
    weights = read_weights(folder)
    tied = _HEAD not in weights or _EMBEDDING not in weights or torch.equal(weights[_HEAD], weights[_EMBEDDING])
    config = t5_config(said, tied=tied)
    try:
        _check_layers(config, shapes)
        with torch.device("meta"):
            model = T5(config)
        table = t5_table(config)
        check_shapes(table, model, shapes, may_be_left=(*_COPIES, *_UNREAD, *((_HEAD,) if tied else ())))
    except (ValueError, RuntimeError, TypeError) as error:  # torch's, for sizes that no tensor has
        raise ValueError(f"{error}{_by_config(said)}") from None
    for copy in _COPIES:
        check_tied(weights, _EMBEDDING, copy)
    load(model, {name: _of_type(dtype, tensor) for name, tensor in to_ours(table, weights).items()})
    return model.eval()


def save_t5(model: T5, folder: Path | str, *, eos_id: int) -> None:
    """Write a checkpoint that transformers reads as a T5ForConditionalGeneration, which ends with `eos_id`.

    Raises:
        ValueError: eos_id is no token. Nothing is written then.
    """
    config = model.config
    if not 0 <= eos_id < config.vocab_size:
        raise ValueError(f"eos_id must be a token, 0 ... {config.vocab_size - 1}: got {eos_id}")
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    said: dict[str, Any] = {theirs: getattr(config, ours) for theirs, (ours, _, _) in _READ.items()}
    said |= {
        **_FIXED,
        "architectures": ["T5ForConditionalGeneration"],
        "num_decoder_layers": config.n_decoder_layers,
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
        "dense_act_fn": activation,
        "is_gated_act": config.gated,
        "scale_decoder_outputs": config.scaled_logits,
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.pad_id,
        "eos_token_id": eos_id,
    }
    write(folder, said, to_theirs(t5_table(config), model.state_dict()))


def _feed_forward(config: Mapping[str, Any]) -> tuple[str, bool]:
    """Our name of the activation, and whether it is gated. "gated-gelu" means the approximation by tanh."""
    told = entry(config, "feed_forward_proj", str, "relu")
    way, _, name = told.rpartition("-")
    if way not in ("", "gated"):
        raise ValueError(f'config.json says "feed_forward_proj": "{told}", but this model only does gated-... or none')
    if told == "gated-gelu":
        name = "gelu_new"
    activation = entry(config, "dense_act_fn", str, name)
    if activation not in _ACTIVATIONS:
        key = "dense_act_fn" if "dense_act_fn" in config else "feed_forward_proj"
        raise ValueError(
            f'config.json says "{key}": "{config[key]}", but this model only does {", ".join(_ACTIVATIONS)}'
        )
    return _ACTIVATIONS[activation], entry(config, "is_gated_act", bool, way == "gated")


def _check_layers(config: T5Config, shapes: Mapping[str, Any]) -> None:
    """Before a model of thousands of layers is built for weights that have six."""
    for stack, n_layers in (("encoder", config.n_layers), ("decoder", config.n_decoder_layers)):
        found = {name.split(".")[2] for name in shapes if name.startswith(f"{stack}.block.")}
        if len(found) != n_layers:
            raise ValueError(f"the weights have {len(found)} layers of the {stack}, the config says {n_layers}")


def _by_config(config: Mapping[str, Any]) -> str:
    """What the config says of the shapes, for a message about weights of another shape."""
    defaults = {key: default for key, (_, _, default) in _READ.items()} | {"feed_forward_proj": "relu"}
    defaults["num_decoder_layers"] = "as num_layers"
    said = [f'"{key}": {config.get(key, f"{default} (not said)")}' for key, default in defaults.items()]
    also = [f'"{key}": {config[key]}' for key in ("is_gated_act", "dense_act_fn") if key in config]
    return f". By its config.json: {', '.join([*said, *also])}"


def _of_type(dtype: torch.dtype | None, tensor: Tensor) -> Tensor:
    return tensor.to(dtype or tensor.dtype)
