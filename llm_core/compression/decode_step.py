"""A token in one compiled function: all layers of a decoder, from the ids to the logits.

    x = embedding of the token (+ its position's vector)
    for each layer:  x = x + output(attention(norm(x)))
                     x = x + down(activation(gate(norm(x))) * up(norm(x)))        or without gate
    logits = head(norm(x))

A model in PyTorch asks for each of these by a call of its own, some hundreds for a token, and with a single token a
call costs more than its work. Here all of it is one loop that numba compiles: what is left is to read the weights.

`decode` is run by several threads at once, each with its own number. Every thread does its share of the rows of each
product and its share of the heads, and where one needs what the others have done they `meet`.

Weights are codes, and become numbers in the registers, sixteen at a time, where they are used: in groups of 32, of
which the first half lies in the low four bits of sixteen bytes and the second in the high four. So a product is that of
the definition, `llm_core.compression.quantize`, with float32 vectors: nothing but the weights is rounded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload

from llm_core.compression.vectors import high, low, meet, read, spread, total, whole, write, zeros

GROUP = 32
_OPTIONS: Any = {"nogil": True, "fastmath": True, "error_model": "numpy"}


class Weights4(NamedTuple):
    """One matrix of each layer, (L, R, G * 32): lowest + step * code, a step and a lowest for each group."""

    codes: np.ndarray  # uint8, L * R * G * 16
    step: np.ndarray  # float32, L * R * G
    lowest: np.ndarray  # float32, L * R * G
    rows: int  # R
    groups: int  # G, of a row


class Weights8(NamedTuple):
    """One matrix of each layer, (L, R, G * 32): scale * code, a scale for each row."""

    codes: np.ndarray  # int8, L * R * G * 32
    scale: np.ndarray  # float32, L * R
    rows: int
    groups: int


class Shape(NamedTuple):
    """The sizes of a decoder, and what tells Llama and GPT apart."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    eps: float
    centred: bool  # LayerNorm; else RMSNorm
    rotary: bool  # RoPE; else a vector for each position
    neighbours: bool  # RoPE turns columns (2i, 2i + 1); else (i, i + E/2)
    qk_norm: bool
    gated: bool  # SwiGLU; else GELU


class Parameters(NamedTuple):
    """What was learned. Norms and biases are (L, width), in float32; a bias that a model lacks is zeros."""

    embedding: Weights8
    positions: np.ndarray  # (context, D); of one row without learned positions
    cos: np.ndarray  # (context, E/2); of one row without RoPE
    sin: np.ndarray
    windows: np.ndarray  # (L,): how far back attention looks, the own position counted
    attention_norm: np.ndarray
    attention_norm_bias: np.ndarray
    query_norm: np.ndarray  # (L, E)
    key_norm: np.ndarray
    qkv: Any  # queries of all heads, then keys, then values
    qkv_bias: np.ndarray
    output: Any
    output_bias: np.ndarray
    feed_forward_norm: np.ndarray
    feed_forward_norm_bias: np.ndarray
    gate: Any
    gate_bias: np.ndarray
    up: Any
    up_bias: np.ndarray
    down: Any
    down_bias: np.ndarray
    norm: np.ndarray  # (1, D)
    norm_bias: np.ndarray
    head: Any
    head_bias: np.ndarray


class Work(NamedTuple):
    """Room for what is computed on the way for N tokens. Widths are rounded up to whole groups, and zero beyond."""

    x: np.ndarray  # (N, D): the residual stream
    normed: np.ndarray  # (threads, N, D): each thread norms for itself, which is quicker than to wait
    qkv: np.ndarray  # (N, (H + 2K) E)
    queries: np.ndarray  # (N, H, E)
    scores: np.ndarray  # (threads, S)
    read: np.ndarray  # (N, H E): what the heads have read
    gate: np.ndarray  # (N, F)
    up: np.ndarray  # (N, F)


@njit(**_OPTIONS)
def share(n: int, thread: int, threads: int) -> tuple[int, int]:
    """Where the share of a thread begins and ends, of n rows."""
    return n * thread // threads, n * (thread + 1) // threads


def group_of(weights: Any, row: int, g: int) -> Any:
    """The 32 weights of a group, as two vectors of 16."""


@overload(group_of, inline="always", strict=False)
def _group_of(weights: Any, row: Any, g: Any) -> Any:
    def of4(weights, row, g):  # type: ignore[no-untyped-def]
        at = row * weights.groups + g
        step, lowest = spread(weights.step, at), spread(weights.lowest, at)
        return low(weights.codes, 16 * at) * step + lowest, high(weights.codes, 16 * at) * step + lowest

    def of8(weights, row, g):  # type: ignore[no-untyped-def]
        at = 32 * (row * weights.groups + g)
        scale = spread(weights.scale, row)
        return whole(weights.codes, at) * scale, whole(weights.codes, at + 16) * scale

    return of4 if weights.instance_class is Weights4 else of8


