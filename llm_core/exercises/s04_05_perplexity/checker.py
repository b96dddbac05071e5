"""Checks `token_losses`, `perplexity` and `bits_per_byte` against torch and `llm_core.evaluation`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.evaluation.perplexity import Likelihood
from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

LOSSES = (
    Mistake(
        "softmax_twice",
        "The probabilities go through a second softmax.",
        "`F.cross_entropy` and `log_softmax` take logits. Probabilities that are given to them are treated as logits "
        "that lie close together, and the loss cannot fall far below ln V any more.",
        ({"log": "of softmax"},),
    ),
    Mistake(
        "probabilities_not_logarithms",
        "The losses are probabilities: the logarithm is missing.",
        "-p instead of -ln p. It falls too while a model learns, but it is no likelihood.",
        ({"log": "none"},),
    ),
    Mistake(
        "losses_in_bits",
        "The losses are in bits; they have to be in nats.",
        "`log2` instead of the natural logarithm.",
        ({"log": "base 2"},),
    ),
    Mistake(
        "wrong_sign",
        "The losses have the wrong sign.",
        "A probability is at most 1, so its logarithm is at most 0, and -ln p is at least 0.",
        ({"sign": -1.0},),
    ),
    Mistake(
        "softmax_over_wrong_axis",
        "The softmax runs over the positions, not over the vocabulary.",
        "The logits have the shape (B, T, V): it is the last dimension whose probabilities sum to one.",
        ({"axis": 1}, {"axis": 0}),
    ),
    Mistake(
        "shifted_again",
        "Each position is held against the target of the next one.",
        "The targets are shifted already: logits[b, t] are about targets[b, t].",
        ({"shift": 1}, {"shift": -1}),
    ),
    Mistake(
        "averaged",
        "The losses are averaged; one for each position is asked for.",
        'In `F.cross_entropy` that is `reduction="none"`.',
        ({"reduce": "mean"},),
    ),
)

PERPLEXITY = (
    Mistake(
        "mean_of_batch_means",
        "The means of the batches are averaged, though the batches are of unequal size.",
        "A token in a small batch then counts more than one in a large batch. Add up the losses of all tokens and "
        "divide once, by the number of all tokens.",
        ({"average": "of means"},),
    ),
    Mistake(
        "mean_of_perplexities",
        "The perplexities of the batches are averaged.",
        "exp() comes last, once: the mean of exponentials is larger than the exponential of the mean.",
        ({"average": "of perplexities"}, {"average": "of perplexities, weighted"}),
    ),
    Mistake(
        "mean_of_token_perplexities",
        "exp() is taken of each token's loss before the mean.",
        "One unlikely token then outweighs a thousand others. The mean of the losses comes first.",
        ({"average": "of exponentials"},),
    ),
    Mistake(
        "mean_of_probabilities",
        "The probabilities are averaged, and the perplexity is one over that mean.",
        "The mean is that of the losses, which makes the perplexity one over the geometric mean.",
        ({"average": "of probabilities"},),
    ),
    Mistake(
        "sum_not_mean",
        "The losses are added up and not divided by the number of tokens.",
        "The perplexity of a text would grow with its length.",
        ({"average": "none"},),
    ),
    Mistake(
        "loss_not_perplexity",
        "This is the mean loss; the perplexity is its exponential.",
        "math.exp of it.",
        ({"out": "loss"},),
    ),
    Mistake(
        "power_of_two_of_nats",
        "2 is raised to a loss in nats.",
        "2 belongs to bits, e to nats. Mixed, they give a perplexity that is too small.",
        ({"out": "2 **"},),
    ),
    Mistake(
        "inverse_perplexity",
        "This is one over the perplexity.",
        "The losses are positive already: no minus sign in the exponent.",
        ({"out": "exp(-)"},),
    ),
)

BITS = (
    Mistake(
        "characters_not_bytes",
        "The bits are divided by the number of characters.",
        "A character of UTF-8 has one to four bytes: len(text.encode()).",
        ({"unit": "characters"},),
    ),
    Mistake(
        "tokens_not_bytes",
        "The bits are divided by the number of tokens.",
        "Bits per token depend on the tokenizer; bits per byte do not, which is what they are for.",
        ({"unit": "tokens"},),
    ),
    Mistake(
        "mean_divided_by_bytes",
        "The mean loss is divided by the number of bytes; it has to be the sum of the losses.",
        "All bits that the text costs, divided by all bytes that it has.",
        ({"unit": "tokens x bytes"},),
    ),
    Mistake(
        "nats_per_byte",
        "The result is in nats per byte.",
        "One bit is ln 2 nats: divide by math.log(2).",
        ({"bits": "nats"},),
    ),
    Mistake(
        "multiplied_by_ln_2",
        "The nats are multiplied by ln 2, not divided by it.",
        "A bit is smaller than a nat (0.69 nats), so there are more bits than nats.",
        ({"bits": "times"},),
    ),
    Mistake(
        "bytes_per_bit",
        "The fraction is upside down: these are bytes per bit.",
        "Bits above the fraction bar, bytes below.",
        ({"bits": "inverse"},),
    ),
)

OVERFLOW = Finding(
    "overflow",
    "With large logits the losses are NaN or infinite.",
    "exp(89) no longer fits into float32. `log_softmax` and `F.cross_entropy` take the largest logit off first.",
    known=True,
)

# One to four bytes each in UTF-8, so that characters and bytes cannot be mistaken for each other.
CHARACTERS = "abc de,éüñßжλ語言模型🙂"


def losses_variant(
    logits: Tensor,
    targets: Tensor,
    *,
    log: str = "softmax",
    sign: float = 1.0,
    axis: int = -1,
    shift: int = 0,
    reduce: str = "none",
) -> Tensor:
    """Each token's loss, with a knob for every usual mistake; as it stands, it is right."""
    logs = {
        "softmax": lambda: logits.log_softmax(axis),
        "of softmax": lambda: logits.softmax(axis).log_softmax(axis),
        "none": lambda: logits.softmax(axis),
        "base 2": lambda: logits.log_softmax(axis) / math.log(2),
    }[log]()
    if shift:
        T = targets.shape[1]
        if T < 2:
            raise RuntimeError("nothing is left after a shift")
        logs, targets = (logs[:, :-1], targets[:, 1:]) if shift > 0 else (logs[:, 1:], targets[:, :-1])
    losses = -sign * logs.gather(-1, targets[..., None])[..., 0]
    return losses.mean() if reduce == "mean" else losses


