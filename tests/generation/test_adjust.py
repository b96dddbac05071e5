"""Adjustments against transformers' processors and its `generate`; OpenAI's two penalties against their formula."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
)
from wrapped import Theirs, V, enlarged, gpt, markov

from llm_core.generation.adjust import (
    Adjust,
    Forbid,
    FrequencyPenalty,
    MinNewTokens,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    in_turn,
)
from llm_core.generation.beam_search import beam_search
from llm_core.generation.generate import generate, generate_scored
from llm_core.generation.sampling import Sampler
from llm_core.generation.speculative import speculative

CONTEXT = 32


def draw(batch: int, vocab_size: int, seed: int, peak: float = 3.0) -> Tensor:
    return torch.randn(batch, vocab_size, generator=torch.Generator().manual_seed(seed)) * peak


def texts(batch: int, T: int, vocab_size: int, seed: int) -> Tensor:
    return torch.randint(vocab_size, (batch, T), generator=torch.Generator().manual_seed(seed))


def settings(chance: random.Random, vocab_size: int) -> list[list[int]]:
    """Tokens and sequences to forbid: some alone, some that share a beginning or an end, some longer than the text."""
    few = min(vocab_size, 4)  # so that some do begin in a text
    rows = [
        [chance.randrange(few) for _ in range(chance.choice([1, 2, 2, 3, 9]))] for _ in range(chance.randrange(1, 7))
    ]
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]


@pytest.mark.usefixtures("unchecked")  # for speed
def test_processors_equal_those_of_transformers():
    """600 cases: logits from flat to peaked, in four types; texts of 1 to 12 tokens that repeat themselves."""
    chance, changed = random.Random(0), 0
    for seed in range(200):
        vocab_size, T = chance.choice([3, 5, 30]), chance.choice([1, 2, 5, 12])
        dtype = chance.choice([torch.float64, torch.float32, torch.float16, torch.bfloat16])
        logits = draw(4, vocab_size, seed, chance.choice([0.0, 3.0, 50.0])).to(dtype)
        text = texts(4, T, min(vocab_size, 4), seed)
        n, n_prompt, rows = chance.randrange(1, 5), chance.randrange(T + 1), settings(chance, vocab_size)
        stops = chance.sample(range(vocab_size), chance.randrange(1, 3))
        rows = [[min(id_, vocab_size - 1) for id_ in row] for row in rows]
        rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]
        for ours, theirs in (
            (NoRepeatNgram(n), NoRepeatNGramLogitsProcessor(n)),
            (Forbid(rows), NoBadWordsLogitsProcessor(rows)),
            (MinNewTokens(n, stops), MinNewTokensLengthLogitsProcessor(n_prompt, n, stops)),
        ):
            before = logits.clone()
            expected = theirs(text, logits.clone())
            assert torch.equal(ours(logits, text, None, n_prompt), expected), (seed, ours)
            assert torch.equal(logits, before)
            changed += not torch.equal(expected, logits)
    assert changed > 200


@pytest.mark.usefixtures("unchecked")  # for speed
def test_a_padded_row_gets_what_it_gets_alone():
    for seed in range(60):
        chance = random.Random(seed)
        logits, text = draw(3, 5, seed), texts(3, 7, 3, seed)
        padding = torch.tensor([0, chance.randrange(3), chance.randrange(3, 7)])
        text = text.where(torch.arange(7) >= padding[:, None], 0)  # what stands in the padding is a token, too
        for adjust in (
            RepetitionPenalty(1.7),
            NoRepeatNgram(chance.randrange(1, 4)),
            Forbid(settings(chance, 5)),
            MinNewTokens(2, 4),
            PresencePenalty(0.5),
            FrequencyPenalty(0.5),
        ):
            together = adjust(logits, text, padding, 6)
            for row, n in enumerate(padding.tolist()):
                alone = adjust(logits[row : row + 1], text[row : row + 1, n:], None, 6 - n)
                assert torch.equal(together[row], alone[0]), (seed, adjust)


def test_a_forbidden_sequence_does_not_begin_in_the_padding():
    text, padding = torch.tensor([[0, 0, 2], [0, 0, 2], [0, 0, 2]]), torch.tensor([2, 1, 0])
    ours = Forbid([[0, 2, 1]])(torch.zeros(3, 4), text, padding)
    assert ours[:, 1].isinf().tolist() == [False, True, True]


def by_formula(logits: Tensor, text: Tensor, n_prompt: int, presence: float, frequency: float) -> Tensor:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, one number at a time; c[j] counts the sampled tokens only."""
    rows = []
    for row, ids in zip(logits.tolist(), text.tolist(), strict=True):
        counts = [ids[n_prompt:].count(j) for j in range(len(row))]
        rows.append(
            [mu - c * frequency - (1.0 if c > 0 else 0.0) * presence for mu, c in zip(row, counts, strict=True)]
        )
    return torch.tensor(rows, dtype=logits.dtype)


