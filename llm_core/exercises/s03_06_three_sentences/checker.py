"""Checks `make_batch(sentences, bos, eos, pad)` and `mean_loss(logits, targets, mask)`; torch has the right results."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

NAMES = ("inputs", "targets", "mask")

BATCH = (
    Mistake(
        "mask_from_pad_id",
        "The mask is made from the token ids: where `<eos>` and `<pad>` share an id, the real `<eos>` is taken for "
        "padding.",
        "Many tokenizers have no padding token and use `<eos>` instead. Make the mask from the lengths.",
        ({"mask": "ids"},),
    ),
    Mistake(
        "no_shift",
        "Inputs and targets are the same: each position is asked for the token that it has just been given.",
        "Targets are one token ahead: the target of `<bos>` is the first token of the sentence. Without the shift "
        "the loss falls to nothing and the model learns to copy.",
        ({"shift": "none, bos"}, {"shift": "none, both"}, {"shift": "none, eos"}),
    ),
    Mistake(
        "shifted_backwards",
        "The shift goes the wrong way: each position is asked for the token before it.",
        "Inputs start with `<bos>`, targets end with `<eos>`.",
        ({"shift": "backwards"},),
    ),
    Mistake(
        "eos_missing",
        "The targets do not end with `<eos>`.",
        "A model that never sees `<eos>` as a target never learns to stop.",
        ({"eos": "dropped"}, {"eos": "cut"}, {"eos": "padded"}),
    ),
    Mistake(
        "bos_missing",
        "The inputs do not start with `<bos>`.",
        "Without it nothing is given from which the first token could be predicted.",
        ({"bos": "missing"},),
    ),
    Mistake(
        "eos_in_inputs",
        "The inputs hold `<eos>`.",
        "Nothing follows `<eos>`, so it is a target only: `<bos>` and the sentence go in, the sentence and `<eos>` "
        "come out.",
        ({"bos": "and eos"}, {"bos": "and eos, longer"}),
    ),
    Mistake(
        "padded_on_the_left",
        "The padding stands before the sentences.",
        "Here sentences start in column 0 and are filled up on the right.",
        ({"side": "left"},),
    ),
    Mistake(
        "mask_inverted",
        "The mask is True at the padding.",
        "True marks the real tokens, those that count.",
        ({"mask": "inverted"},),
    ),
    Mistake(
        "mask_without_eos",
        "The mask leaves out the last real target, `<eos>`.",
        "A sentence of n tokens has n + 1 targets.",
        ({"mask": "short"},),
    ),
    Mistake(
        "mask_all_true",
        "The mask counts the padding as real.",
        "True marks the real tokens only: the first n + 1 columns of a sentence of n tokens.",
        ({"mask": "all"},),
    ),
)

LOSS = (
    Mistake(
        "loss_counts_padding",
        "The loss counts the padding as if it were tokens to predict.",
        "Take the mean over the positions where the mask is True and over no others.",
        ({"average": "everything"},),
    ),
    Mistake(
        "divided_by_all_positions",
        "The losses of the real tokens are summed and then divided by the number of all positions.",
        "The padding is out of the sum but still in the denominator: divide by mask.sum().",
        ({"average": "real / all"},),
    ),
    Mistake(
        "mean_of_sentence_means",
        "The loss is averaged within each sentence and then over the sentences, so tokens of short sentences "
        "count more.",
        "Every token counts the same: one sum over all real tokens, divided by their number.",
        ({"average": "sentences"},),
    ),
    Mistake(
        "divided_by_batch_size",
        "The sum of the losses is divided by the number of sentences, not of tokens.",
        "Longer sentences would then give larger losses.",
        ({"average": "real / B"},),
    ),
    Mistake(
        "sum_not_mean",
        "The losses are summed; the mean is asked for.",
        "A sum grows with the batch, and with it every gradient.",
        ({"average": "sum"},),
    ),
    Mistake(
        "softmax_twice",
        "The softmax is applied twice.",
        "F.cross_entropy takes logits and does the softmax itself. Probabilities handed to it as logits lie between "
        "0 and 1, so the loss can never come near zero.",
        ({"log": "of softmax of softmax"},),
    ),
    Mistake(
        "probabilities_not_logarithms",
        "The loss is made of probabilities where their logarithms are needed.",
        "F.nll_loss takes log-probabilities: log_softmax, not softmax.",
        ({"log": "none"},),
    ),
    Mistake(
        "wrong_sign",
        "The sign of the loss is wrong.",
        "The loss is minus the mean of the log-probabilities; training makes it smaller.",
        ({"sign": -1.0},),
    ),
    Mistake(
        "shifted_twice",
        "The logits are shifted against the targets once more.",
        "The batch already has each target beside its input; a second shift asks for the token after the next.",
        ({"shift": "again"},),
    ),
    Mistake(
        "logarithm_of_other_base",
        "The loss is in bits: its logarithm has base 2.",
        "The formula has the natural logarithm, as torch has.",
        ({"sign": 1.4426950408889634},),
    ),
    Mistake(
        "perplexity_not_loss",
        "This is the perplexity, exp(loss), not the loss.",
        "Leave the exp() away.",
        ({"log": "undone"},),
    ),
)

OVERFLOW = Finding(
    "overflow",
    "With large logits the loss is NaN or infinite.",
    "exp(89) no longer fits into float32, and log(0) is -inf. log_softmax and cross_entropy avoid both.",
    known=True,
)

BOS, EOS, PAD = 1, 2, 0
FIRST = 3  # ids from here on are words


def draw(seed: int, batch_size: int, max_length: int, n_words: int) -> list[list[int]]:
    """Sentences of 1 to max_length word ids, the first of them the longest, the last half as long.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(batch_size=batch_size, max_length=max_length, n_words=n_words)
    return _sentences(generator(seed), batch_size, max_length, n_words)


