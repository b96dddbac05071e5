"""A mixture of experts: many feed-forward layers, of which each token uses a few.

    logits  = router(x)                                one score for each of the n experts
    weights = softmax(logits), the k largest, rescaled to sum to one (unless `rescale=False`)
    output  = sum over those k experts of weight * expert(x)

The model has the weights of n experts and computes with k of them: Mixtral holds 8 and uses 2. Left to itself a router
sends everything to a few favourites, which then learn most and are favoured more. `balance_loss`, added to the loss of
the training with a small factor (0.01 or so), works against that.

Source: Shazeer et al. 2017 (the layer), Fedus et al. 2021 (the loss), Jiang et al. 2024 (Mixtral).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def route(
    logits: Float[Tensor, "N n"], n_per_token: int, *, rescale: bool = True
) -> tuple[Float[Tensor, "N {n_per_token}"], Int[Tensor, "N {n_per_token}"]]:
    """The experts of each of N tokens, and how much each counts: (weights, experts), the heaviest first.

    Without `rescale` the weights are the probabilities, and what the experts that were not chosen would have counted is
    missing.

    >>> weights, experts = route(torch.tensor([[0.0, 2.0, 2.0, -1.0]]), n_per_token=2)
    >>> weights, sorted(experts[0].tolist())
    (tensor([[0.5000, 0.5000]]), [1, 2])

    Raises:
        ValueError: n_per_token is below 1 or greater than the number of experts.
    """
    _check_number(logits.shape[-1], n_per_token)
    weights, experts = _probabilities(logits).topk(n_per_token, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True) if rescale else weights
    return weights.to(logits.dtype), experts


def balance_loss(logits: Float[Tensor, "N n"], n_per_token: int) -> Float[Tensor, ""]:
    """How unevenly the router spreads N tokens over n experts; k = `n_per_token` if perfectly evenly, else more.

    n * sum over the experts of (assignments to it / N) * (mean probability of it). The first factor is what should
    be even but has no gradient; the second goes with it and has one.

    Give the logits of text only (`logits[text]`), or the padding is balanced too.

    Raises:
        ValueError: n_per_token is below 1 or greater than the number of experts; or there is no token.

    Source: Fedus et al. 2021, equations 4 to 6 (there k = 1).
    """
    N, n = logits.shape
    _check_number(n, n_per_token)
    if N < 1:
        raise ValueError("there is no token to balance: got logits of shape " + str(tuple(logits.shape)))
    probabilities = _probabilities(logits)
    chosen = probabilities.topk(n_per_token, dim=-1).indices.flatten()
    assigned = torch.bincount(chosen, minlength=n) / N
    return n * (assigned * probabilities.mean(dim=0)).sum()


class MixtureOfExperts(nn.Module):
    """Sends each token to `n_per_token` of the experts and joins what they say, by the router's weights.

    Args:
        d_model: width D.
        experts: modules (B, T, D) -> (B, T, D) that work on each position by itself; `GatedFeedForward`s, for one.
        n_per_token: how many of them a token uses.
        rescale: see `route`.

    Raises:
        ValueError: n_per_token is below 1 or greater than the number of experts.
    """

    def __init__(
        self, d_model: int, experts: Sequence[nn.Module], n_per_token: int = 2, *, rescale: bool = True
    ) -> None:
        super().__init__()
        _check_number(len(experts), n_per_token)
        self.router = nn.Linear(d_model, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.n_per_token, self.rescale = n_per_token, rescale

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each position's vector, worked over by its experts."""
        tokens = x.flatten(0, 1)
        weights, chosen = route(self.router(tokens), self.n_per_token, rescale=self.rescale)
        output = torch.zeros_like(tokens)
        # One pass for each expert, over all of its tokens. An expert without any still gets a gradient, of zeros:
        # every process of a distributed run must hold the same set of gradients.
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            said = expert(tokens[rows][None])[0]  # (tokens of this expert, D), as a batch of one
            output = output.index_add(0, rows, weights[rows, place, None] * said)
        return output.unflatten(0, x.shape[:2])


@contextmanager
def router_logits(model: nn.Module) -> Iterator[list[Float[Tensor, "N n"]]]:
    """Collects the router logits of every mixture in `model`, layer by layer, while the block runs.

        with router_logits(model) as logits:
            predicted = model(ids)
        loss = cross_entropy(predicted, targets) + 0.01 * balance_loss(torch.cat(logits), n_per_token=2)

    Nothing stays in the model. The logits hold the graph of the forward pass, so drop them after the step.
    """
    collected: list[Tensor] = []
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                hook = module.router.register_forward_hook(lambda _module, _inputs, logits: collected.append(logits))
                stack.callback(hook.remove)
        yield collected


def _probabilities(logits: Tensor) -> Tensor:
    """In float32 at least: in bfloat16 two experts that differ would often tie."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _check_number(n_experts: int, n_per_token: int) -> None:
    if not 1 <= n_per_token <= n_experts:
        raise ValueError(
            f"a token uses at least one expert and at most all: got n_per_token={n_per_token}, {n_experts} experts"
        )
