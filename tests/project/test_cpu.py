"""What is for CPUs changes how a step is computed, and not what."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_core.layers.attention import MultiHeadAttention, attention, fused_attention
from llm_core.layers.masks import causal
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import shift
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("cpu", BENCHMARKS / "cpu.py")
assert spec is not None
assert spec.loader is not None
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
keep_memory, short_attention = cpu.keep_memory, cpu.short_attention


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASKS = {
    "none": None,
    "causal": causal(5, 7),
    "padding": torch.tensor([[[[True] * 6 + [False]]], [[[True] * 3 + [False] * 4]]]),
    "each head its own": draws(2, 3, 5, 7, seed=9) > -1,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_values_and_gradients_are_those_of_attention(mask, bias):
    inputs = [draws(2, 3, 5, 4), draws(2, 3, 7, 4, seed=1), draws(2, 3, 7, 6, seed=2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    added = draws(3, 5, 7, seed=3).requires_grad_() if bias else None
    both = []
    for attend in (cpu._attend, attention):
        out = attend(*inputs, MASKS[mask], bias=added, dropout=0.0)
        learned = [*inputs, *([added] if bias else [])]
        both.append([out.detach(), *torch.autograd.grad((out * draws(2, 3, 5, 6, seed=4)).sum(), learned)])
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_query_that_may_read_nothing_gets_the_mean_of_all_values():
    query, key, value = (draws(1, 1, 2, 4, seed=i) for i in range(3))
    mask = torch.tensor([[True, False], [False, False]])
    out = cpu._attend(query, key, value, mask)
    torch.testing.assert_close(out[0, 0, 1], value[0, 0].mean(dim=0))


def test_dropout_drops_weights():
    torch.manual_seed(0)
    key = draws(1, 1, 400, 4, seed=1)
    out = cpu._attend(torch.zeros_like(key), key, torch.ones_like(key), dropout=0.25)
    # Each row is a mean of 400 ones, of which a quarter are dropped and the rest grow by 4/3.
    assert 0.02 < out[..., 0].std() < 0.04
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)


MODELS = {
    "gpt": lambda: GPT(GPTConfig(11, 8, n_layers=2, n_heads=2, d_model=8)),
    "llama, grouped heads": lambda: Llama(LlamaConfig(11, 8, 2, 4, 2, 8, 12, window=4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_the_same_steps(name):
    batch = shift(torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0)))
    models, records = [], []
    for change in (lambda model: None, short_attention):
        torch.manual_seed(0)
        model = MODELS[name]().double()
        change(model)
        optimizer = AdamW(model.parameters())
        records.append([train_step(model, batch, optimizer, lr=0.01) for _ in range(3)])
        models.append(model)
    assert all(m.attend is cpu._attend for m in models[1].modules() if isinstance(m, MultiHeadAttention))
    assert all(m.attend is fused_attention for m in models[0].modules() if isinstance(m, MultiHeadAttention))
    for a, b in zip(*records, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-10)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_whole_causal_masks_need_not_be_read():
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(vocab_size=11, context=8, n_layers=2, n_heads=2, d_model=8)), torch.randint(11, (3, 8))
    expected = model(ids)
    cpu.causal_attention(model)
    assert all(module.attend is not fused_attention for module in model.modules() if hasattr(module, "attend"))
    torch.testing.assert_close(model(ids), expected)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="no MultiHeadAttention in this Linear"):
        short_attention(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no MultiHeadAttention in this Linear"):
        cpu.causal_attention(nn.Linear(2, 2))


PROGRAM = """
import resource, sys
import torch
from cpu import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(25_000_000)
before = faults()
for _ in range(8):
    torch.ones(25_000_000)  # 100 MB, 24 000 pages of 4 kB: more than the C library keeps by itself
print(kept, faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the switch is one of Linux's C library")
def test_kept_memory_is_used_again():
    """In processes of their own: the switch has no way back."""
    results = {}
    for how in ("keep", "as it is"):
        command = [sys.executable, "-c", PROGRAM, how]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=BENCHMARKS)
        results[how] = done.stdout.split()
    if results["keep"][0] == "False":
        pytest.skip("another C library than glibc")
    assert results["keep"][0] == "True"
    # Eight tensors' pages without the switch; with it none, or those of one: where the heap ends differs by machine.
    assert int(results["as it is"][1]) > 4 * int(results["keep"][1])


@pytest.mark.parametrize(("platform", "library"), [("darwin", "glibc"), ("linux", "musl"), ("win32", "")])
def test_elsewhere_nothing_is_done_and_it_says_so(platform, library, monkeypatch):
    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(cpu.ctypes, "CDLL", None)
    assert keep_memory() is False
