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
        adjust=_known(tokenizer, model.vocab_size, stop_tokens, adjust),
        generator=generator,
        use_cache=use_cache,
    )
    new = _until(stop_tokens, written)
    return cut_pieces(_continuation(tokenizer, ids, new), stops)


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


def cut_pieces(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Text that comes in pieces, up to the first stop string, each part of it as soon as it is certain.

    No piece is taken after the one that completes a stop string.

    >>> list(cut_pieces(["To be", ". A", "ND", " so", " on. E", "N", "D."], ["END"]))
    ['To be', '. A', 'ND', ' so', ' on. ']
    """
    held = ""  # the end of the text so far: the beginning of a stop string, it may be
    for piece in pieces:
        text = held + piece
        end = find_stop(text, stops)
        if end is not None:
            if end > 0:
                yield text[:end]
            return
        certain = len(text) - _could_be_stop(text, stops)
        if certain > 0:
            yield text[:certain]
        held = text[certain:]
    if held:
        yield held


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


def _until(stops: tuple[int, ...], written: Iterator[Step]) -> Iterator[int]:
    """The ids of a single row, without the stop token."""
    for step in written:
        [id_] = step.numbers
        if id_ in stops:
            return
        yield id_


def _continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text that the ids add to that of the prompt, whose end may have its say in it: a space between words."""
    decoder = StreamDecoder(tokenizer)
    for id_ in prompt:
        decoder.push(id_)
    if tokenizer.decode(prompt).endswith("\N{REPLACEMENT CHARACTER}"):
        decoder.finish()  # the decoder takes it for an unfinished character, but the prompt is as it is
    for id_ in ids:
        yield decoder.push(id_)
    yield decoder.finish()


def _known(tokenizer: Tokenizer, vocab_size: int, stops: tuple[int, ...], adjust: Adjust | None) -> Adjust | None:
    """The adjustment, and after it the ids without a token ruled out: embedding tables are often padded to a round
    number, and some vocabularies have gaps. A stop token is never decoded, so it needs no token."""
    if len(tokenizer.vocabulary) == vocab_size:
        return adjust
    known = {*tokenizer.vocabulary.ids.values(), *stops}
    forbid = Forbid([id_ for id_ in range(vocab_size) if id_ not in known])
    return forbid if adjust is None else in_turn(adjust, forbid)
