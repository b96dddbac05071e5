"""16-bit weights with 32-bit masters: a model that computes in bf16 from end to end.

Under autocast the weights stay float32, and so does most of what lies between the matrix products. Here the model is
cast itself: weights, activations and gradients take half the memory, and half the time to move. What bf16 cannot hold
is a small update, as its numbers near 1 are 1/128 apart. So the optimizer keeps a float32 copy of each weight, its
master:

    master  <- one step of the optimizer, with the gradient in float32
    weight  <- master, rounded to bf16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MasterWeights(torch.optim.Optimizer):
    """Casts a model to bf16 and lets an optimizer work on float32 masters of its weights.

        optimizer = MasterWeights(model, AdamW(decay_groups(model, 0.1)))

    It is used, saved and restored like the optimizer inside; a checkpoint holds the masters too, and resuming is exact.
    Gradients are clipped as they are, in bf16: the norm is right to two digits or three.

    Args:
        model: its parameters and buffers are cast, in place; those that are not trained too.
        optimizer: made for the model's parameters as they were, and not used yet.
        dtype: what the model computes in.

    Raises:
        ValueError: the optimizer was used already, or holds what is no parameter of the model; or dtype holds whole
            numbers.

    Source: Micikevicius et al. 2018, section 3.1.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is a kind of floating-point numbers, such as torch.bfloat16: got {dtype}")
        if optimizer.state:
            raise ValueError("masters are made for an optimizer that has taken no step yet: make a new one")
        known = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("the optimizer holds a parameter that is not the model's: make it for this model")
        super().__init__([dict(group) for group in optimizer.param_groups], {})
        self.inner = optimizer
        for group in optimizer.param_groups:
            group["params"] = [parameter.detach().clone().float() for parameter in group["params"]]
        model.to(dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update the masters of all parameters that have a gradient, and round; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner |= {name: value for name, value in outer.items() if name != "params"}  # the learning rate, say
        pairs = self._pairs()
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        for parameter, master in pairs:
            if master.grad is not None:
                parameter.copy_(master)
                master.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, with each parameter's `master`."""
        saved = self.inner.state_dict()
        state = {i: {**saved["state"].get(i, {}), "master": master} for i, (_, master) in enumerate(self._pairs())}
        groups = [
            {**inner, **{name: value for name, value in outer.items() if name != "params"}}
            for outer, inner in zip(self.param_groups, saved["param_groups"], strict=True)
        ]
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the model's weights are the masters, rounded, afterwards.

        Raises:
            ValueError: it is the state of an optimizer without masters, of one with other groups, or of another model.
        """
        pairs = self._pairs()
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(f'a state has "state" and "param_groups": this one has {[*state_dict]}')
        masters = [state_dict["state"].get(i, {}).get("master") for i in range(len(pairs))]
        if any(master is None for master in masters):
            raise ValueError("this state has no masters: it was saved by another optimizer, not by MasterWeights")
        for i, ((_, master), saved) in enumerate(zip(pairs, masters, strict=True)):
            if master.shape != saved.shape:
                raise ValueError(
                    f"the master of parameter {i} is {tuple(master.shape)}, and {tuple(saved.shape)} in this state: "
                    "give the state of the same model"
                )
        rest = {
            i: kept
            for i, of_one in state_dict["state"].items()
            if (kept := {name: value for name, value in of_one.items() if name != "master"})
        }
        self.inner.load_state_dict({"state": rest, "param_groups": state_dict["param_groups"]})
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer |= {name: value for name, value in inner.items() if name != "params"}
        for (parameter, master), saved in zip(pairs, masters, strict=True):
            master.copy_(saved)
            parameter.copy_(master)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter of the model with its master."""
        groups = zip(self.param_groups, self.inner.param_groups, strict=True)
        return [pair for outer, inner in groups for pair in zip(outer["params"], inner["params"], strict=True)]
