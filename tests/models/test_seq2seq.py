"""Recurrent encoders and decoders against loops written out here, and against themselves in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.generation.generate import LanguageModel, generate
from llm_core.models.cells import (
    RecurrentCache,
)
from llm_core.models.seq2seq import SequenceToSequence, SequenceToSequenceConfig

V = 19


PAIR = SequenceToSequenceConfig(vocab_size=V, d_model=6, d_hidden=8, n_layers=2)


PAIRS = [dataclasses.replace(PAIR, cell=cell, attention=a) for cell in ("rnn", "lstm") for a in (False, True)]


SOURCE = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [10, 11, 12, 13, 0]])


TARGET = torch.tensor([[1, 14, 15, 16], [1, 17, 18, 2], [1, 3, 4, 5]])


def large(model: nn.Module) -> nn.Module:
    """Random weights, large enough that what was read shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pair(config: SequenceToSequenceConfig = PAIR) -> SequenceToSequence:
    return large(SequenceToSequence(config))


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(seed))


def by_hand(model: SequenceToSequence, source: list[int], target: list[int]) -> tuple[Tensor, Tensor | None]:
    """One source and one target, without padding, one step at a time."""
    encoded, state = model.encoder(model.embedding(torch.tensor([source])))
    if not model.config.attention:
        hidden, _ = model.decoder(model.embedding(torch.tensor([target])), state)
        return model.head(hidden)[0], None
    logits, weights = [], []
    attention = model.attention
    for id_ in target:
        top = (state if isinstance(state, Tensor) else state[0])[-1, 0]
        scores = (top @ attention.query.weight.T + attention.query.bias + encoded[0] @ attention.key.weight.T).tanh()
        weight = F.softmax(scores @ attention.vector, dim=0)
        read = weight @ encoded[0]
        out, state = model.decoder(torch.cat([model.embedding.weight[id_], read])[None, None], state)
        logits.append(model.head(torch.cat([out[0, 0], read])))
        weights.append(weight)
    return torch.stack(logits), torch.stack(weights)


@pytest.mark.parametrize("config", PAIRS)
def test_padded_sources_give_what_each_gives_alone(config):
    model = pair(config)
    together = model(SOURCE, TARGET)
    for row in range(3):
        source = [i for i in SOURCE[row].tolist() if i]
        alone, weights = by_hand(model, source, TARGET[row].tolist())
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
        if weights is not None:
            shown = model.attention_weights(SOURCE, TARGET)[row]
            torch.testing.assert_close(shown[:, : len(source)], weights, rtol=1e-5, atol=1e-5)
            assert (shown[:, len(source) :] == 0).all()


