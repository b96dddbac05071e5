"""Checks `all_reduce_mean`, `ring_bytes` and `scaled_step`; the right results are those of autograd, of a ring that is
played message by message, and of torch's `GradScaler`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive, wrong
from llm_core.exercises.report import Finding, Report

MEAN = (
    Mistake(
        "sum_not_mean",
        "The workers' gradients are added up, and the sum is not divided by the number of targets.",
        "With more workers the step would grow. What counts is the mean over all targets: divide by their number.",
        ({"how": "sum"}, {"how": "sum of targets"}),
    ),
    Mistake(
        "mean_of_means",
        "Every worker counts the same, however many targets it has.",
        "Each row is a mean over the worker's own targets. A mean of means lets the targets of a worker that has few "
        "count more. Weigh each row by its count.",
        ({"how": "plain"},),
    ),
    Mistake(
        "divided_by_workers",
        "The sum over all targets is divided by the number of workers, not by the number of targets.",
        "Times its count, a row is a sum over targets. What these add up to is divided by the sum of the counts.",
        ({"how": "by workers"},),
    ),
    Mistake(
        "not_synchronised",
        "Each worker keeps a gradient of its own.",
        "Then the workers take different steps, and their weights drift apart: several models instead of one. After "
        "an all-reduce all rows are the same.",
        ({"shared": "none"}, {"shared": "none, by count"}),
    ),
    Mistake(
        "only_one_worker_has_it",
        "Only the first worker gets the mean; the others keep what they had.",
        "That is a reduce. In an all-reduce everyone gets the result.",
        ({"shared": "first"},),
    ),
)

RING = (
    Mistake(
        "ring_all_workers",
        "The number of bytes is 2 N, whatever the number of workers.",
        "Each of the two halves takes n - 1 rounds, not n: a chunk need not come back to where it started.",
        ({"rounds": "n"},),
    ),
    Mistake(
        "ring_half",
        "Only one half of the all-reduce is counted.",
        "First the chunks are added up around the ring (reduce-scatter), then the finished ones go around "
        "(all-gather). Both send the same.",
        ({"halves": 1},),
    ),
    Mistake(
        "ring_whole_tensor",
        "The whole tensor is sent in each round.",
        "A message is one chunk, an n-th of the tensor.",
        ({"chunk": "whole"},),
    ),
)

STEP = (
    Mistake(
        "not_unscaled",
        "The gradient is not divided by the scale.",
        "The loss was multiplied by the scale before the backward pass, and so was every gradient.",
        ({"unscale": "never"},),
    ),
    Mistake(
        "multiplied_by_scale",
        "The gradient is multiplied by the scale once more.",
        "It has to be divided: the factor is in it already.",
        ({"unscale": "times"},),
    ),
    Mistake(
        "unscaled_after_clipping",
        "The gradient is clipped first and divided by the scale afterwards.",
        "max_norm is the length of a true gradient. One that is still scaled nearly always looks too long, and after "
        "the division it is far too short.",
        ({"unscale": "after"},),
    ),
    Mistake(
        "not_clipped",
        "A gradient that is longer than max_norm is not shortened.",
        "Multiply it by max_norm / norm where the norm of the unscaled gradient is larger than max_norm.",
        ({"clip": "never"},),
    ),
    Mistake(
        "always_clipped",
        "A gradient that is shorter than max_norm is lengthened to it.",
        "Clipping only ever shortens.",
        ({"clip": "always"},),
    ),
    Mistake(
        "clipped_number_by_number",
        "Each number of the gradient is clipped by itself.",
        "That changes the gradient's direction. Its norm, over all numbers at once, is what max_norm limits.",
        ({"clip": "numbers"},),
    ),
)

SCALE = (
    Mistake(
        "scale_not_reduced",
        "After an overflow the scale stays as it was.",
        "Then the next step overflows too, and training stands still. Halve it.",
        ({"reduce": 1.0},),
    ),
    Mistake(
        "scale_grows_on_overflow",
        "After an overflow the scale gets larger.",
        "Overflow means that the gradients were multiplied by too much.",
        ({"reduce": 2.0},),
    ),
    Mistake(
        "good_steps_not_reset",
        "After an overflow the good steps are still counted from before.",
        "They have to be good in a row: begin again at 0.",
        ({"after_overflow": "keep"}, {"after_overflow": "count"}),
    ),
    Mistake(
        "scale_never_grows",
        "After `interval` good steps in a row the scale does not grow.",
        "Doubled when all has gone well for a while, it stays as large as it can be.",
        ({"growth": "never"},),
    ),
    Mistake(
        "scale_grows_at_once",
        "The scale grows after every good step.",
        "Only `interval` good steps in a row double it. Growing at once would overflow every few steps.",
        ({"growth": "at once"},),
    ),
    Mistake(
        "count_not_reset_after_growth",
        "After the scale has grown, the good steps are not counted from 0 again.",
        "Otherwise it never grows again, or grows at every step from then on.",
        ({"growth": "keep"},),
    ),
)

NO_SKIP = Finding(
    "no_skip",
    "A step whose gradient has overflowed is not skipped.",
    "One infinite number would make the weights infinite or NaN for good. Return None as the gradient.",
    known=True,
)
NAN_MISSED = Finding(
    "nan_missed",
    "An infinite gradient is noticed; one that is not a number is not.",
    "inf - inf and 0 * inf are NaN, which `isinf` does not find. `isfinite` looks for both.",
    known=True,
)
INF_MISSED = Finding(
    "inf_missed",
    "A gradient that is not a number is noticed; an infinite one is not.",
    "Overflow gives inf first, which `isnan` does not find. `isfinite` looks for both.",
    known=True,
)
ZERO_NOT_SKIPPED = Finding(
    "zero_not_skipped",
    "Instead of being skipped, the step gets a gradient of zeros.",
    "With a zero gradient AdamW still moves the weights, along its running means and by weight decay. Return None.",
    known=True,
)
GOOD_STEP_SKIPPED = Finding(
    "good_step_skipped",
    "A step is skipped although all numbers of its gradient are finite.",
    "None is for gradients with an infinite number or a NaN in them, and no others.",
    known=True,
)


def mean_variant(gradients: Tensor, counts: Tensor, *, how: str = "targets", shared: str = "all") -> Tensor:
    """What each worker holds, with a knob for every usual mistake; as it stands, it is right."""
    sums = counts.view(-1, *[1] * (gradients.ndim - 1)) * gradients
    mean = {
        "targets": lambda: sums.sum(0) / counts.sum(),
        "sum": lambda: gradients.sum(0),
        "sum of targets": lambda: sums.sum(0),
        "plain": lambda: gradients.mean(0),
        "by workers": lambda: sums.sum(0) / len(counts),
    }[how]()
    if shared == "none":
        return gradients
    if shared == "none, by count":
        return sums / counts.sum()
    if shared == "first":
        return torch.cat([mean[None], gradients[1:]])
    return mean.expand_as(gradients)


def ring_variant(n_bytes: int, workers: int, *, rounds: str = "n - 1", halves: int = 2, chunk: str = "nth") -> Tensor:
    """Bytes that each worker sends, with knobs."""
    n_rounds = workers if rounds == "n" else workers - 1
    return torch.tensor(halves * n_rounds * n_bytes / (1 if chunk == "whole" else workers), dtype=torch.float64)


def step_variant(gradient: Tensor, scale: float, max_norm: float, *, unscale: str = "before", clip: str = "") -> Tensor:
    """The gradient of a good step, with knobs."""
    x = {"before": gradient / scale, "never": gradient, "times": gradient * scale, "after": gradient}[unscale]
    norm = x.norm()
    if clip == "numbers":
        x = x.clamp(-max_norm, max_norm)
    elif clip == "always" or (clip != "never" and norm > max_norm):
        x = x * max_norm / norm
    return x / scale if unscale == "after" else x


def scale_variant(
    scale: float,
    good: int,
    interval: int,
    finite: bool,
    *,
    reduce: float = 0.5,
    after_overflow: str = "0",
    growth: str = "interval",
) -> Tensor:
    """The next scale and the good steps in a row, with knobs."""
    if not finite:
        pair = scale * reduce, {"0": 0, "keep": good, "count": good + 1}[after_overflow]
    elif growth == "never" or (growth != "at once" and good + 1 < interval):
        pair = scale, 0 if growth == "never" and good + 1 == interval else good + 1
    else:
        done = growth == "keep" or (growth == "at once" and good + 1 < interval)
        pair = 2 * scale, good + 1 if done else 0
    return torch.tensor(pair, dtype=torch.float64)


@cache
def played_ring(n_bytes: int, workers: int) -> float:
    """Bytes that one worker sends until all of them have the sum, counted message by message."""
    # What each worker knows of each chunk: whose parts are in it.
    known = [[{rank} for _ in range(workers)] for rank in range(workers)]
    sent, step = 0.0, 0
    while any(parts != set(range(workers)) for own in known for parts in own):
        messages = [((rank + 1) % workers, (rank - step) % workers) for rank in range(workers)]
        pieces = [set(known[to - 1][chunk]) for to, chunk in messages]
        for (to, chunk), piece in zip(messages, pieces, strict=True):
            known[to][chunk] |= piece
        sent, step = sent + n_bytes / workers, step + 1
    return sent


def taken_step(
    gradient: Tensor, scale: float, good: int, max_norm: float, interval: int
) -> tuple[Tensor | None, Tensor]:
    """What torch's GradScaler makes of it: the clipped gradient, or None; and the next scale with the good steps."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": good})
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([parameter], max_norm)
    scaler.step(optimizer)
    scaler.update()
    state = scaler.state_dict()
    following = torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)
    return (None, following) if not gradient.isfinite().all() else (-parameter.detach(), following)


