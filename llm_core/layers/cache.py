"""The key/value cache: what attention has computed for the tokens so far, kept for the tokens to come.

A cache owns the position: its length is the number of tokens seen, and with it the position of the next one.
Memory is taken once, for `capacity` tokens, or for about twice the window where attention looks back no further than
that. For inference only (under `torch.no_grad`): it writes in place.

    Cache         its length is a number of Python's, and it hands out what it holds: S grows from step to step
    StaticCache   its length is a tensor, and it hands out all of its room: every step has the same shapes, so that
                  one that was recorded (a CUDA graph) can be run again at any position. The mask closes what is empty.
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
        d_value: width of a value; that of a key, `d_head`, unless given.
    """

    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        *,
        d_value: int | None = None,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"a window holds at least the own position: got window={window}")
        room = capacity if window is None else min(capacity, 2 * window + REWINDABLE)
        self._keys = torch.zeros(batch, n_kv_heads, room, d_head, device=device, dtype=dtype)
        self._values = self._keys.new_zeros(batch, n_kv_heads, room, d_head if d_value is None else d_value)
        self._dropped = 0  # tokens before the first one that is stored
        self.capacity = capacity
        self.window = window
        self.length = 0

    @property
    def batch(self) -> int:
        """B: rows."""
        return self._keys.shape[0]

    def room_for_all(self) -> tuple[Float[Tensor, "B K capacity E"], Float[Tensor, "B K capacity Ev"]]:
        """Two empty tensors of the same kind with a place for each token, window or not."""
        B, K, _, E = self._keys.shape
        width = self._values.shape[-1]
        return self._keys.new_zeros(B, K, self.capacity, E), self._keys.new_zeros(B, K, self.capacity, width)

    def append(
        self, key: Float[Tensor, "B K T E"], value: Float[Tensor, "B K T Ev"]
    ) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S Ev"]]:
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
        if value.shape != (batch, heads, T, self._values.shape[3]):
            raise ValueError(
                f"the values should be {(batch, heads, T, self._values.shape[3])}, as the keys and the cache are: got "
                f"{tuple(value.shape)}"
            )
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

    def contents(self) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S Ev"]]:
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
    def at(self) -> None:
        """Where the next tokens stand among the keys that they find: they are the last."""
        return None

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


class StaticLayerCache:
    """Keys and values of one attention layer in tensors (B, K, capacity, E), and how many there are in another.

    Nothing in `append` depends on a number that Python knows, so that it does the same at every position.
    """

    def __init__(self, keys: Float[Tensor, "B K capacity E"], values: Float[Tensor, "B K capacity E"]) -> None:
        self._keys, self._values = keys, values
        self.length = torch.zeros((), dtype=torch.long, device=keys.device)

    def append(
        self, key: Float[Tensor, "B K T E"], value: Float[Tensor, "B K T E"]
    ) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """Add the keys and values of T more tokens; returns all S = capacity places, of which those after are empty."""
        places = self.length + torch.arange(key.shape[2], device=key.device)
        self._keys.index_copy_(2, places, key)
        self._values.index_copy_(2, places, value)
        self.length += key.shape[2]
        return self._keys, self._values

    def contents(self) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """All places, the empty ones too."""
        return self._keys, self._values

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds; the tensors stay where they are."""
        self._keys.copy_(self._keys.index_select(0, rows))
        self._values.copy_(self._values.index_select(0, rows))


class StaticCache:
    """A `Cache` of which every step has the same shapes and addresses, so that a recorded step can be run again.

    `append` does not look whether there is room, which would mean to wait for the device: who decodes counts.

    Args:
        cache: an empty one, for its sizes: a model's `new_cache(batch, capacity)`. Layers with a window get room for
            all tokens here.

    Raises:
        ValueError: the cache is not empty, or no `Cache` (that of an encoder-decoder, for one).
    """

    def __init__(self, cache: Cache) -> None:
        if not isinstance(cache, Cache):
            raise ValueError(f"a static cache is made from the sizes of a Cache: got a {type(cache).__name__}")
        if cache.length:
            raise ValueError(f"a static cache is made from an empty one: this one holds {cache.length} tokens")
        self.capacity = cache.capacity
        self.layers = [StaticLayerCache(*layer.room_for_all()) for layer in cache.layers]
        batch, device = cache.layers[0].batch, self.layers[0].length.device
        self.padding = torch.zeros(batch, dtype=torch.long, device=device)
        if cache.padding is not None:
            self.pad_left(cache.padding)

    @property
    def length(self) -> Int[Tensor, ""]:
        """Tokens seen so far, padding counted; the tensor itself, which grows."""
        return self.layers[0].length

    @property
    def at(self) -> Int[Tensor, ""]:
        """Where the next tokens stand among the keys that they find."""
        return self.length

    @property
    def start(self) -> Int[Tensor, " B"]:
        """The position of the next token in each row, below zero inside the padding."""
        return self.length - self.padding

    def keys_after(self, T: int) -> int:
        """How many keys T further tokens will find: all places."""
        return self.capacity

    def pad_left(self, padding: Int[Tensor, " B"]) -> None:
        """Say how many tokens at the left of each row are no text, before there are any."""
        self.padding.copy_(padding)

    def text_after(self, T: int) -> Bool[Tensor, "B 1 1 S"]:
        """Which of the keys are not padding."""
        keys = torch.arange(self.capacity, device=self.padding.device)
        return (keys >= self.padding[:, None])[:, None, None, :]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, in every layer.

        Raises:
            ValueError: there is no room for so many.
        """
        if not 0 <= length <= self.capacity:
            raise ValueError(f"a cache with room for {self.capacity} tokens cannot be rewound to {length}")
        for layer in self.layers:
            layer.length.fill_(length)

    def reorder(self, rows: Int[Tensor, " B2"]) -> None:
        """Let row i of the batch continue what row `rows[i]` holds, in every layer.

        Raises:
            ValueError: there are more or fewer rows than before.
        """
        if len(rows) != len(self.padding):
            raise ValueError(
                f"a static cache keeps its {len(self.padding)} rows: got {len(rows)}. Repeat the prompts instead"
            )
        for layer in self.layers:
            layer.reorder(rows)
        self.padding.copy_(self.padding.index_select(0, rows))


def check_context(context: int, T: int, cache: Cache | StaticCache | None) -> None:
    """Raise a ValueError if T tokens, with those of the cache, are longer than a model's context.

    Of a static cache the whole capacity has to fit: how much it holds the device alone knows.
    """
    if isinstance(cache, StaticCache):
        if max(T, cache.capacity) > context:
            raise ValueError(
                f"a static cache for {cache.capacity} tokens, and {T} new ones, do not fit the context of {context}: "
                "make it smaller, or build the model with a longer context"
            )
        return
    seen = 0 if cache is None else cache.length
    if seen + T > context:
        raise ValueError(
            f"the text is longer than the context: {seen} tokens in the cache and {T} new ones make {seen + T}, "
            f"the context is {context}. Give fewer tokens, or build the model with a longer context"
        )
