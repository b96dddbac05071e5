"""Beam search against all texts there are, and against transformers' `generate`."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from wrapped import Markov, TextCache, Theirs, V, enlarged, gpt, llama, markov, prompts

from llm_core.generation.adjust import RepetitionPenalty
from llm_core.generation.beam_search import Hypothesis, beam_search
from llm_core.generation.generate import generate
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

Found = list[tuple[tuple[int, ...], float]]


def every_text(model: Any, prompt: Tensor, T: int, stops: set[int], length_penalty: float) -> Found:
    """All texts of up to T tokens that end with a stop token or are T long, best score first."""
    found = []
    for ids in product(range(model.vocab_size), repeat=T):
        end = next((i for i, token in enumerate(ids) if token in stops), T - 1) + 1
        if any(ids[end:]):
            continue  # the same text as the one with zeros there
        text = torch.tensor([[*prompt.tolist(), *ids[:end]]])
        log_probabilities = model(text)[0, -end - 1 : -1].float().log_softmax(dim=-1)
        total = float(sum(log_probabilities[i, token] for i, token in enumerate(ids[:end])))
        found.append((ids[:end], total / end**length_penalty))
    return sorted(found, key=lambda pair: -pair[1])


def agree(ours: list[Hypothesis], expected: Found) -> None:
    assert [hypothesis.ids for hypothesis in ours] == [ids for ids, _ in expected]
    torch.testing.assert_close([h.score for h in ours], [score for _, score in expected], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stops", [None, 2, {0, 3}])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.7, 2.5])
def test_with_a_beam_for_every_text_it_is_exhaustive_search(stops, length_penalty):
    model = gpt(vocab_size=4)
    prompt = torch.tensor([[1, 2], [3, 0]])
    found = beam_search(
        model, prompt, 3, n_beams=64, n_best=64, stop_id=stops, length_penalty=length_penalty, early_stopping="never"
    )
    with torch.no_grad():
        for row, ours in zip(prompt, found, strict=True):
            expected = every_text(
                model, row, 3, {stops} if isinstance(stops, int) else set(stops or ()), length_penalty
            )
            assert len(ours) == len(expected)  # with stop tokens fewer than 64
            agree(ours, expected)


def test_scores_are_log_probabilities_divided_by_a_power_of_the_length():
    [found] = beam_search(markov(5, 0), [[1]], 4, n_beams=4, n_best=4, stop_id=3, length_penalty=0.5)
    assert len({len(hypothesis.ids) for hypothesis in found}) > 1
    for h in found:
        table = markov(5, 0).table.log_softmax(dim=-1)
        total = sum(float(table[a, b]) for a, b in zip((1, *h.ids), h.ids, strict=False))
        assert h.log_probability == pytest.approx(total, rel=1e-5)
        assert h.score == pytest.approx(total / len(h.ids) ** 0.5, rel=1e-5)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_it_finds_what_greedy_search_misses():
    # 0 -> 1 is likelier than 0 -> 2, but what follows 1 is a matter of chance, and what follows 2 is not.
    chances = torch.tensor([[0.0, 0.6, 0.4, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0], [1.0, 0, 0, 0]])
    model = Markov(chances.log())
    assert generate(model, torch.tensor([[0]]), 2).tolist()[0][0] == 1
    [[best]] = beam_search(model, torch.tensor([[0]]), 2, n_beams=2)
    assert best.ids == (2, 3)
    assert best.log_probability == pytest.approx(torch.tensor(0.4).log().item())


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("stop_id", [None, 5])
def test_one_beam_is_greedy_search(stop_id, early_stopping):
    model, text = gpt(), prompts(6)
    found = beam_search(model, text, 8, n_beams=1, stop_id=stop_id, early_stopping=early_stopping)
    greedy = generate(model, text, 8, stop_id=stop_id).tolist()
    for [ours], row in zip(found, greedy, strict=True):
        end = row.index(stop_id) + 1 if stop_id in row else 8
        assert ours.ids == tuple(row[:end])


def theirs(model: Any, inputs: dict[str, Tensor], skip: int, n_best: int, **options: Any) -> list[Found]:
    """What transformers finds: ids without the prompt and without what fills up the shorter rows, and their scores."""
    stops = options.get("eos_token_id") or []
    stops = [stops] if isinstance(stops, int) else stops
    out = model.generate(
        **inputs,
        do_sample=False,
        pad_token_id=0,
        num_return_sequences=n_best,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    rows = []
    for ids, score in zip(out.sequences[:, skip:].tolist(), out.sequences_scores.tolist(), strict=True):
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1) + 1
        rows.append((tuple(ids[:end]), score))
    return [rows[i : i + n_best] for i in range(0, len(rows), n_best)]


SEARCHES = [  # n_beams, n_best, length_penalty, stop_id, early_stopping
    (2, 1, 1.0, None, False),
    (3, 3, 1.0, 7, False),
    (3, 3, 1.0, 7, True),
    (3, 3, 1.0, 7, "never"),
    (4, 4, 0.0, 7, False),
    (4, 2, 0.0, 7, "never"),
    (4, 4, 2.0, [7, 11, 4, 16], False),
    (4, 4, 2.0, [7, 11, 4, 16, 9, 13], "never"),
    (4, 4, 2.0, [7, 11, 4, 16], True),
    (5, 5, -1.0, 7, False),
    (5, 5, -1.0, 7, "never"),
    (3, 3, 0.6, [7, 11, 4], False),
    (3, 3, 0.6, [7, 11, 4], True),
    (3, 3, 1.5, [7, 11, 4], "never"),
]


@pytest.mark.parametrize(("n_beams", "n_best", "length_penalty", "stop_id", "early_stopping"), SEARCHES)
def test_it_finds_what_transformers_finds(n_beams, n_best, length_penalty, stop_id, early_stopping):
    lengths = set()
    for seed in range(4):
        model = enlarged(
            GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=24, n_layer=1, n_head=2, n_embd=16)), 0.3, seed
        )
        text = prompts(3, 3, seed)
        ours = beam_search(
            Theirs(model, 24),
            text,
            9,
            n_beams=n_beams,
            n_best=n_best,
            length_penalty=length_penalty,
            stop_id=stop_id,
            early_stopping=early_stopping,
        )
        expected = theirs(
            model,
            {"input_ids": text, "attention_mask": torch.ones_like(text)},
            3,
            n_best,
            max_new_tokens=9,
            num_beams=n_beams,
            length_penalty=length_penalty,
            eos_token_id=stop_id,
            early_stopping=early_stopping,
        )
        for found, row in zip(ours, expected, strict=True):
            agree(found, row)
            lengths |= {len(hypothesis.ids) for hypothesis in found}
    assert stop_id is None or len(lengths) > 1  # some texts did stop


@pytest.mark.parametrize("penalty", [None, 2.0])
def test_unequal_prompts_find_what_transformers_finds_with_left_padding(penalty):
    model = enlarged(GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=24, n_layer=1, n_head=2, n_embd=16)), 0.3)
    rows, adjust = [[5], [6, 7, 8, 9], [3, 4]], None if penalty is None else RepetitionPenalty(penalty)
    ours = beam_search(Theirs(model, 24), rows, 6, n_beams=3, n_best=3, stop_id=7, adjust=adjust)
    text = torch.tensor([[0, 0, 0, 5], [6, 7, 8, 9], [0, 0, 3, 4]])
    inputs = {"input_ids": text, "attention_mask": (text != 0).long()}
    expected = theirs(
        model, inputs, 4, 3, max_new_tokens=6, num_beams=3, eos_token_id=7, repetition_penalty=penalty or 1.0
    )
    for found, row in zip(ours, expected, strict=True):
        agree(found, row)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_an_encoder_decoder_finds_what_transformers_finds(early_stopping):
    config = T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    source = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
    for seed in range(4):
        model = enlarged(T5ForConditionalGeneration(config), 0.5, seed)
        start = torch.zeros(3, 1, dtype=torch.long)
        ours = beam_search(
            Theirs(model, 32, source), start, 7, n_beams=3, n_best=2, stop_id=1, early_stopping=early_stopping
        )
        inputs = {"input_ids": source, "attention_mask": (source != 0).long()}
        expected = theirs(
            model, inputs, 1, 2, max_new_tokens=7, num_beams=3, eos_token_id=1, early_stopping=early_stopping
        )
        for found, row in zip(ours, expected, strict=True):
            agree(found, row)


class Uncached:
    """A model that reads each text anew: the reference for what its own cache holds."""

    def __init__(self, model: Any) -> None:
        self.model, self.context, self.vocab_size = model, model.context, model.vocab_size

    def __call__(self, ids: Tensor, cache: TextCache) -> Tensor:
        cache.text = torch.cat([cache.text, ids], dim=1)
        return self.model(cache.text)

    def new_cache(self, batch: int, capacity: int) -> TextCache:
        return TextCache(batch)


@pytest.mark.parametrize("model", [gpt(), llama(), llama(window=3)], ids=["GPT", "Llama", "windowed Llama"])
def test_the_cache_follows_the_beams(model):
    options = {"n_beams": 4, "n_best": 4, "stop_id": 7}
    with_cache = beam_search(model, prompts(), 10, **options)
    without = beam_search(Uncached(model), prompts(), 10, **options)
    for ours, expected in zip(with_cache, without, strict=True):
        agree(ours, [(h.ids, h.score) for h in expected])


@pytest.mark.parametrize("model", [gpt(), llama(), llama(window=3)], ids=["GPT", "Llama", "windowed Llama"])
def test_a_row_of_unequal_prompts_gets_what_it_gets_alone(model):
    rows = [[5], [6, 7, 8, 9, 10], [3, 4]]
    options = {"n_beams": 3, "n_best": 3, "stop_id": 7}
    together = beam_search(model, rows, 8, **options)
    for row, ours in zip(rows, together, strict=True):
        [alone] = beam_search(model, [row], 8, **options)
        agree(ours, [(h.ids, h.score) for h in alone])


def test_each_source_is_searched_by_itself():
    config = EncoderDecoderConfig(V, 16, n_layers=2, n_heads=2, d_model=16, d_ff=32)
    model = enlarged(EncoderDecoder(config), 0.5)
    source = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    start = torch.ones(2, 1, dtype=torch.long)
    options = {"n_beams": 3, "n_best": 3, "stop_id": 2}
    with torch.no_grad():
        together = beam_search(model.given(source), start, 8, **options)
        for row, ours in zip(source, together, strict=True):
            row = row[row != 0][None]
            [alone] = beam_search(model.given(row), start[:1], 8, **options)
            agree(ours, [(h.ids, h.score) for h in alone])
            for h in ours:
                log_probabilities = model(row, torch.tensor([[1, *h.ids[:-1]]])).log_softmax(dim=-1)
                total = sum(log_probabilities[0, i, token] for i, token in enumerate(h.ids))
                assert h.log_probability == pytest.approx(float(total), rel=1e-4)
    assert together[0][0] != together[1][0]


def test_where_there_are_fewer_texts_than_asked_for_fewer_come_back():
    [found] = beam_search(markov(3, 0), [[1]], 1, n_beams=5, n_best=5)
    assert sorted(h.ids for h in found) == [(0,), (1,), (2,)]
    impossible = Markov(torch.tensor([[0.0, float("-inf")], [float("-inf"), 0.0]]))
    [found] = beam_search(impossible, [[1]], 4, n_beams=3, n_best=2)
    assert [h.ids for h in found] == [(1, 1, 1, 1)]
    [found] = beam_search(markov(2, 0), [[1]], 4, n_beams=3, n_best=3, stop_id={0, 1})  # nothing can go on
    assert sorted(h.ids for h in found) == [(0,), (1,)]


def test_it_ends_as_soon_as_nothing_better_can_come():
    table = torch.full((4, 4), -20.0)
    table[:, 3] = table[:, 2] = 0.0  # 3 stops
    # Every text of 2s and a 3 at its end has a score of log(1/2) * length ** (1 - penalty).
    for penalty, early_stopping, passes in [
        (1.0, False, 2),
        (1.0, True, 2),
        (1.0, "never", 8),
        (0.0, "never", 2),
        (2.0, False, 8),
        (2.0, True, 2),
    ]:
        model = Markov(table)
        beam_search(model, [[1]], 8, n_beams=2, stop_id=3, length_penalty=penalty, early_stopping=early_stopping)
        assert model.passes == passes, (penalty, early_stopping)


def test_with_a_negative_penalty_never_looks_at_the_present_length():
    # Texts of 2s and a 3 at its end: the second best has a score of 2 log(0.8 * 0.2) = -3.67. What goes on after n
    # steps could have n * n * log(0.8) at best: still more after four (-3.57), less after five.
    table = torch.full((4, 4), -20.0)
    table[:, 2], table[:, 3] = math.log(0.8), math.log(0.2)
    model = Markov(table)
    beam_search(model, [[1]], 8, n_beams=2, stop_id=3, length_penalty=-1.0, early_stopping="never")
    assert model.passes == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_beams": 0}, "n_beams=0"),
        ({"n_beams": 2, "n_best": 3}, "between 1 and 2 .* n_best=3"),
        ({"n_beams": 2, "n_best": 0}, "n_best=0"),
        ({"n_beams": 2, "early_stopping": "always"}, "'always'"),
        ({"n_beams": 2, "stop_id": 4}, r"one of the model's 4, 0 \.\.\. 3: got \(4,\)"),
        ({"n_beams": 2, "stop_id": -1}, "from 0 on: got -1"),
    ],
)
def test_impossible_searches_are_refused(options, message):
    model = markov(4, 0)
    with pytest.raises(ValueError, match=message):
        beam_search(model, [[1]], 3, **options)
    assert model.passes == 0


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="10 prompt tokens and 8 new ones do not fit the context of 16: at most 7"):
        beam_search(gpt(), prompts(1, 10), 8, n_beams=2)
    assert len(beam_search(gpt(), prompts(1, 10), 7, n_beams=2)[0][0].ids) == 7
