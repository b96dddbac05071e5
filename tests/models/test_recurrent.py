"""Recurrent models against torch's own loops, against loops written out here, and against themselves in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.generation.generate import LanguageModel, generate
from llm_core.generation.sampling import Sampler
from llm_core.models.recurrent import (
    Recurrent,
    RecurrentCache,
    RecurrentConfig,
    RecurrentLM,
    SequenceToSequence,
    SequenceToSequenceConfig,
    additive_attention,
    additive_attention_weights,
    lstm_cell,
    rnn_cell,
)

V = 19
CONFIG = RecurrentConfig(vocab_size=V, d_model=6, d_hidden=8, n_layers=2)
CONFIGS = [dataclasses.replace(CONFIG, cell=cell, attention=a) for cell in ("rnn", "lstm") for a in (False, True)]
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


def lm(config: RecurrentConfig = CONFIG) -> RecurrentLM:
    return large(RecurrentLM(config))


def pair(config: SequenceToSequenceConfig = PAIR) -> SequenceToSequence:
    return large(SequenceToSequence(config))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_ids(batch: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(seed))


def test_the_cells_are_torchs_cells():
    x, h, c = draw(3, 5), draw(3, 4, seed=1), draw(3, 4, seed=2)
    theirs = nn.RNNCell(5, 4, dtype=torch.float64)
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih + theirs.bias_hh)
    torch.testing.assert_close(rnn_cell(x, (h,), *weights)[0], theirs(x, h))
    theirs = nn.LSTMCell(5, 4, dtype=torch.float64)
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih + theirs.bias_hh)
    torch.testing.assert_close(lstm_cell(x, (h, c), *weights), theirs(x, (h, c)))


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize(("batch", "T", "n_layers"), [(1, 1, 1), (3, 7, 1), (2, 5, 3)])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_loop_is_torchs_fused_loop(cell, batch, T, n_layers, with_state):
    ours = large(Recurrent(cell, 5, 4, n_layers))
    theirs = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell](5, 4, n_layers, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for loop in (ours, theirs):
        x = draw(batch, T, 5).float().requires_grad_()
        state = None
        if with_state:
            state = tuple(draw(n_layers, batch, 4, seed=i).float() for i in range(1 if cell == "rnn" else 2))
            for part in state:
                part.requires_grad_()
        given = state[0] if with_state and cell == "rnn" and loop is theirs else state
        output, last = loop(x, given)
        last = (last,) if isinstance(last, Tensor) else last
        (output**2).sum().add(sum((i + 2) * (part**3).sum() for i, part in enumerate(last))).backward()
        gradients = [x.grad, *(part.grad for part in state or ()), *(p.grad for p in loop.parameters())]
        results.append([output, *last, *gradients])
    for mine, torchs in zip(*results, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS[::2])
def test_the_fused_model_is_the_one_that_loops(config):
    fused = lm(config)
    looped = Recurrent(config.cell, config.d_model, config.d_hidden, config.n_layers)
    looped.load_state_dict(fused.recurrent.state_dict())
    ids = draw_ids(3, 9)
    hidden, _ = looped(fused.embedding(ids))
    torch.testing.assert_close(fused(ids), fused.head(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_additive_attention_is_the_formula_one_number_at_a_time(masked):
    query, key, value, vector = draw(2, 3, 4), draw(2, 5, 4, seed=1), draw(2, 5, 6, seed=2), draw(4, seed=3)
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    got = additive_attention(query, key, value, vector, mask)
    weights = additive_attention_weights(query, key, vector, mask)
    for b in range(2):
        for t in range(3):
            may = [s for s in range(5) if mask is None or mask[b, t, s]]
            raised = {
                s: torch.exp(sum(vector[a] * torch.tanh(query[b, t, a] + key[b, s, a]) for a in range(4))) for s in may
            }
            expected = [raised.get(s, torch.tensor(0.0)) / sum(raised.values()) for s in range(5)]
            torch.testing.assert_close(weights[b, t], torch.stack(expected).double())
            torch.testing.assert_close(got[b, t], sum(w * value[b, s] for s, w in enumerate(expected)))


def test_a_query_that_may_read_nothing_gets_zeros():
    mask = torch.zeros(1, 1, 5, dtype=torch.bool)
    got = additive_attention(draw(1, 2, 4), draw(1, 5, 4), draw(1, 5, 6), draw(4), mask)
    assert torch.equal(got, torch.zeros(1, 2, 6, dtype=torch.float64))


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
    model, ids = lm(config), draw_ids(3, 9)
    cache = model.new_cache(3, 9)
    assert (cache.length, cache.batch) == (0, 3)
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=1e-6)
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
    model = pair(config)
    given = model.given(SOURCE)
    with torch.no_grad():
        cache = given.new_cache(3, 4)
        parts = [given(part, cache) for part in TARGET.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(SOURCE, TARGET), rtol=0, atol=1e-6)
        assert cache.length == 4
        again = given(TARGET)  # reading with a cache has not moved the source's own state
        torch.testing.assert_close(again, model(SOURCE, TARGET), rtol=0, atol=1e-6)


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


def test_every_weight_gets_a_gradient():
    for model, inputs in [(lm(c), (draw_ids(2, 5),)) for c in CONFIGS] + [(pair(c), (SOURCE, TARGET)) for c in PAIRS]:
        (model(*inputs) ** 2).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_new_lstms_start_with_open_forget_gates():
    torch.manual_seed(0)
    for loop in (RecurrentLM(CONFIG).recurrent, SequenceToSequence(PAIR).encoder, SequenceToSequence(PAIR).decoder):
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
    decoder = first + 4 * N * N  # it reads N numbers beside the token
    assert pair().n_parameters() == V * D + 2 * second + first + decoder + attention + (2 * N + 1) * V


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
    both = SequenceToSequence(dataclasses.replace(PAIR, dropout=0.3))
    assert not torch.allclose(both.encode(SOURCE).state[0], both.encode(SOURCE).state[0])
    both.eval()
    assert torch.equal(both(SOURCE, TARGET), both(SOURCE, TARGET))


@pytest.mark.parametrize("wrong", [V, -1])
def test_an_id_that_is_no_token_is_refused(wrong):
    bad = torch.tensor([[1, wrong]])
    with pytest.raises(ValueError, match=rf"0 \.\.\. 18.*{wrong}"):
        lm()(bad)
    for source, target in ((bad, TARGET[:1]), (SOURCE[:1], bad)):
        with pytest.raises(ValueError, match=rf"0 \.\.\. 18.*{wrong}"):
            pair()(source, target)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_work_is_refused():
    empty = torch.zeros(2, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="text is empty"):
        lm()(empty)
    with pytest.raises(ValueError, match="text is empty"):
        pair()(SOURCE[:2], empty)
    with pytest.raises(ValueError, match="state is that of 3 texts: got a batch of 2"):
        lm()(draw_ids(2, 3), lm().new_cache(3))
    with pytest.raises(ValueError, match="state is that of 3 texts: got a batch of 2"):
        pair()(SOURCE, TARGET[:2])
    with pytest.raises(ValueError, match="3 sources and a batch of 2"):
        pair().given(SOURCE).new_cache(2)
    for model, arguments in ((lm(), (draw_ids(1, 2),)), (pair(PAIRS[0]), (SOURCE, TARGET))):
        with pytest.raises(ValueError, match="no attention"):
            model.attention_weights(*arguments)


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


@pytest.mark.parametrize("config", [CONFIG, PAIR])
@pytest.mark.parametrize("name", ["vocab_size", "d_model", "d_hidden", "n_layers"])
def test_sizes_below_one_are_refused(config, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(config, **{name: 0})


@pytest.mark.usefixtures("unchecked")
def test_other_impossible_configs_are_refused():
    for config in (CONFIG, PAIR):
        for dropout in (-0.1, 1.0):
            with pytest.raises(ValueError, match=f"got {dropout}"):
                dataclasses.replace(config, dropout=dropout)
        with pytest.raises(ValueError, match="'rnn' or 'lstm': got 'gru'"):
            dataclasses.replace(config, cell="gru")
    for pad_id in (V, -1):
        with pytest.raises(ValueError, match=rf"0 \.\.\. 18: got {pad_id}"):
            dataclasses.replace(PAIR, pad_id=pad_id)
    with pytest.raises(ValueError, match="got 'gru'"):
        Recurrent("gru", 2, 3)
    with pytest.raises(ValueError, match="d_hidden must be at least 1: got 0"):
        Recurrent("rnn", 2, 0)
