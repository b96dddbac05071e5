"""An adapter as two small files, in the form of peft: what others load, and what others have trained.

    save_lora(model, "adapter", llama_table(model.config))    adapter_model.safetensors and adapter_config.json
    load_lora(model, "adapter", llama_table(model.config))    the same, or what peft wrote

The published names of the layers come from the table that loads the published weights. Where it says that theirs
joins several of ours (query, key and value of GPT-2, one matrix there), the layer is refused: theirs would have
one A for all three. Their transposed matrices (the rest of GPT-2) are no obstacle: A and B are stored alike.

    base_model.model.<their name>.lora_A.weight    (r, I)
    base_model.model.<their name>.lora_B.weight    (O, r)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.adaptation.lora import LoRAConfig, Model, add_lora, linear_layers, lora_layers, over_rank, over_root_rank
from llm_core.files import replacing, write_whole

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "peft_type", "init_lora_weights"}
# Entries that do not change what the adapter computes: which layers it has is seen from its tensors.
_OF_NO_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}


@runtime_checkable
class Named(Protocol):
    """A line of a name table: one tensor of theirs and those of ours that hold the same numbers."""

    @property
    def ours(self) -> tuple[str, ...]:
        """Our names."""

    @property
    def theirs(self) -> str:
        """Their name."""

    @property
    def join(self) -> Callable[[Sequence[Tensor]], Tensor]:
        """Ours -> theirs."""


def save_lora(model: nn.Module, folder: Path | str, table: Iterable[Named] | None = None) -> None:
    """Write the adapter of a model, and nothing else of it, as peft would.

    Args:
        model: after `add_lora`.
        folder: made if it is not there; an older adapter in it is replaced.
        table: their names and ours (`llama_table(model.config)`). None: ours are used.

    Raises:
        ValueError: the model has no LoRA; its layers differ in rank, alpha or scaling; the scaling is neither of the
            two that peft has; or a corrected layer has no counterpart of its own there. Nothing is written then.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no LoRA to save: add_lora gives it some")
    lora = next(iter(layers.values())).config
    other = next((layer.config for layer in layers.values() if layer.config != lora), None)
    if other is not None:
        raise ValueError(f"one file holds the layers of one config: got {lora} and {other}")
    names = _their_names(model, table)
    for name in layers:
        if name not in names:
            raise ValueError(_no_counterpart(name, table))
    config = _config_json(lora, [names[name] for name in layers], names.values())
    config["fan_in_fan_out"] = _is_transposed(table, set(layers))
    tensors = {}
    for name, layer in layers.items():
        for letter, tensor in (("A", layer.A), ("B", layer.B)):
            # A copy: safetensors takes no two names of one tensor, and a layer may have two.
            tensors[f"{_PREFIX}{names[name]}.lora_{letter}.weight"] = tensor.detach().cpu().clone()
    _write(Path(folder), config, tensors)


def load_lora(model: Model, folder: Path | str, table: Iterable[Named] | None = None) -> Model:
    """Give a model the adapter that a folder holds, in place: `add_lora`, with what was learned.

    Args:
        model: the model that the adapter was trained on, without LoRA.
        folder: written by `save_lora` or by peft.
        table: their names and ours; None if the adapter has ours.

    Returns:
        The same model.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `LoRALinear` does not do; or the
            tensors do not fit the model. The model is then as it was.
    """
    config = _read_config(Path(folder) / CONFIG)
    tensors = _read_tensors(Path(folder) / WEIGHTS)
    layers = linear_layers(model)
    ours = {theirs: name for name, theirs in _their_names(model, table).items() if name in layers}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        theirs, _, letter = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if theirs not in ours or letter not in ("A", "B"):
            raise ValueError(
                f"{WEIGHTS} has {key}, for which this {type(model).__name__} has no linear layer of its own. Is it an "
                "adapter of this model, and is the table of its names given? Matrices that join several of ours are "
                "not supported, nor weights of the model itself, which peft adds where it adapts the output head: "
                "save_pretrained(..., save_embedding_layers=False) leaves them out"
            )
        found.setdefault(ours[theirs], {})[letter] = tensor
    for name, pair in found.items():
        _check_pair(name, layers[name], pair, config["r"])

    scaling = over_root_rank if config.get("use_rslora") else over_rank
    dropout = float(config.get("lora_dropout") or 0.0)
    add_lora(model, LoRAConfig(config["r"], config["lora_alpha"], tuple(found), dropout, scaling))
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.A.copy_(found[name]["A"])
            layer.B.copy_(found[name]["B"])
    return model


