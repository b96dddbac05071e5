"""Masking: how a model that reads in both directions is trained. Hide some tokens, and have it guess them.

    15 % of the tokens are chosen, each by itself       the targets; no other position counts
      80 % of these become [MASK]                       the task: guess from what stands around it
      10 % become a token drawn from the vocabulary     no token can be trusted ...
      10 % stay as they are                             ... nor distrusted, and [MASK] never comes in a real text

Source: Devlin et al. 2019, section 3.1 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Int
from torch import Tensor

from llm_core.training.batches import Batch

IGNORE_ID = -100  # no token has it, so a target that has it cannot be mistaken for one; torch's own default


def mask_tokens(
    ids: Int[Tensor, "B T"],
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int],
    ignore_id: int = IGNORE_ID,
    share: float = 0.15,
    masked: float = 0.8,
    swapped: float = 0.1,
    generator: torch.Generator | None = None,
) -> Batch:
    """The texts with some tokens hidden, and as targets the tokens that were there.

    Args:
        ids: the texts; they stay as they are.
        mask_id: the token that hides another, [MASK].
        vocab_size: V; the tokens that stand in for others are drawn from all V alike.
        special_ids: tokens that are never chosen: [CLS], [SEP], padding.
        ignore_id: the target of every position that was not chosen; `cross_entropy(..., ignore_id=...)` wants the same.
        share: how many of the tokens are chosen, on average. In a small batch it may be none.
        masked: share of the chosen that become [MASK].
        swapped: share of the chosen that become any token (by chance the same again). The rest stay as they are.
        generator: draws; on the device of the ids.

    Raises:
        ValueError: mask_id or a special id is no token, or the shares are none.

    >>> batch = mask_tokens(torch.tensor([[2, 7, 8, 3, 0]]), mask_id=4, vocab_size=9, special_ids=[0, 2, 3], share=1.0)
    >>> batch.targets
    tensor([[-100,    7,    8, -100, -100]])
    """
    for name, id_ in [("mask_id", mask_id), *(("a special id", id_) for id_ in special_ids)]:
        if not 0 <= id_ < vocab_size:
            raise ValueError(f"{name} must be a token, 0 ... {vocab_size - 1}: got {id_}")
    if not 0 < share <= 1:
        raise ValueError(f"some of the tokens must be chosen, 0 < share <= 1: got share={share}")
    if masked < 0 or swapped < 0 or masked + swapped > 1:
        raise ValueError(f"masked and swapped are shares of one whole: got masked={masked}, swapped={swapped}")
    special = torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)
    chosen = (torch.rand(ids.shape, generator=generator, device=ids.device) < share) & ~torch.isin(ids, special)
    # One draw decides what becomes of a chosen token: below `masked`, between there and `masked + swapped`, above.
    fate = torch.rand(ids.shape, generator=generator, device=ids.device)
    others = torch.randint(vocab_size, ids.shape, generator=generator, device=ids.device, dtype=ids.dtype)
    inputs = ids.masked_fill(chosen & (fate < masked), mask_id)
    inputs = torch.where(chosen & (fate >= masked) & (fate < masked + swapped), others, inputs)
    return Batch((inputs,), ids.masked_fill(~chosen, ignore_id))
