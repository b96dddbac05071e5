"""Activation patching against a forward pass written out by hand, and against transformers' hidden states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llm_core.interpret.activations import UnknownModuleError
from llm_core.interpret.logit_lens import residual_stream
from llm_core.interpret.patching import LogitDifference, patch_heads, patch_positions, patching_scores
from llm_core.layers.masks import causal
from llm_core.models.gpt import GPT, GPTConfig

RIGHT, WRONG = torch.tensor([3, 4]), torch.tensor([5, 6])
METRIC = LogitDifference(RIGHT, WRONG)


@pytest.fixture
def texts(ids):
    """Two texts of seven tokens, and the same with other tokens at positions 2 and 4."""
    corrupted = ids.clone()
    corrupted[:, [2, 4]] = (ids[:, [2, 4]] + 1) % 31
    return ids, corrupted


def normalised(value, clean, corrupted):
    return (value - corrupted) / (clean - corrupted)


def difference(logits):
    last = logits[:, -1].double()
    return (last[[0, 1], RIGHT] - last[[0, 1], WRONG]).mean()


@torch.no_grad()
def forward(model, ids, layer, change):
    """A forward pass block by block, with `change` between two of them: no hooks."""
    x = model.token_embedding(ids)
    if hasattr(model, "positions"):
        x = model.positions(x)
    for i, block in enumerate(model.blocks):
        x = change(x) if i == layer else x
        x = block(x, mask=causal(ids.shape[1]))
    x = change(x) if layer == len(model.blocks) else x
    return model.logits(model.norm(x))


def test_positions_against_a_forward_pass_without_hooks(pair, texts):
    clean, corrupted = texts
    table = patch_positions(pair.ours, clean, corrupted, METRIC)
    assert table.shape == (4, 7)
    assert table.dtype == torch.float64
    stream = residual_stream(pair.ours, clean)
    ends = difference(pair.ours(clean)), difference(pair.ours(corrupted))
    for layer in range(4):
        for t in range(7):

            def change(x, layer=layer, t=t):
                return torch.cat([x[:, :t], stream[layer][:, t : t + 1], x[:, t + 1 :]], dim=1)

            expected = normalised(difference(forward(pair.ours, corrupted, layer, change)), *ends)
            torch.testing.assert_close(table[layer, t], expected, rtol=1e-4, atol=1e-4)


def test_positions_against_the_hidden_states_of_transformers(pair, texts):
    """Their embeddings of the clean token at one place, and of the corrupted ones elsewhere: another text."""
    clean, corrupted = texts
    table = patch_positions(pair.ours, clean, corrupted, METRIC)
    ends = [difference(pair.theirs(ids).logits) for ids in texts]
    for t in (2, 4):
        mixed = corrupted.clone()
        mixed[:, t] = clean[:, t]
        expected = normalised(difference(pair.theirs(mixed).logits), *ends)
        torch.testing.assert_close(table[0, t], expected.detach(), rtol=1e-4, atol=1e-4)


def test_what_lies_before_the_first_difference_or_is_read_no_more_scores_zero(pair, texts):
    table = patch_positions(pair.ours, *texts, METRIC)
    assert (table[:, :2] == 0).all()
    assert (table[0, [3, 5, 6]] == 0).all()  # the same token in both
    assert (table[-1, :-1] == 0).all()
    assert (table[1, 2:].abs() > 1e-6).all()


def test_the_last_position_of_the_last_layer_scores_one(pair, texts):
    assert patch_positions(pair.ours, *texts, METRIC)[-1, -1] == 1


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_all_positions_of_any_layer_score_exactly_one(pair, texts, layer):
    name = ["blocks.0", "blocks.1", "blocks.2", "norm"][layer]
    everything = {name: torch.ones(7, 1, dtype=torch.bool)}
    nothing = {name: torch.zeros(7, 1, dtype=torch.bool)}
    scores = patching_scores(pair.ours, *texts, METRIC, [everything, nothing, {}], at="input")
    assert scores.tolist() == [1.0, 0.0, 0.0]


def test_everything_at_once_scores_exactly_one(pair, texts):
    yes = torch.ones(1, dtype=torch.bool)
    parts = [f"blocks.{i}.{part}" for i in range(3) for part in ("attention", "feed_forward")]
    site = dict.fromkeys(parts, yes)
    first = "dropout" if hasattr(pair.ours, "dropout") else "token_embedding"
    clean, corrupted = texts[0], (texts[0] + 1) % 31
    scores = patching_scores(pair.ours, clean, corrupted, METRIC, [site | {first: yes}, site])
    assert scores[0] == 1
    assert scores[1] != 1  # the embeddings differ


def test_outputs_of_named_modules(pair, texts):
    clean, corrupted = texts
    names = ["blocks.0.attention", "blocks.2.feed_forward"]
    table = patch_positions(pair.ours, clean, corrupted, METRIC, names=names)
    assert table.shape == (2, 7)
    stream, ends = residual_stream(pair.ours, clean), [difference(pair.ours(ids)) for ids in texts]
    block = pair.ours.blocks[2]
    with torch.no_grad():
        x = stream[2]
        x = x + block.attention(block.attention_norm(x), mask=causal(7))
        fed_clean = block.feed_forward(block.feed_forward_norm(x))
        x = residual_stream(pair.ours, corrupted)[2]
        x = x + block.attention(block.attention_norm(x), mask=causal(7))
        fed = block.feed_forward(block.feed_forward_norm(x))
        fed[:, 6] = fed_clean[:, 6]
        expected = normalised(difference(pair.ours.logits(pair.ours.norm(x + fed))), *ends)
    torch.testing.assert_close(table[1, 6], expected, rtol=1e-4, atol=1e-4)
    assert (table[1, :6] == 0).all()


@torch.no_grad()
def heads_of(module, x):
    """The output of each head, (B, H, T, E), by torch's own softmax."""
    H, K, E = module.n_heads, module.n_kv_heads, module.d_head
    T = x.shape[1]
    query = module.query(x).view(-1, T, H, E).transpose(1, 2)
    key, value = (part(x).view(-1, T, K, E).transpose(1, 2) for part in (module.key, module.value))
    if module.rotate is not None:
        query, key = module.rotate(query, 0), module.rotate(key, 0)
    key, value = (t.repeat_interleave(H // K, dim=1) for t in (key, value))
    scores = (query @ key.mT / math.sqrt(E)).masked_fill(~causal(T), -math.inf)
    return scores.softmax(dim=-1) @ value


def test_heads_against_a_forward_pass_without_hooks(pair, texts):
    clean, corrupted = texts
    model = pair.ours
    table = patch_heads(model, clean, corrupted, METRIC)
    assert table.shape == (3, 4)
    streams = residual_stream(model, clean), residual_stream(model, corrupted)
    ends = [difference(model(ids)) for ids in texts]
    for layer in range(3):
        block = model.blocks[layer]
        for h in range(4):
            of_clean, heads = (heads_of(block.attention, block.attention_norm(s[layer])) for s in streams)
            heads[:, h] = of_clean[:, h]
            with torch.no_grad():
                x = streams[1][layer] + block.attention.output(heads.transpose(1, 2).reshape(2, 7, 24))
                x = x + block.feed_forward(block.feed_forward_norm(x))
                for later in model.blocks[layer + 1 :]:
                    x = later(x, mask=causal(7))
                expected = normalised(difference(model.logits(model.norm(x))), *ends)
            torch.testing.assert_close(table[layer, h], expected, rtol=1e-3, atol=1e-4)


def test_all_heads_together_are_the_attention(pair, texts):
    columns = {"blocks.1.attention.output": torch.ones(24, dtype=torch.bool)}
    whole = {"blocks.1.attention": torch.ones(1, dtype=torch.bool)}
    by_heads = patching_scores(pair.ours, *texts, METRIC, [columns], at="input")
    by_output = patching_scores(pair.ours, *texts, METRIC, [whole])
    torch.testing.assert_close(by_heads, by_output)


def test_scores_do_not_change_with_a_metric_that_is_shifted_and_scaled(pair, texts):
    expected = patch_positions(pair.ours, *texts, METRIC)
    shifted = patch_positions(pair.ours, *texts, lambda logits: 5 - 3 * METRIC(logits).double())
    torch.testing.assert_close(shifted, expected, rtol=1e-5, atol=1e-6)


def test_the_batch_is_averaged_before_the_division(pair, texts):
    clean, corrupted = texts
    weights, scores = [], []
    for b in range(2):
        metric = LogitDifference(RIGHT[b : b + 1], WRONG[b : b + 1])
        scores.append(patch_positions(pair.ours, clean[b : b + 1], corrupted[b : b + 1], metric))
        weights.append(metric(pair.ours(clean[b : b + 1])) - metric(pair.ours(corrupted[b : b + 1])))
    expected = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
    both = patch_positions(pair.ours, clean, corrupted, METRIC)
    torch.testing.assert_close(both, expected.detach().double(), rtol=1e-3, atol=1e-4)


def test_one_text_of_one_token(pair):
    metric = LogitDifference(RIGHT[:1], WRONG[:1])
    table = patch_positions(pair.ours, torch.tensor([[1]]), torch.tensor([[2]]), metric)
    assert table.flatten().tolist() == [1.0] * 4


def test_the_logit_difference_of_a_chosen_position():
    logits = torch.arange(24.0).view(2, 3, 4) ** 2
    metric = LogitDifference(torch.tensor([0, 3]), torch.tensor([2, 1]), position=1)
    assert metric(logits).tolist() == [16.0 - 36.0, 19.0**2 - 17.0**2]
    assert LogitDifference(metric.right, metric.wrong)(logits).tolist() == [64.0 - 100.0, 23.0**2 - 21.0**2]
    with pytest.raises(ValueError, match="got 2 and 2 for 1 texts"):
        metric(logits[:1])


def test_the_model_is_as_before(pair, texts):
    before = pair.ours(texts[0])
    patch_heads(pair.ours, *texts, METRIC)
    with pytest.raises(ValueError, match="must fit its activation"):
        patching_scores(pair.ours, *texts, METRIC, [{"norm": torch.ones(6, 1, dtype=torch.bool)}])
    assert torch.equal(pair.ours(texts[0]), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pair.ours.modules())


def test_runs_that_cannot_be_compared_are_refused(pairs, texts):
    model, (clean, corrupted) = pairs["gpt2"].ours, texts
    with pytest.raises(ValueError, match=r"there must be a text to run: got clean \(2, 0\)"):
        patching_scores(model, clean[:, :0], corrupted[:, :0], METRIC, [{}])
    with pytest.raises(ValueError, match="the metric must differ between the runs"):
        patch_positions(model, clean, clean, METRIC)
    with pytest.raises(ValueError, match=r"must differ between the runs.*got nan"):
        patch_positions(model, clean, corrupted, lambda logits: logits[:, 0, 0] * math.nan)
    with pytest.raises(UnknownModuleError, match=r"'blocks\.9' is none"):
        patch_positions(model, clean, corrupted, METRIC, names=["blocks.9"])


def test_texts_of_unequal_length_are_refused(pairs, texts, unchecked):
    with pytest.raises(ValueError, match=r"clean \(2, 7\) and corrupted \(2, 6\)"):
        patching_scores(pairs["gpt2"].ours, texts[0], texts[1][:, :6], METRIC, [{}])


def test_a_model_in_training_mode_is_refused(texts):
    model = GPT(GPTConfig(vocab_size=31, context=8, n_layers=1, n_heads=1, d_model=4, dropout=0.5))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        patch_positions(model, *texts, METRIC)


def test_a_module_that_runs_twice_is_refused(texts):
    model = GPT(GPTConfig(vocab_size=31, context=8, n_layers=2, n_heads=1, d_model=4)).eval()
    model.blocks[1] = model.blocks[0]
    with pytest.raises(ValueError, match=r"'blocks\.0' ran 2x"):
        patch_positions(model, *texts, METRIC)


def test_heads_of_unequal_sizes_are_refused(texts):
    model = GPT(GPTConfig(vocab_size=31, context=8, n_layers=2, n_heads=2, d_model=4)).eval()
    other = GPT(GPTConfig(vocab_size=31, context=8, n_layers=2, n_heads=1, d_model=4)).eval()
    model.blocks[1] = other.blocks[1]
    with pytest.raises(ValueError, match=r"got 2 of them in 2 blocks, with \(H, E\) \[\(1, 4\), \(2, 2\)\]"):
        patch_heads(model, *texts, METRIC)
    model.blocks[1].attention = nn.Identity()
    with pytest.raises(ValueError, match="got 1 of them in 2 blocks"):
        patch_heads(model, *texts, METRIC)
