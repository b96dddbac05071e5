"""Reference solution of exercise 01/03: negative sampling, its loss and its gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor


def noise_shares(counts: Tensor, power: float) -> Tensor:
    """How likely each word is drawn as noise: counts (V,), result (V,), which sums to one."""
    raised = counts.double() ** power
    return raised / raised.sum()


def sgns_loss(predictor: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """The summed loss of P pairs: predictor and target (P, D), negatives (P, K, D)."""
    true = (predictor * target).sum(-1)
    false = (negatives @ predictor[:, :, None]).squeeze(-1)
    return -F.logsigmoid(true).sum() - F.logsigmoid(-false).sum()


def sgns_gradients(predictor: Tensor, target: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the loss in predictor, target and negatives, each of the shape of its own."""
    pull = torch.sigmoid((predictor * target).sum(-1, keepdim=True)) - 1
    push = torch.sigmoid(negatives @ predictor[:, :, None])
    d_predictor = pull * target + (push * negatives).sum(1)
    return d_predictor, pull * predictor, push * predictor[:, None]
