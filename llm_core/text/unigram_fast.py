"""Unigram, quickly: the ids of the first rung, `unigram`, for real work, and what else can be done with its cuts.

`unigram.SimpleUnigram` is the one to read first. What comes on top of it here: the ids of words are remembered, cuts
are drawn by chance or listed from the best on (`lattice`), training handles all words at once (`lattices`,
`unigram_training`), unknown characters may become bytes, a text may be normalised before and have special tokens put
around it afterwards, and there are files: those of T5 and XLM-RoBERTa too.

Source: Kudo 2018; Kudo and Richardson 2018 for ▁.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Literal

from llm_core.files import write_whole
from llm_core.text import tokenizer_json, unigram_json
from llm_core.text.decoders import Decoder, as_text
from llm_core.text.framing import PLAIN_FRAMING, Framing
from llm_core.text.lattice import Cut, Edges, best_cut, best_cuts, edges_of, prefixes_of, sample_cut
from llm_core.text.normalisers import Normaliser
from llm_core.text.pretokenisers import Metaspace, PreTokeniser
from llm_core.text.pretokenize import SPACE, split_at_spaces
from llm_core.text.remembered import Remembered
from llm_core.text.special import AddedToken, SpecialTokens
from llm_core.text.streaming import Cuts, encode_bits, places_of
from llm_core.text.tokenizer import UnknownTokenError, Vocabulary
from llm_core.text.unicode_tables import is_surrogate
from llm_core.text.unigram import UNK, UNKNOWN_PENALTY
from llm_core.text.unigram_json import BYTES
from llm_core.text.unigram_training import learn_scores

CACHE_SIZE = 2**17  # words whose ids are remembered; then it begins anew
LONGEST_CACHED = 1000  # characters: texts without spaces are one word, and hardly come twice


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
        special_tokens: pieces that a text may name, such as "<s>"; `decode` can leave them out.
        added_tokens: pieces that are found in the same way, whatever `allowed_special` says, and are text.
        more_tokens: special or added tokens that are no pieces. Their ids come after those of the pieces.
        normaliser: what is done to a text first, one of `normalisers` or `precompiled`; None: nothing.
        split: how a text is cut into words, one of `pretokenisers`; None: by `Metaspace`, with `prepend`.
        decoder: how pieces become text again, one of `decoders`; None: the one that belongs to `prepend`.
        framing: the special tokens around a text, the most ids, and what fills them up.

    Raises:
        ValueError: a piece is empty or stands twice, the unknown id is outside, a byte or an added token is missing, or
            a token is said to be special and not to be.

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
        special_tokens: Sequence[str | AddedToken] = (),
        added_tokens: Sequence[str | AddedToken] = (),
        more_tokens: Sequence[str] = (),
        normaliser: Normaliser | None = None,
        split: PreTokeniser | None = None,
        decoder: Decoder | None = None,
        framing: Framing = PLAIN_FRAMING,
    ) -> None:
        self.pieces = [(piece, float(score)) for piece, score in pieces]
        self.vocabulary = Vocabulary([*(piece for piece, _ in self.pieces), *more_tokens])
        self._ids = {piece: id_ for id_, (piece, _) in enumerate(self.pieces)}
        if not self._ids or "" in self._ids:
            raise ValueError("there must be a piece, and no piece may be empty")
        if unk_id is not None and not 0 <= unk_id < len(self.pieces):
            raise ValueError(f"unk_id must be that of a piece, 0 to {len(self.pieces) - 1}: got {unk_id}")
        self._special = SpecialTokens(special_tokens, always=added_tokens, normalise=normaliser)
        names = self._special.tokens
        missing = [token for token in (*names, *(BYTES if byte_fallback else ())) if token not in self.vocabulary]
        if missing:
            raise ValueError(f"special tokens and bytes must be pieces: {len(missing)} are not, {missing[0]!r} for one")
        both = set(self._special.names) & set(self._special.always)
        if both:
            raise ValueError(f"a token is special, or text that was added: {min(both)!r} cannot be both")
        self.unk_id = unk_id
        self.byte_fallback = byte_fallback
        self.special_tokens = {token: self.vocabulary.ids[token] for token in self._special.names}
        self.added_tokens = {token: self.vocabulary.ids[token] for token in self._special.always}
        self.normaliser = normaliser
        self.split = Metaspace(SPACE, prepend) if split is None else split
        self.decoder = unigram_json.decoder_of(prepend, byte_fallback) if decoder is None else decoder
        self.framing = framing
        self._scores = dict(self.pieces)
        self._prefixes = prefixes_of(self._scores)
        self._unknown = min(self._scores.values()) - UNKNOWN_PENALTY
        self._remembered = Remembered(self._encode_word, size=CACHE_SIZE, longest=LONGEST_CACHED)

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
        learned.sort(key=lambda pair: (-round(pair[1], 9), pair[0]))  # what ties but for rounding, ties
        pieces = [(piece, 0.0) for piece in fixed] + learned
        return cls(pieces, byte_fallback=byte_fallback, prepend=prepend, special_tokens=special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones counted."""
        return self.vocabulary.size

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = "all",
        add_special_tokens: bool = False,
    ) -> list[int]:
        """The ids of the best cut of a text.

        Args:
            text: any text, also an empty one.
            allowed_special: the special tokens that may be found in the text.
            add_special_tokens: whether those of `framing` are put around it, such as T5's </s> at the end.

        Raises:
            UnknownTokenError: something cannot be cut, and there is no unknown token.
            ValueError: allowed_special names something that is no special token.
        """
        return self.framing.ids(self._best_ids(text, allowed_special), add_special_tokens=add_special_tokens)

    def encode_pair(
        self,
        first: str,
        second: str | None = None,
        *,
        max_length: int | None = None,
        allowed_special: Collection[str] | Literal["all"] = "all",
    ) -> tuple[list[int], list[int]]:
        """What a model reads for one text or two: the ids, with the special tokens of `framing`, and their segments.

        Args:
            first: a text.
            second: another; None: there is one.
            max_length: the most ids, in place of what `framing` says: what is too much goes as in `truncate_pair`.
            allowed_special: see `encode`.

        Raises:
            ValueError: not even the special tokens fit into max_length, or as for `encode`.
        """
        ids = self._best_ids(first, allowed_special)
        more = None if second is None else self._best_ids(second, allowed_special)
        return self.framing.limited_to(max_length).frame(ids, more, add_special_tokens=True)

    def encode_iterable(
        self, texts: Iterable[str], *, allowed_special: Collection[str] | Literal["all"] = "all"
    ) -> Iterator[int]:
        """The ids of a text that comes bit by bit, such as an open file: what `encode` gives for all of it, joined.

        Where the bits begin and end makes no difference. Ids come as soon as nothing that follows can change them: no
        more of the text is kept than some thousand characters, or the longest run without a space. With a `split` that
        does not cut before spaces, a normaliser that may look across one, a longest length in `framing`, or tokens
        that take the spaces behind them, that is the whole text.

        Args:
            texts: the bits of one text. Texts that do not belong together are encoded one by one.
            allowed_special: see `encode`.

        Raises:
            ValueError: one string is given, which would be taken for its characters, or as for `encode`.
        """
        encode = partial(self.encode, allowed_special=allowed_special)
        places = places_of(self.split, self.normaliser)
        cuts = Cuts(places, self._special, allowed_special) if self.framing.only_adds else Cuts(None)
        return encode_bits(texts, encode, cuts)

    def with_special_tokens(self, special_tokens: Iterable[str]) -> UnigramTokenizer:
        """This tokenizer with more special tokens; what is there already keeps its id.

        A name that is a token becomes special under the id that it has, and new ones get the ids after the last: this
        is what `add_special_tokens` does in the package tokenizers. A model needs a row for each new id (`vocab_size`).

        Raises:
            ValueError: a name is empty, or one string is given.

        >>> tokenizer = UnigramTokenizer([("<unk>", 0.0), ("▁low", -2.0)]).with_special_tokens(["<sep>"])
        >>> tokenizer.encode("low<sep>low"), tokenizer.vocab_size
        ([1, 2, 1], 3)
        """
        more = self._special.with_more(special_tokens, self.vocabulary)
        tokens = [*self.vocabulary, *more.new]
        return UnigramTokenizer(
            self.pieces,
            unk_id=self.unk_id,
            byte_fallback=self.byte_fallback,
            special_tokens=more.special,
            added_tokens=more.others,
            more_tokens=tokens[len(self.pieces) :],
            normaliser=self.normaliser,
            split=self.split,
            decoder=self.decoder,
            framing=self.framing,
        )

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
            ids += [self._added(word)] if is_special else self._ids_of(word, sample_cut(self._edges(word), rng, alpha))
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
                found = [([*ids, self._added(word)], score) for ids, score in found]
                continue
            cuts = [(self._ids_of(word, cut), score) for score, cut in best_cuts(self._edges(word), n)]
            longer = [(ids + more, score + gain) for ids, score in found for more, gain in cuts]
            found = nlargest(n, longer, key=_second)
        return found

    def tokens(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The tokens of a text, as strings."""
        return self.vocabulary.tokens_of(self.encode(text, allowed_special=allowed_special))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a sequence of ids.

        What comes back is the text itself, where every character is known, but for one thing: with `prepend` a single
        space at its beginning is lost. A byte that is no UTF-8 becomes U+FFFD.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        tokens = self.vocabulary.tokens_of(ids)
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in self.special_tokens]
        return as_text(tokens, self.decoder)

    # --- files ---

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it."""
        parts = unigram_json.write(
            self.pieces, self.unk_id, self.byte_fallback, self.normaliser, self.split, self.decoder
        )
        return tokenizer_json.as_json(self.vocabulary, self._special, parts, self.framing)

    @classmethod
    def from_json(cls, text: str, *, ignore: Collection[str] = ()) -> UnigramTokenizer:
        """The tokenizer that a `tokenizer.json` describes, as the package tokenizers writes it.

        Args:
            text: what the file holds.
            ignore: "truncation" or "padding", to leave out what the file says about the length of an input.

        Raises:
            ValueError: it is no Unigram, or asks for something that this class does not do. The message names it.
        """
        return cls(**unigram_json.read(text, ignore))

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path, *, ignore: Collection[str] = ()) -> UnigramTokenizer:
        """Read a `tokenizer.json`. Arguments and errors are those of `from_json`, and OSError."""
        return tokenizer_json.load(path, partial(cls.from_json, ignore=ignore))

    # --- inside ---

    def _best_ids(self, text: str, allowed_special: Collection[str] | Literal["all"]) -> list[int]:
        ids: list[int] = []
        for word, is_added in self._words(text, allowed_special):
            if is_added:
                ids.append(self._added(word))
                continue
            ids += self._remembered[word]
        return ids

    def _words(self, text: str, allowed_special: Collection[str] | Literal["all"]) -> list[tuple[str, bool]]:
        """The words of a text, each with whether it is an added token."""
        words: list[tuple[str, bool]] = []
        for i, part in enumerate(self._special.split(text, allowed_special)):
            if i % 2:  # plain and added parts in turn
                words.append((part, True))
            elif part:
                words += [(word, False) for word in self.split(part, i == 0)]
        return words

    def _added(self, token: str) -> int:
        return self.vocabulary.ids[token]

    def _encode_word(self, word: str) -> list[int]:
        return self._ids_of(word, best_cut(self._edges(word)))

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


def _second(pair: tuple[list[int], float]) -> float:
    return pair[1]
