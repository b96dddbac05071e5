"""A device that there is not: what would make a GPU wait is counted; a step is recorded as a CUDA graph would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llm_core.generation import sampling

aten = torch.ops.aten
# Kernels whose results have a size that depends on numbers, or that hand a number to Python.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
    aten.multinomial.default,  # looks whether these are probabilities
}
# What Python does with a tensor's numbers at once, or what brings numbers to the device.
WAITING_CALLS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, torch.tensor, torch.as_tensor}


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING_CALLS:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Looks(TorchDispatchMode):
    """Counts, inside a `with` block, what would wait for the device if the tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = _Calls(self.found)

    def __enter__(self) -> Looks:
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.calls.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if function in WAITING or by_mask:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let generation take its tensors for a GPU's, whose numbers are not looked at without need."""
    monkeypatch.setattr(sampling, "on_host", lambda tensor: False)


class _Recorder(TorchDispatchMode):
    """Writes down each kernel with the very tensors that it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in WAITING, f"{function} cannot be recorded: it waits for the device"
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        there = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        outs = [x for x in (result if isinstance(result, tuple) else (result,)) if isinstance(x, Tensor)]
        # What shares memory with what went in is a view, or was written in place: it is right wherever that is.
        fresh = [x for x in outs if x.untyped_storage().data_ptr() not in there]
        self.kernels.append((function, args, kwargs, fresh if len(fresh) == len(outs) else []))
        return result


def recorded(step: Callable[[Tensor], Tensor], ids: Tensor, reset: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """What `cuda_graph` does, without a GPU: run the kernels of one step again, on the memory that they had then.

    What a step took from Python, a position for one, is as it was when it was recorded.
    """
    read = ids.clone()
    with _Recorder() as recorder:
        logits = step(read)

    def run(ids: Tensor) -> Tensor:
        read.copy_(ids)
        for function, args, kwargs, outs in recorder.kernels:
            result = function(*args, **kwargs)
            for out, new in zip(outs, result if isinstance(result, tuple) else (result,), strict=False):
                out.copy_(new)
        return logits

    return run
