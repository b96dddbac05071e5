"""Text that comes bit by bit: ids become text while they are generated, and text becomes ids while it is read.

Ids first, id after id, and no half characters.

A character may be spread over several tokens (an emoji takes four bytes), so the text of a token alone can be a piece
of a character, which decodes to U+FFFD, the replacement character. A stream holds such an end back until the rest has
come:

    ids pushed        their text     handed out
    Hi                Hi             Hi
    Hi F0 9F          Hi\ufffd
    Hi F0 9F 98 80    Hi😀           😀

It works with every tokenizer, since all it needs is `decode`.

The other way, a text is cut where no token can reach across, whatever follows (`Cuts`). Between "the" and " end" is
such a place; after "I'r" is none, since an "e" may follow and "'re" is one piece. The tokenizers' `encode_iterable`
stands on this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any, Literal

import regex

from llm_core.text import normalisers, pretokenisers
from llm_core.text.normalisers import Normaliser
from llm_core.text.precompiled import Nmt, Precompiled
from llm_core.text.pretokenisers import PreTokeniser
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, SPACE, WHITESPACE, Split
from llm_core.text.special import SpecialTokens
from llm_core.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"

ENOUGH = 2**13  # so many characters are looked through for a cut at once
AT_SPACES = regex.compile(r"(?r)(?<=\S)(?=\s)")  # (?r): the last one is found first
# In the published patterns a piece may go on from a word into line breaks, and into an apostrophe. It never goes on
# into a space or another mark, nor from a single line break into a letter.
_IN_PROSE = regex.compile(r"(?r)(?<=\S)(?= )|(?<=\p{L})(?=[^\s\p{L}\p{N}\p{M}'’])|(?<=\S\n)(?=\p{L})")
_PLACES = {split.pattern: _IN_PROSE for split in (GPT2, DIGITS_THEN_GPT2, CL100K, O200K)}
_PLACES[WHITESPACE.pattern] = AT_SPACES
_AT_PLAIN_SPACES = regex.compile(r"(?r)(?<=\S)(?= )")
# All of the above have a cut here, and no normaliser looks across that goes from character to character or from
# grapheme to grapheme.
_BETWEEN_WORDS = regex.compile(r"(?r)(?<=[\p{L}\p{N}\p{P}])(?<!\p{GCB=Prepend})(?= [\p{L}\p{N}])")
_LOCAL = (
    normalisers.NFC, normalisers.NFD, normalisers.NFKC, normalisers.NFKD, normalisers.Lowercase,
    normalisers.StripAccents, Nmt, Precompiled,
)  # fmt: skip
_ONE_SPACE = {"Regex": " {2,}"}  # what sentencepiece makes one space of


class StreamDecoder:
    """Decodes ids as they come. What it hands out, joined, is what `decode` makes of all ids at once.

    This asks one thing of the tokenizer: text that ends without U+FFFD stays as it is, whatever ids follow.

    >>> from llm_core.text.words import WordTokenizer
    >>> tokenizer = WordTokenizer.train(["I love books."])
    >>> stream = StreamDecoder(tokenizer)
    >>> [stream.push(id_) for id_ in tokenizer.encode("I love books.")], stream.finish()
    (['I', ' love', ' books', '.'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # as few of the last ids as will do, so that the work for a token stays the same
        self._n_before = 0  # how many of them are only there because some tokenizers look at the token before
        self._text = ""  # what has been handed out of their text

    def push(self, id_: int) -> str:
        """Take one more id; returns the text that it completes, often of one token, sometimes none."""
        self._ids.append(id_)
        text = self._tokenizer.decode(self._ids)
        complete = text.rstrip(_REPLACEMENT)
        new = complete[len(self._text) :]
        if new:
            self._text = complete
        if new and complete == text:
            self._ids = self._ids[self._n_before :]
            self._n_before = len(self._ids)
            self._text = self._tokenizer.decode(self._ids)
        return new

    def finish(self) -> str:
        """The end of the text: what was held back, in which U+FFFD stands for what never became a character.

        The decoder is as new afterwards.
        """
        rest = self._tokenizer.decode(self._ids)[len(self._text) :]
        self._ids, self._n_before, self._text = [], 0, ""
        return rest


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they come, in pieces that are not empty.

    >>> from llm_core.text.characters import CharacterTokenizer
    >>> list(decode_stream(CharacterTokenizer("ab"), [0, 1, 1]))
    ['a', 'b', 'b']
    """
    decoder = StreamDecoder(tokenizer)
    for id_ in ids:
        if text := decoder.push(id_):
            yield text
    if text := decoder.finish():
        yield text


class Cuts:
    """Cuts a text that comes bit by bit into parts; encoded one by one, they give the ids of the whole text.

    Args:
        places: what finds a place between two characters that no token can reach across, the last one first. None:
                there is no such place.
        special: the tokens that are never taken apart: before one is a place too, and within one is none. Where it
            depends on what follows whether there is one, a text is not cut at all.
        allowed: which of the special ones are looked for, as in `SpecialTokens.split`.

    Raises:
        ValueError: as for `SpecialTokens.split`.

    >>> cuts = Cuts(AT_SPACES)
    >>> "".join(cuts.parts(["to be o", "r not"]))
    'to be or not'
    """

    def __init__(
        self,
        places: regex.Pattern[str] | None,
        special: SpecialTokens | None = None,
        allowed: Collection[str] | Literal["all"] = "all",
    ) -> None:
        if special:
            special.spans("", allowed)  # its errors
            if not special.found_at_once:
                places = special = None
        self.places, self.special, self.allowed = places, special, allowed
        self.longest = max(map(len, special.tokens), default=0) if special else 0

    def parts(self, texts: Iterable[str]) -> Iterator[str]:
        """The parts of the joined texts, none of them empty."""
        held: list[str] = []
        size, enough = 0, ENOUGH
        for text in texts:
            held.append(text)
            size += len(text)
            if size >= enough:
                joined = "".join(held)
                cut = self.last(joined)
                if cut:
                    yield joined[:cut]
                held, size = [joined[cut:]], len(joined) - cut
                enough = max(ENOUGH, 2 * size)  # without a cut: not again before there is twice as much
        if size:
            yield "".join(held)

    def last(self, text: str) -> int:
        """The last place of a text where it can be cut, whatever follows; 0 if there is none."""
        decided = len(text) - self.longest  # what begins here or before would be all there
        place = self.places and self.places.search(text, 0, max(decided, 0))
        cut = place.start() if place else 0
        for token, start, end in self.special.spans(text, self.allowed)[1::2] if self.special else ():
            if end - len(token) <= decided and end > cut:
                cut = start
        return cut


def places_of(split: PreTokeniser, normaliser: Normaliser | None = None) -> regex.Pattern[str] | None:
    """What finds the last place where a text can be cut before all of it is there.

    None, there is no such place: for a `Split` of your own, and a normaliser that might look across a space.
    """
    if isinstance(split, Split):
        places = _PLACES.get(split.pattern) if split == Split(split.pattern, split.covers) else None
    else:
        places = _AT_PLAIN_SPACES if _cuts_at_spaces(split) else None
    if normaliser is None or places is None:
        return places
    return _BETWEEN_WORDS if _is_local(normaliser) and normaliser(" a").startswith((" ", SPACE)) else None


def _cuts_at_spaces(split: Any) -> bool:
    """Whether a pre-tokeniser cuts before every plain space, and has no other word for the beginning of a text."""
    if isinstance(split, pretokenisers.InTurn):
        first, rest = split.steps[:1], split.steps[1:]
        return first == (pretokenisers.WhitespaceSplit(),) and all(
            isinstance(step, pretokenisers.Metaspace) and step.prepend_scheme != "first" for step in rest
        )
    return isinstance(split, pretokenisers.Metaspace) and split.split


def _is_local(normaliser: Any) -> bool:
    if isinstance(normaliser, normalisers.InTurn):
        return all(map(_is_local, normaliser.steps))
    if isinstance(normaliser, normalisers.Replace):
        return normaliser.pattern == _ONE_SPACE and normaliser.content in (" ", SPACE)
    return isinstance(normaliser, _LOCAL) or normaliser == normalisers.Strip(strip_left=False, strip_right=True)


def encode_bits(texts: Iterable[str], encode: Callable[[str], Iterable[int]], cuts: Cuts) -> Iterator[int]:
    """The ids of a text that comes bit by bit: what a tokenizer's `encode` gives for all of it, joined.

    Args:
        texts: the bits.
        encode: the ids of a text.
        cuts: where it can be cut.

    Raises:
        ValueError: one string is given, which would be taken for its characters.
    """
    if isinstance(texts, str):
        raise ValueError("give a list of texts or an open file: one string is encoded by `encode`")
    return chain.from_iterable(map(encode, cuts.parts(texts)))
