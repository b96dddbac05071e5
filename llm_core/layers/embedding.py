"""The token embedding: a table with one vector for each token, read in two directions.

    forward   ids (B, T) -> vectors (B, T, D)     row ids[b, t] of the table
    logits    vectors (B, T, D) -> (B, T, V)      each vector's dot product with every row

The second is the output head of a model whose embedding and head are tied (Press and Wolf 2017): the logit of a token
is how well its own vector fits the last hidden state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """V vectors of width D, one for each token.

    >>> TokenEmbedding(5, 8).weight.shape
    torch.Size([5, 8])
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of the tokens.

        Raises:
            ValueError: an id is no token.
        """
        try:
            return super().forward(ids)
        except IndexError:
            tokens = f"0 ... {self.num_embeddings - 1}"
            raise ValueError(f"ids must be tokens, {tokens}: got {ids.min().item()} to {ids.max().item()}") from None

    def logits(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """How well each vector fits each token: the tied output head."""
        return F.linear(x, self.weight)


class Scaled(nn.Module):
    """Multiplies vectors by a number: a table with small entries, for it is the output head too, brought to size one.

    Source: Vaswani et al. 2017, section 3.4; Gemma Team 2024 (its code, which rounds the number as the vectors are).
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """x times the factor."""
        return x * torch.full((), self.factor, dtype=x.dtype, device=x.device)
