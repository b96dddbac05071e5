"""WordPiece, quickly: the ids of the first rung, `wordpiece`, for real work, with all that BERT's tokenizer does.

    text    "The Cafés’ tokenizer"
    normal  "the cafes’ tokenizer"                clean, space out Chinese, strip accents, lower-case
    words   the | cafes | ’ | tokenizer           cut at whitespace and around punctuation
    pieces  the | cafes | ’ | token ##izer        greedy: longest match first, ## where a piece goes on

`wordpiece.SimpleWordPiece` is the one to read first. What comes on top of it here: the ids of what has been met are
remembered, for text repeats itself so much that looking up beats matching; special tokens in a text, pairs of texts,
offsets, options, and files. Training is in `wordpiece_training`.

Everything is BERT's (Devlin et al. 2019), in the version of the library `tokenizers`: same words, same ids, same
offsets; `unicode_tables` says where Python's own tables may differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

from llm_core.files import write_whole
from llm_core.text import normalise, tokenizer_json
from llm_core.text.pretokenize import split_words
from llm_core.text.remembered import Remembered
from llm_core.text.special import SpecialTokens
from llm_core.text.tokenizer import Vocabulary
from llm_core.text.unicode_tables import ASCII_PUNCTUATION, CJK, SPACES, is_surrogate
from llm_core.text.wordpiece import CLS, MASK, PAD, SEP, SPECIAL, UNK
from llm_core.text.wordpiece_matching import longest_match, truncate_pair
from llm_core.text.wordpiece_training import learn_pieces

# Beginnings of tokens that the library's decoder puts no space before.
NO_SPACE_BEFORE = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")

CACHE_SIZE = 2**18  # chunks of text whose ids are remembered; then it begins anew
LONGEST_CACHED = 100  # characters


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
        vocabulary: Vocabulary | Sequence[str] | Mapping[str, int],
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
        self.vocabulary = Vocabulary(vocabulary)
        self._ids = self.vocabulary.ids
        n = len(self.vocabulary)
        if self.vocabulary.size != n:
            raise ValueError(f"{n} tokens must have the ids 0 to {n - 1}, each once: got other ids")
        if unk not in self._ids:
            raise ValueError(f"the vocabulary needs the token of unknown words: {unk!r} is not among {n}")
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
        self._remembered = Remembered(self._encode_chunk, size=CACHE_SIZE, longest=LONGEST_CACHED)

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
        return self.vocabulary.size

    @property
    def pad_id(self) -> int:
        """The id of `[PAD]`, which fills up a batch."""
        return self.vocabulary.id_of(PAD)

    @property
    def unk_id(self) -> int:
        """The id of the token of unknown words."""
        return self.vocabulary.id_of(self.unk)

    @property
    def cls_id(self) -> int:
        """The id of `[CLS]`, which begins an input."""
        return self.vocabulary.id_of(CLS)

    @property
    def sep_id(self) -> int:
        """The id of `[SEP]`, which ends each text of an input."""
        return self.vocabulary.id_of(SEP)

    @property
    def mask_id(self) -> int:
        """The id of `[MASK]`, which hides a token."""
        return self.vocabulary.id_of(MASK)

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
        return self.vocabulary.tokens_of(self.encode(text, allowed_special=allowed_special))

    def words(self, text: str) -> list[tuple[str, int, int]]:
        """The words of a text, normalised, each with where it stands in the text as it was given.

        >>> WordPieceTokenizer(["[UNK]"]).words("Café 中文!")
        [('cafe', 0, 4), ('中', 5, 6), ('文', 6, 7), ('!', 7, 8)]
        """
        return [(word, origin[0], origin[-1] + 1) for word, origin in self._aligned_words(text)]

    def normalise(self, text: str) -> str:
        """What the words are cut from: the text after the normaliser."""
        if self.clean_text:
            text = normalise.clean_text(text)
        if self.split_cjk:
            text = normalise.space_cjk(text)
        if self.lowercase if self.strip_accents is None else self.strip_accents:
            text = normalise.strip_accents(text)
        return normalise.lowercase(text) if self.lowercase else text

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
        for token in self.vocabulary.tokens_of(ids):
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
        return tokenizer_json.as_json(self.vocabulary, self._special, components)

    @classmethod
    def from_json(cls, text: str) -> WordPieceTokenizer:
        """The tokenizer that a `tokenizer.json` describes. Its truncation, padding and post-processor are not read.

        Raises:
            ValueError: it is no WordPiece, or asks for something that this class does not do. The message names it.
        """
        content, special = tokenizer_json.read_components(
            text, model="WordPiece", normalizer="BertNormalizer", pre_tokenizer="BertPreTokenizer"
        )
        with tokenizer_json.reading("WordPiece"):
            model, normalizer = content["model"], content["normalizer"]
            return cls(
                tokenizer_json.with_added(model["vocab"], special),
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
        return tokenizer_json.load(path, cls.from_json)

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
