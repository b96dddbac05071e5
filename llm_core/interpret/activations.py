"""Activations: what a module takes in and gives out, written down or replaced while a model runs.

    with recorded(model, ["blocks.3"]) as kept:     what the block gave, for every forward pass
        model(ids)
    with patched(model, {"blocks.3": change}):      every module after it reads change(x) instead of x
        model(ids)

Both use torch's forward hooks, and both take them off at the end of the `with` block, also after an exception.
The first only reads: it shows what is there. The second intervenes: it shows what depends on it.

The residual stream has L + 1 places in a decoder of L blocks: what each block reads, and what the final norm reads.
`stream_names` has the names of the modules that read it, for `at="input"`.

Source: Vig et al. 2020 and Geiger et al. 2021 (interventions on activations).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Side = Literal["input", "output"]
Change = Callable[[Tensor], Tensor]


class UnknownModuleError(ValueError):
    """A name that no module of the model has."""


@runtime_checkable
class Decoder(Protocol):
    """What the residual stream is found by: blocks that read it in turn, a final norm, and an output head."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks."""

    @property
    def norm(self) -> nn.Module:
        """The final norm, (B, T, D) -> (B, T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head, (B, T, D) -> (B, T, V)."""


def decoder(model: nn.Module) -> Decoder:
    """The model itself, if it is a decoder.

    Raises:
        ValueError: the model lacks one of the parts of a `Decoder`.
    """
    if isinstance(model, Decoder):
        return model
    missing = [name for name in ("blocks", "norm", "logits") if not hasattr(model, name)]
    raise ValueError(
        f"the residual stream is looked for in `blocks`, `norm` and `logits`, as GPT and Llama have them: this "
        f"{type(model).__name__} has no {', '.join(missing)}"
    )


def stream_names(model: nn.Module) -> list[str]:
    """Names of the L + 1 modules whose inputs are the residual stream: each block, and the final norm.

    Raises:
        ValueError: the model is not a `Decoder`.
    """
    return [*(f"blocks.{i}" for i in range(len(decoder(model).blocks))), "norm"]


@contextmanager
def recorded(model: nn.Module, names: Iterable[str], *, at: Side = "output") -> Iterator[dict[str, list[Tensor]]]:
    """Record what some modules give, in every forward pass inside the `with` block.

    Args:
        model: any model.
        names: of modules, as in `model.named_modules()`; "" is the model itself.
        at: whether to record what a module gives or what it takes in (its first positional argument).

    Yields:
        For each name one tensor a call of its module, detached, and a copy: no later step can change it.

    Raises:
        UnknownModuleError: a name is no module.
        ValueError: in a forward pass, what was to be recorded is not one tensor.

    >>> with recorded(nn.Sequential(nn.ReLU(), nn.Flatten()), ["0"]) as kept:
    ...     kept
    {'0': []}
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    modules = _find(model, kept)
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_hook(module, partial(_record, kept[name]), name, at).remove)
        yield kept


@contextmanager
def patched(model: nn.Module, changes: Mapping[str, Change | Tensor], *, at: Side = "output") -> Iterator[None]:
    """Replace what some modules give, in every forward pass inside the `with` block.

    Args:
        model: any model.
        changes: for each name a function of the activation, or the tensor that takes its place. A function gets a
            copy: it may write into it. Gradients flow through both.
        at: whether to replace what a module gives or what it takes in (its first positional argument).

    Raises:
        UnknownModuleError: a name is no module.
        ValueError: in a forward pass, the replacement has another shape or dtype than what it replaces, or what was to
            be replaced is not one tensor.

    >>> import torch
    >>> model = nn.Sequential(nn.ReLU(), nn.Softmax(dim=0))
    >>> with patched(model, {"0": lambda x: 0 * x}):
    ...     model(torch.tensor([3.0, 1.0]))
    tensor([0.5000, 0.5000])
    """
    modules = _find(model, changes)
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_hook(module, partial(_replace, changes[name], name), name, at).remove)
        yield


def _find(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))  # a shared module has several names
    for name in names:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=3)
            hint = f"; nearest in spelling: {', '.join(close)}" if close else ""
            raise UnknownModuleError(
                f"{name!r} is none of the {len(modules)} modules of this {type(model).__name__}{hint}. "
                "model.named_modules() lists them"
            )
    return {name: modules[name] for name in names}


def _hook(module: nn.Module, act: Callable[[Tensor], Tensor | None], name: str, at: Side) -> RemovableHandle:
    if at == "output":
        return module.register_forward_hook(partial(_on_output, act, name))
    if at == "input":
        return module.register_forward_pre_hook(partial(_on_input, act, name))
    raise ValueError(f'a module has two sides, "input" and "output": got at={at!r}')


def _on_output(act: Callable[[Tensor], Tensor | None], name: str, module: nn.Module, args: Any, output: Any) -> Any:
    return act(_tensor(output, name, "output"))


def _on_input(act: Callable[[Tensor], Tensor | None], name: str, module: nn.Module, args: Any) -> Any:
    replaced = act(_tensor(args[0] if args else None, name, "first positional argument"))
    return None if replaced is None else (replaced, *args[1:])


def _tensor(value: Any, name: str, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"the {what} of {name!r} must be one tensor: got {type(value).__name__}. Try a module in it")
    return value


def _record(kept: list[Tensor], x: Tensor) -> None:
    kept.append(x.detach().clone())


def _replace(change: Change | Tensor, name: str, x: Tensor) -> Tensor:
    # A copy: dropout, for one, gives in eval mode the very tensor it was given, which others read too.
    new = change if isinstance(change, Tensor) else change(x.clone())
    if new.shape != x.shape or new.dtype != x.dtype:
        raise ValueError(
            f"what replaces the activation of {name!r} must be {x.dtype} of shape {tuple(x.shape)}: "
            f"got {new.dtype} of shape {tuple(new.shape)}"
        )
    return new
