"""The engine: texts that are asked for at different times are written together.

A step for eight rows takes about twice as long as a step for one (SmolLM2 on one core), since the weights are read once
for all of them. So what waits is taken up together, as far as the context allows, each row with its own prompt, its own
way to choose and its own end. A row that has ended, or that nobody waits for any more, is dropped from the batch at
once.

    submit -> waiting -> [ prefill, step, step, ... ] -> Written pieces, and one End for each text

All of it runs in one thread. What arrives while a batch is being written waits for its end: simple, and fair as long as
texts are short. Servers for many users let rows join between two steps (continuous batching, Yu et al. 2022).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from llm_core.checks import check_whole
from llm_core.generation.adjust import Adjust
from llm_core.generation.generate import Choose, LanguageModel, batch_prompts, last_logits, padded_cache
from llm_core.generation.sampling import greedy
from llm_core.generation.text import TextWriter, known_only
from llm_core.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """More texts wait already than the engine takes."""


class ShutDown(RuntimeError):
    """The engine has been closed, or is being closed."""


@dataclass(frozen=True)
class Written:
    """A piece of text, of so many tokens. It may be empty: half a character is a token too."""

    text: str
    n_tokens: int = 1


@dataclass(frozen=True)
class End:
    """A text has ended: by a stop string or a stop token ("stop"), by its length, or by an error."""

    reason: Literal["stop", "length", "error"]
    error: Exception | None = None


@dataclass(eq=False)
class Text:
    """One text to write.

    Args:
        prompt: its ids, at least one.
        max_new_tokens: how many it may get.
        deliver: is given each `Written` and then one `End`, from the engine's thread: it must be quick.
        choose: for one row, (1, V) -> (1,).
        adjust: likewise, or None.
        stops: strings that end it.
        generator: for a `choose` that draws. One for each text: what it draws does not depend on its neighbours.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    deliver: Callable[[Written | End], None]
    choose: Choose = greedy
    adjust: Adjust | None = None
    stops: Sequence[str] = ()
    generator: torch.Generator | None = None
    cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Nobody waits for it any more: it is dropped before the next step."""
        self.cancelled = True


class Engine:
    """Writes texts with one model, in a thread of its own, several at a time.

    Args:
        model: in eval mode; nothing else should use it meanwhile.
        tokenizer: the one that it was trained with.
        stop_ids: tokens that end a text.
        max_batch: how many texts are written together.
        max_waiting: how many may wait. More are refused.

    Raises:
        ValueError: a number is below 1, or the tokenizer knows more tokens than the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        stop_ids: Sequence[int] = (),
        max_batch: int = 8,
        max_waiting: int = 64,
    ) -> None:
        check_whole("max_batch", max_batch, at_least=1)
        check_whole("max_waiting", max_waiting, at_least=1)
        if tokenizer.vocab_size > model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {model.vocab_size}: "
                "take the tokenizer that the model was trained with"
            )
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, tuple(stop_ids)
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self._known = known_only(tokenizer, model.vocab_size, self.stop_ids)
        self._waiting: deque[_Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="llm-core engine", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[Text]) -> None:
        """Let these be written: all of them, or none.

        Raises:
            Busy: there is no room for them among those that wait.
            ShutDown: the engine is closed.
            ValueError: a prompt is empty, too long or no ids of the model.
        """
        rows = [_Row(text, self.model, self.tokenizer, self.stop_ids) for text in texts]
        with self._changed:
            if self._closed:
                raise ShutDown("the server is stopping")
            self._forget_cancelled()
            if len(self._waiting) + len(rows) > self.max_waiting:
                raise Busy(f"{len(self._waiting)} texts wait, and at most {self.max_waiting} may: try again later")
            self._waiting.extend(rows)
            self._changed.notify()

    def close(self) -> None:
        """Stop: what is being written or waits ends with `ShutDown`. Returns when the thread has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (rows := self._next_batch()) is not None:
            try:
                self._write(rows)
            except Exception as error:  # whatever it is, it must not end the thread: others wait
                log.exception("a batch of %d texts failed", len(rows))
                for row in rows:
                    row.end("error", error)
        for row in self._waiting:
            row.end("error", ShutDown("the server is stopping"))

    def _next_batch(self) -> list[_Row] | None:
        """Wait for texts; those of them that can be written together. None: the engine is closed."""
        with self._changed:
            rows: list[_Row] = []
            while not rows:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return None
                self._forget_cancelled()
                while self._waiting and len(rows) < self.max_batch and self._fit([*rows, self._waiting[0]]):
                    rows.append(self._waiting.popleft())
            return rows

    def _forget_cancelled(self) -> None:
        self._waiting = deque(row for row in self._waiting if not row.text.cancelled)

    def _fit(self, rows: Sequence[_Row]) -> bool:
        """Padded to one length, they still have room for the longest answer. A single one was checked before."""
        return len(rows) == 1 or _width(rows) <= self.model.context

    def _write(self, rows: list[_Row]) -> None:
        prompts = [row.text.prompt for row in rows]
        ids, padding = batch_prompts(self.model, prompts, max(row.text.max_new_tokens for row in rows))
        cache = padded_cache(self.model, len(rows), _width(rows), padding)
        unread = seen = ids
        n_prompt = ids.shape[1]
        while True:
            with torch.no_grad():
                logits = last_logits(self.model, unread, cache)
                if self._known is not None:
                    logits = self._known(logits, seen, padding, n_prompt)
                new = [row.choose(logits, seen, padding, n_prompt, i) for i, row in enumerate(rows)]
            for row, id_ in zip(rows, new, strict=True):
                row.take(id_)
            if self._closed:
                for row in rows:
                    row.end("error", ShutDown("the server is stopping"))
            kept = [i for i, row in enumerate(rows) if row.runs]
            if not kept:
                return
            unread = torch.tensor([[id_] for id_ in new], device=ids.device)
            seen = torch.cat([seen, unread], dim=1)
            if len(kept) < len(rows):
                index = torch.tensor(kept, device=ids.device)
                cache.reorder(index)
                unread, seen = unread[index], seen[index]
                padding = None if padding is None else padding[index]
                rows = [rows[i] for i in kept]


class _Row:
    """A text while it is written."""

    def __init__(self, text: Text, model: LanguageModel, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        batch_prompts(model, [text.prompt], text.max_new_tokens)  # says what is wrong with it, before it waits
        self.text = text
        self.runs = True
        self._left = text.max_new_tokens
        self._writer = TextWriter(tokenizer, text.prompt, text.stops, stop_ids)
        self._error: Exception | None = None

    def choose(self, logits: Tensor, seen: Tensor, padding: Tensor | None, n_prompt: int, i: int) -> int:
        """The next id of row i. What goes wrong with it concerns this text alone: others go on."""
        own = logits[i : i + 1]
        try:
            if self.text.adjust is not None:
                own_padding = None if padding is None else padding[i : i + 1]
                own = self.text.adjust(own, seen[i : i + 1], own_padding, n_prompt)
            return int(self.text.choose(own, self.text.generator))
        except ValueError as error:
            self._error = error
            return 0

    def take(self, id_: int) -> None:
        """Hand out what the id makes certain, and see whether the text has ended."""
        if self._error is not None:
            return self.end("error", self._error)
        if self.text.cancelled:
            self.runs = False
            return
        self._left -= 1
        piece = self._writer.push(id_)
        reason: Literal["stop", "length"] | None = (
            "stop" if self._writer.ended else "length" if not self._left else None
        )
        if reason == "length":
            piece += self._writer.finish()
        _deliver(self.text, Written(piece))
        if reason is not None:
            self.end(reason)

    def end(self, reason: Literal["stop", "length", "error"], error: Exception | None = None) -> None:
        if self.runs:
            self.runs = False
            _deliver(self.text, End(reason, error))


def _width(rows: Sequence[_Row]) -> int:
    """Places in the cache: the longest prompt and the longest answer. The last token is never read."""
    return max(len(row.text.prompt) for row in rows) + max(row.text.max_new_tokens for row in rows) - 1


def _deliver(text: Text, event: Written | End) -> None:
    """Hand an event to a text's reader; one that is gone must not harm the others."""
    try:
        text.deliver(event)
    except Exception:
        log.debug("a reader is gone", exc_info=True)
        text.cancelled = True
