"""Byte-pair encoding on bytes, the first rung: the whole idea, as plainly as it can be written.

A text is cut into pieces (`pretokenize`), and a piece into its UTF-8 bytes, the first 256 tokens. Then pairs of
neighbours become one token each, in the order of a list of merges. On "low lower lowest" in training:

    l o w | _ l o w e r | _ l o w e s t      count the pairs of neighbours
    lo w  | _ lo w e r  | _ lo w e s t       merge the most frequent one; of equals, the one with the smaller ids
    low   | _ low e r   | _ low e s t        and again, until the vocabulary is large enough

The merges are the model. To encode a piece is to do the same merges again, the earliest learned first. Every text can
be encoded, since every text is bytes, and decoding gives it back exactly.

`SimpleBPE` is made to be read: training counts all pairs anew for each merge, and encoding looks through a piece anew
for each merge. `bpe_fast.BPETokenizer` learns the same merges and gives the same ids at a hundred times the speed; the
tests hold the two to each other.

Sources: Gage 1994 (the compression method), Sennrich et al. 2016 (merges inside words as a vocabulary), Radford et al.
2019 (on bytes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import inf

from llm_core.text.byte_alphabet import ALPHABET, from_alphabet, in_alphabet, utf8
from llm_core.text.pretokenize import GPT2, Split
from llm_core.text.tokenizer import Vocabulary

Pair = tuple[str, str]


class SimpleBPE:
    """Byte-level byte-pair encoding, to be read. Tokens are written in GPT-2's alphabet, a character for each byte.

    Args:
        merges: pairs of tokens, the first learned first.
        split: how a text is cut into pieces.

    >>> tokenizer = SimpleBPE.train(["low lower lowest"], 260, min_count=1)
    >>> tokenizer.merges
    [('l', 'o'), ('lo', 'w'), ('Ġ', 'low'), ('Ġlow', 'e')]
    >>> tokenizer.tokens("lowest low")
    ['low', 'e', 's', 't', 'Ġlow']
    >>> tokenizer.decode(tokenizer.encode("lowest low"))
    'lowest low'
    """

    def __init__(self, merges: Iterable[Pair], *, split: Split = GPT2) -> None:
        self.merges = list(merges)
        self.split = split
        self.vocabulary = Vocabulary(dict.fromkeys([*ALPHABET, *(left + right for left, right in self.merges)]).keys())
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, split: Split = GPT2, min_count: int = 2) -> SimpleBPE:
        """Learn merges until there are `vocab_size` tokens, or no pair occurs `min_count` times.

        Raises:
            ValueError: vocab_size has no room for the bytes, min_count is not positive, or one string is given.
        """
        if isinstance(texts, str) or vocab_size < len(ALPHABET) or min_count < 1:
            raise ValueError(
                f"texts must be a list, vocab_size at least {len(ALPHABET)} and min_count at least 1: "
                f"got {type(texts).__name__}, {vocab_size} and {min_count}"
            )
        pieces = Counter(piece for text in texts for piece in split(text))
        words = {piece: list(in_alphabet(utf8(piece))) for piece in pieces}
        ids = {token: id_ for id_, token in enumerate(ALPHABET)}
        merges: list[Pair] = []
        while len(ids) < vocab_size:
            counts: Counter[Pair] = Counter()
            for piece, word in words.items():
                for pair in pairwise(word):
                    counts[pair] += pieces[piece]
            best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]), default=None)
            if best is None or counts[best] < min_count:
                break
            merged = best[0] + best[1]
            merges.append(best)
            ids.setdefault(merged, len(ids))
            words = {piece: merge(word, best, merged) for piece, word in words.items()}
        return cls(merges, split=split)

    @property
    def vocab_size(self) -> int:
        """The 256 bytes, and what the merges make."""
        return self.vocabulary.size

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, in GPT-2's alphabet."""
        return [token for piece in self.split(text) for token in self._tokens_of_piece(piece)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            ValueError: the text holds half a surrogate pair, which has no bytes in UTF-8.
        """
        return [self.vocabulary.ids[token] for token in self.tokens(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids. Bytes that are no UTF-8 become U+FFFD, the replacement character.

        Raises:
            UnknownTokenError: there is no token with such an id.
        """
        raw = b"".join(from_alphabet(token) for token in self.vocabulary.tokens_of(ids))
        return raw.decode("utf-8", errors="replace")

    def _tokens_of_piece(self, piece: str) -> list[str]:
        tokens = list(in_alphabet(utf8(piece)))
        while len(tokens) > 1:
            ranks = [self.ranks.get(pair, inf) for pair in pairwise(tokens)]
            i = ranks.index(min(ranks))  # the earliest merge; where it fits several times, the leftmost place
            if ranks[i] == inf:
                break
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
        return tokens


def merge(word: list[str], pair: Pair, merged: str) -> list[str]:
    """The word with each such pair as one token, from left to right.

    >>> merge(["a", "a", "a", "b"], ("a", "a"), "aa")
    ['aa', 'a', 'b']
    """
    after: list[str] = []
    for token in word:
        if after and (after[-1], token) == pair:
            after[-1] = merged
        else:
            after.append(token)
    return after