def test_the_penalties_of_presence_and_frequency_are_what_their_formula_says():
    moved = 0
    for seed in range(40):
        chance = random.Random(seed)
        logits, text = draw(3, 6, seed).double(), texts(3, 9, 6, seed)
        n_prompt, presence, frequency = chance.randrange(10), chance.uniform(-2, 2), chance.uniform(-2, 2)
        expected = by_formula(logits, text, n_prompt, presence, frequency)
        both = in_turn(PresencePenalty(presence), FrequencyPenalty(frequency))
        torch.testing.assert_close(both(logits, text, None, n_prompt), expected)
        torch.testing.assert_close(
            PresencePenalty(presence)(logits, text, None, n_prompt), by_formula(logits, text, n_prompt, presence, 0.0)
        )
        moved += not torch.equal(expected, logits)
    assert moved > 30
    half = FrequencyPenalty(0.5)(draw(2, 6, 0).half(), texts(2, 5, 6, 0), None, 1)
    assert half.dtype == torch.float16


@pytest.mark.usefixtures("unchecked")  # for speed
def test_generation_with_the_penalties_equals_a_loop():
    model = gpt()
    for presence, frequency in ((1.5, 0.0), (0.0, 1.0), (0.7, 0.4), (-1.0, 0.5)):
        adjust = in_turn(PresencePenalty(presence), FrequencyPenalty(frequency))
        together = generate(model, [[5], [6, 7, 8, 9], [3, 4]], 10, adjust=adjust)
        for row, new in zip([[5], [6, 7, 8, 9], [3, 4]], together.tolist(), strict=True):
            text = torch.tensor([row])
            for _ in range(10):
                with torch.no_grad():
                    logits = by_formula(model(text)[:, -1], text, len(row), presence, frequency)
                text = torch.cat([text, logits.argmax(dim=-1, keepdim=True)], dim=1)
            assert text[0, len(row) :].tolist() == new


def gpt2(std: float = 0.4, seed: int = 0) -> Any:
    return enlarged(
        GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=CONTEXT, n_layer=1, n_head=2, n_embd=16)), std, seed
    )


def their_llama(std: float = 0.4, seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    return enlarged(LlamaForCausalLM(config), std, seed)


def marian(std: float = 0.4, seed: int = 0) -> Any:
    config = MarianConfig(
        vocab_size=V,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=None,
    )
    model = enlarged(MarianMTModel(config), std, seed)
    model.generation_config.max_length = None
    return model


# ours; what transformers calls it
ADJUSTMENTS: list[tuple[Adjust | None, dict[str, Any]]] = [
    (None, {}),
    (RepetitionPenalty(1.6), {"repetition_penalty": 1.6}),
    (NoRepeatNgram(1), {"no_repeat_ngram_size": 1}),
    (NoRepeatNgram(2), {"no_repeat_ngram_size": 2}),
    (NoRepeatNgram(3), {"no_repeat_ngram_size": 3}),
    (MinNewTokens(5, [1, 7]), {"min_new_tokens": 5}),
    (Forbid([0, 5, [6, 7], [8, 9, 10]]), {"bad_words_ids": [[0], [5], [6, 7], [8, 9, 10]]}),
    (
        in_turn(
            RepetitionPenalty(0.8), NoRepeatNgram(2), Forbid([0, [3, 4], 11, [2, 13, 14]]), MinNewTokens(4, [1, 7])
        ),
        {
            "repetition_penalty": 0.8,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[0], [3, 4], [11], [2, 13, 14]],
            "min_new_tokens": 4,
        },
    ),
]
# For transformers, padding is text: a pair of padding tokens in front of a text is a pair that must not come again. So
# in these tests no text has one.
ADJUSTMENTS = [
    (Forbid([0]) if adjust is None else in_turn(adjust, Forbid([0])), {**options, "suppress_tokens": [0]})
    for adjust, options in ADJUSTMENTS
]
STOPS = [1, 7]
UNEQUAL = [[5, 9, 9], [6, 7, 8, 9, 9, 8, 7], [13, 4, 13, 4, 13]]
PAD = 0


