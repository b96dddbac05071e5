"""N-gram models: count what followed the last n - 1 tokens, and smooth the counts.

    maximum likelihood   p(w | c) = count(c w) / count(c)                     zero for all that was not seen
    add-k                p(w | c) = (count(c w) + k) / (count(c) + k V)
    Kneser-Ney           p(w | c) = max(count(c w) - d, 0) / count(c)      what was seen gives up d each ...
                                    + d types(c) / count(c) * p(w | c')    ... and the shorter context deals it out

The context c is the last n - 1 tokens, c' is c without its oldest token, types(c) is how many different tokens followed
c. Below the longest n-grams Kneser-Ney does not count how often a gram came but after how many different tokens:
"Francisco" comes often, but after "San" alone, so where the context is new it is an unlikely guess.

All k-grams of one length lie in one sorted array (`Grams`), so that millions of tokens are counted in seconds: the
number of a k-gram is (place of its first k - 1 tokens among the (k-1)-grams) * V + (its last token). What may follow a
context then lies side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.checks import check_sizes

Ids = Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True)
class Grams:
    """All k-grams of one length k that were met, N of them, sorted by their first k - 1 tokens, then by the last.

    Attributes:
        codes: (N,) sorted; the place of the first k - 1 tokens among the (k-1)-grams, times V, plus the last token.
        counts: (N,) how often each came. Zero for those that end in a token that is read only (`start`).
        continuations: (N,) after how many different tokens each came. Zero for the longest grams: nobody asks.
        n_contexts: number of (k-1)-grams; 1 for k = 1, the empty one.
        vocab_size: V.
    """

    codes: Int[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]
    continuations: Int[np.ndarray, " N"]
    n_contexts: int
    vocab_size: int

    @property
    def contexts(self) -> Int[np.ndarray, " N"]:
        """The place of the first k - 1 tokens of each gram."""
        return self.codes // self.vocab_size

    def find(self, contexts: Int[np.ndarray, " T"], tokens: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """The places of the grams (context, token); -1 for those that never came, or whose context is -1."""
        if len(self.codes) == 0:
            return np.full(len(contexts), -1)
        wanted = contexts * self.vocab_size + tokens  # below 0 where the context is -1, and no code is
        places = np.minimum(np.searchsorted(self.codes, wanted), len(self.codes) - 1)
        return np.where(self.codes[places] == wanted, places, -1)

    def followers(self, contexts: Int[np.ndarray, " T"]) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """All grams that begin with one of the contexts: for each of them the row of its context, and its place."""
        firsts = np.searchsorted(self.codes, contexts * self.vocab_size)
        numbers = np.searchsorted(self.codes, (contexts + 1) * self.vocab_size) - firsts  # none for context -1
        rows = np.repeat(np.arange(len(contexts)), numbers)
        # 0, 1, 2, ... within each row, and from the row's first place on.
        return rows, np.arange(len(rows)) + np.repeat(firsts - np.cumsum(numbers) + numbers, numbers)


def count_grams(texts: Sequence[Ids], n: int, vocab_size: int, *, start: int = 0) -> list[Grams]:
    """Count the grams of 1 ... n tokens of some texts; no gram reaches from one text into the next.

    Args:
        texts: token ids, 0 ... V - 1.
        n: length of the longest grams.
        vocab_size: V.
        start: so many tokens at the beginning of each text are read as contexts but not counted.

    >>> grams = count_grams([[0, 1, 0, 1, 1]], n=2, vocab_size=2)
    >>> grams[1].codes.tolist(), grams[1].counts.tolist()  # 0 1, 1 0, 1 1: twice, once, once
    ([1, 2, 3], [2, 1, 1])
    """
    text = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in texts])
    position = np.concatenate([np.arange(len(ids)) for ids in texts])
    contexts = np.zeros(len(text), dtype=np.int64)  # place of the (k-1)-gram before each token; k = 1: the empty one
    shorter = contexts  # place of the (k-1)-gram that ends at each token
    n_contexts = 1
    counted: list[Grams] = []
    for k in range(1, n + 1):
        ends = np.flatnonzero(position >= k - 1)
        codes, places = np.unique(contexts[ends] * vocab_size + text[ends], return_inverse=True)
        counts = np.bincount(places[position[ends] >= start], minlength=len(codes))
        if counted:
            # A gram without its first token is a (k-1)-gram, and has come after that token.
            without_first = np.zeros(len(codes), dtype=np.int64)
            without_first[places] = shorter[ends]
            continuations = np.bincount(without_first[counts > 0], minlength=n_contexts)
            counted[-1] = replace(counted[-1], continuations=continuations)
        counted.append(Grams(codes, counts, np.zeros_like(counts), n_contexts, vocab_size))
        shorter = np.zeros(len(text), dtype=np.int64)
        shorter[ends] = places
        contexts = np.roll(shorter, 1)  # a text's first tokens get a wrong one, and are not asked
        n_contexts = len(codes)
    return counted


@runtime_checkable
class Smoothing(Protocol):
    """How counts become probabilities: p(w | c) = share(c w) + rest(c) * (the level below).

    The level below is p(w | c') if the smoothing `interpolates`, and 1 / V if it does not; below the empty context it
    is 1 / V in any case.
    """

    @property
    def interpolates(self) -> bool:
        """Whether shorter contexts are asked too."""

    def shares(
        self, grams: Grams, *, order: int, highest: bool
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " C"]]:
        """The share of each gram, and what each context leaves to the level below it; together they make one."""


@dataclass(frozen=True)
class AddK:
    """Every token is counted k times more than it came (Lidstone; k = 1 is Laplace's rule).

    A context that never came gives every token 1 / V. With k = 0 it is the plain relative frequency.

    Raises:
        ValueError: k is negative.
    """

    k: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.k < math.inf:
            raise ValueError(f"a count can only grow: k must be 0 or more and finite, got k={self.k}")

    @property
    def interpolates(self) -> bool:
        """No: the longest context alone is asked."""
        return False

    def shares(
        self, grams: Grams, *, order: int, highest: bool
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " C"]]:
        """count(c w) / (count(c) + k V) to each gram, and k V / (count(c) + k V) to all tokens alike."""
        totals = _totals(grams, grams.counts)
        added = self.k * grams.vocab_size
        rest = np.divide(added, totals + added, out=np.ones(grams.n_contexts), where=totals > 0)
        shares = np.divide(
            grams.counts, (totals + added)[grams.contexts], out=np.zeros(len(grams.codes)), where=grams.counts > 0
        )
        return shares, rest


@dataclass(frozen=True)
class KneserNey:
    """Interpolated Kneser-Ney with one discount.

    Args:
        discount: what each count gives up, 0 ... 1.
        uniform: whether the unigrams are discounted too, in favour of the guess 1 / V, as in Chen and Goodman. Without
            it a token that was never seen has probability zero.

    Raises:
        ValueError: the discount is outside 0 ... 1.

    Source: Kneser and Ney 1995; interpolated as in Chen and Goodman 1999.
    """

    discount: float = 0.75
    uniform: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ValueError(f"a discount is a share of one count, 0 <= discount <= 1: got {self.discount}")

    @property
    def interpolates(self) -> bool:
        """Yes: every context is asked, the empty one first."""
        return True

    def discounts(self, counts: Int[np.ndarray, " N"]) -> tuple[float, float, float]:
        """What a count of one, of two, and of three or more gives up."""
        return self.discount, self.discount, self.discount

    def shares(
        self, grams: Grams, *, order: int, highest: bool
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " C"]]:
        """(count - discount) / count(c) to each gram; what the grams of a context gave up is its rest."""
        counts = grams.counts if highest else grams.continuations
        discounts = (0.0, *self.discounts(counts)) if order > 1 or self.uniform else (0.0,) * 4
        given_up = np.asarray(discounts)[np.minimum(counts, 3)]
        totals = _totals(grams, counts)
        # A context without a count says nothing: it leaves all to the level below.
        rest = np.divide(_totals(grams, given_up), totals, out=np.ones(grams.n_contexts), where=totals > 0)
        shares = np.divide(counts - given_up, totals[grams.contexts], out=np.zeros(len(counts)), where=counts > 0)
        return shares, rest


@dataclass(frozen=True)
class ModifiedKneserNey(KneserNey):
    """Kneser-Ney with three discounts at each length, for counts of one, two, and more, worked out from the text.

    With n_r grams of count r and y = n_1 / (n_1 + 2 n_2) they are r - (r + 1) y n_(r+1) / n_r for r = 1, 2, 3.
    `discount` is used for an r where the text is too small for that: a number of grams it divides by is zero, or the
    result is outside 0 ... r.

    Source: Chen and Goodman 1999.
    """

    def discounts(self, counts: Int[np.ndarray, " N"]) -> tuple[float, float, float]:
        """What a count of one, of two, and of three or more gives up."""
        n = np.bincount(np.minimum(counts, 5), minlength=6)
        one, two, three = (self._discount(r, n) for r in (1, 2, 3))
        return one, two, three

    def _discount(self, r: int, n: Int[np.ndarray, " 6"]) -> float:
        if n[1] == 0 or n[r] == 0:
            return self.discount
        y = n[1] / (n[1] + 2 * n[2])
        discount = float(r - (r + 1) * y * n[r + 1] / n[r])
        return discount if 0 <= discount <= r else self.discount


class NGramModel:
    """The token that comes next, from the last n - 1 alone.

    Args:
        sequences: texts as token ids. No gram reaches from one text into the next.
        n: length of the longest grams; the context has n - 1 tokens.
        vocab_size: V; the ids are 0 ... V - 1. A tokenizer's `<unk>` is an id like any other.
        smoothing: `KneserNey`, `ModifiedKneserNey` or `AddK`.
        bos_id: put n - 1 times before every text, so that its first token has a context too. It is read, and
            not counted. None: the first tokens have shorter contexts.
        eos_id: put once after every text, so that its end is predicted too. None: texts have no end.

    Raises:
        ValueError: n or V is below 1, an id is outside 0 ... V - 1, or there is no token to count.

    >>> model = NGramModel([[0, 1, 0, 1, 0, 2]], n=2, vocab_size=3, smoothing=AddK(1.0))
    >>> model.distribution([0])  # after 0 came 1 twice and 2 once
    array([0.16666667, 0.5       , 0.33333333])
    """

    def __init__(
        self,
        sequences: Iterable[Ids],
        n: int,
        *,
        vocab_size: int,
        smoothing: Smoothing | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
    ) -> None:
        check_sizes(n=n, vocab_size=vocab_size)
        self.n, self.vocab_size = n, vocab_size
        self.smoothing = KneserNey() if smoothing is None else smoothing
        self.bos_id, self.eos_id = bos_id, eos_id
        self._check([id_ for id_ in (bos_id, eos_id) if id_ is not None])
        texts = [self._with_ends(self._check(text)) for text in sequences]
        if not any(len(text) > self._start for text in texts):
            raise ValueError(f"there is nothing to count: got {len(texts)} texts, none of which has a token")
        self.grams = count_grams(texts, n, vocab_size, start=self._start)
        levels = [
            self.smoothing.shares(grams, order=order, highest=order == n) for order, grams in enumerate(self.grams, 1)
        ]
        # Place -1, what never came, reads the last entry: no share, and all is left to the level below.
        self._shares = [np.append(shares, 0.0) for shares, _ in levels]
        self._rests = [np.append(rests, 1.0) for _, rests in levels]

    def count(self, gram: Ids) -> int:
        """How often a gram of up to n tokens came.

        Raises:
            ValueError: the gram is empty or longer than n, or an id is no token.
        """
        tokens = self._check(gram)
        if not 1 <= len(tokens) <= self.n:
            raise ValueError(f"grams of 1 to {self.n} tokens were counted: got one of {len(tokens)}")
        place = self._walk(tokens, np.zeros(1, dtype=np.int64), len(tokens))[0]
        return int(self.grams[len(tokens) - 1].counts[place]) if place >= 0 else 0

    def distribution(self, context: Ids = ()) -> Float[np.ndarray, " V"]:
        """The probability of each token after a context, of which the last n - 1 tokens count. They sum to one.

        With a `bos_id` the context is the beginning of a text, and the empty one its very start.
        """
        text = self._begun(self._check(context))
        return self._distributions(text, np.array([len(text)]))[0]

    def probability(self, token: int, context: Ids = ()) -> float:
        """The probability of one token after a context."""
        self._check([token])
        return float(self.distribution(context)[token])

    def token_log_probabilities(self, ids: Ids) -> Float[np.ndarray, " T"]:
        """ln p of each token of a text after those before it; with an `eos_id`, of its end too. -inf where p is 0."""
        text = self._with_ends(self._check(ids))
        places = np.arange(self._start, len(text))
        p = np.full(len(places), 1 / self.vocab_size)
        for order, contexts in self._contexts(text, places):
            found = self.grams[order - 1].find(contexts, text[places])
            p = self._shares[order - 1][found] + self._rests[order - 1][contexts] * p
        return _log(p)

    def log_probability(self, ids: Ids) -> float:
        """ln p of a whole text: the sum over its tokens."""
        return float(self.token_log_probabilities(ids).sum())

    def perplexity(self, ids: Ids) -> float:
        """exp of the mean of -ln p over the tokens of a text; inf if one of them has p = 0.

        Raises:
            ValueError: the text has no token, so that there is no mean.
        """
        logs = self.token_log_probabilities(ids)
        if len(logs) == 0:
            raise ValueError("an empty text has no perplexity: give at least one token")
        return float(np.exp(-logs.mean()))

    def next_token_log_probabilities(self, ids: Ids) -> Float[np.ndarray, "T V"]:
        """Row t: ln p of every token that may follow the first t + 1 tokens, as the logits of a neural model.

        It takes 8 T V bytes: give a long text in pieces, each with the n - 1 tokens before it.
        """
        tokens = self._check(ids)
        text = self._begun(tokens)
        return _log(self._distributions(text, np.arange(1, len(tokens) + 1) + self._start))

    def sample(self, length: int, *, context: Ids = (), generator: torch.Generator | None = None) -> list[int]:
        """Draw up to `length` tokens that continue a context, with the generator (torch's global one unless given).

        It ends with the `eos_id`, if the model has one and it is drawn.

        Raises:
            ValueError: the length is negative, or an id is no token.
        """
        if length < 0:
            raise ValueError(f"the number of tokens to draw cannot be negative: got length={length}")
        text = self._check(context).tolist()
        begin = len(text)
        while len(text) < begin + length:
            recent = text[max(0, len(text) - self.n + 1) :]
            p = torch.from_numpy(self.distribution(recent))
            text.append(int(torch.multinomial(p, 1, generator=generator)))
            if text[-1] == self.eos_id:
                break
        return text[begin:]

    @property
    def _start(self) -> int:
        """Number of tokens that stand before every text."""
        return 0 if self.bos_id is None else self.n - 1

    def _check(self, ids: Ids) -> Int[np.ndarray, " T"]:
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
            raise ValueError(
                f"a text is a sequence of token ids: got {type(ids).__name__} {str(ids)[:40]!r}. "
                "One text alone goes into a list, [ids]; a tokenizer turns words into ids"
            )
        if tokens.size and (tokens.min() < 0 or tokens.max() >= self.vocab_size):
            raise ValueError(f"ids must be tokens, 0 ... {self.vocab_size - 1}: got {tokens.min()} to {tokens.max()}")
        return tokens.astype(np.int64)

    def _begun(self, tokens: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T2"]:
        return np.concatenate([np.full(self._start, self.bos_id or 0), tokens])

    def _with_ends(self, tokens: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T2"]:
        end = [] if self.eos_id is None else [self.eos_id]
        return np.concatenate([self._begun(tokens), np.array(end, dtype=np.int64)])

    def _walk(self, text: Int[np.ndarray, " T"], starts: Int[np.ndarray, " P"], length: int) -> Int[np.ndarray, " P"]:
        """The places of the grams of `length` tokens that start there in the text; -1 for those that never came."""
        places = np.zeros(len(starts), dtype=np.int64)
        for i, grams in enumerate(self.grams[:length]):
            places = grams.find(places, text[starts + i])
        return places

    def _contexts(
        self, text: Int[np.ndarray, " T"], places: Int[np.ndarray, " P"]
    ) -> Iterator[tuple[int, Int[np.ndarray, " P"]]]:
        """For each length of grams, shortest first: the place of the context before each of the places in the text.

        It is -1 where there is no such context: it never came, the text is too short, or the smoothing does not ask.
        """
        longest = np.minimum(places, self.n - 1)
        for order in range(1, self.n + 1):
            asked = longest >= order - 1 if self.smoothing.interpolates else longest == order - 1
            contexts = np.full(len(places), -1)
            contexts[asked] = self._walk(text, places[asked] - (order - 1), order - 1)
            yield order, contexts

    def _distributions(self, text: Int[np.ndarray, " T"], places: Int[np.ndarray, " P"]) -> Float[np.ndarray, "P V"]:
        p = np.full((len(places), self.vocab_size), 1 / self.vocab_size)
        for order, contexts in self._contexts(text, places):
            grams = self.grams[order - 1]
            rows, followers = grams.followers(contexts)
            p *= self._rests[order - 1][contexts, None]
            p[rows, grams.codes[followers] % self.vocab_size] += self._shares[order - 1][followers]
        return p


def _totals(grams: Grams, counts: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]) -> Float[np.ndarray, " C"]:
    """The sum over the grams of each context."""
    totals = np.bincount(grams.contexts, weights=counts, minlength=grams.n_contexts)
    return totals.astype(np.float64)  # numpy gives integers where there is no gram at all


def _log(p: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
    with np.errstate(divide="ignore"):  # ln 0 = -inf is the answer, not an accident
        return np.log(p)
