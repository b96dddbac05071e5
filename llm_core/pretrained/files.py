"""The files of a published checkpoint: one folder with config.json and the weights as safetensors.

Large checkpoints come in several files and an index that says which tensor lies where; both forms are read. Nothing is
downloaded here: the folder is one that you have (`huggingface-cli download` makes one).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_core.files import replacing, write_whole

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
GENERATION = "generation_config.json"

# Entries of a config.json that say nothing about the logits: where it comes from, how it is trained and sampled from.
# fmt: off
NOTES = frozenset({
    "_name_or_path", "architectures", "auto_map", "transformers_version", "transformers.js_config", "model_type",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "task_specific_params", "gradient_checkpointing",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "output_attentions", "output_hidden_states", "return_dict",
})
# fmt: on


# What a file that is damaged, cut short or of a type of numbers that is not known makes the reader raise.
_BROKEN = (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError)


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    return _read_json(Path(folder) / CONFIG)


def end_ids(folder: Path | str) -> tuple[int, ...]:
    """The ids that end a text, as a checkpoint has them: for `generate(stop_id=...)`. There may be none.

    `eos_token_id` of generation_config.json, if it says one, else of config.json; one id or a list.

    Raises:
        ValueError: there is no config.json, a file is not JSON, or the entry is no id and no list of ids.
    """
    ids = _said_id(folder, "eos_token_id")
    several = ids if isinstance(ids, list) else [] if ids is None else [ids]
    for one in several:
        _check_id("eos_token_id", one)
    return tuple(several)


def begin_id(folder: Path | str) -> int | None:
    """The id that begins a text (`bos_token_id`), or None. Read as in `end_ids`, with its errors."""
    return _one_id(folder, "bos_token_id")


def pad_id(folder: Path | str) -> int | None:
    """The id that fills short rows up (`pad_token_id`), or None. Read as in `end_ids`, with its errors."""
    return _one_id(folder, "pad_token_id")


def forbidden_ids(folder: Path | str) -> tuple[tuple[int, ...], ...]:
    """Tokens and sequences that must not be written (`bad_words_ids`), for `Forbid` of `generation.adjust`.

    Read as in `end_ids`, and what ends a text is left out, as transformers does. There may be none.

    Raises:
        ValueError: see `end_ids`; or the entry is no list of lists of ids.
    """
    rows = _said_id(folder, "bad_words_ids")
    rows = [] if rows is None else rows
    if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(f'the config says "bad_words_ids": {json.dumps(rows)}, which is no list of lists of ids')
    for row in rows:
        for one in row:
            _check_id("bad_words_ids", one)
    ends = [[one] for one in end_ids(folder)]
    return tuple(tuple(row) for row in rows if row not in ends)


def check_config(config: Mapping[str, Any], *, read: Collection[str], fixed: Mapping[str, Any]) -> None:
    """Refuse a config that asks for something that the model does not do. Silence would give wrong logits.

    Args:
        config: see `read_config`.
        read: entries that the caller looks at itself.
        fixed: entries that may only have one value: the model does it in no other way.

    Raises:
        ValueError: an entry has another value, or is not known at all (unless it is null, or one of `NOTES`).

    >>> check_config({"hidden_size": 8, "hidden_act": "relu"}, read=["hidden_size"], fixed={"hidden_act": "silu"})
    Traceback (most recent call last):
        ...
    ValueError: config.json says "hidden_act": "relu", but this model only does "silu"
    """
    for key, value in config.items():
        if key in fixed and not _equal(value, fixed[key]):
            raise ValueError(
                f'config.json says "{key}": {json.dumps(value)}, but this model only does {json.dumps(fixed[key])}'
            )
        if value is not None and key not in fixed and key not in read and key not in NOTES:
            raise ValueError(
                f'config.json says "{key}": {json.dumps(value)}, which this loader does not know: it may change what '
                "the model computes. If it does not, take the entry out"
            )


def entry(config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """One value of a config, of type `kind`; an int will do for a float. `default` stands for null and for nothing.

    Raises:
        ValueError: it is missing and there is no default, is of another type, or is not finite.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise ValueError(f'config.json has no "{key}", without which the model cannot be built')
        return default
    return _typed(key, value, kind)


