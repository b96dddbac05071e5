"""Name tables read in both directions, and weights given to a model whole or not at all."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from llm_core.layers.positions import Rope, SinusoidalPositions
from llm_core.pretrained.names import (
    Line,
    check_shapes,
    check_tied,
    left_over,
    load,
    same,
    to_ours,
    to_theirs,
    transposed,
)

# Two layers: one renamed, one transposed; and two biases that they keep as one tensor.
TABLE = [
    same("first.weight", "a.w"),
    transposed("second.weight", "b.w"),
    Line(("first.bias", "second.bias"), "biases", lambda t: t.split([3, 2]), torch.cat),
]


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(4, 3), "second": nn.Linear(3, 2)})


def theirs() -> dict[str, Tensor]:
    return {"a.w": torch.randn(3, 4), "b.w": torch.randn(3, 2), "biases": torch.arange(5.0), "step": torch.tensor(7)}


def test_a_table_is_read_from_left_to_right_and_from_right_to_left():
    their = theirs()
    ours = to_ours(TABLE, their)
    assert ours.keys() == dict(model().named_parameters()).keys()
    assert torch.equal(ours["first.weight"], their["a.w"])
    assert torch.equal(ours["second.weight"], their["b.w"].T)
    assert ours["second.bias"].tolist() == [3, 4]
    back = to_theirs(TABLE, ours)
    assert back.keys() == {"a.w", "b.w", "biases"}
    assert all(torch.equal(back[name], their[name]) for name in back)
    assert all(tensor.is_contiguous() for tensor in back.values())
    assert left_over(TABLE, their) == ["step"]


def test_what_is_missing_is_named():
    their = theirs()
    del their["b.w"]
    with pytest.raises(ValueError, match=r"lacks b.w, which.*has a.w, biases, step"):
        to_ours(TABLE, their)
    with pytest.raises(ValueError, match=r"lacks a.w, b.w, biases, which"):
        to_ours(TABLE, {})
    with pytest.raises(ValueError, match="lacks n0, n1, n2 and 6 more"):
        to_ours([same(f"o{i}", f"n{i}") for i in range(9)], {})


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_that_would_need_a_scale_are_refused(kind):
    their = theirs() | {"b.w": torch.zeros(3, 2).to(kind)}
    with pytest.raises(ValueError, match=rf"^b\.w should be floating-point weights: got {kind}"):
        to_ours(TABLE, their)
    for wide in (torch.float64, torch.float16, torch.bfloat16):
        assert to_ours(TABLE, theirs() | {"b.w": torch.zeros(3, 2, dtype=wide)})["second.weight"].dtype == wide


def test_a_loaded_model_has_the_numbers_and_nothing_of_the_checkpoints_memory():
    net, their = model(), theirs()
    load(net, to_ours(TABLE, their))
    assert torch.equal(net["second"].weight, their["b.w"].T)
    assert net["first"].weight.data_ptr() == their["a.w"].data_ptr()  # whole tensors are not copied
    for parameter in net.parameters():
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first.weight": None}, "no weights for first.weight$"),
        ({"third.weight": torch.zeros(1)}, "nothing called third.weight; it has first.weight, first.bias"),
        ({"second.weight": torch.zeros(2, 3, dtype=torch.int8)}, "second.weight is of another kind: .* torch.int8"),
        ({"second.weight": torch.zeros(3, 2)}, r"second.weight is of another shape: .* \(3, 2\), the model \(2, 3\)"),
    ],
)
def test_a_refused_load_leaves_the_model_as_it_was(change, message):
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = {name: tensor for name, tensor in (to_ours(TABLE, theirs()) | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load(net, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_model_from_the_meta_device_is_whole_after_loading():
    with torch.device("meta"):
        net = nn.ModuleList([nn.Linear(4, 4), Rope(4, 10), SinusoidalPositions(4, 10)])
    load(net, {"0.weight": torch.eye(4), "0.bias": torch.zeros(4)})
    assert not any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    x = torch.randn(1, 5, 4)
    assert torch.equal(net[1](x), Rope(4, 10)(x))
    assert torch.equal(net[2](x), SinusoidalPositions(4, 10)(x))


def test_tables_that_are_there_are_left_alone():
    rope = Rope(4, 10)
    rope.cos = rope.cos + 1
    before = rope.cos.clone()
    load(rope, {})
    assert torch.equal(rope.cos, before)


def test_a_table_that_nobody_can_compute_is_an_error_of_the_programmer():
    with torch.device("meta"):
        net = nn.Linear(2, 2)
        net.register_buffer("table", torch.zeros(3), persistent=False)
    with pytest.raises(TypeError, match="a Linear has buffers but no reset_tables"):
        load(net, {"weight": torch.eye(2), "bias": torch.zeros(2)})


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_are_held_to_the_model_by_the_table_turned_round(device):
    net = model().to(device)
    good = shapes_of(theirs())
    check_shapes(TABLE, net, good, may_be_left=["step"])
    for name, wrong, right in [("b.w", (2, 3), (3, 2)), ("biases", (6,), (5,)), ("a.w", (3, 4, 1), (3, 4))]:
        message = re.escape(f"{name} is of another shape: {wrong} among the weights, {right} by the config")
        with pytest.raises(ValueError, match=message):
            check_shapes(TABLE, net, good | {name: wrong}, may_be_left=["step"])
    with pytest.raises(ValueError, match="the weights have step, which a model with this config has not"):
        check_shapes(TABLE, net, good)
    with pytest.raises(ValueError, match="lacks biases"):
        check_shapes(TABLE, net, {name: shape for name, shape in good.items() if name != "biases"})


def test_a_stored_head_is_the_table_or_an_error():
    table = torch.randn(3, 2)
    check_tied({"e": table}, "e", "h")
    check_tied({"e": table, "h": table.clone()}, "e", "h")
    with pytest.raises(ValueError, match="h and e are one table, but"):
        check_tied({"e": table, "h": table + 1}, "e", "h")
