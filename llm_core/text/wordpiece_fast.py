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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import regex

from llm_core.files import write_whole
from llm_core.text import components, decoders, pretokenisers, tokenizer_json
from llm_core.text.decoders import Decoder, as_text, with_spaces
from llm_core.text.framing import PLAIN_FRAMING, Framing, bert_template
from llm_core.text.normalisers import BertNormalizer
from llm_core.text.pretokenize import split_words
from llm_core.text.remembered import Remembered
from llm_core.text.special import AddedToken, SpecialTokens
from llm_core.text.streaming import Cuts, encode_bits
from llm_core.text.tokenizer import Vocabulary
from llm_core.text.unicode_tables import ASCII_PUNCTUATION, CJK, SPACES, is_surrogate
from llm_core.text.wordpiece import CLS, MASK, PAD, SEP, SPECIAL, UNK
from llm_core.text.wordpiece_matching import longest_match
from llm_core.text.wordpiece_training import learn_pieces

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
        added_tokens: tokens that are found in the same way and are text like any other.
        more_tokens: special or added tokens that are no pieces: no word is built of them. Their ids come after those
            of the vocabulary.
        decoder: how tokens become text, one of `decoders`; None: joined as `continuation` says, and cleaned up.
        framing: the special tokens around a text, the most ids, and what fills them up; None: `[CLS]` and `[SEP]`,
            where they are in the vocabulary.

    Raises:
        ValueError: a token stands twice, the ids have holes, the vocabulary lacks the unknown token, a special token
            is empty or to be looked for in the normalised text.

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
        special_tokens: Sequence[str | AddedToken] = SPECIAL,
        added_tokens: Sequence[str | AddedToken] = (),
        more_tokens: Sequence[str] = (),
        decoder: Decoder | None = None,
        framing: Framing | None = None,
    ) -> None:
        pieces = Vocabulary(vocabulary)
        n = len(pieces)
        if pieces.size != n:
            raise ValueError(f"{n} tokens must have the ids 0 to {n - 1}, each once: got other ids")
        if unk not in pieces:
            raise ValueError(f"the vocabulary needs the token of unknown words: {unk!r} is not among {n}")
        self.vocabulary = Vocabulary([*pieces, *more_tokens])
        self._ids = self.vocabulary.ids
        self._of_pieces = pieces.ids
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.split_cjk = split_cjk
        self.clean_text = clean_text
        self.unk = unk
        self.continuation = continuation
        self.max_word_length = max_word_length
        self._normalise = BertNormalizer(clean_text, split_cjk, strip_accents, lowercase)
        self._longest = max(map(len, pieces))
        self._special = SpecialTokens(
            [token for token in special_tokens if _name(token) in self._ids],
            always=[token for token in added_tokens if _name(token) in self._ids],
        )
        for token in self._special.tokens.values():
            if token.normalized:
                raise ValueError(f"normalized must be false: {token.content!r} is looked for in the text as it stands")
        self.special_tokens = {token: self._ids[token] for token in self._special.names}
        self.decoder = decoders.WordPiece(continuation, cleanup=True) if decoder is None else decoder
        if framing is None:
            known = CLS in self._ids and SEP in self._ids
            framing = Framing(bert_template(self.cls_id, self.sep_id)) if known else PLAIN_FRAMING
        self.framing = framing
        # Chunks are what may be encoded by itself, whatever stands beside it: words are cut at whitespace, at ASCII
        # punctuation and around Chinese characters in any case.
        alone = ASCII_PUNCTUATION + (CJK if split_cjk else "")
        self._chunks = re.compile(f"[^{SPACES}{alone}]+|[{alone}]")
        self._between_chunks = regex.compile(rf"(?r)(?<=\S)(?=[{SPACES}{alone}])|(?<=[{alone}])(?=\S)")
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
            allowed_special: the special tokens that may be found in the text. With (), "[MASK]" is a word between
                brackets: for text from strangers.
            add_special_tokens: whether those of `framing` are put around it, `[CLS]` and `[SEP]` for BERT.

        Raises:
            ValueError: allowed_special names something that is no special token.
        """
        return self.framing.ids(self._text_ids(text, allowed_special), add_special_tokens=add_special_tokens)

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
            max_length: the most ids, in place of what `framing` says; what is too much goes as in `truncate_pair`,
                off the ends of the texts.
            allowed_special: as in `encode`.

        Raises:
            ValueError: not even the special tokens fit into max_length.
        """
        a = self._text_ids(first, allowed_special)
        b = None if second is None else self._text_ids(second, allowed_special)
        return self.framing.limited_to(max_length).frame(a, b, add_special_tokens=True)

    def encode_iterable(
        self, texts: Iterable[str], *, allowed_special: Collection[str] | Literal["all"] = "all"
    ) -> Iterator[int]:
        """The ids of a text that comes bit by bit, such as an open file: what `encode` gives for all of it, joined.

        Where the bits begin and end makes no difference. Ids come as soon as nothing that follows can change them: no
        more of the text is kept than some thousand characters, or the longest run without a space, an ASCII sign or a
        Chinese character. With a longest length in `framing`, or tokens that take the spaces behind them, that is the
        whole text.

        Args:
            texts: the bits of one text. Texts that do not belong together are encoded one by one.
            allowed_special: see `encode`.

        Raises:
            ValueError: one string is given, which would be taken for its characters, or as for `encode`.
        """
        encode = partial(self.encode, allowed_special=allowed_special)
        cuts = Cuts(self._between_chunks, self._special, allowed_special) if self.framing.only_adds else Cuts(None)
        return encode_bits(texts, encode, cuts)

    def with_special_tokens(self, special_tokens: Iterable[str]) -> WordPieceTokenizer:
        """This tokenizer with more special tokens; what is there already keeps its id.

        A name that is a token becomes special under the id that it has, and new ones get the ids after the last: this
        is what `add_special_tokens` does in the package tokenizers. A model needs a row for each new id (`vocab_size`).

        Raises:
            ValueError: a name is empty, or one string is given.

        >>> tokenizer = WordPieceTokenizer(["[UNK]", "low"]).with_special_tokens(["[E1]"])
        >>> tokenizer.encode("low [E1]"), tokenizer.vocab_size
        ([1, 2], 3)
        """
        more = self._special.with_more(special_tokens, self.vocabulary)
        tokens = [*self.vocabulary, *more.new]
        return WordPieceTokenizer(
            self._of_pieces,
            lowercase=self.lowercase,
            strip_accents=self.strip_accents,
            split_cjk=self.split_cjk,
            clean_text=self.clean_text,
            unk=self.unk,
            continuation=self.continuation,
            max_word_length=self.max_word_length,
            special_tokens=more.special,
            added_tokens=more.others,
            more_tokens=tokens[len(self._of_pieces) :],
            decoder=self.decoder,
            framing=self.framing,
        )

    def encode_with_offsets(
        self, text: str, *, allowed_special: Collection[str] | Literal["all"] = "all"
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and for each where it stands: `text[start:end]`, accents and capitals as they were.

        The ids are those of `encode`, before any truncation and padding. What the normaliser drops at the edge of a
        token is not in its span.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for i, (part, start, stop) in enumerate(self._special.spans(text, allowed_special)):
            if i % 2:  # plain and special parts in turn
                ids.append(self._ids[part])
                offsets.append((start, stop))
            else:
                for word, origin in self._aligned_words(part):
                    for piece, begin, end in self._pieces(word):
                        ids.append(self._ids[piece])
                        offsets.append((start + origin[begin], start + origin[end - 1] + 1))
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
        return self._normalise(text)

    # --- ids -> text ---

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False, clean_up: bool | None = None) -> str:
        """The text of a sequence of ids: pieces joined to words, words with a space between.

        Case, accents, and which spaces there were, do not come back.

        Args:
            ids: ids.
            skip_special_tokens: whether special tokens are left out, the unknown one too.
            clean_up: whether there is no space before . ? ! , and a few English endings that are one token; None: as
                `decoder` says.

        Raises:
            UnknownTokenError: an id is outside 0 ... vocab_size - 1.
        """
        tokens = self.vocabulary.tokens_of(ids)
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in self.special_tokens]
        if clean_up is None:
            return as_text(tokens, self.decoder)
        return as_text(tokens, decoders.WordPiece(self.continuation, clean_up))

    # --- files ---

    def to_json(self) -> str:
        """What a `tokenizer.json` of this tokenizer holds: the package tokenizers gives the same ids with it.

        It has that package add the special tokens of `framing`, `[CLS]` and `[SEP]` for BERT.
        """
        model = {
            "type": "WordPiece",
            "unk_token": self.unk,
            "continuing_subword_prefix": self.continuation,
            "max_input_chars_per_word": self.max_word_length,
            "vocab": self._of_pieces,
        }
        parts = {
            "normalizer": components.write(self._normalise),
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": None if self.decoder is with_spaces else components.write(self.decoder),
            "model": model,
        }
        return tokenizer_json.as_json(self.vocabulary, self._special, parts, self.framing)

    @classmethod
    def from_json(cls, text: str, *, ignore: Collection[str] = ()) -> WordPieceTokenizer:
        """The tokenizer that a `tokenizer.json` describes.

        Args:
            text: what the file holds.
            ignore: "truncation" or "padding", to leave out what the file says about the length of an input.

        Raises:
            ValueError: it is no WordPiece, or asks for something that this class does not do. The message names it.
        """
        parts = tokenizer_json.read_parts(text, "WordPiece", ignore)
        normaliser = parts.normaliser
        for name, part, expected in (
            ("normalizer", normaliser, BertNormalizer),
            ("pre_tokenizer", parts.pre_tokeniser, pretokenisers.BertPreTokenizer),
        ):
            tokenizer_json.expect(f"{name}.type", part and components.name_of(part), [expected.__name__])
        for token in (*parts.special, *parts.others):
            tokenizer_json.expect(f"normalized of the added token {token.content!r}", token.normalized, [False])
        unk = parts.setting("unk_token", str)
        if unk not in parts.model["vocab"]:
            components.refuse("model.unk_token", "a token of model.vocab", unk)
        with tokenizer_json.reading("WordPiece"):
            return cls(
                parts.model["vocab"],
                lowercase=normaliser.lowercase,
                strip_accents=normaliser.strip_accents,
                split_cjk=normaliser.handle_chinese_chars,
                clean_text=normaliser.clean_text,
                unk=unk,
                continuation=parts.setting("continuing_subword_prefix", str),
                max_word_length=parts.setting("max_input_chars_per_word", int),
                special_tokens=parts.special,
                added_tokens=parts.others,
                more_tokens=[token for token in parts.vocabulary if token not in parts.model["vocab"]],
                decoder=with_spaces if parts.decoder is None else parts.decoder,
                framing=parts.framing,
            )

    def save(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`; returns its path. A file of that name is replaced once the new one is complete."""
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path, *, ignore: Collection[str] = ()) -> WordPieceTokenizer:
        """Read a `tokenizer.json`. Arguments and errors are those of `from_json`, and OSError."""
        return tokenizer_json.load(path, partial(cls.from_json, ignore=ignore))

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

    def _text_ids(self, text: str, allowed_special: Collection[str] | Literal["all"]) -> list[int]:
        parts = self._special.split(text, allowed_special)
        ids = self._encode_plain(parts[0])
        for special, plain in zip(parts[1::2], parts[2::2], strict=True):
            ids.append(self._ids[special])
            ids += self._encode_plain(plain)
        return ids

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
            pieces = longest_match(word, self._of_pieces, self.continuation, self._longest)
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


def _name(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content
