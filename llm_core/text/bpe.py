"""Byte-pair encoding on bytes: the tokens of GPT-2 and most models after it.

A text is cut into pieces (see `pretokenize`), and a piece into its UTF-8 bytes, the first 256 tokens. Then pairs of
neighbours become one token each, in the order of a list of merges. On "low lower lowest" in training:

    l o w | _ l o w e r | _ l o w e s t      count the pairs of neighbours
    lo w  | _ lo w e r  | _ lo w e s t       merge the most frequent one; of equals, the one with the smaller ids
    low   | _ low e r   | _ low e s t        and again, until the vocabulary is large enough

The merges are the model. To encode a piece is to do the same merges again, the earliest learned first. Every text can
be encoded, since every text is bytes, and decoding gives it back exactly.

A token's bytes are written as a string in GPT-2's alphabet, one printable character for each byte: most printable
bytes stand for themselves, the others move to U+0100 and up, so the space is "Ġ" and the newline "Ċ". Files use
these strings (`tokenizer.json`, `merges.txt`, GGUF), and so do `tokens` and `vocabulary` here.

Sources: Gage 1994 (the compression method), Sennrich et al. 2016 (merges inside words as a vocabulary), Radford et al.
2019 (on bytes, with the alphabet).
"""

from __future__ import annotations

import gc
import heapq
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

from llm_core.checks import check_sizes
from llm_core.files import write_whole
from llm_core.text.common import SpecialTokens, as_json, expect
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split
from llm_core.text.tokenizer import UnknownTokenError

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# byte -> its character, and back, as tables for str.translate on the bytes read as Latin-1.
_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_BYTE = {ord(character): byte for byte, character in _CHARACTER.items()}

ALPHABET = "".join(_CHARACTER.values())
"""The 256 characters that stand for bytes, in the order of the ids that training gives them."""

_CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of a character after its first one, in UTF-8
_CACHED_PIECES = 1 << 16
_LONG = 200  # from this many bytes on, a heap finds the next merge faster than a search of the whole piece
_MOST_TOKENS = 0x110000  # training keeps a token as one character of a string
_NO_MERGE = 1 << 62  # a rank behind that of any merge