@njit(**_OPTIONS)
def product(weights, layer, bias, x, y, add, thread, threads):  # type: ignore[no-untyped-def]
    """y (N, R) = x (N, G * 32) times the transposed weights of a layer, plus the bias; or that added to y."""
    first, last = share(weights.rows, thread, threads)
    width, G = x.shape[1], weights.groups
    n = 0
    while n < x.shape[0]:
        many = n + 4 <= x.shape[0]  # four tokens at a time: weights are made numbers once for all four
        for r in range(first, last):
            row = layer * weights.rows + r
            a, b, c, d = zeros(), zeros(), zeros(), zeros()
            if many:
                for g in range(G):
                    w, v = group_of(weights, row, g)
                    at = n * width + 32 * g
                    a = a + w * read(x, at) + v * read(x, at + 16)
                    b = b + w * read(x, at + width) + v * read(x, at + width + 16)
                    c = c + w * read(x, at + 2 * width) + v * read(x, at + 2 * width + 16)
                    d = d + w * read(x, at + 3 * width) + v * read(x, at + 3 * width + 16)
                put(y, n, r, total(a) + bias[layer, r], add)
                put(y, n + 1, r, total(b) + bias[layer, r], add)
                put(y, n + 2, r, total(c) + bias[layer, r], add)
                put(y, n + 3, r, total(d) + bias[layer, r], add)
            else:
                for g in range(G):
                    w, v = group_of(weights, row, g)
                    at = n * width + 32 * g
                    a = a + w * read(x, at)
                    b = b + v * read(x, at + 16)
                put(y, n, r, total(a + b) + bias[layer, r], add)
        n += 4 if many else 1


@njit(**_OPTIONS)
def put(y, n, r, number, add):  # type: ignore[no-untyped-def]
    """Write a number, or add it to what is there."""
    y[n, r] = y[n, r] + number if add else number


@njit(**_OPTIONS)
def norm(x, width, weight, bias, eps, centred, out):  # type: ignore[no-untyped-def]
    """out = x / sqrt(mean of x squared + eps) * weight + bias, x centred first or not."""
    mean = np.float32(0)
    if centred:
        for i in range(width):
            mean += x[i]
        mean /= np.float32(width)
    square = np.float32(0)
    for i in range(width):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1 / math.sqrt(square / width + eps))
    for i in range(width):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


@njit(**_OPTIONS)
def norm_all(x, width, weight, bias, shape, out):  # type: ignore[no-untyped-def]
    """`norm`, token by token."""
    for n in range(x.shape[0]):
        norm(x[n], width, weight, bias, shape.eps, shape.centred, out[n])


@njit(**_OPTIONS)
def turn(head, cos, sin, neighbours):  # type: ignore[no-untyped-def]
    """RoPE: turn each pair of columns of a query or key, in place."""
    pairs = cos.shape[0]
    for i in range(pairs):
        a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + pairs)
        first, second = head[a], head[b]
        head[a] = first * cos[i] - second * sin[i]
        head[b] = first * sin[i] + second * cos[i]


@njit(**_OPTIONS)
def prepare_heads(layer, shape, p, work, keys, values, rows, positions, thread, threads):  # type: ignore[no-untyped-def]
    """Norm and turn queries and keys, and put keys and values into the cache."""
    H, K, E = shape.n_heads, shape.n_kv_heads, shape.d_head
    nothing = np.zeros(E, np.float32)
    for item in range(thread, len(rows) * (H + K), threads):
        n, h = item // (H + K), item % (H + K)
        row, position = rows[n], positions[n]
        head = work.qkv[n, h * E : h * E + E]
        weight = p.query_norm[layer] if h < H else p.key_norm[layer]
        if shape.qk_norm:
            norm(head, E, weight, nothing, shape.eps, False, head)
        if shape.rotary:
            turn(head, p.cos[position], p.sin[position], shape.neighbours)
        if h < H:
            work.queries[n, h, :E] = head
        else:
            keys[layer, row, h - H, position, :E] = head
            values[layer, row, h - H, position, :E] = work.qkv[n, (h + K) * E : (h + K) * E + E]


@njit(**_OPTIONS)
def attend(query, keys, values, first, last, scores, out):  # type: ignore[no-untyped-def]
    """out = softmax(query key^T) value, over the positions first ... last - 1. Query and keys end in zeros."""
    width = keys.shape[1]
    highest = np.float32(-np.inf)
    for s in range(first, last):
        a = zeros()
        for e in range(0, width, 16):
            a = a + read(query, e) * read(keys, s * width + e)
        scores[s] = total(a)
        highest = max(highest, scores[s])
    weight = np.float32(0)
    for s in range(first, last):
        scores[s] = np.float32(math.exp(scores[s] - highest))
        weight += scores[s]
    for s in range(first, last):
        scores[s] /= weight
    for e in range(0, width, 16):
        a = zeros()
        for s in range(first, last):
            a = a + spread(scores, s) * read(values, s * width + e)
        write(out, e, a)


