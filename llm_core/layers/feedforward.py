"""Feed-forward layers: what each position works out by itself, between two attentions.

FeedForward        W2 activation(W1 x)           (Vaswani et al. 2017, section 3.3)
GatedFeedForward   W2 (activation(Wg x) * W1 x)  (Shazeer 2020; with silu it is SwiGLU)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def gelu(x: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """x times the probability that a standard normal number is below x (Hendrycks and Gimpel 2016)."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """The paper's tanh approximation of `gelu`; GPT-2 was trained with this one."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# The same two on torch's fused kernels, for modules.
fused_gelu: Activation = F.gelu
fused_gelu_tanh: Activation = partial(F.gelu, approximate="tanh")

# By name, so that a config can be written to a file.
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": fused_gelu,
    "gelu_tanh": fused_gelu_tanh,
}


class FeedForward(nn.Module):
    """Widen to F, bend, narrow back to D; the same at every position."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation = F.relu,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each position's vector, worked over."""
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedFeedForward(nn.Module):
    """A feed-forward layer in which one projection decides how much of another passes."""

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = F.silu, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each position's vector, worked over."""
        return self.down(self.activation(self.gate(x)) * self.up(x))
