"""Sampling against transformers' logits warpers, and what is drawn against what was asked for."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_core.generation.adjust import RepetitionPenalty, in_turn
from llm_core.generation.sampling import Sampler, greedy, keep_min_p, keep_top_k, keep_top_p

# chi-square: a value above this comes once in a thousand times if the frequencies are right, by degrees of freedom
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 5: 20.52}


def draw(batch: int = 20, V: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(batch, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def theirs(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> Tensor:
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p is not None:
        scores = MinPLogitsWarper(min_p)(None, scores)
    return scores.softmax(dim=-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 30, 99])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("min_p", [None, 0.0, 0.02, 0.3, 1.0])
def test_probabilities_equal_transformers(temperature, top_k, top_p, min_p):
    logits = draw()
    logits[:5, 7:20] = float("-inf")
    logits[5:8, 3] += 30.0  # one token has nearly all
    ours = Sampler(temperature, top_k, top_p, min_p).probabilities(logits)
    torch.testing.assert_close(ours, theirs(logits, temperature, top_k, top_p, min_p))
    torch.testing.assert_close(ours.sum(dim=-1), torch.ones(20, dtype=torch.float64))


def test_their_generate_has_the_same_order_of_filters():
    config = GPT2Config(vocab_size=8, n_positions=4, n_layer=1, n_head=1, n_embd=2)
    options = {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.7, "min_p": 0.2, "repetition_penalty": 2.0}
    processors = GPT2LMHeadModel(config)._get_logits_processor(GenerationConfig(**options), input_ids_seq_length=1)
    assert [type(processor) for processor in processors] == [
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        MinPLogitsWarper,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_filtered_as_precisely_as_others(dtype):
    # A running sum in half precision would be stuck long before 20,000 small probabilities make up one half.
    logits = draw(3, 20_000).to(dtype)
    for keep in (partial(keep_top_k, k=50), partial(keep_top_p, p=0.5), partial(keep_min_p, p=0.05)):
        assert keep(logits).dtype == dtype
        assert torch.equal(keep(logits).isfinite(), keep(logits.float()).isfinite())
    sampler = Sampler(0.7, 5000, 0.5, 0.01)
    assert torch.equal(sampler.probabilities(logits), sampler.probabilities(logits.float()))
    assert sampler(logits).dtype == torch.int64


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_when_all_are_equal_each_filter_keeps_what_it_says(n):
    logits = torch.full((2, n), 3.25)
    assert kept(keep_top_k(logits, 1)) == [list(range(n))] * 2  # all tie with the first
    assert kept(keep_min_p(logits, 1.0)) == [list(range(n))] * 2
    half = math.ceil(n / 2)
    assert kept(keep_top_p(logits, 0.5 - 1e-4)) == [list(range(half))] * 2  # as many as are needed, the first of them
    assert [len(row) for row in kept(TopPLogitsWarper(0.5 - 1e-4)(None, logits))] == [half] * 2  # no telling which


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64).log()
    for p, expected in [(0.0, [0, 1, 2, 3]), (0.2, [0, 1, 2, 3]), (0.3, [0, 1]), (0.51, [0]), (1.0, [0])]:
        assert kept(keep_min_p(logits, p))[0] == expected, p
        assert kept(keep_min_p(logits, p))[1] == ([0, 1, 2, 3] if p == 0 else [0]), p
    assert torch.equal(keep_min_p(logits, 0.2)[0], logits[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 20.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty, dtype):
    logits, text = draw().to(dtype), torch.randint(30, (20, 12), generator=torch.Generator().manual_seed(1))
    logits[:, 4] = float("-inf")
    logits[:, 5] = 0.0
    text[:, 3:6] = torch.tensor([4, 5, 5])
    before = logits.clone()
    ours = RepetitionPenalty(penalty)(logits, text)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(text, logits))
    assert torch.equal(logits, before)
    assert ours.dtype == dtype
    seen = torch.zeros(20, 30, dtype=torch.bool).scatter(1, text, True)
    assert torch.equal(ours[~seen], logits[~seen])
    assert ours[seen].sub(logits[seen]).nan_to_num().lt(0).any() == (penalty > 1)


def test_padding_is_not_penalised():
    logits = draw(4, 10)
    text = torch.tensor([[0, 0, 0, 3], [1, 0, 4, 4], [0, 0, 5, 0], [6, 7, 8, 9]])
    padding = torch.tensor([3, 0, 2, 0])
    together = RepetitionPenalty(1.7)(logits, text, padding)
    for row, n in enumerate(padding.tolist()):
        alone = RepetitionPenalty(1.7)(logits[row : row + 1], text[row : row + 1, n:])
        assert torch.equal(together[row], alone[0])
    theirs = RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=padding)
    assert torch.equal(together, theirs(text, logits))


def test_adjustments_are_made_in_turn():
    logits, text = torch.tensor([[2.0, -1.0, 4.0]]), torch.tensor([[1, 2, 2]])

    def double(logits: Tensor, text: Tensor, padding: Tensor | None, n_prompt: int) -> Tensor:
        return logits * 2

    def add_length(logits: Tensor, text: Tensor, padding: Tensor | None, n_prompt: int) -> Tensor:
        return logits + text.shape[1]

    assert in_turn()(logits, text, None) is logits
    assert in_turn(double, add_length)(logits, text, None).tolist() == [[7, 1, 11]]
    assert in_turn(add_length, double, RepetitionPenalty(2.0))(logits, text, None).tolist() == [[10, 2, 7]]


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_top_p_keeps_the_fewest_that_make_up_p():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    # Exactly p is enough: the next token is not needed.
    for p, expected in [(0.4, [0]), (0.5, [0]), (0.51, [0, 1]), (0.75, [0, 1]), (0.8, [0, 1, 2]), (0.9, [0, 1, 2, 3])]:
        assert kept(keep_top_p(logits, p)) == [expected], p
    torch.testing.assert_close(keep_top_p(logits, 0.6)[:, :2], logits[:, :2])


def test_top_p_works_on_each_row_by_itself_and_in_any_order():
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert kept(keep_top_p(logits, 0.65)) == [[2], [0, 1], [0, 1]]


def test_everything_is_kept_when_everything_is_asked_for():
    logits = draw().float()
    logits[0, 3] = 40.0  # so likely that the others are lost in the rounding of a running sum
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    assert torch.equal(keep_top_k(logits, 30), logits)
    assert (Sampler(top_k=99, top_p=1.0).probabilities(logits) > 0).all()


def test_a_peaked_distribution_leaves_the_peak_alone():
    logits = torch.zeros(1, 50)
    logits[0, 17] = 100.0
    assert kept(keep_top_p(logits, 0.999)) == [[17]]
    assert Sampler(temperature=0.01, top_p=0.5).probabilities(logits).argmax() == 17


def test_tokens_that_tie_with_the_kth_stay():
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    assert kept(keep_top_k(logits, 1)) == [[0]]
    assert kept(keep_top_k(logits, 2)) == [[0, 1, 2, 3]]
    assert kept(keep_top_k(logits, 4)) == [[0, 1, 2, 3]]
    assert kept(keep_top_k(logits, 9)) == [[0, 1, 2, 3, 4]]
    torch.testing.assert_close(keep_top_k(logits, 1)[0, 0], logits[0, 0])


def test_what_was_ruled_out_stays_out():
    logits = torch.tensor([[2.0, float("-inf"), 1.0]])
    for sampler in (Sampler(), Sampler(top_k=3), Sampler(top_p=1.0), Sampler(min_p=0.0), Sampler(5.0, 2, 0.99, 0.01)):
        assert sampler.probabilities(logits)[0, 1] == 0


def test_the_filters_leave_their_input_as_it_is():
    logits = draw()
    before = logits.clone()
    Sampler(0.5, 3, 0.5)(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_low_temperature_does_not_overflow(dtype):
    logits = torch.tensor([[60.0, 50.0, 0.0]], dtype=dtype)
    assert Sampler(temperature=1e-4).probabilities(logits).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(temperature=0.5),
        Sampler(top_k=3),
        Sampler(top_p=0.8),
        Sampler(2.0, 4, 0.9),
        Sampler(min_p=0.3),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampler):
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5]])
    expected = sampler.probabilities(logits)[0] * 20_000
    drawn = sampler(logits.expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6)
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    assert chi_square < CHI_SQUARE[int(possible.sum()) - 1]


def test_rows_are_drawn_by_themselves():
    logits = torch.full((3, 4), float("-inf"))
    logits[0, 1] = logits[1, 3] = logits[2, 0] = 0.0
    assert Sampler()(logits).tolist() == [1, 3, 0]


def test_draws_are_those_of_torch_multinomial():
    for V, dtype in ((5, torch.float32), (30, torch.float64), (50_257, torch.float32), (200, torch.bfloat16)):
        logits = draw(7, V).to(dtype)
        sampler = Sampler(1.2, top_k=min(V, 100))
        for seed in range(5):
            expected = torch.multinomial(
                sampler.probabilities(logits), 1, generator=torch.Generator().manual_seed(seed)
            )
            assert torch.equal(sampler(logits, torch.Generator().manual_seed(seed)), expected.squeeze(-1))


def test_draws_depend_on_their_generator_alone():
    logits = draw()
    first = Sampler()(logits, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(first, Sampler()(logits, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, Sampler()(logits, torch.Generator().manual_seed(2)))


def test_greedy_takes_the_first_of_the_likeliest():
    assert greedy(torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 5.0, 5.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"got 0\.0.*use greedy"),
        ({"temperature": -1.0}, r"got -1\.0"),
        ({"temperature": math.nan}, "got nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.1}, r"top_p=1\.1"),
        ({"min_p": -0.1}, r"min_p=-0\.1"),
        ({"min_p": 1.1}, r"min_p=1\.1"),
        ({"min_p": math.nan}, "min_p=nan"),
        ({"temperature": math.inf}, "got inf"),
        ({"temperature": None}, "got None"),
        ({"temperature": True}, "got True"),
        ({"temperature": "1"}, "got 1"),
        ({"top_k": 2.0}, r"whole number from 1 on: got top_k=2\.0"),
        ({"top_k": True}, "top_k=True"),
        ({"top_k": -3}, "top_k=-3"),
        ({"top_k": math.nan}, "top_k=nan"),
        ({"top_p": math.nan}, "top_p=nan"),
        ({"top_p": True}, "top_p=True"),
        ({"top_p": "0.9"}, r"top_p=0\.9"),
        ({"min_p": False}, "min_p=False"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_impossible_filters_are_refused():
    with pytest.raises(ValueError, match="k=0"):
        keep_top_k(draw(), 0)
    for p in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"p={p}"):
            keep_top_p(draw(), p)
    for p in (-0.5, 1.5):
        with pytest.raises(ValueError, match=f"p={p}"):
            keep_min_p(draw(), p)
    for penalty in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"got {penalty}"):
            RepetitionPenalty(penalty)
