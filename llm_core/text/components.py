"""Components of a `tokenizer.json` and the objects that stand for them: the keys of one are the fields of the other.

    {"type": "Strip", "strip_left": true, "strip_right": false}     Strip(strip_left=True, strip_right=False)

A key that is absent has the library's default, which is the default of the field. What cannot be read is refused, and
the message names the place in the file.
"""

from __future__ import annotations

import json
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

Table = Mapping[str, type]


def read(value: Any, where: str, table: Table, known: Collection[str] | None = None) -> Any:
    """The object of a component.

    Args:
        value: what stands in the file.
        where: the place, for errors: "normalizer", or "decoder.decoders[1]".
        table: the class of each type. One that has a field `steps` holds components of the same table.
        known: the types that are supported here; all of the table unless given.

    Raises:
        ValueError: it has a type that is not supported, lacks a key, or a key has no such value.
    """
    known = table if known is None else known
    if not isinstance(value, dict):
        refuse(where, "a component with a type", value)
    name = value.get("type")
    if not isinstance(name, str) or name not in known:
        refuse(f"{where}.type", " or ".join(json.dumps(one) for one in known), name)
    cls = table[name]
    hints = _hints(cls)
    given: dict[str, Any] = {}
    for field in fields(cls):
        if not field.init:
            continue
        key = field.metadata.get("key", field.name)
        if key not in value:
            if field.default is MISSING:
                refuse(f"{where}.{key}", "there", None)
            continue
        if field.name == "steps":
            steps = read_list(value[key], f"{where}.{key}")
            given["steps"] = tuple(read(one, f"{where}.{key}[{i}]", table, known) for i, one in enumerate(steps))
        else:
            given[field.name] = as_type(value[key], hints[field.name], f"{where}.{key}")
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def write(component: Any) -> dict[str, Any] | None:
    """What stands in the file for an object. None stays None."""
    if component is None:
        return None
    if not is_dataclass(component):
        raise ValueError(f"tokenizer.json has no component for {component!r}: it can be used, but not saved")
    content: dict[str, Any] = {"type": name_of(component)}
    for field in fields(component):
        if field.init:
            value = getattr(component, field.name)
            key = field.metadata.get("key", field.name)
            content[key] = [write(step) for step in value] if field.name == "steps" else value
    return content


def name_of(component: Any) -> str:
    """The type that a file gives to an object: the name of its class, and Sequence for what has steps."""
    return "Sequence" if hasattr(component, "steps") else type(component).__name__


def read_list(value: Any, where: str) -> list[Any]:
    """A list of the file, or the error that there is none."""
    if not isinstance(value, list):
        refuse(where, "a list", value)
    return value


def as_type(value: Any, expected: Any, where: str) -> Any:
    """A value of the file, if it is of a type: a bool, a whole number, a string, a choice, or one of several."""
    if get_origin(expected) is Literal:
        # True is 1 for Python: a choice between strings is one between strings.
        if not isinstance(value, str) or value not in get_args(expected):
            refuse(where, " or ".join(json.dumps(one) for one in get_args(expected)), value)
        return value
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    for option in options:
        plain = get_origin(option) or option
        if plain is dict and isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
            return value
        if plain is type(value) and plain is not dict and not (plain is int and float not in options and value < 0):
            return value
    names = " or ".join(_NAMES.get(get_origin(option) or option, str(option)) for option in options)
    refuse(where, names, value)


def refuse(where: str, expected: str, value: Any) -> NoReturn:
    """Raise the error that names a place in the file, what could stand there, and what does."""
    got = json.dumps(value, ensure_ascii=False)
    raise ValueError(
        f"tokenizer.json asks for something that this class does not do: {where} must be {expected}, "
        f"got {got if len(got) < 200 else got[:200] + '...'}. The package tokenizers may read the file"
    )


_hints = cache(get_type_hints)
_NAMES = {
    bool: "true or false",
    int: "a whole number, 0 or more",
    float: "a number",
    str: "a string",
    dict: "a string for each key",
    type(None): "null",
}
