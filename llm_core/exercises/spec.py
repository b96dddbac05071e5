"""What an exercise is about: its functions, its parameters, and what its check calls the functions with.

Every exercise has a `spec.py` that ends in `SPEC = Spec(...)`. The checker goes through the parts that a learner sees.
What the spec says is examined behind them, for every function whose parts have all passed (`Exam.hold`): many sizes,
special ids, far-apart numbers, the types of the results, and the gradients of every argument, all held against the
reference solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Function:
    """One function that the learner writes.

    Attributes:
        name: as in the stub and in the call of `check`.
        arguments: what it is called with, drawn from a generator for these sizes, as in `arguments(source, T=3, S=5)`.
        sizes: what each size may be, the smallest first. The check draws from them, and shrinks to the smallest that
            still fails.
        cases: further arguments, by what is special about them: "scores of -200".
        returns: the names of the results where there are several, as in "keep, residual".
        gradients: whether they are compared: always; only of results that carry one, where the task allows NumPy; or
            never, where nobody asks for any: what is drawn from, and gradients themselves.
        fresh: whether the results have to be new tensors, which share no memory with the arguments.
        banned: what the task rules out, as dotted names: "torch.nn.functional.layer_norm".
        tracked: the tensors whose gradients are compared, by name, if they are not the floating-point arguments.
        after: further tensors to compare after the call, by name, from the arguments and the result: a model's weights.
        rtol, atol: how far a number may lie from the reference solution's.
    """

    name: str
    arguments: Callable[..., Arguments]
    sizes: Mapping[str, Sequence[int]]
    cases: Mapping[str, Callable[[torch.Generator], Arguments]] = field(default_factory=dict)
    returns: str = ""
    gradients: Literal["always", "carried", "never"] = "always"
    fresh: bool = False
    banned: tuple[str, ...] = ()
    tracked: Callable[[Arguments], Mapping[str, Tensor]] | None = None
    after: Callable[[Arguments, Any], Mapping[str, Tensor]] | None = None
    rtol: float = 1e-4
    atol: float = 2e-5


@dataclass(frozen=True)
class Spec:
    """An exercise's functions and parameters.

    Attributes:
        functions: in the order of the stub.
        parameters: sets that the tests run; the first are the notebook's defaults, then the smallest and large ones.
        drawn: one more set, drawn from a generator; each check also runs with two of these, whatever the notebook says.
    """

    functions: tuple[Function, ...]
    parameters: tuple[Mapping[str, Any], ...]
    drawn: Callable[[torch.Generator], Mapping[str, Any]]


def one_of(source: torch.Generator, *choices: Any) -> Any:
    """One of these, drawn."""
    return choices[int(torch.randint(len(choices), (), generator=source))]


def between(source: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=source))
