"""Unigram: of all ways to cut a word into pieces, the likeliest.

Each piece x has a probability p(x), and a cut has the product of those of its pieces:

    P(cut)      = p(x1) p(x2) ... p(xn)
    P(word)     = the sum of P over all cuts           forward algorithm
    best cut    = the largest P                        Viterbi
    sampled cut = by chance, in proportion to P^alpha  forward filtering, backward sampling

There are 2^(n-1) ways to cut n characters, and none of these needs more than one look at each piece at each place:
what can be said about the cuts of the first i characters holds for whatever comes after them.

Training begins with far too many pieces and turns by turns does two things. Expectation maximisation (EM) makes p(x)
the share of x among all pieces used, each cut counted by how likely it is; the text never becomes less likely by
that. Then the pieces go whose loss would cost the text the least.

A space is written as ▁ at the beginning of a word, so that pieces say where words begin and the text can be put
together again. Words are cut one by one: a piece never goes beyond a space.

Source: Kudo 2018; Kudo and Richardson 2018 for ▁.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from heapq import nlargest
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_core.files import write_whole
from llm_core.text.common import SpecialTokens, as_json, expect, from_json, is_surrogate
from llm_core.text.tokenizer import UnknownTokenError

SPACE = "▁"
UNK = "<unk>"
UNKNOWN_PENALTY = 10.0  # how much lower than the lowest piece an unknown character scores
CACHE_SIZE = 2**17  # words whose ids are remembered; then it begins anew

Edges = list[list[tuple[int, float]]]  # edges[start] = [(end, score), ...]: the pieces that begin there
Cut = list[tuple[int, int]]  # (start, end) of each piece


# --- the cuts of one word ---


def edges_of(
    word: str, scores: Mapping[str, float], unknown: float | None = None, prefixes: Set[str] | None = None
) -> Edges:
    """The pieces that begin at each place of a word, the shortest first.

    Args:
        word: any string.
        scores: log p(x) of each piece.
        unknown: score of a character that is no piece. None: there is no such edge.
        prefixes: all beginnings of pieces (`prefixes_of`), to stop early.

    >>> edges_of("ab", {"a": -1.0, "ab": -2.0}, unknown=-9.0)
    [[(1, -1.0), (2, -2.0)], [(2, -9.0)]]
    """
    prefixes = prefixes_of(scores) if prefixes is None else prefixes
    edges: Edges = []
    for start in range(len(word)):
        here = []
        for end in range(start + 1, len(word) + 1):
            piece = word[start:end]
            if piece not in prefixes:
                break
            if piece in scores:
                here.append((end, scores[piece]))
        if unknown is not None and (not here or here[0][0] > start + 1):
            here.append((start + 1, unknown))
        edges.append(here)
    return edges


def prefixes_of(pieces: Iterable[str]) -> set[str]:
    """All beginnings of all pieces.

    >>> sorted(prefixes_of(["abc", "b"]))
    ['a', 'ab', 'abc', 'b']
    """
    return {piece[:end] for piece in pieces for end in range(1, len(piece) + 1)}


def best_cut(edges: Edges) -> Cut:
    """The cut with the highest score (Viterbi). Of two that tie the one whose last piece is longer.

    >>> best_cut(edges_of("abab", {"a": -1.0, "b": -1.0, "ab": -1.5, "aba": -1.9}))
    [(0, 3), (3, 4)]
    """
    score = [0.0] + [-math.inf] * len(edges)
    came_from = [-1] * len(score)
    for start, here in enumerate(edges):
        for end, gain in here:
            # Only what is better replaces: among ties the first found stays, which is the one from further left.
            if score[start] + gain > score[end]:
                score[end], came_from[end] = score[start] + gain, start
    cut, end = [], len(edges)
    while end:
        cut.append((came_from[end], end))
        end = came_from[end]
    return cut[::-1]


def best_cuts(edges: Edges, n: int) -> list[tuple[float, Cut]]:
    """The n cuts with the highest scores, or all where there are fewer, each with its score.

    The n best to a place are among the n best to the places before it, each with one piece more.
    """
    best: list[list[tuple[float, Cut]]] = [[] for _ in range(len(edges) + 1)]
    best[0] = [(0.0, [])]
    for start, here in enumerate(edges):
        best[start] = nlargest(n, best[start], key=_first)
        for end, gain in here:
            best[end] += [(score + gain, [*cut, (start, end)]) for score, cut in best[start]]
    return nlargest(n, best[-1], key=_first)


def forward_scores(edges: Edges, alpha: float = 1.0) -> list[float]:
    """At each place, the log of the summed P^alpha of all ways to get there; at the last one, of the whole word."""
    arriving: list[list[float]] = [[0.0]] + [[] for _ in edges]
    total = []
    for start, scores in enumerate(arriving):
        total.append(_log_sum(scores))
        for end, gain in edges[start] if start < len(edges) else []:
            arriving[end].append(total[start] + alpha * gain)
    return total


def sample_cut(edges: Edges, rng: random.Random, alpha: float = 1.0) -> Cut:
    """A cut drawn with probability in proportion to P^alpha.

    From the end backwards: a last piece is drawn by how likely all cuts together are that end with it, then the last
    piece of what is left of it.

    Source: Kudo 2018, section 3.3, where the best l cuts are drawn from; here l is all of them.
    """
    total = forward_scores(edges, alpha)
    ending: list[Cut] = [[] for _ in total]
    weights: list[list[float]] = [[] for _ in total]
    for start, here in enumerate(edges):
        for end, gain in here:
            ending[end].append((start, end))
            weights[end].append(math.exp(total[start] + alpha * gain - total[end]))
    cut, end = [], len(edges)
    while end:
        (piece,) = rng.choices(ending[end], weights[end])
        cut.append(piece)
        end = piece[0]
    return cut[::-1]


def expected_counts(word: str, scores: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """How often each piece is used, as a mean over all cuts by their probability; and log P(word).

    Raises:
        ValueError: there is no way to cut the word into these pieces.

    >>> counts, score = expected_counts("ab", {"a": math.log(0.5), "b": math.log(0.5), "ab": math.log(0.75)})
    >>> {piece: round(count, 4) for piece, count in counts.items()}, round(math.exp(score), 4)
    ({'a': 0.25, 'ab': 0.75, 'b': 0.25}, 1.0)
    """
    edges = edges_of(word, scores)
    forward = forward_scores(edges)
    if forward[-1] == -math.inf:
        raise ValueError(f"{word!r} cannot be cut into these {len(scores)} pieces: give each of its characters a score")
    backward = [-math.inf] * len(edges) + [0.0]
    for start in reversed(range(len(edges))):
        backward[start] = _log_sum([gain + backward[end] for end, gain in edges[start]])
    counts: defaultdict[str, float] = defaultdict(float)
    for start, here in enumerate(edges):
        for end, gain in here:
            counts[word[start:end]] += math.exp(forward[start] + gain + backward[end] - forward[-1])
    return dict(counts), forward[-1]


def _first(pair: tuple[float, Cut]) -> float:
    return pair[0]


def _log_sum(scores: list[float]) -> float:
    """log(sum(exp(scores))), the largest taken off first so that nothing overflows."""
    peak = max(scores, default=-math.inf)
    if peak == -math.inf:
        return peak
    return peak + math.log(sum(math.exp(score - peak) for score in scores))


# --- the cuts of very many words ---


class Lattices:
    """The cuts of many words at once: `expected_counts` for all of them with a few numpy calls.

    A node is a place in a word, an edge a piece between two nodes. Nodes are numbered so that the first places of
    all words come first, then the second ones: all that a place needs is known once the places before it are done,
    in all words at the same time.

    Args:
        words: the words.
        pieces: the pieces; the index of a piece is its number.
        whole: whether a word that is a piece may stay whole. False: only the ways to do without it.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[str], *, whole: bool = True) -> None:
        numbers = {piece: number for number, piece in enumerate(pieces)}
        prefixes = prefixes_of(pieces)
        starts, ends, used, owners = [], [], [], []
        for index, word in enumerate(words):
            for start in range(len(word)):
                for end in range(start + 1, len(word) + 1):
                    piece = word[start:end]
                    if piece not in prefixes:
                        break
                    if piece in numbers and (whole or end - start < len(word)):
                        starts.append(start)
                        ends.append(end)
                        used.append(numbers[piece])
                        owners.append(index)
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        # Longest words first, so that the words which have a place p are those before some point, and a place's
        # number is that of the first place p plus the word's rank.
        order = np.argsort(-lengths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        longest = int(lengths.max(initial=0))
        reaching = len(words) - np.searchsorted(np.sort(lengths), np.arange(longest + 1))
        self.first = np.concatenate([[0], np.cumsum(reaching)])
        owner = np.array(owners, dtype=np.int64)
        start_node = self.first[np.array(starts, dtype=np.int64)] + rank[owner]
        end_node = self.first[np.array(ends, dtype=np.int64)] + rank[owner]
        self.last_node = self.first[lengths] + rank
        self._set(start_node, end_node, np.array(used, dtype=np.int64), owner)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Take the edges out whose piece is not kept, and number the pieces that are anew."""
        edges = kept[self.piece]
        number = np.cumsum(kept) - 1
        self._set(self.start[edges], self.end[edges], number[self.piece[edges]], self.owner[edges])

    def forward(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log of the summed probability of all ways to get to each node."""
        total = np.full(self.first[-1], -np.inf)
        total[: self.first[1]] = 0.0
        gains = scores[self.piece]
        for edges, groups, nodes in self._forward_plan:
            total[nodes] = np.logaddexp.reduceat(total[self.start[edges]] + gains[edges], groups)
        return total

    def log_probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """log P of each word."""
        return self.forward(scores)[self.last_node]

    def expected_counts(
        self, scores: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """How often each piece is used in all words, each word `counts` times; and the log probability of them all.

        Raises:
            ValueError: there is a word that cannot be cut into the pieces.
        """
        forward = self.forward(scores)
        word_scores = forward[self.last_node]
        if np.isneginf(word_scores).any():
            raise ValueError("every word must be one that can be cut into the pieces: give each character a score")
        backward = np.full(self.first[-1], -np.inf)
        backward[self.last_node] = 0.0
        gains = scores[self.piece]
        for places, groups, nodes in self._backward_plan:
            edges = self._by_start[places]
            backward[nodes] = np.logaddexp.reduceat(backward[self.end[edges]] + gains[edges], groups)
        share = np.exp(forward[self.start] + gains + backward[self.end] - word_scores[self.owner])
        used = np.bincount(self.piece, share * counts[self.owner], minlength=len(scores)).astype(np.float64)
        return used, float(counts @ word_scores)

    def _set(
        self,
        start: NDArray[np.int64],
        end: NDArray[np.int64],
        piece: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> None:
        order = np.argsort(end, kind="stable")
        self.start, self.end, self.piece, self.owner = start[order], end[order], piece[order], owner[order]
        self._by_start = np.argsort(self.start, kind="stable")
        self._forward_plan = _levels(self.end, self.first)
        self._backward_plan = _levels(self.start[self._by_start], self.first)[::-1]


def _levels(
    nodes: NDArray[np.int64], first: NDArray[np.int64]
) -> list[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """For each place: the run of its edges in `nodes` (sorted), where in the run a new node begins, and the nodes."""
    levels = []
    for begin, end in pairwise(np.searchsorted(nodes, first).tolist()):
        if begin < end:
            run = nodes[begin:end]
            groups = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
            levels.append((slice(begin, end), groups, run[groups]))
    return levels


# --- training ---


def seed_pieces(words: Mapping[str, int], max_length: int = 16, limit: int = 1_000_000) -> dict[str, int]:
    """What training begins with, and how often it occurs: all characters, and the substrings that fill most text.

    A substring counts from two occurrences on. One that is always followed by the same character is left out in
    favour of the longer one. Of the others those stay whose length times count is largest.

    >>> seed_pieces({"banana": 1})
    {'a': 3, 'n': 2, 'b': 1, 'ana': 2, 'na': 2}
    """
    places = [(word, start) for word in words for start in range(len(word))]
    seeds: dict[str, int] = {}
    shorter: dict[str, int] = {}
    characters: Counter[str] = Counter()
    for length in range(1, max_length + 1):
        found: Counter[str] = Counter()
        for word, start in places:
            found[word[start : start + length]] += words[word]
        for piece, count in found.items():
            if shorter.get(piece[:-1]) == count:
                del shorter[piece[:-1]]
        seeds.update(shorter)
        if length == 1:
            characters = found
        shorter = {piece: count for piece, count in found.items() if count > 1 and length > 1}
        places = [(w, i) for w, i in places if i + length < len(w) and found[w[i : i + length]] > 1]
    seeds.update(shorter)
    ordered = sorted(seeds, key=lambda piece: (-seeds[piece] * len(piece), piece))
    first = sorted(characters, key=lambda piece: (-characters[piece], piece))
    return {piece: characters[piece] for piece in first} | {piece: seeds[piece] for piece in ordered[:limit]}


def learn_scores(
    words: Mapping[str, int], size: int, *, max_length: int = 16, seeds: int = 1_000_000, shrink: float = 0.75
) -> dict[str, float]:
    """The pieces and their log probabilities: EM and pruning in turns, until `size` pieces are left.

    A piece x that is used c(x) times in the mean costs c(x) (log p(x) - log P(x without x)) when it goes: its uses
    become the other cuts of x. Single characters never go, and count as used half a time at least.

    Args:
        words: how often each word occurs.
        size: how many pieces.
        max_length: characters of the longest piece.
        seeds: how many pieces of several characters to begin with.
        shrink: the share of the pieces that one round of pruning leaves.

    Raises:
        ValueError: there are more characters than `size`, or none.

    Source: Kudo 2018, section 3.2.
    """
    words = dict(sorted(words.items()))  # sums are rounded: only in the same order they are the same
    counts = seed_pieces(words, max_length, seeds)
    pieces = list(counts)
    n_characters = sum(len(piece) == 1 for piece in pieces)  # they stand first
    if not pieces:
        raise ValueError("a vocabulary cannot be made from no words: give at least one text with a word in it")
    if n_characters > size:
        raise ValueError(
            f"there must be room for all {n_characters} characters of the texts: got room for {size} pieces"
        )
    used = np.array([counts[piece] for piece in pieces], dtype=np.float64)
    occurrences = np.array(list(words.values()), dtype=np.float64)
    lattices = Lattices(list(words), pieces)
    without = Lattices(pieces[n_characters:], pieces, whole=False)
    while True:
        for _ in range(2):
            used, _ = lattices.expected_counts(_scores(used, n_characters), occurrences)
        if len(pieces) <= size:
            break
        scores = _scores(used, n_characters)
        loss = used[n_characters:] * (scores[n_characters:] - without.log_probabilities(scores))
        n_kept = max(size, int(shrink * len(pieces))) - n_characters
        kept = np.zeros(len(pieces), dtype=bool)
        kept[:n_characters] = True
        kept[n_characters + np.argsort(-loss, kind="stable")[:n_kept]] = True
        pieces = [piece for piece, stays in zip(pieces, kept, strict=True) if stays]
        used = used[kept]
        lattices.keep(kept)
        # The words of `without` are pieces themselves: those that go must go there too.
        without = Lattices(pieces[n_characters:], pieces, whole=False)
    return dict(zip(pieces, _scores(used, n_characters).tolist(), strict=True))


def _scores(used: NDArray[np.float64], n_characters: int) -> NDArray[np.float64]:
    """Log of the share of each piece, after what every piece must have."""
    floor = np.full(len(used), 1e-12)
    floor[:n_characters] = 0.5
    used = np.maximum(used, floor)
    return np.log(used / used.sum())


# --- the tokenizer ---


class UnigramTokenizer:
    """A unigram tokenizer: pieces with scores, ▁ for spaces, the best cut of each word.

    The ids are those of the library `tokenizers`, whose `Unigram` finds any piece in a text, a special one too.
    A lone surrogate is always unknown.

    Args:
        pieces: each piece with its log probability, in the order of their ids.
        unk_id: the id of what cannot be cut; characters beside each other become one. None: that is an error.
        byte_fallback: whether what cannot be cut becomes the bytes of its UTF-8, `<0x00>` ... `<0xFF>`, which must be
            pieces.
        prepend: whether a text that begins without a space gets one: "always", "never", or "first": not if it comes
            after a special token.
        special_tokens: pieces that a text may name, such as "<s>"; `decode` leaves them out.

    Raises:
        ValueError: a piece is empty or stands twice, the unknown id is outside, a byte or special token is missing.

    >>> tokenizer = UnigramTokenizer([("<unk>", 0.0), ("▁", -3.0), ("▁low", -2.0), ("er", -2.0), ("e", -4.0)])
    >>> tokenizer.tokens("lower low?")
    ['▁low', 'er', '▁low', '<unk>']
    >>> tokenizer.decode([2, 3, 2])
    'lower low'
    """

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        *,
        unk_id: int | None = 0,
        byte_fallback: bool = False,
        prepend: Literal["always", "first", "never"] = "always",
        special_tokens: Sequence[str] = (),
    ) -> None:
        self.pieces = [(piece, float(score)) for piece, score in pieces]
        self.vocabulary = [piece for piece, _ in self.pieces]
        self._ids = {piece: id_ for id_, piece in enumerate(self.vocabulary)}
        if not self._ids or "" in self._ids or len(self._ids) != len(self.pieces):
            raise ValueError("there must be a piece, no piece may be empty, and each may stand in the list once")
        if unk_id is not None and not 0 <= unk_id < len(self.pieces):
            raise ValueError(f"unk_id must be that of a piece, 0 to {len(self.pieces) - 1}: got {unk_id}")
        missing = [token for token in (*special_tokens, *(BYTES if byte_fallback else ())) if token not in self._ids]
        if missing:
            raise ValueError(f"special tokens and bytes must be pieces: {len(missing)} are not, {missing[0]!r} for one")
        self.unk_id = unk_id
        self.byte_fallback = byte_fallback
        self.prepend = prepend
        self.special_tokens = {token: self._ids[token] for token in special_tokens}
        self._special = SpecialTokens(self.special_tokens)
        self._scores = dict(self.pieces)
        self._prefixes = prefixes_of(self._scores)
        self._unknown = min(self._scores.values()) - UNKNOWN_PENALTY
        self._remembered: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (UNK,),
        byte_fallback: bool = False,
        prepend: Literal["always", "first", "never"] = "always",
        max_length: int = 16,
        seeds: int = 1_000_000,
    ) -> UnigramTokenizer:
        """Pieces for some texts: special tokens, bytes if asked for, and what `learn_scores` finds, likeliest first.

        Args:
            texts: what to learn from.
            vocab_size: how many pieces; fewer where the texts have no more that occur twice.
            special_tokens: the first pieces, with score 0; the first of them is the unknown one.
            byte_fallback: as in the tokenizer.
            prepend: as in the tokenizer.
            max_length: characters of the longest piece.
            seeds: how many pieces of several characters to begin with.

        Raises:
            ValueError: one string was given instead of a list, there is no unknown token, there is no word in the
                texts, or the vocabulary has no room for their characters.
        """
        if isinstance(texts, str):
            raise ValueError("give a list of texts: one string would be taken for a list of characters")
        if not special_tokens:
            raise ValueError("special_tokens must begin with the token of what is unknown: got none")
        fixed = [*special_tokens, *(BYTES if byte_fallback else ())]
        words: Counter[str] = Counter()
        for text in texts:
            # A lone surrogate is no character: no file in UTF-8 could hold it.
            words.update(split_at_spaces(text.encode("utf-8", "ignore").decode(), prepend=prepend != "never"))
        scores = learn_scores(words, vocab_size - len(fixed), max_length=max_length, seeds=seeds)
        # Twelve decimals: with more, a program may read another number from a file than the one that was written.
        learned = [(piece, round(score, 12)) for piece, score in scores.items() if piece not in fixed]
        learned.sort(key=lambda pair: (-pair[1], pair[0]))
        pieces = [(piece, 0.0) for piece in fixed] + learned
        return cls(pieces, byte_fallback=byte_fallback, prepend=prepend, special_tokens=special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special ones counted."""
        return len(self.pieces)

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[int]:
        """The ids of the best cut of a text.

        Args:
            text: any text, also an empty one.
            allowed_special: the special tokens that may be found in the text.

        Raises:
            UnknownTokenError: something cannot be cut, and there is no unknown token.
            ValueError: allowed_special names something that is no special token.
        """
        ids: list[int] = []
        for word, is_special in self._words(text, allowed_special):
            if is_special:
                ids.append(self._ids[word])
                continue
            if word not in self._remembered:
                if len(self._remembered) >= CACHE_SIZE:
                    self._remembered.clear()
                self._remembered[word] = self._ids_of(word, best_cut(self._edges(word)))
            ids += self._remembered[word]
        return ids

    def sample(self, text: str, rng: random.Random, alpha: float = 1.0) -> list[int]:
        """The ids of a cut drawn by chance: each with probability in proportion to P(cut)^alpha.

        For training a model on many cuts of the same text (subword regularisation, Kudo 2018). Towards alpha = 0 all
        cuts are alike; the larger it is, the likelier the best one. It is not a shortcut for `encode`, which finds
        the best cut as such.

        Raises:
            ValueError: alpha is negative or not finite.
        """
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be a number from 0 on: got {alpha}. For the best cut use encode")
        ids: list[int] = []
        for word, is_special in self._words(text, "all"):
            ids += [self._ids[word]] if is_special else self._ids_of(word, sample_cut(self._edges(word), rng, alpha))
        return ids

    def best(self, text: str, n: int) -> list[tuple[list[int], float]]:
        """The n best cuts of a text, each with its ids and its score, log P(cut); fewer where there are fewer.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"there must be at least one cut to find: got n={n}")
        found: list[tuple[list[int], float]] = [([], 0.0)]
        for word, is_special in self._words(text, "all"):
            if is_special:
                found = [([*ids, self._ids[word]], score) for ids, score in found]
                continue
            cuts = [(self._ids_of(word, cut), score) for score, cut in best_cuts(self._edges(word), n)]
            longer = [(ids + more, score + gain) for ids, score in found for more, gain in cuts]
            found = nlargest(n, longer, key=_second)
        return found

    def tokens(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The tokens of a text, as strings."""
        return [self.vocabulary[id_] for id_ in self.encode(text, allowed_special=allowed_special)]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a sequence of ids.

        What comes back is the text itself, where every character is known, but for one thing: with `prepend` a single
        space at its beginning is lost. A byte that is no UTF-8 becomes U+FFFD.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        tokens: list[str] = []
        run = bytearray()
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise UnknownTokenError(f"ids run from 0 to {self.vocab_size - 1}: got {id_}")
            token = self.vocabulary[id_]
            if skip_special_tokens and token in self.special_tokens:
                continue
            if self.byte_fallback and token in BYTES:
                run.append(BYTES[token])
                continue
            if run:
                tokens.append(_text_of(run))
                run = bytearray()
            tokens.append(token)
        if run:
            tokens.append(_text_of(run))
        if tokens and self.prepend != "never":
            tokens[0] = tokens[0].replace(SPACE, "")
        return "".join(tokens).replace(SPACE, " ")

    # --- files ---

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it."""
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": self.prepend, "split": True}
        model = {
            "type": "Unigram",
            "unk_id": self.unk_id,
            "vocab": self.pieces,
            "byte_fallback": self.byte_fallback,
        }
        bytes_first = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]}
        components = {
            "normalizer": None,
            "pre_tokenizer": metaspace,
            "post_processor": None,
            "decoder": bytes_first if self.byte_fallback else metaspace,
            "model": model,
        }
        return as_json(self._ids, self._special, components)

    @classmethod
    def from_json(cls, text: str) -> UnigramTokenizer:
        """The tokenizer that a `tokenizer.json` describes. Its truncation, padding and post-processor are not read.

        Raises:
            ValueError: it is no Unigram, or asks for something that this class does not do. The message names it.
        """
        content, special = from_json(text, model="Unigram", normalizer=None, pre_tokenizer="Metaspace")
        model, metaspace = content["model"], content["pre_tokenizer"]
        expect("pre_tokenizer.replacement", metaspace["replacement"], [SPACE])
        expect("pre_tokenizer.split", metaspace.get("split", True), [True])
        return cls(
            [(piece, score) for piece, score in model["vocab"]],
            unk_id=model["unk_id"],
            byte_fallback=model.get("byte_fallback", False),
            prepend=metaspace["prepend_scheme"],
            special_tokens=list(special),
        )

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> UnigramTokenizer:
        """Read a `tokenizer.json`. Errors are those of `from_json`, and OSError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    # --- inside ---

    def _words(self, text: str, allowed_special: Collection[str] | Literal["all"]) -> list[tuple[str, bool]]:
        """The words of a text, each with whether it is a special token."""
        words: list[tuple[str, bool]] = []
        for i, part in enumerate(self._special.split(text, allowed_special)):
            if i % 2:  # plain and special parts in turn
                words.append((part, True))
            else:
                prepend = self.prepend == "always" or (self.prepend == "first" and i == 0)
                words += [(word, False) for word in split_at_spaces(part, prepend=prepend)]
        return words

    def _edges(self, word: str) -> Edges:
        return edges_of(word, self._scores, self._unknown, self._prefixes)

    def _ids_of(self, word: str, cut: Cut) -> list[int]:
        """The ids of a cut; unknown pieces beside each other become one."""
        ids: list[int] = []
        unknown = ""
        for start, end in cut:
            id_ = self._ids.get(word[start:end], self.unk_id)
            if id_ is None or id_ == self.unk_id:
                unknown += word[start:end]
                continue
            if unknown:
                ids += self._unknown_ids(unknown)
                unknown = ""
            ids.append(id_)
        return ids + (self._unknown_ids(unknown) if unknown else [])

    def _unknown_ids(self, text: str) -> list[int]:
        if text in self._ids:  # the name of the unknown token itself
            return [self._ids[text]]
        if self.byte_fallback and not any(map(is_surrogate, text)):
            return [self._ids[f"<0x{byte:02X}>"] for byte in text.encode()]
        if self.unk_id is None:
            raise UnknownTokenError(f"{text!r} cannot be cut into the {self.vocab_size} pieces of this tokenizer")
        return [self.unk_id]


BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def split_at_spaces(text: str, *, prepend: bool = True) -> list[str]:
    """The words of a text, each with the space before it, written ▁. With `prepend`, a space is put before the text.

    Only the plain space separates: a line break is a character like any other. A text that begins with a space gets
    none.

    >>> split_at_spaces("to be  or")
    ['▁to', '▁be', '▁', '▁or']
    """
    text = text.replace(" ", SPACE)
    if prepend and text and not text.startswith(SPACE):
        text = SPACE + text
    return re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text)


def _second(pair: tuple[list[int], float]) -> float:
    return pair[1]


def _text_of(run: bytearray) -> str:
    """UTF-8, or as many replacement characters as there are bytes."""
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
