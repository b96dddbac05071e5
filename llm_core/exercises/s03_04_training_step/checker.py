"""Checks `clip(gradients, max_norm)` and `training_step(model, parts, optimizer, max_norm, pad_id)` against torch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive, unchanged, wrong
from llm_core.exercises.report import Report

PAD = 0
FIRST = 1  # ids from here on are words
FAR = 1e3  # no gradient here is as long as this, so that none is clipped

CLIP = (
    Mistake(
        "clip_always",
        "Gradients are brought to the length max_norm even where they are shorter.",
        "Clipping only shortens. The factor max_norm / norm must not be larger than one.",
        ({"clipping": "always"},),
    ),
    Mistake(
        "clip_each_tensor",
        "Each gradient is clipped by itself.",
        "The norm is that of all gradients taken as one long vector. Clipped one by one they change their "
        "proportions, and with that the direction of the step.",
        ({"clipping": "each"},),
    ),
    Mistake(
        "clip_by_value",
        "Each number of the gradients is clipped by itself.",
        "That is clipping by value: it changes the direction. Multiply all numbers by one factor.",
        ({"clipping": "value"},),
    ),
    Mistake(
        "norm_not_rooted",
        "The norm is taken without its root.",
        "The length of a vector is the root of the sum of its squares.",
        ({"clipping": "squared"},),
    ),
    Mistake(
        "norms_added_up",
        "The norms of the gradients are added up.",
        "The squares are what adds up: the norm of all is the norm of the norms.",
        ({"clipping": "sum"},),
    ),
    Mistake(
        "max_norm_ignored",
        "Gradients are clipped to length 1, whatever max_norm is.",
        "Look for a 1.0 that was typed in.",
        ({"clipping": "to one"},),
    ),
)

STEP = (
    Mistake(
        "no_shift",
        "Inputs and targets are the same: each position is asked for the token that it has just been given.",
        "Inputs are all tokens of a row but the last, targets all but the first. Without the shift the loss falls "
        "to nothing, and the model learns to copy.",
        ({"shift": "none"}, {"shift": "none, whole"}, {"shift": "none, targets"}),
    ),
    Mistake(
        "shifted_backwards",
        "The shift goes the wrong way: each position is asked for the token before it.",
        "The target of a position is the token after it: part[:, 1:].",
        ({"shift": "backwards"},),
    ),
    Mistake(
        "padding_counted",
        "The padding is learned as if it were text.",
        "Targets that are pad_id do not count, neither in the sum nor in the number it is divided by.",
        ({"padding": "counted"},),
    ),
    Mistake(
        "divided_by_all_positions",
        "The losses of the real targets are divided by the number of all positions.",
        "The padding is out of the sum but still in the number: count the targets that are not pad_id.",
        ({"padding": "divided by"},),
    ),
    Mistake(
        "mean_of_part_means",
        "The loss is averaged within each part and then over the parts, so targets of small parts count more.",
        "Every target counts the same. Add up the losses of all parts, and divide by the number of all targets.",
        ({"average": "mean of means"},),
    ),
    Mistake(
        "sum_of_part_means",
        "The means of the parts are added up, and not divided.",
        "With four parts the gradient is four times too long. Count the targets of all parts first, and divide "
        "each part's sum by that number.",
        ({"average": "sum of means"},),
    ),
    Mistake(
        "sum_not_divided",
        "The losses are summed up and never divided.",
        "The mean is wanted: divide by the number of targets of all parts. A sum grows with the batch, and with it "
        "its gradient.",
        ({"average": "sum"},),
    ),
    Mistake(
        "softmax_before_loss",
        "The softmax is applied twice.",
        "F.cross_entropy takes logits and does the softmax itself. Probabilities handed to it as logits lie between "
        "0 and 1, so the loss can never come near zero.",
        ({"softmax": "twice"},),
    ),
    Mistake(
        "no_zero_grad",
        "Gradients of the step before are still in the sum.",
        "`backward` adds to the gradients that are there. Make room with zero_grad, before the first part.",
        ({"zero": "never"},),
    ),
    Mistake(
        "zero_grad_between_parts",
        "Only the last part has an effect.",
        "zero_grad belongs before the loop over the parts. Inside, it throws away what the parts before have given.",
        ({"zero": "each part"},),
    ),
    Mistake(
        "step_for_each_part",
        "The optimizer moves the weights after each part.",
        "The parts are one batch: backward for each of them, then one step.",
        (
            {"update": "each part"},
            {"update": "each part", "zero": "each part"},
            {"update": "each part", "zero": "each part", "average": "sum of means"},
        ),
    ),
    Mistake(
        "optimizer_not_used",
        "The weights move by the learning rate times the gradient, whatever the optimizer is.",
        "Call the optimizer's step. It may be another one than plain gradient descent.",
        ({"update": "by hand"},),
    ),
)

# These leave the weights alone, or move them by too long a step; what gradient is left tells which.
NOT_MOVED = (
    Mistake(
        "zero_grad_after_backward",
        "The gradients are thrown away before the optimizer has used them: no weight has moved.",
        "zero_grad comes before the first backward, or after the step, and not between the two.",
        ({"zero": "after backward"},),
    ),
)
NO_STEP = (
    Mistake(
        "no_step",
        "The gradients are there, and no weight has moved.",
        "It is optimizer.step() that changes the weights.",
        ({"update": "none"},),
    ),
)
LATE = (
    Mistake(
        "clip_after_step",
        "The gradients are clipped when the step has been taken.",
        "backward, clip, step: in this order. A gradient that is clipped after the step protects nothing.",
        ({"clipping": "none"},),
    ),
)
UNCLIPPED = (
    Mistake(
        "not_clipped",
        "The gradients are not clipped.",
        "If `clip` returns new tensors, they have to get back into the parameters' .grad before the step.",
        ({"clipping": "none"},),
    ),
)


class Task(NamedTuple):
    """What a step works on: a model with ids (B, T) -> logits (B, T, V), and the parts of a batch."""

    model: nn.Module
    parts: list[Tensor]


class Bigram(nn.Module):
    """Logits of the next token from the last one alone: the smallest model that can be trained."""

    def __init__(self, vocab_size: int, width: int, source: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocab_size, width, generator=source))
        self.head = nn.Parameter(torch.randn(vocab_size, width, generator=source))
        self.bias = nn.Parameter(torch.randn(vocab_size, generator=source))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) -> logits (B, T, V)."""
        return self.embedding[ids].tanh() @ self.head.T + self.bias


