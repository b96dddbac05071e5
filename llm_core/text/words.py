"""Whole words as tokens: readable, and helpless before a word it has not seen.

Good for a handful of sentences, where every token should be a word that a reader recognises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llm_core.text.streaming import AT_SPACES, Cuts, encode_bits
from llm_core.text.tokenizer import Vocabulary

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


class WordTokenizer:
    """Words and punctuation marks as tokens, after four special ones.

    `<pad>` (id 0) fills up a batch, `<bos>` and `<eos>` begin and end a sentence, `<unk>` stands for any word
    that is not in the vocabulary. Case is kept.

    Args:
        words: the vocabulary after the special tokens, in the order of the ids.

    Raises:
        ValueError: a word stands twice, or has the name of a special token.

    >>> tokenizer = WordTokenizer.train(["I love reading books."])
    >>> tokenizer.tokens("I love maps.")
    ['I', 'love', 'maps', '.']
    >>> tokenizer.encode("I love maps.")
    [5, 7, 3, 4]
    >>> tokenizer.decode([5, 7, 3, 4])
    'I love <unk>.'
    """

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(self, words: Iterable[str]) -> None:
        self.vocabulary = Vocabulary([PAD, BOS, EOS, UNK, *words])

    @classmethod
    def train(cls, sentences: Iterable[str]) -> WordTokenizer:
        """The vocabulary of some sentences, in alphabetical order.

        Raises:
            ValueError: there is no word in them, or one string was given instead of a list.
        """
        if isinstance(sentences, str):
            raise ValueError("give a list of sentences: one string would be taken for a list of characters")
        words = sorted({token for sentence in sentences for token in cls.tokens(sentence)})
        if not words:
            raise ValueError("a vocabulary cannot be made from no words: give at least one sentence with a word in it")
        return cls(words)

    @staticmethod
    def tokens(text: str) -> list[str]:
        """The words and punctuation marks of a text."""
        return re.findall(r"\w+|[^\w\s]", text)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the four special ones counted."""
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """The ids of the words of a text; a word outside the vocabulary becomes `<unk>`."""
        return [self.vocabulary.ids.get(token, self.unk_id) for token in self.tokens(text)]

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """The ids of a text that comes bit by bit, such as an open file: what `encode` gives for all of it, joined."""
        return encode_bits(texts, self.encode, Cuts(AT_SPACES))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids: spaces between words, none before a punctuation mark.

        `<pad>`, `<bos>` and `<eos>` are left out. Spacing other than that is not brought back.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        words = self.vocabulary.tokens_of(id_ for id_ in ids if id_ not in (self.pad_id, self.bos_id, self.eos_id))
        return re.sub(r" (?=[^\w\s<])", "", " ".join(words))
