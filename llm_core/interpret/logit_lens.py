"""The logit lens: what a model would say if it stopped after each layer.

    stream l            what block l reads; for l = L, what the final norm reads
    lens l   = head(norm(stream l))

Each block adds to the residual stream, so the stream has the same width everywhere and the final norm and the output
head can read it anywhere. The last lens is the model's own answer. The earlier ones are a reading, not a fact: nothing
trained the head to read an earlier layer, and a fact that stands in the stream in another form is not seen.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020 (a blog post).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.interpret.activations import decoder, recorded, stream_names


@torch.no_grad()
def residual_stream(model: nn.Module, ids: Int[Tensor, "B T"]) -> Float[Tensor, "L1 B T D"]:
    """The residual stream at its L + 1 places: the embeddings, then after each block, before the final norm.

    Raises:
        ValueError: the model is not a `Decoder`.
    """
    names = stream_names(model)
    with recorded(model, names, at="input") as kept:
        model(ids)
    return torch.stack([kept[name][0] for name in names])


@torch.no_grad()
def logit_lens(model: nn.Module, ids: Int[Tensor, "B T"]) -> Float[Tensor, "L1 B T V"]:
    """Logits that the final norm and the head read from the residual stream at its L + 1 places.

    The last are those of the model, to the bit. In memory, that is L + 1 times the logits of a forward pass.

    Raises:
        ValueError: the model is not a `Decoder`.
    """
    parts = decoder(model)
    # One layer at a time, in the shape that the model itself uses: a product of another shape may round otherwise.
    return torch.stack([parts.logits(parts.norm(x)) for x in residual_stream(model, ids)])


class LensReading(NamedTuple):
    """What a lens says at each layer and position: its best tokens, and how it sees the target.

    A rank of 1 is the likeliest token; equal logits share the better rank.
    """

    top: Int[Tensor, "L1 B T k"]
    top_probability: Float[Tensor, "L1 B T k"]
    target_rank: Int[Tensor, "L1 B T"]
    target_probability: Float[Tensor, "L1 B T"]


def read_lens(logits: Float[Tensor, "L1 B T V"], targets: Int[Tensor, "B T"], *, k: int = 1) -> LensReading:
    """The k likeliest tokens of each layer and position, and the target's rank and probability.

    Args:
        logits: as `logit_lens` gives them.
        targets: the token that each position is to foretell: the text's next one, for one, or the model's own answer
            `logits[-1].argmax(dim=-1)`.
        k: how many tokens.

    Raises:
        ValueError: there is not one target a position, a target is no token, or k is not in 1 ... V.

    >>> reading = read_lens(torch.tensor([[[[0.0, 0.0]]], [[[0.0, 8.0]]]]), torch.tensor([[1]]))
    >>> reading.top_probability.flatten(), reading.target_rank.flatten()
    (tensor([0.5000, 0.9997]), tensor([1, 1]))
    """
    V = logits.shape[-1]
    if targets.shape != logits.shape[1:3]:
        raise ValueError(
            f"each position has one target: got {tuple(targets.shape)} targets for (B, T) = {tuple(logits.shape[1:3])}"
        )
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < V:
        raise ValueError(f"targets must be tokens, 0 ... {V - 1}: got {targets.min().item()} to {targets.max().item()}")
    if not 1 <= k <= V:
        raise ValueError(f"ask for 1 to V = {V} tokens: got k={k}")
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    target = logits.gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1))
    best = logits.topk(k, dim=-1)
    return LensReading(
        top=best.indices,
        top_probability=(best.values - log_total).exp(),
        target_rank=(logits > target).sum(dim=-1) + 1,
        target_probability=(target - log_total).exp().squeeze(-1),
    )
