"""GGUF files, the format of llama.cpp: a model in one file, its weights in few bits, its tokenizer beside them.

    file = locate(SMOLLM2, ...)          # SmolLM2-135M-Instruct, 4 bits a weight and a little more
    model = load_gguf(file)              # a Llama, its weights as float32
    tokenizer = gguf_tokenizer(file)     # a BPETokenizer

Weights are stored in blocks of 32 with a scale for each block; the package gguf knows the formats of the blocks and
turns them into numbers. `gguf_weights` gives one tensor at a time, so that they can be quantised anew, or put away,
without ever being in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.files import return_memory
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.names import Line, Undrawn, check_shapes, load, load_each, same
from llm_core.pretrained.packages import SMOLLM2, MissingPackage, locate
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.pretokenize import DIGITS_THEN_GPT2, GPT2, Split

_SIZES = {
    "context_length": "context",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
}
# What a file may say about a Llama beyond that; anything else is refused.
_READ = {"vocab_size", "rope.freq_base", "rope.dimension_count", "attention.layer_norm_rms_epsilon"}
_READ |= {"attention.key_length", "attention.value_length"}
# Names of the ways to cut a text into pieces.
_SPLITS: dict[str, Split] = {"gpt-2": GPT2, "smollm": DIGITS_THEN_GPT2}
_CONTROL = 3  # the type of a token that is no text: the special ones


class Stored(NamedTuple):
    """Where a tensor lies in a file, and how: the blocks as numpy is to see them, and their kind, as gguf calls it."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    offset: int
    blocks: tuple[int, ...]
    dtype: Any


class GGUFFile(NamedTuple):
    """What a file holds: the metadata by their keys, and where the tensors lie. Their weights are not read yet."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[Stored]


def read_gguf(file: Path | str) -> GGUFFile:
    """The file, opened.

    Raises:
        MissingPackage: the package gguf is not installed.
        ValueError: there is no such file, or it is no whole GGUF file.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        reader = import_module("gguf").GGUFReader
    except ModuleNotFoundError:
        raise MissingPackage("GGUF files are read by the package gguf: run `pip install gguf==0.19.0`") from None
    status = file.stat()
    return _read(reader, file, status.st_size, status.st_mtime_ns)


# Most of the time goes into the tens of thousands of tokens and merges, seconds of it: the tokenizer and the weights of
# one file are had from one reading. The reader itself, which keeps 170 MB for them, is let go. Size and time are there
# to tell a file that was written anew.
@lru_cache(maxsize=1)
def _read(reader: Callable[[Path], Any], file: Path, size: int, time: int) -> GGUFFile:
    try:
        opened = reader(file)
        fields = {key: field for key, field in opened.fields.items() if not key.startswith("GGUF.")}
        # gguf gives the sizes from the fastest dimension on, the other way round than torch.
        tensors = [
            Stored(t.name, tuple(map(int, reversed(t.shape))), t.tensor_type, t.data_offset, t.data.shape, t.data.dtype)
            for t in opened.tensors
        ]
        return GGUFFile(file, {key: field.contents() for key, field in fields.items()}, tensors)
    except (ValueError, IndexError, KeyError, OverflowError) as error:  # what numpy says where bytes are missing
        raise ValueError(f"{file} is no whole GGUF file ({error}): download it again") from error


def gguf_metadata(file: Path | str) -> dict[str, Any]:
    """What a file says about its model: sizes, tokens, merges, the template of a chat."""
    return read_gguf(file).metadata


def gguf_config(metadata: dict[str, Any], *, tied: bool = True) -> LlamaConfig:
    """What the metadata say, as ours.

    Args:
        metadata: see `gguf_metadata`.
        tied: whether the file has no output head of its own; only the names of its tensors say it.

    Raises:
        ValueError: the model is no Llama, or does something that `Llama` does not do.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f'the file says "general.architecture": {architecture!r}, but this loader only reads "llama"')
    said = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    for key, value in said.items():
        if key not in _SIZES and key not in _READ:
            raise ValueError(
                f'the file says "llama.{key}": {value!r}, which this loader does not know: it may change what the '
                "model computes"
            )
    for key in (*_SIZES, "attention.layer_norm_rms_epsilon"):
        if key not in said:
            raise ValueError(f'the file has no "llama.{key}", without which the model cannot be built')
    for key in _SIZES:
        if type(said[key]) is not int or said[key] < 1:
            raise ValueError(
                f'the file says "llama.{key}": {said[key]}, but this model has one size for all layers, at least 1'
            )
    vocab_size = said.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    d_head = said.get("attention.key_length", said["embedding_length"] // said["attention.head_count"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, d_head) != d_head:
            raise ValueError(
                f'the file says "llama.{key}": {said[key]}, but this model only does all of d_head={d_head}'
            )
    return LlamaConfig(
        vocab_size=vocab_size,
        **{ours: said[theirs] for theirs, ours in _SIZES.items()},
        d_head=None if d_head * said["attention.head_count"] == said["embedding_length"] else d_head,
        rope_base=float(said.get("rope.freq_base", 10_000.0)),
        # Stored in 32 bits, in which 1e-5 is 0.0000099999997: as many digits as they hold.
        norm_eps=float(f"{said['attention.layer_norm_rms_epsilon']:.7g}"),
        tied=tied,
    )


def gguf_table(config: LlamaConfig) -> list[Line]:
    """The names in the file, and ours."""
    table = [same("token_embedding.weight", "token_embd.weight"), same("norm.weight", "output_norm.weight")]
    if not config.tied:
        table.append(same("head.weight", "output.weight"))
    for i in range(config.n_layers):
        new, old = f"blocks.{i}", f"blk.{i}"
        for ours, theirs in (
            ("attention_norm", "attn_norm"),
            ("attention.value", "attn_v"),
            ("attention.output", "attn_output"),
            ("feed_forward_norm", "ffn_norm"),
            ("feed_forward.gate", "ffn_gate"),
            ("feed_forward.up", "ffn_up"),
            ("feed_forward.down", "ffn_down"),
        ):
            table.append(same(f"{new}.{ours}.weight", f"{old}.{theirs}.weight"))
        table.append(_reordered(f"{new}.attention.query.weight", f"{old}.attn_q.weight", config.n_heads))
        table.append(_reordered(f"{new}.attention.key.weight", f"{old}.attn_k.weight", config.n_kv_heads))
    return table


def gguf_weights(file: Path | str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model one after the other, each read when it is its turn: our name and the tensor, as float32.

    Raises:
        ValueError: see `load_gguf`. Raised by the call itself, before any weight is read.
    """
    opened = read_gguf(file)
    return _weights(opened, gguf_table(_model(opened).config))