def obeyed(config: Mapping[str, Any], key: str, default: Any, *, null: bool = False) -> Any:
    """One value of a config, of the type of `default`, which is what an absent entry stands for.

    Args:
        config: see `read_config`.
        key: the entry.
        default: as transformers' config class has it. Its type is that of the value; an int will do for a float.
        null: whether the value may be null, which is returned as None.

    Raises:
        ValueError: it is of another type, or not finite.

    >>> obeyed({"hidden_size": "8"}, "hidden_size", 4096)
    Traceback (most recent call last):
        ...
    ValueError: config.json says "hidden_size": "8", which is no int
    """
    value = config.get(key, default)
    if value is None and null:
        return None
    return _typed(key, value, type(default))


@contextmanager
def naming(config: Mapping[str, Any], keys: Collection[str]) -> Iterator[None]:
    """Errors of the block say what the config has under these keys: a model calls its sizes by other names.

    Raises:
        ValueError: one that the block raised, with the entries after its message.
    """
    try:
        yield
    except ValueError as error:
        said = [f'"{key}": {json.dumps(config[key])}' if key in config else f'no "{key}"' for key in keys]
        raise ValueError(f"{error}. config.json says {', '.join(said)}") from error


def read_shapes(folder: Path | str) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a checkpoint. Only the beginning of each file is read, not the weights.

    Raises:
        ValueError: see `read_weights`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(Path(folder)):
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except _BROKEN as error:
            raise _broken(file, error) from error
    return shapes


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names there, from one file or several.

    Raises:
        ValueError: a file is missing, or is no whole safetensors file.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(Path(folder)):
        try:
            tensors.update(load_file(file))
        except _BROKEN as error:
            raise _broken(file, error) from error
    return tensors


def write(folder: Path | str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint: config.json and one safetensors file, each complete before it gets its name."""
    said = json.dumps(config, indent=2) + "\n"  # first, so that what is no JSON fails before anything is written
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as part:
        try:
            save_file(tensors, part, metadata={"format": "pt"})
        except SafetensorError as error:  # of the disk: the names and shapes are right
            raise OSError(str(error)) from error
    write_whole(folder / CONFIG, said)


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or those that the index names. The one file wins, as it does for transformers."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        names = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f'{folder / INDEX} has no "weight_map" from tensors to files beside it: download it again')
        for tensor, name in names.items():
            if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
                raise ValueError(
                    f'{folder / INDEX} has no "weight_map" from tensors to files beside it: it says "{tensor}": '
                    f"{json.dumps(name)}. Download it again"
                )
        files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"there is no {file.name} in {folder}: a checkpoint has its weights in {WEIGHTS} (or in several files "
                f"and {INDEX}). Weights in a .bin file are pickles, which can run code: convert them first"
            )
    return files


def _typed(key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    endless = isinstance(value, float) and not math.isfinite(value)
    if type(value) is not kind or endless:
        raise ValueError(f'config.json says "{key}": {json.dumps(value)}, which is no {kind.__name__}')
    return value


def _equal(value: object, fixed: object) -> bool:
    """Equal, and true is not 1 (Python would say so)."""
    return value == fixed and (type(value) is bool) == (type(fixed) is bool)


def _said_id(folder: Path | str, key: str) -> Any:
    """The entry of generation_config.json, which transformers prefers, or of config.json."""
    folder = Path(folder)
    config = _read_json(folder / CONFIG)
    generation = _read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    return config.get(key) if generation.get(key) is None else generation[key]


def _one_id(folder: Path | str, key: str) -> int | None:
    one = _said_id(folder, key)
    if one is not None:
        _check_id(key, one)
    return one


def _check_id(key: str, one: object) -> None:
    if type(one) is not int or one < 0:
        raise ValueError(f'the config says "{key}": {json.dumps(one)}, which is no id: it must be a number from 0 on')


def _broken(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is no whole safetensors file ({error}): download it again")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {file.name} in {file.parent}: give the folder of a checkpoint") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:  # of json and of UTF-8; numbers of thousands of digits too
        raise ValueError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: got {type(content).__name__}")
    return content
