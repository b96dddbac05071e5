"""Checks the worked example: `one_head(Q, K, V)` and `two_heads(X, W_Q, W_K, W_V, W_O)`, with numbers of the seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive
from llm_core.exercises.report import Finding, Report

STEPS = ("scores", "weights", "output")

ONE_HEAD = (
    Mistake(
        "all_rows_equal",
        "All scores are the same: every entry is the sum of all q_i k_i.",
        "That is the article's slip. Entry (i, j) pairs one query with one key: S_ij is the dot product of row i "
        "of Q with row j of K, and nothing else enters it.",
        ({"scoring": "article"},),
    ),
    Mistake(
        "scores_transposed",
        "The scores are transposed: S_ij pairs key i with query j.",
        "Rows belong to queries: S = Q K^T, not K Q^T.",
        ({"scoring": "transposed"},),
    ),
    Mistake(
        "scores_already_scaled",
        "S already holds the division by the square root of d_k.",
        "Here S is the table of plain dot products, whole numbers that you can check by hand. The root comes in "
        "the step from S to the weights.",
        ({"scoring": "scaled"},),
    ),
    Mistake(
        "not_scaled",
        "The softmax is taken of the scores themselves; the square root of d_k is missing.",
        "The article's steps leave it out, the formula above them has it.",
        ({"divide": "1"},),
    ),
    Mistake(
        "scaled_by_d_k",
        "The scores are divided by d_k, not by its square root.",
        "The formula has a root.",
        ({"divide": "d_k"},),
    ),
    Mistake(
        "softmax_over_wrong_axis",
        "The columns of the weights sum to one, not the rows.",
        "Each query, a row, shares out a weight of one: the softmax runs along the row.",
        ({"normalise": "columns"},),
    ),
    Mistake(
        "softmax_over_everything",
        "The whole table of weights sums to one, not each of its rows.",
        "Each query, a row, shares out a weight of one: the softmax runs along the row.",
        ({"normalise": "everything"},),
    ),
    Mistake(
        "weights_not_exponential",
        "The weights are the scores divided by their sum, without exp().",
        "The softmax takes exp() first, so that all weights are positive.",
        ({"normalise": "no exp"},),
    ),
    Mistake(
        "weights_transposed",
        "The output is made with the transposed weights.",
        "Output i is the sum over j of weight (i, j) times value j.",
        ({"transposed": True},),
    ),
)

TWO_HEADS = (
    Mistake(
        "no_projection",
        "The heads cut X into slices; the matrices W_Q, W_K, W_V are not used.",
        "The article leaves them out. Head i looks at X W_Q[i], X W_K[i] and X W_V[i].",
        ({"project": "slices"},),
    ),
    Mistake(
        "same_head_twice",
        "Both heads use the same matrices.",
        "The second head has its own: W_Q[1], W_K[1], W_V[1].",
        ({"project": "first"}, {"project": "second"}),
    ),
    Mistake(
        "heads_reversed",
        "The heads are joined in the wrong order.",
        "Head 1 comes first; W_O expects its numbers in its upper rows.",
        ({"join": "reversed"},),
    ),
    Mistake(
        "heads_stacked",
        "The heads are stacked and reshaped, which mixes the tokens; they should lie side by side.",
        "Row i of the joined table is row i of head 1 followed by row i of head 2: torch.cat(heads, dim=-1).",
        ({"join": "stacked"},),
    ),
    Mistake(
        "no_output_projection",
        "The joined heads are returned as they are; W_O is missing.",
        "The article stops at the concatenation. The formula goes on: Concat(head_1, head_2) W_O.",
        ({"output": "none"},),
    ),
    Mistake(
        "heads_scaled_by_d_k",
        "The scores of a head are divided by d_k, not by its square root.",
        "The formula has a root.",
        ({"divide": "d_k"},),
    ),
    Mistake(
        "scaled_by_model_width",
        "The scores of a head are divided by the square root of the width of X.",
        "d_k is the width of that head's keys, which is smaller.",
        ({"divide": "sqrt(D)"},),
    ),
    Mistake(
        "heads_not_scaled",
        "The scores of a head are not divided by the square root of d_k.",
        "d_k is the width of that head's keys.",
        ({"divide": "1"},),
    ),
)

HARD_CODED = Finding(
    "hard_coded",
    "With other inputs the function still returns the result for your numbers.",
    "Compute from the arguments Q, K, V, not from numbers typed in or from variables of the notebook.",
    known=True,
)


FOLLOWS = Finding(
    "may_follow",
    "The output of two heads is wrong, too.",
    "If `two_heads` calls `one_head`, mend `one_head` first and check again.",
)


class Numbers(NamedTuple):
    """What the example is about: whole numbers, drawn from the seed."""

    Q: Tensor
    K: Tensor
    V: Tensor
    X: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor


def draw(seed: int, n_tokens: int, d_k: int) -> Numbers:
    """The numbers of one variant: Q, K, V (n_tokens, d_k), X (n_tokens, 4), two heads of width 2.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(n_tokens=n_tokens, d_k=d_k)
    return _numbers(generator(seed), n_tokens, d_k, d_k)


