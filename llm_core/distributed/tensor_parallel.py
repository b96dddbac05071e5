"""Tensor parallelism: one layer's matrices spread over several processes, for models whose layers fit into none.

A pair of matrices can be cut so that the processes meet once, after the second one:

    y = f(x A) B = sum over the processes of f(x A_i) B_i        A_i: some columns of A, B_i: the same rows of B

f works on each number by itself, or on each head by itself. Attention is such a pair (query, key, value | output), the
feed-forward layer is one (up, gate | down). So a block costs two sums over all processes, each of one vector a
position, and two more on the way back:

    layer                      cut by                 each process holds            together
    query, key, value          columns (heads)        H / n and K / n heads         nothing
    output                     rows                   the rows of its heads         sum of (B, T, D)
    up, gate                   columns                F / n of the width            nothing
    down                       rows                   the rows of its width         sum of (B, T, D)
    token table, output head   tokens                 V / n rows                    sum of (B, T, D), logits collected
    norms, positions           not at all             everything                    nothing

Torch's own engine does it (`DTensor`), from outside: no model knows of it. `plan` says what happens to which layer,
`parallelize` does it.

Source: Shoeybi et al. 2019 (Megatron-LM), section 3. Taught in
chapters/03_algorithms/08_several_processes and, once it is written, in 05_project/08_scale_out.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar, cast

import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from llm_core.distributed.data_parallel import all_reduce_bytes
from llm_core.distributed.sharded import local
from llm_core.layers.attention import MultiHeadAttention
from llm_core.layers.blocks import CrossAttentionBlock
from llm_core.layers.cache import Cache
from llm_core.layers.embedding import TokenEmbedding
from llm_core.layers.feedforward import FeedForward, GatedFeedForward

Model = TypeVar("Model", bound=nn.Module)


class VocabularyParallel(ParallelStyle):
    """The style of a token table: each process holds the rows of some tokens (Shoeybi et al. 2019, section 3)."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return VocabularyParallelEmbedding(module, device_mesh)

    def __repr__(self) -> str:
        return "VocabularyParallel()"


