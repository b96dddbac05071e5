"""A model of ours as a GGUF file, which llama.cpp and what stands on it can run, and `load_gguf` reads back.

    save_gguf("mine.gguf", model, tokenizer, end="<|endoftext|>")

Matrices are stored in 8 bits by default, as Q8_0: blocks of 32 numbers, each a whole number of -127 to 127, with one
scale a block in 16 bits. That is 8.5 bits a weight, and no weight moves by more than half a step of its block.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from llm_core.files import replacing
from llm_core.models.llama import Llama
from llm_core.pretrained.gguf import SPLITS, TokenKind, gguf_config, gguf_table
from llm_core.pretrained.names import to_theirs
from llm_core.pretrained.packages import MissingPackage
from llm_core.text.bpe_fast import BPETokenizer

KINDS = ("Q8_0", "F16", "F32")
BLOCK = 32  # numbers that share a scale


def save_gguf(
    file: str | Path,
    model: Llama,
    tokenizer: BPETokenizer,
    *,
    end: str | None = None,
    name: str | None = None,
    kind: str = "Q8_0",
) -> Path:
    """Write a model and its tokenizer into one file; returns its path.

    A file of that name is replaced when the new one is whole.

    Args:
        file: commonly ends in .gguf.
        model: a Llama without the parts that only its relatives have.
        tokenizer: the one that it was trained with.
        end: the special token that ends a text.
        name: what the model is called; the file's name unless given.
        kind: of the matrices' numbers: Q8_0 (8 bits), F16 or F32. Vectors stay F32.

    Raises:
        MissingPackage: the package gguf is not installed.
        ValueError: the model or the tokenizer does something that such a file does not say, or sizes do not fit.
        NotWritten: the file cannot be written.
    """
    file = Path(file)
    gguf = _library()
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}: got {kind!r}")
    said = _metadata(model, tokenizer, end)
    tensors = to_theirs(gguf_table(model.config), dict(model.state_dict()))
    narrow = [key for key, tensor in tensors.items() if tensor.ndim > 1 and tensor.shape[-1] % BLOCK]
    if kind == "Q8_0" and narrow:
        raise ValueError(
            f"Q8_0 stores blocks of {BLOCK} numbers, and the rows of {narrow[0]} have {tensors[narrow[0]].shape[-1]}: "
            "take kind='F16'"
        )
    with replacing(file) as part:
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_name(name or file.stem)
        _add(writer, said)
        for key, tensor in tensors.items():
            numbers = tensor.float().numpy()
            stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
            writer.add_tensor(key, gguf.quants.quantize(numbers, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


def _metadata(model: nn.Module, tokenizer: BPETokenizer, end: str | None) -> dict[str, Any]:
    """What the file will say of the model and of its tokenizer; what reads it would build the same two."""
    if not isinstance(model, Llama):
        raise ValueError(f"a GGUF file of this kind holds a Llama: got {type(model).__name__}")
    config = model.config
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"the model knows {config.vocab_size} tokens and the tokenizer {tokenizer.vocab_size}: give the tokenizer "
            "that it was trained with"
        )
    split = next((known for known, split in SPLITS.items() if split == tokenizer.split), None)
    changes = tokenizer.normaliser or tokenizer.characters or tokenizer.ignore_merges or tokenizer.decoder
    if split is None or changes:
        raise ValueError(
            f"the tokenizer cuts or changes texts in a way that no name of a GGUF file stands for here: "
            f"{', '.join(SPLITS)} are the names, for byte-pair encoding of bytes"
        )
    if end is not None and end not in tokenizer.special_tokens:
        special = ", ".join(tokenizer.special_tokens) or "none"
        raise ValueError(f"end={end!r} is no special token of the tokenizer, which has {special}")
    said: dict[str, Any] = {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.context,
        "llama.block_count": config.n_layers,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.embedding_length": config.d_model,
        "llama.feed_forward_length": config.d_ff,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.freq_base": float(config.rope_base),
        "llama.rope.dimension_count": config.head_width,
        "llama.attention.key_length": config.head_width,
        "llama.attention.value_length": config.head_width,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": [tokenizer.vocabulary[id_] for id_ in range(tokenizer.vocab_size)],
        "tokenizer.ggml.token_type": [_kind(tokenizer, id_) for id_ in range(tokenizer.vocab_size)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges],
    }
    if end is not None:
        said["tokenizer.ggml.eos_token_id"] = tokenizer.special_tokens[end]
    again = gguf_config({"general.architecture": "llama", **said}, tied=config.tied)
    for key, value in vars(config).items():
        if key != "d_head" and vars(again)[key] != value:  # the head's width is said in any case
            raise ValueError(
                f"a GGUF file of a Llama does not say {key}={value!r}: what reads it would take {vars(again)[key]!r}"
            )
    return said


def _kind(tokenizer: BPETokenizer, id_: int) -> int:
    token = tokenizer.vocabulary[id_]
    if token in tokenizer.special_tokens:
        return TokenKind.CONTROL
    return TokenKind.USER_DEFINED if token in tokenizer.added_tokens else TokenKind.NORMAL


def _add(writer: Any, said: dict[str, Any]) -> None:
    """Each entry in the type that the format has for it."""
    for key, value in said.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _library() -> Any:
    try:
        import_module("gguf.quants")
        return import_module("gguf")
    except ImportError:
        raise MissingPackage("the package gguf is not installed, and it writes the file: pip install gguf") from None
