"""Beam search: of all continuations, find one of high probability, by keeping the best few at each step.

Greedy search keeps one text and never takes back a token. Beam search keeps the `n_beams` likeliest texts of each
length. A text that ends competes by its score

    score = log_probability / length ** length_penalty         log_probability: the sum over its `length` tokens

since a sum of logarithms falls with each token: without the division (penalty 0) short texts win. With as many beams
as there are texts it is exhaustive search.

The rules for when a text counts as finished, and when the search ends, are those of transformers' `generate`:

    a candidate finishes    if its token is a stop token, or the last that was allowed, and it is among the `n_beams`
                            best candidates of its step; the best `n_beams` finished texts are kept
    the search ends         when `n_beams` texts have finished and the best unfinished one cannot beat the worst of
                            them: not with its score at its present length (early_stopping=False), nor, if the penalty
                            favours long texts, with its log-probability over the full length ("never").
                            True: as soon as `n_beams` have finished.

Source: Graves 2012 and Sutskever et al. 2014 (the search), Wu et al. 2016, section 7 (normalising by length).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from llm_core.checks import check_whole, is_number
from llm_core.generation.adjust import Adjust
from llm_core.generation.generate import LanguageModel, batch_prompts, last_logits, padded_cache, stop_ids
from llm_core.generation.sampling import ImpossibleLogits, check_logits, impossible_rows


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that was found.

    Args:
        ids: its tokens, without the prompt; the last is the stop token, if it got there.
        log_probability: of all its tokens together, given the prompt.
        score: what it was ranked by.
        token_log_probabilities: of each token, given those before it. They sum to `log_probability`, up to rounding.
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float
    token_log_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class _Candidate:
    """A running text and one more token."""

    beam: int
    token: int
    log_probability: float  # of the whole text
    of_token: float  # of the token alone


def beam_search(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    n_beams: int,
    length_penalty: float | int = 1.0,
    adjust: Adjust | None = None,
    stop_id: int | Collection[int] | None = None,
    n_best: int = 1,
    early_stopping: bool | str = False,
) -> list[list[Hypothesis]]:
    """The best continuations of each prompt, best first.

    Args:
        model, prompt, max_new_tokens, stop_id: as in `stream`. The model's cache must be able to `reorder` its rows.
        n_beams: how many texts go on at each step. 1 is greedy search.
        adjust: as in `stream`, but it gets log-probabilities, as in transformers; what it returns is summed up.
        length_penalty: above 0 favours long texts, below 0 short ones; 0 ranks by the bare log-probability.
        n_best: how many to return for each prompt; fewer come back where there are not as many texts.
        early_stopping: when to end, True, False or "never": see above.

    Raises:
        ValueError: n_beams is below 1, n_best is outside 1 ... n_beams, length_penalty is no number, early_stopping is
            something else, or prompt and stop tokens are not for this model (see `stream`). Before any work is done.
            While it runs: the logits of a row hold NaN or +inf, or nothing but -inf; it names the step.
    """
    check_whole("n_beams", n_beams, at_least=1)
    check_whole("n_best", n_best, at_least=1)
    if n_best > n_beams:
        raise ValueError(f"of {n_beams} beams between 1 and {n_beams} texts can be returned: got n_best={n_best}")
    if not is_number(length_penalty) or math.isnan(length_penalty):
        raise ValueError(f"length_penalty is a number, above 0 for long texts: got {length_penalty!r}")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f'early_stopping is True, False or "never": got {early_stopping!r}')
    ids, padding = batch_prompts(model, prompt, max_new_tokens)
    stops = stop_ids(model, stop_id)
    B, T = ids.shape
    cache = padded_cache(model, B, T + max_new_tokens - 1, padding)
    searches = [
        _Search(
            n_beams, max_new_tokens, stops, float(length_penalty), early_stopping, finished=[], texts=[()], chances=[()]
        )
        for _ in range(B)
    ]
    with torch.no_grad():
        logits = last_logits(model, ids, cache)
        so_far = torch.zeros(B, 1, device=logits.device)  # log-probabilities of the running texts, (B, beams)
        while True:
            beams, V = so_far.shape[1], logits.shape[-1]
            _check(logits, len(searches[0].texts[0]), beams)
            of_token = logits.float().log_softmax(dim=-1)
            if adjust is not None:
                of_token = adjust(of_token, ids, padding, T)
            log_probabilities = of_token + so_far.flatten()[:, None]
            # If the best were all stop tokens, there would still be n_beams others to go on with.
            n_candidates = min(max(2, 1 + len(stops)) * n_beams, beams * V)
            best, index = log_probabilities.view(B, beams * V).topk(n_candidates)
            alone = of_token.view(B, beams * V).gather(-1, index)
            found = zip(index.tolist(), best.tolist(), alone.tolist(), strict=True)
            running = [
                search.step([_Candidate(i // V, i % V, p, q) for i, p, q in zip(*row, strict=True)])
                for search, row in zip(searches, found, strict=True)
            ]
            if all(search.ended for search in searches):
                return [search.finished[:n_best] for search in searches]
            places = [b * beams + candidate.beam for b, row in enumerate(running) for candidate in row]
            rows = torch.tensor(places, device=ids.device)
            tokens = torch.tensor([[candidate.token] for row in running for candidate in row], device=ids.device)
            so_far = torch.tensor([[candidate.log_probability for candidate in row] for row in running]).to(best)
            if adjust is not None:
                ids = torch.cat([ids[rows], tokens], dim=1)
                padding = None if padding is None else padding[rows]
            cache.reorder(rows)
            logits = model(tokens, cache)[:, -1]


@dataclass
class _Search:
    """The search for the continuations of one prompt."""

    n_beams: int
    max_new_tokens: int
    stops: tuple[int, ...]
    length_penalty: float
    early_stopping: bool | str
    finished: list[Hypothesis]  # best first
    texts: list[tuple[int, ...]]  # of the beams that go on, all of one length
    chances: list[tuple[float, ...]]  # the log-probability of each of their tokens
    ended: bool = False

    def step(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Take the candidates of this step, best first; returns the `n_beams` that go on."""
        length = len(self.texts[0]) + 1
        running = []
        for rank, candidate in enumerate(candidates):
            if candidate.token not in self.stops and length < self.max_new_tokens:
                running.append(candidate)
            elif rank < self.n_beams and candidate.log_probability > -math.inf and not self.ended:
                self._finish(candidate, length)
        # Places that are left over go to texts that cannot be, whose continuations come last at every step.
        running += [_Candidate(0, 0, -math.inf, -math.inf)] * (self.n_beams - len(running))
        running = running[: self.n_beams]
        self.ended = self.ended or self._ends(running[0].log_probability, length)
        self.texts, self.chances = (
            [(*self.texts[candidate.beam], candidate.token) for candidate in running],
            [(*self.chances[candidate.beam], candidate.of_token) for candidate in running],
        )
        return running

    def _finish(self, candidate: _Candidate, length: int) -> None:
        ids = (*self.texts[candidate.beam], candidate.token)
        score = candidate.log_probability / length**self.length_penalty
        chances = (*self.chances[candidate.beam], candidate.of_token)
        self.finished.append(Hypothesis(ids, candidate.log_probability, score, chances))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable: of equals the first found stays first
        del self.finished[self.n_beams :]

    def _ends(self, best_running: float, length: int) -> bool:
        if best_running == -math.inf:
            return True  # nothing goes on
        if len(self.finished) < self.n_beams:
            return False
        favours_long = self.early_stopping == "never" and self.length_penalty > 0
        possible = best_running / (self.max_new_tokens if favours_long else length) ** self.length_penalty
        return self.early_stopping is True or possible <= self.finished[-1].score


def _check(logits: Tensor, step: int, beams: int) -> None:
    """Refuse what a model cannot mean. What an adjustment rules out is a beam that does not go on."""
    try:
        check_logits(logits, impossible_rows(logits).tolist())
    except ImpossibleLogits as error:
        raise ImpossibleLogits(f"after {step} new tokens, of {beams} beams for each prompt, {error}") from None
