"""GGUF files, the format of llama.cpp: a model in one file, its weights in few bits, its tokenizer beside them.

    file = locate(SMOLLM2, ...)          # SmolLM2-135M-Instruct, 4 bits a weight and a little more
    model = load_gguf(file)              # a Llama, its weights as float32
    tokenizer = gguf_tokenizer(file)     # a BPETokenizer

Weights are stored in blocks of 32 with a scale for each block; the package gguf knows the formats of the blocks and
turns them into numbers. `gguf_weights` gives one tensor at a time, so that they can be quantised anew, or put away,
without ever being in memory together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.files import return_memory
from llm_core.layers.positions import LinearScaling, YarnScaling
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.names import Line, Undrawn, check_shapes, load, load_each, same
from llm_core.pretrained.packages import SMOLLM2, MissingPackage, locate
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.framing import Framing, text_template
from llm_core.text.pretokenize import DIGITS_THEN_GPT2, GPT2, Split

_SIZES = {
    "context_length": "context",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
}
_LONGEST = 2**24  # positions, for which the tables of sines take some GB
# What a file may say about a Llama beyond that; anything else is refused.
_READ = {"vocab_size", "rope.freq_base", "rope.dimension_count", "attention.layer_norm_rms_epsilon"}
_READ |= {"attention.key_length", "attention.value_length", "expert_count", "expert_used_count"}
_READ |= {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
_READ |= {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
# Names of the ways to cut a text into pieces.
SPLITS: dict[str, Split] = {"gpt-2": GPT2, "smollm": DIGITS_THEN_GPT2}
# What a file may say about its tokenizer: what is read, what must be off, and what changes no ids.
_TOKENIZER_READ = {"model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_eos_token"}
_TOKENIZER_OFF = {"add_sep_token", "add_space_prefix"}
_TOKENIZER_NOTES = {"scores", "token_type_count"}


class TokenKind(IntEnum):
    """What a file says about each token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


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


