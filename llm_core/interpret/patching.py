"""Activation patching: which parts of a run carry the answer.

    clean        When Mary and John went to the shop, John gave a bottle to     -> Mary
    corrupted    When Mary and John went to the shop, Mary gave a bottle to     -> John
    patched      the corrupted run, with one activation copied from the clean run

    score = (metric(patched) - metric(corrupted)) / (metric(clean) - metric(corrupted))

A score of 0 says that the activation makes no difference, 1 that it alone brings the clean answer back. A negative
score, or one above 1, is no mistake: a part may work against the answer.

The two texts differ in as little as possible and have the same length, so that position t means the same in both.
`LogitDifference` is the usual metric: it is linear in the final hidden state, up to the norm, and does not move when
all logits move together.

Source: Vig et al. 2020; Meng et al. 2022, section 2 (causal tracing); Wang et al. 2022 (texts like the one above, and
the logit difference).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.interpret.activations import Decoder, Side, decoder, patched, recorded, stream_names
from llm_core.layers.attention import MultiHeadAttention

# Logits (B, T, V) -> one number for each text, (B,).
Metric = Callable[[Tensor], Tensor]
# For each module by its name, where its activation is copied from the clean run: True, broadcast to (B, T, D).
Site = Mapping[str, Tensor]


@dataclass(frozen=True)
class LogitDifference:
    """By how much the right token's logit is above the wrong one's, at one position of each text.

    Args:
        right: the clean text's answer.
        wrong: the corrupted text's answer.
        position: where the answer is foretold; the last position unless given.

    >>> metric = LogitDifference(torch.tensor([0]), torch.tensor([2]))
    >>> metric(torch.tensor([[[9.0, 9.0, 9.0], [3.0, 7.0, 1.0]]]))
    tensor([2.])
    """

    right: Int[Tensor, " B"]
    wrong: Int[Tensor, " B"]
    position: int = -1

    def __call__(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, " B"]:
        """logit[right] - logit[wrong]."""
        if len(self.right) != len(logits) or len(self.wrong) != len(logits):
            raise ValueError(
                f"each text has one right and one wrong token: got {len(self.right)} and {len(self.wrong)} "
                f"for {len(logits)} texts"
            )
        rows = torch.arange(len(logits), device=logits.device)
        at = logits[:, self.position]
        return at[rows, self.right] - at[rows, self.wrong]


@torch.no_grad()
def patching_scores(
    model: nn.Module,
    clean: Int[Tensor, "B T"],
    corrupted: Int[Tensor, "B T"],
    metric: Metric,
    sites: Sequence[Site],
    *,
    at: Side = "output",
) -> Float[Tensor, " sites"]:
    """The score of each site: how much of the metric comes back when its activations are those of the clean run.

    One forward pass for each site and two more. The metric's mean over the B texts is taken before the division, so
    that a text on which the two runs hardly differ does not drown the others.

    Args:
        model: in eval mode.
        clean: the texts that have the right answer.
        corrupted: the same texts, changed.
        metric: (B, T, V) -> (B,), larger where the clean answer is given.
        sites: what is copied together.
        at: whether the names of a site mean what the modules give or what they take in.

    Returns:
        One number a site, in float64. 0: as corrupted; 1: as clean.

    Raises:
        UnknownModuleError: a site names no module.
        ValueError: the texts differ in shape; the model is in training mode; the metric is the same on both runs; a
            mask does not fit its activation; or a module of a site runs more or less than once in a forward pass.
    """
    _check_runs(model, clean, corrupted)
    names = list(dict.fromkeys(name for site in sites for name in site))
    with recorded(model, names, at=at) as kept:
        best = _value(metric, model(clean))
    for name in names:
        if len(kept[name]) != 1:
            raise ValueError(f"a module must run once in a forward pass to be patched: {name!r} ran {len(kept[name])}x")
    worst = _value(metric, model(corrupted))
    if not (best - worst).isfinite() or best == worst:
        raise ValueError(
            f"the metric must differ between the runs, or there is nothing to bring back: got {best:g} on the clean "
            f"and {worst:g} on the corrupted text"
        )
    values = best.new_empty(len(sites))
    for i, site in enumerate(sites):
        changes = {name: partial(_copy, kept[name][0], mask, name) for name, mask in site.items()}
        with patched(model, changes, at=at):
            values[i] = _value(metric, model(corrupted))
    return (values - worst) / (best - worst)


def patch_positions(
    model: nn.Module,
    clean: Int[Tensor, "B T"],
    corrupted: Int[Tensor, "B T"],
    metric: Metric,
    *,
    names: Sequence[str] | None = None,
) -> Float[Tensor, "places T"]:
    """The score of each layer and position: where, and how far up, the answer is carried.

    Args:
        model: in eval mode.
        clean: the texts that have the right answer.
        corrupted: the same texts, changed.
        metric: as in `patching_scores`.
        names: modules whose outputs are copied: `[f"blocks.{i}.feed_forward" for i in range(L)]`, for one. None: the
            residual stream at its L + 1 places, in the order of `residual_stream`.

    Raises:
        ValueError: as `patching_scores`; or without names, the model is not a `Decoder`.
    """
    at: Side = "input" if names is None else "output"
    names = stream_names(model) if names is None else list(names)
    T = clean.shape[1]
    here = torch.eye(T, dtype=torch.bool, device=clean.device).unsqueeze(-1)  # (T, T, 1): row t is True at t
    sites = [{name: here[t]} for name in names for t in range(T)]
    return patching_scores(model, clean, corrupted, metric, sites, at=at).view(len(names), T)


def patch_heads(
    model: nn.Module, clean: Int[Tensor, "B T"], corrupted: Int[Tensor, "B T"], metric: Metric
) -> Float[Tensor, "L H"]:
    """The score of each head at all positions: the output of head h in layer l is that of the clean run.

    A head's output is what the output projection reads in its E columns; query heads that share keys and values
    count each by itself.

    Raises:
        ValueError: as `patching_scores`; or the blocks' `attention` is no MultiHeadAttention, or of unequal sizes.
    """
    L, H, E = _heads(decoder(model))
    columns = torch.eye(H, dtype=torch.bool, device=clean.device).repeat_interleave(E, dim=1)  # (H, H * E)
    sites = [{f"blocks.{layer}.attention.output": columns[h]} for layer in range(L) for h in range(H)]
    return patching_scores(model, clean, corrupted, metric, sites, at="input").view(L, H)


def _heads(model: Decoder) -> tuple[int, int, int]:
    attentions = [getattr(block, "attention", None) for block in model.blocks]
    sizes = [(a.n_heads, a.d_head) for a in attentions if isinstance(a, MultiHeadAttention)]
    if len(sizes) < len(attentions) or len(set(sizes)) != 1:
        raise ValueError(
            "each block needs a MultiHeadAttention as its `attention`, with as many heads, as wide, as the others: got "
            f"{len(sizes)} of them in {len(attentions)} blocks, with (H, E) {sorted(set(sizes))}"
        )
    return len(sizes), *sizes[0]


def _value(metric: Metric, logits: Tensor) -> Tensor:
    return metric(logits).double().mean()


def _copy(clean: Tensor, mask: Bool[Tensor, " ..."], name: str, x: Tensor) -> Tensor:
    if any(m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape), strict=False)):
        raise ValueError(f"the mask of {name!r} must fit its activation {tuple(x.shape)}: got {tuple(mask.shape)}")
    return torch.where(mask, clean, x)


def _check_runs(model: nn.Module, clean: Tensor, corrupted: Tensor) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"the texts must have the same shape, position by position: got clean {tuple(clean.shape)} and corrupted "
            f"{tuple(corrupted.shape)}"
        )
    if not clean.numel():
        raise ValueError(f"there must be a text to run: got clean {tuple(clean.shape)}")
    if model.training:
        raise ValueError("the model is in training mode, where dropout makes each run differ: call model.eval() first")
