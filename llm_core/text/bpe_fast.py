"""Byte-level byte-pair encoding, quickly: the merges and the ids of the first rung, `bpe`, for real work.

`bpe.SimpleBPE` is the one to read first. What comes on top of it here:

    bpe_training     counts of pairs are kept up to date, instead of counted anew for each merge
    bpe_merging      a heap for long pieces, and characters of several bytes looked up
    this file        the ids of pieces are remembered; special tokens; vocabularies of tiktoken, GPT-2 and GGUF
    bpe_json         `tokenizer.json`, both ways

Tokens are written in GPT-2's alphabet (`byte_alphabet`), in `tokens`, `vocabulary` and `merges`.

Sources: Gage 1994 (the compression method), Sennrich et al. 2016 (merges inside words as a vocabulary), Radford et al.
2019 (on bytes, with the alphabet).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Literal

from llm_core.files import write_whole
from llm_core.text import bpe_json, tokenizer_json
from llm_core.text.bpe_characters import Characters
from llm_core.text.bpe_merging import LONG, CharactersFirst, merge, merge_long
from llm_core.text.bpe_training import Ties, learn_merges, smallest_ids
from llm_core.text.byte_alphabet import ALPHABET, CHARACTER, from_alphabet, in_alphabet, utf8
from llm_core.text.decoders import Decoder, as_text
from llm_core.text.framing import PLAIN_FRAMING, Framing
from llm_core.text.normalisers import Normaliser
from llm_core.text.pretokenisers import PreTokeniser
from llm_core.text.pretokenize import GPT2, Split
from llm_core.text.remembered import Remembered
from llm_core.text.special import AddedToken, SpecialTokens
from llm_core.text.streaming import Cuts, encode_bits, places_of
from llm_core.text.tokenizer import UnknownTokenError, Vocabulary

CACHE_SIZE = 2**16  # pieces whose ids are remembered; then it begins anew


class BPETokenizer:
    """Byte-level byte-pair encoding.

    Args:
        vocabulary: token -> id, each token in GPT-2's alphabet. It holds the special tokens too, as they are.
            Ids may have gaps.
        merges: pairs of tokens, the first learned first.
        split: how a text is cut into pieces.
        special_tokens: which tokens of the vocabulary are special: they are found in a text before it is cut, and are
            never taken apart.
        added_tokens: which tokens are found in the same way and are text like any other, such as a run of spaces or
            <think>. They are found whatever `allowed_special` says, and decoding keeps them.
        ignore_merges: a piece that is a token as a whole becomes that token, whether merges lead to it or not. So it
            is in tiktoken and in Llama 3.
        normaliser: what is done to a text before it is cut, one of `normalisers`; None: nothing.
        characters: what a piece becomes where characters are merged, not bytes (Llama 2, Mistral). Then tokens are
            not written in GPT-2's alphabet, and `decoder` makes text of them.
        decoder: one of `decoders`, for characters; None: tokens with spaces between them.
        framing: the special tokens around a text, the most ids, and what fills them up.

    Raises:
        ValueError: an id is given twice or is negative, a merge needs a token that is missing, a token cannot be read
            as bytes, or a special token is missing, empty, or could be mistaken for bytes.

    >>> tokenizer = BPETokenizer.train("low lower lowest", 260, min_count=1)
    >>> tokenizer.tokens("lowest low")
    ['low', 'e', 's', 't', 'Ġlow']
    >>> tokenizer.decode(tokenizer.encode("lowest low"))
    'lowest low'
    """

    def __init__(
        self,
        vocabulary: Vocabulary | Mapping[str, int],
        merges: Iterable[tuple[str, str]] = (),
        *,
        split: PreTokeniser = GPT2,
        special_tokens: Iterable[str | AddedToken] = (),
        added_tokens: Iterable[str | AddedToken] = (),
        ignore_merges: bool = False,
        normaliser: Normaliser | None = None,
        characters: Characters | None = None,
        decoder: Decoder | None = None,
        framing: Framing = PLAIN_FRAMING,
    ) -> None:
        self.vocabulary = Vocabulary(vocabulary)
        self.merges = list(merges)
        self.split = split
        self.ignore_merges = ignore_merges
        self.normaliser = normaliser
        self.characters = characters
        self.decoder = decoder
        self.framing = framing
        special_tokens, added_tokens = _listed(special_tokens), _listed(added_tokens)
        by_bytes = characters is None
        self.special_tokens = _special_ids(special_tokens, self.vocabulary.ids, by_bytes)
        self.added_tokens = _special_ids(added_tokens, self.vocabulary.ids, by_bytes)
        both = self.special_tokens.keys() & self.added_tokens
        if both:
            raise ValueError(f"a token is special, or text that was added: {min(both)!r} cannot be both")
        self._special = SpecialTokens(special_tokens, always=added_tokens, normalise=normaliser)
        self._whole = self.special_tokens | self.added_tokens
        # A token that is looked for in normalised text is decoded in that form, and is then no special token any more:
        # so the package tokenizers does it.
        self._normalised = {self._whole[name]: form for name, form in self._special.normalised.items()}
        self._bytes = _bytes_of_ids(self.vocabulary, self._whole, self._normalised) if by_bytes else {}
        self._byte_ids = [self.vocabulary.ids.get(CHARACTER[byte], -1) for byte in range(256)]
        self._ranks, self._merged = _ranks_of_merges(self.merges, self.vocabulary.ids, characters or Characters())
        self._pieces = Remembered(self._encode_piece, size=CACHE_SIZE, longest=LONG - 1)

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        *,
        split: Split = GPT2,
        special_tokens: Sequence[str] = (),
        min_count: int = 2,
        ties: Ties = smallest_ids,
    ) -> BPETokenizer:
        """Learn a vocabulary: special tokens first, then the 256 bytes, then a token for each merge.

        Args:
            texts: one text or many; a large corpus is best given as many, since each is cut into pieces at once.
            vocab_size: how many tokens at most. There are fewer when no pair is frequent enough.
            split: how a text is cut into pieces.
            special_tokens: they get the ids from 0 on. Where a text holds one of them, it is trained on as text.
            min_count: how often a pair must be seen to be merged.
            ties: which of equally frequent pairs is merged first: `bpe_training.smallest_ids` or `greatest_bytes`.

        Raises:
            ValueError: vocab_size has no room for the bytes and the special tokens, min_count is not positive, or
                a text holds half a surrogate pair.

        Merges and ids are those of `BpeTrainer` in the package tokenizers. A piece may be as long as it likes: the work
        is in proportion to its length.
        """
        smallest = len(special_tokens) + len(ALPHABET)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size must be at least {smallest} (256 bytes and {len(special_tokens)} special tokens): "
                f"got {vocab_size}"
            )
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1: got {min_count}")
        tokens = [*special_tokens, *ALPHABET]
        ids = {token: id_ for id_, token in enumerate(tokens)}
        _special_ids(special_tokens, ids)  # their errors now, not after the training
        pieces: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            pieces.update(split(text))
        byte_ids = [ids[CHARACTER[byte]] for byte in range(256)]
        words = [list(map(byte_ids.__getitem__, utf8(piece))) for piece in pieces]
        pairs = learn_merges(words, list(pieces.values()), tokens, vocab_size, min_count, ties)
        merges = [(tokens[left], tokens[right]) for left, right in pairs]
        return cls({token: id_ for id_, token in enumerate(tokens)}, merges, split=split, special_tokens=special_tokens)

    @classmethod
    def from_merges(
        cls,
        tokens: Sequence[str],
        merges: Iterable[str],
        *,
        split: Split = GPT2,
        special_tokens: Iterable[str] = (),
        added_tokens: Iterable[str] = (),
        ignore_merges: bool = False,
        framing: Framing = PLAIN_FRAMING,
    ) -> BPETokenizer:
        """A vocabulary as GPT-2's files and GGUF hold it: tokens in the order of their ids, merges as "left right".

        A first line "#version: ..." of the merges is passed over. Other arguments and errors are those of the class.
        """
        return cls(
            Vocabulary(tokens),
            bpe_json.read_merges(merges),
            split=split,
            special_tokens=special_tokens,
            added_tokens=added_tokens,
            ignore_merges=ignore_merges,
            framing=framing,
        )

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], *, split: Split = GPT2, special_tokens: Mapping[str, int] | None = None
    ) -> BPETokenizer:
        """A vocabulary as tiktoken holds it: bytes -> rank, where the rank is the id and the order of the merges.

        It names no pairs, but they can be found: a token is merged from the two parts that the earlier merges leave
        of it. A token of which they leave more is only reached where it is a piece as a whole.

        Raises:
            ValueError: as for the class, or the pattern means one thing in tiktoken and another in a tokenizer.json.
        """
        if split.oniguruma_only:
            raise ValueError(
                f"the split pattern {split.pattern!r} holds {split.oniguruma_only[0]!r}, which means something else in "
                "tiktoken than in a tokenizer.json: write it with atomic groups, (?>...)"
            )
        strings = {id_: in_alphabet(token) for token, id_ in ranks.items()}
        byte_ids = [ranks.get(bytes([byte]), -1) for byte in range(256)]
        pairs: dict[tuple[int, int], int] = {}
        same = range(max(ranks.values(), default=0) + 1)  # here a merge's rank is the id of what it gives
        for token, rank in sorted(ranks.items(), key=operator.itemgetter(1)):
            parts = merge([byte_ids[byte] for byte in token], pairs, same)
            if len(parts) == 2:
                pairs[parts[0], parts[1]] = rank
        special_tokens = special_tokens or {}
        return cls(
            {token: id_ for id_, token in strings.items()} | dict(special_tokens),
            [(strings[left], strings[right]) for left, right in pairs],
            split=split,
            special_tokens=special_tokens,
            ignore_merges=True,
        )

    @classmethod
    def from_json(cls, text: str, *, ignore: Collection[str] = ()) -> BPETokenizer:
        """The tokenizer that a `tokenizer.json` describes, as the package tokenizers writes it.

        Args:
            text: what the file holds.
            ignore: "truncation" or "padding", to leave out what the file says about the length of an input.

        Raises:
            ValueError: it is no BPE, or asks for something that this class does not do. The message names it.
        """
        return cls(**bpe_json.read(text, ignore))

    @classmethod
    def load(cls, path: str | Path, *, ignore: Collection[str] = ()) -> BPETokenizer:
        """Read a `tokenizer.json`. Arguments and errors are those of `from_json`, and OSError."""
        return tokenizer_json.load(path, partial(cls.from_json, ignore=ignore))

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it."""
        parts = bpe_json.write(
            self.vocabulary,
            self.merges,
            self.split,
            self.ignore_merges,
            self.normaliser,
            self.characters,
            self.decoder,
        )
        return tokenizer_json.as_json(self.vocabulary, self._special, parts, self.framing)

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @property
    def vocab_size(self) -> int:
        """The largest id and one; gaps between the ids are counted."""
        return self.vocabulary.size

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = "all",
        add_special_tokens: bool = False,
    ) -> list[int]:
        """The ids of a text.

        Args:
            text: any text, also an empty one.
            allowed_special: the special tokens that may be found in the text; "all" is what the package tokenizers
                does. Text from strangers is safe with (): then "<|im_start|>" is ten harmless characters or so, and
                nobody can begin a new turn with it.
            add_special_tokens: whether those of `framing` are put around it, such as Llama 3's <|begin_of_text|>.

        Raises:
            UnknownTokenError: a byte of the text is not in the vocabulary. With all 256 bytes there, it cannot happen.
            ValueError: the text holds half a surrogate pair, which has no bytes in UTF-8, or allowed_special names
                something that is no special token.
        """
        ids = self._ids(text, allowed_special)
        return self.framing.ids(ids, add_special_tokens=add_special_tokens)

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
        ids = self._ids(first, allowed_special)
        more = None if second is None else self._ids(second, allowed_special)
        return self.framing.limited_to(max_length).frame(ids, more, add_special_tokens=True)

    def encode_iterable(
        self, texts: Iterable[str], *, allowed_special: Collection[str] | Literal["all"] = "all"
    ) -> Iterator[int]:
        """The ids of a text that comes bit by bit, such as an open file: what `encode` gives for all of it, joined.

        Where the bits begin and end makes no difference; a word or a special token may be cut in two. Ids come as soon
        as nothing that follows can change them, and no more of the text is kept than that takes: some thousand
        characters, or the longest run without a word boundary. With a `Split` of your own, a normaliser that may look
        across a space, a longest length in `framing`, or tokens that take the spaces behind them, that is the whole
        text.

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

    def with_special_tokens(self, special_tokens: Iterable[str]) -> BPETokenizer:
        """This tokenizer with more special tokens; what is there already keeps its id.

        A name that is a token becomes special under the id that it has, and new ones get the ids after the last. This
        is what `add_special_tokens` does in the package tokenizers; there the ids of a vocabulary with gaps go into
        the gaps. A model needs a row for each new id (`vocab_size`).

        Raises:
            ValueError: a name is empty or could be taken for bytes, or one string is given.

        >>> tokenizer = BPETokenizer.train("low lower", 257).with_special_tokens(["<|end|>"])
        >>> tokenizer.encode("low<|end|>")[-1], tokenizer.vocab_size
        (257, 258)
        """
        more = self._special.with_more(special_tokens, self.vocabulary)
        return BPETokenizer(
            self.vocabulary.ids | {name: self.vocab_size + i for i, name in enumerate(more.new)},
            self.merges,
            split=self.split,
            special_tokens=more.special,
            added_tokens=more.others,
            ignore_merges=self.ignore_merges,
            normaliser=self.normaliser,
            characters=self.characters,
            decoder=self.decoder,
            framing=self.framing,
        )

    def tokens(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The tokens of a text, in GPT-2's alphabet. Arguments and errors are those of `encode`."""
        return self.vocabulary.tokens_of(self.encode(text, allowed_special=allowed_special))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a sequence of ids. Bytes that are no UTF-8 become U+FFFD, the replacement character.

        A character can be spread over several tokens: decode all at once, or use a `StreamDecoder`.

        Raises:
            UnknownTokenError: there is no token with such an id.
        """
        if self.characters is not None:
            numbers = self._decoded(ids, skip_special_tokens)
            tokens = self.vocabulary.tokens_of(numbers)
            forms = self._normalised
            return as_text([forms.get(id_, token) for id_, token in zip(numbers, tokens, strict=True)], self.decoder)
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of a sequence of ids, exactly; of characters, those of their text. Otherwise as `decode`."""
        if self.characters is not None:
            return self.decode(ids, skip_special_tokens=skip_special_tokens).encode()
        numbers = self._decoded(ids, skip_special_tokens)
        try:
            return b"".join(map(self._bytes.__getitem__, numbers))
        except KeyError as error:
            raise self.vocabulary.unknown(error.args[0]) from None

    def _decoded(self, ids: Iterable[int], skip_special_tokens: bool) -> list[int]:
        special = set(self.special_tokens.values()) - self._normalised.keys() if skip_special_tokens else ()
        return [id_ for id_ in ids if id_ not in special]

    def _ids(self, text: str, allowed_special: Collection[str] | Literal["all"]) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._special.split(text, allowed_special)):
            if i % 2:  # plain and special parts in turn
                ids.append(self._whole[part])
            else:
                pieces = self.split(part, i == 0) if part else ()
                ids += chain.from_iterable(map(self._pieces.__getitem__, pieces))
        return ids

    def _encode_piece(self, piece: str) -> Iterable[int]:
        if self.characters is not None:
            return self._encode_characters(piece, self.characters)
        if self.ignore_merges:
            token = in_alphabet(utf8(piece))
            if token in self.vocabulary and token not in self._whole:
                return [self.vocabulary.ids[token]]
        ids = None if piece.isascii() else self._characters_first.ids(piece)
        return self._encode_bytes(piece) if ids is None else self._merge(ids)

    def _encode_bytes(self, piece: str) -> list[int]:
        raw = utf8(piece)
        ids = [self._byte_ids[byte] for byte in raw]
        if -1 in ids:
            byte = raw[ids.index(-1)]
            raise UnknownTokenError(
                f"the byte 0x{byte:02X} of {piece!r} is not in the vocabulary, where it would be {CHARACTER[byte]!r}"
            )
        return self._merge(ids)

    def _encode_characters(self, piece: str, characters: Characters) -> list[int]:
        if self.ignore_merges and piece in self.vocabulary and piece not in self._whole:
            return [self.vocabulary.ids[piece]]
        return self._merge(characters.ids(piece, self.vocabulary.ids))

    def _merge(self, ids: list[int]) -> list[int]:
        return (merge_long if len(ids) >= LONG else merge)(ids, self._ranks, self._merged)

    @cached_property
    def _characters_first(self) -> CharactersFirst:
        return CharactersFirst(self._bytes, self._encode_bytes, self._byte_ids, self._ranks, self._merged)


