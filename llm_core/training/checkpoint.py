"""Checkpoints: everything that the next step depends on, in one file.

A checkpoint is a safetensors file. Its tensors are the model's weights, the optimizer's state and the states of
the random generators; the rest (the step, settings) is JSON in the file's header. The file is written beside
its place and then moved there, so that a crash, a full disk or a kill leaves the old file or the new one, never half
of one. A SHA-256 of all it holds finds a file that was damaged later.

Resuming from a checkpoint gives, on the same machine, the same bits as a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from llm_core.files import NotWritten, write_whole

FORMAT = "llm_core checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or loaded into this model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, read and verified.

    `settings` is whatever was saved with it (a model's config as a dict, for one).
    """

    step: int
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer_groups: list[dict[str, Any]] | None
    path: Path = field(compare=False)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
    ) -> int:
        """Put the model, the optimizer and the generators (torch's global one too) where they were; returns the step.

        Raises:
            CheckpointError: names or shapes differ from the model's, or the checkpoint has no state for the optimizer
                or a generator. Nothing is changed then.
        """
        generators = generators or {}
        weights = self._under("model")
        check_weights(self.path, _shapes(model.state_dict()), _shapes(weights))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() != weights[name].is_floating_point():  # torch would round without a word
                raise CheckpointError(f"{self.path} has {name} in {weights[name].dtype}, the model in {tensor.dtype}")
        state: dict[int, dict[str, Tensor]] = {}
        if optimizer is not None:
            state = self._optimizer_state()
            self._check_optimizer(optimizer, state)
        random_states = self._under("random")
        missing = [name for name in generators if name not in random_states]
        if missing:
            raise CheckpointError(
                f"{self.path} holds no state of the generators {missing}; it has {sorted(random_states)}"
            )

        model.load_state_dict(weights)
        if optimizer is not None:
            optimizer.load_state_dict({"state": state, "param_groups": self.optimizer_groups})
        torch.set_rng_state(random_states["torch"])
        for index in range(torch.cuda.device_count()):  # dropout on a GPU draws from the GPU's own generator
            if f"torch-cuda-{index}" in random_states:
                torch.cuda.set_rng_state(random_states[f"torch-cuda-{index}"], index)
        for name, generator in generators.items():
            generator.set_state(random_states[name])
        return self.step

    def _under(self, prefix: str) -> dict[str, Tensor]:
        start = prefix + "/"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def _check_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
        if self.optimizer_groups is None:
            raise CheckpointError(f"{self.path} was saved without an optimizer: it can be used, but not trained on")
        saved = [len(group["params"]) for group in self.optimizer_groups]
        here = [len(group["params"]) for group in optimizer.param_groups]
        if saved != here:
            raise CheckpointError(
                f"{self.path} holds an optimizer whose groups have {saved} parameters; this one's have {here}"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, of_parameter in state.items():
            for key, tensor in of_parameter.items():
                if tensor.ndim and tensor.shape != parameters[index].shape:  # a number (the step) has no shape to check
                    raise CheckpointError(
                        f"{self.path} holds an optimizer for other parameters: {key} of parameter {index} is "
                        f"{tuple(tensor.shape)}, and the parameter is {tuple(parameters[index].shape)}. "
                        "Build the optimizer from the same groups as before"
                    )

    def _optimizer_state(self) -> dict[int, dict[str, Tensor]]:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._under("optimizer").items():
            index, key = name.split("/")
            # A copy: the optimizer would go on to write into what it is given, and this may be restored again.
            state.setdefault(int(index), {})[key] = tensor.clone()
        return state


def name_of(step: int) -> str:
    """What the checkpoint of a step is called, as a file or a folder: the names sort as the steps do.

    >>> name_of(200)
    'step-00000200'
    """
    return f"step-{step:08d}"


def header_of(
    step: int, settings: Mapping[str, Any] | None, optimizer_groups: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """What a checkpoint says besides its tensors.

    Raises:
        CheckpointError: JSON cannot hold it.
    """
    header = {"step": step, "settings": dict(settings or {}), "optimizer_groups": optimizer_groups}
    try:
        json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint cannot be written: {error}") from error
    return header


def check_names(generators: Mapping[str, torch.Generator]) -> None:
    """Raise a CheckpointError if a generator has a name that torch's own need."""
    if any(name.startswith("torch") for name in generators):
        raise CheckpointError("names that begin with 'torch' are kept for torch's own generators: choose another")


def check_weights(path: Path, here: Mapping[str, torch.Size], there: Mapping[str, torch.Size]) -> None:
    """Raise a CheckpointError unless a model's tensors and a checkpoint's have the same names and shapes."""
    missing, extra = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} is of another model: the model has {len(missing)} weights that the checkpoint lacks "
            f"({missing[:3]}), the checkpoint has {len(extra)} that the model lacks ({extra[:3]})"
        )
    for name, shape in here.items():
        if shape != there[name]:
            raise CheckpointError(
                f"{path} is of a model of another size: {name} is {tuple(there[name])} in the checkpoint "
                f"and {tuple(shape)} in the model. Build the model from the settings saved with it"
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def save_checkpoint(
    path: str | Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; returns its path.

    Args:
        path: the file, `*.safetensors` by custom; an older one there is replaced once the new one is complete.
        step: steps taken so far.
        model: its weights are saved. Two names of one tensor are not supported: tie weights in the forward pass.
        optimizer: its state is saved, for training on.
        generators: random generators besides torch's global one, by name (the one that draws batches, for one).
        settings: anything that JSON can hold.

    Raises:
        CheckpointError: the folder is missing or read-only, the disk is full, the settings are not JSON, two weights
            are one tensor, or a generator is called "torch". An older file is then as it was, and nothing is left
            beside it.
    """
    path = Path(path)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    groups = None
    if optimizer is not None:
        saved = optimizer.state_dict()
        groups = saved["param_groups"]
        for index, state in saved["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    generators = generators or {}
    check_names(generators)
    tensors |= {f"random/{name}": generator.get_state() for name, generator in generators.items()}
    tensors["random/torch"] = torch.get_rng_state()
    for index in range(torch.cuda.device_count()):
        tensors[f"random/torch-cuda-{index}"] = torch.cuda.get_rng_state(index)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    header = json.dumps(header_of(step, settings, groups))
    try:
        content = save(tensors, {"format": FORMAT, "header": header, "sha256": _digest(header, tensors)})
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: two names of one tensor
        raise CheckpointError(f"the checkpoint cannot be written: {error}") from error
    try:
        return write_whole(path, content)
    except NotWritten as error:
        raise CheckpointError(str(error)) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify it; `Checkpoint.restore` then puts it into a model.

    Raises:
        CheckpointError: there is no such file, it is not one of ours, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file, it may be cut short: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint written by save_checkpoint")
    text = metadata.get("header", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise CheckpointError(f"{path} is damaged: what it holds is not what was saved. Use an earlier checkpoint")
    header = json.loads(text)
    return Checkpoint(header["step"], header["settings"], tensors, header["optimizer_groups"], path)


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
