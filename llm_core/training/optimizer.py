"""AdamW: steps of about the same size for every weight, however large its gradient.

Each weight keeps two running means, of its gradient and of the gradient's square; a step goes along their ratio.
Weight decay pulls weights towards zero on the side, not through the gradient (that is the W).

Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.Optimizer):
    """The same numbers as `torch.optim.AdamW`, in ten lines that can be read.

    Args:
        params: parameters, or groups of them (`decay_groups`).
        lr: learning rate, the size of a step.
        betas: how much of the two running means is kept each step.
        eps: added to the denominator.
        weight_decay: lr x weight_decay of each weight is taken off at each step.

    Raises:
        ValueError: a learning rate, eps or decay that is negative or not finite, or a beta outside 0 ... 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if not all(0 <= value < math.inf for value in (lr, eps, weight_decay)):
            raise ValueError(f"lr, eps and weight_decay are numbers from 0 on: got {lr}, {eps}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are shares, 0 <= beta < 1: got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Change every parameter that has a gradient; returns what the closure does, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        lr, (beta1, beta2), t = group["lr"], group["betas"], state["step"].item()

        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # Both means started from zero and are too small at first; these two divisions make up for it.
        mean_size, square_size = 1 - beta1**t, 1 - beta2**t
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.addcdiv_(mean, (square.sqrt() / square_size**0.5).add_(group["eps"]), value=-lr / mean_size)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which matrices and tables decay, and vectors (biases, norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
