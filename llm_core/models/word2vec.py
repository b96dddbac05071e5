"""word2vec: words that foretell their neighbours in a text get vectors.

    skip-gram   the word in the middle, v_t, foretells each word u around it
    CBOW        the mean h of the words around it foretells the word in the middle
    both        loss = -ln sigmoid(h . u) - sum over K noise words n of ln sigmoid(-h . n)

The noise (negative sampling) stands for all words that did not come, so that no softmax over the vocabulary is needed.

`negative_sampling_loss` is the definition, with its gradients worked out by hand beside it. `train_word2vec` computes
the same gradients for a whole stretch of text in a few matrix products. There the words of a stretch share their noise
words; in the original each pair draws its own. The gradient is the same on average, and a matrix product takes the
place of many short dot products (Ji et al. 2016).

Source: Mikolov et al. 2013a, 2013b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_core.checks import check_sizes
from llm_core.models.word_vectors import WordVectors, count_words


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