def _numbers(source: torch.Generator, n_tokens: int, d_k: int, d_v: int, D: int = 4, E: int = 2) -> Numbers:
    shapes = (n_tokens, d_k), (n_tokens, d_k), (n_tokens, d_v), (n_tokens, D), *[(2, D, E)] * 3, (2 * E, D)
    lowest = (-2, -2, 0, -2, -1, -1, -1, -2)
    highest = (3, 3, 9, 3, 2, 2, 2, 3)
    numbers = Numbers(
        *(
            torch.randint(low, high + 1, shape, generator=source).float()
            for shape, low, high in zip(shapes, lowest, highest, strict=True)
        )
    )
    # The formula as it is printed has to work with every seed: exp(89) no longer fits into float32.
    if _largest_score(numbers.Q, numbers.K) > 50:
        numbers = numbers._replace(Q=numbers.Q.clamp(-1, 1), K=numbers.K.clamp(-1, 1))
    if _largest_score(numbers.X @ numbers.W_Q, numbers.X @ numbers.W_K) > 50:
        names = ("X", "W_Q", "W_K")
        numbers = numbers._replace(**{name: getattr(numbers, name).clamp(-1, 1) for name in names})
    return numbers


def _largest_score(query: Tensor, key: Tensor) -> float:
    """How far a scaled score is from zero."""
    return float((query @ key.mT / query.shape[-1] ** 0.5).abs().max())


def one_head_variant(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    step: str,
    *,
    scoring: str = "right",
    divide: str = "sqrt(d_k)",
    normalise: str = "rows",
    transposed: bool = False,
) -> Tensor:
    """One step of the one-headed example with a knob for every usual mistake; as it stands, it is right."""
    scores = (K @ Q.T) if scoring == "transposed" else (Q @ K.T)
    if scoring == "article":
        scores = (Q * K).sum().expand(len(Q), len(K))
    d_k = Q.shape[-1]
    scaled = scores / {"sqrt(d_k)": d_k**0.5, "1": 1.0, "d_k": float(d_k)}[divide]
    if step == "scores":
        return scaled if scoring == "scaled" else scores
    weights = {
        "rows": lambda: scaled.softmax(-1),
        "columns": lambda: scaled.softmax(0),
        "everything": lambda: scaled.flatten().softmax(0).reshape(scaled.shape),
        "no exp": lambda: scaled / scaled.sum(-1, keepdim=True),
    }[normalise]()
    return weights if step == "weights" else (weights.T if transposed else weights) @ V


def two_heads_variant(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    *,
    project: str = "each",
    join: str = "side by side",
    output: str = "W_O",
    divide: str = "sqrt(d_k)",
) -> Tensor:
    """The two-headed example with a knob for every usual mistake; as it stands, it is right."""
    E = W_Q.shape[-1]
    D = X.shape[-1]
    chosen = {"first": (0, 0), "second": (1, 1)}.get(project, (0, 1))
    heads = []
    for place, i in enumerate(chosen):
        if project == "slices":
            query = key = value = X[:, place * E : (place + 1) * E]
        else:
            query, key, value = X @ W_Q[i], X @ W_K[i], X @ W_V[i]
        divisor = {"sqrt(d_k)": E**0.5, "d_k": float(E), "sqrt(D)": D**0.5, "1": 1.0}[divide]
        heads.append((query @ key.T / divisor).softmax(-1) @ value)
    if join == "reversed":
        heads.reverse()
    joined = torch.stack(heads).reshape(len(X), 2 * E) if join == "stacked" else torch.cat(heads, dim=-1)
    return joined if output == "none" else joined @ W_O


