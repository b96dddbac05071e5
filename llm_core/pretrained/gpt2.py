"""GPT-2's published weights in `GPT`, and back.

    folder = "..."               # config.json and model.safetensors, as published
    model = load_gpt2(folder)
    save_gpt2(model, "copy")     # a folder that transformers reads

Two things are stored differently there. The matrices are transposed, since GPT-2's first code wrote x @ W where we
write x @ W^T. And query, key and value are one matrix, three times as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_core.models.gpt import GPT, GPTConfig
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
    transposed,
)

_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_embd": "d_model",
}
# What transformers takes for an entry that is not there: the smallest of the four.
_DEFAULTS = {"vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# What GPT does in one way only.
_FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "tie_word_embeddings": True,
}
# Those of a head that sums a text up, which a language model has not; and a copy of n_positions.
_OF_NO_EFFECT = {
    "n_ctx",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
}
# The causal mask, which old checkpoints hold as a tensor of each layer.
_MASKS = (".attn.bias", ".attn.masked_bias")


def gpt2_table(config: GPTConfig, prefix: str = "transformer.") -> list[Line]:
    """GPT-2's names and ours. The published files leave the prefix out (""); transformers writes it."""
    table = [
        same("token_embedding.weight", f"{prefix}wte.weight"),
        same("positions.embedding.weight", f"{prefix}wpe.weight"),
        same("norm.weight", f"{prefix}ln_f.weight"),
        same("norm.bias", f"{prefix}ln_f.bias"),
    ]
    for i in range(config.n_layers):
        old, new = f"{prefix}h.{i}", f"blocks.{i}"
        for theirs, ours in (
            ("attn.c_proj", "attention.output"),
            ("mlp.c_fc", "feed_forward.up"),
            ("mlp.c_proj", "feed_forward.down"),
        ):
            table.append(transposed(f"{new}.{ours}.weight", f"{old}.{theirs}.weight"))
            table.append(same(f"{new}.{ours}.bias", f"{old}.{theirs}.bias"))
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "feed_forward_norm")):
            table += [same(f"{new}.{ours}.{kind}", f"{old}.{theirs}.{kind}") for kind in ("weight", "bias")]
        for kind in ("weight", "bias"):
            parts = tuple(f"{new}.attention.{name}.{kind}" for name in ("query", "key", "value"))
            table.append(Line(parts, f"{old}.attn.c_attn.{kind}", split=_split_three, join=_join_three))
    return table


def gpt2_config(config: Mapping[str, Any]) -> GPTConfig:
    """What GPT-2's config.json says, as ours.

    Raises:
        ValueError: it asks for something that `GPT` does not do, by the key and value that ask for it.
    """
    read = {*_SIZES, *_DROPOUTS, *_OF_NO_EFFECT, "n_inner", "activation_function"}
    check_config(config, read=read, fixed=_FIXED)
    entry(config, "model_type", str)
    sizes = {ours: obeyed(config, theirs, _DEFAULTS[theirs]) for theirs, ours in _SIZES.items()}
    d_ff = obeyed(config, "n_inner", 4 * sizes["d_model"], null=True)
    if d_ff == 4 * sizes["d_model"]:
        d_ff = None  # said or not, a width of 4 D is one config, not two
    activation = obeyed(config, "activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f'config.json says "activation_function": "{activation}", but this model only does {", ".join(ACTIVATIONS)}'
        )
    dropouts = [obeyed(config, key, 0.1) for key in _DROPOUTS]  # 0.1 is what transformers takes for nothing said
    if len(set(dropouts)) > 1:
        raise ValueError(f"config.json has several dropouts, {_DROPOUTS}, but this model has one: got {dropouts}")
    with naming(config, [*_SIZES, *_DROPOUTS, "n_inner"]):
        return GPTConfig(**sizes, dropout=dropouts[0], d_ff=d_ff, activation=ACTIVATIONS[activation])


def load_gpt2(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> GPT:
    """The model of a checkpoint, in eval mode. `dtype=None` keeps the numbers as they are stored.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `GPT` does not do; or the weights
            are not those of the config.
    """
    said = read_config(folder)
    config = gpt2_config(said)
    with torch.device("meta"):
        model = GPT(config)
    shapes = read_shapes(folder)
    table = gpt2_table(config, "transformer." if "transformer.wte.weight" in shapes else "")
    with naming(said, [*_SIZES, "n_inner"]):
        check_shapes(table, model, shapes, may_be_left=(*_MASKS, "lm_head.weight"))
    weights = read_weights(folder)
    check_tied(weights, table[0].theirs, "lm_head.weight")
    load(model, {name: tensor.to(dtype or tensor.dtype) for name, tensor in to_ours(table, weights).items()})
    return model.eval()


def save_gpt2(model: GPT, folder: Path | str) -> None:
    """Write a checkpoint that transformers reads as a GPT2LMHeadModel."""
    config = {theirs: getattr(model.config, ours) for theirs, ours in _SIZES.items()}
    config |= dict.fromkeys(_DROPOUTS, model.config.dropout)
    config |= {"n_inner": model.config.d_ff, "activation_function": activation_name(model.config.activation)}
    config |= {**_FIXED, "architectures": ["GPT2LMHeadModel"], "bos_token_id": None, "eos_token_id": None}
    write(folder, config, to_theirs(gpt2_table(model.config), model.state_dict()))


def _split_three(tensor: Tensor) -> list[Tensor]:
    """(D, 3D) -> three (D, D), transposed; (3D,) -> three (D,)."""
    return [part.T if part.ndim == 2 else part for part in tensor.chunk(3, dim=-1)]


def _join_three(tensors: Any) -> Tensor:
    return torch.cat([part.T if part.ndim == 2 else part for part in tensors], dim=-1)
