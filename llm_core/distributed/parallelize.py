"""One model on a grid of processes: the ways to divide the work, composed by the names of the grid's axes.

    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallel = parallelize(model, grid, loss=CrossEntropy())
    optimizer = AdamW(parallel.model.parameters())
    record = parallel.step(batch, optimizer, lr=1e-3)       every process, with the whole batch

    axis        the processes along it have                  made by
    pipeline    stages of the model, one behind the other    `cut` and `Pipeline`
    data        copies of the model, and other rows          `all_reduce_gradients`; with "shard", torch's FSDP
    shard       a part of every weight, and other rows       `shard`
    tensor      a part of every layer, and the same rows     `spread`

Each step computes what one process would have computed from the whole batch. The order in which the axes are applied
is fixed: what a layer is cut into first, then what each part is divided into, then what is copied.

Source of the idea: one function that composes the axes of a mesh, as torchtitan's (Liang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from llm_core.distributed.data_parallel import OverAllRanks, all_reduce_gradients, over_all_ranks, rows_of
from llm_core.distributed.pipeline import Pipeline, cut
from llm_core.distributed.sharded import clip_sharded, from_first, shard
from llm_core.distributed.tensor_parallel import spread
from llm_core.training.batches import Batch
from llm_core.training.losses import Loss
from llm_core.training.step import CROSS_ENTROPY, StepRecord, accumulate, update

AXES = ("pipeline", "data", "shard", "tensor")


class Parallel:
    """A model on a grid, as this process has it. Made by `parallelize`.

    `model` is what this process holds of it: its parameters are the optimizer's, its `state_dict()` has the plain
    model's names.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        readers: list[tuple[int, int, ProcessGroup]],
        pipeline: Pipeline | None,
        copies: ProcessGroup | None,
    ) -> None:
        self.model = model
        self.pipeline = pipeline
        self._readers, self._copies = readers, copies
        self.loss = loss
        for _, _, group in readers:  # each divides by its number of processes: together the mean over all targets
            self.loss = OverAllRanks(self.loss, group=group)

    def rows(self, batch: Batch) -> Batch:
        """The part of a batch that this process learns from; errors are those of `rows_of`."""
        for rank, n, _ in self._readers:
            batch = rows_of(batch, rank, n)
        return batch

    def step(
        self, batch: Batch, optimizer: torch.optim.Optimizer, *, lr: float, max_norm: float | int = 1.0
    ) -> StepRecord:
        """`train_step` on the grid. Every process calls it, with the whole batch, and gets the same record.

        Raises:
            NotFinite: the loss or a gradient is not finite, in whichever process. Raised in all of them; the parameters
                are then as they were.
            ValueError: the batch cannot be divided, or a part of it has no target to learn from.
        """
        part = self.rows(batch)
        if self.pipeline is None:
            mean = accumulate(self.model, [part], optimizer, loss=self.loss)
        else:
            optimizer.zero_grad(set_to_none=True)
            mean = self.pipeline.forward_backward(part, self.loss)
        record = update(
            self.model.parameters(), mean, optimizer, lr=lr, max_norm=max_norm, clip=self._clip, batch=[part]
        )
        for _, _, group in self._readers:
            record = over_all_ranks(record, group)
        return record

    def _clip(self, parameters: Iterable[Tensor], max_norm: float | int) -> Float[Tensor, ""]:
        if self._copies is not None:
            all_reduce_gradients(self.model, self._copies)
        clip = clip_sharded if self.pipeline is None else self.pipeline.clip
        return clip(parameters, max_norm)


def parallelize(
    model: nn.Module, mesh: DeviceMesh, *, loss: Loss = CROSS_ENTROPY, n_microbatches: int | None = None
) -> Parallel:
    """Divide the training of a model among the processes of a grid, in place.

    Processes that hold the same weights start from those of the first of them.

    Args:
        model: a `GPT` or a `Llama`, or one with the same parts; the same one in every process.
        mesh: its axes are among `AXES`, in that order; an axis that is not there has one process.
        loss: what is made small; the mean over all targets of the whole batch.
        n_microbatches: parts in which a batch goes through a pipeline; as many as there are stages unless given.

    Raises:
        ValueError: an axis has another name or place, a pipeline is to be sharded, or the model cannot be divided so.

    Returns:
        The model as this process has it: make the optimizer from `.model.parameters()`, and train with `.step`.
    """
    names = mesh.mesh_dim_names or ()
    if not names or list(names) != [name for name in AXES if name in names]:
        raise ValueError(f"the axes of a grid are among {', '.join(AXES)}, in this order: got {list(names)}")
    if "pipeline" in names and "shard" in names:
        raise ValueError(
            'a stage of a pipeline is not sharded: each microbatch would gather its weights anew. Take "data" or '
            '"tensor" beside "pipeline"'
        )
    if n_microbatches is not None and "pipeline" not in names:
        raise ValueError(f"only a pipeline has microbatches: got n_microbatches={n_microbatches} and {list(names)}")

    stage, held = None, model
    if "pipeline" in names:
        row = mesh["pipeline"]
        stage = cut(model, row.size())[row.get_local_rank()]
        held = cast(nn.Module, stage.model)
    for name in names:
        if name != "pipeline":  # whose processes hold different layers
            from_first(held, mesh[name])
    if "tensor" in names:
        spread(held, mesh["tensor"])
    if "shard" in names:
        shard(held, mesh["data", "shard"] if "data" in names else mesh["shard"])
    copies = mesh.get_group("data") if "data" in names and "shard" not in names else None

    pipeline = None
    if stage is not None:
        group = mesh.get_group("pipeline")
        pipeline = Pipeline(stage, n_microbatches=n_microbatches or stage.n_stages, group=group)
    rows = [mesh[name] for name in names if name in ("data", "shard")]
    readers = [(row.get_local_rank(), row.size(), row.get_group()) for row in rows]
    return Parallel(held, loss, readers=readers, pipeline=pipeline, copies=copies)