def _listed(tokens: Iterable[str | AddedToken]) -> list[str | AddedToken]:
    if isinstance(tokens, str):
        raise ValueError(f"give a list of special tokens: got one string, {tokens!r}")
    return list(tokens)


def _special_ids(
    special_tokens: Iterable[str | AddedToken], vocabulary: Mapping[str, int], by_bytes: bool = True
) -> dict[str, int]:
    ids: dict[str, int] = {}
    for one in _listed(special_tokens):
        token = one if isinstance(one, str) else one.content
        if token in ids:
            raise ValueError(f"each special token may be given once: got {token!r} more than once")
        if token not in vocabulary:
            raise ValueError(f"the special token {token!r} is not in the vocabulary: give it an id there")
        # In the alphabet "é" is the byte 0xE9. A token that is both could not be decoded.
        if by_bytes and (not token or (set(token) <= set(ALPHABET) and (len(token) == 1 or not token.isascii()))):
            raise ValueError(f"the special token {token!r} could be taken for bytes: give a longer one, <|{token}|>")
        ids[token] = vocabulary[token]
    return ids


def _bytes_of_ids(
    vocabulary: Vocabulary, special_tokens: Mapping[str, int], normalised: Mapping[int, str]
) -> dict[int, bytes]:
    raw: dict[int, bytes] = {}
    for token, id_ in vocabulary.ids.items():
        if not token:
            raise ValueError(f"id {id_}: the token '' is not written in the alphabet of bytes: it has no character")
        try:
            raw[id_] = utf8(normalised.get(id_, token)) if token in special_tokens else from_alphabet(token)
        except ValueError as error:
            raise ValueError(f"id {id_}: {error}: if it is a special token, name it in special_tokens") from None
    return raw


def _ranks_of_merges(
    merges: Sequence[tuple[str, str]], ids: Mapping[str, int], characters: Characters
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Pair of ids -> rank, and rank -> id of what the pair becomes."""
    ranks: dict[tuple[int, int], int] = {}
    merged: list[int] = []
    for rank, (left, right) in enumerate(merges):
        joined = characters.joined(left, right)
        for token in (left, right, joined):
            if token not in ids:
                raise ValueError(
                    f"the merge of {left!r} and {right!r} needs the token {token!r}: add it to the vocabulary"
                )
        ranks[ids[left], ids[right]] = rank
        merged.append(ids[joined])
    return ranks, merged