def _their_names(model: nn.Module, table: Iterable[Named] | None) -> dict[str, str]:
    """Our names of layers -> theirs, for the layers that have a counterpart of their own."""
    if table is None:
        return {name: name for name, _ in model.named_modules(remove_duplicate=False)}
    end = ".weight"
    lines = [line for line in table if len(line.ours) == 1 and line.theirs.endswith(end)]
    # transformers holds the experts and their router as tensors, not as layers: peft would find none to correct.
    lines = [line for line in lines if ".block_sparse_moe." not in line.theirs]
    return {line.ours[0].removesuffix(end): line.theirs.removesuffix(end) for line in lines}


def _no_counterpart(name: str, table: Iterable[Named] | None) -> str:
    joined = next((line.theirs for line in table or () if f"{name}.weight" in line.ours), None)
    if joined is None:
        return f"the table has no name for {name}: is it the table of this model?"
    return (
        f"{name} has no layer of its own in the published form, where {joined} belongs to a larger one. Choose other "
        "targets, or save under our own names (no table)"
    )


def _is_transposed(table: Iterable[Named] | None, layers: set[str]) -> bool:
    """Whether the published form stores these layers' weights (in, out): peft wants to know for merging."""
    lines = [line for line in table or () if line.ours[0].removesuffix(".weight") in layers]
    return any(line.theirs.endswith(".weight") and line.join([torch.empty(2, 3)]).shape == (3, 2) for line in lines)


def _config_json(config: LoRAConfig, adapted: list[str], every: Iterable[str]) -> dict[str, Any]:
    if config.scaling not in (over_rank, over_root_rank):
        raise ValueError(
            f"an adapter_config.json can say over_rank and over_root_rank, not {config.scaling}: set alpha for one of "
            "the two to the same effect"
        )
    # "q_proj" says it for all layers, if all have it corrected.
    leaves = {name.rpartition(".")[2] for name in adapted}
    whole = {name for name in every if name.rpartition(".")[2] in leaves} == set(adapted)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.scaling is over_root_rank,
        "target_modules": sorted(leaves if whole else adapted),
        "bias": "none",
        "inference_mode": True,
    }


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {file.name} in {file.parent}: give the folder of an adapter") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}): save or download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object: got {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise ValueError(f'{file.name} says "peft_type": {json.dumps(config.get("peft_type"))}, but this is for "LORA"')
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        if type(config.get(key)) not in kinds:
            raise ValueError(f'{file.name} must say "{key}", a number: got {json.dumps(config.get(key))}')
    # Other ways to start change the frozen weights too, and then the adapter alone is not the model.
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise _unknown(file, "init_lora_weights", config)
    for key, value in config.items():
        says_nothing = not value or (key, value) == ("bias", "none")
        if key not in _READ | _OF_NO_EFFECT and not says_nothing:
            raise _unknown(file, key, config)
    return config


def _unknown(file: Path, key: str, config: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f'{file.name} says "{key}": {json.dumps(config[key])}, which LoRALinear does not do: the adapter would '
        "compute something else"
    )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(
            f"there is no {file.name} in {file.parent}. Weights in a .bin file are pickles, which can run code: save "
            "them as safetensors first"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}): save or download it again") from error
    if not tensors:
        raise ValueError(f"{file} holds no tensor, so there is nothing to load")
    whole = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if whole is not None:
        raise ValueError(
            f"{file} has {whole} in {tensors[whole].dtype}, and an adapter is floating-point: save it in full precision"
        )
    return tensors


def _check_pair(name: str, layer: nn.Module, pair: Mapping[str, Tensor], rank: int) -> None:
    if pair.keys() != {"A", "B"}:
        raise ValueError(f"the adapter has only lora_{next(iter(pair))} of {name}: is the file whole?")
    expected = ((rank, layer.in_features), (layer.out_features, rank))
    got = (tuple(pair["A"].shape), tuple(pair["B"].shape))
    if got != expected:
        raise ValueError(
            f"A and B of {name} are {got[0]} and {got[1]} in the adapter, {expected[0]} and {expected[1]} by its rank "
            "and the layer. Was it trained on a model of another size?"
        )


def _write(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Each file is complete before it gets its name."""
    said = json.dumps(config, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as part:
        try:
            save_file(tensors, part, metadata={"format": "pt"})
        except SafetensorError as error:  # of the disk: the names and shapes are right
            raise OSError(str(error)) from error
    write_whole(folder / CONFIG, said)