@njit(**_OPTIONS)
def attend_all(layer, shape, p, work, keys, values, rows, positions, thread, threads):  # type: ignore[no-untyped-def]
    """A thread's share of the heads of all tokens."""
    H, E = shape.n_heads, shape.d_head
    group, scale = H // shape.n_kv_heads, np.float32(1 / math.sqrt(E))
    out = np.empty(keys.shape[4], np.float32)
    for item in range(thread, len(rows) * H, threads):
        n, h = item // H, item % H
        last = positions[n] + 1
        first = max(0, last - p.windows[layer])
        query = work.queries[n, h]
        for e in range(E):
            query[e] *= scale
        seen = rows[n]
        attend(
            query, keys[layer, seen, h // group], values[layer, seen, h // group], first, last, work.scores[thread], out
        )
        work.read[n, h * E : h * E + E] = out[:E]


@njit(**_OPTIONS)
def activate(gate, up, gated, first, last):  # type: ignore[no-untyped-def]
    """up = silu(gate) * up, or gelu(up), columns first ... last - 1."""
    for n in range(up.shape[0]):
        for i in range(first, last):
            if gated:
                up[n, i] *= gate[n, i] / (np.float32(1) + np.float32(math.exp(-gate[n, i])))
            else:
                x = up[n, i]
                inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
                up[n, i] = np.float32(0.5) * x * (np.float32(1) + np.float32(math.tanh(inner)))


@njit(**_OPTIONS)
def embed(ids, positions, shape, p, x):  # type: ignore[no-untyped-def]
    """x (N, D) = the tokens' vectors, plus those of their positions."""
    table = p.embedding
    for n in range(len(ids)):
        begin = ids[n] * table.groups * 32
        for i in range(shape.d_model):
            x[n, i] = np.float32(table.codes[begin + i]) * table.scale[ids[n]]
            if not shape.rotary:
                x[n, i] += p.positions[positions[n], i]


@njit(cache=True, **_OPTIONS)
def decode(thread, threads, counter, shape, p, work, ids, rows, positions, keys, values, hidden, logits):  # type: ignore[no-untyped-def]
    """Read N tokens: their hidden states into `hidden` (N, D), and the logits after them into `logits` (N or 0, V).

    Args:
        thread, threads: the number of this thread, 0 ... threads - 1, and how many run this function at once.
        counter: one int64, zero at the beginning, the same array for all threads.
        ids, rows, positions: of each token (N,): which it is, to which text it belongs, and where it stands there.
        keys, values: the cache (L, B, K, S, E), the width rounded up to a multiple of 16. The new tokens are added.
    """
    x, mine = work.x, work.normed[thread]
    met = 0
    if thread == 0:
        embed(ids, positions, shape, p, x)
    met = meet(counter, met + threads)
    for i in range(shape.n_layers):
        norm_all(x, shape.d_model, p.attention_norm[i], p.attention_norm_bias[i], shape, mine)
        product(p.qkv, i, p.qkv_bias, mine, work.qkv, False, thread, threads)
        met = meet(counter, met + threads)
        prepare_heads(i, shape, p, work, keys, values, rows, positions, thread, threads)
        met = meet(counter, met + threads)
        attend_all(i, shape, p, work, keys, values, rows, positions, thread, threads)
        met = meet(counter, met + threads)
        product(p.output, i, p.output_bias, work.read, x, True, thread, threads)
        met = meet(counter, met + threads)

        norm_all(x, shape.d_model, p.feed_forward_norm[i], p.feed_forward_norm_bias[i], shape, mine)
        if shape.gated:
            product(p.gate, i, p.gate_bias, mine, work.gate, False, thread, threads)
        product(p.up, i, p.up_bias, mine, work.up, False, thread, threads)
        first, last = share(shape.d_ff, thread, threads)
        activate(work.gate, work.up, shape.gated, first, last)
        met = meet(counter, met + threads)
        product(p.down, i, p.down_bias, work.up, x, True, thread, threads)
        met = meet(counter, met + threads)
    norm_all(x, shape.d_model, p.norm[0], p.norm_bias[0], shape, mine)
    if thread == 0:
        hidden[:, :] = mine
    if logits.shape[0]:
        product(p.head, 0, p.head_bias, mine, logits, False, thread, threads)
    met = meet(counter, met + threads)


@njit(cache=True, **_OPTIONS)
def read_head(thread, threads, p, hidden, logits):  # type: ignore[no-untyped-def]
    """The output head alone: logits (N, V) of hidden states (N, D)."""
    product(p.head, 0, p.head_bias, hidden, logits, False, thread, threads)
