"""Words and their vectors: neighbours, analogies, the files that others read, and the vocabulary they are learned for.

Words that keep the same company get similar vectors. `llm_core.models.word2vec` and `llm_core.models.glove` learn them.

Source: Mikolov et al. 2013a, 2013b (the files and the vocabulary are those of the word2vec program).
"""

from __future__ import annotations

import codecs
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.files import replacing

Errors = Literal["strict", "replace", "ignore"]


class UnknownWordError(ValueError):
    """A word that has no vector."""


class WordVectors:
    """Words and their vectors, (V, D), row i for word i.

    Raises:
        ValueError: there is no word, a word comes twice, is empty or has a space or a line break in it, which separate
            words in a file, or there is not one row a word.

    >>> vectors = WordVectors(["sun", "moon", "tax"], torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0]]))
    >>> vectors.nearest("sun", 1)
    [('moon', 0.800000011920929)]
    """

    def __init__(self, words: Sequence[str], matrix: Float[Tensor, "V D"]) -> None:
        self.words, self.matrix = list(words), matrix
        self._ids = {word: i for i, word in enumerate(self.words)}
        if not self.words or len(self._ids) != len(self.words):
            twice = [word for word, times in Counter(self.words).most_common(1) if times > 1]
            raise ValueError(
                f"there must be words, each once: got {len(self.words)} words, {len(self._ids)} different"
                + "".join(f"; {word!r} comes again" for word in twice)
            )
        if len(self.words) != len(matrix):
            raise ValueError(f"each word has one row: got {len(self.words)} words and {len(matrix)} rows")
        for word in self.words:
            if not word or " " in word or "\n" in word:
                raise ValueError(f"a word cannot be empty or have a space or a line break in it: got {word!r}")
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
    def load(cls, path: str | Path, *, binary: bool = False, errors: Errors = "strict") -> WordVectors:
        """Read vectors in the format of word2vec, as text or binary.

        Words and numbers are separated by the plain space. Other white space belongs to a word, such as the no-break
        space in "New\u00a0York". A mark of the byte order at the beginning is passed over.

        Args:
            path: the file.
            binary: whether numbers are stored as bytes.
            errors: what becomes of a word whose bytes are no UTF-8, as some programs cut long words in the middle of a
                character: "strict" refuses it, "replace" puts U+FFFD in place of what is broken, and "ignore" nothing.

        Raises:
            ValueError: the file is not of this format, or ends too early, or a word is no UTF-8, or comes twice. The
                message names the line, or the number of the word.
        """
        data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        header, _, body = data.partition(b"\n")
        try:
            n_words, width = (int(number) for number in header.split())
        except ValueError:
            n_words = width = 0
        if n_words < 1 or width < 1:
            raise ValueError(
                f"{path} is not a word2vec file: its first line should be two numbers, words and width, "
                f"and is {header[:40]!r}"
            )
        if n_words * width > len(body):  # before room is made
            raise ValueError(
                f"{path} ends too early: it says {n_words} words of {width} numbers, and {len(body)} bytes are there"
            )
        read = _read_binary if binary else _read_text
        words, matrix = read(body, n_words, width, str(path), errors)
        try:
            return cls(words, torch.from_numpy(matrix))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

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


def _read_text(
    body: bytes, n_words: int, width: int, path: str, errors: Errors
) -> tuple[list[str], Float[np.ndarray, "V D"]]:
    lines = body.split(b"\n")
    words = []
    matrix = np.empty((n_words, width), dtype=np.float32)
    for i in range(n_words):
        place = f"{path}, line {i + 2}"
        word, *numbers = lines[i].rstrip().split(b" ") if i < len(lines) else [b""]
        if not word or len(numbers) != width:
            raise ValueError(
                f"{place}: a word and {width} numbers should stand here, got {len(numbers) + bool(word)} parts"
            )
        words.append(_word(word, place, errors))
        try:
            matrix[i] = [float(number) for number in numbers]
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return words, matrix


def _read_binary(
    body: bytes, n_words: int, width: int, path: str, errors: Errors
) -> tuple[list[str], Float[np.ndarray, "V D"]]:
    words = []
    matrix = np.empty((n_words, width), dtype=np.float32)
    at = 0
    for i in range(n_words):
        space = body.find(b" ", at)
        end = space + 1 + 4 * width
        if space < 0 or end > len(body):
            raise ValueError(f"{path} ends too early: it says {n_words} words of {width} numbers, and {i} are there")
        # Some writers end a vector with a line break, some do not.
        words.append(_word(body[at:space].lstrip(b"\n"), f"{path}, word {i + 1}", errors))
        matrix[i] = np.frombuffer(body, dtype="<f4", count=width, offset=space + 1)
        at = end
    return words, matrix


def _word(raw: bytes, place: str, errors: Errors) -> str:
    try:
        return raw.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{place}: {raw!r} is no UTF-8 ({error.reason}): errors="replace" or "ignore" reads it all the same'
        ) from None


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
