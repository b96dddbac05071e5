"""The files of a published checkpoint: one folder with config.json and the weights as safetensors.

Large checkpoints come in several files and an index that says which tensor lies where; both forms are read. Nothing is
downloaded here: the folder is one that you have (`huggingface-cli download` makes one).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_core.files import replacing, write_whole

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

# Entries of a config.json that say nothing about the logits: where it comes from, how it is trained and sampled from.
# fmt: off
NOTES = frozenset({
    "_name_or_path", "architectures", "auto_map", "transformers_version", "transformers.js_config", "model_type",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "task_specific_params", "gradient_checkpointing",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "output_attentions", "output_hidden_states", "return_dict",
})
# fmt: on


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    return _read_json(Path(folder) / CONFIG)


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
        if key in fixed and value != fixed[key]:
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
        ValueError: it is missing and there is no default, or it is of another type.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise ValueError(f'config.json has no "{key}", without which the model cannot be built')
        return default
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f'config.json says "{key}": {json.dumps(value)}, which is no {kind.__name__}')
    return value


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
        except (SafetensorError, OSError) as error:
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
        except (SafetensorError, OSError) as error:
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
        if not isinstance(names, dict) or not names or any(Path(name).name != name for name in names.values()):
            raise ValueError(f'{folder / INDEX} has no "weight_map" from tensors to files beside it: download it again')
        files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"there is no {file.name} in {folder}: a checkpoint has its weights in {WEIGHTS} (or in several files "
                f"and {INDEX}). Weights in a .bin file are pickles, which can run code: convert them first"
            )
    return files


def _broken(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is no whole safetensors file ({error}): download it again")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {file.name} in {file.parent}: give the folder of a checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: got {type(content).__name__}")
    return content