def draw(seed: int, n_parts: int, max_length: int, n_words: int) -> Task:
    """A model, and parts of a batch with rows of different lengths, filled up with PAD on the right.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_parts=n_parts, max_length=max_length, n_words=n_words)
    source = generator(seed)
    model = Bigram(FIRST + n_words, 8, source)
    return Task(model, _parts(source, n_parts, max_length, n_words))


def _parts(source: torch.Generator, n_parts: int, max_length: int, n_words: int) -> list[Tensor]:
    """Each part is shorter than the one before, and has another number of rows."""
    parts = []
    for number in range(n_parts):
        longest = max(1, max_length - 2 * number)
        lengths = torch.randint(1, longest + 1, (2 + number % 3,), generator=source).tolist()
        lengths[0] = longest
        part = torch.full((len(lengths), longest + 1), PAD)
        for row, n in enumerate(lengths):
            part[row, : n + 1] = torch.randint(FIRST, FIRST + n_words, (n + 1,), generator=source)
        parts.append(part)
    return parts


def clipped(gradients: list[Tensor], max_norm: float, *, clipping: str = "all") -> Tensor:
    """The clipped gradients as one vector, with a knob for every usual mistake; as it stands, it is right."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    each = torch.stack([gradient.square().sum().sqrt() for gradient in gradients])
    norm = {
        "sum": lambda: each.sum(),
        "squared": lambda: flat.square().sum(),
    }.get(clipping, lambda: flat.square().sum().sqrt())()
    if clipping == "none":
        return flat
    if clipping == "value":
        return flat.clamp(-max_norm, max_norm)
    if clipping == "each":
        return torch.cat([clipped([gradient], max_norm) for gradient in gradients])
    if clipping == "to one":
        max_norm = 1.0
    if clipping != "always" and norm <= max_norm:
        return flat
    return flat * (max_norm / norm)


