"""Name tables: the same weights under our names and under those of a published checkpoint, in both directions.

A table is a list of lines. Most say that a tensor has another name; some, that it is stored transposed, or that
theirs joins several of ours:

    same("norm.weight", "transformer.ln_f.weight")
    transposed("blocks.0.feed_forward.up.weight", "transformer.h.0.mlp.c_fc.weight")

Each line can be read from left to right and from right to left, so one table loads a checkpoint and writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The activations by the names that a config.json has for them, and ours (`layers.feedforward.ACTIVATIONS`).
ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@runtime_checkable
class HasTables(Protocol):
    """A module with buffers that are computed, not learned, and so in no checkpoint."""

    def reset_tables(self) -> None:
        """Compute them, on torch's default device."""


@dataclass(frozen=True)
class Line:
    """One tensor of theirs, and the one or more of ours that hold the same numbers."""

    ours: tuple[str, ...]
    theirs: str
    split: Callable[[Tensor], Sequence[Tensor]]  # theirs -> ours
    join: Callable[[Sequence[Tensor]], Tensor]  # ours -> theirs


def same(ours: str, theirs: str) -> Line:
    """The same tensor under two names."""
    return Line((ours,), theirs, split=lambda tensor: [tensor], join=lambda tensors: tensors[0])


def transposed(ours: str, theirs: str) -> Line:
    """A matrix that they store (in, out) and we (out, in)."""
    return Line((ours,), theirs, split=lambda tensor: [tensor.T], join=lambda tensors: tensors[0].T)


def activation_name(ours: str) -> str:
    """The first name that a config.json has for an activation of ours."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def to_ours(table: Iterable[Line], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names. What no line of the table names is left out: see `left_over`.

    Raises:
        ValueError: the table names tensors that are not there, or not floating-point numbers of at least 16 bits.
    """
    table = list(table)
    _check_all_there(table, theirs)
    small = [line.theirs for line in table if not _is_weight(theirs[line.theirs])]
    if small:
        raise ValueError(
            f"{_some(small)} should be floating-point weights: got {theirs[small[0]].dtype}. Are they quantised? Their "
            "scales would be needed too; load the checkpoint in full precision"
        )
    ours: dict[str, Tensor] = {}
    for line in table:
        ours.update(zip(line.ours, line.split(theirs[line.theirs]), strict=True))
    return ours


