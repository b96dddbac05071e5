"""The key/value cache: what attention has computed for the tokens so far, kept for the tokens to come.

A cache owns the position: its length is the number of tokens seen, and with it the position of the next one.
Memory is taken once, for `capacity` tokens, or for about twice the window where attention looks back no further than
that. For inference only (under `torch.no_grad`): it writes in place.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# With a window, `rewind` can always go back so far behind the furthest token seen (speculative decoding does).
REWINDABLE = 32


class LayerCache:
    """Keys and values of one attention layer: two tensors (B, K, room, E), preallocated.

    Args:
        capacity: tokens that can be seen.
        window: how far back attention looks, the own position counted. Keys and values that no later token can read
            are dropped. None: to the beginning.
    """

    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"a window holds at least the own position: got window={window}")
        room = capacity if window is None else min(capacity, 2 * window + REWINDABLE)
        self._keys = torch.zeros(batch, n_kv_heads, room, d_head, device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self._dropped = 0  # tokens before the first one that is stored
        self.capacity = capacity
        self.window = window
        self.length = 0

    def append(
        self, key: Float[Tensor, "B K T E"], value: Float[Tensor, "B K T E"]
    ) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """Add the keys and values of T more tokens; returns those that the T may read (views, where they can be).

        S is `length` after the call; with a window at most window - 1 + T.

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
        S, end = self.keys_after(T), self.length - self._dropped
        if end + T > self._keys.shape[2]:
            return self._append_and_drop(key, value)
        self._keys[:, :, end : end + T] = key
        self._values[:, :, end : end + T] = value
        self.length += T
        return self._last(S)

    def keys_after(self, T: int) -> int:
        """How many keys T further tokens will find, their own counted: the S of their mask."""
        return T + (self.length if self.window is None else min(self.length, self.window - 1))

    def contents(self) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """The keys and values that are stored (views, not copies): those of all tokens seen, if there is no window."""
        return self._last(self.length - self._dropped)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            ValueError: the length is negative, or greater than what is there; or the window has moved on too far.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be rewound to {length}")
        if self.window is not None and self._dropped and length - (self.window - 1) < self._dropped:
            raise ValueError(
                f"a cache of {self.length} tokens with a window of {self.window} cannot be rewound to {length}: it has "
                f"dropped the first {self._dropped} and can go back to {self._dropped + self.window - 1}"
            )
        self.length = length

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds; rows may repeat (beam search)."""
        self._keys = self._keys.index_select(0, rows)
        self._values = self._values.index_select(0, rows)

    def _last(self, S: int) -> tuple[Tensor, Tensor]:
        end = self.length - self._dropped
        return self._keys[:, :, end - S : end], self._values[:, :, end - S : end]

    def _append_and_drop(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`append` where there is no room: move what is still needed to the front."""
        assert self.window is not None  # without a window the room is the capacity
        T, room = key.shape[2], self._keys.shape[2]
        S = self.keys_after(T)
        kept = min(self.length - self._dropped, self.window - 1 + REWINDABLE)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(self._last(kept), (key, value), strict=True))
        stored = min(kept + T, room)
        self._keys[:, :, :stored] = keys[:, :, -stored:]
        self._values[:, :, :stored] = values[:, :, -stored:]
        self.length += T
        self._dropped = self.length - stored
        return keys[:, :, -S:], values[:, :, -S:]


class Cache:
    """One `LayerCache` for each of the L layers of a model, all of the same length between two forward passes.

    Rows of unequal length are padded on the left, and the cache remembers by how much (`pad_left`): it tells the
    model at which position each row is, and which keys are text.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layers = [
            LayerCache(batch, n_kv_heads, capacity, d_head, window=window, device=device, dtype=dtype)
            for _ in range(n_layers)
        ]
        self.padding: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens seen so far, padding counted."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.layers[0].capacity

    @property
    def start(self) -> int | Int[Tensor, " B"]:
        """The position of the next token; one for each row if they are padded (below zero inside the padding)."""
        return self.length if self.padding is None else self.length - self.padding

    def keys_after(self, T: int) -> int:
        """How many keys T further tokens will find, their own counted: the S of their mask."""
        return self.layers[0].keys_after(T)

    def pad_left(self, padding: Int[Tensor, " B"]) -> None:
        """Say how many tokens at the left of each row are no text. Nothing will attend to them.

        Raises:
            ValueError: the cache is no longer empty.
        """
        if self.length:
            raise ValueError(f"padding is told to an empty cache: this one holds {self.length} tokens")
        self.padding = padding

    def text_after(self, T: int) -> Bool[Tensor, "B 1 1 S"] | None:
        """Which of the keys that T further tokens will find are text; None if all are."""
        if self.padding is None:
            return None
        end = self.length + T
        keys = torch.arange(end - self.keys_after(T), end, device=self.padding.device)
        return (keys >= self.padding[:, None])[:, None, None, :]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, in every layer."""
        for layer in self.layers:
            layer.rewind(length)

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds, in every layer."""
        for layer in self.layers:
            layer.reorder(rows)
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)
