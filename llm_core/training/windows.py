"""The batch of step n without the batches before it: windows of a long text, shuffled anew each epoch.

`WindowSampler` cuts N tokens into W windows and lets every batch be a function of (seed, step) and nothing else:

    window w                 the tokens w T ... w T + T: T inputs, and the targets one to the right
    row r of step s          the element g = s B + r of one endless sequence, B rows a step
    epoch and place          g = epoch W + place
    what stands there        window p(place), where p is the epoch's own permutation of 0 ... W - 1

So there is no state to save: a run that goes on from step s sees what it would have seen. W = floor((N - 1) / T), every
target is seen once in W elements (fewer than T tokens at the end are left out), and a batch may begin in one epoch and
end in the next.

A stored permutation would need memory for all W windows. `permute` computes p at one place: it thinks of the numbers
as written row by row into a nearly square table, turns every column by an amount that a hash of the column gives (what
leaves at the bottom comes in at the top), then every row by a hash of the row, and again. Each turn can be undone, so
no two numbers ever meet. This is a Feistel network with addition modulo the table's sides. A few cells of the table lie
beyond W - 1; a number that lands there is sent through again until it lands inside (cycle walking).

Source: Black and Rogaway 2002 (both ideas); Steele, Lea and Flood 2014 (the hash).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Integer, UInt64
from torch import Tensor

from llm_core.data.shards import TokenShards
from llm_core.training.batches import Batch, shift


class WindowSampler:
    """The batch of every step, as a function of (seed, step): windows of T + 1 tokens, each once an epoch, shuffled.

    With several processes each takes its share of the rows: those of rank 0, rank 1, ... one after another are the
    batch that one process alone would get.

    Args:
        tokens: `TokenShards`, or one long tensor.
        batch_size: rows B of a step, of all processes together.
        length: T, the targets of a row.
        seed: another seed, another order.
        rank: which of the processes this is, from 0.
        world: how many there are; it divides `batch_size`.

    Raises:
        ValueError: the tokens are too few for one window, or a number is out of range.

    >>> sampler = WindowSampler(torch.arange(13), batch_size=2, length=4, seed=0)
    >>> sampler.n_windows, sampler.steps()
    (3, 2)
    >>> sampler.batch(1).targets.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        tokens: TokenShards | Integer[Tensor, " N"],
        *,
        batch_size: int,
        length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or length < 1:
            raise ValueError(f"a batch has at least one row of one target: got {batch_size=}, {length=}")
        if not 0 <= rank < world:
            raise ValueError(f"of world={world} processes, rank is one of 0 ... {world - 1}: got {rank}")
        if batch_size % world:
            raise ValueError(f"all processes take equally many rows: batch_size={batch_size} is no multiple of {world}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"the seed is one of 0 ... 2^64 - 1: got {seed}")
        if len(tokens) < length + 1:
            raise ValueError(
                f"a window has {length + 1} tokens, and there are {len(tokens)}: shorten length={length} or give more"
            )
        self.tokens, self.length, self.seed = tokens, length, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world

    @property
    def n_windows(self) -> int:
        """W, the windows of one epoch."""
        return (len(self.tokens) - 1) // self.length

    def steps(self, epochs: int = 1) -> int:
        """After how many steps every window has been seen `epochs` times (a few of them once more)."""
        return math.ceil(epochs * self.n_windows / self.batch_size)

    def batch(self, step: int) -> Batch:
        """This process's rows of a step, from 0 on: inputs and targets (B / world, T). It takes as long at any step.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"steps count from 0: got {step}")
        rows = self.batch_size // self.world
        first = step * self.batch_size + self.rank * rows
        epochs, places = np.divmod(np.arange(first, first + rows, dtype=np.uint64), np.uint64(self.n_windows))
        begins = (permute(places, self.n_windows, seed=self.seed, epochs=epochs) * np.uint64(self.length)).tolist()
        return shift(torch.stack([self.tokens[begin : begin + self.length + 1].long() for begin in begins]))


# How often columns and rows are turned. Large tables are well shuffled after 4, but of the orders of 6 numbers some
# still come visibly more often after 6.
ROUNDS = 10
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: its multiples spread evenly


def permute(
    places: UInt64[np.ndarray, " B"], n: int, *, seed: int, epochs: UInt64[np.ndarray, " B"]
) -> UInt64[np.ndarray, " B"]:
    """What stands at some places of random permutations of 0 ... n - 1, one for each seed and epoch.

    Nothing of size n is stored. The module's docstring says how it is done.

    >>> places = np.arange(5, dtype=np.uint64)
    >>> sorted(permute(places, 5, seed=0, epochs=np.zeros_like(places)).tolist())
    [0, 1, 2, 3, 4]
    """
    # Python's integers have no end, numpy's 64 bits do; its arrays wrap around without a warning, its scalars with one.
    stream = _mix(np.array([seed], dtype=np.uint64)) + epochs * np.uint64(2 * ROUNDS)
    keys = [_mix((stream + np.uint64(k)) * np.uint64(GOLDEN)) for k in range(2 * ROUNDS)]
    height = math.isqrt(n - 1) + 1  # the root of n, rounded up
    width = -(-n // height)
    numbers = _turn(places, height, width, keys)
    outside = numbers >= n
    while outside.any():
        numbers[outside] = _turn(numbers[outside], height, width, [key[outside] for key in keys])
        outside = numbers >= n
    return numbers


def _turn(
    numbers: UInt64[np.ndarray, " B"], height: int, width: int, keys: Sequence[UInt64[np.ndarray, " B"]]
) -> UInt64[np.ndarray, " B"]:
    """Send cells of a table to cells of the table, each to another one; a cell's number is row * width + column."""
    rows, columns = np.divmod(numbers, np.uint64(width))
    for column_key, row_key in zip(keys[::2], keys[1::2], strict=True):
        rows = (rows + _mix(columns ^ column_key) % np.uint64(height)) % np.uint64(height)
        columns = (columns + _mix(rows ^ row_key) % np.uint64(width)) % np.uint64(width)
    return rows * np.uint64(width) + columns


def _mix(numbers: UInt64[np.ndarray, " B"]) -> UInt64[np.ndarray, " B"]:
    """Hash 64 bits to 64 bits, no two to the same: every bit depends on all (the last step of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
