"""Recurrent language models against the loop that is torch's, against the formula, and against themselves in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.generation.generate import LanguageModel, generate
from llm_core.generation.sampling import Sampler
from llm_core.models.cells import (
    Recurrent,
)
from llm_core.models.recurrent import RecurrentConfig, RecurrentLM

V = 19


CONFIG = RecurrentConfig(vocab_size=V, d_model=6, d_hidden=8, n_layers=2)


CONFIGS = [dataclasses.replace(CONFIG, cell=cell, attention=a) for cell in ("rnn", "lstm") for a in (False, True)]


def large(model: nn.Module) -> nn.Module:
    """Random weights, large enough that what was read shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def lm(config: RecurrentConfig = CONFIG) -> RecurrentLM:
    return large(RecurrentLM(config))


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS[::2])
def test_the_fused_model_is_the_one_that_loops(config):
    fused = lm(config)
    looped = Recurrent(config.cell, config.d_model, config.d_hidden, config.n_layers)
    looped.load_state_dict(fused.recurrent.state_dict())
    ids = draw_ids(3, 9)
    hidden, _ = looped(fused.embedding(ids))
    torch.testing.assert_close(fused(ids), fused.head(hidden), rtol=1e-5, atol=1e-6)


def test_a_language_model_with_attention_is_the_formula():
    model = lm(CONFIGS[3])
    ids = draw_ids(2, 5)
    states, _ = model.recurrent(model.embedding(ids))
    attention = model.attention
    expected = []
    for t in range(5):
        past = states[:, : t + 1]
        key = past @ attention.key.weight.T
        query = states[:, t : t + 1] @ attention.query.weight.T + attention.query.bias
        weights = F.softmax((query + key).tanh() @ attention.vector, dim=-1)
        read = (weights[:, :, None] * past).sum(dim=1)
        torch.testing.assert_close(model.attention_weights(ids)[:, t, : t + 1], weights)
        expected.append(model.head(torch.tanh(model.join(torch.cat([states[:, t], read], dim=-1)))))
    torch.testing.assert_close(model(ids), torch.stack(expected, dim=1))


@pytest.mark.parametrize("config", CONFIGS)
def test_no_position_reads_what_comes_after_it(config):
    model, ids = lm(config), draw_ids(1, 7)
    before = model(ids)
    for changed in range(7):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % V
        after = model(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        # One position can hardly be told from another far behind it: a plain RNN forgets.
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-3


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [8, 1], [1, 8]])
def test_cached_equals_uncached_in_any_chunking(config, chunks):
    model, ids = lm(config).double(), draw_ids(3, 9)
    cache = model.new_cache(3, 9)
    assert (cache.length, cache.batch) == (0, 3)
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=1e-12)
    assert cache.length == 9


@pytest.mark.parametrize("config", CONFIGS)
def test_a_reordered_cache_continues_rightly_and_leaves_others_alone(config):
    model, ids, rows = lm(config), draw_ids(3, 6), torch.tensor([2, 0, 2, 1])
    tail = draw_ids(4, 3, seed=1)
    cache = model.new_cache(3)
    with torch.no_grad():
        model(ids, cache)
        cache.reorder(rows)
        expected = model(torch.cat([ids[rows], tail], dim=1))[:, 6:]
        torch.testing.assert_close(model(tail, cache), expected, rtol=0, atol=1e-6)


def test_a_recurrent_state_cannot_go_back():
    model = lm()
    cache = model.new_cache(1)
    with torch.no_grad():
        model(draw_ids(1, 5), cache)
    for length in (4, 0, 6, -1):
        with pytest.raises(ValueError, match=f"state of 5 tokens cannot be rewound to {length}"):
            cache.rewind(length)
    cache.rewind(5)
    assert cache.length == 5


@pytest.mark.parametrize("config", CONFIGS)
def test_a_cache_cuts_the_gradient_off(config):
    model, ids = lm(config), draw_ids(2, 6)
    cache = model.new_cache(2)
    model(ids[:, :3], cache).sum().backward()
    model(ids[:, 3:], cache).sum().backward()  # torch would refuse to go through the first part twice
    assert all(not part.requires_grad for part in cache.state)


