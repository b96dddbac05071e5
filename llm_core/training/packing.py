"""What JSON would change or cannot hold, written so that it comes back as it was.

JSON has no tuples, its keys are strings, and it knows nothing of tensors. What it does hold is written as it is, so
that a checkpoint's header can be read by eye; the rest gets a mark:

    (0.9, 0.95)        {"__tuple__": [0.9, 0.95]}
    {1: "one"}         {"__dict__": [[1, "one"]]}
    a tensor           {"__tensor__": "packed/0"}, and the tensor lies with the checkpoint's tensors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

TUPLE, DICT, TENSOR = "__tuple__", "__dict__", "__tensor__"


def pack(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """A value as JSON can hold it; tensors in it are put into `tensors` under names of their own.

    Raises:
        TypeError: something in it is no number, text, truth value, None, list, tuple, dict or tensor; or it is a tensor
            and there is no place for tensors.

    >>> pack({"betas": (0.9, 0.95)})
    {'betas': {'__tuple__': [0.9, 0.95]}}
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return {TUPLE: [pack(part, tensors) for part in value]}
    if isinstance(value, list):
        return [pack(part, tensors) for part in value]
    if isinstance(value, Mapping):
        plain = all(isinstance(key, str) and key not in (TUPLE, DICT, TENSOR) for key in value)
        if plain:
            return {key: pack(part, tensors) for key, part in value.items()}
        return {DICT: [[pack(key), pack(part, tensors)] for key, part in value.items()]}
    if isinstance(value, Tensor) and tensors is not None:
        name = f"packed/{sum(name.startswith('packed/') for name in tensors)}"
        tensors[name] = value
        return {TENSOR: name}
    raise TypeError(
        f"a checkpoint holds numbers, texts, lists, tuples and dicts: got an object of type {type(value).__name__}"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """What `pack` was given.

    >>> unpack(pack({1: (2, None)}))
    {1: (2, None)}
    """
    if isinstance(value, list):
        return [unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(unpack(part, tensors) for part in value[TUPLE])
    if DICT in value:
        return {unpack(key): unpack(part, tensors) for key, part in value[DICT]}
    if TENSOR in value:
        return (tensors or {})[value[TENSOR]].clone()
    return {key: unpack(part, tensors) for key, part in value.items()}
