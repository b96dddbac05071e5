"""The same weights, read by all threads at once: full-precision layers for generation on a CPU.

To choose one token, every weight matrix is multiplied by one vector, and the time is the time to read the weights. On
some processors torch does this product on one thread, however many there are, and one thread cannot use the whole
bandwidth of the memory. Here each thread gets its own rows of the matrix, as one batched product:

    y = W x,   W = [W1; W2]   ->   y = [W1 x; W2 x]

The numbers are those of `nn.Linear` up to rounding; the weights are the same tensors, not copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.compression.replace import Model, replace_layers
from llm_core.layers.embedding import TokenEmbedding


def split_product(x: Float[Tensor, " I"], weight: Float[Tensor, "O I"], parts: int) -> Float[Tensor, " O"]:
    """weight @ x, in so many parts of the rows; what does not divide evenly comes last and by itself."""
    rows = weight.shape[0] // parts * parts
    pieces = weight[:rows].unflatten(0, (parts, -1)).transpose(1, 2)  # (parts, I, rows / parts), a view
    y = torch.bmm(x.expand(parts, 1, -1), pieces).flatten()
    return y if rows == weight.shape[0] else torch.cat([y, F.linear(x, weight[rows:])])


class SplitLinear(nn.Module):
    """An `nn.Linear` whose product with a single vector is split among `parts` threads."""

    def __init__(self, linear: nn.Linear, parts: int) -> None:
        super().__init__()
        self.weight, self.bias, self.parts = linear.weight, linear.bias, parts
        self.out_features, self.in_features = linear.weight.shape

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """x times the transposed weights, plus the bias."""
        if x.numel() != x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        y = split_product(x.flatten(), self.weight, self.parts)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class SplitEmbedding(TokenEmbedding):
    """A `TokenEmbedding` whose logits of a single vector are split among `parts` threads."""

    def __init__(self, embedding: TokenEmbedding, parts: int) -> None:
        with torch.device("meta"):  # no second table, not even for a moment
            super().__init__(*embedding.weight.shape)
        self.weight, self.parts = embedding.weight, parts

    def logits(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """How well each vector fits each token: the tied output head."""
        if x.numel() != x.shape[-1]:
            return super().logits(x)
        return split_product(x.flatten(), self.weight, self.parts).view(*x.shape[:-1], -1)


def split_for_generation(model: Model, parts: int | None = None) -> Model:
    """Let every linear layer and token embedding of a model read its weights with all threads, in place.

    Args:
        parts: threads to split among; torch's number of threads unless given.

    Raises:
        ValueError: parts is below 1.
    """
    parts = torch.get_num_threads() if parts is None else parts
    if parts < 1:
        raise ValueError(f"the rows are split among at least one thread: got parts={parts}")
    return replace_layers(
        model, lambda linear: SplitLinear(linear, parts), lambda embedding: SplitEmbedding(embedding, parts)
    )
