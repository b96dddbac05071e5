"""Word vectors: words that keep the same company get similar vectors.

    skip-gram   the word in the middle, v_t, foretells each word u around it
    CBOW        the mean h of the words around it foretells the word in the middle
    both        loss = -ln sigmoid(h . u) - sum over K noise words n of ln sigmoid(-h . n)
    GloVe       loss = f(x) (w . w~ + b + b~ - ln x)^2 over all pairs that came together, x how often

The first two pass over the text: the noise (negative sampling) stands for all words that did not come, so that no
softmax over the vocabulary is needed. GloVe counts first and then fits the counts.

`negative_sampling_loss` and `glove_loss` are the definitions, with their gradients worked out by hand beside them.
`train_word2vec` computes the same gradients for a whole stretch of text in a few matrix products. There the words of a
stretch share their noise words; in the original each pair draws its own. The gradient is the same on average, and a
matrix product takes the place of many short dot products (Ji et al. 2016).

Source: Mikolov et al. 2013a, 2013b; Pennington, Socher and Manning 2014. Taught, once it is written, in
01_background/03_word_vectors.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_core.checks import check_sizes
from llm_core.files import replacing

# ---------------------------------------------------------------------------------------------------------------------
# The result


class UnknownWordError(ValueError):
    """A word that has no vector."""


class WordVectors:
    """Words and their vectors, (V, D), row i for word i.

    Raises:
        ValueError: there is no word, a word comes twice or has white space in it, or there is not one row a word.

    >>> vectors = WordVectors(["sun", "moon", "tax"], torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0]]))
    >>> vectors.nearest("sun", 1)
    [('moon', 0.800000011920929)]
    """

    def __init__(self, words: Sequence[str], matrix: Float[Tensor, "V D"]) -> None:
        self.words, self.matrix = list(words), matrix
        self._ids = {word: i for i, word in enumerate(self.words)}
        if not self.words or len(self._ids) != len(self.words):
            raise ValueError(f"there must be words, each once: got {len(self.words)} words, {len(self._ids)} different")
        if len(self.words) != len(matrix):
            raise ValueError(f"each word has one row: got {len(self.words)} words and {len(matrix)} rows")
        spaced = [word for word in self.words if word.split() != [word]]
        if spaced:
            raise ValueError(f"a word cannot be empty or have white space in it: got {spaced[0]!r}")
        # A vector of zeros keeps its zeros: it is similar to nothing.
        self._unit = F.normalize(matrix.float(), dim=1)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __getitem__(self, word: str) -> Float[Tensor, " D"]:
        return self.matrix[self._id(word)]

    def similarity(self, a: str, b: str) -> float:
        """The cosine of the angle between the vectors of two words: 1 for the same direction, 0 for a right angle."""
        return float(self._unit[self._id(a)] @ self._unit[self._id(b)])

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The n words most similar to a word, itself left out, with their similarities."""
        return self._nearest(self._unit[self._id(word)], n, without=[word])

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]:
        """The n words that are to c as b is to a: those most similar to b - a + c, of vectors of length one.

        The three words themselves are left out, or c would often win.

        Source: Mikolov, Yih and Zweig 2013.
        """
        target = self._unit[self._id(b)] - self._unit[self._id(a)] + self._unit[self._id(c)]
        return self._nearest(F.normalize(target, dim=0), n, without=[a, b, c])

    def save(self, path: str | Path, *, binary: bool = False) -> None:
        """Write the vectors in the format of word2vec, as text or binary; gensim's KeyedVectors reads both.

        Raises:
            NotWritten: it cannot be written; an old file is as it was.
        """
        rows = self.matrix.detach().cpu().to(torch.float32).numpy()
        with replacing(path) as part, part.open("wb") as file:
            file.write(f"{len(self.words)} {rows.shape[1]}\n".encode())
            for word, row in zip(self.words, rows, strict=True):
                # Nine digits are enough for a number of 32 bits to come back as it was.
                numbers = row.astype("<f4").tobytes() if binary else " ".join(f"{x:.9g}" for x in row).encode()
                file.write(word.encode() + b" " + numbers + b"\n")

    @classmethod
    def load(cls, path: str | Path, *, binary: bool = False) -> WordVectors:
        """Read vectors in the format of word2vec, as text or binary.

        Raises:
            ValueError: the file is not of this format, or ends too early.
        """
        data = Path(path).read_bytes()
        header, _, body = data.partition(b"\n")
        try:
            n_words, width = (int(number) for number in header.split())
        except ValueError:
            raise ValueError(
                f"{path} is not a word2vec file: its first line should be two numbers, words and width, "
                f"and is {header[:40]!r}"
            ) from None
        read = _read_binary if binary else _read_text
        words, matrix = read(body, n_words, width, str(path))
        return cls(words, torch.from_numpy(matrix))

    def _id(self, word: str) -> int:
        try:
            return self._ids[word]
        except KeyError:
            close = difflib.get_close_matches(word, self.words, n=3)
            hint = f"; nearest in spelling: {', '.join(close)}" if close else ""
            raise UnknownWordError(f"{word!r} is not among the {len(self)} words that have a vector{hint}") from None

    def _nearest(self, unit: Float[Tensor, " D"], n: int, without: Sequence[str]) -> list[tuple[str, float]]:
        if n < 1:
            raise ValueError(f"ask for at least one word: got n={n}")
        similarities = self._unit @ unit
        similarities[[self._ids[word] for word in without]] = -math.inf
        n = min(n, len(self) - len(set(without)))
        values, ids = similarities.topk(n)
        return [(self.words[i], value) for i, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _read_text(body: bytes, n_words: int, width: int, path: str) -> tuple[list[str], Float[np.ndarray, "V D"]]:
    lines = body.decode().split("\n")
    words = []
    matrix = np.empty((n_words, width), dtype=np.float32)
    for i in range(n_words):
        parts = lines[i].split() if i < len(lines) else []
        if len(parts) != width + 1:
            raise ValueError(
                f"{path}, line {i + 2}: a word and {width} numbers should stand here, got {len(parts)} parts"
            )
        words.append(parts[0])
        matrix[i] = [float(part) for part in parts[1:]]
    return words, matrix


def _read_binary(body: bytes, n_words: int, width: int, path: str) -> tuple[list[str], Float[np.ndarray, "V D"]]:
    words = []
    matrix = np.empty((n_words, width), dtype=np.float32)
    at = 0
    for i in range(n_words):
        space = body.find(b" ", at)
        end = space + 1 + 4 * width
        if space < 0 or end > len(body):
            raise ValueError(f"{path} ends too early: it says {n_words} words of {width} numbers, and {i} are there")
        words.append(body[at:space].lstrip(b"\n").decode())  # some writers end a vector with a line break, some do not
        matrix[i] = np.frombuffer(body, dtype="<f4", count=width, offset=space + 1)
        at = end
    return words, matrix


# ---------------------------------------------------------------------------------------------------------------------
# Vocabulary


class Vocabulary(NamedTuple):
    """The words of some sentences, the most frequent first, and how often each came."""

    words: list[str]
    counts: Int[Tensor, " V"]

    def encode(self, sentences: Iterable[Sequence[str]]) -> list[list[int]]:
        """The ids of the words of each sentence; words outside the vocabulary are left out."""
        ids = {word: i for i, word in enumerate(self.words)}
        return [[ids[word] for word in sentence if word in ids] for sentence in sentences]


def count_words(sentences: Iterable[Sequence[str]], *, min_count: int = 1) -> Vocabulary:
    """The words that come at least `min_count` times, the most frequent first, ties in the order they came in.

    Raises:
        ValueError: a sentence is a string and not a list of words, or no word comes often enough.

    >>> count_words([["a", "rose", "is", "a", "rose"]], min_count=2).words
    ['a', 'rose']
    """
    counter: Counter[str] = Counter()
    for sentence in sentences:
        if isinstance(sentence, str):
            raise ValueError(f"a sentence is a list of words: got the string {sentence[:40]!r}. Split it first")
        counter.update(sentence)
    kept = [(word, count) for word, count in counter.most_common() if count >= min_count]
    if not kept:
        most = max(counter.values(), default=0)
        raise ValueError(
            f"no word comes min_count={min_count} times: the most frequent of {len(counter)} comes {most} times"
        )
    return Vocabulary([word for word, _ in kept], torch.tensor([count for _, count in kept]))


def keep_probability(counts: Int[Tensor, " V"], sample: float) -> Float[Tensor, " V"]:
    """How likely one occurrence of each word is kept: sqrt(sample / f) + sample / f, at most 1; f is its share.

    This is the formula of the word2vec program; the paper (2013b, equation 5) has sqrt(sample / f). With sample = 0
    all are kept.

    >>> keep_probability(torch.tensor([90, 10]), sample=0.1)
    tensor([0.4444, 1.0000])
    """
    if sample == 0:
        return torch.ones(len(counts))
    ratio = sample * counts.sum() / counts
    return (ratio.sqrt() + ratio).clamp(max=1.0)


def noise_distribution(counts: Int[Tensor, " V"], power: float = 0.75) -> Float[Tensor, " V"]:
    """The distribution of noise words: shares of the text to the power of 3/4 (2013b, section 2.2)."""
    raised = counts.double() ** power
    return raised / raised.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Skip-gram and CBOW


def negative_sampling_loss(
    predictor: Float[Tensor, "P D"], target: Float[Tensor, "P D"], negatives: Float[Tensor, "P K D"]
) -> Float[Tensor, ""]:
    """Sum over P pairs of -ln sigmoid(predictor . target) - sum over its K noise words of ln sigmoid(-predictor . n).

    Skip-gram: the predictor is the word in the middle, the target a word near it. CBOW: the predictor is the mean of
    the words near, the target the word in the middle.

    Source: Mikolov et al. 2013b, equation 4.
    """
    positive = F.logsigmoid((predictor * target).sum(dim=-1))
    negative = F.logsigmoid(-(negatives @ predictor[:, :, None]).squeeze(-1))
    return -positive.sum() - negative.sum()


def negative_sampling_gradients(
    predictor: Float[Tensor, "P D"], target: Float[Tensor, "P D"], negatives: Float[Tensor, "P K D"]
) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"], Float[Tensor, "P K D"]]:
    """The gradients of `negative_sampling_loss`, by hand.

    Each dot product s is pulled by sigmoid(s) - label: the label is 1 for the target and 0 for noise.
    """
    positive = (predictor * target).sum(dim=-1, keepdim=True).sigmoid() - 1
    negative = (negatives @ predictor[:, :, None]).sigmoid()
    return positive * target + (negative * negatives).sum(dim=1), positive * predictor, negative * predictor[:, None]


class Stretch(NamedTuple):
    """A stretch of text: C words in the middle, one after the other, the W words around them, and M noise words.

    Attributes:
        middle: (C,) word ids.
        around: (W,) word ids: the same words, and those before and after that are within reach.
        near: (C, W) True where a word lies in the window of a middle word, itself left out.
        noise: (M,) word ids, shared by all.
    """

    middle: Int[Tensor, " C"]
    around: Int[Tensor, " W"]
    near: Bool[Tensor, "C W"]
    noise: Int[Tensor, " M"]


class Gradients(NamedTuple):
    """The loss of a stretch and its gradients in the vectors of middle, surrounding and noise words."""

    loss: Float[Tensor, ""]
    middle: Float[Tensor, "C D"]
    around: Float[Tensor, "W D"]
    noise: Float[Tensor, "M D"]


def skip_gram_gradients(
    stretch: Stretch,
    middle: Float[Tensor, "C D"],
    around: Float[Tensor, "W D"],
    noise: Float[Tensor, "M D"],
    negative: int,
) -> Gradients:
    """Every middle word foretells every word near it, with `negative` noise words for each pair.

    All M noise words are held against every pair, and count negative / M each, which comes to as much. A noise word
    that is the pair's own target does not count, as in word2vec.
    """
    near = stretch.near.float()
    # For each middle word and each noise word: pairs whose target is another word.
    pairs = near @ (stretch.around[:, None] != stretch.noise).float()
    weights = pairs * (negative / len(noise))
    positive_scores, negative_scores = middle @ around.T, middle @ noise.T
    positive = near * (positive_scores.sigmoid() - 1)
    pulled = weights * negative_scores.sigmoid()
    loss = (near * F.softplus(-positive_scores)).sum() + (weights * F.softplus(negative_scores)).sum()
    return Gradients(loss, positive @ around + pulled @ noise, positive.T @ middle, pulled.T @ middle)


def cbow_gradients(
    stretch: Stretch,
    middle: Float[Tensor, "C D"],
    around: Float[Tensor, "W D"],
    noise: Float[Tensor, "M D"],
    negative: int,
) -> Gradients:
    """The mean of the words near foretells the middle word, with `negative` noise words for each.

    The noise is shared as in `skip_gram_gradients`. A middle word with no word near is left out.
    """
    near = stretch.near.float()
    number = near.sum(dim=1, keepdim=True)
    mean_of = near / number.clamp(min=1)
    has_near = (number > 0).float()
    weights = has_near * (stretch.middle[:, None] != stretch.noise).float() * (negative / len(noise))
    predictor = mean_of @ around
    positive_scores, negative_scores = (predictor * middle).sum(dim=1, keepdim=True), predictor @ noise.T
    positive = has_near * (positive_scores.sigmoid() - 1)
    pulled = weights * negative_scores.sigmoid()
    loss = (has_near * F.softplus(-positive_scores)).sum() + (weights * F.softplus(negative_scores)).sum()
    to_predictor = positive * middle + pulled @ noise
    return Gradients(loss, positive * predictor, mean_of.T @ to_predictor, pulled.T @ predictor)


@dataclass(frozen=True)
class Word2VecConfig:
    """How skip-gram or CBOW is trained. The defaults are those of the word2vec program.

    Attributes:
        kind: "skip-gram" or "cbow".
        d_model: width D of the vectors.
        window: the furthest word that is near. Each middle word draws its own reach, 1 ... window, so that close words
            come more often.
        negative: noise words K for each pair.
        min_count: rarer words are left out.
        sample: frequent words are thinned out, see `keep_probability`; 0 keeps all.
        epochs: passes over the text.
        lr: learning rate at the beginning; it falls in a straight line to `min_lr`. The word2vec program takes 0.05 for
            CBOW, whose steps are fewer.
        stretch: words C of one step, and noise words M that they share, at most. Longer is faster, up to some hundred.

    Raises:
        ValueError: a number is out of range.
    """

    kind: Literal["skip-gram", "cbow"] = "skip-gram"
    d_model: int = 100
    window: int = 5
    negative: int = 5
    min_count: int = 5
    sample: float = 1e-3
    epochs: int = 5
    lr: float = 0.025
    min_lr: float = 0.0001
    stretch: int = 128

    def __post_init__(self) -> None:
        if self.kind not in ("skip-gram", "cbow"):
            raise ValueError(f"kind is 'skip-gram' or 'cbow': got {self.kind!r}")
        check_sizes(d_model=self.d_model, window=self.window, negative=self.negative, min_count=self.min_count)
        check_sizes(epochs=self.epochs, stretch=self.stretch)
        if not self.sample >= 0:
            raise ValueError(f"sample must be 0 (keep all) or more: got {self.sample}")
        if not 0 <= self.min_lr <= self.lr or self.lr == 0:
            raise ValueError(f"the learning rate falls: 0 <= min_lr <= lr > 0, got {self.min_lr} and {self.lr}")


def train_word2vec(
    sentences: Sequence[Sequence[str]], config: Word2VecConfig, *, generator: torch.Generator | None = None
) -> tuple[WordVectors, list[float]]:
    """Vectors of the words of some sentences, and the mean loss of a pair (CBOW: of a word) in each pass.

    Windows end where a sentence ends. With one thread the same seed gives the same vectors.

    Raises:
        ValueError: no word comes often enough, no sentence has two words, or the vectors grow out of bounds.
    """
    vocabulary = count_words(sentences, min_count=config.min_count)
    text = [ids for ids in vocabulary.encode(sentences) if ids]
    if all(len(ids) < 2 for ids in text):
        raise ValueError(f"no sentence has two words of the {len(vocabulary.words)} in the vocabulary: nothing is near")
    ids = torch.tensor([id_ for sentence in text for id_ in sentence])
    sentence_of = torch.arange(len(text)).repeat_interleave(torch.tensor([len(sentence) for sentence in text]))
    keep = keep_probability(vocabulary.counts, config.sample)
    noise_shares = noise_distribution(vocabulary.counts)
    noise = noise_shares.cumsum(0)

    V, D = len(vocabulary.words), config.d_model
    C = _stretch_length(config, keep * vocabulary.counts, noise_shares)
    # As in word2vec: small random vectors for the one side, zeros for the other.
    start = (torch.rand(V, D, generator=generator) - 0.5) / D
    other = torch.zeros(V, D)
    # Skip-gram keeps the vectors that foretell, those of the middle; CBOW too, and there they are those around.
    middle_vectors, around_vectors = (start, other) if config.kind == "skip-gram" else (other, start)
    gradients_of = skip_gram_gradients if config.kind == "skip-gram" else cbow_gradients
    know_nothing = (1 + config.negative) * math.log(2)  # the loss of a pair whose scores are all zero
    losses = []
    for epoch in range(config.epochs):
        kept = torch.rand(len(ids), generator=generator) < keep[ids]
        words, sentence = ids[kept], sentence_of[kept]
        reach = torch.randint(1, config.window + 1, (len(words),), generator=generator)
        n_steps = math.ceil(len(words) / C)
        noise_words = torch.searchsorted(noise, torch.rand(n_steps, C, generator=generator, dtype=torch.float64))
        noise_words.clamp_(max=V - 1)  # the running sum of the shares may end just below 1
        total, number = 0.0, 0
        for step in range(n_steps):
            done = (epoch + step / n_steps) / config.epochs
            lr = config.lr + (config.min_lr - config.lr) * done
            stretch = _stretch(words, sentence, reach, step * C, C, config.window, noise_words[step])
            # Noise words stand on the side of what is foretold.
            noise_vectors = around_vectors if config.kind == "skip-gram" else middle_vectors
            gradients = gradients_of(
                stretch,
                middle_vectors[stretch.middle],
                around_vectors[stretch.around],
                noise_vectors[stretch.noise],
                config.negative,
            )
            middle_vectors.index_add_(0, stretch.middle, gradients.middle, alpha=-lr)
            around_vectors.index_add_(0, stretch.around, gradients.around, alpha=-lr)
            noise_vectors.index_add_(0, stretch.noise, gradients.noise, alpha=-lr)
            loss = gradients.loss.item()
            pairs = int(stretch.near.sum() if config.kind == "skip-gram" else stretch.near.any(dim=1).sum())
            if not loss <= 10 * know_nothing * pairs:  # NaN too
                raise ValueError(
                    f"the vectors have grown out of bounds, at step {step} of pass {epoch} with lr={lr:.3g}: lower lr"
                )
            total, number = total + loss, number + pairs
        losses.append(total / max(1, number))
    return WordVectors(vocabulary.words, start), losses


def _stretch_length(config: Word2VecConfig, counts: Float[Tensor, " V"], noise: Float[Tensor, " V"]) -> int:
    """How many words one step takes: `config.stretch`, or fewer where the vocabulary is small.

    All pairs of a stretch push from the same place, where word2vec would look again after each. A word that is pushed
    too often at once leaps over its goal, and farther back the next time. So the pushes that the most frequent word
    gets in a step, times the learning rate, are held to about one.
    """
    shares = counts / counts.sum() + config.negative * noise
    pairs = config.window + 1 if config.kind == "skip-gram" else 1  # of each middle word, on average
    return max(1, min(config.stretch, int(1 / (config.lr * pairs * float(shares.max())))))


def _stretch(
    words: Int[Tensor, " N"],
    sentence: Int[Tensor, " N"],
    reach: Int[Tensor, " N"],
    begin: int,
    length: int,
    window: int,
    noise: Int[Tensor, " M"],
) -> Stretch:
    """The words from `begin` on as middle words, with those around them."""
    end = min(begin + length, len(words))
    first, last = max(0, begin - window), min(end + window, len(words))
    distance = (torch.arange(begin, end)[:, None] - torch.arange(first, last)).abs()
    same_sentence = sentence[begin:end, None] == sentence[first:last]
    near = (distance > 0) & (distance <= reach[begin:end, None]) & same_sentence
    return Stretch(words[begin:end], words[first:last], near, noise)


# ---------------------------------------------------------------------------------------------------------------------
# GloVe


class Cooccurrences(NamedTuple):
    """Which words came together, and how often: pair (row, column) came `counts` times, N pairs, both directions."""

    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]
    counts: Float[Tensor, " N"]


