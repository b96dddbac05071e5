"""Linear probes: whether a property can be read off the activations by a linear map.

    p(c | x) = softmax(x W^T + b)_c
    loss     = mean of -ln p(label | x)  +  l2 / 2 * (sum of all w^2)

That is multinomial logistic regression, and the loss is convex: there is one answer, and no seed. scikit-learn's
`LogisticRegression(C=1 / (N * l2))` has the same one for three classes or more. With two it has one vector for both,
half as much is penalised, and C = 2 / (N * l2).

A probe that is right does not show that the model uses what the probe found, nor even that the model computed it: a
wide activation lets a probe learn tokens by heart. So a control task stands beside it, which can only be learnt by
heart: each token type gets a label by lot.

    selectivity = accuracy on the task - accuracy on its control task

Source: Alain and Bengio 2016 (probes); Hewitt and Liang 2019 (control tasks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# A gradient below this, in the coordinates of the fit, is a minimum; the fit aims at a tenth of it.
_ZERO = 1e-8
# The fit counts the loss in larger units. torch's L-BFGS learns nothing from a step whose product with the change of
# the gradient is below 1e-10, and near the minimum that would be every step.
_UNIT = 1e8


class NotConverged(ValueError):
    """The fit did not come to the minimum in the steps it had."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe: W (C, D), b (C,), and the labels that its C rows stand for, in rising order.

    W and b are in float64. The sum of the rows of W is zero, and that of b: adding the same to all changes nothing.
    """

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]
    classes: Int[Tensor, " C"]

    def log_probabilities(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        """ln p(c | x) for each class."""
        return F.log_softmax(F.linear(x.double(), self.weight, self.bias), dim=-1)

    def predict(self, x: Float[Tensor, "*batch D"]) -> Int[Tensor, " *batch"]:
        """The likeliest label of each."""
        return self.classes[F.linear(x.double(), self.weight, self.bias).argmax(dim=-1)]

    def accuracy(self, x: Float[Tensor, "*batch D"], labels: Int[Tensor, " *batch"]) -> float:
        """The share of labels that the probe gets right.

        Raises:
            ValueError: there are no labels, or not one for each activation.
        """
        _check_labels(x, labels)
        return (self.predict(x) == labels).double().mean().item()


def fit_probe(x: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, l2: float | int, max_steps: int = 1000) -> Probe:
    """The probe with the smallest loss, found by L-BFGS in float64 from zero.

    Args:
        x: activations; those of a layer at the positions that have a label.
        labels: any whole numbers; the classes are those that occur.
        l2: how strongly large weights are held back. The biases are free.
        max_steps: most steps of L-BFGS.

    Raises:
        ValueError: there is not one label for each activation, fewer than two classes occur, an activation is not
            finite, or l2 is not above 0 (classes that a plane separates would draw the weights to infinity).
        NotConverged: the gradient is not near enough to zero after `max_steps`.

    >>> probe = fit_probe(torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([5, 5, 7, 7]), l2=0.1)
    >>> probe.predict(torch.tensor([[-0.1], [0.1]]))
    tensor([5, 7])
    """
    _check_labels(x, labels)
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a probe tells two classes or more apart: every one of {len(labels)} labels is {classes[0]}")
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, or the weights of separable classes have no limit: got {l2}")
    if not x.isfinite().all():
        raise ValueError(f"{int((~x.isfinite()).sum())} of {x.numel()} numbers of the activations are not finite")
    x = x.detach().double()
    C = len(classes)
    # The same minimum in other coordinates, in which the loss is about as steep in all directions: around the mean,
    # along the axes of the covariance, each in units of its own curvature at the start, variance / C + l2. Activations
    # need it: a few of their columns are hundreds of times larger than the others.
    mean = x.mean(dim=0)
    variance, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    unit = (variance.clamp(min=0) / C + l2).rsqrt()
    z = (x - mean) @ axes * unit
    v = torch.zeros(C, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    c = torch.zeros(C, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [v, c],
        max_iter=max_steps,
        max_eval=10 * max_steps,
        tolerance_grad=_UNIT * _ZERO / 10,
        tolerance_change=0.0,  # the gradient alone says when
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(z, v, c * C**0.5), targets) + l2 / 2 * (v * unit).square().sum()
        (_UNIT * loss).backward()
        return _UNIT * loss

    with torch.enable_grad():
        optimizer.step(closure)
        closure()
    left = max(parameter.grad.abs().max().item() / _UNIT for parameter in (v, c) if parameter.grad is not None)
    if not left <= _ZERO:
        raise NotConverged(
            f"after {max_steps} steps the gradient is {left:.1e} and not below {_ZERO:.0e}: raise l2 or max_steps"
        )
    weight = (v.detach() * unit) @ axes.T
    return Probe(weight, c.detach() * C**0.5 - weight @ mean, classes)


@dataclass(frozen=True)
class LabelledTokens:
    """N tokens of some texts: their activations, their labels, and their types (token ids, for one).

    Raises:
        ValueError: there is not one label and one type for each activation.
    """

    x: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]
    types: Int[Tensor, " N"]

    def __post_init__(self) -> None:
        _check_labels(self.x, self.labels)
        _check_labels(self.x, self.types)


@dataclass(frozen=True)
class ProbeScores:
    """Accuracy on held-out tokens, on the task and on its control task: shares, 0 ... 1."""

    accuracy: float
    control_accuracy: float

    @property
    def selectivity(self) -> float:
        """What the probe reads beyond what it could have learnt by heart."""
        return self.accuracy - self.control_accuracy


def control_labels(
    types: Int[Tensor, " N"], labels: Int[Tensor, " N"], *, generator: torch.Generator
) -> Int[Tensor, " N"]:
    """The control task: every token of a type gets the same label, drawn by lot for each type.

    Labels are drawn as often as they come in `labels`, so the control task is no easier to guess than the task.
    """
    _check_labels(types, labels)
    classes, counts = labels.unique(return_counts=True)
    vocabulary, which = types.unique(return_inverse=True)
    drawn = torch.multinomial(
        counts.double().to(generator.device), len(vocabulary), replacement=True, generator=generator
    )
    return classes[drawn.to(classes.device)][which]


def probe_with_control(
    train: LabelledTokens,
    held_out: LabelledTokens,
    *,
    l2: float | int,
    generator: torch.Generator,
    max_steps: int = 1000,
) -> ProbeScores:
    """Fit one probe on the task and one on its control task, and score both on held-out tokens.

    Args:
        train: what the probes are fitted to.
        held_out: other tokens; a type keeps its control label.
        l2: as in `fit_probe`, for both.
        generator: draws the control labels.
        max_steps: as in `fit_probe`.

    Raises:
        ValueError: as `fit_probe`.
    """
    control = control_labels(
        torch.cat([train.types, held_out.types]), torch.cat([train.labels, held_out.labels]), generator=generator
    )
    control_train, control_held_out = control.split([len(train.labels), len(held_out.labels)])
    probe = fit_probe(train.x, train.labels, l2=l2, max_steps=max_steps)
    control_probe = fit_probe(train.x, control_train, l2=l2, max_steps=max_steps)
    return ProbeScores(
        accuracy=probe.accuracy(held_out.x, held_out.labels),
        control_accuracy=control_probe.accuracy(held_out.x, control_held_out),
    )


def _check_labels(x: Tensor, labels: Tensor) -> None:
    if not labels.numel() or labels.shape != x.shape[: labels.ndim]:
        raise ValueError(
            f"there must be labels, one for each activation: got activations {tuple(x.shape)} and labels "
            f"{tuple(labels.shape)}"
        )
