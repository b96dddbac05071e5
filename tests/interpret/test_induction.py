"""Scores of attention patterns made by hand, of a head that was built to do induction, and of whole models."""

from __future__ import annotations

import pytest
import torch

from llm_core.interpret.attention_maps import recorded_attention
from llm_core.interpret.induction import (
    duplicate_token_score,
    head_scores,
    induction_score,
    previous_token_score,
    repeated_tokens,
)
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig


def reads(T, source):
    """Weights (T, T) of a head whose query i reads nothing but key source(i); itself where there is no such key."""
    weights = torch.zeros(T, T)
    for i in range(T):
        weights[i, source(i) if 0 <= source(i) <= i else i] = 1.0
    return weights


def uniform(T):
    return torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]


def scores(weights, n):
    return [
        induction_score(weights, n).item(),
        duplicate_token_score(weights, n).item(),
        previous_token_score(weights).item(),
    ]


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_head_that_does_one_thing_scores_one_in_it_and_zero_in_the_others(n, before):
    T = 2 * n + before
    assert scores(reads(T, lambda i: i - n + 1), n) == [1.0, 0.0, 0.0]
    assert scores(reads(T, lambda i: i - n), n) == [0.0, 1.0, 0.0]
    assert scores(reads(T, lambda i: i - 1), n) == [0.0, 0.0, 1.0]
    assert scores(reads(T, lambda i: i), n) == [0.0, 0.0, 0.0]


def test_the_token_after_the_first_occurrence_found_by_looking_for_it():
    ids = repeated_tokens(1, 6, 20, generator=torch.Generator().manual_seed(0), first=0)[0].tolist()
    weights = torch.zeros(13, 13)
    for i in range(7, 13):
        weights[i, ids.index(ids[i]) + 1] = 1.0
    assert induction_score(weights, 6) == 1.0


@pytest.mark.parametrize(("n", "T"), [(3, 6), (5, 10), (5, 13)])
def test_uniform_attention_scores_its_formula(n, T):
    second = sum(1 / (i + 1) for i in range(T - n, T)) / n
    previous = sum(1 / (i + 1) for i in range(1, T)) / (T - 1)
    assert scores(uniform(T), n) == pytest.approx([second, second, previous])


def test_scores_are_of_each_head_by_itself():
    weights = torch.stack([reads(8, lambda i: i - 3), uniform(8), reads(8, lambda i: i - 1)]).expand(2, 3, 8, 8)
    assert induction_score(weights, 4).shape == (2, 3)
    assert induction_score(weights, 4)[1].tolist() == pytest.approx([1.0, induction_score(uniform(8), 4).item(), 0.0])


def gpt(n_layers=2, n_heads=3) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=40, context=24, n_layers=n_layers, n_heads=n_heads, d_model=12)).eval()


