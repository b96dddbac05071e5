"""WordPiece: a word is the longest piece that begins it, then the longest that goes on, to its end.

    text    "The Cafés’ tokenizer"
    normal  "the cafes’ tokenizer"                clean, space out Chinese, strip accents, lower-case
    words   the | cafes | ’ | tokenizer           cut at whitespace and around punctuation
    pieces  the | cafes | ’ | token ##izer        greedy: longest match first, ## where a piece goes on

A word that cannot be built from the vocabulary becomes `[UNK]` as a whole. The normaliser and the cut are functions,
each of them small; `WordPieceTokenizer` puts them together and remembers the ids of what it has met: text repeats
itself so much that looking up beats matching.

Everything here is BERT's (Devlin et al. 2019), in the version of the library `tokenizers`: same words, same ids, same
offsets. That library knows the classes of characters (mark, punctuation, control) of Unicode 8, and so do we, whatever
the version of Python: `LATER` lists what has come since. Three things are Python's own and may differ from the
library's: the lower case of letters that are younger than Python's Unicode (55 of them in Python 3.11), the
decomposition of such letters, and that of U+11938, which Python takes apart and the library does not.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Literal

from llm_core.files import write_whole
from llm_core.text.common import SpecialTokens, as_json, from_json, is_surrogate
from llm_core.text.tokenizer import UnknownTokenError

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)

# Character sets, as they stand between the brackets of a regular expression.
CONTROL_SPACES = "\x0b\x0c\x85"  # whitespace that `clean_text` removes as control characters
SPACES = "\t\n\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CJK = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    # BERT's own list has U+2B820 here, the library's U+2B920. We follow the library.
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
ASCII_PUNCTUATION = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

# Ranges in which every mark, punctuation mark and format character is younger than Unicode 8.
LATER = (
    "5C8-5C9 61D 7FD 890-8E2 9FD-9FE A76 AFA-AFF B53-B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1AF0 "
    "1B4E-1B4F 1B7D-1B7F 1DF6-1DFB 2E43-2E63 A82C A8C5 A8FF A9BD 10D24-10F89 11070-11074 110C2-110CD 111CF "
    "1123E-11241 1133B 113BB-1145E 11660-1166C 116B9 1182F-11FFF 12FF1-1612F 16D6D-16F4F 16FE2-16FE4 1CF00-1D128 "
    "1D25B-1D25C 1E000-1E6F5 1E944-1E95F"
)
# What Unicode has put into another class since.
RECLASSIFIED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}

# Beginnings of tokens that the library's decoder puts no space before.
NO_SPACE_BEFORE = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")

_bounds = [(int(first, 16), int(last or first, 16)) for first, _, last in (r.partition("-") for r in LATER.split())]
_starts = [first for first, _ in _bounds]
_not_space = re.compile(f"[^{SPACES}{CONTROL_SPACES}]+")
_cjk = re.compile(f"[{CJK}]")

CACHE_SIZE = 2**18  # chunks of text whose ids are remembered; then it begins anew
LONGEST_CACHED = 100  # characters: what is longer hardly comes twice


# --- the normaliser ---


@cache
def category(character: str) -> str:
    """The general category of a character; "Cn", unassigned, for marks and punctuation younger than Unicode 8.

    >>> category("a"), category("\\u0301"), category("\\u2e52")  # the last one came with Unicode 13
    ('Ll', 'Mn', 'Cn')
    """
    if character in RECLASSIFIED:
        return RECLASSIFIED[character]
    found = unicodedata.category(character)
    if found == "Mn" or found == "Cf" or found[0] == "P":
        at = bisect_right(_starts, ord(character)) - 1
        if at >= 0 and ord(character) <= _bounds[at][1]:
            return "Cn"
    return found


@cache
def is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and every ASCII sign that is no letter, digit or space: "$" and "+" too.

    >>> [c for c in "a1 $+。€" if is_punctuation(c)]
    ['$', '+', '。']
    """
    return category(character)[0] == "P" or (
        character.isascii() and not character.isalnum() and " " < character < "\x7f"
    )


