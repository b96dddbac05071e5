"""Checks `next_token_probabilities(logits, temperature, top_k, top_p)` and `judge(p, q, tokens)`.

The right results are made one row at a time, with Python's own sort and sums in 64 bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

FILTERS = (
    Mistake(
        "temperature_multiplied",
        "The logits are multiplied by the temperature.",
        "They are divided by it: a low temperature makes the differences between them larger.",
        ({"heat": "multiplied"},),
    ),
    Mistake(
        "temperature_ignored",
        "The temperature has no effect.",
        "Divide the logits by it, before the softmax. Probabilities divided by it and normalised are what they were.",
        ({"heat": "none"},),
    ),
    Mistake(
        "temperature_after_filters",
        "The temperature is applied after top-p.",
        "Temperature comes first. It changes how many tokens it takes to make up the share.",
        ({"order": "filters, temperature"},),
    ),
    Mistake(
        "top_p_before_top_k",
        "Top-p looks at tokens that top-k has ruled out.",
        "Top-k comes first, and what it leaves sums to one again before top-p adds up.",
        ({"order": "top-p first"},),
    ),
    Mistake(
        "crossing_token_left_out",
        "Top-p leaves out the token with which the sum reaches the share.",
        "That token stays. Rule a token out if those before it make up the share already; the first has none before "
        "it, so at least one stays.",
        ({"edge": "out"}, {"edge": "out, first stays"}),
    ),
    Mistake(
        "one_token_too_many",
        "Top-p keeps one token more than it needs.",
        "Compare the sum of the tokens before each one with the share: cumsum minus the token's own probability.",
        ({"edge": "one more"},),
    ),
    Mistake(
        "ascending_order",
        "Top-p adds up from the unlikeliest token.",
        "`sort` goes upwards unless it is told `descending=True`.",
        ({"direction": "ascending"},),
    ),
    Mistake(
        "not_put_back",
        "After top-p the tokens are not in their own places.",
        "The sort gives two tensors: the sorted values and where each came from. `scatter` with the second one puts "
        "them back; `gather` does not undo a sort.",
        ({"places": "sorted"}, {"places": "mask"}, {"places": "gathered"}),
    ),
    Mistake(
        "top_k_one_too_many",
        "Top-k keeps k + 1 tokens.",
        "The k-th largest is the last of the k values of `topk`; what is below it goes.",
        ({"k_more": 1},),
    ),
    Mistake(
        "top_k_one_too_few",
        "Top-k rules out the k-th token itself.",
        "What is smaller than the k-th goes; the k-th stays.",
        ({"k_more": -1}, {"k_cut": 1}),
    ),
    Mistake(
        "not_renormalised",
        "The probabilities of a row do not sum to one: those ruled out are zero, and the others are as before.",
        "Set the logits to -inf and do the softmax last, or divide by the sum of what is left.",
        ({"mass": "lost"},),
    ),
    Mistake(
        "softmax_over_batch",
        "The softmax runs over the batch.",
        "Each row is a distribution of its own: `dim=-1`.",
        ({"axis": 0},),
    ),
    Mistake(
        "filter_across_batch",
        "A filter looks at all rows together, or uses one row's threshold for all.",
        "Each row has its own k-th largest and its own running sum: `dim=-1`, and `[:, -1:]` for the threshold.",
        ({"across": "all rows"}, {"across": "first row"}),
    ),
    Mistake(
        "logits_not_probabilities",
        "The result holds logits or log-probabilities.",
        "Probabilities are asked for: the softmax comes last.",
        ({"result": "logits"}, {"result": "log-probabilities"}),
    ),
)

JUDGE = (
    Mistake(
        "ratio_upside_down",
        "The token is kept with q / p, not p / q.",
        "p is what should come, q what was drawn from. A token that the draft likes more than the target does has "
        "to be refused at times.",
        ({"ratio": "q / p"},),
    ),
    Mistake(
        "not_capped",
        "The probability of keeping a token goes above one.",
        "min(1, p / q): where the target likes the token more than the draft does, it is always kept.",
        ({"ratio": "p / q, not capped"},),
    ),
    Mistake(
        "kept_with_p",
        "The token is kept with probability p.",
        "It was drawn from q, so q is in it already: the ratio p / q is asked for.",
        ({"ratio": "p"},),
    ),
    Mistake(
        "not_clamped",
        "The residual holds what the draft has too much of: p - q is not cut off at zero.",
        "max(0, p - q), with `clamp(min=0)`, before the division. The differences themselves sum to zero.",
        ({"part": "signed"}, {"part": "absolute"}),
    ),
    Mistake(
        "residual_not_normalised",
        "The residual does not sum to one.",
        "Divide max(0, p - q) by its sum in each row.",
        ({"share": "as it is"}, {"share": "of the batch"}),
    ),
    Mistake(
        "residual_upside_down",
        "The residual is made of max(0, q - p).",
        "What the target has more of than the draft is missing: max(0, p - q).",
        ({"part": "too much"},),
    ),
    Mistake(
        "redrawn_from_target",
        "After a refusal the draw is from p itself.",
        "Tokens that the draft likes would get two chances. Draw from what is missing, max(0, p - q), normalised.",
        ({"part": "target"},),
    ),
)

TIES = Finding(
    "ties_cut",
    "Of tokens that tie with the k-th, some are ruled out.",
    "Equal logits are treated alike: compare with the k-th value rather than taking the k indices of `topk`.",
    known=True,
)

OVERFLOW = Finding(
    "overflow",
    "At a low temperature the result is NaN or infinite.",
    "exp(89) no longer fits into float32. Take the largest logit of a row off all of them first, or use torch.softmax.",
    known=True,
)

EQUAL = Finding(
    "divided_by_zero",
    "Where p and q are equal the residual is NaN or infinite.",
    "Nothing is missing there, so max(0, p - q) sums to zero. Nothing can be refused either; return p for such a row.",
    known=True,
)


def reference(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The right probabilities, row by row, in plain Python."""
    rows = []
    for row in logits.tolist():
        largest = max(row)
        masses = [math.exp((z - largest) / temperature) for z in row]
        ranked = sorted(range(len(row)), key=lambda i: -row[i])
        if top_k is not None:
            least = row[ranked[min(top_k, len(row)) - 1]]
            ranked = [i for i in ranked if row[i] >= least]
        total = math.fsum(masses[i] for i in ranked)
        kept, so_far = [], 0.0
        for i in ranked:
            kept.append(i)
            so_far += masses[i] / total
            if top_p is not None and so_far >= top_p:
                break
        total = math.fsum(masses[i] for i in kept)
        rows.append([masses[i] / total if i in set(kept) else 0.0 for i in range(len(row))])
    return torch.tensor(rows)


