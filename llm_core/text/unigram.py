"""Unigram, the first rung: of all ways to cut a word into pieces, the likeliest.

Each piece x has a probability p(x), and a cut has the product of those of its pieces:

    P(cut)      = p(x1) p(x2) ... p(xn)
    P(word)     = the sum of P over all cuts
    best cut    = the largest P                 found place by place (Viterbi)

Training begins with far too many pieces and turns by turns does two things. Expectation maximisation (EM) makes p(x)
the share of x among all pieces used, each cut counted by how likely it is. Then those pieces go whose loss would cost
the text the least.

A space is written as ▁ at the beginning of a word, so that pieces say where words begin and the text can be put
together again. Words are cut one by one: a piece never goes beyond a space.

`SimpleUnigram` is made to be read. `unigram_fast.UnigramTokenizer` learns the same pieces, gives the same ids and can
do more; the tests hold the two to each other.

Source: Kudo 2018; Kudo and Richardson 2018 for ▁.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import exp, inf, log, log1p

from llm_core.text.pretokenize import SPACE, split_at_spaces
from llm_core.text.tokenizer import Vocabulary

UNK = "<unk>"
UNKNOWN_PENALTY = 10.0  # how much lower than the lowest piece an unknown character scores


class SimpleUnigram:
    """A unigram tokenizer, to be read. The first piece stands for what is unknown.

    Args:
        pieces: each piece with its log probability, in the order of their ids.

    >>> tokenizer = SimpleUnigram([("<unk>", 0.0), ("▁", -3.0), ("▁low", -2.0), ("er", -2.0), ("e", -4.0)])
    >>> tokenizer.tokens("lower low?")
    ['▁low', 'er', '▁low', '<unk>']
    >>> tokenizer.decode(tokenizer.encode("lower"))
    'lower'
    """

    def __init__(self, pieces: Sequence[tuple[str, float]]) -> None:
        self.vocabulary = Vocabulary(piece for piece, _ in pieces)
        self.scores = dict(pieces)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, max_length: int = 16) -> SimpleUnigram:
        """`<unk>`, and what `learn_scores` finds, likeliest first.

        Raises:
            ValueError: one string is given, or vocab_size has no room for the characters of the texts.
        """
        if isinstance(texts, str):
            raise ValueError("give a list of texts: one string would be taken for a list of characters")
        words = Counter(word for text in texts for word in split_at_spaces(text))
        scores = learn_scores(dict(sorted(words.items())), vocab_size - 1, max_length)
        learned = [(piece, round(score, 12)) for piece, score in scores.items()]
        return cls([(UNK, 0.0), *sorted(learned, key=lambda pair: (-round(pair[1], 9), pair[0]))])

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the unknown one counted."""
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """The ids of the best cut of a text; unknown pieces beside each other in a word become one."""
        ids: list[int] = []
        for word in split_at_spaces(text):
            last = -1
            for piece in best_cut(word, self.scores):
                id_ = self.vocabulary.ids.get(piece, 0)
                if id_ > 0 or last != 0:
                    ids.append(id_)
                last = id_
        return ids

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text."""
        return self.vocabulary.tokens_of(self.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids.

        Raises:
            UnknownTokenError: there is no token with such an id.
        """
        return "".join(self.vocabulary.tokens_of(ids)).removeprefix(SPACE).replace(SPACE, " ")


def best_cut(word: str, scores: Mapping[str, float]) -> list[str]:
    """The pieces with the highest sum of scores (Viterbi). A character that is no piece scores far below all pieces.

    >>> best_cut("abab", {"a": -1.0, "b": -1.0, "ab": -1.5, "aba": -1.9})
    ['aba', 'b']
    """
    unknown = min(scores.values()) - UNKNOWN_PENALTY
    best, begins = [0.0] + [-inf] * len(word), [0] * (len(word) + 1)  # to each place: the score, the last piece's start
    for end in range(1, len(word) + 1):
        for start in range(end):
            score = scores.get(word[start:end], unknown if end == start + 1 else -inf)
            if best[start] + score > best[end]:
                best[end], begins[end] = best[start] + score, start
    pieces: list[str] = []
    end = len(word)
    while end > 0:
        pieces.append(word[begins[end] : end])
        end = begins[end]
    return pieces[::-1]