def clean_text(text: str) -> str:
    """Every whitespace a plain space; no control character, no replacement character, no lone surrogate.

    >>> clean_text("a\\tb\\u00a0c\\x00d\\ufffd\\ud800")
    'a b cd'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_cleaned, text))


def space_cjk(text: str) -> str:
    """A space on both sides of every Chinese character: each becomes a word. Kana and Hangul stay as they are.

    >>> space_cjk("a中文かな")
    'a 中  文 かな'
    """
    return text if text.isascii() else _cjk.sub(r" \g<0> ", text)


def strip_accents(text: str) -> str:
    """Decompose the characters (NFD) and drop the marks that take no room of their own.

    >>> strip_accents("Café, ÅÑü")
    'Cafe, ANu'
    """
    if text.isascii():
        return text
    return "".join(character for character in unicodedata.normalize("NFD", text) if category(character) != "Mn")


def lowercase(text: str) -> str:
    """Lower case, each character by itself: Python alone would write the last sigma of a word in another way.

    >>> lowercase("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower()


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words begin and end: cut at whitespace, and around each punctuation mark.

    >>> split_words("don't  go")
    [(0, 3), (3, 4), (4, 5), (7, 9)]
    """
    spans = []
    for run in _not_space.finditer(text):
        start = run.start()
        for position in range(*run.span()):
            if is_punctuation(text[position]):
                spans += [(start, position), (position, position + 1)]
                start = position + 1
        spans.append((start, run.end()))
    return [(start, end) for start, end in spans if start < end]


@cache
def _cleaned(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return character if _not_space.match(character) else " "


# --- the pieces of a word ---


def longest_match(
    word: str, vocabulary: Mapping[str, int], continuation: str = "##", longest: int | None = None
) -> list[str] | None:
    """The pieces of a word, each the longest of the vocabulary that fits; None where at some point none fits.

    Args:
        word: a word without spaces.
        vocabulary: the pieces, those that go on with `continuation` before them.
        continuation: the mark of a piece that goes on.
        longest: characters of the longest piece, to save looking for longer ones.

    >>> longest_match("unaffable", {"un": 0, "una": 1, "##aff": 2, "##ff": 3, "##able": 4})
    ['una', '##ff', '##able']
    >>> longest_match("unaffable", {"un": 0, "una": 1, "##aff": 2}) is None  # "un ##aff" was never tried
    True

    Source: Devlin et al. 2019; Wu et al. 2016, section 4.1, for the ## the other way round.
    """
    pieces, start = [], 0
    longest = len(word) + len(continuation) if longest is None else longest
    while start < len(word):
        mark = continuation if start else ""
        for end in range(min(len(word), start + longest), start, -1):
            piece = mark + word[start:end]
            if piece in vocabulary:
                pieces.append(piece)
                start = end
                break
        else:
            return None
    return pieces


def truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts to keep so that together they have `room`: the longer one loses first.

    As if one token at a time were taken off the end of the longer text. An odd one is left to the longer text, or to
    the second.

    >>> truncate_pair(10, 3, 8), truncate_pair(10, 9, 7), truncate_pair(2, 3, 8)
    ((5, 3), (4, 3), (2, 3))
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


# --- training ---


def learn_pieces(
    words: Mapping[str, int], pieces: Sequence[str], size: int, *, continuation: str = "##", min_count: int = 1
) -> list[str]:
    """Grow a list of pieces to `size` by joining, again and again, the two neighbours that occur most often.

    Among pairs that occur equally often the one whose first piece stands earlier in the list wins, then the one whose
    second does. It ends early when no pair occurs `min_count` times.

    Args:
        words: how often each word occurs.
        pieces: the list to begin with. A character joins in where it stands here, as the first of a word or, with the
            continuation mark, as a later one; a character that does not is passed over.
        size: how many pieces the list shall have.
        continuation: the mark of a piece that goes on.
        min_count: a pair that is rarer is not joined.

    >>> learn_pieces({"low": 5, "lower": 2}, ["l", "##o", "##w", "##e", "##r"], 9)
    ['l', '##o', '##w', '##e', '##r', 'lo', 'low', '##er', 'lower']

    Source: Sennrich et al. 2016, algorithm 1, on characters that carry the mark.
    """
    pieces = list(pieces)
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    spelled: list[list[int]] = []
    for word in words:
        symbols = [character if i == 0 else continuation + character for i, character in enumerate(word)]
        spelled.append([ids[symbol] for symbol in symbols if symbol in ids])
    counts = list(words.values())

    pair_counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, symbols_ in enumerate(spelled):
        for pair in pairwise(symbols_):
            pair_counts[pair] += counts[index]
            where[pair].add(index)
    # A heap of (-count, pair). Counts change after they are pushed: an entry that is out of date is pushed anew.
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    while len(pieces) < size and queue:
        negative, pair = heapq.heappop(queue)
        count = pair_counts[pair]
        if -negative != count:
            if count > 0:
                heapq.heappush(queue, (-count, pair))
            continue
        if count < max(1, min_count):
            break
        left, right = pair
        joined = pieces[left] + pieces[right].removeprefix(continuation)
        # What is in the list already, a special token of that name for one, keeps its one id.
        new = ids.setdefault(joined, len(pieces))
        if new == len(pieces):
            pieces.append(joined)
        changed = set()
        for index, before, after in _join(spelled, where.pop(pair), pair, new):
            for old in pairwise(before):
                pair_counts[old] -= counts[index]
            for fresh in pairwise(after):
                pair_counts[fresh] += counts[index]
                if new in fresh:
                    where[fresh].add(index)
                    changed.add(fresh)
        for fresh in changed:
            heapq.heappush(queue, (-pair_counts[fresh], fresh))
    return pieces


def _join(
    spelled: list[list[int]], places: set[int], pair: tuple[int, int], new: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """In the words at these places every such pair becomes one symbol, from left to right: place, before, after."""
    left, right = pair
    for place in places:
        before, after, i = spelled[place], [], 0
        while i < len(before):
            if before[i] == left and i + 1 < len(before) and before[i + 1] == right:
                after.append(new)
                i += 2
            else:
                after.append(before[i])
                i += 1
        spelled[place] = after
        yield place, before, after


# --- the tokenizer ---


class _Ids(dict[str, tuple[int, ...]]):
    """The ids of chunks of text, worked out when a chunk is first asked for."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = self._encode(chunk)
        if len(chunk) <= LONGEST_CACHED:
            if len(self) >= CACHE_SIZE:
                self.clear()
            self[chunk] = ids
        return ids


class WordPieceTokenizer:
    """BERT's tokenizer.

    Args:
        vocabulary: the tokens in the order of their ids, or token -> id with the ids 0 ... n - 1.
        lowercase: whether to lower-case the text.
        strip_accents: whether to strip accents; as `lowercase` unless given.
        split_cjk: whether each Chinese character is a word.
        clean_text: whether to remove control characters.
        unk: the token of a word that cannot be built.
        continuation: the mark of a piece that goes on.
        max_word_length: a word of more characters is unknown.
        special_tokens: the tokens that a text may name, as in "a [MASK] day"; those of them that are in the vocabulary.

    Raises:
        ValueError: a token stands twice, the ids have holes, or the vocabulary lacks the unknown token.

    >>> tokenizer = WordPieceTokenizer(["[UNK]", "[MASK]", "token", "##ize", "##s", "a", "中", "."])
    >>> tokenizer.tokens("Tokenizes a 中文 [MASK].")
    ['token', '##ize', '##s', 'a', '中', '[UNK]', '[MASK]', '.']
    >>> tokenizer.decode(tokenizer.encode("A token. Tokenizes."))
    'a token. tokenizes.'
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | Mapping[str, int],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_cjk: bool = True,
        clean_text: bool = True,
        unk: str = UNK,
        continuation: str = "##",
        max_word_length: int = 100,
        special_tokens: Sequence[str] = SPECIAL,
    ) -> None:
        self.vocabulary = _in_order(vocabulary)
        self._ids = {token: id_ for id_, token in enumerate(self.vocabulary)}
        if unk not in self._ids:
            raise ValueError(f"the vocabulary needs the token of unknown words: {unk!r} is not among {len(self._ids)}")
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.split_cjk = split_cjk
        self.clean_text = clean_text
        self.unk = unk
        self.continuation = continuation
        self.max_word_length = max_word_length
        self._longest = max(map(len, self.vocabulary))
        self.special_tokens = {token: self._ids[token] for token in special_tokens if token in self._ids}
        self._special = SpecialTokens(self.special_tokens)
        # Chunks are what may be encoded by itself, whatever stands beside it: words are cut at whitespace, at ASCII
        # punctuation and around Chinese characters in any case.
        alone = ASCII_PUNCTUATION + (CJK if split_cjk else "")
        self._chunks = re.compile(f"[^{SPACES}{alone}]+|[{alone}]")
        self._remembered = _Ids(self._encode_chunk)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        min_count: int = 1,
        limit_alphabet: int = 1000,
        special_tokens: Sequence[str] = SPECIAL,
        continuation: str = "##",
        **options: Any,
    ) -> WordPieceTokenizer:
        """A vocabulary for some texts: special tokens, characters, and what `learn_pieces` makes of them.

        The rule is that of byte-pair encoding: the most frequent pair is joined. So does the library `tokenizers`.
        The first WordPiece (Schuster and Nakajima 2012) joins the pair that raises the likelihood of the text most;
        Google never published the program. The library's vocabulary varies from run to run, for its ties depend on
        the order of a hash table; here ties go by code point, and the vocabulary by nothing but the texts.

        Args:
            texts: what to learn from.
            vocab_size: how many tokens; fewer where the texts have no more to join.
            min_count: a pair that is rarer is not joined.
            limit_alphabet: how many characters to keep, the most frequent ones; those that tie, by code point. The
                others are passed over, and unknown later.
            special_tokens: the first tokens; the unknown token has to be among them.
            continuation: the mark of a piece that goes on.
            **options: further arguments of the tokenizer.

        Raises:
            ValueError: one string was given instead of a list, the unknown token is not special, there is no word in
                the texts, or the vocabulary has no room for the characters.
        """
        if isinstance(texts, str):
            raise ValueError("give a list of texts: one string would be taken for a list of characters")
        unk = options.get("unk", UNK)
        if unk not in special_tokens:
            raise ValueError(f"the token of unknown words, {unk!r}, must be among special_tokens: got {special_tokens}")
        # Any vocabulary will do for cutting texts into words.
        cutter = cls([unk], special_tokens=special_tokens, continuation=continuation, **options)
        counts: Counter[str] = Counter()
        for text in texts:
            normal = cutter.normalise(text)
            counts.update(normal[start:end] for start, end in split_words(normal))
        characters: Counter[str] = Counter()
        for word, count in counts.items():
            for character in word:
                characters[character] += count
        # A lone surrogate is no character: no file in UTF-8 could hold it.
        known = [c for c in characters if not is_surrogate(c) and c not in special_tokens]
        alphabet = sorted(sorted(known, key=lambda character: (-characters[character], character))[:limit_alphabet])
        if not alphabet:
            raise ValueError("a vocabulary cannot be made from no words: give at least one text with a word in it")
        later = {character for word in counts for character in word[1:]}
        pieces = [
            *special_tokens,
            *alphabet,
            *(continuation + character for character in alphabet if character in later),
        ]
        if len(pieces) > vocab_size:
            raise ValueError(
                f"vocab_size must leave room for {len(special_tokens)} special tokens and {len(alphabet)} characters, "
                f"first and later in a word: {len(pieces)} in all, got {vocab_size}. Raise it, or lower limit_alphabet"
            )
        pieces = learn_pieces(counts, pieces, vocab_size, continuation=continuation, min_count=min_count)
        return cls(pieces, special_tokens=special_tokens, continuation=continuation, **options)

    # --- ids ---

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones counted."""
        return len(self.vocabulary)

    @property
    def pad_id(self) -> int:
        """The id of `[PAD]`, which fills up a batch."""
        return self.id_of(PAD)

    @property
    def unk_id(self) -> int:
        """The id of the token of unknown words."""
        return self.id_of(self.unk)

    @property
    def cls_id(self) -> int:
        """The id of `[CLS]`, which begins an input."""
        return self.id_of(CLS)

    @property
    def sep_id(self) -> int:
        """The id of `[SEP]`, which ends each text of an input."""
        return self.id_of(SEP)

    @property
    def mask_id(self) -> int:
        """The id of `[MASK]`, which hides a token."""
        return self.id_of(MASK)

    def id_of(self, token: str) -> int:
        """The id of a token.

        Raises:
            UnknownTokenError: it is not in the vocabulary.
        """
        try:
            return self._ids[token]
        except KeyError:
            raise UnknownTokenError(f"{token!r} is not among the {self.vocab_size} tokens of the vocabulary") from None

    # --- text -> ids ---

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[int]:
        """The ids of a text, without `[CLS]` and `[SEP]`.

        Args:
            text: any text, also an empty one.
            allowed_special: the special tokens that may be found in the text. With (), "[MASK]" is a word between
                brackets: for text from strangers.

        Raises:
            ValueError: allowed_special names something that is no special token.
        """
        parts = self._special.split(text, allowed_special)
        ids = self._encode_plain(parts[0])
        for special, plain in zip(parts[1::2], parts[2::2], strict=True):
            ids.append(self._ids[special])
            ids += self._encode_plain(plain)
        return ids

    def encode_pair(
        self,
        first: str,
        second: str | None = None,
        *,
        max_length: int | None = None,
        allowed_special: Collection[str] | Literal["all"] = "all",
    ) -> tuple[list[int], list[int]]:
        """What BERT reads: the ids of `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`, and their segments.

        Args:
            first: the text of segment 0, which `[CLS]` and the first `[SEP]` belong to.
            second: the text of segment 1, which the last `[SEP]` belongs to.
            max_length: the most ids; what is too much goes as in `truncate_pair`, off the ends of the texts.
            allowed_special: as in `encode`.

        Raises:
            ValueError: not even the special tokens fit into max_length.
        """
        added = 2 if second is None else 3
        if max_length is not None and max_length < added:
            raise ValueError(f"the special tokens alone are {added}: got max_length={max_length}")
        a, b = (
            self.encode(first, allowed_special=allowed_special),
            [] if second is None else self.encode(second, allowed_special=allowed_special),
        )
        if max_length is not None:
            keep_a, keep_b = truncate_pair(len(a), len(b), max_length - added)
            a, b = a[:keep_a], b[:keep_b]
        ids = [self.cls_id, *a, self.sep_id]
        segments = [0] * len(ids)
        if second is not None:
            ids += [*b, self.sep_id]
            segments += [1] * (len(b) + 1)
        return ids, segments

    def encode_with_offsets(
        self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all"
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and for each where it stands: `text[start:end]`, accents and capitals as they were.

        The ids are those of `encode`. What the normaliser drops at the edge of a token is not in its span.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for i, part in enumerate(self._special.split(text, allowed_special)):
            if i % 2:  # plain and special parts in turn
                ids.append(self._ids[part])
                offsets.append((start, start + len(part)))
            else:
                for word, origin in self._aligned_words(part):
                    for piece, begin, end in self._pieces(word):
                        ids.append(self._ids[piece])
                        offsets.append((start + origin[begin], start + origin[end - 1] + 1))
            start += len(part)
        return ids, offsets

    def tokens(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all") -> list[str]:
        """The tokens of a text, as strings."""
        return [self.vocabulary[id_] for id_ in self.encode(text, allowed_special=allowed_special)]

    def words(self, text: str) -> list[tuple[str, int, int]]:
        """The words of a text, normalised, each with where it stands in the text as it was given.

        >>> WordPieceTokenizer(["[UNK]"]).words("Café 中文!")
        [('cafe', 0, 4), ('中', 5, 6), ('文', 6, 7), ('!', 7, 8)]
        """
        return [(word, origin[0], origin[-1] + 1) for word, origin in self._aligned_words(text)]

    def normalise(self, text: str) -> str:
        """What the words are cut from: the text after the normaliser."""
        if self.clean_text:
            text = clean_text(text)
        if self.split_cjk:
            text = space_cjk(text)
        if self.lowercase if self.strip_accents is None else self.strip_accents:
            text = strip_accents(text)
        return lowercase(text) if self.lowercase else text

    # --- ids -> text ---

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False, clean_up: bool = True) -> str:
        """The text of a sequence of ids: pieces joined to words, words with a space between.

        Case, accents, and which spaces there were, do not come back.

        Args:
            ids: ids.
            skip_special_tokens: whether special tokens are left out, the unknown one too.
            clean_up: whether there is no space before . ? ! , and a few English endings that are one token.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        parts: list[str] = []
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise UnknownTokenError(f"ids run from 0 to {self.vocab_size - 1}: got {id_}")
            token = self.vocabulary[id_]
            if skip_special_tokens and token in self.special_tokens:
                continue
            if not parts or (clean_up and token.startswith(NO_SPACE_BEFORE)):
                parts.append(token)
            elif token.startswith(self.continuation):
                parts.append(token.removeprefix(self.continuation))
            else:
                parts.append(" " + token)
        return "".join(parts)

    # --- files ---

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it.

        It has that package add `[CLS]` and `[SEP]` if they are in the vocabulary.
        """
        processor = None
        if CLS in self._ids and SEP in self._ids:
            processor = {"type": "BertProcessing", "sep": [SEP, self.sep_id], "cls": [CLS, self.cls_id]}
        normalizer = {
            "type": "BertNormalizer",
            "clean_text": self.clean_text,
            "handle_chinese_chars": self.split_cjk,
            "strip_accents": self.strip_accents,
            "lowercase": self.lowercase,
        }
        model = {
            "type": "WordPiece",
            "unk_token": self.unk,
            "continuing_subword_prefix": self.continuation,
            "max_input_chars_per_word": self.max_word_length,
            "vocab": self._ids,
        }
        components = {
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": processor,
            "decoder": {"type": "WordPiece", "prefix": self.continuation, "cleanup": True},
            "model": model,
        }
        return as_json(self._ids, self._special, components)

    @classmethod
    def from_json(cls, text: str) -> WordPieceTokenizer:
        """The tokenizer that a `tokenizer.json` describes. Its truncation, padding and post-processor are not read.

        Raises:
            ValueError: it is no WordPiece, or asks for something that this class does not do. The message names it.
        """
        content, special = from_json(
            text, model="WordPiece", normalizer="BertNormalizer", pre_tokenizer="BertPreTokenizer"
        )
        model, normalizer = content["model"], content["normalizer"]
        return cls(
            special | model["vocab"],  # an added token need not be in the model's own vocabulary
            lowercase=normalizer["lowercase"],
            strip_accents=normalizer["strip_accents"],
            split_cjk=normalizer["handle_chinese_chars"],
            clean_text=normalizer["clean_text"],
            unk=model["unk_token"],
            continuation=model["continuing_subword_prefix"],
            max_word_length=model["max_input_chars_per_word"],
            special_tokens=list(special),
        )

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> WordPieceTokenizer:
        """Read a `tokenizer.json`. Errors are those of `from_json`, and OSError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_vocabulary(self, path: str | Path) -> Path:
        """Write BERT's `vocab.txt`, one token a line, in the order of ids; returns its path."""
        return write_whole(path, "".join(token + "\n" for token in self.vocabulary))

    @classmethod
    def load_vocabulary(cls, path: str | Path, **options: Any) -> WordPieceTokenizer:
        """The tokenizer of a `vocab.txt`. What the file does not say (`lowercase`, for one) are arguments."""
        # Not splitlines(): a line separator of Unicode may stand in a token.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        return cls(lines if lines[-1] else lines[:-1], **options)

    # --- inside ---

    def _encode_plain(self, text: str) -> list[int]:
        # A dict, map and chain: no line of Python is run for a chunk that has been met.
        return list(chain.from_iterable(map(self._remembered.__getitem__, self._chunks.findall(text))))

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        text = self.normalise(chunk)
        return tuple(
            self._ids[piece] for start, end in split_words(text) for piece, _, _ in self._pieces(text[start:end])
        )

    def _pieces(self, word: str) -> list[tuple[str, int, int]]:
        """The pieces of a word, each with its place in it."""
        pieces = None
        if len(word) <= self.max_word_length:
            pieces = longest_match(word, self._ids, self.continuation, self._longest)
        if pieces is None:
            return [(self.unk, 0, len(word))]
        lengths = [len(piece) - (len(self.continuation) if i else 0) for i, piece in enumerate(pieces)]
        return [(piece, end - n, end) for piece, n, end in zip(pieces, lengths, accumulate(lengths), strict=True)]

    def _aligned_words(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word with, for each of its characters, the position of the character of the text that it comes from."""
        normal = self.normalise(text)
        # Character by character the normaliser gives the same, but for the order of marks on one letter.
        lengths = {character: len(self.normalise(character)) for character in set(text)}
        origin = [i for i, character in enumerate(text) for _ in range(lengths[character])]
        return [(normal[start:end], origin[start:end]) for start, end in split_words(normal)]


def _in_order(vocabulary: Sequence[str] | Mapping[str, int]) -> list[str]:
    if isinstance(vocabulary, Mapping):
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        ids = [vocabulary[token] for token in tokens]
        if ids != list(range(len(ids))):
            raise ValueError(f"{len(ids)} tokens must have the ids 0 to {len(ids) - 1}, each once: got other ids")
        return tokens
    if isinstance(vocabulary, str) or len(set(vocabulary)) != len(vocabulary):
        raise ValueError("the vocabulary must be a list in which each token stands once")
    return list(vocabulary)