def perplexity_variant(losses: list[list[float]], *, average: str = "of losses", out: str = "exp") -> Tensor:
    """The perplexity, with a knob for every usual mistake; as it stands, it is right."""
    batches = [torch.tensor(batch, dtype=torch.float64) for batch in losses if batch]
    every = torch.cat(batches)
    means = torch.stack([batch.mean() for batch in batches])
    share = torch.tensor([len(batch) for batch in batches]) / len(every)
    mean = {
        "of losses": lambda: every.mean(),
        "of means": lambda: means.mean(),
        "of perplexities": lambda: means.exp().mean().log(),
        "of perplexities, weighted": lambda: (means.exp() * share).sum().log(),
        "of exponentials": lambda: every.exp().mean().log(),
        "of probabilities": lambda: -(-every).exp().mean().log(),
        "none": lambda: every.sum(),
    }[average]()
    return {"exp": mean.exp, "loss": lambda: mean, "2 **": lambda: 2**mean, "exp(-)": lambda: (-mean).exp()}[out]()


def bits_variant(losses: list[list[float]], text: str, *, unit: str = "bytes", bits: str = "bits") -> Tensor:
    """Bits per byte, with a knob for every usual mistake; as it stands, it is right."""
    every = torch.tensor([loss for batch in losses for loss in batch], dtype=torch.float64)
    n_bytes = len(text.encode())
    n = {
        "bytes": n_bytes,
        "characters": len(text),
        "tokens": len(every),
        "tokens x bytes": len(every) * n_bytes,
    }[unit]
    nats = every.sum() / n
    return {
        "bits": lambda: nats / math.log(2),
        "nats": lambda: nats,
        "times": lambda: nats * math.log(2),
        "inverse": lambda: math.log(2) / nats,
    }[bits]()


