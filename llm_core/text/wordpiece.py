"""WordPiece, the first rung: a word is the longest piece that begins it, then the longest that goes on, to its end.

    text    "The Cafés’ tokenizer"
    normal  "the cafes’ tokenizer"                clean, space out Chinese, strip accents, lower-case (`normalise`)
    words   the | cafes | ’ | tokenizer           cut at whitespace and around punctuation (`pretokenize`)
    pieces  the | cafes | ’ | token ##izer        greedy: longest match first, ## where a piece goes on

A word that cannot be built from the vocabulary becomes `[UNK]` as a whole. Training is that of byte-pair encoding, on
characters that carry the mark: the most frequent pair of neighbours is joined, again and again.

`SimpleWordPiece` is made to be read. `wordpiece_fast.WordPieceTokenizer` learns the same vocabulary, gives the same
ids, remembers what it has met, and does all else that BERT's tokenizer does; the tests hold the two to each other.

Source: Devlin et al. 2019 for the cut; Schuster and Nakajima 2012 for the name, with another rule of training, which
was never published as a program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from llm_core.text.bpe import merge
from llm_core.text.normalise import clean_text, lowercase, space_cjk, strip_accents
from llm_core.text.pretokenize import split_words
from llm_core.text.tokenizer import Vocabulary

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
LONGEST_WORD = 100  # characters: a longer word is unknown


class SimpleWordPiece:
    """BERT's way to cut words into pieces, to be read. The name of a special token in a text is text like any other.

    Args:
        tokens: the tokens in the order of their ids, `[UNK]` among them.

    >>> tokenizer = SimpleWordPiece(["[UNK]", "token", "##ize", "##s", "a", "中", "."])
    >>> tokenizer.tokens("Tokenizes a 中文.")
    ['token', '##ize', '##s', 'a', '中', '[UNK]', '.']
    >>> tokenizer.decode(tokenizer.encode("Tokenizes a."))
    'tokenizes a .'
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.vocabulary = Vocabulary(tokens)
        self.vocabulary.id_of(UNK)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, min_count: int = 1) -> SimpleWordPiece:
        """Special tokens, all characters, then the join of the most frequent pair until there are `vocab_size` tokens.

        Of pairs that are equally frequent the one that stands earlier in the vocabulary is joined. It ends early when
        no pair occurs `min_count` times.

        Raises:
            ValueError: one string is given, or vocab_size has no room for the characters.
        """
        if isinstance(texts, str):
            raise ValueError("give a list of texts: one string would be taken for a list of characters")
        words = Counter(word for text in texts for word in words_of(text))
        spelled = {word: [c if i == 0 else "##" + c for i, c in enumerate(word)] for word in words}
        alphabet = sorted({character for word in words for character in word})
        later = {token for pieces in spelled.values() for token in pieces[1:]}
        tokens = [*SPECIAL, *alphabet, *("##" + character for character in alphabet if "##" + character in later)]
        if len(tokens) > vocab_size:
            raise ValueError(f"vocab_size must have room for {len(tokens)} characters and special tokens: {vocab_size}")
        while len(tokens) < vocab_size:
            counts: Counter[tuple[str, str]] = Counter()
            for word, pieces in spelled.items():
                for pair in pairwise(pieces):
                    counts[pair] += words[word]
            ids = {token: id_ for id_, token in enumerate(tokens)}
            best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]), default=None)
            if best is None or counts[best] < min_count:
                break
            joined = best[0] + best[1].removeprefix("##")
            if joined not in ids:
                tokens.append(joined)
            spelled = {word: merge(pieces, best, joined) for word, pieces in spelled.items()}
        return cls(tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones counted."""
        return self.vocabulary.size

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [piece for word in words_of(text) for piece in self.pieces(word)]

    def pieces(self, word: str) -> list[str]:
        """The pieces of a word, each the longest of the vocabulary that fits; `[UNK]` where at some point none fits."""
        if len(word) > LONGEST_WORD:
            return [UNK]
        pieces, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            fitting = (end for end in range(len(word), start, -1) if mark + word[start:end] in self.vocabulary)
            end = next(fitting, None)
            if end is None:
                return [UNK]
            pieces.append(mark + word[start:end])
            start = end
        return pieces

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [self.vocabulary.ids[token] for token in self.tokens(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids: pieces joined to words, words with a space between.

        Raises:
            UnknownTokenError: there is no token with such an id.
        """
        return " ".join(self.vocabulary.tokens_of(ids)).replace(" ##", "")


def words_of(text: str) -> list[str]:
    """The words of a text, normalised.

    >>> words_of("Café 中文!")
    ['cafe', '中', '文', '!']
    """
    normal = lowercase(strip_accents(space_cjk(clean_text(text))))
    return [normal[start:end] for start, end in split_words(normal)]
