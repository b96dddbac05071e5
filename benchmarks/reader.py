"""A small decoder with what has been found since GPT-2, and with a memory of what it has read before.

It is Llama with five additions, each of them small:

    QK-norm              queries and keys are normed before they meet (Dehghani et al. 2023)
    short convolutions   each norm's output is mixed with that of the three positions before it (after So et al. 2021)
    value residual       the values of each block are mixed with those of the first (Zhou et al. 2024, arXiv 2410.17897)
    embedding residual   each block reads a mix of the stream and the embeddings, as records in training GPT-2 fast do
    memory               keys and values of the piece read before stay in sight (Dai et al. 2019, arXiv 1901.02860)

The memory goes over the border between two pieces, the gradient does not. With a memory of M positions every position
attends to itself and the M before it, whatever piece they were in, and the convolutions too read across the border: a
text gives the same logits however it is cut up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.layers.attention import fused_attention
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import GatedFeedForward
from llm_core.layers.masks import sliding_window
from llm_core.layers.norms import RMSNorm
from llm_core.layers.positions import Rope

REACH = 4  # of the convolutions: the position itself and three before it


@dataclass
class Memory:
    """What a block keeps of what it has read; the tensors are detached."""

    keys: Float[Tensor, "B H S E"]  # normed, not yet turned
    values: Float[Tensor, "B H S E"]
    attention_tail: Float[Tensor, "B K1 D"]  # the last K - 1 inputs of each convolution
    feed_forward_tail: Float[Tensor, "B K1 D"]


class Block(nn.Module):
    """Llama's block with the additions above."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.n_heads, E = n_heads, d_model // n_heads
        self.query, self.key, self.value, self.output = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = RMSNorm(E), RMSNorm(E)
        self.feed_forward = GatedFeedForward(d_model, d_ff)
        self.attention_norm, self.feed_forward_norm = RMSNorm(d_model), RMSNorm(d_model)
        self.attention_mix, self.feed_forward_mix = (nn.Parameter(torch.zeros(d_model, REACH)) for _ in range(2))
        self.stream_share = nn.Parameter(torch.tensor([1.0, 0.0]))  # of the stream, of the embeddings
        self.first_value_share = nn.Parameter(torch.tensor(0.5))

    def empty(self, x: Float[Tensor, "B T D"]) -> Memory:
        """The memory of a block that has read nothing."""
        B, _, D = x.shape
        none, zeros = x.new_zeros(B, self.n_heads, 0, D // self.n_heads), x.new_zeros(B, REACH - 1, D)
        return Memory(none, none, zeros, zeros)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        embeddings: Float[Tensor, "B T D"],
        first_value: Float[Tensor, "B H T E"] | None,
        before: Memory,
        rope: Rope,
        size: int,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T E"], Memory]:
        """The stream after this block, the first block's values, and what to remember (`size` positions)."""
        x = self.stream_share[0] * x + self.stream_share[1] * embeddings
        h, attention_tail = _mixed(self.attention_norm(x), self.attention_mix, before.attention_tail)
        query, key, value = (self._split(part(h)) for part in (self.query, self.key, self.value))
        query, key = self.query_norm(query), self.key_norm(key)
        if first_value is None:
            first_value = value
        else:
            value = value.lerp(first_value, self.first_value_share)
        key, value = torch.cat([before.keys, key], 2), torch.cat([before.values, value], 2)
        T, S = query.shape[2], key.shape[2]
        mask = sliding_window(T, S, window=size + 1, device=x.device)
        heads = fused_attention(rope(query, S - T), rope(key), value, mask)
        x = x + self.output(heads.transpose(1, 2).flatten(2))
        h, feed_forward_tail = _mixed(self.feed_forward_norm(x), self.feed_forward_mix, before.feed_forward_tail)
        x = x + self.feed_forward(h)
        last = slice(max(0, S - size), S)
        after = Memory(key[:, :, last].detach(), value[:, :, last].detach(), attention_tail, feed_forward_tail)
        return x, first_value, after

    def _split(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T E"]:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Reader(nn.Module):
    """ids (B, T) -> logits (B, T, V) of the token after each. A call goes on where the call before it stopped.

    Args:
        vocab_size: V.
        context: the longest piece T that is read at once.
        memory: how many positions before its own each one attends to, M. None: those of its own piece, and nothing is
            remembered.

    Raises:
        ValueError: another number of rows than remembered. Call `forget` before other texts.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        context: int,
        n_layers: int,
        n_heads: int,
        d_model: int,
        d_ff: int,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        self.token_embedding = TokenEmbedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.norm = RMSNorm(d_model)
        self.size = memory
        self.rope = Rope(d_model // n_heads, context + (memory or 0), base=100.0)
        self.memory: list[Memory] | None = None
        for name, parameter in self.named_parameters():  # as in Llama
            if name.endswith(("output.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 * (2 * n_layers) ** -0.5)
            elif parameter.ndim == 2 and not name.endswith("mix"):
                nn.init.normal_(parameter, std=0.02)

    def forget(self) -> None:
        """What is read next has nothing before it."""
        self.memory = None

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position."""
        embeddings = self.token_embedding(ids)
        before = [block.empty(embeddings) for block in self.blocks] if self.memory is None else self.memory
        if len(before[0].keys) != len(ids):
            raise ValueError(f"the memory is of {len(before[0].keys)} rows, and {len(ids)} came: call forget() first")
        after = []
        x, first_value = embeddings, None
        for block, of_block in zip(self.blocks, before, strict=True):
            size = ids.shape[1] if self.size is None else self.size
            x, first_value, new = block(x, embeddings, first_value, of_block, self.rope, size)
            after.append(new)
        if self.size is not None:
            self.memory = after
        return self.token_embedding.logits(self.norm(x))


def short_convolution(x: Float[Tensor, "B T D"], weight: Float[Tensor, "D K"]) -> Float[Tensor, "B T D"]:
    """x plus the weighted sum of each position and the K - 1 before it, column by column.

    Attention can read the previous token, but a head must first learn to; these few weights give that from the start.
    Source: So et al. 2021, who put them behind query, key and value.
    """
    T = x.shape[1]
    y = x
    for k, w in enumerate(weight.unbind(dim=1)[:T]):
        y = y + F.pad(x, (0, 0, k, 0))[:, :T] * w
    return y


def _mixed(
    x: Float[Tensor, "B T D"], weight: Float[Tensor, "D K"], tail: Float[Tensor, "B K1 D"]
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B K1 D"]]:
    """A short convolution that goes on behind `tail`, and the tail for the next piece."""
    longer = torch.cat([tail, x], dim=1)
    return short_convolution(longer, weight)[:, tail.shape[1] :], longer[:, -tail.shape[1] :].detach()