def _sentences(source: torch.Generator, batch_size: int, max_length: int, n_words: int) -> list[list[int]]:
    lengths = torch.randint(1, max_length + 1, (batch_size,), generator=source).tolist()
    lengths[0], lengths[-1] = max_length, max(1, max_length // 2)  # some padding is needed
    return [torch.randint(FIRST, FIRST + n_words, (n,), generator=source).tolist() for n in lengths]


def reference(sentences: list[list[int]], bos: int, eos: int, pad: int) -> dict[str, Tensor]:
    """Inputs, targets and mask, padded by torch."""
    rows = {
        "inputs": ([bos, *sentence] for sentence in sentences),
        "targets": ([*sentence, eos] for sentence in sentences),
        "mask": ([1] * (len(sentence) + 1) for sentence in sentences),
    }
    fill = {"inputs": pad, "targets": pad, "mask": 0}
    return {
        name: pad_sequence([torch.tensor(row) for row in rows[name]], batch_first=True, padding_value=fill[name])
        for name in NAMES
    }


def batch_variant(
    sentences: list[list[int]],
    bos_id: int,
    eos_id: int,
    pad_id: int,
    which: str,
    *,
    shift: str = "one",
    bos: str = "first",
    eos: str = "last",
    side: str = "right",
    mask: str = "lengths",
) -> Tensor:
    """Inputs, targets or mask with a knob for every usual mistake; as it stands, it is right."""
    inputs = [[bos_id, *sentence] for sentence in sentences]
    targets = [[*sentence, eos_id] for sentence in sentences]
    if eos == "dropped":  # the usual ids[:-1], ids[1:] on a sentence without <eos>
        inputs, targets = [row[:-1] for row in inputs], [row[:-1] for row in targets]
    if eos == "cut":  # the same on padded rows, where only the longest loses its last word
        inputs, targets = [row[: max(map(len, sentences))] for row in inputs], [row[:-1] for row in targets]
    if bos == "missing":
        targets = [row[1:] or row for row in targets]
    if bos != "first":
        inputs = {
            "missing": sentences,
            "and eos": [[bos_id, *sentence, eos_id][: max(map(len, targets))] for sentence in sentences],
            "and eos, longer": [[bos_id, *sentence, eos_id] for sentence in sentences],
        }[bos]
    counts = [len(row) for row in targets]
    if eos == "padded":
        targets = [row[:-1] for row in targets]
        counts = [len(row) for row in targets]
    if shift == "none, bos":
        targets = inputs
    elif shift == "none, eos":
        inputs = targets
    elif shift == "none, both":
        inputs = targets = [[bos_id, *sentence, eos_id] for sentence in sentences]
        counts = [len(row) for row in targets]
    elif shift == "backwards":
        inputs, targets = targets, inputs
    width = max(len(row) for row in [*inputs, *targets])
    if eos == "padded":
        width = max(width, max(map(len, sentences)) + 1)

    if which == "inputs":
        return _filled(inputs, width, pad_id, side)
    if which == "targets":
        return _filled(targets, width, pad_id, side)
    marks = _filled([[1] * n for n in counts], width, 0, side)
    return {
        "lengths": marks,
        "ids": (_filled(targets, width, pad_id, side) != pad_id).long(),
        "inverted": 1 - marks,
        "short": _filled([[1] * (n - 1) for n in counts], width, 0, side),
        "all": torch.ones_like(marks),
    }[mask]


def _filled(rows: list[list[int]], width: int, fill: int, side: str) -> Tensor:
    gaps = [[fill] * (width - len(row)) for row in rows]
    if side == "left":
        return torch.tensor([gap + row for gap, row in zip(gaps, rows, strict=True)])
    return torch.tensor([row + gap for gap, row in zip(gaps, rows, strict=True)])


def loss_variant(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    average: str = "tokens",
    sign: float = 1.0,
    shift: str = "no",
    log: str = "once",
) -> Tensor:
    """The mean loss with a knob for every usual mistake; as it stands, it is right."""
    if shift == "again":
        logits, targets, mask = logits[:, :-1], targets[:, 1:], mask[:, 1:]
    logs = {
        "once": lambda: logits.log_softmax(-1),
        "undone": lambda: logits.log_softmax(-1),
        "of softmax of softmax": lambda: logits.softmax(-1).log_softmax(-1),
        "none": lambda: logits.softmax(-1),
    }[log]()
    losses = -sign * logs.gather(-1, targets[..., None])[..., 0]
    real = torch.where(mask, losses, 0.0)
    mean = {
        "tokens": lambda: real.sum() / mask.sum(),
        "everything": lambda: losses.mean(),
        "real / all": lambda: real.mean(),
        "sentences": lambda: (real.sum(-1) / mask.sum(-1)).mean(),
        "real / B": lambda: real.sum() / len(mask),
        "sum": lambda: real.sum(),
    }[average]()
    return mean.exp() if log == "undone" else mean


def examine(make_batch: Any, mean_loss: Any, *, seed: int, batch_size: int, max_length: int, n_words: int) -> Report:
    """Check a learner's `make_batch(sentences, bos, eos, pad)` and `mean_loss(logits, targets, mask)`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    yours = draw(seed, batch_size, max_length, n_words)
    source = generator(seed + 1)
    exam = Exam(
        "03/06_three_sentences",
        {"seed": seed, "batch_size": batch_size, "max_length": max_length, "n_words": n_words},
    )
    uneven = [torch.randint(FIRST, 20, (n,), generator=source).tolist() for n in (2, 6, 1, 4)]

    def batch(sentences: list[list[int]], which: tuple[str, ...] = NAMES, pad: int = PAD) -> None:
        results = exam.unpack(exam.call(make_batch, sentences, BOS, EOS, pad), ", ".join(NAMES))
        got = {name: exam.tensor(result, f"the {name}") for name, result in zip(NAMES, results, strict=True)}
        right = reference(sentences, BOS, EOS, pad)
        given: dict[str, Any] = {"sentences": sentences, "bos_id": BOS, "eos_id": EOS, "pad_id": pad}

        def together(**knobs: Any) -> Tensor:
            return torch.stack([batch_variant(**given, which=name, **knobs) for name in NAMES])

        wrong = [name for name in which if not exam.same(got[name], right[name])]
        # Most mistakes show in all three at once, and only the three together tell them apart.
        if wrong and len({tensor.shape for tensor in got.values()}) == 1:
            all_three = torch.stack([got[name].double() for name in NAMES])
            if matching := exam.explain(all_three, mistakes(together, BATCH), "the batch"):
                raise Wrong(*matching)
        for name in wrong:
            known = mistakes(batch_variant, BATCH, **given, which=name)
            exam.compare(got[name], right[name], known, what=f"the {name}")

    def loss(sentences: list[list[int]], size: float = 2.0, n_ids: int = 24) -> None:
        right = reference(sentences, BOS, EOS, PAD)
        targets, mask = right["targets"], right["mask"].bool()
        logits = size * torch.randn(*targets.shape, n_ids, generator=source)
        got = exam.tensor(exam.call(mean_loss, logits, targets, mask), "the loss")
        expected = F.cross_entropy(logits[mask], targets[mask])
        given = {"logits": logits, "targets": targets, "mask": mask}
        if size > 100 and not got.isfinite().all():
            raise Wrong(*(exam.explain(got, mistakes(loss_variant, LOSS, **given), "the loss") or [(OVERFLOW,)]))
        exam.compare(
            got,
            expected,
            mistakes(loss_variant, LOSS, **given),
            what="the loss",
            clue=lambda: exam.suspect(mean_loss, (logits, targets, mask), "logits, targets, mask"),
        )

    for name in NAMES:
        with exam.part(f"the {name} of your sentences"):
            batch(yours, (name,))
    with exam.part("sentences of other lengths"):
        batch(uneven)
    with exam.part("a single sentence"):
        batch(uneven[:1])
    with exam.part("an empty sentence among others"):
        batch([[], *uneven])
    with exam.part("`<pad>` has the id of `<eos>`"):
        batch(uneven, pad=EOS)
    with exam.part("the loss of your sentences"):
        loss(yours, n_ids=FIRST + n_words)
    with exam.part("the loss of sentences of other lengths"):
        loss(uneven)
    with exam.part("the loss of a single sentence"):
        loss(uneven[1:2])
    with exam.part("the loss with large logits"):
        loss(uneven, size=300.0)
    with exam.part("a gradient reaches the logits"):
        right = reference(uneven, BOS, EOS, PAD)
        logits = torch.randn(*right["targets"].shape, 24, generator=source, requires_grad=True)
        got = exam.tensor(exam.call(mean_loss, logits, right["targets"], right["mask"].bool()), "the loss")
        exam.learns(got, {"logits": logits})
    return exam.report()