class BPETokenizer:
    """Byte-level byte-pair encoding.

    Args:
        vocabulary: token -> id, each token in GPT-2's alphabet. It holds the special tokens too, as they are.
            Ids may have gaps.
        merges: pairs of tokens, the first learned first.
        split: how a text is cut into pieces.
        special_tokens: which tokens of the vocabulary are special: they are found in a text before it is cut, and are
            never taken apart.
        ignore_merges: a piece that is a token as a whole becomes that token, whether merges lead to it or not. So it
            is in tiktoken and in Llama 3.

    Raises:
        ValueError: an id is given twice or is negative, a merge needs a token that is missing, a token cannot be read
            as bytes, or a special token is missing, empty, or could be mistaken for bytes.

    >>> tokenizer = BPETokenizer.train("low lower lowest", 260, min_frequency=1)
    >>> tokenizer.tokens("lowest low")
    ['low', 'e', 's', 't', 'Ġlow']
    >>> tokenizer.decode(tokenizer.encode("lowest low"))
    'lowest low'
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Iterable[tuple[str, str]] = (),
        *,
        split: Split = GPT2,
        special_tokens: Iterable[str] = (),
        ignore_merges: bool = False,
    ) -> None:
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        self.split = split
        self.ignore_merges = ignore_merges
        self.special_tokens = _special_ids(special_tokens, self.vocabulary)
        self._special = SpecialTokens(self.special_tokens)
        self._bytes = _bytes_of_ids(self.vocabulary, self.special_tokens)
        self._vocab_size = max(self._bytes, default=-1) + 1
        self._strings = {id_: token for token, id_ in self.vocabulary.items()}
        self._byte_ids = [self.vocabulary.get(_CHARACTER[byte], -1) for byte in range(256)]
        self._ranks, self._merged = _ranks_of_merges(self.merges, self.vocabulary)
        self._cache = _Cache(self._encode_piece)
        self._parts = _Cache(self._encode_part)

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        *,
        split: Split = GPT2,
        special_tokens: Sequence[str] = (),
        min_frequency: int = 2,
    ) -> BPETokenizer:
        """Learn a vocabulary: special tokens first, then the 256 bytes, then a token for each merge.

        Args:
            texts: one text or many; a large corpus is best given as many, since each is cut into pieces at once.
            vocab_size: how many tokens at most. There are fewer when no pair is frequent enough.
            split: how a text is cut into pieces.
            special_tokens: they get the ids from 0 on. Where a text holds one of them, it is trained on as text.
            min_frequency: how often a pair must be seen to be merged.

        Raises:
            ValueError: vocab_size has no room for the bytes and the special tokens, min_frequency is not positive, or
                a text holds half a surrogate pair.

        Merges and ids are those of `BpeTrainer` in the package tokenizers.
        """
        smallest = len(special_tokens) + len(ALPHABET)
        if not smallest <= vocab_size <= _MOST_TOKENS:
            raise ValueError(
                f"vocab_size must lie between {smallest} (256 bytes and {len(special_tokens)} special tokens) and "
                f"{_MOST_TOKENS}: got {vocab_size}"
            )
        check_sizes(min_frequency=min_frequency)
        vocabulary = {token: id_ for id_, token in enumerate([*special_tokens, *ALPHABET])}
        _special_ids(special_tokens, vocabulary)  # their errors now, not after the training
        pieces: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            pieces.update(split(text))
        with _no_garbage_collection():
            merges = _learn_merges(pieces, vocabulary, vocab_size, min_frequency)
        return cls(vocabulary, merges, split=split, special_tokens=special_tokens)

    @classmethod
    def from_merges(
        cls,
        tokens: Sequence[str],
        merges: Iterable[str],
        *,
        split: Split = GPT2,
        special_tokens: Iterable[str] = (),
        ignore_merges: bool = False,
    ) -> BPETokenizer:
        """A vocabulary as GPT-2's files and GGUF hold it: tokens in the order of their ids, merges as "left right".

        A first line "#version: ..." of the merges is passed over. Other arguments and errors are those of the class.
        """
        if len(set(tokens)) != len(tokens):
            twice = next(token for token, count in Counter(tokens).items() if count > 1)
            raise ValueError(f"each token may stand in the vocabulary once: got {twice!r} more than once")
        return cls(
            {token: id_ for id_, token in enumerate(tokens)},
            _read_merges(merges),
            split=split,
            special_tokens=special_tokens,
            ignore_merges=ignore_merges,
        )

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], *, split: Split = GPT2, special_tokens: Mapping[str, int] | None = None
    ) -> BPETokenizer:
        """A vocabulary as tiktoken holds it: bytes -> rank, where the rank is the id and the order of the merges.

        It names no pairs, but they can be found: a token is merged from the two parts that the earlier merges leave
        of it. A token of which they leave more is only reached where it is a piece as a whole.

        Raises:
            ValueError: as for the class.
        """
        strings = {id_: _in_alphabet(token) for token, id_ in ranks.items()}
        byte_ids = [ranks.get(bytes([byte]), -1) for byte in range(256)]
        pairs: dict[tuple[int, int], int] = {}
        same = range(max(ranks.values(), default=0) + 1)  # here a merge's rank is the id of what it gives
        for token, rank in sorted(ranks.items(), key=operator.itemgetter(1)):
            parts = _merge([byte_ids[byte] for byte in token], pairs, same)
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
    def from_json(cls, text: str) -> BPETokenizer:
        """The tokenizer that a `tokenizer.json` describes, as the package tokenizers writes it.

        Raises:
            ValueError: it is no byte-level BPE, or asks for something that this class does not do. The message names
                the component.
        """
        return cls(**_read_json(text))

    @classmethod
    def load(cls, path: str | Path) -> BPETokenizer:
        """Read a `tokenizer.json`. Errors are those of `from_json`, and OSError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it."""
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": self.ignore_merges,
            "vocab": self.vocabulary,
            "merges": self.merges,
        }
        components = {
            "normalizer": None,
            "pre_tokenizer": _split_as_json(self.split),
            "post_processor": None,
            "decoder": _BYTE_LEVEL,
            "model": model,
        }
        return as_json(self.vocabulary, self._special, components)

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @property
    def vocab_size(self) -> int:
        """The largest id and one; gaps between the ids are counted."""
        return self._vocab_size

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[int]:
        """The ids of a text.

        Args:
            text: any text, also an empty one.
            allowed_special: the special tokens that may be found in the text; "all" is what the package tokenizers
                does. Text from strangers is safe with (): then "<|im_start|>" is ten harmless characters or so, and
                nobody can begin a new turn with it.

        Raises:
            UnknownTokenError: a byte of the text is not in the vocabulary. With all 256 bytes there, it cannot happen.
            ValueError: the text holds half a surrogate pair, which has no bytes in UTF-8, or allowed_special names
                something that is no special token.
        """
        first, *rest = self._special.split(text, allowed_special)
        ids = self._encode_text(first)
        for token, part in zip(rest[::2], rest[1::2], strict=True):
            ids.append(self.special_tokens[token])
            ids += self._encode_text(part)
        return ids

    def tokens(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The tokens of a text, in GPT-2's alphabet. Arguments and errors are those of `encode`."""
        return [self._strings[id_] for id_ in self.encode(text, allowed_special=allowed_special)]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a sequence of ids. Bytes that are no UTF-8 become U+FFFD, the replacement character.

        A character can be spread over several tokens: decode all at once, or use a `StreamDecoder`.

        Raises:
            UnknownTokenError: there is no token with such an id.
        """
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of a sequence of ids, exactly. Arguments and errors are those of `decode`."""
        numbers = list(ids)
        if skip_special_tokens:
            special = set(self.special_tokens.values())
            numbers = [id_ for id_ in numbers if id_ not in special]
        try:
            return b"".join(map(self._bytes.__getitem__, numbers))
        except KeyError as error:
            gaps = "" if len(self._bytes) == self.vocab_size else ", with gaps"
            raise UnknownTokenError(f"ids run from 0 to {self.vocab_size - 1}{gaps}: got {error.args[0]}") from None

    def _encode_text(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._cache.__getitem__, self.split(text))))

    def _encode_piece(self, piece: str) -> Iterable[int]:
        if self.ignore_merges:
            token = _in_alphabet(_utf8(piece))
            if token in self.vocabulary and token not in self.special_tokens:
                return [self.vocabulary[token]]
        if piece.isascii():
            return self._encode_part(piece)
        return chain.from_iterable(map(self._parts.__getitem__, self._joints.cut(piece)))

    def _encode_part(self, part: str) -> list[int]:
        raw = _utf8(part)
        ids = [self._byte_ids[byte] for byte in raw]
        if -1 in ids:
            byte = raw[ids.index(-1)]
            raise UnknownTokenError(
                f"the byte 0x{byte:02X} of {part!r} is not in the vocabulary, where it would be {_CHARACTER[byte]!r}"
            )
        merge = _merge_long if len(ids) >= _LONG else _merge
        return merge(ids, self._ranks, self._merged)

    @cached_property
    def _joints(self) -> _Joints:
        return _Joints(self._bytes.values())