def _right_head(Q: Tensor, K: Tensor, V: Tensor) -> dict[str, Tensor]:
    """Scores, weights and output of one head; weights and output by torch's own kernel."""
    identity = torch.eye(len(K))  # with the identity as values the output is the weights
    return {
        "scores": torch.einsum("ie,je->ij", Q, K),
        "weights": F.scaled_dot_product_attention(Q[None], K[None], identity[None])[0],
        "output": F.scaled_dot_product_attention(Q[None], K[None], V[None])[0],
    }


def _right_heads(numbers: Numbers) -> Tensor:
    """The two heads side by side, projected: torch's kernel takes the heads as a batch."""
    query, key, value = (numbers.X @ w for w in (numbers.W_Q, numbers.W_K, numbers.W_V))
    heads = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    return heads.transpose(0, 1).flatten(1) @ numbers.W_O


def examine(one_head: Any, two_heads: Any, *, seed: int, n_tokens: int, d_k: int) -> Report:
    """Check a learner's `one_head(Q, K, V)` and `two_heads(X, W_Q, W_K, W_V, W_O)`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    numbers = draw(seed, n_tokens, d_k)
    source = generator(seed + 1)
    exam = Exam("04/03_worked_example", {"seed": seed, "n_tokens": n_tokens, "d_k": d_k}, atol=1e-4)

    def one(step: str, numbers: Numbers, first: bool) -> None:
        given = numbers[:3]
        results = exam.unpack(exam.call(one_head, *given), ", ".join(STEPS))
        got = exam.tensor(results[STEPS.index(step)], f"the {step}")
        if not first and got.shape == yours[step].shape and bool((got.detach() - yours[step]).abs().max() < 1e-4):
            raise Wrong((HARD_CODED,))
        exam.compare(
            got,
            _right_head(*given)[step],
            mistakes(one_head_variant, ONE_HEAD, Q=given[0], K=given[1], V=given[2], step=step),
            what=f"the {step}",
        )

    def two(numbers: Numbers, first: bool) -> None:
        given = numbers[3:]
        got = exam.tensor(exam.call(two_heads, *given), "the output of two heads")
        if not first and got.shape == yours["two"].shape and bool((got.detach() - yours["two"]).abs().max() < 1e-4):
            raise Wrong((HARD_CODED,))
        names = dict(zip(("X", "W_Q", "W_K", "W_V", "W_O"), given, strict=True))
        exam.compare(
            got,
            _right_heads(numbers),
            mistakes(two_heads_variant, TWO_HEADS, **names),
            what="the output of two heads",
            clue=lambda: FOLLOWS if exam.failed else exam.suspect(two_heads, given, "X, W_Q, W_K, W_V, W_O"),
        )

    yours = {**_right_head(*numbers[:3]), "two": _right_heads(numbers)}
    same_sizes = _numbers(source, n_tokens, d_k, d_k)
    other_sizes = _numbers(source, 5, 3, 2, D=6, E=3)
    for step in STEPS:
        with exam.part(f"the {step} of your numbers"):
            one(step, numbers, first=True)
    for step in STEPS:
        with exam.part(f"the {step} of other numbers"):
            one(step, other_sizes, first=False)
            if n_tokens > 1:  # with a single token the weights are 1, whatever the numbers
                one(step, same_sizes, first=False)
    with exam.part("two heads, your numbers"):
        two(numbers, first=True)
    with exam.part("two heads, other numbers"):
        two(other_sizes, first=False)
        if n_tokens > 1:
            two(same_sizes, first=False)
    return exam.report()
