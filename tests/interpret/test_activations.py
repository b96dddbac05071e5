"""What is recorded is what transformers computes; a change arrives where it should, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_core.interpret.activations import UnknownModuleError, decoder, patched, recorded, stream_names
from llm_core.models.gpt import GPT, GPTConfig


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Half(nn.Module):
    def forward(self, x):
        return x / 2


class Two(nn.Module):
    def forward(self, x=None):
        return x, x


def chain() -> nn.Sequential:
    """y = (2 x + 1), then ReLU, then half."""
    linear = nn.Linear(1, 1)
    nn.init.constant_(linear.weight, 2.0)
    nn.init.constant_(linear.bias, 1.0)
    return nn.Sequential(linear, nn.ReLU(), Half())


X = torch.tensor([[3.0], [-5.0]])


def test_blocks_give_the_hidden_states_of_transformers(pair, ids):
    names = [f"blocks.{i}" for i in range(3)]
    with torch.no_grad(), recorded(pair.ours, names) as kept:
        pair.ours(ids)
    theirs = pair.hidden_states(ids)
    for i in range(2):
        (ours,) = kept[f"blocks.{i}"]
        torch.testing.assert_close(ours, theirs[i + 1], rtol=0, atol=2e-5)
    torch.testing.assert_close(pair.norm(kept["blocks.2"][0]), theirs[3], rtol=0, atol=2e-5)


def test_the_stream_is_what_blocks_and_norm_take_in(pair, ids):
    names = stream_names(pair.ours)
    assert names == ["blocks.0", "blocks.1", "blocks.2", "norm"]
    with torch.no_grad(), recorded(pair.ours, names, at="input") as kept:
        pair.ours(ids)
    for name, theirs in zip(names[:3], pair.hidden_states(ids)[:3], strict=True):
        torch.testing.assert_close(kept[name][0], theirs, rtol=0, atol=2e-5)


def test_attention_and_feed_forward_give_what_those_of_transformers_give(pairs, ids):
    pair, theirs = pairs["llama"], {}
    layer = pair.theirs.model.layers[1]
    handles = [
        layer.self_attn.register_forward_hook(lambda _m, _x, out: theirs.update(attention=out[0])),
        layer.mlp.register_forward_hook(lambda _m, _x, out: theirs.update(feed_forward=out)),
    ]
    pair.theirs(ids)
    for handle in handles:
        handle.remove()
    with recorded(pair.ours, ["blocks.1.attention", "blocks.1.feed_forward"]) as kept:
        pair.ours(ids)
    for part in ("attention", "feed_forward"):
        torch.testing.assert_close(kept[f"blocks.1.{part}"][0], theirs[part], rtol=0, atol=2e-5)


def test_every_pass_is_recorded_and_nothing_outside():
    model = chain()
    model(X)
    with recorded(model, ["0", ""]) as kept:
        model(X)
        model(X[:1] + 1)
    model(X)
    assert [x.flatten().tolist() for x in kept["0"]] == [[7.0, -9.0], [9.0]]
    assert [x.flatten().tolist() for x in kept[""]] == [[3.5, 0.0], [4.5]]


def test_a_record_is_detached_and_no_later_step_changes_it():
    model = nn.Sequential(chain()[0], nn.ReLU(inplace=True))
    with recorded(model, ["0"]) as kept:
        model(X).sum().backward()
    assert kept["0"][0].flatten().tolist() == [7.0, -9.0]
    assert not kept["0"][0].requires_grad
    assert model[0].weight.grad.item() == 3.0


def test_recording_changes_nothing(pair, ids):
    before = pair.ours(ids)
    with recorded(pair.ours, [name for name, _ in pair.ours.named_modules()]):
        assert torch.equal(pair.ours(ids), before)


@pytest.mark.parametrize(
    ("changes", "at", "expected"),
    [
        ({"0": lambda x: x - 5}, "output", [1.0, 0.0]),
        ({"0": lambda x: x - 5}, "input", [0.0, 0.0]),
        ({"0": lambda x: -x}, "input", [0.0, 5.5]),
        ({"1": torch.tensor([[10.0], [20.0]])}, "output", [5.0, 10.0]),
        ({"1": torch.tensor([[10.0], [-20.0]])}, "input", [5.0, 0.0]),
        ({"0": torch.ones(2, 1), "1": lambda x: x + 1, "": lambda x: x * 10}, "output", [10.0, 10.0]),
        ({}, "output", [3.5, 0.0]),
    ],
)
def test_interventions_worked_out_by_hand(changes, at, expected):
    model = chain()
    with patched(model, changes, at=at):
        assert model(X).flatten().tolist() == expected
    assert model(X).flatten().tolist() == [3.5, 0.0]


def test_an_ablated_part_of_a_block_is_as_if_its_weights_were_zero(pair, ids):
    with torch.no_grad(), patched(pair.ours, {"blocks.1.attention": torch.zeros_like}):
        ablated = pair.ours(ids)
    theirs = pair.theirs.transformer.h if hasattr(pair.theirs, "transformer") else pair.theirs.model.layers
    part = theirs[1].attn.c_proj if hasattr(theirs[1], "attn") else theirs[1].self_attn.o_proj
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.zero_()
            expected = pair.theirs(ids).logits
    finally:
        part.load_state_dict(before)
    torch.testing.assert_close(ablated, expected, rtol=0, atol=1e-4)
    assert (ablated - pair.ours(ids)).abs().max() > 0.01


def test_a_change_may_write_into_what_it_gets():
    """Dropout in eval mode gives the very tensor it was given; the stream around it must not change."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return x + self.dropout(x)

    def zero(x):
        x.zero_()
        return x

    model = Around().eval()
    with patched(model, {"dropout": zero}):
        assert torch.equal(model(X), X)
    with patched(model, {"": zero}, at="input"):
        model(X)
    assert X.flatten().tolist() == [3.0, -5.0]


