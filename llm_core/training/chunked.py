"""The output head and its loss in one, a chunk of the text at a time.

With a large vocabulary the logits are the biggest tensor of a training step: B x T x V numbers, and several times over,
since the softmax, its logarithm and the gradient have the same shape. None of them is wanted later. So the head is
applied to a few hundred positions, their loss and its gradient are worked out at once, and the logits are forgotten:

    logits    = hidden W^T                      (chunk, V)
    loss      = sum of -ln softmax(logits)[target]
    d logits  = softmax(logits) - 1[target]     the gradient needs nothing but the logits (04_mathematics)
    d hidden  = d logits W                      (chunk, D)
    d W      += d logits^T hidden               (V, D)

The gradient is there before anyone asks for it: `backward` has only to hand it out. The numbers are those of
`cross_entropy(model(ids), targets)`, and so is the number of multiplications; what is saved is memory, and the time it
takes to write and read it. A few large chunks are best: each of them reads and writes all of d W.

torch 2.13 has one too, `torch.nn.functional.linear_cross_entropy` with `options=LinearCrossEntropyOptions()`;
benchmarks/training.py has both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes
from llm_core.training.batches import Batch
from llm_core.training.losses import count_targets


@runtime_checkable
class HasHeadWeight(Protocol):
    """A model whose logits are the products of its last hidden states with the rows of one table."""

    @property
    def head_weight(self) -> Tensor:
        """The table (V, D)."""
        ...

    def hidden(self, *inputs: Any) -> Tensor:
        """The last hidden states (B, T, D)."""
        ...


@dataclass(frozen=True)
class ChunkedCrossEntropy:
    """The loss `CrossEntropy`, without ever holding all the logits.

    Args:
        chunk: positions whose logits are held at a time; one tensor of chunk x V numbers is what it costs
            on a CPU, two elsewhere.
        ignore_id: targets with this id (padding) do not count, and their logits are not computed.
        label_smoothing: this share of the target's probability is spread evenly over all V tokens.
        hidden: (model, inputs) -> last hidden states, `model.hidden(*inputs)` unless given. A compiled one goes here.

    Raises:
        ValueError: a chunk of no position, or label_smoothing is outside 0 ... 1.
    """

    chunk: int = 512
    ignore_id: int | None = None
    label_smoothing: float = 0.0
    hidden: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        check_sizes(chunk=self.chunk)
        check_shares(label_smoothing=self.label_smoothing)

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of -ln p(target) over the targets that count, in nats.

        Raises:
            ValueError: the model has no `head_weight`, so its logits are no plain product.
        """
        if not isinstance(model, HasHeadWeight):
            raise ValueError(
                f"the chunked loss needs a model with `hidden` and `head_weight`, such as GPT and Llama: got "
                f"{type(model).__name__}. Use CrossEntropy, which calls the model"
            )
        hidden = model.hidden(*batch.inputs) if self.hidden is None else self.hidden(model, *batch.inputs)
        return chunked_cross_entropy(
            hidden,
            model.head_weight,
            batch.targets,
            chunk=self.chunk,
            ignore_id=self.ignore_id,
            label_smoothing=self.label_smoothing,
        )

    def count(self, batch: Batch) -> int:
        """How many targets are not `ignore_id`."""
        return count_targets(batch.targets, self.ignore_id)


def chunked_cross_entropy(
    hidden: Float[Tensor, "*batch D"],
    head_weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " *batch"],
    *,
    chunk: int = 512,
    ignore_id: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The sum of -ln p(target), where p is the softmax of hidden @ head_weight.T; in nats.

    Under autocast, products are taken and logits held in its precision; the loss itself is float32.

    Args:
        hidden: last hidden states.
        head_weight: the output head, one row a token.
        targets: the tokens that came.
        chunk: positions whose logits are held at a time.
        ignore_id: targets with this id do not count.
        label_smoothing: this share of the target's probability is spread evenly over all V tokens.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if ignore_id is not None:
        real = targets != ignore_id
        hidden, targets = hidden[real], targets[real]
    if not torch.is_grad_enabled():  # autograd's function would not know, and work out the gradient for nothing
        hidden, head_weight = hidden.detach(), head_weight.detach()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _HeadAndLoss.apply(hidden, head_weight, targets, chunk, label_smoothing, dtype)


class _HeadAndLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, smoothing: float, dtype: torch.dtype
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        head, V, device = weight.to(dtype), len(weight), hidden.device.type
        # One piece of memory for all chunks, and on a CPU for logits, softmax and gradient: fresh pages for tensors of
        # this size cost a fifth of the whole.
        chunk = min(chunk, max(1, len(hidden)))
        memory = hidden.new_empty(chunk, V, dtype=dtype)
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        for start in range(0, len(hidden), chunk):
            h, picked = hidden[start : start + chunk].to(dtype), targets[start : start + chunk, None]
            logits = torch.mm(h, head.T, out=memory[: len(h)])
            top, of_target = logits.amax(-1, keepdim=True), logits.gather(-1, picked)
            if smoothing:
                total -= smoothing * logits.mean(-1, dtype=total.dtype).sum()
            # On a CPU over the logits: there a row is read to its end before it is written (a test holds torch to it).
            # Elsewhere that is not known, and new memory costs less.
            p = torch.softmax(logits, -1, out=logits if device == "cpu" else None)
            # ln p of the likeliest token can be taken: p is 1/V at least. It gives the logarithm of the sum, and so
            # -ln p of the target, whose p may be too small for a float.
            log_total = top.to(total.dtype) - p.amax(-1, keepdim=True).to(total.dtype).log()
            total += (log_total - (1 - smoothing) * of_target).sum()
            if not (wants_hidden or wants_weight):
                continue
            grad = p.sub_(smoothing / V) if smoothing else p
            grad[torch.arange(len(h), device=h.device), picked.squeeze(-1)] -= 1 - smoothing
            if grad_hidden is not None:
                grad_hidden[start : start + len(h)] = grad @ head
            if not wants_weight:
                continue
            if grad_weight is None:
                grad_weight = (grad.T @ h).to(weight.dtype)
            elif dtype == weight.dtype:
                grad_weight.addmm_(grad.T, h)
            else:
                grad_weight += grad.T @ h  # the sum of the chunks in the weight's own precision
        if wants_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)  # there was no target
        ctx.grads = grad_hidden, grad_weight
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradient of this loss was handed out already: backward runs through it once")
        grad_hidden, grad_weight = (None if grad is None else grad.mul_(grads[0]) for grad in ctx.grads)
        ctx.grads = None
        return grad_hidden, grad_weight, None, None, None, None