# --- training ---


def learn_scores(words: Mapping[str, int], size: int, max_length: int = 16, shrink: float = 0.75) -> dict[str, float]:
    """The pieces and their log probabilities: EM and pruning in turns, until `size` pieces are left.

    A piece x that is used c(x) times in the mean costs c(x) (log p(x) - log P(x without x)) when it goes: its uses
    become the other cuts of x. Single characters never go.

    Args:
        words: how often each word occurs.
        size: how many pieces.
        max_length: characters of the longest piece.
        shrink: the share of the pieces that one round of pruning leaves.

    Raises:
        ValueError: there are more characters than `size`, or none.
    """
    used = {piece: float(count) for piece, count in seed_pieces(words, max_length).items()}
    characters = [piece for piece in used if len(piece) == 1]
    if not 0 < len(characters) <= size:
        raise ValueError(
            f"there must be room for all {len(characters)} characters, and one at least: got room for {size}"
        )
    while True:
        for _ in range(2):
            used = expected_counts(words, scores_of(used))
        scores = scores_of(used)
        if len(used) <= size:
            return scores
        loss = {
            piece: used[piece] * (scores[piece] - forward(piece, {**scores, piece: -inf})[-1])
            for piece in used
            if len(piece) > 1
        }
        n_kept = max(size, int(shrink * len(used))) - len(characters)
        # Rounded, so that what ties stays a tie whatever the order of the sums: then the earlier piece stays.
        stay = set(sorted(loss, key=lambda piece: -round(loss[piece], 6))[:n_kept])
        used = {piece: count for piece, count in used.items() if len(piece) == 1 or piece in stay}


def seed_pieces(words: Mapping[str, int], max_length: int) -> dict[str, int]:
    """All characters, and all strings inside words that occur twice; those that fill most text first.

    A string that is always followed by the same character is left out in favour of the longer one.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + max_length, len(word)) + 1):
                counts[word[start:end]] += count
    always_longer = {piece[:-1] for piece, count in counts.items() if counts[piece[:-1]] == count}
    characters = sorted((p for p in counts if len(p) == 1), key=lambda p: (-counts[p], p))
    longer = [p for p in counts if len(p) > 1 and counts[p] > 1 and p not in always_longer]
    longer.sort(key=lambda p: (-counts[p] * len(p), p))
    return {piece: counts[piece] for piece in [*characters, *longer]}


def scores_of(used: Mapping[str, float]) -> dict[str, float]:
    """The log of the share of each piece. A character counts as used half a time at least."""
    used = {piece: max(count, 0.5 if len(piece) == 1 else 1e-12) for piece, count in used.items()}
    total = sum(used.values())
    return {piece: log(count / total) for piece, count in used.items()}


def expected_counts(words: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """How often each piece is used in all words: the mean over all cuts, by their probability."""
    used = dict.fromkeys(scores, 0.0)
    for word, count in words.items():
        before, after = forward(word, scores), backward(word, scores)
        for start, end in places(word, scores):
            piece = word[start:end]
            used[piece] += count * exp(before[start] + scores[piece] + after[end] - before[-1])
    return used


def forward(word: str, scores: Mapping[str, float]) -> list[float]:
    """At each place of a word, log of the summed probability of all ways to cut what lies before it."""
    total = [0.0] + [-inf] * len(word)
    for start, end in places(word, scores):
        total[end] = log_add(total[end], total[start] + scores[word[start:end]])
    return total


def backward(word: str, scores: Mapping[str, float]) -> list[float]:
    """At each place of a word, log of the summed probability of all ways to cut what lies after it."""
    total = [-inf] * len(word) + [0.0]
    for start, end in reversed(list(places(word, scores))):
        total[start] = log_add(total[start], total[end] + scores[word[start:end]])
    return total


def places(word: str, scores: Mapping[str, float]) -> Iterator[tuple[int, int]]:
    """Where pieces stand in a word: start and end, from left to right by their start."""
    for start in range(len(word)):
        for end in range(start + 1, len(word) + 1):
            if word[start:end] in scores:
                yield start, end


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), so that nothing overflows."""
    low, high = sorted((a, b))
    return high if low == -inf else high + log1p(exp(low - high))
