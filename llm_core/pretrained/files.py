"""The files of a published checkpoint: one folder with config.json and the weights as safetensors.

Large checkpoints come in several files and an index that says which tensor lies where; both forms are read. Nothing
is downloaded here: the folder is one that you have (`huggingface-cli download` makes one).
Taught, once it is written, in 05_project/06_published_weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    return _read_json(Path(folder) / CONFIG)


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names there, from one file or several.

    Raises:
        ValueError: a file is missing, or is no whole safetensors file.
    """
    folder = Path(folder)
    files = [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = _read_json(folder / INDEX)
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"there is no {file.name} in {folder}: a checkpoint has its weights in {WEIGHTS} (or in several files "
                f"and {INDEX}). Weights in a .bin file are pickles, which can run code: convert them first"
            )
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}): download it again") from error
    return tensors


def write(folder: Path | str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint: config.json and one safetensors file, each complete before it gets its name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (WEIGHTS + ".part")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        os.replace(part, folder / WEIGHTS)
        part = folder / (CONFIG + ".part")
        part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder / CONFIG)
    finally:
        part.unlink(missing_ok=True)


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
