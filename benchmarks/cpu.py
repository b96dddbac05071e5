"""What a training step gains on a CPU, beyond bf16: three switches that change how, not what, is computed.

    keep_memory()           the process keeps the memory that tensors give back, instead of returning it to the system
    short_attention(model)  the attention weights are written to memory: quicker for short texts in bf16
    causal_attention(model) the fused kernel is told that a text reads backwards, and gets no mask to read

Fresh memory is slow: the system fills each page with zeros when it is first touched. A training step asks for the same
large tensors again and again, and by default the C library gives each of them back and asks anew.

The fused attention kernel never writes the weights (T, S). That pays where they are large. Its backward pass works in
smaller pieces, for which processors without matrix units (AMX) are slow in bf16; up to some hundred tokens, two plain
products are quicker.

Measured in training.py; a chapter does not need them.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm_core.layers.attention import MultiHeadAttention

# mallopt's numbers for its parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1  # the largest int: two gigabytes of free memory at the end are kept


def keep_memory() -> bool:
    """From now on this process keeps freed memory for its next tensors; its size stays at its highest.

    Returns:
        Whether it was done: it can be on Linux with the GNU C library. Elsewhere nothing changes.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Large blocks come from the heap too, not from the system each time; and the heap does not shrink.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def short_attention(model: nn.Module) -> None:
    """Let every attention of a model write its weights to memory, in the precision that its inputs have.

    The results are those of the fused kernel, up to rounding; a query that may read nothing gets the mean of all values
    instead of zeros. `fused_attention` is put back by assigning it to the modules' `attend`.

    Raises:
        ValueError: there is no attention in the model.
    """
    _give(model, _attend)


def causal_attention(model: nn.Module) -> None:
    """Let every attention of a model that only ever sees whole causal masks go without them: no padding, no cache.

    Raises:
        ValueError: there is no attention in the model.
    """
    _give(model, _attend_causally)


def _attend_causally(
    query: Float[Tensor, "B H T E"],
    key: Float[Tensor, "B H T E"],
    value: Float[Tensor, "B H T Ev"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    bias: None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T Ev"]:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)


def _give(model: nn.Module, attend: Callable[..., Tensor]) -> None:
    modules = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    if not modules:
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}: nothing would be quicker")
    for module in modules:
        module.attend = attend


def _attend(
    query: Float[Tensor, "B H T E"],
    key: Float[Tensor, "B H S E"],
    value: Float[Tensor, "B H S Ev"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    bias: Float[Tensor, " ..."] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T Ev"]:
    B, H, T, E = query.shape
    S = key.shape[2]
    # What the mask forbids gets the lowest number there is, before the product is added to it: the same pass over the
    # scores does both, forward and backward. (Not -inf: a row that may read nothing would be NaN.)
    start = query.new_zeros(T, S) if bias is None else bias.to(query.dtype).expand(B, H, T, S)
    if mask is not None:
        start = start.masked_fill(~mask, torch.finfo(query.dtype).min / 2)
    start = start.expand(B, H, T, S).reshape(B * H, T, S)
    scores = torch.baddbmm(start, query.reshape(B * H, T, E), key.reshape(B * H, S, E).transpose(1, 2), alpha=E**-0.5)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return torch.bmm(weights, value.reshape(B * H, S, -1)).view(B, H, T, -1)