def test_the_state_does_not_grow_with_the_text_unless_there_is_attention():
    sizes = []
    for config in CONFIGS[2:]:
        model = lm(config)
        cache = model.new_cache(2)
        with torch.no_grad():
            for _ in range(3):
                model(draw_ids(2, 4), cache)
        assert [part.shape for part in cache.state] == [(2, 2, 8)] * 2
        sizes.append(None if cache.states is None else tuple(cache.states.shape))
    assert sizes == [None, (2, 12, 8)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_runs_it(config, use_cache):
    model, prompt = lm(config), draw_ids(3, 4)
    assert isinstance(model, LanguageModel)
    new = generate(model, prompt, 8, use_cache=use_cache)
    text = prompt
    for _ in range(8):
        text = torch.cat([text, model(text)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(new, text[:, 4:])
    draws = [
        generate(model, prompt, 8, choose=Sampler(), generator=torch.Generator().manual_seed(0), use_cache=cached)
        for cached in (use_cache, not use_cache)
    ]
    assert torch.equal(*draws)
    assert len({tuple(row) for row in draws[0].tolist()}) == 3


def test_every_weight_gets_a_gradient():
    for model in map(lm, CONFIGS):
        (model(draw_ids(2, 5)) ** 2).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_new_lstms_start_with_open_forget_gates():
    torch.manual_seed(0)
    loop = RecurrentLM(CONFIG).recurrent
    for i in range(2):
        total = getattr(loop, f"bias_ih_l{i}") + getattr(loop, f"bias_hh_l{i}")
        assert (total[8:16] == 1).all()
        assert (total[:8] != 1).all()
    rnn = RecurrentLM(CONFIGS[0]).recurrent
    assert (rnn.bias_ih_l0.abs() <= 8**-0.5).all()


def test_weights_depend_on_the_seed_alone():
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(RecurrentLM(CONFIG)(draw_ids(2, 3)))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_the_number_of_parameters():
    D, N = 6, 8
    first, second = 4 * N * (D + N + 2), 4 * N * (2 * N + 2)
    attention = 2 * N * N + N + N
    assert lm(CONFIG).n_parameters() == V * D + first + second + (N + 1) * V
    assert lm(CONFIGS[3]).n_parameters() == V * D + first + second + attention + (2 * N + 1) * N + (N + 1) * V


def test_caches_take_their_type_from_the_model():
    model = RecurrentLM(CONFIGS[3]).double()
    cache = model.new_cache(2, 5)
    assert {part.dtype for part in (*cache.state, cache.states)} == {torch.float64}
    assert model(draw_ids(2, 3), cache).dtype == torch.float64


@pytest.mark.parametrize("config", [CONFIGS[3], dataclasses.replace(CONFIG, n_layers=1)])
def test_dropout_acts_in_training_only(config):
    torch.manual_seed(0)
    model = RecurrentLM(dataclasses.replace(config, dropout=0.3))
    ids = draw_ids(2, 8)
    assert not torch.allclose(model(ids), model(ids))
    assert model.recurrent.dropout == (0.3 if config.n_layers > 1 else 0.0)
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("wrong", [V, -1])
def test_an_id_that_is_no_token_is_refused(wrong):
    bad = torch.tensor([[1, wrong]])
    with pytest.raises(ValueError, match=rf"0 \.\.\. 18.*{wrong}"):
        lm()(bad)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="text is empty"):
        lm()(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="state is that of 3 texts: got a batch of 2"):
        lm()(draw_ids(2, 3), lm().new_cache(3))
    with pytest.raises(ValueError, match="no attention"):
        lm().attention_weights(draw_ids(1, 2))


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "d_hidden", "n_layers"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(CONFIG, **{name: 0})


@pytest.mark.usefixtures("unchecked")
def test_other_impossible_configs_are_refused():
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"got {dropout}"):
            dataclasses.replace(CONFIG, dropout=dropout)
    with pytest.raises(ValueError, match="'rnn' or 'lstm': got 'gru'"):
        dataclasses.replace(CONFIG, cell="gru")
