"""LoRA against peft's layers and against the formula; what is frozen, merged, switched off and refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from llm_core.adaptation.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_layers,
    lora_parameters,
    merge_lora,
    over_root_rank,
    without_lora,
)
from llm_core.compression.quantize import Int4Linear, Int8Embedding, Int8Linear
from llm_core.compression.replace import replace_layers
from llm_core.generation.generate import generate
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.training.batches import shift
from llm_core.training.checkpoint import load_checkpoint, save_checkpoint
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.step import train_step

LLAMA = LlamaConfig(31, 24, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, d_ff=32, tied=False)
MODELS = {
    "gpt": lambda: GPT(GPTConfig(vocab_size=31, context=24, n_layers=2, n_heads=2, d_model=16)),
    "llama": lambda: Llama(LLAMA),
    "mixtral": lambda: Llama(LlamaConfig(31, 24, 1, 4, 2, 16, 24, n_experts=3, experts_per_token=2)),
}
EACH = pytest.mark.parametrize("name", MODELS)
ALL = ("*.query", "*.key", "*.value", "*.output", "*.up", "*.down")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapted(name: str, config: LoRAConfig) -> nn.Module:
    """A model whose B is not zero, as after training."""
    model = add_lora(build(name), config)
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    return model


def draw(batch: int = 3, T: int = 9) -> torch.Tensor:
    return torch.randint(31, (batch, T), generator=torch.Generator().manual_seed(1))


def theirs_of(name: str, ours: nn.Module, config: LoRAConfig) -> nn.Module:
    """peft around the same model, with the same A and B."""
    theirs = get_peft_model(
        build(name),
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            use_rslora=config.scaling is over_root_rank,
            target_modules=list(lora_layers(ours)),
        ),
    )
    state = theirs.state_dict()
    for layer_name, layer in lora_layers(ours).items():
        for letter in "AB":
            state[f"base_model.model.{layer_name}.lora_{letter}.default.weight"].copy_(getattr(layer, letter))
    return theirs


@EACH
@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(rank=3, alpha=7),
        LoRAConfig(rank=1, alpha=0.5, targets=ALL),
        LoRAConfig(rank=8, alpha=4, targets=ALL, scaling=over_root_rank),
    ],
    ids=["default", "rank 1", "over its root"],
)
def test_logits_and_gradients_equal_peft(name, config):
    ours = adapted(name, config)
    theirs = theirs_of(name, ours, config)
    ids = draw()
    a, b = ours(ids), theirs(ids)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (a - build(name)(ids)).abs().max() > 0.01  # the correction is large enough to be seen
    for model, logits in ((ours, a), (theirs, b)):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for layer_name, layer in lora_layers(ours).items():
        for letter in "AB":
            gradient = expected[f"base_model.model.{layer_name}.lora_{letter}.default.weight"].grad
            torch.testing.assert_close(getattr(layer, letter).grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in ours.parameters() if not p.requires_grad)


def test_dropout_equals_peft():
    config = LoRAConfig(rank=4, alpha=8, targets=ALL, dropout=0.5)
    ours = adapted("llama", config).train()
    theirs = theirs_of("llama", ours, config).train()
    torch.manual_seed(5)
    a = ours(draw())
    torch.manual_seed(5)
    torch.testing.assert_close(a, theirs(draw()), rtol=1e-5, atol=1e-5)
    assert not torch.equal(a, ours(draw()))
    torch.testing.assert_close(ours.eval()(draw()), theirs.eval()(draw()), rtol=1e-5, atol=1e-5)


def test_the_layer_is_the_formula():
    torch.manual_seed(0)
    base = nn.Linear(6, 5).double()
    layer = LoRALinear(base, LoRAConfig(rank=2, alpha=3))
    nn.init.normal_(layer.B)
    for x in (torch.randn(6), torch.randn(4, 6), torch.randn(2, 0, 6), torch.randn(2, 3, 6)):
        x = x.double()
        expected = (x @ base.weight.T + base.bias) + 1.5 * (x @ layer.A.T) @ layer.B.T
        torch.testing.assert_close(layer(x), expected)


@EACH
def test_at_first_nothing_changes_to_the_last_bit(name):
    before = build(name)(draw())
    model = add_lora(build(name), LoRAConfig(rank=4, alpha=8, targets=ALL))
    assert torch.equal(model(draw()), before)


def test_a_is_drawn_as_a_linear_layer_draws_its_weights_and_b_is_zero():
    base = nn.Linear(12, 7)
    torch.manual_seed(3)
    layer = LoRALinear(base, LoRAConfig(rank=5, alpha=1))
    torch.manual_seed(3)
    assert torch.equal(layer.A, nn.Linear(12, 5, bias=False).weight)
    assert layer.B.shape == (7, 5)
    assert not layer.B.any()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_scale_is_whatever_function_is_handed_in(scale):
    layer = LoRALinear(nn.Linear(4, 4), LoRAConfig(rank=4, alpha=9, scaling=lambda alpha, rank: scale))
    assert layer.scale == scale
    assert LoRALinear(nn.Linear(4, 4), LoRAConfig(rank=4, alpha=9, scaling=over_root_rank)).scale == 4.5


def test_only_the_adapters_learn():
    model = build("llama").train()
    before = copy.deepcopy(model.state_dict())
    add_lora(model, LoRAConfig(rank=2, alpha=8, targets=("*.query", "*.down")))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"blocks.{i}.{layer}.{letter}"
        for i in (0, 1)
        for layer in ("attention.query", "feed_forward.down")
        for letter in "AB"
    }
    # r (I + O) of each: query 16 -> 16, down 32 -> 16
    assert sum(p.numel() for p in lora_parameters(model)) == 2 * (2 * (16 + 16) + 2 * (32 + 16))
    groups = decay_groups(model, 0.1)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in lora_parameters(model)}
    optimizer = AdamW(groups)
    losses = [train_step(model, shift(draw()), optimizer, lr=0.05).loss for _ in range(40)]
    assert losses[-1] < losses[0] - 0.5
    after = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.any() for parameter in lora_parameters(model))


@EACH
def test_merged_it_is_a_plain_model_with_the_same_logits(name):
    model = adapted(name, LoRAConfig(rank=3, alpha=5, targets=ALL))
    expected = model(draw())
    plain = build(name)
    assert merge_lora(model) is model
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(draw()), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        generate(model, draw(2, 4), 6), generate(adapted(name, LoRAConfig(3, 5, ALL)), draw(2, 4), 6)
    )
    add_lora(model, LoRAConfig(rank=2, alpha=2))  # and again


def test_merging_changes_no_tensor_that_others_hold():
    class Tied(nn.Module):
        """A head that is an nn.Linear and has the embedding's table."""

        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    torch.manual_seed(0)
    model = add_lora(Tied(), LoRAConfig(rank=2, alpha=4, targets=("head",)))
    nn.init.normal_(model.head.B)
    table, expected = model.embedding.weight.clone(), model(torch.arange(9))
    merge_lora(model)
    assert torch.equal(model.embedding.weight, table)
    torch.testing.assert_close(model(torch.arange(9)), expected)


