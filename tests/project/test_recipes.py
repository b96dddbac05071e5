"""The model, the teacher and the batches of benchmarks/recipes.py; nothing here depends on how well anything learns."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from llm_core.models.llama import Llama, LlamaConfig
from llm_core.models.ngram import ModifiedKneserNey, NGramModel

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str) -> ModuleType:
    """A file of benchmarks/, under the name by which its neighbours import it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


module("side_by_side")
reader = module("reader")
teacher = module("teacher")
recipes = module("recipes")


def made(memory: int | None, *, context: int = 40, heads: int = 2):
    torch.manual_seed(0)
    model = reader.Reader(11, context=context, n_layers=3, n_heads=heads, d_model=12, d_ff=20, memory=memory)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reach", [1, 3, 4, 9])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_a_short_convolution_is_torchs_depthwise_one_and_the_input(T, reach):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, T, 5, generator=draws, dtype=torch.float64)
    weight = torch.randn(5, reach, generator=draws, dtype=torch.float64)
    # torch slides the kernel without turning it round, so its last weight is that of the position itself.
    theirs = F.conv1d(F.pad(x.transpose(1, 2), (reach - 1, 0)), weight.flip(1)[:, None], groups=5).transpose(1, 2)
    torch.testing.assert_close(reader.short_convolution(x, weight), x + theirs)


