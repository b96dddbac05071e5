"""Checkpoints that several processes write and read together, each its own part; the numbers may differ.

    run/step-00000200/            one checkpoint
        __0_0.distcp  ...         tensors, as many files as processes wrote (torch.distributed.checkpoint)
        .metadata                 which part of which tensor is where
        random.0.safetensors ...  the states of each process' random generators
        manifest.json             the step, settings, and size and SHA-256 of every file above
    run/step-00000300.x.part/     unfinished: a save that goes on, or was killed

A checkpoint is written under another name and renamed when every process has finished and every file is on the disk.
So what has the name of a checkpoint is whole, and a crash at any moment costs the steps since the last one.
`latest(ShardedStore(folder))` finds it; it verifies every file, and goes back to the one before if one was damaged
later. A `Run` with such a store saves, prunes and goes on by itself.

Tensors are named as in the model, whoever holds them. Two processes can go on with what four have saved, and one
process can read all of it: `ShardedCheckpoint.restore` into a model that is not sharded.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm_core.files import digest, sync, write_whole
from llm_core.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_names,
    check_settings,
    check_states,
    check_weights,
    header_of,
    name_of,
)
from llm_core.training.packing import unpack

FORMAT = "llm_core sharded checkpoint 1"
_MANIFEST = "manifest.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardedCheckpoint:
    """A checkpoint that was found whole. `world` processes have written it; `settings` is what was saved with it."""

    step: int
    settings: dict[str, Any]
    world: int
    optimizer_groups: list[dict[str, Any]] | None
    same_everywhere: tuple[str, ...]  # generators whose state was the same in all processes
    path: Path = field(compare=False)
    optimizer_values: dict[str, dict[str, Any]] = field(default_factory=dict)  # state that is no tensor, by parameter

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        *,
        scheduled: Collection[str] = (),
    ) -> int:
        """Put the model, the optimizer and the generators (torch's global one too) where they were; returns the step.

        All processes must call it. Each reads the parts of the tensors that it holds, however they are divided now.
        A generator is put where it was in the same rank. With another number of processes that is done for those
        that were the same everywhere (one that draws the batch of all processes); the others stay as they are.
        `scheduled` names settings of the optimizer that change as the run goes, besides the learning rate.

        Raises:
            CheckpointError: names or shapes differ from the model's, the optimizer has other settings (weight decay,
                betas), or the checkpoint has no state for the optimizer or a generator. Nothing is changed then.
        """
        saved = self._saved()
        state: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        there = {key: entry.size for key, entry in saved.items() if key.startswith("model/")}
        check_weights(self.path, {key: tensor.shape for key, tensor in state.items()}, there)
        names = _names(model)
        if optimizer is not None:
            self._check_optimizer(optimizer, names, scheduled)
        random_states = self._random_states(generators or {})
        found = {name: generator for name, generator in (generators or {}).items() if name in random_states}
        check_states(self.path, found, random_states)

        parameters = dict(model.named_parameters())
        for key, tensor in saved.items():
            if optimizer is not None and key.startswith("optimizer/"):
                state[key] = _room_for(tensor, parameters[_parts(key)[0]])
        _load_tensors(state, self.path, alone=_world() == 1)  # into the model's own tensors
        if optimizer is not None:
            self._put_optimizer(optimizer, parameters, state)
        if "torch" in random_states:
            torch.set_rng_state(random_states["torch"])
        for name, generator in found.items():
            generator.set_state(random_states[name])
        return self.step

    def gather(self) -> Checkpoint:
        """The whole checkpoint in this process' memory, as one that `save_checkpoint` writes; generators of rank 0."""
        state = {key: torch.empty(t.size, dtype=t.properties.dtype) for key, t in self._saved().items()}
        _load_tensors(state, self.path, alone=True)
        tensors = {key: tensor for key, tensor in state.items() if key.startswith("model/")}
        tensors |= {f"random/{name}": tensor for name, tensor in self._random_file(0).items()}
        groups, index = None, {}
        if self.optimizer_groups is not None:
            # One process numbers its parameters in the order of the groups.
            order = [name for group in self.optimizer_groups for name in group["params"]]
            index = {name: i for i, name in enumerate(order)}
            groups = [{**group, "params": [index[name] for name in group["params"]]} for group in self.optimizer_groups]
        for key, tensor in state.items():
            if key.startswith("optimizer/"):
                name, part = _parts(key)
                tensors[f"optimizer/{index[name]}/{part}"] = tensor
        values = {index[name]: of_one for name, of_one in self.optimizer_values.items()}
        return Checkpoint(self.step, self.settings, tensors, groups, self.path, values)

    def _saved(self) -> dict[str, TensorStorageMetadata]:
        entries = dcp.FileSystemReader(self.path).read_metadata().state_dict_metadata
        return {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def _check_optimizer(
        self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], scheduled: Collection[str]
    ) -> None:
        if self.optimizer_groups is None:
            raise CheckpointError(
                f"{self.path} was saved without an optimizer: restore the model alone, or use another checkpoint"
            )
        saved = [group["params"] for group in self.optimizer_groups]
        here = [[names.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
        if saved != here:
            raise CheckpointError(
                f"{self.path} holds an optimizer of other parameters: its groups have {[len(g) for g in saved]}, "
                f"this one's have {[len(g) for g in here]}, or they are in another order. "
                "Build the optimizer from the same groups as before"
            )
        check_settings(self.path, optimizer.param_groups, self.optimizer_groups, scheduled)

    def _put_optimizer(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        optimizer.state.clear()
        for key, tensor in state.items():
            if key.startswith("optimizer/"):
                name, part = _parts(key)
                optimizer.state[parameters[name]][part] = tensor
        for name, values in self.optimizer_values.items():
            optimizer.state[parameters[name]] |= values
        assert self.optimizer_groups is not None
        for group, saved in zip(optimizer.param_groups, self.optimizer_groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})

    def _random_file(self, rank: int) -> dict[str, Tensor]:
        return load((self.path / f"random.{rank}.safetensors").read_bytes())

    def _random_states(self, generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
        rank, world = _rank(), _world()
        states = self._random_file(rank if rank < self.world else 0)
        missing = [name for name in generators if name not in states]
        if missing:
            raise CheckpointError(
                f"{self.path} holds no state of the generators {missing}; it has {sorted(states)}. "
                "Give them the names under which they were saved"
            )
        if world == self.world:
            return states
        return {name: state for name, state in states.items() if name in self.same_everywhere}


def save_sharded(
    folder: str | Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint `folder/step-...`; returns its path. All processes must call it.

    Args:
        folder: where all checkpoints of a run lie, on a disk that all processes share. It is made if it is missing.
            What killed saves have left there is removed.
        step: steps taken so far. An older checkpoint of this step is replaced.
        model: its weights are saved, sharded or not.
        optimizer: its state is saved, for training on.
        generators: this process' random generators besides torch's global one, by name (on a GPU, for one,
            `torch.cuda.default_generators[local_rank]`).
        settings: anything that JSON can hold; those of rank 0 are saved.

    Raises:
        CheckpointError: a process could not write its part, the settings are not JSON, or a generator is called
            "torch". All processes raise it, and the checkpoints that were there are still there.
    """
    folder = Path(folder)
    final = folder / name_of(step)
    names = _names(model)
    state: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    groups: list[dict[str, Any]] | None = None
    other_values: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        for parameter, values in optimizer.state.items():
            bare = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            state |= {f"optimizer/{names[parameter]}/{key}": tensor for key, tensor in bare.items()}
            if len(bare) < len(values):
                other_values[names[parameter]] = {key: value for key, value in values.items() if key not in bare}
        groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
        ]
    random_states = {name: generator.get_state() for name, generator in (generators or {}).items()}

    def check() -> tuple[str, str]:
        check_names(generators or {})
        text = json.dumps({"format": FORMAT, "world": _world(), **header_of(step, settings, groups, other_values)})
        temporary = folder / f"{final.name}.{secrets.token_hex(4)}.part"
        if _rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("step-*.part"):
                shutil.rmtree(left)
            temporary.mkdir()
        return str(temporary), text

    # Each part ends with all processes knowing whether all have done it, so that they stop together or go on together.
    place, text = _together("begin the checkpoint", check)[0]
    temporary = Path(place)
    try:
        _together("write the tensors", lambda: _save_tensors(state, temporary))
        random_states["torch"] = torch.get_rng_state()
        digests = _together("write the generators", lambda: _save_random(random_states, temporary))
        files = _together("read back what was written", lambda: _describe(temporary))
        same = [name for name in digests[0] if all(other.get(name) == digests[0][name] for other in digests)]
        manifest = {
            **json.loads(text),
            "same_everywhere": same,
            "files": {k: v for part in files for k, v in part.items()},
        }
        _together("finish the checkpoint", lambda: _publish(manifest, temporary, final) if _rank() == 0 else None)
    except CheckpointError:
        if _rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load_sharded(path: str | Path) -> ShardedCheckpoint:
    """Verify a checkpoint and read what it is; `restore` then reads its tensors. All processes must call it.

    The files are divided among the processes, so that each is read for verification once.

    Raises:
        CheckpointError: there is no finished checkpoint, or a file of it is missing or is not what was written: all
            processes raise it, with the file's name.
    """
    path = Path(path)

    def read() -> ShardedCheckpoint:
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise CheckpointError(f"{path} is no checkpoint written by save_sharded: {manifest['format']!r}")
            files = sorted(manifest["files"].items())
            found = ShardedCheckpoint(
                manifest["step"],
                unpack(manifest["settings"]),
                manifest["world"],
                unpack(manifest["optimizer_groups"]),
                tuple(manifest["same_everywhere"]),
                path,
                unpack(manifest.get("optimizer_values", {})),
            )
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no finished checkpoint at {path}: it has no {_MANIFEST}. Use an earlier checkpoint"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path / _MANIFEST} is damaged: {error}. Use an earlier checkpoint") from error
        for name, description in files[_rank() :: _world()]:
            _verify(path / name, description)
        return found

    return _together(f"verify {path}", read)[_rank()]


class ShardedStore:
    """The checkpoints of a run in several processes, for `Run(store=...)`: a folder for each step.

    All processes make one, of a folder on a disk that they share, and call each method together.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def rank(self) -> int:
        """This process among the others."""
        return _rank()

    def save(
        self,
        *,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of a step; returns its path. Arguments and errors are those of `save_sharded`."""
        return save_sharded(
            self.folder, step=step, model=model, optimizer=optimizer, generators=generators, settings=settings
        )

    def finished(self) -> list[Path]:
        """The checkpoints that have a manifest, the newest first."""
        # One process looks, so that all see the same ones, whatever a network's disk shows to whom.
        names = _together("look for checkpoints", lambda: _finished(self.folder) if _rank() == 0 else [])[0]
        return [self.folder / name for name in names]

    def load(self, path: Path) -> ShardedCheckpoint:
        """Verify a checkpoint and read what it is; errors are those of `load_sharded`."""
        return load_sharded(path)

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep`, and what killed saves have left."""
        _together("drop old checkpoints", lambda: _drop(self.folder, keep) if _rank() == 0 else None)

    def set_aside(self, path: Path) -> None:
        """Call a damaged checkpoint `step-....damaged`."""
        _together("set a damaged checkpoint aside", lambda: _set_aside(path) if _rank() == 0 else None)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""
        if _world() == 1:
            return flag
        number = torch.tensor(int(flag))
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return bool(number)


# ---- parts of a save ----


def _save_tensors(state: dict[str, Tensor], temporary: Path) -> None:
    with _without_warning():
        # sync_files: on the disk before the checkpoint takes its name, for a power cut.
        writer = dcp.FileSystemWriter(temporary, sync_files=True, overwrite=False)
        dcp.save(state, storage_writer=writer, no_dist=_world() == 1)


def _save_random(states: Mapping[str, Tensor], temporary: Path) -> dict[str, str]:
    write_whole(temporary / f"random.{_rank()}.safetensors", save(dict(states)))
    return {name: hashlib.sha256(state.numpy().tobytes()).hexdigest() for name, state in states.items()}


def _describe(temporary: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of this process' share of the files."""
    paths = sorted(temporary.iterdir())[_rank() :: _world()]
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in paths}


def _publish(manifest: Mapping[str, Any], temporary: Path, final: Path) -> None:
    write_whole(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
    old = final.with_name(f"{final.name}.old.part")
    if final.exists():  # a folder cannot be renamed onto another
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


# ---- parts of a load ----


def _finished(folder: Path) -> list[str]:
    """Names of the finished checkpoints, the last one first."""
    names = [path.parent.name for path in folder.glob(f"step-*/{_MANIFEST}")]
    return sorted((n for n in names if n.removeprefix("step-").isdigit()), key=lambda n: -int(n.removeprefix("step-")))


def _drop(folder: Path, keep: int) -> None:
    for name in _finished(folder)[keep:]:
        # Under another name first: killed in the midst of it, this must not leave half of a checkpoint.
        (folder / name).rename(folder / f"{name}.old.part")
    for left in folder.glob("step-*.part"):
        shutil.rmtree(left)


def _set_aside(path: Path) -> None:
    path.rename(path.with_suffix(".damaged"))


def _load_tensors(state: dict[str, Tensor], path: Path, *, alone: bool) -> None:
    with _without_warning():
        dcp.load(state, checkpoint_id=path, no_dist=alone)


@contextmanager
def _without_warning() -> Iterator[None]:
    """Torch warns a process that saves or loads alone that it does so alone; here that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _verify(path: Path, description: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Use an earlier checkpoint")
    size = path.stat().st_size
    if size != description["bytes"]:
        raise CheckpointError(
            f"{path} is damaged: it has {size} bytes, {description['bytes']} were written. Use an earlier checkpoint"
        )
    if digest(path) != description["sha256"]:
        raise CheckpointError(f"{path} is damaged: it is not what was written. Use an earlier checkpoint")


def _parts(key: str) -> tuple[str, str]:
    """(parameter, piece of state) of the name that a tensor of the optimizer has in a checkpoint."""
    name, _, part = key.removeprefix("optimizer/").rpartition("/")
    return name, part


def _room_for(saved: TensorStorageMetadata, parameter: Tensor) -> Tensor:
    """An empty tensor for a piece of optimizer state, divided as its parameter is, if it has the parameter's shape."""
    dtype = saved.properties.dtype
    if saved.size == parameter.shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.empty(saved.size, dtype=dtype)  # the number of steps, for one


# ---- all processes together ----


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _together(what: str, part: Callable[[], _T]) -> list[_T]:
    """Do a part in every process; the results by rank. If one fails, all raise its error."""
    error: CheckpointError | None = None
    result: _T | None = None
    try:
        result = part()
    except CheckpointError as problem:
        error = problem
    except (OSError, TypeError, ValueError, RuntimeError, CheckpointException) as problem:
        error = CheckpointError(f"process {_rank()} could not {what}: {problem}")
        error.__cause__ = problem
    if _world() == 1:
        outcomes = [(str(error) if error else None, result)]
    else:
        outcomes = [(None, None)] * _world()
        dist.all_gather_object(outcomes, (str(error) if error else None, result))
    first = next((text for text, _ in outcomes if text is not None), None)
    if first is not None:
        raise (error if error is not None else CheckpointError(first))
    return [result for _, result in outcomes]  # type: ignore[misc]