def test_only_the_first_input_of_several_is_changed():
    class Minus(nn.Module):
        def forward(self, x, y, *, times=1):
            return (x - y) * times

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.minus = Minus()

        def forward(self, x):
            return self.minus(x, 2 * x, times=3)

    assert Both()(X).flatten().tolist() == [-9.0, 15.0]
    model = Both()
    with patched(model, {"minus": torch.zeros_like}, at="input"):
        assert model(X).flatten().tolist() == [-18.0, 30.0]


def test_gradients_flow_through_a_change():
    model, scale = chain(), torch.tensor(3.0, requires_grad=True)
    with patched(model, {"0": lambda x: x * scale}):
        model(X).sum().backward()
    assert scale.grad.item() == 3.5
    assert model[0].weight.grad.item() == 4.5  # 3 / 2 * the x that is above 0


def test_recorded_and_patched_nest():
    model = chain()
    with patched(model, {"0": lambda x: x + 1}), recorded(model, ["0", "1"]) as kept:
        model(X)
    assert kept["0"][0].flatten().tolist() == [8.0, -8.0]
    assert kept["1"][0].flatten().tolist() == [8.0, 0.0]


def crash(x):
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("at", ["input", "output"])
def test_afterwards_no_hook_is_left_even_after_an_exception(at):
    model = chain()
    with recorded(model, ["0", "1"], at=at):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="in the middle"), patched(model, {"0": crash, "2": crash}, at=at):
        model(X)
    assert hooks(model) == 0


def test_hooks_of_others_are_left_alone():
    model, calls = chain(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with recorded(model, ["0"]):
        model(X)
    model(X)
    assert calls == [1, 1]


@pytest.mark.parametrize("enter", [lambda m, n: recorded(m, ["blocks.0", n]), lambda m, n: patched(m, {n: crash})])
def test_an_unknown_name_is_refused_with_near_ones_before_any_hook_is_set(enter):
    model = GPT(GPTConfig(vocab_size=5, context=4, n_layers=2, n_heads=1, d_model=4))
    with pytest.raises(UnknownModuleError, match=r"'blocks\.0\.atention' is none .* GPT; .*blocks\.0\.attention"):
        enter(model, "blocks.0.atention").__enter__()
    assert hooks(model) == 0
    with pytest.raises(ValueError, match=r"'zzz' is none of the \d+ modules of this GPT\. "):
        enter(model, "zzz").__enter__()


def test_a_module_has_no_third_side(unchecked):
    with pytest.raises(ValueError, match="got at='middle'"), recorded(chain(), ["0"], at="middle"):
        pass


def test_a_shared_module_is_found_by_both_names():
    model = nn.Sequential(Half(), nn.ReLU())
    model.append(model[0])
    with recorded(model, ["2"]) as kept:
        model(X)
    assert [x.flatten().tolist() for x in kept["2"]] == [[1.5, -2.5], [0.75, 0.0]]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2), torch.zeros(1, 1), torch.zeros(2, 1, dtype=torch.float64), lambda x: x[:1]]
)
def test_a_replacement_of_another_shape_or_dtype_is_refused(wrong):
    model = chain()
    with patched(model, {"0": wrong}), pytest.raises(ValueError, match=r"'0' must be torch.float32 .*\(2, 1\): got"):
        model(X)


def test_what_is_not_one_tensor_is_refused():
    model = nn.Sequential(Two())
    with recorded(model, ["0"]), pytest.raises(ValueError, match="output of '0' must be one tensor: got tuple"):
        model(X)
    alone = Two()
    with recorded(alone, [""], at="input"), pytest.raises(ValueError, match="must be one tensor: got NoneType"):
        alone(x=X)


def test_only_a_decoder_has_a_residual_stream(pair):
    assert decoder(pair.ours) is pair.ours
    with pytest.raises(ValueError, match="this Sequential has no blocks, norm, logits"):
        stream_names(chain())
    model = chain()
    model.norm, model.logits = nn.Identity(), nn.Identity()
    with pytest.raises(ValueError, match=r"has no blocks$"):
        decoder(model)