def test_no_position_sees_a_later_one():
    draws = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 6, 3, generator=draws).requires_grad_(), torch.randn(3, 4, generator=draws)
    reader.short_convolution(x, weight)[0, 3].sum().backward()
    assert (x.grad[0].abs().sum(dim=1) > 0).tolist() == [True, True, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("memory", [1, 5, 8, 40])
def test_a_text_gives_the_same_logits_however_it_is_cut_up(memory, heads):
    model, text = made(memory, heads=heads), ids(3, 40)
    whole = model(text)
    for cuts in ([8] * 5, [1] * 40, [3, 30, 7], [39, 1]):
        model.forget()
        pieces = torch.cat([model(piece) for piece in text.split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_a_memory_every_call_starts_afresh():
    model, text = made(None), ids(2, 20)
    first = model(text)
    assert torch.equal(model(text), first)
    remembers = made(8)
    assert not torch.allclose(remembers(text), remembers(text), atol=1e-2)
    remembers.forget()
    again = remembers(text)
    remembers.forget()
    assert torch.equal(remembers(text), again)


@torch.no_grad()
def test_with_its_additions_switched_off_it_is_llama():
    torch.manual_seed(0)
    llama = Llama(LlamaConfig(11, 24, 2, 2, 2, 16, 20, qk_norm=True, rope_base=100.0))
    ours = reader.Reader(11, context=24, n_layers=2, n_heads=2, d_model=16, d_ff=20)
    names = {name.replace(".attention.", "."): value for name, value in llama.state_dict().items()}
    missing, unexpected = ours.load_state_dict(names, strict=False)
    assert not unexpected
    assert {name.split(".")[-1] for name in missing} == {
        "attention_mix",
        "feed_forward_mix",
        "stream_share",
        "first_value_share",
    }
    for block in ours.blocks:
        block.first_value_share.zero_()
    text = ids(3, 24)
    torch.testing.assert_close(ours(text), llama(text))


def test_no_gradient_goes_back_into_the_piece_before():
    model = made(8)
    model(ids(2, 10))
    model.zero_grad()
    loss = model(ids(2, 10)).square().mean()
    loss.backward()  # would fail, had the first piece's graph been wanted after a backward of its own
    for kept in model.memory:
        assert not any(tensor.requires_grad for tensor in vars(kept).values())
        assert kept.keys.shape[2] == kept.values.shape[2] == 8


def test_another_number_of_rows_is_refused():
    model = made(8)
    model(ids(2, 10))
    with pytest.raises(ValueError, match=r"of 2 rows, and 3 came: call forget"):
        model(ids(3, 10))


def test_rows_read_on_where_they_stopped_and_begin_again_at_the_end():
    at = recipes.reading_on(1000, 0)
    steps = [at(step) for step in range(20)]
    for before, after in pairwise(steps):
        assert torch.equal(before.targets[:, -1], after.inputs[0][:, 0])
    first = steps[0]
    assert first.inputs[0].shape == first.targets.shape == (recipes.BATCH, recipes.LENGTH)
    assert first.inputs[0][:, 0].tolist() == [row * (1000 // recipes.BATCH) for row in range(recipes.BATCH)]
    assert int(steps[15].targets[0, -1]) == 16 * recipes.LENGTH - 1000  # round the end
    assert not torch.equal(recipes.reading_on(1000, 1)(0).targets, first.targets)


def test_no_piece_comes_twice_before_each_has_come_once():
    n = 10 * recipes.BATCH * recipes.LENGTH + 1
    at = recipes.each_once(n, 0)
    for epoch in range(2):
        read = torch.cat([at(10 * epoch + step).inputs[0] for step in range(10)])
        assert torch.equal(read.flatten().sort().values, torch.arange(n - 1))
    assert torch.equal(at(3).targets, at(3).inputs[0] + 1)
    assert not torch.equal(recipes.each_once(n, 1)(3).targets, at(3).targets)


def test_random_places_are_those_of_the_seed():
    steps = [recipes.random_places(1000, seed)(0) for seed in (0, 0, 1)]
    assert torch.equal(steps[0].targets, steps[1].targets)
    assert not torch.equal(steps[0].targets, steps[2].targets)
    assert torch.equal(steps[0].targets, steps[0].inputs[0] + 1)


def test_a_target_is_what_came_and_what_the_teacher_expected_there():
    text, places = ids(1, 30)[0], recipes.each_once(30_000, 0)(0)
    places = type(places)((places.inputs[0] % 29,), places.inputs[0] % 29 + 1)
    plain = recipes.batch_at(places, text, None, 0.0)
    assert torch.equal(plain.inputs[0], text[places.inputs[0]])
    assert torch.equal(plain.targets, text[places.targets])
    rows = torch.rand(30, 11, generator=torch.Generator().manual_seed(2)).softmax(-1).half()
    mixed = recipes.batch_at(places, text, rows, 0.25)
    assert torch.equal(mixed.inputs[0], plain.inputs[0])
    expected = 0.75 * F.one_hot(plain.targets, 11) + 0.25 * rows[places.targets - 1].float()
    torch.testing.assert_close(mixed.targets, expected)
    for share, of_one in [(0.0, F.one_hot(plain.targets, 11).float()), (1.0, rows[places.targets - 1].float())]:
        torch.testing.assert_close(recipes.batch_at(places, text, rows, share).targets, of_one)


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 64, 65, 66, 200])
def test_reading_in_order_counts_every_character_but_the_first_once(length):
    model, text = made(8, context=256), ids(1, length)[0]
    model(ids(4, 10))  # what it has read before must not matter
    nats = recipes.nats_in_order(model, text)
    expected = F.cross_entropy(model(text[None, :-1])[0], text[1:])
    assert math.isclose(nats, float(expected), rel_tol=1e-4)


def test_no_recipe_has_more_parameters_than_the_baseline():
    sizes = {
        name: sum(parameter.numel() for parameter in recipe.model(80).parameters())
        for name, recipe in recipes.RECIPES.items()
    }
    assert max(sizes, key=sizes.get) == "baseline"
    assert min(sizes.values()) > 0.98 * sizes["baseline"]


@pytest.mark.parametrize(("n", "parts", "at_once"), [(1, 2, 4096), (2, 3, 7), (3, 7, 1), (5, 2, 7), (5, 60, 4096)])
def test_each_place_is_judged_by_a_model_that_has_not_counted_what_came_there(n, parts, at_once, monkeypatch):
    monkeypatch.setattr(teacher, "AT_ONCE", at_once)
    text = ids(1, 60)[0] % 4
    rows = teacher.expectations(text, vocab_size=5, n=n, parts=parts)
    assert rows.shape == (60, 5)
    for t, row in enumerate(rows):
        part = next(k for k in range(parts) if min(t + 1, 59) < 60 * (k + 1) // parts)
        begin, end = 60 * part // parts, 60 * (part + 1) // parts
        others = [rest for rest in (text[:begin], text[end:]) if len(rest)]
        expected = NGramModel(others, n, vocab_size=5, smoothing=ModifiedKneserNey()).distribution(text[: t + 1])
        torch.testing.assert_close(row.double(), torch.from_numpy(expected), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("parts", [0, 1, 61])
def test_a_teacher_needs_parts_to_have_counted_and_parts_to_judge(parts):
    with pytest.raises(ValueError, match=f"60 tokens is cut into 2 to 60 parts: got {parts}"):
        teacher.expectations(ids(1, 60)[0], vocab_size=11, n=3, parts=parts)
