"""Generation of text: a string goes in, strings come out while the model writes.

Tokens are not pieces of text. A token may hold half a character, and a stop string may begin in one token and end in
another. So a piece is handed out as soon as no later token can change it, and no sooner:

    held back                                       until
    an unfinished character at the end              its last byte comes (`StreamDecoder`)
    what could be the beginning of a stop string    it turns out to be one, or not

Joined, the pieces are what one gets by decoding all tokens at the end and cutting at the stop string. They continue
the prompt as it stands: where words are joined by a space, the first piece begins with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch

from llm_core.generation.adjust import Adjust, Forbid, in_turn
from llm_core.generation.generate import Choose, LanguageModel, Step, steps, stop_ids
from llm_core.generation.sampling import greedy
from llm_core.text.streaming import StreamDecoder
from llm_core.text.tokenizer import Tokenizer


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop: str | Sequence[str] = (),
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[str]:
    """The text that continues the prompt, piece by piece; no piece is empty.

    Args:
        tokenizer: the one that the model was trained with. Ids that it has no token for are never chosen.
        stop: strings that end the text. The one that is complete first does, the longest if several are at once.
        stop_id: tokens that end the text. Neither stop strings nor stop tokens are part of it.
        model, max_new_tokens, choose, adjust, generator, use_cache: as in `stream`.

    Raises:
        ValueError: the tokenizer knows more tokens than the model, the prompt or a stop string is no text, a stop
            string is empty, or see `stream`. Raised by the call itself, before any work is done.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {model.vocab_size}: "
            "take the tokenizer that the model was trained with"
        )
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt is text: got a {type(prompt).__name__}. generate takes ids")
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(text, str) for text in stops):
        raise ValueError(f"stop strings are text, one or several: got {stop!r}. Ids that end the text are stop_id")
    if "" in stops:
        raise ValueError(f"an empty stop string stands everywhere, so nothing could be written: got {stops}")
    stop_tokens = stop_ids(model, stop_id)
    ids = tokenizer.encode(prompt)
    written = steps(
        model,
        [ids],
        max_new_tokens,
        choose=choose,
        adjust=known_only(tokenizer, model.vocab_size, stop_tokens, adjust),
        generator=generator,
        use_cache=use_cache,
    )
    return _pieces(TextWriter(tokenizer, ids, stops, stop_tokens), written)


def generate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    adjust: Adjust | None = None,
    stop: str | Sequence[str] = (),
    stop_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> str:
    """The text that continues the prompt, without the prompt. Arguments and errors are those of `stream_text`."""
    return "".join(
        stream_text(
            model,
            tokenizer,
            prompt,
            max_new_tokens,
            choose=choose,
            adjust=adjust,
            stop=stop,
            stop_id=stop_id,
            generator=generator,
            use_cache=use_cache,
        )
    )


class TextWriter:
    """A text that is written id by id: it takes ids and hands out what is certain.

    Args:
        prompt: the ids that it continues. Their end may have its say in the text: a space between words.
        stops: strings that end the text.
        stop_ids: tokens that end it. Neither is part of the text.

    >>> from llm_core.text.characters import CharacterTokenizer
    >>> tokenizer = CharacterTokenizer("abcd.")
    >>> writer = TextWriter(tokenizer, tokenizer.encode("d"), stops=["abb"])
    >>> [writer.push(id_) for id_ in tokenizer.encode("cabcabb")], writer.ended
    (['c', '', '', 'abc', '', '', ''], True)
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = (), stop_ids: Collection[int] = ()
    ) -> None:
        self._decoder = StreamDecoder(tokenizer)
        for id_ in prompt:
            self._decoder.push(id_)
        if tokenizer.decode(prompt).endswith("\N{REPLACEMENT CHARACTER}"):
            self._decoder.finish()  # the decoder takes it for an unfinished character, but the prompt is as it is
        self._stops, self._stop_ids = stops, stop_ids
        self._held = ""  # the end of the text so far: the beginning of a stop string, it may be
        self.ended = False
        """Whether a stop string or a stop token has ended it."""

    def push(self, id_: int) -> str:
        """Take one more id; returns the text that it makes certain, often of one token, sometimes none."""
        if id_ in self._stop_ids:
            rest = self.finish()
            self.ended = True
            return rest
        return self._cut(self._decoder.push(id_))

    def finish(self) -> str:
        """There are no more ids: the text that was held back."""
        if self.ended:
            return ""
        rest = self._cut(self._decoder.finish()) + self._held
        self._held = ""
        return rest

    def _cut(self, piece: str) -> str:
        text = self._held + piece
        end = find_stop(text, self._stops)
        if end is not None:
            self.ended, self._held = True, ""
            return text[:end]
        certain = len(text) - _could_be_stop(text, self._stops)
        self._held = text[certain:]
        return text[:certain]


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first; of several that end together, the longest. None: nowhere.

    >>> find_stop("a stop, and another", ["another", "stop"])
    2
    """
    ends = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def _could_be_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for n in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:n]):
                longest = n
                break
    return longest


def _pieces(writer: TextWriter, written: Iterator[Step]) -> Iterator[str]:
    """What a writer hands out for the steps of a single row, and no step is taken after its end."""
    for step in written:
        [id_] = step.numbers
        if piece := writer.push(id_):
            yield piece
        if writer.ended:
            return
    if rest := writer.finish():
        yield rest


def known_only(
    tokenizer: Tokenizer, vocab_size: int, stops: Collection[int], adjust: Adjust | None = None
) -> Adjust | None:
    """The adjustment, and after it the ids without a token ruled out: embedding tables are often padded to a round
    number, and some vocabularies have gaps. A stop token is never decoded, so it needs no token."""
    if len(tokenizer.vocabulary) == vocab_size:
        return adjust
    known = {*tokenizer.vocabulary.ids.values(), *stops}
    forbid = Forbid([id_ for id_ in range(vocab_size) if id_ not in known])
    return forbid if adjust is None else in_turn(adjust, forbid)
