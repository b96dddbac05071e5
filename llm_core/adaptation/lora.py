"""LoRA: leave the weights as they are, and learn a thin correction beside each of them.

    y = W x + scale * B A x        W (O, I) frozen,  A (r, I) and B (O, r) learned,  scale = alpha / r

A correction of rank r has r (I + O) numbers instead of I O. For a layer of 4096 x 4096 and r = 8 that is 65 536 for
16 777 216, 0.4 %. The optimizer keeps its two means for these only, and an adapter is a file of a few megabytes. B
starts at zero, so the model starts as what it was. Afterwards the product can be added to W (`merge_lora`), and
nothing of it is left to compute.

    model = load_llama(folder)                                  # any model with linear layers
    add_lora(model, LoRAConfig(rank=8, alpha=16))
    optimizer = AdamW(lora_parameters(model))                   # then train_step, as ever
    with without_lora(model): ...                               # the model as it was before

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm_core.checks import check_shares, check_sizes

Model = TypeVar("Model", bound=nn.Module)


def over_rank(alpha: float | int, rank: int) -> float:
    """alpha / r, the scale of the paper (section 4.1)."""
    return alpha / rank


def over_root_rank(alpha: float | int, rank: int) -> float:
    """alpha / sqrt(r): the size of the correction then does not shrink as r grows (Kalajdzievski 2023, rsLoRA)."""
    return alpha / rank**0.5


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get a correction, and of what kind.

    Args:
        rank: r, the width of the middle.
        alpha: the larger, the more the correction counts; see `scaling`. Unlike the learning rate it is part of the
            model: it is needed to use the adapter too.
        targets: names of linear layers, as in `model.named_modules()`; `*` stands for any text, dots too. The paper
            adapts the queries and values.
        dropout: share of the inputs that the correction does not see in training. The frozen layer sees them all.
        scaling: (alpha, r) -> scale; `over_rank` or `over_root_rank`.

    Raises:
        ValueError: the rank is below 1, alpha is not above 0, dropout is outside 0 ... 1, or there is no target.
    """

    rank: int
    alpha: float | int
    targets: tuple[str, ...] = ("*.query", "*.value")
    dropout: float | int = 0.0
    scaling: Callable[[float | int, int], float] = over_rank

    def __post_init__(self) -> None:
        check_sizes(rank=self.rank)
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0: got {self.alpha}")
        check_shares(dropout=self.dropout)
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f'targets are several names, ("*.query", "*.value") for one: got {self.targets!r}')