def given(kind: str, std: float, seed: int) -> tuple[Any, Any, dict[str, Tensor], list[list[int]]]:
    """transformers' model, the same in our call shape, what `generate` of transformers gets, and what ours does."""
    if kind == "Marian":
        model, source = marian(std, seed), torch.tensor([[3, 4, 5, 6], [7, 8, 1, 0], [9, 1, 0, 0]])
        inputs = {"input_ids": source, "attention_mask": (source != 0).long()}
        return model, Theirs(model, CONTEXT, source), inputs, [[0]] * 3
    model = {"GPT-2": gpt2, "Llama": their_llama}[kind](std, seed)
    rows = [row[: 1 + 2 * (seed % 4)] for row in UNEQUAL]  # from one token on
    if seed % 2:
        rows = [[5 + i, *row] for i, row in enumerate(rows)] + [[9, 9, 9, 4, 4, 9, 9, 9]]
    T = max(map(len, rows))
    text = torch.tensor([[PAD] * (T - len(row)) + row for row in rows])
    return model, Theirs(model, CONTEXT), {"input_ids": text, "attention_mask": (text != PAD).long()}, rows


SPREADS = (0.1, 0.4, 1.5)  # from flat to peaked
LAST = len(ADJUSTMENTS) - 1
CASES = [
    (kind, SPREADS[seed], seed, i)
    for kind in ("GPT-2", "Llama", "Marian")
    for i in range(LAST + 1)
    for seed in ((0, 1, 2) if i in (0, LAST) else (i % 3,))
]


