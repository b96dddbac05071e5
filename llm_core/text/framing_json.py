"""Post-processor, truncation and padding of a `tokenizer.json`, both ways: they become one `Framing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llm_core.text.components import as_type, read_list, refuse
from llm_core.text.framing import PLAIN, Framing, Padding, Piece, Template, Truncation, bert_template
from llm_core.text.tokenizer import Vocabulary

_SIDES = Literal["Right", "Left"]


def read(content: Mapping[str, Any], vocabulary: Mapping[str, int]) -> Framing:
    """What a file says about special tokens, longest length and padding.

    Raises:
        ValueError: a component is not supported or broken. The message names it.
    """
    template = _template(content.get("post_processor"), "post_processor", set(vocabulary.values()))
    truncation = _truncation(content.get("truncation"))
    if truncation and truncation.stride:
        room = truncation.max_length - max(template.added(is_pair=False), template.added(is_pair=True))
        if truncation.stride >= room:
            refuse("truncation.stride", f"less than the room for a text, {room}", truncation.stride)
    return Framing(template, truncation, _padding(content.get("padding")))


def write(framing: Framing, vocabulary: Vocabulary) -> dict[str, Any]:
    """The three components of a file."""
    truncation, padding = framing.truncation, framing.padding
    return {
        "truncation": truncation
        and {
            "max_length": truncation.max_length,
            "strategy": truncation.strategy,
            "stride": truncation.stride,
            "direction": truncation.direction,
        },
        "padding": padding
        and {
            "strategy": "BatchLongest" if padding.length is None else {"Fixed": padding.length},
            "direction": padding.direction,
            "pad_to_multiple_of": padding.pad_to_multiple_of,
            "pad_id": padding.pad_id,
            "pad_type_id": padding.pad_type_id,
            "pad_token": padding.pad_token,
        },
        "post_processor": None if framing.template == PLAIN else _as_json(framing.template, vocabulary),
    }


# --- post-processor ---


def _template(value: Any, where: str, known: set[int]) -> Template:
    if value is None:
        return PLAIN
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "ByteLevel":  # it moves offsets, and no ids
        for key in ("add_prefix_space", "trim_offsets"):
            as_type(value.get(key), bool, f"{where}.{key}")
        as_type(value.get("use_regex", True), bool, f"{where}.use_regex")
        return PLAIN
    if kind == "Sequence":
        steps = read_list(value.get("processors"), f"{where}.processors")
        if None in steps:
            refuse(f"{where}.processors[{steps.index(None)}]", "a component with a type", None)
        templates = [_template(step, f"{where}.processors[{i}]", known) for i, step in enumerate(steps)]
        framing = [template for template in templates if template != PLAIN]
        if len(framing) > 1:
            refuse(f"{where}.processors", "at most one that adds special tokens", [step["type"] for step in steps])
        return framing[0] if framing else PLAIN
    if kind in ("BertProcessing", "RobertaProcessing"):
        first, last = (_named_id(value.get(key), f"{where}.{key}", known) for key in ("cls", "sep"))
        if kind == "BertProcessing":
            return bert_template(first, last)
        for key in ("trim_offsets", "add_prefix_space"):
            as_type(value.get(key), bool, f"{where}.{key}")
        begin, end = ((first,), 0), ((last,), 0)
        return Template((begin, ("A", 0), end), (begin, ("A", 0), end, end, ("B", 0), end))
    if kind == "TemplateProcessing":
        special = value.get("special_tokens")
        if not isinstance(special, dict):
            refuse(f"{where}.special_tokens", "a special token for each name", special)
        single, pair = (
            tuple(
                _piece(piece, f"{where}.{key}[{i}]", special, known)
                for i, piece in enumerate(read_list(value.get(key), f"{where}.{key}"))
            )
            for key in ("single", "pair")
        )
        for key, pieces, texts in (("single", single, {"A"}), ("pair", pair, {"A", "B"})):
            if {ids for ids, _ in pieces if isinstance(ids, str)} - texts or not pieces:
                refuse(f"{where}.{key}", f"pieces with the texts {' and '.join(sorted(texts))}", value[key])
        return Template(single, pair)
    supported = '"TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel" or "Sequence"'
    refuse(f"{where}.type", supported, kind if isinstance(value, dict) else value)


def _piece(value: Any, where: str, special: Mapping[str, Any], known: set[int]) -> Piece:
    if not isinstance(value, dict) or len(value) != 1 or not isinstance(next(iter(value.values())), dict):
        refuse(where, "a Sequence or a SpecialToken", value)
    kind, piece = next(iter(value.items()))
    name, segment = piece.get("id"), as_type(piece.get("type_id"), int, f"{where}.{kind}.type_id")
    if kind == "Sequence" and name in ("A", "B"):
        return name, segment
    if kind != "SpecialToken" or not isinstance(name, str) or name not in special:
        refuse(f"{where}.{kind}.id", "a text, A or B, or a name among special_tokens", name)
    entry, place = special[name], f"post_processor.special_tokens[{name!r}]"
    if not isinstance(entry, dict) or entry.get("id") != name:
        refuse(place, "an entry with this id", entry)
    ids = tuple(as_type(id_, int, f"{place}.ids") for id_ in read_list(entry.get("ids"), f"{place}.ids"))
    tokens = [as_type(token, str, f"{place}.tokens") for token in read_list(entry.get("tokens"), f"{place}.tokens")]
    if not set(ids) <= known or len(tokens) != len(ids):
        refuse(f"{place}.ids", "ids of model.vocab or added_tokens, one for each of its tokens", list(ids))
    return ids, segment


def _named_id(value: Any, where: str, known: set[int]) -> int:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        refuse(where, "a token and its id", value)
    if as_type(value[1], int, where) not in known:
        refuse(where, "a token and its id in the vocabulary", value)
    return int(value[1])


def _as_json(template: Template, vocabulary: Vocabulary) -> dict[str, Any]:
    special: dict[str, Any] = {}

    def piece(ids: str | tuple[int, ...], segment: int) -> dict[str, Any]:
        if isinstance(ids, str):
            return {"Sequence": {"id": ids, "type_id": segment}}
        tokens = vocabulary.tokens_of(ids)
        name = "".join(tokens)
        special[name] = {"id": name, "ids": list(ids), "tokens": tokens}
        return {"SpecialToken": {"id": name, "type_id": segment}}

    single, pair = ([piece(*one) for one in pieces] for pieces in (template.single, template.pair))
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


# --- truncation and padding ---


def _truncation(value: Any) -> Truncation | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        refuse("truncation", "null, or settings", value)
    longest = as_type(value.get("max_length"), int, "truncation.max_length")
    stride = as_type(value.get("stride"), int, "truncation.stride")
    return Truncation(
        longest,
        as_type(value.get("strategy"), Literal["LongestFirst", "OnlyFirst"], "truncation.strategy"),
        as_type(value.get("direction", "Right"), _SIDES, "truncation.direction"),
        stride,
    )


def _padding(value: Any) -> Padding | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        refuse("padding", "null, or settings", value)
    strategy = value.get("strategy")
    if strategy == "BatchLongest":
        length = None
    elif isinstance(strategy, dict) and list(strategy) == ["Fixed"]:
        length = as_type(strategy["Fixed"], int, "padding.strategy.Fixed")
    else:
        refuse("padding.strategy", '"BatchLongest" or {"Fixed": a length}', strategy)
    return Padding(
        length,
        as_type(value.get("pad_id"), int, "padding.pad_id"),
        as_type(value.get("pad_type_id"), int, "padding.pad_type_id"),
        as_type(value.get("pad_token"), str, "padding.pad_token"),
        as_type(value.get("direction"), _SIDES, "padding.direction"),
        as_type(value.get("pad_to_multiple_of"), int | None, "padding.pad_to_multiple_of"),
    )
