"""Checks `split_heads`, `join_heads` and `head_contributions` against slices, `torch.cat` and the whole product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report

SPLIT = (
    Mistake(
        "split_by_reshape",
        "The heads are cut out with a reshape straight to (B, H, T, E), which cuts the sentence and not its columns.",
        "A head gets some of the tokens instead of some columns of every token. First (B, T, H, E), then exchange T "
        "and H with a transpose.",
        ({"cut": "reshape"},),
    ),
    Mistake(
        "split_interleaved",
        "A head takes every H-th column instead of E neighbouring ones.",
        "Cut the last axis into (H, E), in this order, not into (E, H).",
        ({"cut": "interleaved"},),
    ),
    Mistake(
        "heads_and_width_swapped",
        "There are E heads of width H; there have to be H heads of width E.",
        "n_heads is how many heads there are. The width of one is D / n_heads.",
        ({"cut": "E heads"},),
    ),
    Mistake(
        "split_without_transpose",
        "The result has the shape (B, T, H, E): T and H have not been exchanged.",
        "A transpose of axes 1 and 2 is missing. Heads come before tokens, so that attention works on the last two "
        "axes of each head.",
        ({"cut": "B T H E"},),
    ),
    Mistake(
        "batch_and_heads_swapped",
        "The heads are the first axis of the result, and the texts of the batch the second.",
        "(B, H, T, E) keeps the batch in front: only T and H change places.",
        ({"cut": "H B T E"},),
    ),
)

JOIN = (
    Mistake(
        "joined_by_reshape",
        "The heads are joined with a reshape straight from (B, H, T, E), which mixes tokens and heads.",
        "The numbers of later tokens slip into the rows of earlier ones. First back to (B, T, H, E) with a transpose, "
        "then join the last two axes.",
        ({"merge": "reshape"},),
    ),
    Mistake(
        "joined_width_before_heads",
        "The columns of the heads are interleaved: first the first column of every head, then the second.",
        "The axes are joined in the order (E, H). The whole of head 0 comes first: (H, E).",
        ({"merge": "E before H"},),
    ),
    Mistake(
        "joined_in_reverse",
        "The heads are side by side in reverse order.",
        "Head 0 owns the first E columns.",
        ({"merge": "reverse"},),
    ),
    Mistake(
        "joined_by_adding",
        "The heads are added up or averaged; they have to be put side by side.",
        "The result has H times the width of a head.",
        ({"merge": "sum"}, {"merge": "mean"}),
    ),
    Mistake(
        "not_flattened",
        "The result has the shape (B, T, H, E): the last two axes have not been made into one.",
        "After the transpose a reshape to (B, T, H E) is missing.",
        ({"merge": "B T H E"},),
    ),
)

CONTRIBUTIONS = (
    Mistake(
        "columns_not_rows",
        "A head is multiplied by its columns of w_o instead of its rows, as if w_o were transposed.",
        "In x @ w_o, column c of x meets row c of w_o. (torch.nn.Linear stores the transpose; w_o is as it is.)",
        ({"rows": "transposed"},),
    ),
    Mistake(
        "rows_interleaved",
        "A head takes every H-th row of w_o instead of E neighbouring ones.",
        "Cut the first axis of w_o into (H, E), in this order: head h owns the rows from h E on.",
        ({"rows": "interleaved"},),
    ),
    Mistake(
        "rows_of_another_head",
        "The heads are multiplied by the rows of w_o that belong to another head.",
        "Head h owns the rows h E to (h + 1) E - 1, counted from 0.",
        ({"rows": "next"}, {"rows": "previous"}, {"rows": "reverse"}),
    ),
    Mistake(
        "same_rows_for_every_head",
        "Every head is multiplied by the same rows of w_o, those of one head.",
        "Each head has E rows of its own. The block has to move on with h.",
        ({"rows": "first"}, {"rows": "last"}),
    ),
    Mistake(
        "output_cut",
        "These are pieces of the whole output, cut by columns; they are not the heads' terms.",
        "A head writes to all D columns of the output. What belongs to one head is a block of rows of w_o, not a "
        "block of columns of the output. Zeros around the pieces even give the right sum.",
        ({"terms": "cut"}, {"terms": "cut, zeros around"}),
    ),
    Mistake(
        "summed",
        "The heads' terms are added up already; they are asked for one by one.",
        "The result has an axis for the heads: (B, H, T, D).",
        ({"terms": "sum"}, {"terms": "sum, axis kept"}),
    ),
    Mistake(
        "whole_output_for_every_head",
        "Every head is given the whole output.",
        "The terms of all heads have to add up to the output, so each is a part of it only.",
        ({"terms": "whole"},),
    ),
    Mistake(
        "divided_by_heads",
        "The terms are divided by the number of heads.",
        "The output is the sum of the terms, not their mean.",
        ({"divide": "H"},),
    ),
    Mistake(
        "stacked_in_front",
        "The heads are the first axis of the result; they have to be the second.",
        "torch.stack puts the new axis in front unless it is told where: dim=1.",
        ({"terms": "H B T D"},),
    ),
    Mistake(
        "tokens_before_heads",
        "The tokens come before the heads in the result: (B, T, H, D) instead of (B, H, T, D).",
        "The result keeps the axes of the heads that you were given; only the last one grows from E to D.",
        ({"terms": "B T H D"},),
    ),
)


def split_variant(x: Tensor, n_heads: int, *, cut: str = "right") -> Tensor:
    """The heads of x, with a knob for every usual mistake; as it stands, it is right."""
    B, T, D = x.shape
    E = D // n_heads
    if cut == "reshape":
        return x.reshape(B, n_heads, T, E)
    if cut == "interleaved":
        return x.reshape(B, T, E, n_heads).permute(0, 3, 1, 2)
    if cut == "E heads":
        return x.reshape(B, T, E, n_heads).permute(0, 2, 1, 3)
    order = {"right": (0, 2, 1, 3), "B T H E": (0, 1, 2, 3), "H B T E": (2, 0, 1, 3)}[cut]
    return x.reshape(B, T, n_heads, E).permute(order)


def join_variant(heads: Tensor, *, merge: str = "right") -> Tensor:
    """The heads side by side, with a knob for every usual mistake; as it stands, it is right."""
    B, H, T, E = heads.shape
    if merge in ("sum", "mean"):
        return heads.sum(1) if merge == "sum" else heads.mean(1)
    if merge == "reshape":
        return heads.reshape(B, T, H * E)
    if merge == "E before H":
        return heads.permute(0, 2, 3, 1).reshape(B, T, H * E)
    apart = (heads.flip(1) if merge == "reverse" else heads).permute(0, 2, 1, 3)
    return apart if merge == "B T H E" else apart.reshape(B, T, H * E)


def there_and_back(x: Tensor, n_heads: int, *, cut: str = "right", merge: str = "right") -> Tensor:
    """x, split and joined again."""
    return join_variant(split_variant(x, n_heads, cut=cut), merge=merge)


def contributions_variant(
    heads: Tensor, w_o: Tensor, *, rows: str = "right", terms: str = "right", divide: str = "1"
) -> Tensor:
    """Each head's term, with a knob for every usual mistake; as it stands, it is right."""
    H, E = heads.shape[1], heads.shape[3]
    if rows == "interleaved":
        blocks = w_o.reshape(E, H, -1).transpose(0, 1)
    else:
        blocks = (w_o.T if rows == "transposed" else w_o).reshape(H, E, -1)
    order = torch.arange(H)
    order = {
        "next": order.roll(-1),
        "previous": order.roll(1),
        "reverse": order.flip(0),
        "first": torch.zeros_like(order),
        "last": torch.full_like(order, H - 1),
    }.get(rows, order)
    each = torch.einsum("bhte,hed->bhtd", heads, blocks[order])
    if divide == "H":
        each = each / H
    whole = each.sum(1, keepdim=True)
    return {
        "right": lambda: each,
        "sum": lambda: whole[:, 0],
        "sum, axis kept": lambda: whole,
        "whole": lambda: whole.expand_as(each),
        "cut": lambda: torch.cat(whole.tensor_split(H, -1), 1),
        "cut, zeros around": lambda: whole * (torch.arange(whole.shape[-1]) // E == torch.arange(H)[:, None, None]),
        "H B T D": lambda: each.transpose(0, 1),
        "B T H D": lambda: each.transpose(1, 2),
    }[terms]()


def split_reference(x: Tensor, n_heads: int) -> Tensor:
    """The right heads: slices of the columns."""
    E = x.shape[-1] // n_heads
    return torch.stack([x[..., h * E : (h + 1) * E] for h in range(n_heads)], dim=1)


def join_reference(heads: Tensor) -> Tensor:
    """The right joined heads, one behind the other in the last axis."""
    return torch.cat(heads.unbind(1), dim=-1)


def contributions_reference(heads: Tensor, w_o: Tensor) -> Tensor:
    """The right terms: the output of the whole layer when all heads but one are zero."""
    alone = [heads * (torch.arange(heads.shape[1]) == h)[:, None, None] for h in range(heads.shape[1])]
    return torch.stack([join_reference(heads) @ w_o for heads in alone], dim=1)


def examine(
    split_heads: Any,
    join_heads: Any,
    head_contributions: Any,
    *,
    seed: int,
    batch_size: int,
    n_tokens: int,
    d_model: int,
    n_heads: int,
) -> Report:
    """Check a learner's `split_heads`, `join_heads` and `head_contributions`.

    Raises:
        ValueError: a size or the seed is out of range, or n_heads does not divide d_model.
    """
    positive(batch_size=batch_size, n_tokens=n_tokens, d_model=d_model, n_heads=n_heads)
    if d_model % n_heads:
        raise ValueError(f"n_heads must divide d_model: got d_model={d_model}, n_heads={n_heads}")
    source = generator(seed)
    exam = Exam(
        "04/02_multi_head",
        {"seed": seed, "batch_size": batch_size, "n_tokens": n_tokens, "d_model": d_model, "n_heads": n_heads},
    )

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    def split(x: Tensor, H: int) -> None:
        exam.compare(
            exam.tensor(exam.call(split_heads, x, H), "the heads"),
            split_reference(x, H),
            mistakes(split_variant, SPLIT, x=x, n_heads=H),
            what="the heads",
            clue=lambda: exam.suspect(split_heads, (x, H), "x"),
        )

    def join(heads: Tensor) -> None:
        exam.compare(
            exam.tensor(exam.call(join_heads, heads), "the joined heads"),
            join_reference(heads),
            mistakes(join_variant, JOIN, heads=heads),
            what="the joined heads",
            clue=lambda: exam.suspect(join_heads, (heads,), "heads"),
        )

    def contribute(heads: Tensor, w_o: Tensor) -> None:
        exam.compare(
            exam.tensor(exam.call(head_contributions, heads, w_o), "the heads' terms"),
            contributions_reference(heads, w_o),
            mistakes(contributions_variant, CONTRIBUTIONS, heads=heads, w_o=w_o),
            what="the heads' terms",
            clue=lambda: exam.suspect(head_contributions, (heads, w_o), "heads, w_o"),
        )

    E = d_model // n_heads
    with exam.part("splitting your sizes"):
        split(drawn(batch_size, n_tokens, d_model), n_heads)
    with exam.part("splitting three texts into five heads"):
        split(drawn(3, 4, 10), 5)
    with exam.part("splitting into one head"):
        split(drawn(2, 3, 4), 1)
    with exam.part("splitting into as many heads as columns"):
        split(drawn(2, 3, 4), 4)
    with exam.part("splitting a single token"):
        split(drawn(2, 1, 9), 3)
    with exam.part("joining your sizes"):
        join(drawn(batch_size, n_heads, n_tokens, E))
    with exam.part("joining the five heads of three texts"):
        join(drawn(3, 5, 4, 2))
    with exam.part("joining one head"):
        join(drawn(2, 1, 3, 4))
    with exam.part("joining heads of width one"):
        join(drawn(2, 4, 3, 1))
    with exam.part("joining a single token"):
        join(drawn(2, 3, 1, 3))
    with exam.part("there and back"):
        x = drawn(2, 4, 6)
        heads = exam.tensor(exam.call(split_heads, x, 3), "the heads")
        if heads.shape != (2, 3, 4, 2):  # nothing that `join_heads` could be asked to put right
            exam.compare(heads, split_reference(x, 3), mistakes(split_variant, SPLIT, x=x, n_heads=3), what="the heads")
        exam.compare(
            exam.tensor(exam.call(join_heads, heads), "x, split and joined again"),
            x,
            mistakes(there_and_back, (*SPLIT, *JOIN), x=x, n_heads=3),
            what="x, split and joined again",
        )
    with exam.part("the terms of your heads"):
        contribute(drawn(batch_size, n_heads, n_tokens, E), drawn(d_model, d_model))
    with exam.part("the terms of five heads in three texts"):
        contribute(drawn(3, 5, 4, 2), drawn(10, 10))
    with exam.part("the term of one head"):
        contribute(drawn(2, 1, 3, 4), drawn(4, 4))
    with exam.part("the terms of heads of width one"):
        contribute(drawn(2, 4, 3, 1), drawn(4, 4))
    with exam.part("the terms at a single token"):
        contribute(drawn(2, 3, 1, 3), drawn(9, 9))
    with exam.part("heads that are wider than D / H"):
        contribute(drawn(2, 3, 4, 5), drawn(15, 6))
    with exam.part("heads that come out of a transpose"):
        contribute(drawn(2, 4, 3, 2).transpose(1, 2), drawn(6, 6))
    with exam.part("a gradient reaches x"):
        x = drawn(2, 4, 6).requires_grad_()
        exam.learns(exam.tensor(exam.call(split_heads, x, 3), "the heads"), {"x": x})
    with exam.part("a gradient reaches the heads that are joined"):
        heads = drawn(2, 3, 4, 2).requires_grad_()
        exam.learns(exam.tensor(exam.call(join_heads, heads), "the joined heads"), {"heads": heads})
    with exam.part("a gradient reaches the heads and w_o"):
        named = {"heads": drawn(2, 3, 4, 2).requires_grad_(), "w_o": drawn(6, 6).requires_grad_()}
        got = exam.tensor(exam.call(head_contributions, *named.values()), "the heads' terms")
        exam.learns(got, named)
    return exam.report()