def variant(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    *,
    heat: str = "divided",
    order: str = "temperature, filters",
    edge: str = "in",
    direction: str = "descending",
    places: str = "their own",
    k_more: int = 0,
    k_cut: int = 0,
    mass: str = "shared out",
    axis: int = -1,
    across: str = "nothing",
    result: str = "probabilities",
) -> Tensor:
    """The probabilities with a knob for every usual mistake; as it stands, it is right."""
    V = logits.shape[-1]

    def warm(z: Tensor) -> Tensor:
        return {"divided": z / temperature, "multiplied": z * temperature, "none": z}[heat]

    def cut_k(z: Tensor) -> Tensor:
        if top_k is None:
            return z
        if across == "all rows":
            return z.masked_fill(z < z.flatten().topk(min(top_k, z.numel())).values[-1], float("-inf"))
        kth = z.topk(max(1, min(top_k + k_more, V) - k_cut), dim=-1).values[:, -1:]
        return z.masked_fill(z < (kth[:1] if across == "first row" else kth), float("-inf"))

    def cut_p(z: Tensor) -> Tensor:
        if top_p is None:
            return z
        if across == "all rows":
            return nucleus(z.flatten()[None]).view_as(z)
        return nucleus(z)

    def nucleus(z: Tensor) -> Tensor:
        assert top_p is not None
        ordered, where = z.sort(dim=-1, descending=direction == "descending", stable=True)
        shares = ordered.softmax(dim=-1)
        sums = shares.cumsum(dim=-1)
        place = torch.arange(z.shape[-1])
        gone = {
            "in": sums - shares >= top_p,
            "out": sums > top_p,
            "out, first stays": (sums > top_p) & (place > 0),
            "one more": (sums - shares >= top_p).roll(1, dims=-1) & (place > 0),
        }[edge]
        cut = ordered.masked_fill(gone, float("-inf"))
        return {
            "their own": lambda: torch.empty_like(cut).scatter(-1, where, cut),
            "sorted": lambda: cut,
            "mask": lambda: z.masked_fill(gone, float("-inf")),
            "gathered": lambda: cut.gather(-1, where),
        }[places]()

    stages = {
        "temperature, filters": (warm, cut_k, cut_p),
        "filters, temperature": (cut_k, cut_p, warm),
        "top-p first": (warm, cut_p, cut_k),
    }[order]
    z = logits.double()
    for stage in stages:
        z = stage(z)
    if result != "probabilities":
        return z if result == "logits" else z.log_softmax(axis)
    if mass == "lost":
        return warm(logits.double()).softmax(axis).masked_fill(z == float("-inf"), 0.0)
    return z.softmax(axis)