def shapes(kind: str, out: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return out[:, 1 if kind == "Marian" else inputs["input_ids"].shape[1] :]


def padded_as_theirs(ids: Tensor) -> list[list[int]]:
    """Our rows, with padding after the stop token."""
    rows = []
    for row in ids.tolist():
        end = next((i for i, token in enumerate(row) if token in STOPS), len(row) - 1) + 1
        rows.append(row[:end] + [PAD] * (len(row) - end))
    return rows


@pytest.mark.usefixtures("unchecked")  # for speed: 36 cases
def test_greedy_search_with_adjustments_is_that_of_transformers():
    moved = 0
    for kind, std, seed, i in CASES:
        model, ours, inputs, rows = given(kind, std, seed)
        adjust, options = ADJUSTMENTS[i]
        expected = model.generate(
            **inputs, max_new_tokens=9, do_sample=False, eos_token_id=STOPS, pad_token_id=PAD, **options
        )
        expected = shapes(kind, expected, inputs).tolist()
        found = generate(ours, rows, 9, adjust=adjust, stop_id=STOPS)
        assert padded_as_theirs(found) == expected, (kind, std, seed, options)
        plain = generate(ours, rows, 9, adjust=ADJUSTMENTS[0][0], stop_id=STOPS)
        moved += i > 0 and expected != padded_as_theirs(plain)
    assert moved > 15


@pytest.mark.usefixtures("unchecked")  # for speed: 36 cases
def test_several_samples_and_their_scores_are_those_of_transformers():
    for kind, std, seed, i in CASES:
        model, ours, inputs, rows = given(kind, std, seed)
        adjust, options = ADJUSTMENTS[i]
        torch.manual_seed(seed)
        out = model.generate(
            **inputs,
            max_new_tokens=7,
            do_sample=True,
            temperature=0.8,
            top_k=12,
            top_p=0.95,
            num_return_sequences=3,
            output_scores=True,
            return_dict_in_generate=True,
            eos_token_id=STOPS,
            pad_token_id=PAD,
            **options,
        )
        torch.manual_seed(seed)
        found = generate_scored(ours, rows, 7, n=3, choose=Sampler(0.8, 12, 0.95), adjust=adjust, stop_id=STOPS)
        new = shapes(kind, out.sequences, inputs)
        assert found.ids.shape == (len(rows), 3, new.shape[1])
        assert padded_as_theirs(found.ids.flatten(0, 1)) == new.tolist(), (kind, std, seed, options)
        scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        lengths = [next((j for j, t in enumerate(row) if t in STOPS), new.shape[1] - 1) + 1 for row in new.tolist()]
        assert found.lengths.flatten().tolist() == lengths
        runs = torch.arange(new.shape[1]) < torch.tensor(lengths)[:, None]
        scores = scores.where(runs, 0.0)  # of what follows the stop token transformers says anything
        torch.testing.assert_close(found.log_probabilities.flatten(0, 1), scores, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.log_probability.flatten(), scores.sum(dim=1), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("unchecked")  # for speed: 36 cases
def test_beam_search_with_adjustments_and_its_scores_are_those_of_transformers():
    for kind, std, seed, i in CASES:
        model, ours, inputs, rows = given(kind, std, seed)
        adjust, options = ADJUSTMENTS[i]
        out = model.generate(
            **inputs,
            max_new_tokens=6,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            eos_token_id=STOPS,
            pad_token_id=PAD,
            **options,
        )
        chances = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
        found = [
            h for row in beam_search(ours, rows, 6, n_beams=3, n_best=3, adjust=adjust, stop_id=STOPS) for h in row
        ]
        new = shapes(kind, out.sequences, inputs).tolist()
        assert len(found) == len(new)
        for h, ids, score, theirs in zip(found, new, out.sequences_scores.tolist(), chances.tolist(), strict=True):
            assert h.ids == tuple(ids[: len(h.ids)]), (kind, std, seed, options)
            assert set(ids[len(h.ids) :]) <= {PAD, STOPS[0]}  # what the shorter ones are filled up with
            assert h.score == pytest.approx(score, rel=1e-4, abs=1e-5)
            assert h.token_log_probabilities == pytest.approx(theirs[: len(h.ids)], rel=1e-4, abs=1e-3)
            assert sum(h.token_log_probabilities) == pytest.approx(h.log_probability, rel=1e-4, abs=1e-4)


def test_greedy_search_has_scores_too():
    model, ours, inputs, rows = given("GPT-2", 0.4, 1)
    out = model.generate(
        **inputs, max_new_tokens=7, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=PAD
    )
    found = generate_scored(ours, rows, 7)
    assert found.ids[:, 0].tolist() == shapes("GPT-2", out.sequences, inputs).tolist()
    expected = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    torch.testing.assert_close(found.log_probabilities[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")  # for speed
def test_speculation_with_adjustments_is_greedy_search_with_them():
    model, draft = gpt(), gpt(seed=1)
    for adjust, _ in [*ADJUSTMENTS, (in_turn(PresencePenalty(0.9), FrequencyPenalty(0.6)), {})]:
        for drafter in (draft, model):
            ours = speculative(model, drafter, [[6, 7, 8, 9]], 12, adjust=adjust, stop_id=STOPS)
            expected = generate(model, [[6, 7, 8, 9]], 12, adjust=adjust, stop_id=STOPS)
            assert torch.equal(ours.ids, expected)
        assert ours.accepted == ours.proposed  # a draft model that is adjusted alike is always right


@pytest.mark.usefixtures("unchecked")  # for speed
def test_speculation_draws_from_the_adjusted_distribution():
    target, draft = markov(3, 0), markov(3, 1)
    adjust, generator = in_turn(FrequencyPenalty(1.0), Forbid([[1, 2]])), torch.Generator().manual_seed(0)
    expected = torch.zeros(9)
    for a in range(3):
        first = adjust(target.table[2:3], torch.tensor([[2]]), None, 1).softmax(dim=-1)[0, a]
        after = adjust(target.table[a : a + 1], torch.tensor([[2, a]]), None, 1).softmax(dim=-1)[0]
        expected[3 * a : 3 * a + 3] = first * after
    n, counts = 700, torch.zeros(9)
    for _ in range(n):
        ids = speculative(
            target, draft, [[2]], 2, n_draft=2, sampler=Sampler(), adjust=adjust, generator=generator
        ).ids[0]
        counts[int(3 * ids[0] + ids[1])] += 1
    possible = expected > 0
    assert not possible.all()
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - n * expected) ** 2 / (n * expected))[possible].sum()
    assert chi_square < 26.1  # seven degrees of freedom: once in two thousand times


def test_a_text_that_may_not_end_goes_on_and_one_in_which_nothing_is_left_is_an_error():
    model = markov(5, 0)
    model.table[:, 3] += 50.0
    assert generate(model, [[1]], 4, stop_id=3).shape == (1, 1)
    assert generate(model, [[1]], 4, stop_id=3, adjust=Forbid([3])).shape == (1, 4)
    for call in (generate, generate_scored):
        with pytest.raises(ValueError, match="after 4 new tokens, row 0: all 5 tokens are ruled out"):
            call(model, [[1]], 6, adjust=NoRepeatNgram(1))
    with pytest.raises(ValueError, match="after 4 new tokens, row 0: all 5 tokens"):
        speculative(model, model, [[1]], 6, adjust=NoRepeatNgram(1), n_draft=2)
    [found] = beam_search(model, [[1]], 6, n_beams=2, adjust=NoRepeatNgram(1))
    assert found == []  # no text of six tokens can be


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoRepeatNgram(0), "n is a whole number from 1 on: got n=0"),
        (lambda: NoRepeatNgram(2.0), r"got n=2\.0"),
        (lambda: NoRepeatNgram(True), "got n=True"),
        (lambda: MinNewTokens(-1, 3), "got n=-1"),
        (lambda: MinNewTokens(1.5, 3), r"got n=1\.5"),
        (lambda: MinNewTokens(2, None), "name the stop tokens"),
        (lambda: MinNewTokens(2, []), "name the stop tokens"),
        (lambda: MinNewTokens(2, True), "got True"),
        (lambda: Forbid(["ab"]), "got 'ab'"),
        (lambda: Forbid("ab"), "got 'ab'"),
        (lambda: Forbid(3), "got 3"),
        (lambda: Forbid([3, []]), "at least one token"),
        (lambda: Forbid([3, -1]), "got -1"),
        (lambda: Forbid([2.0]), r"got 2\.0"),
        (lambda: Forbid([[2, True]]), "got True"),
        (lambda: Forbid([[2, [3]]]), r"got \[3\]"),
        (lambda: Forbid([2, [3, 5]])(torch.zeros(1, 5), torch.tensor([[1]])), "knows 5 tokens, .* got 5 among"),
        (lambda: RepetitionPenalty(math.inf), "got inf"),
        (lambda: RepetitionPenalty("2"), "got 2"),
        (lambda: PresencePenalty(math.nan), "a presence penalty is a number.* got nan"),
        (lambda: FrequencyPenalty(math.inf), "a frequency penalty is a number.* got inf"),
        (lambda: FrequencyPenalty(None), "got None"),
        (lambda: FrequencyPenalty(True), "got True"),
    ],
)
def test_impossible_adjustments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_ids_of_torch_and_numpy_are_ids():
    ids = torch.tensor([2, 4])
    assert Forbid(ids).alone == (2, 4)
    assert Forbid([ids, 1]).sequences == ((2, 4),)
    assert Forbid(ids.numpy()).alone == (2, 4)
    assert MinNewTokens(1, ids)(torch.zeros(1, 5), torch.tensor([[0]]), None, 1).isinf().tolist() == [
        [False, False, True, False, True]
    ]
