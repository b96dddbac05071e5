"""What a model reads besides the ids of a text: special tokens around it, a longest length, ids that fill it up.

    ids of a text      7592  2088
    Template           101  7592  2088  102            [CLS] and [SEP]; or a mark of the beginning (Llama 3)
    Truncation         101  7592  102                  where there is room for three
    Padding            101  7592  102  0  0            up to five

A `tokenizer.json` says all three, and the tokenizers of this package obey.

Source: the package tokenizers, to which the tests hold everything here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llm_core.text.wordpiece_matching import truncate_pair

Piece = tuple[Literal["A", "B"] | tuple[int, ...], int]  # a text, or ids of special tokens; and the segment they have
Marked = list[tuple[int, int]]  # ids, each with its segment


@dataclass(frozen=True)
class Template:
    """Which special tokens stand around one text (A), and around two (A and B).

    Args:
        single: what one text becomes.
        pair: what two texts become.

    >>> bert = Template(single=(((101,), 0), ("A", 0), ((102,), 0)))
    >>> Framing(bert).frame([7, 8], add_special_tokens=True)[0]
    [101, 7, 8, 102]
    """

    single: tuple[Piece, ...] = (("A", 0),)
    pair: tuple[Piece, ...] = (("A", 0), ("B", 1))

    def added(self, is_pair: bool) -> int:
        """How many special tokens there are."""
        return sum(len(ids) for ids, _ in (self.pair if is_pair else self.single) if not isinstance(ids, str))


PLAIN = Template()


def bert_template(cls: int, sep: int) -> Template:
    """`[CLS] A [SEP]`, and `[CLS] A [SEP] B [SEP]` with the second text in segment 1."""
    begin, end = ((cls,), 0), ((sep,), 0)
    return Template((begin, ("A", 0), end), (begin, ("A", 0), end, ("B", 1), ((sep,), 1)))


def text_template(bos: int | None, eos: int | None) -> Template:
    """A token at the beginning of each text, one at its end, or neither (None), as in Llama.

    >>> Framing(text_template(1, None)).frame([7, 8], [9], add_special_tokens=True)
    ([1, 7, 8, 1, 9], [0, 0, 0, 1, 1])
    """

    def around(text: Literal["A", "B"], segment: int) -> tuple[Piece, ...]:
        begin, end = ([] if id_ is None else [((id_,), segment)] for id_ in (bos, eos))
        return (*begin, (text, segment), *end)

    return Template(around("A", 0), (*around("A", 0), *around("B", 1)))


@dataclass(frozen=True)
class Truncation:
    """The most ids, special tokens counted.

    Args:
        max_length: how many.
        strategy: which of two texts loses what is too much: the longer one, or the first.
        direction: the side that goes.
        stride: how many ids a next part of the text would share with this one; only one part is made here.
    """

    max_length: int
    strategy: Literal["LongestFirst", "OnlyFirst"] = "LongestFirst"
    direction: Literal["Right", "Left"] = "Right"
    stride: int = 0

    def cut(self, first: list[int], second: list[int] | None, added: int) -> tuple[list[int], list[int] | None]:
        """The ids of one or two texts, as many as there is room for.

        Raises:
            ValueError: the special tokens alone are too many, or the first text alone cannot lose enough.
        """
        room = self.max_length - added
        if room < 0:
            raise ValueError(f"the special tokens alone are {added}: got max_length={self.max_length}")
        if len(first) + len(second or ()) <= room:
            return first, second
        if second is None:
            return self._kept(first, room), None
        if self.strategy == "OnlyFirst":
            if len(second) >= room:
                raise ValueError(
                    f"the second text has {len(second)} ids, and there is room for {room}, but only the first may be "
                    f"cut: raise max_length={self.max_length}"
                )
            return self._kept(first, room - len(second)), second
        keep_first, keep_second = truncate_pair(len(first), len(second), room)
        return self._kept(first, keep_first), self._kept(second, keep_second)

    def _kept(self, ids: list[int], n: int) -> list[int]:
        return ids[:n] if self.direction == "Right" else ids[len(ids) - n :]


@dataclass(frozen=True)
class Padding:
    """What fills an input up.

    Args:
        length: to how many ids; None: to those of the longest text of a batch, which for one text is nothing.
        pad_id: the id that fills it up.
        pad_type_id: its segment.
        pad_token: its name.
        direction: the side where they stand.
        pad_to_multiple_of: the length is rounded up to a multiple of this.
    """

    length: int | None = None
    pad_id: int = 0
    pad_type_id: int = 0
    pad_token: str = "[PAD]"
    direction: Literal["Right", "Left"] = "Right"
    pad_to_multiple_of: int | None = None

    def fill(self, marked: Marked) -> Marked:
        """Ids with their segments, and as many more as there is room for."""
        length = len(marked) if self.length is None else self.length
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        more = [(self.pad_id, self.pad_type_id)] * (length - len(marked))
        return marked + more if self.direction == "Right" else more + marked


@dataclass(frozen=True)
class Framing:
    """All three. Without any, the ids of a text are what they are.

    Args:
        template: the special tokens.
        truncation: the most ids; None: as many as there are.
        padding: what fills up; None: nothing.
    """

    template: Template = PLAIN
    truncation: Truncation | None = None
    padding: Padding | None = None

    def frame(
        self, first: list[int], second: list[int] | None = None, *, add_special_tokens: bool
    ) -> tuple[list[int], list[int]]:
        """The ids that a model reads for one text or two, and the segment of each.

        Raises:
            ValueError: as for `Truncation.cut`.
        """
        is_pair = second is not None
        if self.truncation:
            added = self.template.added(is_pair) if add_special_tokens else 0
            first, second = self.truncation.cut(first, second, added)
        marked: Marked = []
        for ids, segment in self.template.pair if is_pair else self.template.single:
            if isinstance(ids, str):
                marked += [(id_, segment) for id_ in (first if ids == "A" else second or [])]
            elif add_special_tokens:
                marked += [(id_, segment) for id_ in ids]
        if self.padding:
            marked = self.padding.fill(marked)
        return [id_ for id_, _ in marked], [segment for _, segment in marked]

    def ids(self, ids: list[int], *, add_special_tokens: bool) -> list[int]:
        """The ids that a model reads for a text."""
        if self.only_adds and not add_special_tokens:
            return ids
        return self.frame(ids, add_special_tokens=add_special_tokens)[0]

    def limited_to(self, max_length: int | None) -> Framing:
        """This with another longest length; None: as it is."""
        return self if max_length is None else replace(self, truncation=Truncation(max_length))

    @property
    def only_adds(self) -> bool:
        """Whether there is nothing to do unless special tokens are asked for."""
        texts = [ids for ids, _ in self.template.single if isinstance(ids, str)]
        return texts == ["A"] and self.truncation is None and self.padding is None


PLAIN_FRAMING = Framing()