class LoRALinear(nn.Module):
    """A frozen linear layer and its correction: base(x) + scale * B A dropout(x).

    A is drawn as `nn.Linear` draws its weights, from torch's global generator (`torch.manual_seed`); so do the
    authors' code and peft, where the paper says Gaussian. B is zero. Both are float32 at least: in bfloat16 the small
    steps of fine-tuning would be rounded away.

    Args:
        base: the layer; `nn.Linear` or any other that says its `in_features` and `out_features`, a quantised one too.
        config: rank, alpha, dropout and scaling; the targets are not looked at.

    Raises:
        ValueError: the rank is greater than a side of the layer.

    >>> layer = LoRALinear(nn.Linear(64, 32), LoRAConfig(rank=4, alpha=8))
    >>> tuple(layer.A.shape), tuple(layer.B.shape), layer.scale
    ((4, 64), (32, 4), 2.0)
    """

    def __init__(self, base: nn.Module, config: LoRAConfig) -> None:
        super().__init__()
        _check_rank(base, config.rank)
        self.in_features, self.out_features = _width(base, "in_features"), _width(base, "out_features")
        self.base = base.requires_grad_(False)
        self.config = config
        self.scale = config.scaling(config.alpha, config.rank)
        self.enabled = True
        device, dtype = _place(base)
        self.A = nn.Parameter(torch.empty(config.rank, self.in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """The layer's output, corrected."""
        y = self.base(x)
        if not self.enabled:
            return y
        x = F.dropout(x, self.config.dropout, self.training)
        correction = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B)  # never B A, which is as large as W
        return y + self.scale * correction.to(y.dtype)

    def correction(self) -> Float[Tensor, "O I"]:
        """scale * B A: what the weights would have to change by for the same effect."""
        return self.scale * self.B @ self.A

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer with the corrected weights; this one and its base stay as they are.

        Raises:
            ValueError: the base is no `nn.Linear`. See `merge_lora`.
        """
        base = _plain_base(self)
        # New weights: the old ones may be the embedding table too, which must not change.
        weight = (base.weight.to(self.A.dtype) + self.correction()).to(base.weight.dtype)
        with torch.device("meta"):  # no weights are drawn only to be replaced
            linear = nn.Linear(self.in_features, self.out_features, bias=base.bias is not None)
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), base.bias
        return linear.train(self.training)


def add_lora(model: Model, config: LoRAConfig) -> Model:
    """Give the linear layers whose names match a correction, in place, and freeze everything else.

    A layer that the model has under several matching names gets one correction. A tied output head is the embedding
    table, which is no linear layer: it stays as it is.

    Returns:
        The same model.

    Raises:
        ValueError: the model has LoRA already; a target matches no linear layer; or the rank is greater than a side
            of one that matches. The model is then as it was.
    """
    if lora_layers(model):
        raise ValueError(
            "this model has LoRA already: merge_lora it first, or name all the layers in the targets of one config"
        )
    layers = linear_layers(model)
    if not layers:
        raise ValueError(
            f"there is no layer in this {type(model).__name__} that says its in_features and out_features, as linear "
            "layers do"
        )
    for target in config.targets:
        if not any(fnmatchcase(name, target) for name in layers):
            there = ", ".join(dict.fromkeys(_without_numbers(name) for name in layers))
            raise ValueError(f"no linear layer is called {target!r}; those of this {type(model).__name__}: {there}")
    chosen = {name: layer for name, layer in layers.items() if any(fnmatchcase(name, t) for t in config.targets)}
    for name, layer in chosen.items():
        _check_rank(layer, config.rank, name)

    model.requires_grad_(False)
    made: dict[nn.Module, LoRALinear] = {}
    for name, layer in chosen.items():
        if layer not in made:
            made[layer] = LoRALinear(layer, config).train(layer.training)
        _put(model, name, made[layer])
    return model


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be corrected, by name: those that say their `in_features` and `out_features`."""
    found = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in found if name and _is_linear(module)}


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The corrected layers of a model, by name."""
    found = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in found if isinstance(module, LoRALinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """A and B of every corrected layer: what there is to train.

    Raises:
        ValueError: the model has no LoRA.
    """
    layers = dict.fromkeys(_layers_of(model).values())  # each once, though it may have two names
    return [parameter for layer in layers for parameter in (layer.A, layer.B)]


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block the model is what it was before `add_lora`; afterwards all is as it was.

    Raises:
        ValueError: the model has no LoRA, so that nothing could be switched off.
    """
    before = {layer: layer.enabled for layer in _layers_of(model).values()}
    try:
        for layer in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def merge_lora(model: Model) -> Model:
    """Add every correction to its weights and put the plain linear layers back, in place.

    The logits are those of before, up to rounding. The parameters stay frozen; `model.requires_grad_()` wakes them.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no LoRA, or a base layer is no `nn.Linear`: quantised weights would round the
            correction to their steps, which are larger. The model is then as it was.
    """
    places: dict[LoRALinear, list[str]] = {}
    for name, layer in _layers_of(model).items():
        if not name:
            raise ValueError("this model is a LoRALinear, not a model that has one: merged() gives the plain layer")
        _plain_base(layer, name)
        places.setdefault(layer, []).append(name)
    while places:  # each layer is let go before the next one is merged: the memory on top is that of one
        layer, names = places.popitem()
        plain = layer.merged()
        for name in names:
            _put(model, name, plain)
    return model


def _layers_of(model: nn.Module) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no LoRA: add_lora gives it some, merge_lora takes it away")
    return layers


def _plain_base(layer: LoRALinear, name: str = "this layer") -> nn.Linear:
    if not isinstance(layer.base, nn.Linear):
        raise ValueError(
            f"the weights of {name} are those of a {type(layer.base).__name__}, to which nothing can be added: load "
            "the model in full precision, load the adapter into it, and merge there"
        )
    return layer.base


def _is_linear(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _width(base: nn.Module, name: str) -> int:
    width = getattr(base, name, None)
    if not isinstance(width, int):
        raise ValueError(f"a layer that is to be corrected must say its {name}: this {type(base).__name__} does not")
    return width


def _check_rank(base: nn.Module, rank: int, name: str = "the layer") -> None:
    width_in, width_out = _width(base, "in_features"), _width(base, "out_features")
    if rank > min(width_in, width_out):
        raise ValueError(
            f"a correction has at most the rank of the layer: {name} is {width_out} x {width_in}, "
            f"got a rank of {rank}. Give {min(width_in, width_out)} or less"
        )


def _place(base: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a layer is, and the type of its numbers (of a quantised one, the scales), but float32 at least."""
    tensors = [tensor for tensor in (*base.parameters(), *base.buffers()) if tensor.is_floating_point()]
    if not tensors:
        return torch.get_default_device(), torch.float32
    return tensors[0].device, torch.promote_types(tensors[0].dtype, torch.float32)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _without_numbers(name: str) -> str:
    """blocks.3.attention.query -> blocks.*.attention.query: one line for all layers, and itself a target."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