class VocabularyParallelEmbedding(nn.Module):
    """A token embedding, and with it a tied output head, of which this process holds the rows of V / n tokens.

    V need not be a multiple of n. What goes in and comes out is whole, and the same in all processes.
    """

    def __init__(self, embedding: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        table = embedding.get_parameter("weight")
        self.mesh = mesh
        self.vocab_size = len(table)
        self.weight = nn.Parameter(distribute_tensor(table.detach(), mesh, [Shard(0)]), table.requires_grad)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of the tokens: each process looks up its own, zeros stand for the others', and all are added.

        Raises:
            ValueError: an id is no token.
        """
        # Nobody would miss it otherwise: an id that no process holds would be zeros in all of them.
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            tokens = f"0 ... {self.vocab_size - 1}"
            raise ValueError(f"ids must be tokens, {tokens}: got {ids.min().item()} to {ids.max().item()}")
        return self._whole(F.embedding(self._same(ids), self.weight))

    def logits(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """How well each vector fits each token: each process scores its own tokens, and all get all scores."""
        return self._whole(F.linear(self._same(x), self.weight))

    def _same(self, x: Tensor) -> DTensor:
        return DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)

    def _whole(self, x: Tensor) -> Tensor:
        assert isinstance(x, DTensor)
        return x.redistribute(placements=[Replicate()]).to_local()


def plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """What `parallelize` does to which layer: names as in `model.named_modules()`, and torch's styles.

    Layers that are not named stay whole in every process.

    Raises:
        ValueError: there is no attention in the model, or something in it cannot be cut.
    """
    if not any(isinstance(module, MultiHeadAttention) for module in model.modules()):
        raise ValueError(f"there is no MultiHeadAttention in this {type(model).__name__}: nothing could be cut")
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            _check_attention(name, module)
            styles |= _pair(name, module, ("query", "key", "value"), "output")
            # These work on heads that only this process has, so the gradients of their weights must be added up: torch
            # knows that where it is told that the heads, dimension 1 of (B, H, T, E), are cut.
            for norm in ("query_norm", "key_norm"):
                if list(getattr(module, norm).parameters()):
                    styles[f"{name}.{norm}"] = SequenceParallel(sequence_dim=1, use_local_output=True)
        elif isinstance(module, GatedFeedForward):
            styles |= _pair(name, module, ("gate", "up"), "down")
        elif isinstance(module, FeedForward):
            styles |= _pair(name, module, ("up",), "down")
        elif isinstance(module, TokenEmbedding):
            styles[name] = VocabularyParallel()
        elif isinstance(module, CrossAttentionBlock):
            raise ValueError(f"{name!r} reads a second text, which is not supported: give a GPT or a Llama")
        elif isinstance(module, nn.Dropout) and module.p > 0:
            raise ValueError(
                f"the processes would drop different numbers, and no longer hold the same ones: got dropout={module.p} "
                f"in {name!r}. Build the model with dropout=0"
            )
    if isinstance(getattr(model, "head", None), nn.Linear):
        styles["head"] = ColwiseParallel(output_layouts=Replicate())
    return styles


def parallelize(model: Model, mesh: DeviceMesh) -> Model:
    """Spread a model over the processes of a mesh, in place. It is then called as before, with the same ids everywhere.

    All start from the first process's weights. Parameters are new ones afterwards: make the optimizer after this. Train
    with `train_step(..., clip=clip_sharded)`; `full_state_dict` collects the weights. Generation works as before; the
    cache of each process holds its own heads. With `shard(model, grid["data"])` after this, each process holds a part
    of its part.

    Args:
        model: a `GPT`, a `Llama`, or another made of `MultiHeadAttention` and feed-forward layers, without dropout.
        mesh: the n processes, in one dimension. Of a grid, give the dimension: `grid["tensor"]`.

    Returns:
        The same model.

    Raises:
        ValueError: the mesh has more than one dimension; n does not divide the heads, the key/value heads, or the width
            of a feed-forward layer; or something in the model cannot be cut. The model is then as it was.
    """
    if mesh.ndim != 1:
        raise ValueError(
            f"a model is spread over one dimension of a mesh: got {mesh.ndim}. Name one, as in mesh['tensor']"
        )
    n = mesh.size()
    styles = plan(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, module in model.named_modules():
        _check_sizes(name, module, n)
    for name, style in styles.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, parallelize_module(model.get_submodule(name), mesh, style))
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            # The key/value heads that a query head reads are in the same process: H / n and K / n are the same groups.
            module.n_heads, module.n_kv_heads = module.n_heads // n, module.n_kv_heads // n
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        # Torch has sent round what it cuts. (It takes a norm for one that nobody has trained.)
        if not isinstance(parameter, DTensor) or parameter.placements == (Replicate(),):
            dist.broadcast(local(parameter.detach()), group=mesh.get_group(), group_src=0)
        if isinstance(parameter, DTensor) and parameter.requires_grad:
            parameter.register_hook(_added_up)
    if hasattr(model, "new_cache"):
        # The models go by their config, which has the heads of all processes.
        model.new_cache = partial(_new_cache, model)  # type: ignore[assignment]
    return model


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The whole model's weights, under the plain model's names. Every process must call this, and every one gets them.

    `model.load_state_dict` of a model in one process takes them.
    """
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def bytes_sent(d_model: int, n: int, *, bytes_per_number: int = 4, training: bool = True) -> float:
    """Bytes that each of n processes sends for one token in one block.

    A block adds up two vectors of width D over all processes going forward, and two going backward, each in an
    all-reduce.

    >>> bytes_sent(4096, 8, bytes_per_number=2)
    57344.0
    """
    return (4 if training else 2) * all_reduce_bytes(d_model * bytes_per_number, n)


def _pair(name: str, module: nn.Module, columns: tuple[str, ...], rows: str) -> dict[str, ParallelStyle]:
    """The styles of a pair of matrices; `columns` share the first half of it."""
    for child in (*columns, rows):
        layer = getattr(module, child)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"{name}.{child} must be an nn.Linear to be cut: got a {type(layer).__name__}. Spread the model before "
                "its layers are replaced"
            )
        if isinstance(layer.weight, DTensor):
            raise ValueError(f"{name}.{child} is spread over several processes already: parallelize a model once")
    # The input is marked here, not by each of the columns: the gradients that they send back are then added up within
    # the process first, and once among the processes.
    styles: dict[str, ParallelStyle] = {
        name: PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    }
    styles |= {f"{name}.{child}": ColwiseParallel() for child in columns}
    return styles | {f"{name}.{rows}": RowwiseParallel()}


def _check_attention(name: str, attention: MultiHeadAttention) -> None:
    if attention.dropout > 0:
        raise ValueError(
            "the processes would drop the same weights of different heads, or not, as their generators stand: got "
            f"dropout={attention.dropout} in {name!r}. Build the model with dropout=0"
        )
    if attention.position_bias is not None:
        raise ValueError(f"{name} has a position bias for all heads, of which a process would hold some: not supported")


def _check_sizes(name: str, module: nn.Module, n: int) -> None:
    sizes = {}
    if isinstance(module, MultiHeadAttention):
        sizes = {"query heads": module.n_heads, "key/value heads": module.n_kv_heads}
    elif isinstance(module, FeedForward | GatedFeedForward):
        sizes = {"columns of the feed-forward layer": module.up.out_features}
    for what, size in sizes.items():
        if size % n:
            raise ValueError(
                f"{n} processes cannot share the {size} {what} of {name!r} evenly: take a number of processes that "
                f"divides {size}, or build the model with a multiple of {n}"
            )


def _new_cache(model: nn.Module, batch: int, capacity: int | None = None) -> Cache:
    """As the models' own, for the heads that this process has."""
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    weight, whole = next(model.parameters()), cast(Any, model)
    return Cache(
        len(attentions),
        batch,
        attentions[0].n_kv_heads,
        whole.context if capacity is None else capacity,
        attentions[0].d_head,
        window=getattr(whole.config, "window", None),
        device=weight.device,
        dtype=weight.dtype,
    )


def _added_up(grad: Tensor) -> Tensor:
    """The gradient of a weight that all processes hold: torch leaves each with its share, to be added up when used."""
    assert isinstance(grad, DTensor)
    return grad.redistribute(placements=[Replicate() if p.is_partial() else p for p in grad.placements])
