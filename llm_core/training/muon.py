"""Muon: steps that turn all directions of a weight matrix by the same amount.

The gradient of a matrix is usually dominated by a few directions; the others hardly move. Muon keeps a running mean of
the gradient, as AdamW does, and then replaces it by the nearest matrix whose singular values are all one:

    mean = U S V^T        ->        step along U V^T

The singular value decomposition would be slow. Five rounds of a polynomial bring all singular values close to one, with
nothing but matrix products (Newton-Schulz). Most end between 0.7 and 1.2, tiny ones below; more rounds are not needed.

It is for the matrices inside the blocks. Embeddings, the output head, norms and biases are left to AdamW, so that one
optimizer does both (`muon_groups`).

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of the step after Liu et
al. 2025, "Muon is Scalable for LLM Training".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.checks import check_shares
from llm_core.training.optimizer import AdamW, decay_groups

# Chosen by the authors so that small singular values grow as fast as possible; they need not end at exactly one.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def working_dtype(device: torch.device) -> torch.dtype:
    """What the rounds are computed in: bf16, which is exact enough; but float32 on a CPU.

    Many processors have no instruction for bf16 products. There they took 14 to 29 times as long as in float32. Where
    there is one, float32 took two to four times as long for matrices of 512 columns and more. It is taken all the same:
    a run should not depend on the processor by more than rounding.
    """
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def orthogonalized(matrix: Float[Tensor, "M N"], rounds: int = 5) -> Float[Tensor, "M N"]:
    """U V^T of the matrix U S V^T, nearly: singular values that are not tiny end near one. In the `working_dtype`.

    Each round takes X to a X + b (X X^T) X + c (X X^T)^2 X. That leaves U and V alone, and takes each singular value s
    to a s + b s^3 + c s^5.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(working_dtype(matrix.device))
    wide = x.T if x.shape[0] > x.shape[1] else x  # the smaller of the two products X X^T
    wide = wide / wide.norm().clamp(min=1e-7)  # no singular value is above one now
    for _ in range(rounds):
        gram = wide @ wide.T
        gram = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.addmm(wide, gram, wide, beta=a)
    return wide.T if x.shape[0] > x.shape[1] else wide


class Muon(AdamW):
    """Muon for the groups that say `"muon": True`, AdamW for the others.

    Its steps are those of `torch.optim.Muon`, which works in bf16 everywhere: on a CPU they differ by a percent or two.

    A matrix of M x N moves by lr x 0.2 sqrt(max(M, N)) U V^T, which is about as far as AdamW would move it. So learning
    rates and weight decays that suit AdamW can be kept, and one schedule does for all groups.

    Args:
        params: groups of parameters, as `muon_groups` makes them.
        lr: learning rate.
        momentum: how much of the running mean of the gradient is kept each step.
        betas: of AdamW, for the other groups.
        eps: of AdamW.
        weight_decay: lr x weight_decay of each weight is taken off at each step.

    Raises:
        ValueError: a group for Muon holds what is no matrix, or a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        check_shares(momentum=momentum)
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.param_groups:
            group.setdefault("momentum", momentum)
            group.setdefault("muon", False)
            for parameter in group["params"]:
                if group["muon"] and parameter.ndim != 2:
                    raise ValueError(
                        f"Muon is for matrices: got a parameter of shape {tuple(parameter.shape)}. "
                        "Leave it to AdamW, in a group without muon=True"
                    )

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if not group["muon"]:
            super()._update(parameter, grad, group)
            return
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"])  # Nesterov: where the mean is going, not where it is
        size = 0.2 * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalized(ahead), alpha=-group["lr"] * size)


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices of the blocks for Muon; tables, the output head and vectors for AdamW.

    A matrix of the blocks is the 2-D weight of an `nn.Linear` anywhere under `model.blocks`.

    Raises:
        ValueError: the model has no `blocks`, so it is not known which of its matrices are hidden ones.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Module):
        raise ValueError(f"muon_groups needs a model with `blocks`, such as GPT and Llama: got {type(model).__name__}")
    linear = [module.weight for module in blocks.modules() if isinstance(module, nn.Linear)]
    hidden = [weight for weight in linear if weight.requires_grad]
    chosen = {id(weight) for weight in hidden}
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in chosen]}
        for group in decay_groups(model, weight_decay)
    ]
    return [{"params": hidden, "weight_decay": weight_decay, "muon": True}, *rest]