def examine(
    token_losses: Any, perplexity: Any, bits_per_byte: Any, *, seed: int, n_tokens: int, vocab_size: int, n_batches: int
) -> Report:
    """Check a learner's `token_losses`, `perplexity` and `bits_per_byte`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_tokens=n_tokens, vocab_size=vocab_size, n_batches=n_batches)
    source = generator(seed)
    exam = Exam(
        "04/05_perplexity", {"seed": seed, "n_tokens": n_tokens, "vocab_size": vocab_size, "n_batches": n_batches}
    )

    def each(B: int, T: int, V: int, size: float = 2.0) -> None:
        logits = size * torch.randn(B, T, V, generator=source)
        targets = torch.randint(V, (B, T), generator=source)
        got = exam.tensor(exam.call(token_losses, logits, targets), "the losses")
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(B, T)
        if size > 100 and not got.isfinite().all():
            raise Wrong((OVERFLOW,))
        exam.compare(
            got,
            expected,
            mistakes(losses_variant, LOSSES, logits=logits, targets=targets),
            what="the losses",
            clue=lambda: exam.suspect(token_losses, (logits, targets), "logits, targets"),
        )

    def drawn(*sizes: int) -> list[list[float]]:
        return [(3 * torch.rand(n, generator=source, dtype=torch.float64) ** 2).tolist() for n in sizes]

    def whole(losses: list[list[float]]) -> None:
        got = exam.number(exam.call(perplexity, losses), "the perplexity")
        every = [loss for batch in losses for loss in batch]
        expected = torch.tensor(Likelihood(math.fsum(every), len(every)).perplexity, dtype=torch.float64)
        known = mistakes(perplexity_variant, PERPLEXITY, losses=losses)
        exam.compare(got, expected, known, what="the perplexity")

    def bits(losses: list[list[float]], text: str) -> None:
        got = exam.number(exam.call(bits_per_byte, losses, text), "the bits per byte")
        every = [loss for batch in losses for loss in batch]
        likelihood = Likelihood(math.fsum(every), len(every), len(text.encode()))
        expected = torch.tensor(likelihood.bits_per_byte, dtype=torch.float64)
        exam.compare(got, expected, mistakes(bits_variant, BITS, losses=losses, text=text), what="the bits per byte")

    def written(n: int) -> str:
        places = torch.randint(len(CHARACTERS), (n,), generator=source).tolist()
        return "".join(CHARACTERS[place] for place in places) + "語"

    with exam.part("the losses of your sizes"):
        each(2, n_tokens, vocab_size)
    with exam.part("the losses of three texts"):
        each(3, 5, 7)
    with exam.part("the loss of a single token"):
        each(1, 1, 4)
    with exam.part("the losses with large logits"):
        each(2, 4, 6, size=300.0)
    # Each batch is longer than the one before, so that it matters who averages what.
    with exam.part("the perplexity of your batches"):
        whole(drawn(*(n_tokens + 3 * number for number in range(n_batches))))
    with exam.part("a full batch and a rest"):
        whole(drawn(32, 32, 3))
    with exam.part("a batch without tokens among others"):
        whole([*drawn(4), [], *drawn(2)])
    with exam.part("the perplexity of a single token"):
        whole(drawn(1))
    with exam.part("a model that is never surprised"):
        whole([[0.0, 0.0], [0.0]])
    with exam.part("the bits per byte of your batches"):
        bits(drawn(*(n_tokens + 3 * number for number in range(n_batches))), written(4 * n_tokens * n_batches))
    with exam.part("the bits per byte of a short text"):
        bits(drawn(2, 1), "語ab")
    with exam.part("the bits per byte of one batch"):
        bits(drawn(9), written(30))
    return exam.report()