def load_gguf(file: Path | str, *, convert: Callable[[nn.Module], nn.Module] | None = None) -> Llama:
    """The model of a GGUF file, in eval mode, its weights as float32.

    Args:
        file: the file.
        convert: called with each layer as soon as it has its weights, for what is to stand in its place:
            `compression.quantize.to_8bit`, for one. So the model is never in memory as a whole in full precision.

    Raises:
        MissingPackage: the package gguf is not installed.
        ValueError: it is no whole GGUF file; or its model does something that `Llama` does not do.
    """
    opened = read_gguf(file)
    model = _model(opened)
    weights = _weights(opened, gguf_table(model.config))
    if convert is None:
        load(model, dict(weights))
    else:
        load_each(model, weights, convert)
        return_memory()
    return model.eval()


def gguf_tokenizer(file: Path | str) -> BPETokenizer:
    """The tokenizer of a GGUF file; it knows the control tokens, such as those of a chat, as special tokens.

    Raises:
        ValueError: it is no byte-pair tokenizer, or cuts texts in a way that this loader does not know.
    """
    metadata = gguf_metadata(file)
    kind, split = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or split not in _SPLITS:
        raise ValueError(
            f'the file says "tokenizer.ggml.model": {kind!r} and "tokenizer.ggml.pre": {split!r}, but this loader only '
            f'reads "gpt2", with {", ".join(_SPLITS)}'
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    pairs = (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])
    return BPETokenizer(
        {token: i for i, token in enumerate(tokens)},
        [(first, second) for first, second in pairs],
        split=_SPLITS[split],
        special_tokens=[token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL],
    )


def find_smollm2() -> Path:
    """Where the file of SmolLM2-135M-Instruct lies (Allal et al. 2025; Apache 2.0).

    Raises:
        MissingPackage: its package is not installed.
    """
    return locate(SMOLLM2, next(iter(SMOLLM2.sha256)))


def load_smollm2(*, convert: Callable[[nn.Module], nn.Module] | None = None) -> Llama:
    """SmolLM2-135M-Instruct: 135M parameters, 540 MB as float32; see `find_smollm2` and `load_gguf`."""
    return load_gguf(find_smollm2(), convert=convert)


def smollm2_tokenizer() -> BPETokenizer:
    """SmolLM2's tokenizer: 49152 tokens, of which 17 are special; see `find_smollm2`."""
    return gguf_tokenizer(find_smollm2())


def _reordered(ours: str, theirs: str, n_heads: int) -> Line:
    """Queries and keys, whose rows are stored in another order.

    RoPE turns pairs of rows. llama.cpp pairs neighbours, (0, 1), (2, 3) ..., as the paper does, and its converter
    reorders the rows of each head for that. `Llama` pairs row i with row i + E/2 (`rotate_halves`), as the published
    weights do, so the order is undone: within a head, first all the even rows, then all the odd ones.
    """

    def undo(tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)]

    def redo(tensors: Any) -> Tensor:
        return tensors[0].unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    return Line((ours,), theirs, split=undo, join=redo)


def _model(opened: GGUFFile) -> Llama:
    """The model of a file, on the meta device. The file has been held to it, name by name and shape by shape."""
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    config = gguf_config(opened.metadata, tied="output.weight" not in shapes)
    with torch.device("meta"), Undrawn():
        model = Llama(config)
    check_shapes(gguf_table(config), model, shapes)
    return model


def _weights(opened: GGUFFile, table: list[Line]) -> Iterator[tuple[str, Float[Tensor, " ..."]]]:
    dequantize = import_module("gguf.quants").dequantize
    lines = {line.theirs: line for line in table}
    content = np.memmap(opened.path, mode="r")  # only what is asked for is read, and all is let go at the end
    for stored in opened.tensors:
        blocks = np.ndarray(stored.blocks, stored.dtype, content, stored.offset)
        numbers = dequantize(blocks, stored.kind)
        # What was stored as float32 comes as a read-only view of the file, and a weight must be one's own.
        tensor = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        yield from zip(lines[stored.name].ours, lines[stored.name].split(tensor), strict=True)
