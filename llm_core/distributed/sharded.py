"""Fully sharded data parallel: each process keeps one W-th of every weight, gradient and optimizer state.

    forward, backward    all-gather a block's weights, use them, let them go
    after a block's      reduce-scatter its gradients: each process gets the sum of its own W-th
    backward pass
    update               each process its own W-th

It computes what data parallel computes. A process holds 1 / W of the weights, and one whole block at a time. The price
is what it sends: three times (W - 1) / W of the model's bytes a step, two for the weights and one for the gradients,
where data parallel sends two.

`shard` cuts a model up, in place. Everything else stays: the optimizer is built on the sharded parameters, which are
`DTensor`s, and `train_step` is given what knows of several processes:

    shard(model, worker.mesh)
    optimizer = AdamW(model.parameters())
    train_step(model, batch, optimizer, lr=lr, loss=OverAllRanks(loss), clip=clip_sharded)

Source: Rajbhandari et al. 2020 (ZeRO, stage 3), Zhao et al. 2023 (FSDP). Taught in
chapters/03_algorithms/08_several_processes and, once it is written, in 05_project/08_scale_out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

# Weights are gathered and multiplied in bfloat16; gradients are added up, and weights kept, in full precision.
BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

# What losses and generation call besides the model itself; each must find the weights gathered.
_METHODS = ("hidden", "logits", "encode", "decode")


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    precision: MixedPrecisionPolicy | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Divide a model's weights among the processes of a mesh, in place. All get the weights of rank 0.

    Each block (a member of a `ModuleList`, such as `model.blocks`) is gathered by itself, the rest as one.

    Args:
        model: the same one in every process. Its parameters become `DTensor`s, so build the optimizer afterwards.
        mesh: one row of processes.
        precision: number formats of the weights in use and of the sum of the gradients: `BFLOAT16`, for one; those
            of the weights unless given.
        reshard_after_forward: whether a block's weights are let go after the forward pass and gathered again for the
            backward pass; keeping them takes the whole model's memory and a third less sending.

    Raises:
        ValueError: the mesh has more than one dimension, the model has no blocks, or it is sharded already.
    """
    if mesh.ndim != 1:
        raise ValueError(
            f"weights are divided along one row of processes: got a mesh of shape {tuple(mesh.shape)}. "
            'Give one of its dimensions, mesh["data"] for one'
        )
    if isinstance(model, FSDPModule):
        raise ValueError("this model is sharded already")
    blocks = list(_blocks(model))
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks to divide it at: its repeated parts must be in an nn.ModuleList"
        )
    group = mesh.get_group()
    first = dist.get_global_rank(group, 0)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(local(tensor.detach()), first, group=group)
    policy = MixedPrecisionPolicy() if precision is None else precision
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for name in _METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def clip_sharded(parameters: Iterable[Tensor], max_norm: float | int) -> Float[Tensor, ""]:
    """`nn.utils.clip_grad_norm_` for parameters of which each process holds a part; returns the norm of the whole.

    The norm is the same in all processes, all of which must call it. Parameters may be divided in different ways, or
    not at all (those must have the same gradient everywhere).
    """
    alike: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            grad = parameter.grad
            key = (grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else None
            alike.setdefault(key, []).append(grad)
    norms = [_whole(nn.utils.get_total_norm(grads)) for grads in alike.values()]
    norm = nn.utils.get_total_norm(norms)
    scale = min(max_norm / (norm.item() + 1e-6), 1.0)  # torch's own 1e-6: the same numbers as with one process
    for grads in alike.values():
        for grad in grads:
            local(grad).mul_(scale)
    return norm


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Within it gradients add up in each process alone; the next backward pass outside sends their sum.

    They are whole gradients meanwhile, as large as the model. Raises ValueError for a model that is not sharded.
    """
    if not isinstance(model, FSDPModule):
        raise ValueError("this model is not sharded: call shard(model, mesh) first")
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process; all of it, if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def n_local(tensors: Iterable[Tensor]) -> int:
    """How many numbers of these tensors lie in this process.

    >>> n_local([torch.zeros(2, 3), torch.zeros(4)])
    10
    """
    return sum(local(tensor).numel() for tensor in tensors)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost `ModuleList`s: a block's own lists (of experts, for one) are within it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
