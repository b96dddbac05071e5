"""What exercise 03/04 is about: what its functions are called with, and its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_core.exercises.spec import Arguments, Function, Spec, between, one_of


class _Bigram(nn.Module):
    """Ids (B, T) -> logits (B, T, V), keeping a diary of the rows that went forward and of each way back."""

    def __init__(self, V: int, source: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(V, 5, generator=source))
        self.head = nn.Parameter(torch.randn(5, V, generator=source))
        self.diary: list[float] = []

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token, from the last one alone."""
        logits = self.embedding[ids].tanh() @ self.head
        if logits.requires_grad:
            self.diary.append(len(ids))
            logits.register_hook(lambda gradient: self.diary.append(-1))
        return logits


def _gradients(source: torch.Generator, n: int, size: int, max_norm: float = 0.0) -> Arguments:
    shapes = [(size,), (2, size), (), (size, 1, 3)][:n]
    gradients = [(k + 1) * torch.randn(shape, generator=source) for k, shape in enumerate(shapes)]
    return gradients, max_norm or one_of(source, 0.01, 0.7, 2.5, 40.0)


def _step(source: torch.Generator, n: int, T: int, V: int, clipped: bool = False, adam: bool = False) -> Arguments:
    pad = one_of(source, 0, V - 1, V // 2)
    model = _Bigram(V, source)
    words = [token for token in range(V) if token != pad]
    parts = []
    for _ in range(n):
        B, longest = between(source, 1, 3), between(source, 1, T)
        part = torch.full((B, longest + 1), pad)
        for row in range(B):
            length = longest if row == 0 else between(source, 1, longest)
            part[row, : length + 1] = torch.tensor([one_of(source, *words) for _ in range(length + 1)])
        parts.append(part)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=source)
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, eps=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return model, parts, optimizer, 0.05 if clipped else 1e3, pad


def _left(given: Arguments, loss: Any) -> dict[str, Tensor]:
    model, _, optimizer, *_ = given
    modes = [float(model.training), *(float(p.requires_grad) for p in model.parameters())]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    named = {f"the model's {name} after the step": p.detach().clone() for name, p in model.named_parameters()}
    moments = [s.flatten() for state in optimizer.state.values() for s in state.values() if isinstance(s, Tensor)]
    return {
        **named,
        "the order of rows forward and ways back (-1)": torch.tensor(model.diary),
        "the optimizer's state after the step": torch.cat([torch.zeros(1), *moments]).detach().clone(),
        "the modes and learning rates after the step": torch.tensor([*modes, *rates]),
    }


def _drawn(source: torch.Generator) -> dict[str, Any]:
    return {
        "seed": between(source, 10, 99),
        "n_parts": between(source, 2, 5),
        "max_length": between(source, 3, 11),
        "n_words": between(source, 3, 30),
    }


SPEC = Spec(
    functions=(
        Function(
            "clip",
            _gradients,
            {"n": (1, 2, 3, 4), "size": (1, 2, 5)},
            cases={
                "all zeros": lambda _: ([torch.zeros(3), torch.zeros(2, 2)], 1.0),
                "very short gradients": lambda s: ([1e-9 * torch.randn(4, generator=s)], 1e-10),
                "the bound reached exactly": lambda _: ([torch.tensor([3.0, 0.0]), torch.tensor([4.0])], 5.0),
            },
            gradients="never",
            fresh=True,
            rtol=1e-4,
            atol=1e-14,
        ),
        Function(
            "training_step",
            _step,
            {"n": (1, 2, 4), "T": (1, 2, 5), "V": (3, 4, 9)},
            cases={
                "a gradient that is clipped": lambda s: _step(s, 3, 4, 6, clipped=True),
                "AdamW": lambda s: _step(s, 3, 4, 6, adam=True),
                "AdamW and a gradient that is clipped": lambda s: _step(s, 2, 5, 7, clipped=True, adam=True),
            },
            gradients="never",
            after=_left,
        ),
    ),
    parameters=(
        {"seed": 0, "n_parts": 3, "max_length": 7, "n_words": 9},
        {"seed": 1, "n_parts": 1, "max_length": 1, "n_words": 1},
        {"seed": 2, "n_parts": 5, "max_length": 4, "n_words": 2},
        {"seed": 3, "n_parts": 8, "max_length": 24, "n_words": 200},
    ),
    drawn=_drawn,
)
