"""Text while it is being generated: id after id, and no half characters.

A character may be spread over several tokens (an emoji takes four bytes), so the text of a token alone can be a piece
of a character, which decodes to U+FFFD, the replacement character. A stream holds such an end back until the rest has
come:

    ids pushed        their text     handed out
    Hi                Hi             Hi
    Hi F0 9F          Hi\ufffd
    Hi F0 9F 98 80    Hi😀           😀

It works with every tokenizer, since all it needs is `decode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llm_core.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


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
