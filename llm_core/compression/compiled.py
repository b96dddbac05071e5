"""Generation at the speed of memory: a `Llama` or `GPT` whose tokens are read by one compiled function.

    compiled = compile_decoder(load_smollm2(convert=to_4bit))
    generate(compiled, prompt, 64)

What is compiled is `llm_core.compression.decode_step`; here are the model that `generate` and `stream_text` take, its
cache, and how the weights of a model come into the form that the compiled function reads. The compiler is numba, an
extra: `pip install "llm-core[compiled]"`. Where it is missing, the same quantised weights run on PyTorch.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.compression.quantize import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    quantize_4bit,
    quantize_8bit,
    quantize_int4,
    quantize_int8,
    unpack_int4,
)
from llm_core.files import return_memory
from llm_core.layers.attention import MultiHeadAttention, attention, fused_attention
from llm_core.layers.blocks import PreNormBlock
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import FeedForward, GatedFeedForward, fused_gelu_tanh, gelu_tanh
from llm_core.layers.norms import LayerNorm, RMSNorm
from llm_core.layers.positions import Rope, rotate_halves, rotate_neighbours
from llm_core.models.gpt import GPT
from llm_core.models.llama import Llama, LlamaConfig

GROUP = 32  # weights that are read together, and the width that all rows are rounded up to
_AT_ONCE = 256  # tokens of a prompt that are read in one go
_LONG = 32  # tokens of a prompt after whose reading memory is given back: it takes less than they did
# Fields of `LlamaConfig` that are done, or that are read off the layers. Any other has to be at its default.
_DONE = {"vocab_size", "context", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_ff", "d_head", "rope_base"}
_DONE |= {"rope_scaling", "norm_eps", "tied", "qkv_bias", "output_bias", "qk_norm", "window", "experts_per_token"}


def compile_decoder(model: Llama | GPT, *, bits: int = 4, threads: int | None = None) -> CompiledDecoder | nn.Module:
    """A model for `generate` and `stream_text` that reads a token in one compiled function, on the CPU.

    The model is not changed; its weights are copied, quantised, layer by layer. Layers that are quantised already are
    taken as they are: `compile_decoder(load_smollm2(convert=to_4bit))` never has the weights in full precision.

    The first call on a machine compiles for half a minute or so; numba keeps the result beside the package, or in its
    own folder where that cannot be written.

    Args:
        bits: of the linear layers' weights: 8, with a scale for each row, or 4, with a step and a lowest value for each
            group of 32. Embedding and tied head have 8 in both cases, as with `quantize_4bit`.
        threads: that share the work; torch's number of threads unless given.

    Returns:
        The compiled model. Where numba is missing, with a warning, a copy with the same weights that runs on PyTorch.

    Raises:
        ValueError: the model does something that is not compiled (a mixture of experts, for one); bits is neither 8
            nor 4; threads is below 1; or 32 does not divide the width of a layer that is to have 4 bits.

    Source: Gerganov et al. 2023 (llama.cpp) for the idea: quantised weights read in place, and no other work.
    """
    if bits not in (4, 8):
        raise ValueError(f"weights have 8 bits or 4: got bits={bits}")
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"a token is read by at least one thread: got threads={threads}")
    check_compilable(model)
    if find_spec("numba") is None:
        warnings.warn(
            "numba is not installed, so the model runs on PyTorch, several times slower: run "
            '`pip install "llm-core[compiled]"`, or `pip install numba`',
            stacklevel=2,
        )
        return _on_torch(model, bits)
    return CompiledDecoder(model, bits, threads)


def check_compilable(model: nn.Module) -> None:
    """Raise a ValueError that names what in this model is not compiled, if anything is."""
    if type(model) not in (Llama, GPT):
        raise ValueError(f"only Llama and GPT are compiled: got a {type(model).__name__}")
    if isinstance(model.config, LlamaConfig):
        for field in dataclasses.fields(model.config):
            value = getattr(model.config, field.name)
            if field.name not in _DONE and value != field.default:
                raise ValueError(
                    f"models with {field.name}={value!r} are not compiled: generate with the model as it is, on PyTorch"
                )
    for name, module in model.named_modules():
        reason = _not_compiled(module)
        if reason:
            raise ValueError(f"{name or 'the model'} is not compiled: {reason}")


def _not_compiled(module: nn.Module) -> str | None:
    """Why a layer is not compiled; None if it is."""
    known: tuple[type[nn.Module], ...] = (
        nn.Linear,
        Int8Linear,
        Int4Linear,
        TokenEmbedding,
        Int8Embedding,
        nn.Embedding,
        nn.Identity,
        nn.Dropout,
    )
    known += (MultiHeadAttention, PreNormBlock, FeedForward, GatedFeedForward, RMSNorm, LayerNorm, Rope, nn.ModuleList)
    if isinstance(module, (Llama, GPT)):
        return None
    # What has a table of its own kind, such as LearnedPositions, is reached through its parts.
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if own and type(module) not in known:
        return f"a {type(module).__name__} is not one of the layers that are"
    if isinstance(module, MultiHeadAttention):
        if module.position_bias is not None:
            return "its attention has a position_bias"
        if module.attend not in (attention, fused_attention):
            return f"its attention attends by {module.attend!r}"
        if module.rotate is not None and not isinstance(module.rotate, Rope):
            return f"its positions are turned by {module.rotate!r}"
    if isinstance(module, Rope) and module.turn not in (rotate_halves, rotate_neighbours):
        return f"RoPE pairs columns by {module.turn!r}"
    if isinstance(module, Rope) and module.by_length is not None:
        return f"its angles depend on how long the text is ({type(module.by_length).__name__})"
    if isinstance(module, GatedFeedForward) and module.activation is not F.silu:
        return f"its activation is {module.activation!r}, not silu"
    if isinstance(module, FeedForward) and module.activation not in (fused_gelu_tanh, gelu_tanh):
        return f"its activation is {module.activation!r}, not GELU by tanh"
    if isinstance(module, Int4Linear):
        group = module.in_features // module.step.shape[1]
        if group % GROUP:
            return f"its 4-bit weights are in groups of {group}; a multiple of {GROUP} is read"
    return None


def _on_torch(model: Llama | GPT, bits: int) -> nn.Module:
    """A copy with the weights that the compiled model would have; a model that has been quantised as it is."""
    if not any(isinstance(module, (nn.Linear, TokenEmbedding)) for module in model.modules()):
        return model
    model = copy.deepcopy(model).eval()
    return quantize_4bit(model, group=GROUP) if bits == 4 else quantize_8bit(model)


class CompiledCache:
    """Keys and values of all layers, (L, B, K, S, E) in two arrays; positions are those of a row without its padding.

    Keys and values are all kept, also where attention looks back no further than a window.
    """

    def __init__(self, n_layers: int, batch: int, n_kv_heads: int, capacity: int, d_head: int) -> None:
        shape = (n_layers, batch, n_kv_heads, capacity, _up(d_head, 16))
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.capacity, self.length = capacity, 0
        self.padding: Tensor | None = None

    @property
    def batch(self) -> int:
        """Texts that it is for."""
        return self.keys.shape[1]

    def pad_left(self, padding: Int[Tensor, " B"]) -> None:
        """Say how many tokens at the left of each row are no text. They are not read.

        Raises:
            ValueError: the cache is no longer empty.
        """
        if self.length:
            raise ValueError(f"padding is told to an empty cache: this one holds {self.length} tokens")
        self.padding = padding

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            ValueError: the length is negative, or greater than what is there.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be rewound to {length}")
        self.length = length

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds; rows may repeat (beam search)."""
        index = rows.cpu().numpy()
        self.keys, self.values = (np.ascontiguousarray(kept[:, index]) for kept in (self.keys, self.values))
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)


