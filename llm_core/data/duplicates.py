"""Texts that are the same, or nearly: found without comparing each with each.

Two texts are alike as their *shingles* are, the runs of a few words that each holds: the share of common ones among
all, Jaccard's index J. A million texts make half a million million pairs, so nobody compares them. MinHash (Broder,
1997) gives each text a short signature in which any number agrees with another text's with probability J, and
bands of such numbers bring the texts into one bucket that are alike, so that only those are looked at. Chapter 5.2
teaches it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import UInt64

from llm_core.checks import check_sizes

P = (1 << 61) - 1  # a prime, above all that is multiplied here: then no two numbers are mapped to one
# A word, or a sign of a script that has no spaces between words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0002ffff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, and of Chinese and Japanese the signs.

    >>> words("It's 2 月.")
    ['it', 's', '2', '月']
    """
    return WORD.findall(text.lower())


def exact_key(text: str) -> bytes:
    """16 bytes that two texts have in common if their words are the same: case, spaces and punctuation do not count."""
    return hashlib.blake2b(" ".join(words(text)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str, n: int = 5) -> set[str]:
    """All runs of n words of a text. One with fewer words is a single shingle.

    >>> sorted(shingles("a rose is a rose is a rose", 3))
    ['a rose is', 'is a rose', 'rose is a']
    """
    check_sizes(n=n)
    found = words(text)
    return {" ".join(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """The share of what two sets have in common among all that is in one of them; of two empty sets, 1."""
    return len(a & b) / len(a | b) if a or b else 1.0


@dataclass(frozen=True)
class MinHash:
    """N ways to number all shingles; of each, a signature keeps the smallest number that a text has.

    A shingle is numbered h by SHA-1, and the n-th way is (a_n h + b_n mod p) mod 2^32, as in datasketch's "legacy"
    scheme.

    Attributes:
        a, b: the factors and summands, (N,), each from 1 to 2^31 - 1.
    """

    a: UInt64[np.ndarray, " N"]
    b: UInt64[np.ndarray, " N"]

    @classmethod
    def drawn(cls, n_hashes: int, generator: torch.Generator) -> MinHash:
        """One with factors drawn at random.

        Raises:
            ValueError: n_hashes is below 1.
        """
        check_sizes(n_hashes=n_hashes)
        a, b = torch.randint(1, (1 << 31) - 1, (2, n_hashes), generator=generator).numpy().astype(np.uint64)
        return cls(a, b)

    def signature(self, of: set[str]) -> UInt64[np.ndarray, " N"]:
        """The smallest number of each way: (N,), each below 2^32. Of an empty set, 2^32 - 1 everywhere."""
        smallest = np.full(len(self.a), 0xFFFFFFFF, dtype=np.uint64)
        hashes = np.array([_hash(shingle) for shingle in of], dtype=np.uint64)
        for start in range(0, len(hashes), 1024):  # the table of a long text need not be whole
            h = hashes[start : start + 1024, None]
            numbered = (self.a * h + self.b) % np.uint64(P) & np.uint64(0xFFFFFFFF)
            smallest = np.minimum(smallest, numbered.min(axis=0))
        return smallest


def _hash(shingle: str) -> int:
    return int.from_bytes(hashlib.sha1(shingle.encode("utf-8", "surrogatepass")).digest()[:4], "little")


def similarity(a: UInt64[np.ndarray, " N"], b: UInt64[np.ndarray, " N"]) -> float:
    """The share of numbers in which two signatures agree: an estimate of J with standard error sqrt(J (1 - J) / N)."""
    return float((a == b).mean())


def meeting_probability(j: float, n_bands: int, rows: int) -> float:
    """How probable it is that two texts of similarity j agree in all rows of a band at least once.

    >>> round(meeting_probability(0.8, n_bands=16, rows=8), 2)
    0.95
    """
    return 1 - (1 - j**rows) ** n_bands


@dataclass
class NearDuplicates:
    """The texts that were kept so far, in buckets: each new one is compared with those in a bucket of its own only.

    Args:
        minhash: makes the signatures.
        n_bands: into how many bands a signature is cut; N must be a multiple.
        threshold: texts whose signatures agree in this share, or more, are duplicates.
        n: words in a shingle.

    Raises:
        ValueError: N is no multiple of n_bands.
    """

    minhash: MinHash
    n_bands: int = 16
    threshold: float = 0.8
    n: int = 5
    _signatures: dict[Hashable, UInt64[np.ndarray, " N"]] = field(default_factory=dict, init=False, repr=False)
    _buckets: dict[tuple[int, bytes], list[Hashable]] = field(
        default_factory=lambda: defaultdict(list), init=False, repr=False
    )

    def __post_init__(self) -> None:
        check_sizes(n_bands=self.n_bands, n=self.n)
        if len(self.minhash.a) % self.n_bands:
            raise ValueError(f"{len(self.minhash.a)} hashes cannot be cut into n_bands={self.n_bands} equal bands")

    def find_or_keep(self, key: Hashable, text: str) -> Hashable | None:
        """The key of the kept text that is most like this one, if one is alike; None: there is none, and it is kept."""
        return self.find_or_keep_signature(key, self.minhash.signature(shingles(text, self.n)))

    def find_or_keep_signature(self, key: Hashable, signature: UInt64[np.ndarray, " N"]) -> Hashable | None:
        """The same for a text whose signature is known."""
        bands = [(number, band.tobytes()) for number, band in enumerate(np.split(signature, self.n_bands))]
        met = dict.fromkeys(other for band in bands for other in self._buckets.get(band, ()))
        alike = [(similarity(signature, self._signatures[other]), other) for other in met]
        best = max(alike, key=lambda pair: pair[0], default=(0.0, None))
        if best[1] is not None and best[0] >= self.threshold:
            return best[1]
        self._signatures[key] = signature
        for band in bands:
            self._buckets[band].append(key)
        return None
