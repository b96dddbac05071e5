"""Marian's published translators (opus-mt) in our `EncoderDecoder`, and back.

Marian is the 2017 Transformer with biases in its attention, a bias on its logits, and mostly swish for ReLU: all of
them options of our config. One difference is no option. Its table of positions has the same numbers in another order:

    ours     sin 0, cos 0, sin 1, cos 1, ...      as in the paper
    theirs   sin 0, sin 1, ..., cos 0, cos 1, ...

The residual stream has no order of its own: norms take means over its columns, residuals add column to column, and all
else reads or writes it through a matrix. So the same permutation of the columns, made in every matrix, bias and norm
that touches the stream, changes nothing of what comes out. The name table does that on the way: our column 2i is their
column i, our column 2i + 1 their column D/2 + i.

Decoding begins with the id that config.json calls `decoder_start_token_id` (the padding token, in all that were
published) and ends with `eos_token_id`. In between, padding must not come: the files forbid it, as `bad_words_ids`.

    beam_search(model.given(source), begin, 64, n_beams=4, adjust=Forbid(forbidden_ids(folder)), stop_id=...)

Source: Junczys-Dowmunt et al. 2018 (Marian); Vaswani et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
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

_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "encoder_layers": "n_layers",
    "encoder_attention_heads": "n_heads",
    "d_model": "d_model",
    "encoder_ffn_dim": "d_ff",
    "pad_token_id": "pad_id",
}
# What transformers takes for an entry that is not there.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 58101,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "d_model": 1024,
    "encoder_ffn_dim": 4096,
    "pad_token_id": 58100,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
}
# Ours has one size for both stacks, theirs says it of each. The last two are the first's unless they are said.
_TWICE = {
    "decoder_layers": "encoder_layers",
    "decoder_attention_heads": "encoder_attention_heads",
    "decoder_ffn_dim": "encoder_ffn_dim",
    "num_hidden_layers": "encoder_layers",
    "decoder_vocab_size": "vocab_size",
}
# What EncoderDecoder does in one way only.
_FIXED = {
    "model_type": "marian",
    "is_encoder_decoder": True,
    "is_decoder": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "static_position_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
}
# Dropout in other places, how text is decoded, and what Marian shares with other models but does not read.
_OF_NO_EFFECT = {
    "_num_labels",
    "activation_dropout",
    "add_bias_logits",
    "attention_dropout",
    "bad_words_ids",  # see `files.forbidden_ids`
    "classif_dropout",
    "classifier_dropout",
    "decoder_layerdrop",
    "decoder_start_token_id",
    "encoder_layerdrop",
    "extra_pos_embeddings",
    "force_bos_token_to_be_generated",
    "forced_eos_token_id",
    "id2label",
    "init_std",
    "label2id",
    "max_length",
    "num_beams",
}
# The tied table under its other names, and the sines and cosines, which are computed.
_TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_POSITIONS = ("embed_positions.weight",)


def marian_table(config: EncoderDecoderConfig) -> list[Line]:
    """Marian's names and ours, and for each tensor which of its dimensions are the stream's columns."""
    table = [
        _stream("embedding.weight", "model.shared.weight", dim=1),
        Line(("logit_bias",), "final_logits_bias", split=_without_batch, join=_with_batch),
    ]
    for stack, attentions in (
        ("encoder", {"attention": "self_attn"}),
        ("decoder", {"attention": "self_attn", "cross_attention": "encoder_attn"}),
    ):
        for i in range(config.n_layers):
            new, old = f"{stack}.{i}", f"model.{stack}.layers.{i}"
            for ours, theirs in attentions.items():
                for part in ("query", "key", "value"):
                    table += _reads(f"{new}.{ours}.{part}", f"{old}.{theirs}.{part[0]}_proj")
                table += _writes(f"{new}.{ours}.output", f"{old}.{theirs}.out_proj")
                table += _writes(f"{new}.{ours}_norm", f"{old}.{theirs}_layer_norm")
            table += _reads(f"{new}.feed_forward.up", f"{old}.fc1")
            table += _writes(f"{new}.feed_forward.down", f"{old}.fc2")
            table += _writes(f"{new}.feed_forward_norm", f"{old}.final_layer_norm")
    return table


def marian_config(config: Mapping[str, Any]) -> EncoderDecoderConfig:
    """What Marian's config.json says, as ours.

    Raises:
        ValueError: it asks for something that `EncoderDecoder` does not do, by the key and value that ask for it.
    """
    read = {*_SIZES, *_TWICE, *_OF_NO_EFFECT, "activation_function", "dropout", "scale_embedding"}
    check_config(config, read=read, fixed=_FIXED)
    entry(config, "model_type", str)
    sizes = {ours: obeyed(config, theirs, _DEFAULTS[theirs]) for theirs, ours in _SIZES.items()}
    for second, first in _TWICE.items():
        size = sizes[_SIZES[first]]
        other = obeyed(config, second, _DEFAULTS.get(second, size), null=second == "decoder_vocab_size")
        if other not in (None, size):
            raise ValueError(
                f'config.json says "{first}": {size} and "{second}": {other} (perhaps by saying nothing), but this '
                "model has one size for both"
            )
    activation = obeyed(config, "activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f'config.json says "activation_function": "{activation}", but this model only does {", ".join(ACTIVATIONS)}'
        )
    with naming(config, [*_SIZES, "dropout"]):
        return EncoderDecoderConfig(
            **sizes,
            dropout=obeyed(config, "dropout", 0.1),
            activation=ACTIVATIONS[activation],
            scaled_embedding=obeyed(config, "scale_embedding", False),
            attention_bias=True,
            logit_bias=True,
        )


def load_marian(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> EncoderDecoder:
    """The translator of a checkpoint, in eval mode. `dtype=None` keeps the numbers as they are stored.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `EncoderDecoder` does not do; or the
            weights are not those of the config.
    """
    said = read_config(folder)
    config = marian_config(said)
    with torch.device("meta"):
        model = EncoderDecoder(config)
    table = marian_table(config)
    with naming(said, [*_SIZES, *_TWICE]):
        check_shapes(table, model, read_shapes(folder), may_be_left=(*_TIED, *_POSITIONS))
    weights = read_weights(folder)
    for copy in _TIED:
        check_tied(weights, table[0].theirs, copy)
    load(model, {name: tensor.to(dtype or tensor.dtype) for name, tensor in to_ours(table, weights).items()})
    return model.eval()


def save_marian(model: EncoderDecoder, folder: Path | str, *, eos_id: int) -> None:
    """Write a checkpoint that transformers reads as a MarianMTModel, which begins with padding and ends with `eos_id`.

    Raises:
        ValueError: the model lacks the biases that Marian has, or eos_id is no token. Nothing is written then.
    """
    config = model.config
    if not (config.attention_bias and config.logit_bias):
        raise ValueError(
            "Marian has biases in its attention and on its logits: got a model with "
            f"attention_bias={config.attention_bias}, logit_bias={config.logit_bias}"
        )
    if not 0 <= eos_id < config.vocab_size:
        raise ValueError(f"eos_id must be a token, 0 ... {config.vocab_size - 1}: got {eos_id}")
    said: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
    said |= {second: said[first] for second, first in _TWICE.items()}
    said |= {
        **_FIXED,
        "architectures": ["MarianMTModel"],
        "activation_function": activation_name(config.activation),
        "scale_embedding": config.scaled_embedding,
        "dropout": config.dropout,
        "decoder_start_token_id": config.pad_id,
        "eos_token_id": eos_id,
        "forced_eos_token_id": None,
    }
    write(folder, said, to_theirs(marian_table(config), model.state_dict()))


def _reads(ours: str, theirs: str) -> list[Line]:
    """A layer that reads the stream: its columns are the stream's. The bias is added to what it read."""
    return [_stream(f"{ours}.weight", f"{theirs}.weight", dim=1), same(f"{ours}.bias", f"{theirs}.bias")]


def _writes(ours: str, theirs: str) -> list[Line]:
    """A layer that writes the stream, or a norm: its rows are the stream's, and its bias is added to it."""
    return [_stream(f"{ours}.{kind}", f"{theirs}.{kind}", dim=0) for kind in ("weight", "bias")]


def _stream(ours: str, theirs: str, *, dim: int) -> Line:
    """The same tensor under two names, with the stream's columns, dimension `dim`, in another order."""
    return Line(
        (ours,), theirs, split=lambda tensor: [_in_turn(tensor, dim)], join=lambda tensors: _in_halves(tensors[0], dim)
    )


def _in_turn(tensor: Tensor, dim: int) -> Tensor:
    """Sines and cosines in turn, from sines in the first half and cosines in the second."""
    half = tensor.shape[dim] // 2
    return tensor.unflatten(dim, (2, half)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _in_halves(tensor: Tensor, dim: int) -> Tensor:
    """The way back."""
    half = tensor.shape[dim] // 2
    return tensor.unflatten(dim, (half, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _without_batch(tensor: Tensor) -> list[Tensor]:
    """(1, V) -> (V,)."""
    return [tensor.squeeze(0)]


def _with_batch(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0)