def count_cooccurrences(sentences: Iterable[Sequence[int]], *, window: int, vocab_size: int) -> Cooccurrences:
    """How often two words came within `window` words of each other; at distance d a pair counts 1 / d.

    Raises:
        ValueError: the window is below 1, or an id is outside 0 ... V - 1.

    >>> count_cooccurrences([[0, 1, 2]], window=2, vocab_size=3).counts  # 0 1, 0 2, 1 0, 1 2, 2 0, 2 1
    tensor([1.0000, 0.5000, 1.0000, 1.0000, 0.5000, 1.0000])
    """
    if window < 1:
        raise ValueError(f"a window reaches at least the next word: got window={window}")
    text = [torch.tensor(ids, dtype=torch.long) for ids in map(list, sentences) if ids]
    ids = torch.cat([*text, torch.empty(0, dtype=torch.long)])
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"ids must be words, 0 ... {vocab_size - 1}: got {ids.min().item()} to {ids.max().item()}")
    sentence = torch.arange(len(text)).repeat_interleave(torch.tensor([len(part) for part in text], dtype=torch.long))
    codes, weights = [], []
    for distance in range(1, min(window, max(1, len(ids) - 1)) + 1):
        together = sentence[distance:] == sentence[:-distance]
        left, right = ids[:-distance][together], ids[distance:][together]
        codes += [left * vocab_size + right, right * vocab_size + left]
        weights += [torch.full((2 * len(left),), 1 / distance, dtype=torch.float64)]
    pairs, places = torch.cat(codes).unique(return_inverse=True)
    counts = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, places, torch.cat(weights))
    return Cooccurrences(pairs // vocab_size, pairs % vocab_size, counts.float())


def glove_weight(counts: Float[Tensor, " N"], x_max: float = 100.0, power: float = 0.75) -> Float[Tensor, " N"]:
    """How much each pair counts: (x / x_max)^power, and 1 from x_max on (equation 9)."""
    return (counts / x_max).clamp(max=1.0) ** power


def glove_loss(
    word: Float[Tensor, "N D"],
    other: Float[Tensor, "N D"],
    word_bias: Float[Tensor, " N"],
    other_bias: Float[Tensor, " N"],
    counts: Float[Tensor, " N"],
    x_max: float = 100.0,
    power: float = 0.75,
) -> Float[Tensor, ""]:
    """Sum over N pairs of f(x) (w . w~ + b + b~ - ln x)^2.

    Source: Pennington, Socher and Manning 2014, equation 8.
    """
    error = (word * other).sum(dim=1) + word_bias + other_bias - counts.log()
    return (glove_weight(counts, x_max, power) * error**2).sum()


def glove_gradients(
    word: Float[Tensor, "N D"],
    other: Float[Tensor, "N D"],
    word_bias: Float[Tensor, " N"],
    other_bias: Float[Tensor, " N"],
    counts: Float[Tensor, " N"],
    x_max: float = 100.0,
    power: float = 0.75,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"], Float[Tensor, " N"]]:
    """The gradients of `glove_loss` in `word`, in `other`, and in the two biases, for which it is the same."""
    error = (word * other).sum(dim=1) + word_bias + other_bias - counts.log()
    pull = 2 * glove_weight(counts, x_max, power) * error
    return pull[:, None] * other, pull[:, None] * word, pull


@dataclass(frozen=True)
class GloveConfig:
    """How GloVe is trained. The defaults are those of the paper, D and `min_count` aside.

    Attributes:
        d_model: width D of the vectors.
        window: the furthest word that a word comes together with.
        min_count: rarer words are left out.
        x_max: pairs that came so often, or more, count fully.
        power: how fast the weight of rarer pairs falls.
        epochs: passes over the pairs.
        lr: learning rate of AdaGrad (Duchi et al. 2011).
        batch_size: pairs of one step.

    Raises:
        ValueError: a number is out of range.
    """

    d_model: int = 100
    window: int = 10
    min_count: int = 5
    x_max: float = 100.0
    power: float = 0.75
    epochs: int = 50
    lr: float = 0.05
    batch_size: int = 1024

    def __post_init__(self) -> None:
        check_sizes(d_model=self.d_model, window=self.window, min_count=self.min_count, epochs=self.epochs)
        check_sizes(batch_size=self.batch_size)
        for name in ("x_max", "power", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0: got {getattr(self, name)}")


def train_glove(
    sentences: Sequence[Sequence[str]], config: GloveConfig, *, generator: torch.Generator | None = None
) -> tuple[WordVectors, list[float]]:
    """Vectors of the words of some sentences, and the mean loss of a pair in each pass.

    Each word learns two vectors, as the one that is asked and as the other one; its vector is their sum. With one
    thread the same seed gives the same vectors.

    Raises:
        ValueError: no word comes often enough, or no sentence has two words.
    """
    vocabulary = count_words(sentences, min_count=config.min_count)
    V, D = len(vocabulary.words), config.d_model
    pairs = count_cooccurrences(vocabulary.encode(sentences), window=config.window, vocab_size=V)
    N = len(pairs.counts)
    if N == 0:
        raise ValueError(f"no sentence has two words of the {V} in the vocabulary: nothing comes together")
    # Vector and bias of a word side by side, (V, D + 1): they learn alike.
    words, others = ((torch.rand(V, D + 1, generator=generator) - 0.5) / (D + 1) for _ in range(2))
    squares = torch.ones(V, D + 1), torch.ones(V, D + 1)
    losses = []
    for _ in range(config.epochs):
        total = 0.0
        for batch in torch.randperm(N, generator=generator).split(config.batch_size):
            rows, columns, counts = (part[batch] for part in pairs)
            word, other = words[rows], others[columns]
            inputs = (word[:, :D], other[:, :D], word[:, D], other[:, D], counts, config.x_max, config.power)
            to_word, to_other, to_bias = glove_gradients(*inputs)
            _adagrad(words, squares[0], rows, torch.cat([to_word, to_bias[:, None]], dim=1), config.lr)
            _adagrad(others, squares[1], columns, torch.cat([to_other, to_bias[:, None]], dim=1), config.lr)
            total += glove_loss(*inputs).item()
        losses.append(total / N)
    return WordVectors(vocabulary.words, (words + others)[:, :D]), losses


def _adagrad(
    table: Float[Tensor, "V D"],
    squares: Float[Tensor, "V D"],
    rows: Int[Tensor, " N"],
    gradients: Float[Tensor, "N D"],
    lr: float,
) -> None:
    """Each number goes down its gradient, the slower the more it has moved: lr / sqrt(sum of its squared gradients)."""
    squares.index_add_(0, rows, gradients**2)
    table.index_add_(0, rows, gradients / squares[rows].sqrt(), alpha=-lr)