class _Joints:
    """Where a piece can be cut further, because no token reaches from one character to the next.

    What lies between two such cuts is encoded by itself, with the same result. In languages that put no spaces between
    words, pieces are whole clauses and hardly ever come twice; these parts are a character or two, and come again.

    A token reaches from c to d if it holds both (cd), the end of c and all of d (.d), all of c and the beginning of d
    (c.), or the end of one and the beginning of the other. The last kind is looked up by the two bytes that meet.
    """

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._pairs: set[str] = set()
        self._after_part: set[str] = set()
        self._before_part: set[str] = set()
        self._meeting: defaultdict[int, set[int]] = defaultdict(set)
        for token in tokens:
            whole = token.lstrip(_CONTINUATION)
            text = whole.decode(errors="ignore")
            has_head, has_tail = len(whole) < len(token), len(text.encode()) < len(whole)
            self._pairs.update(map("".join, pairwise(text)))
            if text:
                self._after_part.update(text[:1] * has_head)
                self._before_part.update(text[-1:] * has_tail)
            elif has_head and has_tail:
                self._meeting[token[-len(whole) - 1] & 0x3F].add(whole[0])

    def cut(self, piece: str) -> list[str]:
        """The parts of a piece."""
        pairs, after_part, before_part, meeting = self._pairs, self._after_part, self._before_part, self._meeting
        parts, start = [], 0
        for i, (c, d) in enumerate(pairwise(piece), 1):
            if c + d in pairs or d in after_part or c in before_part:
                continue
            # The last six bits of a character are those of its last byte: a quick look before the exact one.
            if ord(c) & 0x3F in meeting and _utf8(d)[0] in meeting[ord(c) & 0x3F]:
                continue
            parts.append(piece[start:i])
            start = i
        return [*parts, piece[start:]]


