"""Checkpoints: everything that the next step depends on, in one file.

A checkpoint is a safetensors file. Its tensors are the model's weights, the optimizer's state and the states of
the random generators; the rest (the step, settings) is JSON in the file's header. The file is written beside
its place and then moved there, so that a crash, a full disk or a kill leaves the old file or the new one, never half
of one. A SHA-256 of all it holds finds a file that was damaged later.

Resuming from a checkpoint gives, on the same machine, the same bits as a run that was never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from llm_core.files import NotWritten, write_whole
from llm_core.training.packing import pack, unpack

FORMAT = "llm_core checkpoint 1"
# State with an entry for each of a parameter's, of the optimizers of this package and most of torch's.
LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "master")


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
    optimizer_values: dict[int, dict[str, Any]] = field(default_factory=dict)  # state that is no tensor, by parameter

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        *,
        scheduled: Collection[str] = (),
    ) -> int:
        """Put the model, the optimizer and the generators (torch's global one too) where they were; returns the step.

        Args:
            model: of the same sizes as the saved one.
            optimizer: made with the same settings as the saved one; the learning rate may be another.
            generators: by the names they were saved under.
            scheduled: settings of the optimizer that change as the run goes, besides the learning rate: they are taken
                from the checkpoint, whatever the optimizer was made with.

        Raises:
            CheckpointError: names, shapes or kinds of numbers differ from the model's, the optimizer has other settings
                (weight decay, betas), or the checkpoint has no state for the optimizer or a generator, or one of a
                generator of another kind of device. Nothing is changed then.
        """
        generators = generators or {}
        weights = self._under("model")
        check_weights(self.path, _shapes(model.state_dict()), _shapes(weights))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() != weights[name].is_floating_point():  # torch would round without a word
                raise CheckpointError(
                    f"{self.path} has {name} in {weights[name].dtype}, the model in {tensor.dtype}: build the model as "
                    "it was when it was saved"
                )
        state: dict[int, dict[str, Any]] = {}
        if optimizer is not None:
            state = self._optimizer_state()
            self._check_optimizer(optimizer, state, scheduled)
        random_states = self._under("random")
        missing = [name for name in generators if name not in random_states]
        if missing:
            raise CheckpointError(
                f"{self.path} holds no state of the generators {missing}; it has {sorted(random_states)}. "
                "Give them the names under which they were saved"
            )
        check_states(self.path, generators, random_states)

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

    def _check_optimizer(
        self, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]], scheduled: Collection[str]
    ) -> None:
        if self.optimizer_groups is None:
            raise CheckpointError(
                f"{self.path} was saved without an optimizer: restore the model alone, or use another checkpoint"
            )
        saved = [len(group["params"]) for group in self.optimizer_groups]
        here = [len(group["params"]) for group in optimizer.param_groups]
        if saved != here:
            raise CheckpointError(
                f"{self.path} holds an optimizer whose groups have {saved} parameters; this one's have {here}. "
                "Build the optimizer from the same groups as before"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, of_parameter in state.items():
            for key, tensor in of_parameter.items():
                if key in LIKE_PARAMETERS and tensor.shape != parameters[index].shape:
                    raise CheckpointError(
                        f"{self.path} holds an optimizer for other parameters: {key} of parameter {index} is "
                        f"{tuple(tensor.shape)}, and the parameter is {tuple(parameters[index].shape)}. "
                        "Build the optimizer from the same groups as before"
                    )
        check_settings(self.path, optimizer.param_groups, self.optimizer_groups, scheduled)

    def _optimizer_state(self) -> dict[int, dict[str, Any]]:
        state = {index: copy.deepcopy(values) for index, values in self.optimizer_values.items()}
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
    step: int,
    settings: Mapping[str, Any] | None,
    optimizer_groups: list[dict[str, Any]] | None,
    optimizer_values: Mapping[Any, dict[str, Any]] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says besides its tensors, as `packing.pack` writes it; tensors in it are put into `tensors`.

    Raises:
        CheckpointError: it holds something that a checkpoint cannot.
    """
    try:
        header = {
            "step": step,
            "settings": pack(dict(settings or {})),
            "optimizer_groups": pack(optimizer_groups, tensors),
            "optimizer_values": pack(optimizer_values or {}, tensors),
        }
        json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written: {error}. Leave it out of the settings or make it text"
        ) from error
    return header