def step_variant(
    task: Task,
    make: Callable[[Any], torch.optim.Optimizer],
    stale: float,
    max_norm: float,
    what: str,
    *,
    shift: str = "one",
    padding: str = "left out",
    average: str = "targets",
    softmax: str = "once",
    zero: str = "first",
    clipping: str = "all",
    update: str = "optimizer",
) -> Tensor:
    """The loss, or all weights after the step, with a knob for every usual mistake; as it stands, it is right."""
    model, optimizer = _ready(task, make, stale)
    parameters = list(model.parameters())
    cut = [_cut(part, shift) for part in task.parts]
    real = [torch.ones_like(t, dtype=torch.bool) if padding == "counted" else t != PAD for _, t in cut]
    counts = [float(r.numel() if padding == "divided by" else r.sum()) for r in real]
    divisors = {
        "targets": [sum(counts)] * len(counts),
        "mean of means": [n * len(counts) for n in counts],
        "sum of means": counts,
        "sum": [1.0] * len(counts),
    }[average]

    def clip() -> None:
        flat = clipped([p.grad for p in parameters if p.grad is not None], max_norm, clipping=clipping)
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    loss = torch.zeros(())
    if zero != "never":
        optimizer.zero_grad()
    for place, ((inputs, targets), counted, divisor) in enumerate(zip(cut, real, divisors, strict=True)):
        logits = model(inputs)
        logits = logits.softmax(-1) if softmax == "twice" else logits
        losses = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        mean = losses[counted].sum() / divisor
        loss += mean.detach()
        if zero == "each part":
            optimizer.zero_grad()
        if what == "loss" and update != "each part":
            continue
        for parameter, gradient in zip(parameters, torch.autograd.grad(mean, parameters), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if update == "each part" and place < len(cut) - 1:
            clip()
            optimizer.step()
    if what == "loss":
        return loss
    if zero == "after backward":
        return _weights(model)
    clip()
    if update == "by hand":
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(optimizer.param_groups[0]["lr"] * parameter.grad)
    elif update != "none":
        optimizer.step()
    return _weights(model)


def _cut(part: Tensor, shift: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a part."""
    return {
        "one": (part[:, :-1], part[:, 1:]),
        "none": (part[:, :-1], part[:, :-1]),
        "none, whole": (part, part),
        "none, targets": (part[:, 1:], part[:, 1:]),
        "backwards": (part[:, 1:], part[:, :-1]),
    }[shift]


def reference(task: Task, make: Callable[[Any], torch.optim.Optimizer], max_norm: float) -> tuple[Tensor, Tensor]:
    """Loss and weights: torch's own functions on all real targets at once."""
    model, optimizer = _ready(task, make, 0.0)
    optimizer.zero_grad()
    logits = torch.cat([model(part[:, :-1]).flatten(0, 1) for part in task.parts])
    targets = torch.cat([part[:, 1:].flatten() for part in task.parts])
    loss = F.cross_entropy(logits, targets, ignore_index=PAD)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach(), _weights(model)


def _ready(
    task: Task, make: Callable[[Any], torch.optim.Optimizer], stale: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the model, with gradients of that size left from before, and its optimizer."""
    model = deepcopy(task.model)
    for number, parameter in enumerate(model.parameters()):
        if stale:
            parameter.grad = torch.linspace(-stale, stale * (number + 1), parameter.numel()).view_as(parameter)
    return model, make(model.parameters())


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _named(function: Any, call: Callable[..., Any]) -> Any:
    """The call under the learner's name; what is no function stays what it is, and is refused as that."""
    if callable(function):
        call.__name__ = getattr(function, "__name__", "the function")
        return call
    return function


def examine(clip: Any, training_step: Any, *, seed: int, n_parts: int, max_length: int, n_words: int) -> Report:
    """Check a learner's `clip(gradients, max_norm)` and `training_step(model, parts, optimizer, max_norm, pad_id)`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    yours = draw(seed, n_parts, max_length, n_words)
    source = generator(seed + 1)
    exam = Exam(
        "03/04_training_step",
        {"seed": seed, "n_parts": n_parts, "max_length": max_length, "n_words": n_words},
    )
    uneven = Task(Bigram(FIRST + 12, 6, source), _parts(source, 3, 9, 12))

    def clips(*shapes: tuple[int, ...], size: float, max_norm: float) -> None:
        gradients = [(k + 1) * torch.randn(shape, generator=source) for k, shape in enumerate(shapes)]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        gradients = [size / norm * gradient for gradient in gradients]
        given = [gradient.clone() for gradient in gradients]
        result = exam.call(_named(clip, lambda: clip(given, max_norm)))
        if not isinstance(result, list | tuple) or len(result) != len(gradients):
            exam.unpack(result, ", ".join(f"gradient {k + 1}" for k in range(len(gradients))))
        got = [exam.tensor(gradient, "each gradient") for gradient in result]
        if not unchanged(gradients, given):
            raise wrong(
                "input_changed",
                "`clip` changes the gradients it is given.",
                "Here it returns new ones: `factor * gradient`, without `*=` and without methods that end in an "
                "underscore.",
                about="clip",
            )
        for a, b in zip(gradients, got, strict=True):
            if a.shape != b.shape:
                raise wrong(
                    "shape",
                    f"A gradient of shape {tuple(a.shape)} comes back with shape {tuple(b.shape)}.",
                    "Each gradient belongs to one parameter and has its shape.",
                    about="clip",
                )
        right = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(right, gradients, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(right, max_norm)
        exam.compare(
            torch.cat([gradient.flatten() for gradient in got]),
            torch.cat([parameter.grad.flatten() for parameter in right if parameter.grad is not None]),
            mistakes(clipped, CLIP, gradients=gradients, max_norm=max_norm),
            what="the clipped gradients",
        )

    def step(
        task: Task,
        what: str,
        *,
        max_norm: float = FAR,
        stale: float = 0.0,
        make: Callable[[Any], torch.optim.Optimizer] = _sgd,
    ) -> None:
        model, optimizer = _ready(task, make, stale)
        parts = [part.clone() for part in task.parts]
        before = _weights(model)
        result = exam.call(_named(training_step, lambda: training_step(model, parts, optimizer, max_norm, PAD)))
        loss = exam.tensor(result, "the loss")
        if not unchanged(task.parts, parts):
            raise wrong("input_changed", "`training_step` changes the ids it is given.", about="training_step")
        right_loss, right_weights = reference(task, make, max_norm)
        fixed = {"task": task, "make": make, "stale": stale, "max_norm": max_norm}
        if what == "loss":
            exam.compare(loss, right_loss, mistakes(step_variant, STEP, **fixed, what="loss"), what="the loss")
            return
        left = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        length = float(torch.cat(left).norm()) if left else 0.0
        moved = not torch.equal(before, _weights(model))
        table: tuple[Mistake, ...] = STEP + CLIP
        if not moved:
            table = NO_STEP if length else NOT_MOVED
        elif max_norm < FAR:
            table = (LATE if length <= max_norm * 1.001 else UNCLIPPED) + table
        exam.compare(
            _weights(model), right_weights, mistakes(step_variant, table, **fixed, what="weights"), what="the weights"
        )

    with exam.part("clip: a long gradient"):
        clips((3, 4), (4,), (2, 2, 2), size=20.0, max_norm=2.5)
    with exam.part("clip: a short gradient"):
        clips((3, 4), (4,), (5,), size=0.7, max_norm=2.5)
    with exam.part("clip: a single number"):
        clips((1,), size=8.0, max_norm=0.5)
    with exam.part("clip: nothing but zeros"):
        clips((6,), (2, 3), size=0.0, max_norm=1.0)
    with exam.part("the loss of your parts"):
        step(yours, "loss")
    with exam.part("the weights after a step on your parts"):
        step(yours, "weights")
    with exam.part("the loss of parts of unequal size"):
        step(uneven, "loss")
    with exam.part("the weights after a step on them"):
        step(uneven, "weights")
    with exam.part("a single part, without padding"):
        step(Task(uneven.model, [uneven.parts[0][:1]]), "weights")
    with exam.part("gradients left from the step before"):
        step(uneven, "weights", stale=0.3)
    with exam.part("a gradient that has to be clipped"):
        step(uneven, "weights", max_norm=0.05)
    with exam.part("another optimizer"):
        step(uneven, "weights", make=_adamw)
    return exam.report()


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, eps=0.1)  # a small eps would blow up rounding errors
