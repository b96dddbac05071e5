"""The compiled loss: the numbers of the loss that it compiles."""

from __future__ import annotations

import shutil

import pytest
import torch

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import shift
from llm_core.training.compiled import Compiled
from llm_core.training.losses import CrossEntropy, Loss
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

CONFIG = GPTConfig(vocab_size=11, context=8, n_layers=2, n_heads=2, d_model=16)
# The first takes the graph apart as the second does, and writes no program.
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++, and there is no g++"),
        ],
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_takes_the_same_steps_compiled_and_not(backend):
    models, records = [], []
    batch = shift(torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0)))
    plain = CrossEntropy(ignore_id=4)
    for loss in (plain, Compiled(plain, {"backend": backend})):
        torch.manual_seed(0)
        model = GPT(CONFIG)
        optimizer = AdamW(model.parameters())
        records.append([train_step(model, batch, optimizer, lr=0.01, loss=loss) for _ in range(3)])
        models.append(model)
    for a, b in zip(*records, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_model_and_loss_are_one_graph():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    loss = Compiled(CrossEntropy(), {"backend": backend, "fullgraph": True})
    assert isinstance(loss, Loss)
    model = GPT(CONFIG)
    batch = shift(torch.zeros(2, 5, dtype=torch.long))
    value = loss.total(model, batch)
    assert len(graphs) == 1
    assert value.item() == pytest.approx(CrossEntropy().total(model, batch).item())
    assert loss.count(batch) == 8
