"""GloVe: counts first how often two words came together, and then fits vectors to the counts.

    loss = f(x) (w . w~ + b + b~ - ln x)^2 over all pairs that came together, x how often

`glove_loss` is the definition, with its gradients worked out by hand beside it.

Source: Pennington, Socher and Manning 2014.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.checks import check_sizes
from llm_core.models.word_vectors import WordVectors, count_words


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