class _Cache(dict[str, tuple[int, ...]]):
    """Piece -> ids, found when first asked for. Most of a text is pieces that came before.

    Tuples, because Python's garbage collector passes over tuples of numbers, and would look into every list.
    """

    def __init__(self, find: Callable[[str], Iterable[int]]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, piece: str) -> tuple[int, ...]:
        ids = tuple(self._find(piece))
        if len(piece) < _LONG:
            if len(self) >= _CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


# --- merging ---


def _merge(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Merge neighbours, the pair of the lowest rank first and of equals the leftmost, until no merge is left."""
    found = [ranks.get(pair, _NO_MERGE) for pair in pairwise(ids)]  # found[i]: rank of (ids[i], ids[i + 1])
    while found:
        rank = min(found)
        if rank == _NO_MERGE:
            break
        i = found.index(rank)
        ids[i] = merged[rank]
        del ids[i + 1], found[i]
        if i > 0:
            found[i - 1] = ranks.get((ids[i - 1], ids[i]), _NO_MERGE)
        if i < len(found):
            found[i] = ranks.get((ids[i], ids[i + 1]), _NO_MERGE)
    return ids


def _merge_long(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """`_merge` for long pieces: a heap finds the next pair, and neighbours are linked, so that nothing moves."""
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        # An entry may be out of date: a neighbour was merged with something else since. -1 has no rank.
        if j == n or ranks.get((ids[i], ids[j])) != rank:
            continue
        ids[i], ids[j] = merged[rank], -1
        after[i] = after[j]
        if after[i] < n:
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < n and (ids[left], ids[right]) in ranks:
                heapq.heappush(heap, (ranks[ids[left], ids[right]], left))
    return [id_ for id_ in ids if id_ >= 0]


def _learn_merges(
    pieces: Mapping[str, int], vocabulary: dict[str, int], vocab_size: int, min_frequency: int
) -> list[tuple[str, str]]:
    """The merges that pieces and their frequencies lead to. The tokens they make are added to the vocabulary.

    A word is kept as a string in which each *character* is a token: chr(id). So `word.replace(pair, token)` merges,
    and `word.split(pair)` shows the neighbours, at the speed of C.

    Counts are never made anew. A merge of (a, b) into c changes only pairs beside it: x a b y has (x, a) and (b, y)
    once less, and (x, c) and (c, y) once more. Counts in the heap are not corrected when they fall, but when they
    reach the top: there a count that is out of date goes back with the right one.
    """
    tokens = [*vocabulary]
    characters = {byte: chr(vocabulary[_CHARACTER[byte]]) for byte in range(256)}
    words = [_utf8(piece).decode("latin-1").translate(characters) for piece in pieces]
    frequencies = list(pieces.values())

    # A word stands in the list once for each time that the pair stands in it: the frequencies add up to the count.
    where: defaultdict[str, list[int]] = defaultdict(list)
    for i, word in enumerate(words):
        for left, right in pairwise(word):
            where[left + right].append(i)
    counts: dict[str, int] = {}  # of the pairs that are frequent enough: after a pair's first step it only gets rarer
    heap: list[tuple[int, str, list[int]]] = []  # (-count, pair, words): the largest count first, then the smallest ids
    for pair, places in where.items():
        count = sum(map(frequencies.__getitem__, places))
        if count >= min_frequency:
            counts[pair] = count
            heap.append((-count, pair, places))
    heapq.heapify(heap)

    merges: list[tuple[str, str]] = []
    while heap and len(tokens) < vocab_size:
        stale, pair, places = heap[0]
        count = counts[pair]
        if count < min_frequency:
            heapq.heappop(heap)
        elif count < -stale:
            heapq.heapreplace(heap, (-count, pair, places))
        else:
            heapq.heappop(heap)
            del counts[pair]
            merges.append((tokens[ord(pair[0])], tokens[ord(pair[1])]))
            token = "".join(merges[-1])
            id_ = vocabulary.setdefault(token, len(tokens))  # a special token of that name keeps its id
            if id_ == len(tokens):
                tokens.append(token)
            for fallen, risen, changed in _replace(pair, chr(id_), places, words):
                change = sum(map(frequencies.__getitem__, changed))
                if fallen in counts:
                    counts[fallen] -= change
                if change >= min_frequency:
                    counts[risen] = change
                    heapq.heappush(heap, (-change, risen, changed))
    return merges


def _replace(pair: str, token: str, places: list[int], words: list[str]) -> list[tuple[str, str, list[int]]]:
    """Merge a pair in some words. Returns, for each neighbour: the pair that was, the pair that is, and where."""
    a, b = pair[0], pair[1]
    lefts: defaultdict[str, list[int]] = defaultdict(list)
    rights: defaultdict[str, list[int]] = defaultdict(list)
    between: list[int] = []  # words where the pair follows itself
    for i in places:
        parts = words[i].split(pair)
        if len(parts) == 2:  # by far the most frequent case
            before, after = parts
            words[i] = before + token + after
            if before:
                lefts[before[-1]].append(i)
            if after:
                rights[after[0]].append(i)
        elif len(parts) > 2:
            words[i] = token.join(parts)
            for n, (before, after) in enumerate(pairwise(parts)):  # around each place of the pair
                if before:
                    lefts[before[-1]].append(i)
                elif n > 0:
                    between.append(i)
                if after:
                    rights[after[0]].append(i)
    changes = [(x + a, x + token, places) for x, places in lefts.items()]
    changes += [(b + x, token + x, places) for x, places in rights.items()]
    if between:
        changes.append((b + a, token + token, between))
    return changes


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Training makes millions of small lists and no cycles: looking for cycles among them takes half of its time.
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- bytes and vocabulary ---


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a surrogate pair, U+{ord(text[error.start]):04X}, which is no character: "
            'repair it, with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for one'
        ) from None


def _in_alphabet(raw: bytes) -> str:
    return raw.decode("latin-1").translate(_CHARACTER)


def _special_ids(special_tokens: Iterable[str], vocabulary: Mapping[str, int]) -> dict[str, int]:
    if isinstance(special_tokens, str):
        raise ValueError(f"give a list of special tokens: got one string, {special_tokens!r}")
    ids: dict[str, int] = {}
    for token in special_tokens:
        if token in ids:
            raise ValueError(f"each special token may be given once: got {token!r} more than once")
        if token not in vocabulary:
            raise ValueError(f"the special token {token!r} is not in the vocabulary: give it an id there")
        # In the alphabet "é" is the byte 0xE9. A token that is both could not be decoded.
        if not token or (set(token) <= set(ALPHABET) and (len(token) == 1 or not token.isascii())):
            raise ValueError(f"the special token {token!r} could be taken for bytes: give a longer one, <|{token}|>")
        ids[token] = vocabulary[token]
    return ids


def _bytes_of_ids(vocabulary: Mapping[str, int], special_tokens: Mapping[str, int]) -> dict[int, bytes]:
    raw: dict[int, bytes] = {}
    letters = frozenset(ALPHABET)
    for token, id_ in vocabulary.items():
        if id_ < 0 or id_ in raw:
            raise ValueError(f"each token needs an id of its own, 0 or more: got {id_} for {token!r}")
        if token in special_tokens:
            raw[id_] = _utf8(token)
        elif token and letters.issuperset(token):
            raw[id_] = token.translate(_BYTE).encode("latin-1")
        else:
            raise ValueError(
                f"the token {token!r} (id {id_}) is not written in the alphabet of bytes: "
                "if it is a special token, name it in special_tokens"
            )
    return raw


def _ranks_of_merges(
    merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Pair of ids -> rank, and rank -> id of what the pair becomes."""
    ranks: dict[tuple[int, int], int] = {}
    merged: list[int] = []
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise ValueError(
                    f"the merge of {left!r} and {right!r} needs the token {token!r}: add it to the vocabulary"
                )
        ranks[vocabulary[left], vocabulary[right]] = rank
        merged.append(vocabulary[left + right])
    return ranks, merged


def _read_merges(lines: Iterable[str]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for n, line in enumerate(lines):
        if n == 0 and line.startswith("#version:"):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ValueError(f'a merge is two tokens with a space between them, "left right": got {line!r}')
        merges.append((left, right))
    return merges


# --- tokenizer.json ---

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_NO_REGEX = _BYTE_LEVEL | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_KNOWN = {split.pattern: split for split in (CL100K, O200K, WHITESPACE)}


def _split_as_json(split: Split) -> dict[str, Any]:
    if split == GPT2:
        return _BYTE_LEVEL
    if split == WHOLE:
        return _NO_REGEX
    if split == DIGITS_THEN_GPT2:
        return {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]}
    pattern = {"type": "Split", "pattern": {"Regex": split.pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pattern, _NO_REGEX]}


def _read_json(text: str) -> dict[str, Any]:
    """The arguments of `BPETokenizer` that a tokenizer.json asks for."""
    try:
        parts = json.loads(text)
        model = parts["model"]
        expect("model.type", model.get("type", "BPE"), ["BPE"])
        vocabulary, merges = dict(model["vocab"]), list(model["merges"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no tokenizer.json with a BPE model: {type(error).__name__}: {error}") from None
    for name in ("normalizer", "truncation", "padding"):
        expect(name, parts.get(name), [None])
    expect("post_processor.type", _type(parts.get("post_processor")), [None, "ByteLevel"])  # it changes no ids
    expect("decoder.type", _type(parts.get("decoder")), ["ByteLevel"])
    expect("model.dropout", model.get("dropout"), [None, 0.0])
    expect("model.byte_fallback", model.get("byte_fallback", False), [False])
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        expect(f"model.{name}", model.get(name), [None, ""])
    if not vocabulary.keys() >= set(ALPHABET):  # else nothing is ever unknown
        expect("model.unk_token, in a vocabulary without all 256 bytes,", model.get("unk_token"), [None])
    special_tokens = []
    for token in parts.get("added_tokens") or []:
        name = token["content"]
        for flag in ("single_word", "lstrip", "rstrip"):
            expect(f"{flag} of the added token {name!r}", token.get(flag, False), [False])
        expect(f"special of the added token {name!r}", token.get("special"), [True])
        expect(f"the id of the added token {name!r}", token["id"], [vocabulary.setdefault(name, token["id"])])
        special_tokens.append(name)
    return {
        "vocabulary": vocabulary,
        "merges": _read_merges(merges) if merges and isinstance(merges[0], str) else list(map(tuple, merges)),
        "split": _split_from_json(parts.get("pre_tokenizer")),
        "special_tokens": special_tokens,
        "ignore_merges": model.get("ignore_merges", False),
    }


def _split_from_json(component: Any) -> Split:
    steps = component["pretokenizers"] if _type(component) == "Sequence" else [component]
    expect("pre_tokenizer.type", _type(steps[-1]), ["ByteLevel"])
    expect("pre_tokenizer.add_prefix_space", steps[-1]["add_prefix_space"], [False])
    with_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2 if with_regex else WHOLE
    if len(steps) == 2 and with_regex:
        expect("pre_tokenizer before ByteLevel with a pattern", steps[0], [_DIGITS])
        return DIGITS_THEN_GPT2
    expect("the number of steps of pre_tokenizer", len(steps), [1, 2])
    expect("pre_tokenizer before ByteLevel without a pattern", _type(steps[0]), ["Split"])
    expect("pre_tokenizer.behavior", steps[0]["behavior"], ["Isolated"])
    expect("pre_tokenizer.invert", steps[0]["invert"], [False])
    expect("the kind of pre_tokenizer.pattern", list(steps[0]["pattern"]), [["Regex"]])
    split = Split(steps[0]["pattern"]["Regex"])
    return _KNOWN.get(split.pattern, split)


def _type(component: Any) -> str | None:
    return None if component is None else component["type"]