def test_a_head_built_for_induction_scores_one():
    """One-hot embeddings; learned positions turn into "n - 1 before me" by a strong query-key table of positions."""
    n, V = 6, 12
    model = GPT(GPTConfig(vocab_size=V, context=2 * n, n_layers=1, n_heads=2, d_model=4 * n)).eval()
    block = model.blocks[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.positions.embedding.weight[:, : 2 * n] = torch.eye(2 * n)
        block.attention_norm.weight.fill_(1.0)
        block.attention.key.weight[: 2 * n, : 2 * n] = torch.eye(2 * n)  # head 0: the key says where it stands
        for i in range(n, 2 * n):
            block.attention.query.weight[i - n + 1, i] = 1000.0  # and the query at i asks for i - n + 1
    ids = repeated_tokens(3, n, V, generator=torch.Generator().manual_seed(0))
    found = head_scores(model, ids, n)
    assert found.induction[0, 0].item() == pytest.approx(1.0, abs=1e-6)
    assert found.duplicate_token[0, 0].item() == pytest.approx(0.0, abs=1e-6)
    expected = sum(1 / (i + 1) for i in range(n, 2 * n)) / n  # head 1 has weights of zero
    assert found.induction[0, 1].item() == pytest.approx(expected)


def llama(**changes) -> Llama:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "context": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_model": 16, "d_ff": 24}
    return Llama(LlamaConfig(**(sizes | changes))).eval()


@pytest.mark.parametrize("model", [gpt(), llama(), llama(window=4), llama(n_kv_heads=1, qk_norm=True)])
def test_scores_of_a_model_are_those_of_its_recorded_maps(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    ids = repeated_tokens(2, 7, 40, generator=torch.Generator().manual_seed(0), first=3)
    found = head_scores(model, ids, 7)
    with torch.no_grad(), recorded_attention(model) as maps:
        model(ids)
    L, H = model.config.n_layers, model.config.n_heads
    for kind in found:
        assert kind.shape == (L, H)
        assert not kind.requires_grad
    for layer in range(L):
        weights = maps[f"blocks.{layer}.attention"][0]
        for h in range(H):
            expected = [[], [], []]
            for b in range(2):
                second, rest = range(8, 15), range(1, 15)
                expected[0] += [weights[b, h, i, i - 6] for i in second]
                expected[1] += [weights[b, h, i, i - 7] for i in second]
                expected[2] += [weights[b, h, i, i - 1] for i in rest]
            for kind, numbers in zip(found, expected, strict=True):
                torch.testing.assert_close(kind[layer, h], torch.stack(numbers).mean())


def test_a_window_too_short_to_see_the_first_copy_scores_zero():
    ids = repeated_tokens(2, 8, 40, generator=torch.Generator().manual_seed(0))
    found = head_scores(llama(window=4), ids, 8)
    assert (found.induction == 0).all()
    assert (found.duplicate_token == 0).all()
    assert (found.previous_token > 0).all()


def test_repeated_tokens_are_two_copies_without_a_token_twice():
    ids = repeated_tokens(50, 7, 9, generator=torch.Generator().manual_seed(0), first=4)
    assert ids.shape == (50, 15)
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == 4).all()
    assert torch.equal(ids[:, 1:8], ids[:, 8:])
    assert all(len(set(row[1:8].tolist())) == 7 for row in ids)
    assert set(ids[:, 1:].flatten().tolist()) == set(range(9)) - {4}
    assert len({tuple(row.tolist()) for row in ids}) > 40


def test_repeated_tokens_follow_the_generator():
    a, b, c = (repeated_tokens(2, 5, 30, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a.shape == (2, 10)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_cannot_be_drawn_is_refused():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="got batch=0, n=3"):
        repeated_tokens(0, 3, 9, generator=generator)
    with pytest.raises(ValueError, match="got batch=1, n=2"):
        repeated_tokens(1, 2, 9, generator=generator)
    with pytest.raises(ValueError, match="at most 8 here: got n=9"):
        repeated_tokens(1, 9, 9, generator=generator, first=0)
    assert repeated_tokens(1, 9, 9, generator=generator, first=9).shape == (1, 19)


@pytest.mark.parametrize(("n", "T"), [(2, 8), (4, 7), (0, 4)])
@pytest.mark.parametrize("score", [induction_score, duplicate_token_score])
def test_a_text_without_two_copies_has_no_score(score, n, T):
    with pytest.raises(ValueError, match=f"got n={n} and T={T}"):
        score(uniform(T), n)


def test_one_token_has_none_before_it():
    with pytest.raises(ValueError, match="got T=1"):
        previous_token_score(uniform(1))
    assert previous_token_score(uniform(2)) == 0.5


def test_copies_that_differ_are_refused():
    ids = repeated_tokens(3, 5, 40, generator=torch.Generator().manual_seed(0))
    ids[1, 2] = ids[1, 1]
    with pytest.raises(ValueError, match=r"two equal copies of n=5 tokens: those of rows \[1\] differ"):
        head_scores(gpt(), ids, 5)
    with pytest.raises(ValueError, match="got n=6 and T=10"):
        head_scores(gpt(), ids, 6)
