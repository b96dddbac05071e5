"""GPT against transformers' GPT-2: the same random weights give the same logits and the same gradients."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from llm_core.models.gpt import GPT, GPT2_SIZES, GPTConfig
from llm_core.pretrained.gpt2 import gpt2_table
from llm_core.pretrained.names import to_ours

CONFIG = GPTConfig(vocab_size=37, context=16, n_layers=3, n_heads=4, d_model=24)
# Parameters of the published checkpoints (huggingface.co/openai-community/gpt2, -medium, -large, -xl).
PUBLISHED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def theirs_of(config: GPTConfig) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
        )
    )


def in_our_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return to_ours(gpt2_table(CONFIG), theirs)


@cache
def pair() -> tuple[GPT, GPT2LMHeadModel]:
    torch.manual_seed(0)
    theirs = theirs_of(CONFIG)
    for parameter in theirs.parameters():  # no zero bias, no norm of one: a swapped pair would not show
        torch.nn.init.normal_(parameter, std=0.2)
    ours = GPT(CONFIG)
    ours.load_state_dict(in_our_names(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "T"), [(1, 1), (2, 7), (3, 16)])
def test_logits_equal_transformers(batch, T):
    ours, theirs = pair()
    ids = draw_ids(batch, T)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_gradients_equal_transformers():
    ours, theirs = pair()
    ids = draw_ids(3, 10)
    for model, logits in ((ours, ours(ids)), (theirs, theirs(ids).logits)):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = in_our_names({name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == expected.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", GPT2_SIZES)
def test_named_sizes_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        ours, theirs = GPT(GPT2_SIZES[name]), theirs_of(GPT2_SIZES[name])
    assert ours.n_parameters() == PUBLISHED[name] == sum(p.numel() for p in theirs.parameters())


def test_no_position_reads_what_comes_after_it():
    ours, _ = pair()
    ids = draw_ids(1, 9)
    before = ours(ids)
    for changed in range(9):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % CONFIG.vocab_size
        after = ours(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert (after[:, changed:] - before[:, changed:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("chunks", [[16], [1] * 16, [9, 7], [1, 15], [15, 1], [3, 1, 5, 2, 5]])
def test_cached_equals_uncached_in_any_chunking(chunks):
    ours, _ = pair()
    ids = draw_ids(3, 16)
    kv = ours.new_cache(3)
    assert kv.capacity == CONFIG.context
    with torch.no_grad():
        parts = [ours(part, kv) for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), ours(ids), rtol=0, atol=1e-5)
    assert kv.length == 16


def test_rewound_and_reordered_caches_continue_rightly():
    ours, _ = pair()
    ids = draw_ids(3, 9)
    kv = ours.new_cache(3, 9)
    with torch.no_grad():
        ours(ids, kv)
        kv.rewind(5)
        kv.reorder(torch.tensor([2, 0, 2, 1]))
        rows, tail = ids[[2, 0, 2, 1], :5], draw_ids(4, 3, seed=1)
        torch.testing.assert_close(ours(tail, kv), ours(torch.cat([rows, tail], 1))[:, 5:], rtol=0, atol=1e-5)


def test_a_new_cache_takes_type_and_size_from_the_model():
    kv = GPT(CONFIG).double().new_cache(2, 5)
    keys, _ = kv.layers[0].contents()
    assert (keys.dtype, keys.shape, kv.capacity, len(kv.layers)) == (torch.float64, (2, 4, 0, 6), 5, 3)


def test_more_than_the_context_is_refused_before_any_work():
    ours, _ = pair()
    touched = []
    hook = ours.token_embedding.register_forward_hook(lambda *_: touched.append(1))
    with pytest.raises(ValueError, match=r"0 tokens in the cache and 17 new.*context is 16"):
        ours(draw_ids(1, 17))
    kv = ours.new_cache(1, 99)
    with torch.no_grad():
        ours(draw_ids(1, 10), kv)
        touched.clear()
        with pytest.raises(ValueError, match="10 tokens in the cache and 7 new ones make 17, the context is 16"):
            ours(draw_ids(1, 7), kv)
    assert not touched
    assert kv.length == 10
    hook.remove()


def test_a_full_cache_is_left_as_it_was():
    ours, _ = pair()
    kv = ours.new_cache(1, 5)
    ids = draw_ids(1, 8)
    with torch.no_grad():
        ours(ids[:, :4], kv)
        with pytest.raises(ValueError, match="holds 4 of 5 tokens and 2 more"):
            ours(ids[:, 4:6], kv)
        assert [layer.length for layer in kv.layers] == [4, 4, 4]
        torch.testing.assert_close(ours(ids[:, 4:5], kv), ours(ids[:, :5])[:, 4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [37, 1000, -1])
def test_an_id_that_is_no_token_is_refused(wrong):
    ours, _ = pair()
    ids = draw_ids(1, 4)
    ids[0, 2] = wrong
    with pytest.raises(ValueError, match=rf"0 \.\.\. 36.*{wrong}"):
        ours(ids)


@pytest.mark.parametrize("name", ["vocab_size", "context", "n_layers", "n_heads", "d_model"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(CONFIG, **{name: 0})


def test_other_impossible_configs_are_refused():
    with pytest.raises(ValueError, match="d_model=24, n_heads=5"):
        dataclasses.replace(CONFIG, n_heads=5)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"got {dropout}"):
            dataclasses.replace(CONFIG, dropout=dropout)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.n_heads = 2  # type: ignore[misc]


def test_a_new_model_guesses_evenly_and_depends_on_the_seed_alone():
    config = GPTConfig(vocab_size=500, context=32, n_layers=4, n_heads=4, d_model=64)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(GPT(config))
    same, again, other = models
    ids = torch.randint(500, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(same(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), abs=0.05)
    assert torch.equal(same(ids), again(ids))
    assert not torch.equal(same(ids), other(ids))
    spread = {name: p.std().item() for name, p in same.named_parameters() if p.ndim == 2}
    for name, std in spread.items():
        into_stream = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        assert std == pytest.approx(0.02 / (8**0.5 if into_stream else 1), rel=0.1), name
    assert all((p == 0).all() for name, p in same.named_parameters() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in same.named_parameters() if name.endswith("norm.weight"))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, dropout=0.3))
    ids = draw_ids(2, 8)
    assert not torch.allclose(model(ids), model(ids))
    places = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.3]
    assert len(places) == 1 + CONFIG.n_layers
    assert all(block.attention.dropout == 0.3 for block in model.blocks)
    model.eval()
    plain = GPT(CONFIG)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(ids), plain(ids))


def test_hidden_is_what_the_head_reads():
    ours, theirs = pair()
    ids = draw_ids(2, 7)
    expected = theirs.transformer(ids).last_hidden_state
    torch.testing.assert_close(ours.hidden(ids), expected, rtol=0, atol=1e-5)
    assert ours.context == 16
