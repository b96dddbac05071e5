"""Induction heads: heads that look for what came after the last time.

    ... A B ... A  ->  B

Random tokens, twice in a row, make it visible: nothing but the first copy foretells the second. Attention A_ij of
query i to key j, in a text that ends in two copies of n tokens:

    induction        mean of A[i, i - n + 1] over the second copy    the token after the first occurrence
    duplicate token  mean of A[i, i - n] over the second copy        the first occurrence itself
    previous token   mean of A[i, i - 1] over all but the first      what an induction head stands on

A score of 1 is a head that does nothing else. Uniform attention over the tokens so far has the mean of 1 / (i + 1).

Source: Olsson et al. 2022 (prefix matching on repeated random tokens); Wang et al. 2022 (duplicate-token heads).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.interpret.attention_maps import recorded_attention


def repeated_tokens(
    batch: int, n: int, vocab_size: int, *, generator: torch.Generator, first: int | None = None
) -> Int[Tensor, "B T"]:
    """Texts of n random tokens and the same n again; T = 2 n, and one more with a `first` token.

    No token comes twice within a copy, so that "the first occurrence" is one place.

    Args:
        batch: how many texts B.
        n: tokens in a copy.
        vocab_size: V; the tokens are drawn from 0 ... V - 1.
        generator: draws them.
        first: a token that stands before both copies, as the beginning-of-text token of models that were trained with
            one. It is in no copy.

    Raises:
        ValueError: batch is below 1, n is below 3, or there are fewer than n tokens to draw from.
    """
    if batch < 1 or n < 3:
        raise ValueError(f"ask for at least one text, of copies of at least three tokens: got batch={batch}, n={n}")
    tokens = torch.tensor([token for token in range(vocab_size) if token != first], device=generator.device)
    if n > len(tokens):
        raise ValueError(f"a copy has no token twice, so n can be at most {len(tokens)} here: got n={n}")
    order = [torch.randperm(len(tokens), generator=generator, device=generator.device)[:n] for _ in range(batch)]
    copy = tokens[torch.stack(order)]
    begin = copy.new_full((batch, 0 if first is None else 1), 0 if first is None else first)
    return torch.cat([begin, copy, copy], dim=1)


def induction_score(weights: Float[Tensor, "*batch T T"], n: int) -> Float[Tensor, " *batch"]:
    """Mean attention from each position of the second copy to the token after its first occurrence.

    Args:
        weights: attention weights over a text that ends in two copies of n tokens.
        n: tokens in a copy.

    Raises:
        ValueError: n is below 3, or the text is shorter than two copies.

    >>> weights = torch.zeros(6, 6)
    >>> weights[3, 1] = weights[4, 2] = 1.0
    >>> induction_score(weights, n=3)
    tensor(0.6667)
    """
    _check_copies(weights.shape[-1], n)
    return weights.diagonal(1 - n, dim1=-2, dim2=-1)[..., -n:].mean(dim=-1)


def duplicate_token_score(weights: Float[Tensor, "*batch T T"], n: int) -> Float[Tensor, " *batch"]:
    """Mean attention from each position of the second copy to its first occurrence; arguments as `induction_score`.

    Raises:
        ValueError: as `induction_score`.
    """
    _check_copies(weights.shape[-1], n)
    return weights.diagonal(-n, dim1=-2, dim2=-1)[..., -n:].mean(dim=-1)


def previous_token_score(weights: Float[Tensor, "*batch T T"]) -> Float[Tensor, " *batch"]:
    """Mean attention from each position but the first to the one before it.

    Raises:
        ValueError: the text has fewer than two tokens.
    """
    if weights.shape[-1] < 2:
        raise ValueError(f"only a second token has one before it: got T={weights.shape[-1]}")
    return weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1)


class HeadScores(NamedTuple):
    """What each head does on repeated random tokens: three scores of each layer and head, 0 ... 1."""

    induction: Float[Tensor, "L H"]
    duplicate_token: Float[Tensor, "L H"]
    previous_token: Float[Tensor, "L H"]


@torch.no_grad()
def head_scores(model: nn.Module, ids: Int[Tensor, "B T"], n: int) -> HeadScores:
    """The scores of every head of a decoder, as means over the texts.

    Args:
        model: called as `model(ids)`; in eval mode, so that dropout does not blur what the heads see.
        ids: texts that end in two copies of n tokens, as `repeated_tokens` makes them.
        n: tokens in a copy.

    Raises:
        ValueError: the texts do not end in two equal copies, or the model has no MultiHeadAttention.
    """
    T = ids.shape[1]
    _check_copies(T, n)
    differ = (ids[:, T - 2 * n : T - n] != ids[:, T - n :]).any(dim=1).nonzero().flatten().tolist()
    if differ:
        raise ValueError(f"the texts must end in two equal copies of n={n} tokens: those of rows {differ} differ")
    with recorded_attention(model) as maps:
        model(ids)
    layers = [recorded[0] for recorded in maps.values()]
    return HeadScores(
        induction=torch.stack([induction_score(weights, n).mean(dim=0) for weights in layers]),
        duplicate_token=torch.stack([duplicate_token_score(weights, n).mean(dim=0) for weights in layers]),
        previous_token=torch.stack([previous_token_score(weights).mean(dim=0) for weights in layers]),
    )


def _check_copies(T: int, n: int) -> None:
    # With two tokens a copy, the one after the first occurrence is also the previous one.
    if n < 3 or 2 * n > T:
        raise ValueError(f"two copies of at least three tokens must fit into the text: got n={n} and T={T}")