def examine(
    all_reduce_mean: Any, ring_bytes: Any, scaled_step: Any, *, seed: int, n_workers: int, n_weights: int
) -> Report:
    """Check a learner's three functions.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_workers=n_workers, n_weights=n_weights)
    source = generator(seed)
    exam = Exam("03/08_data_parallel", {"seed": seed, "n_workers": n_workers, "n_weights": n_weights})

    def drawn(counts: list[int], *shape: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each worker's gradient of its own mean loss, the counts, and the gradient of the mean over all targets."""
        x = torch.randn(sum(counts), *shape, generator=source)
        target = 2 * torch.randn(sum(counts), generator=source) + 1
        weights = torch.randn(shape, generator=source)

        def gradient(rows: slice) -> Tensor:
            w = weights.clone().requires_grad_()
            error = (x[rows].flatten(1) @ w.flatten() - target[rows]) ** 2
            return torch.autograd.grad(error.mean(), w)[0]

        ends = torch.tensor(counts).cumsum(0).tolist()
        own = [gradient(slice(end - n, end)) if n else torch.zeros(shape) for n, end in zip(counts, ends, strict=True)]
        return torch.stack(own), torch.tensor(counts, dtype=torch.float32), gradient(slice(None))

    def compare_mean(counts: list[int], *shape: int) -> None:
        gradients, weights, right = drawn(counts, *shape)
        got = exam.tensor(exam.call(all_reduce_mean, gradients, weights), "the workers' gradients")
        exam.compare(
            got,
            right.expand_as(gradients),
            mistakes(mean_variant, MEAN, gradients=gradients, counts=weights),
            what="the workers' gradients",
            clue=lambda: exam.suspect(all_reduce_mean, (gradients, weights), "gradients, counts"),
        )

    def compare_ring(n_bytes: int, workers: int) -> None:
        got = exam.number(exam.call(ring_bytes, n_bytes, workers), "the number of bytes")
        right = torch.tensor(played_ring(n_bytes, workers), dtype=torch.float64)
        known = mistakes(ring_variant, RING, n_bytes=n_bytes, workers=workers)
        exam.compare(got, right, known, what="the number of bytes")

    def compare_step(gradient: Tensor, scale: float, good: int, max_norm: float, interval: int) -> None:
        given = (gradient, scale, good, max_norm, interval)
        right, following = taken_step(*given)
        result = exam.unpack(exam.call(scaled_step, *given), "gradient, scale, good_steps")
        if right is None and result[0] is not None:
            raise Wrong((_not_skipped(exam, scaled_step, exam.tensor(result[0], "the gradient"), *given),))
        if right is not None:
            if result[0] is None:
                raise Wrong((GOOD_STEP_SKIPPED,))
            known = mistakes(step_variant, STEP, gradient=gradient, scale=scale, max_norm=max_norm)
            exam.compare(exam.tensor(result[0], "the gradient"), right, known, what="the gradient")
        numbers = [float(x) for x in result[1:] if isinstance(x, int | float | Tensor)]
        if len(numbers) < 2:
            raise wrong("type", "The next scale and the good steps have to be numbers.", about="the next scale")
        finite = right is not None
        exam.compare(
            torch.tensor(numbers, dtype=torch.float64),
            following,
            mistakes(scale_variant, SCALE, scale=scale, good=good, interval=interval, finite=finite),
            what="the next scale and the good steps",
        )

    def scaled(norm: float, scale: float, n: int = 7) -> Tensor:
        """A gradient of this norm, times the scale."""
        direction = torch.randn(n, generator=source)
        direction[0] += 2  # one number is larger than the others
        return scale * norm * direction / direction.norm()

    def overflowed(value: float, place: int) -> Tensor:
        gradient = scaled(1.0, 64.0)
        gradient[place] = value
        return gradient

    with exam.part("your numbers"):
        counts = torch.randint(1, 10, (n_workers,), generator=source).tolist()
        compare_mean(counts, n_weights)
    with exam.part("workers with unequal numbers of targets"):
        compare_mean([1, 6, 3, 11], 5)
    with exam.part("a worker without targets, and weights in a matrix"):
        compare_mean([4, 0, 7], 3, 2)
    with exam.part("a single worker"):
        compare_mean([5], 4)
    with exam.part("the ring: your numbers"):
        compare_ring(4 * n_weights * n_workers, n_workers)
    with exam.part("the ring: 5, 64 and 2 workers"):
        for workers in (5, 64, 2):
            compare_ring(640_000, workers)
    with exam.part("the ring: a single worker"):
        compare_ring(1000, 1)
    with exam.part("a gradient far too short to be clipped"):
        compare_step(scaled(0.4, 512.0), 512.0, 1, 1e9, 10)
    with exam.part("a gradient that is short enough"):
        compare_step(scaled(0.3, 1024.0), 1024.0, 2, 1.0, 10)
    with exam.part("a gradient that is too long"):
        compare_step(scaled(9.0, 256.0), 256.0, 0, 1.5, 10)
    with exam.part("the last good step before the scale grows"):
        compare_step(scaled(0.5, 128.0), 128.0, 3, 1.0, 4)
    with exam.part("an infinite number in the gradient"):
        compare_step(overflowed(math.inf, 2), 64.0, 3, 1.0, 10)
    with exam.part("one that is not a number"):
        compare_step(overflowed(math.nan, 6), 64.0, 5, 1.0, 10)
    return exam.report()


def _not_skipped(exam: Exam, scaled_step: Any, got: Tensor, gradient: Tensor, *rest: Any) -> Finding:
    """Which way of not skipping this is."""
    if got.isfinite().all() and not got.any():
        return ZERO_NOT_SKIPPED

    def skips(value: float) -> bool:
        changed = torch.where(gradient.isfinite(), gradient, value)
        return exam.unpack(exam.call(scaled_step, changed, *rest), "gradient, scale, good_steps")[0] is None

    if skips(math.inf):
        return NAN_MISSED
    return INF_MISSED if skips(math.nan) else NO_SKIP
