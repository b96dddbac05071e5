"""The key/value cache: what attention has computed for the tokens so far, kept for the tokens to come.

A cache owns the position: its length is the number of tokens seen, and with it the position of the next one.
Memory is taken once, for `capacity` tokens. For inference only (under `torch.no_grad`): it writes in place.

Used in chapters/03_algorithms/06_three_sentences; taught, once it is written, in 03_algorithms/05_inference.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer: two tensors (B, K, capacity, E), of which `length` are filled."""

    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._keys = torch.zeros(batch, n_kv_heads, capacity, d_head, device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._keys.shape[2]

    def append(
        self, key: Float[Tensor, "B K T E"], value: Float[Tensor, "B K T E"]
    ) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """Add the keys and values of T more tokens; returns all S that are there now (views, not copies).

        Raises:
            ValueError: they do not fit, in number or in shape. The cache is then as it was.
        """
        batch, heads, T, width = key.shape
        if self.length + T > self.capacity:
            raise ValueError(
                f"the cache is full: it holds {self.length} of {self.capacity} tokens and {T} more were to be added; "
                f"make it with a capacity of at least {self.length + T}"
            )
        room = (self._keys.shape[0], self._keys.shape[1], self._keys.shape[3])
        if (batch, heads, width) != room:
            raise ValueError(f"the cache was made for (batch, heads, width) = {room}: got {(batch, heads, width)}")
        self._keys[:, :, self.length : self.length + T] = key
        self._values[:, :, self.length : self.length + T] = value
        self.length += T
        return self.contents()

    def contents(self) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """The keys and values of the S tokens seen so far (views, not copies)."""
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            ValueError: the length is negative, or greater than what is there.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be rewound to {length}")
        self.length = length

    def reorder(self, rows: Int[Tensor, "B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds; rows may repeat (beam search)."""
        self._keys = self._keys.index_select(0, rows)
        self._values = self._values.index_select(0, rows)


class Cache:
    """One `LayerCache` for each of the L layers of a model, all of the same length between two forward passes."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layers = [
            LayerCache(batch, n_kv_heads, capacity, d_head, device=device, dtype=dtype) for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """Tokens seen so far: the position of the next token."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.layers[0].capacity

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, in every layer."""
        for layer in self.layers:
            layer.rewind(length)

    def reorder(self, rows: Int[Tensor, "B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds, in every layer."""
        for layer in self.layers:
            layer.reorder(rows)