@pytest.mark.parametrize("config", PAIRS)
@pytest.mark.parametrize("chunks", [[4], [1] * 4, [3, 1]])
def test_a_decoder_with_a_cache_equals_one_without(config, chunks):
    model = pair(config).double()
    given = model.given(SOURCE)
    with torch.no_grad():
        cache = given.new_cache(3, 4)
        parts = [given(part, cache) for part in TARGET.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(SOURCE, TARGET), rtol=0, atol=1e-12)
        assert cache.length == 4
        again = given(TARGET)  # reading with a cache has not moved the source's own state
        torch.testing.assert_close(again, model(SOURCE, TARGET), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", PAIRS)
def test_the_source_moves_with_the_rows_of_the_cache(config):
    model, rows, tail = pair(config), torch.tensor([2, 0, 0, 1]), draw_ids(4, 2, seed=4)
    given = model.given(SOURCE)
    with torch.no_grad():
        cache = given.new_cache(3, 9)
        given(TARGET, cache)
        cache.reorder(rows)
        expected = model(SOURCE[rows], torch.cat([TARGET[rows], tail], dim=1))[:, 4:]
        torch.testing.assert_close(given(tail, cache), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", PAIRS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_runs_a_decoder_with_its_source(config, use_cache):
    model = pair(config)
    given, text = model.given(SOURCE), TARGET[:, :1]
    assert isinstance(given, LanguageModel)
    new = generate(given, text, 7, use_cache=use_cache)
    for _ in range(7):
        text = torch.cat([text, model(SOURCE, text)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(new, text[:, 1:])


def test_without_attention_all_of_the_source_goes_through_one_state():
    for config in PAIRS[2:]:
        model = pair(config)
        read = model.encode(SOURCE)
        expected = (3, 5, 8) if config.attention else None
        assert (None if read.states is None else tuple(read.states.shape)) == expected
        assert [tuple(part.shape) for part in read.state] == [(2, 3, 8)] * 2
    # With the state alone changed, and the states as they are, the model without attention is changed all the more.
    without = pair(PAIRS[2])
    read = without.encode(SOURCE)
    nothing = RecurrentCache(tuple(torch.zeros_like(part) for part in read.state))
    rows = without.decode(TARGET[:1].expand(3, -1), nothing)
    assert torch.equal(rows[0], rows[1])  # nothing else of the source is there


@pytest.mark.usefixtures("unchecked")
def test_attention_is_learned_where_the_fixed_state_fails():
    """A source of ten tokens copied: after as many steps the model with attention makes far fewer mistakes."""
    accuracy = []
    for attention in (False, True):
        torch.manual_seed(0)
        model = SequenceToSequence(SequenceToSequenceConfig(12, 16, 24, attention=attention))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        generator = torch.Generator().manual_seed(0)
        for _ in range(80):
            source = torch.randint(2, 12, (32, 10), generator=generator)
            target = torch.cat([torch.ones(32, 1, dtype=torch.long), source[:, :-1]], dim=1)
            loss = F.cross_entropy(model(source, target).flatten(0, 1), source.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy.append((model(source, target).argmax(dim=-1) == source).float().mean().item())
    assert accuracy[1] > accuracy[0] + 0.1


def test_every_weight_of_a_pair_gets_a_gradient():
    for model in map(pair, PAIRS):
        (model(SOURCE, TARGET) ** 2).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_new_pairs_of_lstms_start_with_open_forget_gates():
    torch.manual_seed(0)
    for loop in (SequenceToSequence(PAIR).encoder, SequenceToSequence(PAIR).decoder):
        for i in range(2):
            total = getattr(loop, f"bias_ih_l{i}") + getattr(loop, f"bias_hh_l{i}")
            assert (total[8:16] == 1).all()
            assert (total[:8] != 1).all()


def test_the_number_of_parameters_of_a_pair():
    D, N = 6, 8
    first, second = 4 * N * (D + N + 2), 4 * N * (2 * N + 2)
    attention = 2 * N * N + N + N
    decoder = first + 4 * N * N  # it reads N numbers beside the token
    assert pair().n_parameters() == V * D + 2 * second + first + decoder + attention + (2 * N + 1) * V


def test_dropout_of_a_pair_acts_in_training_only():
    torch.manual_seed(0)
    both = SequenceToSequence(dataclasses.replace(PAIR, dropout=0.3))
    assert not torch.allclose(both.encode(SOURCE).state[0], both.encode(SOURCE).state[0])
    both.eval()
    assert torch.equal(both(SOURCE, TARGET), both(SOURCE, TARGET))


@pytest.mark.parametrize("wrong", [V, -1])
def test_an_id_of_source_or_target_that_is_no_token_is_refused(wrong):
    bad = torch.tensor([[1, wrong]])
    for source, target in ((bad, TARGET[:1]), (SOURCE[:1], bad)):
        with pytest.raises(ValueError, match=rf"0 \.\.\. 18.*{wrong}"):
            pair()(source, target)


@pytest.mark.usefixtures("unchecked")
def test_what_a_pair_cannot_do_is_refused():
    with pytest.raises(ValueError, match="text is empty"):
        pair()(SOURCE[:2], torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="state is that of 3 texts: got a batch of 2"):
        pair()(SOURCE, TARGET[:2])
    with pytest.raises(ValueError, match="3 sources and a batch of 2"):
        pair().given(SOURCE).new_cache(2)
    with pytest.raises(ValueError, match="no attention"):
        pair(PAIRS[0]).attention_weights(SOURCE, TARGET)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([[3, 0, 4]], r"pad_id=0.*\[2\] real tokens, some of them after padding"),
        ([[0, 3, 4]], "after padding"),
        ([[3, 4], [0, 0]], r"needs a token.*\(2, 2\) with \[2, 0\]"),
    ],
)
def test_a_source_that_is_empty_or_padded_elsewhere_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        pair().encode(torch.tensor(source))


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match=r"sources \(2, 0\)"):
        pair().encode(torch.zeros(2, 0, dtype=torch.long))


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "d_hidden", "n_layers"])
def test_sizes_below_one_of_a_pair_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(PAIR, **{name: 0})


@pytest.mark.usefixtures("unchecked")
def test_other_impossible_configs_of_a_pair_are_refused():
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"got {dropout}"):
            dataclasses.replace(PAIR, dropout=dropout)
    with pytest.raises(ValueError, match="'rnn' or 'lstm': got 'gru'"):
        dataclasses.replace(PAIR, cell="gru")
    for pad_id in (V, -1):
        with pytest.raises(ValueError, match=rf"0 \.\.\. 18: got {pad_id}"):
            dataclasses.replace(PAIR, pad_id=pad_id)
