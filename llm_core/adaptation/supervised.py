"""Supervised fine-tuning: learn the answers, not the questions.

Nothing is new but which targets count. A prompt is read, and only the tokens of the completion are learned; every
other target is `ignore_id`, which `CrossEntropy(ignore_id=IGNORE_ID)` leaves out:

    text      <user>  2  +  2  ?  <bot>    4    <end>
    inputs    <user>  2  +  2  ?  <bot>    4
    targets      .    .  .  .  .    4    <end>

    example = Example.of(prompt, completion)           one question and its answer
    example = Example.of_turns([(ids, False), ...])    a conversation; True where the model speaks
    batch = supervised_batch([example, ...], pad_id=0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llm_core.training.batches import Batch, pad
from llm_core.training.masking import IGNORE_ID


@dataclass(frozen=True)
class Example:
    """A text as token ids, and for each token whether the model is to learn to say it.

    The first token is never learned, whatever is said of it: there is nothing before it to predict it from.

    Raises:
        ValueError: there are not as many marks as ids; or no token is to be learned.
    """

    ids: tuple[int, ...]
    learned: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learned):
            raise ValueError(f"each token needs its mark: got {len(self.ids)} ids and {len(self.learned)} marks")
        if not any(self.learned[1:]):
            raise ValueError(
                f"nothing is to be learned from this text of {len(self.ids)} tokens: it needs a token of a completion, "
                "and one before it"
            )

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> Example:
        """A prompt and what is to be said to it. The token that ends an answer belongs to the completion.

        >>> Example.of([5, 6], [7, 2])
        Example(ids=(5, 6, 7, 2), learned=(False, False, True, True))
        """
        return cls.of_turns([(prompt, False), (completion, True)])

    @classmethod
    def of_turns(cls, turns: Iterable[tuple[Sequence[int], bool]]) -> Example:
        """A conversation: the ids of each turn, and whether the model is the one who speaks."""
        marked = [(id_, learned) for ids, learned in turns for id_ in ids]
        return cls(tuple(id_ for id_, _ in marked), tuple(learned for _, learned in marked))


def cut_end(example: Example, length: int) -> Example:
    """The first `length` tokens. A long answer loses its end, and with it the token that says that it has ended."""
    return Example(example.ids[:length], example.learned[:length])


def cut_start(example: Example, length: int) -> Example:
    """The last `length` tokens. A long prompt loses its beginning, and with it whatever the system was told."""
    start = max(len(example.ids) - length, 0)  # -length would be all of it for a length of 0
    return Example(example.ids[start:], example.learned[start:])


def supervised_batch(
    examples: Sequence[Example],
    *,
    pad_id: int,
    max_length: int | None = None,
    cut: Callable[[Example, int], Example] | None = None,
    ignore_id: int = IGNORE_ID,
) -> Batch:
    """Inputs and next-token targets of some texts, filled up on the right; only learned tokens are targets.

    Right-hand padding needs no mask in a model that reads from left to right: no real token sees it.

    Args:
        examples: the texts.
        pad_id: fills the inputs up. It may be a token that texts have too: padding is told by its place.
        max_length: tokens of the longest text allowed, its last (which is only a target) counted. A model with a
            context of T reads texts of T + 1.
        cut: makes shorter what is longer: `cut_end`, `cut_start`. None: it is an error.
        ignore_id: the target where nothing is learned.

    Returns:
        A batch of inputs (B, T) and targets (B, T), T one less than the longest text.

    Raises:
        ValueError: there is no example; one is too long and there is no `cut`; or nothing that is to be learned
            would be left of it.

    >>> supervised_batch([Example.of([5, 6], [7, 2]), Example.of([5], [2])], pad_id=0).targets
    tensor([[-100,    7,    2],
            [   2, -100, -100]])
    """
    if max_length is not None:
        examples = [_shortened(i, example, max_length, cut) for i, example in enumerate(examples)]
    inputs = pad([example.ids[:-1] for example in examples], pad_id)
    marked = [zip(example.ids[1:], example.learned[1:], strict=True) for example in examples]
    targets = [[id_ if learned else ignore_id for id_, learned in row] for row in marked]
    return Batch((inputs,), pad(targets, ignore_id))


def pack(examples: Iterable[Example], length: int) -> list[Example]:
    """Short texts joined to rows of at most `length` tokens, each text in the first row that has room for it.

    The loss does not cross the borders: no text is asked to predict how the next one begins. Attention does. Our models
    take no mask, so a token reads the texts before its own in the row, and positions go on counting. GPT-3 was trained
    so, with a token between the texts that tells it (Brown et al. 2020, appendix B). For a model to be used on one text
    at a time, batches that are not packed are what it will see.

    Args:
        examples: the texts.
        length: tokens of a row, the last (which is only a target) counted.

    Returns:
        Rows, for `supervised_batch`. A text keeps its tokens together and in order.

    Raises:
        ValueError: a text is longer than a row.

    >>> [row.ids for row in pack([Example.of([5], [6, 2]), Example.of([7, 8], [2]), Example.of([9], [2])], 5)]
    [(5, 6, 2, 9, 2), (7, 8, 2)]
    """
    rows: list[tuple[list[int], list[bool]]] = []
    for i, example in enumerate(examples):
        size = len(example.ids)
        if size > length:
            raise ValueError(f"{_too_long(i, size, length)}. Shorten it, or make the rows longer")
        row = next((row for row in rows if len(row[0]) + size <= length), None)
        if row is None:
            row = ([], [])
            rows.append(row)
        row[0].extend(example.ids)
        row[1].extend((False, *example.learned[1:]))
    return [Example(tuple(ids), tuple(learned)) for ids, learned in rows]


def _shortened(i: int, example: Example, length: int, cut: Callable[[Example, int], Example] | None) -> Example:
    size = len(example.ids)
    if size <= length:
        return example
    if cut is None:
        raise ValueError(f"{_too_long(i, size, length)}. Leave it out, or say how to shorten it: cut=cut_end, for one")
    try:
        return cut(example, length)
    except ValueError as error:
        raise ValueError(
            f"text {i} has {size} tokens, and nothing that is to be learned is left when it is cut to {length}: leave "
            "it out, cut it at its other end, or allow more"
        ) from error


def _too_long(i: int, size: int, length: int) -> str:
    return f"text {i} is too long: it has {size} tokens, {length} are allowed"