@pytest.mark.parametrize(("targets", "adapted_places"), [(("*",), {"0", "2"}), (("0",), {"0"})])
def test_a_layer_under_two_names(targets, adapted_places):
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = add_lora(nn.Sequential(shared, nn.Tanh(), shared), LoRAConfig(rank=2, alpha=4, targets=targets))
    assert set(lora_layers(model)) == adapted_places
    assert len(lora_parameters(model)) == 2  # one A and one B, however many places
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    expected = model(x)
    merge_lora(model)
    torch.testing.assert_close(model(x), expected)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]


@EACH
def test_switched_off_it_is_the_model_of_before_to_the_last_bit(name):
    before = build(name)(draw())
    model = adapted(name, LoRAConfig(rank=3, alpha=5, targets=ALL))
    on = model(draw())
    with without_lora(model):
        assert torch.equal(model(draw()), before)
        with without_lora(model):
            pass
        assert torch.equal(model(draw()), before)
    assert torch.equal(model(draw()), on)
    with pytest.raises(KeyError), without_lora(model):
        raise KeyError
    assert torch.equal(model(draw()), on)


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    def start():
        model = add_lora(build("llama").train(), LoRAConfig(rank=2, alpha=4, dropout=0.3))
        return model, AdamW(lora_parameters(model))

    model, optimizer = start()
    for step in range(6):
        if step == 3:
            save_checkpoint(tmp_path / "run.safetensors", step=step, model=model, optimizer=optimizer)
        train_step(model, shift(draw()), optimizer, lr=0.01)
    resumed, its_optimizer = start()
    load_checkpoint(tmp_path / "run.safetensors").restore(resumed, its_optimizer)
    for _ in range(3):
        train_step(resumed, shift(draw()), its_optimizer, lr=0.01)
    for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("linear", [Int8Linear.of, lambda layer: Int4Linear.of(layer, 8)], ids=["8 bits", "4 bits"])