class CompiledDecoder:
    """What `compile_decoder` returns: ids (B, T) -> logits (B, T, V), for generation only.

    It is used as the model is: `generate(compiled, prompt, 20)`. Several threads may call it; they wait for each other.
    """

    def __init__(self, model: Llama | GPT, bits: int, threads: int) -> None:
        self._step = import_module("llm_core.compression.decode_step")
        self.context, self.vocab_size, self.threads = model.context, model.vocab_size, threads
        self._parameters = _parameters(self._step, model, bits)
        self._shape = _shape(self._step, model)
        self._others = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self._one_at_a_time = threading.Lock()
        # Compile, in one thread: an error here in one of two would leave the other waiting.
        with self._one_at_a_time:
            self._read([[0], [0], [0]], self.new_cache(1, 1), want_logits=True, threads=1)
            self._head(np.zeros((1, _up(self._shape.d_model)), np.float32), threads=1)

    def __call__(self, ids: Int[Tensor, "B T"], cache: CompiledCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position.

        With a cache, `ids` continue what it holds, and it holds them too afterwards. Of padding they are zeros.

        Raises:
            ValueError: the text, with what the cache holds, is longer than the context or the cache; or an id is no
                token.
        """
        if ids.shape[1] == 1:
            return self._forward(ids, cache, want_logits=True)[1]
        return self.logits(self.hidden(ids, cache))

    def hidden(self, ids: Int[Tensor, "B T"], cache: CompiledCache | None = None) -> Float[Tensor, "B T D"]:
        """The last hidden states, before the output head."""
        parts = [self._forward(part, cache, want_logits=False)[0] for part in self._parts(ids, cache)]
        if ids.numel() >= _LONG:  # what it took on the way, and maybe the model that the weights came from
            return_memory()
        return torch.cat(parts, dim=1)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """The output head: logits of the token that follows each hidden state."""
        D = self._shape.d_model
        rows = np.zeros((hidden[..., 0].numel(), _up(D)), np.float32)
        rows[:, :D] = hidden.reshape(-1, D).numpy()
        with self._one_at_a_time:
            logits = self._head(rows, self.threads)
        return torch.from_numpy(logits).view(*hidden.shape[:-1], -1)

    def new_cache(self, batch: int, capacity: int | None = None) -> CompiledCache:
        """An empty cache for `batch` texts of up to `capacity` tokens (the whole context unless given)."""
        shape = self._shape
        capacity = self.context if capacity is None else capacity
        return CompiledCache(shape.n_layers, batch, shape.n_kv_heads, capacity, shape.d_head)

    def _parts(self, ids: Tensor, cache: CompiledCache | None) -> Sequence[Tensor]:
        """A long prompt in pieces, so that what is computed on the way stays small."""
        if cache is None:
            return [ids]
        self._check(ids, cache)  # all of it, before the first part changes the cache
        return ids.split(max(1, _AT_ONCE // max(1, ids.shape[0])), dim=1)

    def _forward(self, ids: Tensor, cache: CompiledCache | None, *, want_logits: bool) -> tuple[Tensor, Tensor]:
        cache = self.new_cache(ids.shape[0], ids.shape[1]) if cache is None else cache
        self._check(ids, cache)
        B, T = ids.shape
        padding = torch.zeros(B, dtype=torch.int64) if cache.padding is None else cache.padding
        positions = cache.length + torch.arange(T) - padding[:, None]
        text = positions >= 0
        rows = torch.arange(B)[:, None].expand(B, T)
        with self._one_at_a_time:
            tokens = [of_all[text].tolist() for of_all in (ids, rows, positions)]
            found = self._read(tokens, cache, want_logits=want_logits, threads=self.threads)
        cache.length += T
        hidden, logits = (torch.from_numpy(array) for array in found)
        return self._spread(hidden[:, : self._shape.d_model], text), self._spread(logits, text)

    @staticmethod
    def _spread(values: Tensor, text: Tensor) -> Tensor:
        """Values of the tokens that are text, (N, width), where those stand: (B, T, width)."""
        if len(values) == text.numel():
            return values.view(*text.shape, -1)
        spread = values.new_zeros(*text.shape, values.shape[1])
        if len(values):
            spread[text] = values
        return spread

    def _read(
        self,
        tokens: list[list[int]],
        cache: CompiledCache,
        *,
        want_logits: bool,
        threads: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the compiled function for tokens, their ids, rows and positions.

        Returns:
            Hidden states (N, D rounded up) and logits (N, V), of no row if not wanted.
        """
        N, shape = len(tokens[0]), self._shape
        hidden = np.empty((N, _up(shape.d_model)), np.float32)
        logits = np.empty((N if want_logits else 0, self.vocab_size), np.float32)
        if N:
            counter, work = np.zeros(1, np.int64), _work(self._step, shape, N, cache.keys.shape, threads)
            self._run(
                self._step.decode,
                threads,
                (
                    counter,
                    shape,
                    self._parameters,
                    work,
                    *np.array(tokens, np.int64),
                    cache.keys,
                    cache.values,
                    hidden,
                    logits,
                ),
            )
        return hidden, logits

    def _head(self, hidden: np.ndarray, threads: int) -> np.ndarray:
        logits = np.empty((len(hidden), self.vocab_size), np.float32)
        self._run(self._step.read_head, threads, (self._parameters, hidden, logits))
        return logits

    def _run(self, function: Any, threads: int, arguments: Iterable[Any]) -> None:
        """The function, in so many threads at once: each gets its number."""
        arguments = tuple(arguments)
        others = []
        if threads > 1:
            assert self._others is not None
            others = [self._others.submit(function, i, threads, *arguments) for i in range(1, threads)]
        function(0, threads, *arguments)
        for other in others:
            other.result()

    def _check(self, ids: Tensor, cache: CompiledCache) -> None:
        shape = self._shape
        room = (shape.n_layers, ids.shape[0], shape.n_kv_heads, cache.capacity, _up(shape.d_head, 16))
        if not isinstance(cache, CompiledCache) or cache.keys.shape != room:
            raise ValueError(
                f"the cache is not one of this model for {ids.shape[0]} texts: make it with the model's new_cache"
            )
        lowest, highest = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if lowest < 0 or highest >= self.vocab_size:
            raise ValueError(f"ids must be tokens, 0 ... {self.vocab_size - 1}: got {lowest} to {highest}")
        end = cache.length + ids.shape[1]
        if end > self.context:
            raise ValueError(
                f"the text is longer than the context: {cache.length} tokens in the cache and {ids.shape[1]} new ones "
                f"make {end}, the context is {self.context}. Give fewer tokens"
            )
        if end > cache.capacity:
            raise ValueError(
                f"the cache is full: it holds {cache.length} of {cache.capacity} tokens and {ids.shape[1]} more were "
                f"to be added; make it with a capacity of at least {end}"
            )


def _up(width: int, to: int = GROUP) -> int:
    """The width, rounded up to a multiple."""
    return -(-width // to) * to


def _work(step: Any, shape: Any, N: int, cache: tuple[int, ...], threads: int) -> Any:
    H, E = shape.n_heads, shape.d_head
    sizes = {
        "x": (N, _up(shape.d_model)),
        "normed": (threads, N, _up(shape.d_model)),
        "qkv": (N, (H + 2 * shape.n_kv_heads) * E),
        "queries": (N, H, cache[4]),
        "scores": (threads, cache[3] + 16),  # compiled code reads sixteen at a time
        "read": (N, _up(H * E)),
        "gate": (N, _up(shape.d_ff)),
        "up": (N, _up(shape.d_ff)),
    }
    return step.Work(**{name: np.zeros(size, np.float32) for name, size in sizes.items()})


def _shape(step: Any, model: Llama | GPT) -> Any:
    block: Any = model.blocks[0]
    heads, feed_forward, rope = block.attention, block.feed_forward, block.attention.rotate
    eps = {module.eps for module in model.modules() if isinstance(module, (RMSNorm, LayerNorm))}
    if len(eps) > 1:
        raise ValueError(f"the norms of a compiled model add one eps: this one has {sorted(eps)}")
    return step.Shape(
        n_layers=len(model.blocks),
        d_model=model.config.d_model,
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        d_head=heads.d_head,
        d_ff=feed_forward.up.out_features,
        eps=float(eps.pop()),
        centred=isinstance(model.norm, LayerNorm),
        rotary=rope is not None,
        neighbours=rope is not None and rope.turn is rotate_neighbours,
        qk_norm=not isinstance(heads.query_norm, nn.Identity),
        gated=isinstance(feed_forward, GatedFeedForward),
    )


def _parameters(step: Any, model: Llama | GPT, bits: int) -> Any:
    """The weights of a model as the compiled function reads them: those of all layers in one array."""
    blocks: list[Any] = list(model.blocks)
    heads, feed_forwards = [block.attention for block in blocks], [block.feed_forward for block in blocks]
    rope, gated = heads[0].rotate, isinstance(feed_forwards[0], GatedFeedForward)
    embedding = _weights(step, [[model.token_embedding]], bits=8)
    head = model.head if isinstance(model, Llama) else None
    one, E = np.zeros((1, 1), np.float32), heads[0].d_head
    unbounded = np.iinfo(np.int64).max // 2
    window = model.config.window if isinstance(model, Llama) else None

    def matrix(layers: list[list[Any]], name: str) -> dict[str, Any]:
        widths = [layer.out_features for layer in layers[0]]
        bias = [
            torch.cat([_bias(layer, width) for layer, width in zip(parts, widths, strict=True)]) for parts in layers
        ]
        return {name: _weights(step, layers, bits=bits), f"{name}_bias": _array(bias)}

    def norms(modules: list[Any], name: str) -> dict[str, Any]:
        return {
            name: _array([m.weight for m in modules]),
            f"{name}_bias": _array([_bias(m, len(m.weight)) for m in modules]),
        }

    up = matrix([[ff.up] for ff in feed_forwards], "up")
    gate = {"gate": up["up"], "gate_bias": up["up_bias"]}  # not read without a gate
    return step.Parameters(
        embedding=embedding,
        positions=one if isinstance(model, Llama) else _numpy(model.positions.embedding.weight),
        cos=one if rope is None else _numpy(rope.cos),
        sin=one if rope is None else _numpy(rope.sin),
        windows=np.full(len(blocks), unbounded if window is None else window, np.int64),
        query_norm=_array([_norm_weight(h.query_norm, E) for h in heads]),
        key_norm=_array([_norm_weight(h.key_norm, E) for h in heads]),
        **norms([block.attention_norm for block in blocks], "attention_norm"),
        **norms([block.feed_forward_norm for block in blocks], "feed_forward_norm"),
        **norms([model.norm], "norm"),
        **matrix([[h.query, h.key, h.value] for h in heads], "qkv"),
        **matrix([[h.output] for h in heads], "output"),
        **(matrix([[ff.gate] for ff in feed_forwards], "gate") if gated else gate),
        **up,
        **matrix([[ff.down] for ff in feed_forwards], "down"),
        **(
            {"head": embedding, "head_bias": np.zeros((1, model.vocab_size), np.float32)}
            if head is None
            else matrix([[head]], "head")
        ),
    )


def _weights(step: Any, layers: list[list[Any]], *, bits: int) -> Any:
    """The matrices of all layers, each the rows of one or more linear layers, put one below the other."""
    kinds = {_bits(layer, bits) for parts in layers for layer in parts}
    if len(kinds) > 1:
        raise ValueError("layers that do the same work must have the same number of bits: some have 8 and some 4")
    first = [_codes(layer, bits) for layer in layers[0]]
    rows, groups = sum(len(codes) for codes, *_ in first), _up(first[0][0].shape[1]) // GROUP
    stored = 32 if kinds == {8} else 16  # bytes for a group
    # Two large arrays and not many small ones: the system gives them pages of 2 MB, which are quicker to find.
    codes = np.zeros((len(layers) * rows, groups, stored), np.int8 if kinds == {8} else np.uint8)
    scales = np.zeros((len(layers) * rows, 1 if kinds == {8} else groups, len(first[0]) - 1), np.float32)
    at = 0
    for parts in layers:
        for layer in parts:
            found, *numbers = _codes(layer, bits)
            end = at + len(found)
            codes[at:end] = _grouped(found, stored)
            for i, number in enumerate(numbers):
                scales[at:end, :, i] = number
            at = end
    if kinds == {8}:
        return step.Weights8(codes.reshape(-1), scales.reshape(-1), rows, groups)
    step_, lowest = (np.ascontiguousarray(scales[..., i]).reshape(-1) for i in range(2))
    return step.Weights4(codes.reshape(-1), step_, lowest, rows, groups)


def _bits(layer: Any, bits: int) -> int:
    if isinstance(layer, (Int8Linear, Int8Embedding, TokenEmbedding)):
        return 8
    return 4 if isinstance(layer, Int4Linear) else bits


def _codes(layer: Any, bits: int) -> tuple[np.ndarray, ...]:
    """The codes of a layer (O, I), and its numbers: the scale (O, 1), or step and lowest (O, G) for groups of 32."""
    if isinstance(layer, (Int8Linear, Int8Embedding)):
        return layer.codes.numpy(), layer.scale.numpy()[:, None]
    if isinstance(layer, Int4Linear):
        codes, step, lowest = unpack_int4(layer.packed), layer.step, layer.lowest
        times = codes.shape[1] // GROUP // step.shape[1]  # a larger group is several of 32 with the same step
        return codes.numpy(), *(t.repeat_interleave(times, dim=1).numpy() for t in (step, lowest))
    weight = layer.weight.detach().float().cpu()
    if _bits(layer, bits) == 4:
        return tuple(t.numpy() for t in quantize_int4(weight, GROUP))
    codes, scale = quantize_int8(weight)
    return codes.numpy(), scale.numpy()[:, None]


def _grouped(codes: np.ndarray, stored: int) -> np.ndarray:
    """Codes (O, I) as (O, G, 32), zeros added at the end; 4-bit codes packed, the second half above the first."""
    rows, width = codes.shape
    whole = np.zeros((rows, _up(width)), codes.dtype)
    whole[:, :width] = codes
    groups = whole.reshape(rows, -1, GROUP)
    return groups if stored == GROUP else groups[..., :16] | (groups[..., 16:] << 4)


def _bias(layer: Any, width: int) -> Tensor:
    bias = getattr(layer, "bias", None)
    return torch.zeros(width) if bias is None else bias


def _norm_weight(norm: Any, width: int) -> Tensor:
    return norm.weight if isinstance(norm, RMSNorm) else torch.zeros(width)


def _array(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.stack([_numpy(tensor) for tensor in tensors])


def _numpy(tensor: Tensor) -> np.ndarray:
    """An array of float32, contiguous and writeable, as the compiled function was compiled for."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