def judged(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The right answers of `judge`, row by row, in plain Python."""
    keep, residual = [], []
    for p_row, q_row, token in zip(p.tolist(), q.tolist(), tokens.tolist(), strict=True):
        keep.append(min(1.0, p_row[token] / q_row[token]))
        missing = [max(0.0, a - b) for a, b in zip(p_row, q_row, strict=True)]
        total = math.fsum(missing)
        residual.append([m / total for m in missing] if total > 0 else p_row)
    return torch.tensor(keep), torch.tensor(residual)


def keep_variant(p: Tensor, q: Tensor, tokens: Tensor, *, ratio: str = "p / q", **other: str) -> Tensor:
    """How likely the tokens are kept, with a knob for every usual mistake; the other knobs change nothing here."""
    a, b = (x.double().gather(-1, tokens[:, None])[:, 0] for x in (p, q))
    return {
        "p / q": (a / b).clamp(max=1),
        "q / p": (b / a).clamp(max=1),
        "p / q, not capped": a / b,
        "p": a,
    }[ratio]


def residual_variant(
    p: Tensor, q: Tensor, tokens: Tensor, *, part: str = "missing", share: str = "of the row", **other: str
) -> Tensor:
    """The residual with a knob for every usual mistake; the other knobs change nothing here."""
    difference = p.double() - q.double()
    if part == "signed":
        return difference
    weights = {
        "missing": difference.clamp(min=0),
        "absolute": difference.abs(),
        "too much": (-difference).clamp(min=0),
        "target": p.double(),
    }[part]
    if share == "as it is":
        return weights
    if share == "of the batch":
        return weights / weights.sum()
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weights / total, p.double())


def examine(
    next_token_probabilities: Any,
    judge: Any,
    *,
    seed: int,
    batch_size: int,
    vocab_size: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Report:
    """Check a learner's `next_token_probabilities(logits, temperature, top_k, top_p)` and `judge(p, q, tokens)`.

    Raises:
        ValueError: a size, the seed, the temperature or the share is out of range.
    """
    positive(batch_size=batch_size, vocab_size=vocab_size, top_k=top_k)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature!r}: change the parameters cell")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is a share, 0 < top_p <= 1, got {top_p!r}: change the parameters cell")
    source = generator(seed)
    exam = Exam(
        "03/05_sampling",
        {
            "seed": seed,
            "batch_size": batch_size,
            "vocab_size": vocab_size,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        },
    )

    def drawn(B: int, V: int) -> Tensor:
        return 2 * torch.randn(B, V, generator=source)

    def compare(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> None:
        given = (logits, temperature, top_k, top_p)
        got = exam.tensor(exam.call(next_token_probabilities, *given), "the probabilities")
        exam.compare(
            got,
            reference(*given),
            mistakes(variant, FILTERS, logits=logits, temperature=temperature, top_k=top_k, top_p=top_p),
            what="the probabilities",
            clue=lambda: exam.suspect(next_token_probabilities, given, "logits"),
        )

    def rule(p: Tensor, q: Tensor, tokens: Tensor) -> None:
        keep, residual = exam.unpack(exam.call(judge, p, q, tokens), "keep, residual")
        keep, residual = exam.tensor(keep, "keep"), exam.tensor(residual, "the residual")
        right = judged(p, q, tokens)
        given = {"p": p, "q": q, "tokens": tokens}
        clue = lambda: exam.suspect(lambda p, q, tokens: judge(p, q, tokens)[1], (p, q, tokens), "p, q")  # noqa: E731
        exam.compare(keep, right[0], mistakes(keep_variant, JUDGE[:3], **given), what="keep")
        if torch.equal(p, q) and not residual.isfinite().all():
            raise Wrong((EQUAL,))
        if residual.shape == p.shape and bool((residual < -1e-6).any()):
            raise Wrong((next(entry for entry in JUDGE if entry.id == "not_clamped").finding,))
        exam.compare(residual, right[1], mistakes(residual_variant, JUDGE[3:], **given), what="the residual", clue=clue)

    def pair(B: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
        p, q = drawn(B, V).softmax(-1), drawn(B, V).softmax(-1)
        return p, q, torch.randint(V, (B,), generator=source)

    with exam.part("your numbers"):
        compare(drawn(batch_size, vocab_size), temperature, top_k, top_p)
    with exam.part("a plain softmax"):
        compare(drawn(3, 7), 1.0, None, None)
    with exam.part("a low temperature alone"):
        compare(drawn(3, 7), 0.6, None, None)
    with exam.part("top-k alone"):
        compare(drawn(4, 9), 1.0, 3, None)
    with exam.part("top-p alone"):
        compare(drawn(4, 9), 1.0, None, 0.7)
    with exam.part("temperature and top-p"):
        compare(drawn(4, 12), 1.8, None, 0.75)
    with exam.part("all three"):
        compare(drawn(5, 12), 0.7, 4, 0.85)
    with exam.part("a row that is sure"):
        logits = drawn(2, 6)
        logits[:, 2] += 9.0
        compare(logits, 1.0, None, 0.5)
    with exam.part("k larger than the vocabulary"):
        compare(drawn(1, 4), 1.0, 10, None)
    with exam.part("logits that tie with the k-th"):
        tied = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
        got = exam.tensor(exam.call(next_token_probabilities, tied, 1.0, 3, None), "the probabilities")
        if got.shape == tied.shape and exam.same(got[1].sort().values, torch.tensor([0, 0, 0, 1, 1, 1]) / 3):
            raise Wrong((TIES,))
        compare(tied, 1.0, 3, None)
    with exam.part("large logits, low temperature"):
        logits = drawn(2, 6) + torch.tensor([[60.0], [-60.0]])
        got = exam.tensor(exam.call(next_token_probabilities, logits, 0.1, None, None), "the probabilities")
        calm = logits - logits.amax(dim=-1, keepdim=True)
        small = exam.tensor(exam.call(next_token_probabilities, calm, 0.1, None, None), "the probabilities")
        if small.isfinite().all() and not got.isfinite().all():
            raise Wrong((OVERFLOW,))
        compare(logits, 0.1, None, None)
    with exam.part("the rule p / q"):
        rule(*pair(batch_size, max(2, vocab_size)))
    with exam.part("the rule for six rows"):
        rule(*pair(6, 9))
    with exam.part("the rule for a single row"):
        rule(*pair(1, 5))
    with exam.part("the rule where p is zero"):
        p, q, tokens = pair(4, 6)
        p = p.scatter(-1, tokens[:, None], 0.0)
        rule(p / p.sum(-1, keepdim=True), q, tokens)
    with exam.part("the rule where p and q are equal"):
        p, _, tokens = pair(3, 5)
        rule(p, p.clone(), tokens)
    return exam.report()
