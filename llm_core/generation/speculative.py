"""Speculative decoding: a small model drafts some tokens, the large one checks them all in a single pass.

Reading five tokens costs a large model about as much time as reading one: what takes the time is to fetch its weights.
So a draft model, with probabilities q, proposes K tokens one by one, the target, with probabilities p, reads them
together, and each proposed token x is kept or not:

    accept x with probability min(1, p(x) / q(x))
    at the first one that is refused, draw from max(0, p - q), normalised, instead, and drop the rest
    if none is refused, draw one more token from the target's next distribution

What comes out is distributed exactly as if the target had drawn every token itself: x arrives by acceptance with
q(x) min(1, p(x) / q(x)) = min(p(x), q(x)), and the resampling adds the max(0, p(x) - q(x)) that is missing. A bad
draft model costs time, never quality. On average the share sum_x min(p(x), q(x)) of the proposals is accepted.

Source: Leviathan et al. 2023; Chen et al. 2023.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.checks import check_whole
from llm_core.generation.adjust import Adjust
from llm_core.generation.generate import LanguageModel, batch_prompts, check_generator, check_room, stop_ids
from llm_core.generation.sampling import ImpossibleLogits, Sampler, check_logits, impossible_rows
from llm_core.layers.cache import REWINDABLE


def accept_probability(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """How likely each token is kept when it was drawn from q but should be from p: min(1, p / q).

    >>> accept_probability(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))
    tensor([0.5000, 1.0000])
    """
    return torch.where(p < q, p / q, 1.0)  # not p / q alone: where both are 0 it is no number


def residual(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """What to draw from after a refusal: the part of p that q has too little of, max(0, p - q), normalised.

    >>> residual(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.5, 0.25, 0.25]))
    tensor([0., 1., 0.])
    """
    missing = (p - q).clamp(min=0)
    total = missing.sum(dim=-1, keepdim=True)
    # Nothing is missing where p = q; a refusal there comes of rounding, and p will do.
    return torch.where(total > 0, missing / total, p)


def acceptance_rate(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, " *batch"]:
    """The share of tokens drawn from q that are kept, on average: sum of min(p, q), 1 less their total variation.

    >>> acceptance_rate(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))
    tensor(0.7500)
    """
    return torch.minimum(p, q).sum(dim=-1)


def verify(
    p: Float[Tensor, "K1 V"],
    q: Float[Tensor, "K V"],
    proposed: Int[Tensor, " K"],
    generator: torch.Generator | None = None,
) -> Int[Tensor, " new"]:
    """The proposed tokens that are kept, and one token more that is drawn in any case: 1 to K + 1 tokens.

    Args:
        p: the target's distributions where the K tokens stand, and the one after them.
        q: the distributions that the proposed tokens were drawn from.
        proposed: the K tokens; K may be 0.
    """
    K = len(proposed)
    keep = accept_probability(p[:K], q).gather(-1, proposed[:, None]).squeeze(-1)
    accepted = torch.rand(K, device=p.device, generator=generator) < keep
    n = int(accepted.cumprod(dim=0).sum())  # up to the first refusal
    last = p[K] if n == K else residual(p[n], q[n])
    return torch.cat([proposed[:n], torch.multinomial(last, 1, generator=generator)])


@dataclass(frozen=True)
class Speculated:
    """What `speculative` returns.

    Args:
        ids: the new tokens (1, new), without the prompt.
        proposed: how many tokens the draft model proposed.
        accepted: how many of them the target kept.
        passes: how often the target was run; without speculation, once for each token.
    """

    ids: Int[Tensor, "1 new"]
    proposed: int
    accepted: int
    passes: int


def speculative(
    model: LanguageModel,
    draft: LanguageModel,
    prompt: Int[Tensor, "1 T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    n_draft: int = 4,
    sampler: Sampler | None = None,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
) -> Speculated:
    """The tokens that continue the prompt, distributed as those of the model alone.

    Args:
        model: the target. Put both models in eval mode first if they have dropout.
        draft: the model that proposes, with the same tokens. Both caches must be able to `rewind`.
        prompt: one prompt. Rows of a batch would keep unequal numbers of tokens.
        max_new_tokens: how many tokens at most.
        n_draft: how many tokens are proposed for one pass of the target.
        sampler: what turns the logits of both models into the distributions p and q. None: both are sure of their
            likeliest token, and the result is that of `greedy`.
        adjust: as in `stream`; the logits of both models are adjusted, each by the text that stands before it.
        stop_id: the token, or tokens, after which the text ends.
        generator: for all that is drawn.

    Raises:
        ValueError: there is more than one prompt; n_draft is outside 1 ... 32; the models differ in their vocabulary;
            prompt and new tokens are longer than the context of either; or see `stream`. Before any work is done.
            While it runs: there are logits from which no token can be chosen; it names the step.
    """
    if check_whole("n_draft", n_draft, at_least=1) > REWINDABLE:
        raise ValueError(f"between 1 and {REWINDABLE} tokens can be drafted at a time: got n_draft={n_draft}")
    if model.vocab_size != draft.vocab_size:
        raise ValueError(
            "both models must know the same tokens: the model has a vocabulary of "
            f"{model.vocab_size}, the draft model one of {draft.vocab_size}"
        )
    text, _ = batch_prompts(model, prompt, max_new_tokens)
    B, T = text.shape
    if B != 1:
        raise ValueError(f"speculative decoding continues one prompt at a time: got {B}. Call it once for each")
    check_room("the draft model's context", draft.context, T, max_new_tokens)
    stops = stop_ids(model, stop_id)
    check_generator(generator, text.device)
    if sampler is None:
        generator = torch.Generator(text.device)  # decides nothing then, and torch's global one stays as it is
    end = T + max_new_tokens
    cache, draft_cache = model.new_cache(1, end - 1), draft.new_cache(1, end - 1)
    proposed = accepted = passes = 0
    with torch.no_grad():
        while text.shape[1] < end:
            # Each model reads what its cache does not hold yet: the prompt at first, then a token or two.
            t = text.shape[1]
            K = min(n_draft, end - t - 1)
            q = []
            for _ in range(K):
                logits = draft(text[:, draft_cache.length :], draft_cache)[:, -1]
                q.append(_distributions(logits, text, T, adjust, sampler))
                text = torch.cat([text, torch.multinomial(q[-1], 1, generator=generator)], dim=1)
            logits = model(text[:, cache.length :], cache)[0, -(K + 1) :]
            p = _distributions(logits, text, T, adjust, sampler)
            new = verify(p, torch.cat(q) if q else p[:0], text[0, t:], generator)
            proposed, accepted, passes = proposed + K, accepted + len(new) - 1, passes + 1
            text = torch.cat([text[:, :t], new[None]], dim=1)
            stopped = [i for i, token in enumerate(new.tolist()) if token in stops]
            if stopped:
                text = text[:, : t + stopped[0] + 1]
                break
            # The last token was drawn, not read; after it, what was refused is forgotten.
            cache.rewind(text.shape[1] - 1)
            draft_cache.rewind(min(draft_cache.length, text.shape[1] - 1))
    return Speculated(text[:, T:], proposed, accepted, passes)


def _distributions(
    logits: Float[Tensor, "n V"],
    text: Int[Tensor, "1 T"],
    n_prompt: int,
    adjust: Adjust | None,
    sampler: Sampler | None,
) -> Float[Tensor, "n V"]:
    """What to draw from at the last n positions of the text; all on the likeliest token without a sampler."""
    n, T = len(logits), text.shape[1]
    if adjust is not None:
        # Each position has another text before it.
        rows = [adjust(logits[i : i + 1], text[:, : T - n + 1 + i], None, n_prompt) for i in range(n)]
        logits = torch.cat(rows)
    try:
        check_logits(logits, impossible_rows(logits).tolist())
    except ImpossibleLogits as error:
        raise ImpossibleLogits(f"after {T - n_prompt - n + 1} new tokens, {error}") from None
    if sampler is not None:
        return sampler.probabilities(logits)
    one_hot = torch.zeros_like(logits, dtype=torch.float32)
    return one_hot.scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