def _bounded(reader: Any) -> Any:
    """gguf's reader, which reads on behind the end of a file: an array of 10^12 numbers would keep it busy for days."""

    class Bounded(reader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError(f"it ends after {len(self.data)} bytes, in the middle of something")
            return super()._get(offset, dtype, count, override_order)

    return Bounded


# Most of the time goes into the tens of thousands of tokens and merges, seconds of it: the tokenizer and the weights of
# one file are had from one reading. The reader itself, which keeps 170 MB for them, is let go. Size and time are there
# to tell a file that was written anew.
@lru_cache(maxsize=1)
def _read(reader: Callable[[Path], Any], file: Path, size: int, time: int) -> GGUFFile:
    try:
        with np.errstate(over="ignore"):  # of offsets that are none: `_check_places` finds them
            opened = _bounded(reader)(file)
        fields = {key: field for key, field in opened.fields.items() if not key.startswith("GGUF.")}
        metadata = {key: field.contents() for key, field in fields.items()}
        # gguf gives the sizes from the fastest dimension on, the other way round than torch.
        tensors = [
            Stored(t.name, tuple(map(int, reversed(t.shape))), t.tensor_type, t.data_offset, t.data.shape, t.data.dtype)
            for t in opened.tensors
        ]
        _check_places(opened)
        return GGUFFile(file, metadata, tensors)
    except (ValueError, LookupError, ArithmeticError, TypeError, MemoryError) as error:
        # What gguf and numpy say where bytes are missing or wrong.
        raise ValueError(f"{file} is no whole GGUF file ({error}): download it again") from error


def _check_places(opened: Any) -> None:
    """Tensors follow one another, each from the next multiple of the alignment on. Elsewhere lie other weights."""
    if opened.byte_order != "I":
        raise ValueError("its bytes are in the order of another kind of processor")
    place = 0
    for tensor in opened.tensors:
        offset = int(tensor.field.parts[-1][0])
        if offset != place:
            raise ValueError(f"{tensor.name} should begin {place} bytes after the first tensor, and begins at {offset}")
        place += -(-tensor.n_bytes // int(opened.alignment)) * int(opened.alignment)


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
    if metadata.get("general.type", "model") != "model":
        raise ValueError(f'the file says "general.type": {metadata["general.type"]!r}, but this loader reads a "model"')
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
    for key in (*_SIZES, "vocab_size", "attention.key_length"):
        if key in said and (type(said[key]) is not int or said[key] < 1):
            raise ValueError(
                f'the file says "llama.{key}": {said[key]!r}, but this model has one size for all layers, at least 1'
            )
    if said["context_length"] > _LONGEST:
        raise ValueError(
            f'the file says "llama.context_length": {said["context_length"]}, but tables of sines are kept for each '
            f"position, of {_LONGEST} at most"
        )
    vocab_size = said.get("vocab_size")
    if vocab_size is None:
        vocab_size = len(_strings(metadata, "tokenizer.ggml.tokens"))
    d_head = said.get("attention.key_length", said["embedding_length"] // said["attention.head_count"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, d_head) != d_head or isinstance(said.get(key), bool | float):
            raise ValueError(
                f'the file says "llama.{key}": {said[key]!r}, but this model only does all of d_head={d_head}'
            )
    n_experts, experts_per_token = _experts(said)
    # Stored in 32 bits, in which 1e-5 is 0.0000099999997: as many digits as they hold.
    norm_eps = float(f"{_real(said, 'attention.layer_norm_rms_epsilon'):.7g}")
    scaling, base = _rope_scaling(said), _real(said, "rope.freq_base", 10_000.0)
    return LlamaConfig(
        vocab_size=vocab_size,
        **{ours: said[theirs] for theirs, ours in _SIZES.items()},
        d_head=None if d_head * said["attention.head_count"] == said["embedding_length"] else d_head,
        rope_base=base,
        rope_scaling=scaling,
        norm_eps=norm_eps,
        tied=tied,
        n_experts=n_experts or None,
        experts_per_token=experts_per_token,
    )


def _real(said: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    value = said.get(key, default)
    if type(value) is not float or not 0 < value < math.inf:
        raise ValueError(f'the file says "llama.{key}": {value!r}, which should be a number above 0')
    return value


def _experts(said: Mapping[str, Any]) -> tuple[int, int]:
    """How many experts a block has, and how many of them a token uses: none of either, or some of both."""
    found = {key: said.get(key, 0) for key in ("expert_count", "expert_used_count")}
    count, used = found.values()
    whole = all(type(value) is int for value in (count, used))
    if not whole or not (count == used == 0 or 1 <= used <= count):
        told = " and ".join(f'"llama.{key}": {value!r}' for key, value in found.items())
        raise ValueError(
            f"the file says {told}, but a token uses one expert at least, and as many as there are at most"
        )
    return count, used or LlamaConfig.experts_per_token  # of no effect without experts


def _rope_scaling(said: Mapping[str, Any]) -> LinearScaling | YarnScaling | None:
    """What the file says about longer texts. A factor without a type is a linear one, as llama.cpp has it."""
    kind = said.get("rope.scaling.type", "linear" if "rope.scaling.factor" in said else "none")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f'the file says "llama.rope.scaling.type": {kind!r}, which this loader does not know: it reads "none", '
            '"linear" and "yarn"'
        )
    for key in ("yarn_beta_fast", "yarn_beta_slow"):
        if f"rope.scaling.{key}" in said and kind != "yarn":
            raise ValueError(f'the file says "llama.rope.scaling.{key}", but "llama.rope.scaling.type": {kind!r}')
    if kind == "none":
        return None
    factor = _real(said, "rope.scaling.factor", 1.0)
    if factor < 1:
        raise ValueError(f'the file says "llama.rope.scaling.factor": {factor}, but this model only turns slower')
    if kind == "linear":
        return LinearScaling(factor) if factor > 1 else None
    original = said.get("rope.scaling.original_context_length")
    if type(original) is not int or original < 1:
        raise ValueError(
            f'the file says "llama.rope.scaling.original_context_length": {original!r}, where "yarn" needs the length '
            "of the longest text before"
        )
    fast, slow = (_real(said, f"rope.scaling.yarn_beta_{key}", value) for key, value in (("fast", 32.0), ("slow", 1.0)))
    try:
        return YarnScaling(factor, original, fast, slow)
    except ValueError as error:
        raise ValueError(
            f'{error}: as "llama.rope.scaling.yarn_beta_fast" and "llama.rope.scaling.yarn_beta_slow" say'
        ) from None


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
        ):
            table.append(same(f"{new}.{ours}.weight", f"{old}.{theirs}.weight"))
        for name in ("gate", "up", "down"):
            if config.n_experts is None:
                table.append(same(f"{new}.feed_forward.{name}.weight", f"{old}.ffn_{name}.weight"))
            else:
                experts = [f"{new}.feed_forward.experts.{e}.{name}.weight" for e in range(config.n_experts)]
                table.append(_stacked(experts, f"{old}.ffn_{name}_exps.weight"))
        if config.n_experts is not None:
            table.append(same(f"{new}.feed_forward.router.weight", f"{old}.ffn_gate_inp.weight"))
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
    """The tokenizer of a GGUF file.

    Control tokens, such as those of a chat, are its special tokens; user-defined ones are `added_tokens`, found
    wherever they stand in a text; unused ones have an id, and no text leads to them. What the file says about a token
    at the beginning and one at the end is its `framing`: it is obeyed where a text is encoded with
    `add_special_tokens=True`, as llama.cpp does where it is asked to add them.

    Raises:
        ValueError: it is no byte-pair tokenizer, cuts texts in a way that this loader does not know, adds other things
            to a text, or an entry is broken. The message names the entry.
    """
    try:
        return _tokenizer(gguf_metadata(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _tokenizer(metadata: Mapping[str, Any]) -> BPETokenizer:
    kind, split = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or split not in tuple(SPLITS):
        raise ValueError(
            f'the file says "tokenizer.ggml.model": {kind!r} and "tokenizer.ggml.pre": {split!r}, but this loader only '
            f'reads "gpt2", with {", ".join(SPLITS)}'
        )
    _check_settings(metadata)
    tokens, merges = (_strings(metadata, f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    twice = [token for token, times in Counter(tokens).items() if times > 1]
    if twice:
        raise ValueError(f'the file says "tokenizer.ggml.tokens", in which {twice[0]!r} stands more than once')
    repeated = [merge for merge, times in Counter(merges).items() if times > 1]
    if repeated:
        raise ValueError(f'the file says "tokenizer.ggml.merges", in which {repeated[0]!r} stands more than once')
    of_type = _by_type(metadata, tokens)
    framing = Framing(text_template(*(_added_id(metadata, name, len(tokens)) for name in ("bos", "eos"))))
    try:
        return BPETokenizer.from_merges(
            tokens,
            merges,
            split=SPLITS[split],
            special_tokens=[*of_type[TokenKind.UNKNOWN], *of_type[TokenKind.CONTROL]],
            added_tokens=of_type[TokenKind.USER_DEFINED],
            framing=framing,
        )
    except ValueError as error:
        raise ValueError(
            'what the file says under "tokenizer.ggml.tokens", "tokenizer.ggml.token_type" and "tokenizer.ggml.merges" '
            f"makes no tokenizer: {error}"
        ) from error


def _check_settings(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.")
        if name == key or name in _TOKENIZER_READ | _TOKENIZER_NOTES or name.endswith("_token_id"):
            continue
        if name not in _TOKENIZER_OFF:
            raise ValueError(f'the file says "{key}": {value!r:.80}, which this loader does not know')
        if value is not False:
            raise ValueError(
                f'the file says "{key}": {value!r}, but this loader only reads tokenizers that add no more than a '
                "token at the beginning and one at the end"
            )


def _added_id(metadata: Mapping[str, Any], name: str, n: int) -> int | None:
    """The id of the token that is put at the beginning ("bos") or the end ("eos") of a text; None: there is none."""
    flag, key = f"tokenizer.ggml.add_{name}_token", f"tokenizer.ggml.{name}_token_id"
    added, id_ = metadata.get(flag, False), metadata.get(key)
    if type(added) is not bool:
        raise ValueError(f'the file says "{flag}": {added!r}, which should be true or false')
    if not added:
        return None
    if type(id_) is not int or not 0 <= id_ < n:
        raise ValueError(
            f'the file says "{flag}": True and "{key}": {id_!r}, which should be the id of one of {n} tokens'
        )
    return id_


def _by_type(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[int, list[str]]:
    """The tokens of each type. Those that are unused stay in the vocabulary, where no merge leads to them."""
    key = "tokenizer.ggml.token_type"
    types = metadata.get(key)
    if not isinstance(types, list) or len(types) != len(tokens):
        said = f"{len(types)} entries" if isinstance(types, list) else repr(types)
        raise ValueError(
            f'the file says "{key}": {said}, where there should be a type for each of {len(tokens)} tokens'
        )
    found: dict[int, list[str]] = {kind: [] for kind in TokenKind}
    for token, kind in zip(tokens, types, strict=True):
        if type(kind) is not int or kind not in found:
            raise ValueError(
                f'the file says "{key}": {kind!r} for {token!r}, but a token of byte-pair encoding is normal (1), '
                "unknown (2), control (3), user-defined (4) or unused (5)"
            )
        found[kind].append(token)
    return found


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'the file says "{key}": {value!r:.80}, which should be a list of strings')
    return value


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


def _stacked(ours: Sequence[str], theirs: str) -> Line:
    """One matrix of each expert, which are stored as one tensor."""
    return Line(tuple(ours), theirs, split=list, join=lambda tensors: torch.stack(list(tensors)))


def _model(opened: GGUFFile) -> Llama:
    """The model of a file, on the meta device. The file has been held to it, name by name and shape by shape."""
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    try:
        config = gguf_config(opened.metadata, tied="output.weight" not in shapes)
        if config.n_layers > len(shapes):  # before they are made
            raise ValueError(f"a model of {config.n_layers} layers has more than {len(shapes)} tensors")
        stacked = shapes.get("blk.0.ffn_gate_exps.weight", (0,))[0]
        if (config.n_experts or 0) != stacked:
            raise ValueError(f'"llama.expert_count" is {config.n_experts or 0}, and block 0 has {stacked} experts')
        with torch.device("meta"), Undrawn():
            model = Llama(config)
        check_shapes(gguf_table(config), model, shapes)
        _check_formats(opened.tensors)
    except ValueError as error:
        sizes = ", ".join(f'"llama.{key}": {opened.metadata.get(f"llama.{key}")!r:.40}' for key in _SIZES)
        raise ValueError(f"{opened.path}: {error}. The sizes in the file: {sizes}") from error
    return model


def _check_formats(tensors: Sequence[Stored]) -> None:
    """Refuse a kind of numbers that gguf cannot turn into floats, before any weight is read."""
    kinds = import_module("gguf").GGMLQuantizationType
    can = {kinds.F32, kinds.F16, *import_module("gguf.quants")._type_traits}
    for tensor in tensors:
        if tensor.kind not in can:
            raise ValueError(
                f"{tensor.name} is stored as {tensor.kind.name}, which the package gguf does not turn into weights: it "
                f"reads {', '.join(sorted(kind.name for kind in can))}"
            )


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