def test_a_quantised_model_learns_through_its_adapters(linear):
    model = replace_layers(build("llama").train(), linear, Int8Embedding.of)
    frozen = copy.deepcopy(model)
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=("*.query", "*.value", "*.down")))
    with torch.no_grad():
        assert torch.equal(model(draw()), frozen(draw()))
    optimizer = AdamW(lora_parameters(model))
    losses = [train_step(model, shift(draw()), optimizer, lr=0.05).loss for _ in range(40)]
    assert losses[-1] < losses[0] - 0.5

    layer, x = model.blocks[0].attention.query, torch.randn(2, 3, 16)
    assert layer.A.dtype == torch.float32
    expected = layer.base(x) + layer.scale * x @ layer.A.T @ layer.B.T
    torch.testing.assert_close(layer(x), expected)

    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.query are those of a Int[48]Linear"):
        merge_lora(model)
    assert len(lora_layers(model)) == 6  # all as it was


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_adapters_are_float32_at_least_and_the_output_is_as_before(dtype, expected):
    layer = LoRALinear(nn.Linear(8, 8).to(dtype), LoRAConfig(rank=2, alpha=4))
    assert layer.A.dtype == layer.B.dtype == expected
    nn.init.normal_(layer.B)
    x = torch.randn(3, 8).to(dtype)
    assert layer(x).dtype == dtype
    merged = layer.merged()
    assert merged.weight.dtype == dtype
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(merged(x), layer(x), rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).isfinite().all()


def test_a_model_in_eval_mode_stays_there():
    model = add_lora(build("gpt"), LoRAConfig(rank=2, alpha=4, dropout=0.9))
    assert not any(module.training for module in model.modules())


def test_a_target_that_matches_nothing_is_told_what_there_is():
    model = build("llama")
    with pytest.raises(
        ValueError, match=r"'\*\.q_proj'; those of this Llama: blocks\.\*\.attention\.query, blocks"
    ) as e:
        add_lora(model, LoRAConfig(rank=2, alpha=4, targets=("*.query", "*.q_proj")))
    assert str(e.value).count("attention.query") == 1  # once for all blocks
    assert str(e.value).endswith("head")
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_targets_are_matched_by_their_whole_names():
    model = add_lora(build("llama"), LoRAConfig(rank=2, alpha=4, targets=("blocks.1.*.query", "*.feed_forward.up")))
    assert set(lora_layers(model)) == {
        "blocks.1.attention.query",
        "blocks.0.feed_forward.up",
        "blocks.1.feed_forward.up",
    }
    with pytest.raises(ValueError, match="'query'"):
        add_lora(build("llama"), LoRAConfig(rank=2, alpha=4, targets=("query",)))


def test_twice_is_refused():
    model = add_lora(build("gpt"), LoRAConfig(rank=2, alpha=4))
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, LoRAConfig(rank=2, alpha=4, targets=("*.up",)))


def test_a_rank_greater_than_a_side_is_refused_before_anything_changes():
    model = build("llama")  # key and value are 16 -> 8
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.value is 8 x 16, got a rank of 9. Give 8 or less"):
        add_lora(model, LoRAConfig(rank=9, alpha=4))
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    add_lora(model, LoRAConfig(rank=8, alpha=4))
    with pytest.raises(ValueError, match="3 x 9, got a rank of 4"):
        LoRALinear(nn.Linear(9, 3), LoRAConfig(rank=4, alpha=1))


def test_without_lora_layers_there_is_nothing_to_train_merge_or_switch_off():
    for use in (lora_parameters, merge_lora, lambda model: without_lora(model).__enter__()):
        with pytest.raises(ValueError, match="this GPT has no LoRA"):
            use(build("gpt"))


def test_a_model_that_is_itself_one_layer():
    with pytest.raises(ValueError, match="no layer in this Linear"):
        add_lora(nn.Linear(3, 3), LoRAConfig(rank=1, alpha=1, targets=("*",)))
    with pytest.raises(ValueError, match="not a model that has one"):
        merge_lora(LoRALinear(nn.Linear(3, 3), LoRAConfig(rank=1, alpha=1)))
    with pytest.raises(ValueError, match="must say its in_features: this Embedding does not"):
        LoRALinear(nn.Embedding(3, 3), LoRAConfig(rank=1, alpha=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "at least 1: got 0"),
        ({"alpha": 0}, "above 0: got 0"),
        ({"alpha": math.nan}, "above 0: got nan"),
        ({"dropout": 1.0}, "got 1.0"),
        ({"dropout": -0.1}, "got -0.1"),
        ({"targets": ()}, r"several names.*got \(\)"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**{"rank": 2, "alpha": 4} | settings)