def to_theirs(table: Iterable[Line], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names, contiguous, ready to be saved."""
    return {line.theirs: line.join([ours[name] for name in line.ours]).contiguous() for line in table}


def left_over(table: Iterable[Line], theirs: Iterable[str]) -> list[str]:
    """Their tensors that no line names."""
    named = {line.theirs for line in table}
    return [name for name in theirs if name not in named]


class Undrawn(TorchFunctionMode):
    """Within it no weights are drawn: for a model on the meta device, which has none.

    torch's own way to draw nothing there imports 800 modules, which take 70 MB and seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, unless it draws numbers into a tensor."""
        if func in (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def check_shapes(
    table: Iterable[Line], model: nn.Module, theirs: Mapping[str, tuple[int, ...]], *, may_be_left: Sequence[str] = ()
) -> None:
    """Hold a checkpoint's shapes, by their names there, to those that the model has: before any weight is read.

    Args:
        table: their names and ours.
        model: made from the checkpoint's config; on the meta device, for one.
        theirs: see `files.read_shapes`.
        may_be_left: ends of the names of tensors that the model does without. Any other left over is an error.

    Raises:
        ValueError: a tensor is missing, of another shape, or belongs to nothing in the model.
    """
    table = list(table)
    with torch.device("meta"):  # the table turned round says what they would have to be; meta tensors have shapes alone
        state = {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}
        expected = {name: tuple(tensor.shape) for name, tensor in to_theirs(table, state).items()}
    _check_all_there(table, theirs)
    for name, shape in expected.items():
        if theirs[name] != shape:
            raise ValueError(
                f"{name} is of another shape: {theirs[name]} among the weights, {shape} by the config. "
                "Do the two belong to one checkpoint?"
            )
    unknown = [name for name in left_over(table, theirs) if not name.endswith(tuple(may_be_left))]
    if unknown:
        raise ValueError(f"the weights have {_some(unknown)}, which a model with this config has not")


def check_tied(theirs: Mapping[str, Tensor], embedding: str, head: str) -> None:
    """Hold the output head of a checkpoint, if it stores one, to the embedding table that stands in for it.

    Raises:
        ValueError: the two differ.
    """
    if head in theirs and not torch.equal(theirs[head], theirs[embedding]):
        raise ValueError(
            f"by the config {head} and {embedding} are one table, but the weights have two that differ: "
            'is "tie_word_embeddings" right?'
        )


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model its weights, by our names. The tensors become the model's own; only parts of larger ones are copied.

    A model made under `torch.device("meta")` takes no memory before, and no time to be initialised. Afterwards every
    parameter has its tensor, and tables that are computed (sines and cosines) are computed.

    Raises:
        ValueError: a tensor is missing, is of another shape, or belongs to no parameter; or holds whole numbers where
            the model has floating-point ones, or the other way round. The model is then as it was.
    """
    state = model.state_dict()
    missing = [name for name in state if name not in tensors]
    if missing:
        raise ValueError(f"no weights for {_some(missing)}")
    unknown = [name for name in tensors if name not in state]
    if unknown:
        raise ValueError(f"the model has nothing called {_some(unknown)}; it has {_some(list(state))}")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} is of another shape: the checkpoint has {tuple(tensor.shape)}, the model "
                f"{tuple(state[name].shape)}. Build the model with the checkpoint's own config"
            )
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise ValueError(
                f"{name} is of another kind: the checkpoint has {tensor.dtype}, the model {state[name].dtype}. Is one "
                "of the two quantised? Convert the other in the same way, or load the checkpoint in full precision"
            )
    model.load_state_dict({name: _of_its_own(tensor) for name, tensor in tensors.items()}, assign=True)
    _compute_tables(model)


def load_each(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], convert: Callable[[nn.Module], nn.Module]
) -> None:
    """Give a model its weights one by one, and let each layer be converted as soon as it has its own.

    So a model is quantised while it is read, and never in memory as a whole in full precision.

    Args:
        model: on the meta device; it has been held to the checkpoint (`check_shapes`).
        tensors: our names and the weights.
        convert: gets each layer that has all its weights, and returns what is to stand in its place, or the layer.
    """
    for name, tensor in tensors:
        place, _, leaf = name.rpartition(".")
        layer = model.get_submodule(place)
        setattr(layer, leaf, nn.Parameter(_of_its_own(tensor)))
        if not any(parameter.is_meta for parameter in layer.parameters(recurse=False)):
            owner, _, child = place.rpartition(".")
            setattr(model.get_submodule(owner), child, convert(layer))
    _compute_tables(model)


def _compute_tables(model: nn.Module) -> None:
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            if not isinstance(module, HasTables):
                raise TypeError(f"a {type(module).__name__} has buffers but no reset_tables() to compute them with")
            module.reset_tables()


def _of_its_own(tensor: Tensor) -> Tensor:
    """A copy if it lies transposed, or in memory that it shares: parts of a split matrix would be saved as a whole."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _is_weight(tensor: Tensor) -> bool:
    """Whether it holds weights as they are; whole numbers and floats of 8 bits stand for others, by a scale."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _check_all_there(table: Sequence[Line], theirs: Mapping[str, Any]) -> None:
    missing = [line.theirs for line in table if line.theirs not in theirs]
    if missing:
        raise ValueError(
            f"the checkpoint lacks {_some(missing)}, which this model has. It has {_some(list(theirs))}: is it a "
            "checkpoint of this kind of model, and whole?"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