def check_names(generators: Mapping[str, torch.Generator]) -> None:
    """Raise a CheckpointError if a generator has a name that torch's own need."""
    for wrong in generators:
        if not wrong.startswith("torch"):
            continue
        raise CheckpointError(
            f"names that begin with 'torch' are kept for torch's own generators, and {wrong!r} does: choose another"
        )


def check_settings(
    path: Path, here: list[dict[str, Any]], there: list[dict[str, Any]], scheduled: Collection[str] = ()
) -> None:
    """Raise a CheckpointError if the groups of an optimizer have other settings than those of a checkpoint.

    The learning rate belongs to the schedule and is not compared, nor is what `scheduled` names, nor the momentum where
    torch's OneCycleLR or CyclicLR changes it.
    """
    for number, (asked, stored) in enumerate(zip(here, there, strict=True)):
        passed = {"params", "param_names", "lr", "initial_lr", *scheduled}
        if "max_momentum" in stored:
            passed |= {"momentum", "betas"}
        for name in sorted(asked.keys() & stored.keys() - passed):
            if not _same(asked[name], stored[name]):
                raise CheckpointError(
                    f"{path} was saved with {name}={stored[name]!r} in group {number} of the optimizer, and this one "
                    f"was made with {name}={asked[name]!r}. Make it with {name}={stored[name]!r} to go on; to change "
                    f"it from here on, set optimizer.param_groups[{number}][{name!r}] after that, and where a schedule "
                    f"changes it, say so with scheduled=({name!r},)"
                )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):  # either may be given
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def check_states(path: Path, generators: Mapping[str, torch.Generator], states: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError if a generator cannot take its state: that of a GPU's is no CPU's, and the other way."""
    for name, generator in generators.items():
        try:
            torch.Generator(generator.device).set_state(states[name])
        except (RuntimeError, TypeError) as error:
            own = generator.get_state().numel()
            raise CheckpointError(
                f"{path} holds a state of the generator {name!r} of {states[name].numel()} bytes, and one on "
                f"{generator.device.type} has {own}: it was saved on another kind of device. Restore it there, or "
                "leave this generator out and seed it anew"
            ) from error


def check_weights(path: Path, here: Mapping[str, torch.Size], there: Mapping[str, torch.Size]) -> None:
    """Raise a CheckpointError unless a model's tensors and a checkpoint's have the same names and shapes."""
    missing, extra = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} is of another model: the model has {len(missing)} weights that the checkpoint lacks "
            f"({missing[:3]}), the checkpoint has {len(extra)} that the model lacks ({extra[:3]}). "
            "Build the model from the settings saved with it"
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
    groups, values = None, {}
    if optimizer is not None:
        saved = optimizer.state_dict()
        groups = saved["param_groups"]
        for index, state in saved["state"].items():
            bare = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in bare.items()}
            # A parameter without any state of its own is there all the same, with nothing in it.
            if len(bare) < len(state) or not state:
                values[index] = {key: value for key, value in state.items() if key not in bare}
    generators = generators or {}
    check_names(generators)
    tensors |= {f"random/{name}": generator.get_state() for name, generator in generators.items()}
    tensors["random/torch"] = torch.get_rng_state()
    for index in range(torch.cuda.device_count()):
        tensors[f"random/torch-cuda-{index}"] = torch.cuda.get_rng_state(index)
    header = json.dumps(header_of(step, settings, groups, values, tensors))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        content = save(tensors, {"format": FORMAT, "header": header, "sha256": _digest(header, tensors)})
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: two names of one tensor
        raise CheckpointError(
            f"{path} cannot be written: {error}. If two names are of one tensor, tie them in the forward pass"
        ) from error
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
        raise CheckpointError(f"there is no checkpoint at {path}: give the file that save_checkpoint returned")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file, it may be cut short: {error}. Use an earlier checkpoint"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a checkpoint written by save_checkpoint: "
            "weights alone are read with llm_core.pretrained, or safetensors.torch.load_file"
        )
    text = metadata.get("header", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise CheckpointError(f"{path} is damaged: what it holds is not what was saved. Use an earlier checkpoint")
    try:
        header = {name: unpack(value, tensors) for name, value in json.loads(text).items()}
        return Checkpoint(
            header["step"],
            header["settings"],
            tensors,
            header["optimizer_groups"],
            path,
            {int(index): values for index, values in header.get("optimizer_values", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its header lacks {error}. Use an earlier checkpoint") from error


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
