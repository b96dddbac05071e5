"""Speculative decoding: the distribution of what comes out, exactly and by counting; greedy; caches and limits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from wrapped import CONTEXT, Markov, Theirs, V, enlarged, gpt, llama, markov, prompts

from llm_core.generation.generate import generate
from llm_core.generation.sampling import Sampler
from llm_core.generation.speculative import accept_probability, acceptance_rate, residual, speculative, verify
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

SAMPLERS = [Sampler(), Sampler(0.5), Sampler(top_k=2), Sampler(top_p=0.7), Sampler(1.5, 3, 0.95, 0.1)]


def pairs() -> tuple[Tensor, Tensor]:
    """Distributions p and q: random, equal, disjoint, and with zeros in either."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64).mul(2).softmax(dim=-1)
    p, q = p.clone(), q.clone()
    p[:5, 2:4] = 0
    q[3:9, 3:5] = 0
    q[10] = p[10]
    p[11], q[11] = torch.eye(6, dtype=torch.float64)[1], torch.eye(6, dtype=torch.float64)[4]
    return p / p.sum(dim=-1, keepdim=True), q / q.sum(dim=-1, keepdim=True)


def test_what_is_accepted_and_what_is_drawn_instead_make_up_the_targets_distribution():
    p, q = pairs()
    accepted = q * accept_probability(p, q)
    refused = 1 - accepted.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(accepted + refused * residual(p, q), p, rtol=0, atol=1e-14)
    torch.testing.assert_close(accepted.sum(dim=-1), acceptance_rate(p, q), rtol=0, atol=1e-14)
    torch.testing.assert_close(acceptance_rate(p, q), 1 - (p - q).abs().sum(dim=-1) / 2, rtol=0, atol=1e-14)


def test_the_parts_are_probabilities():
    p, q = pairs()
    accept, rest = accept_probability(p, q), residual(p, q)
    assert ((accept >= 0) & (accept <= 1)).all()
    torch.testing.assert_close(rest.sum(dim=-1), torch.ones(40, dtype=torch.float64))
    assert (rest >= 0).all()
    assert torch.equal(residual(p, p), p)  # nothing is ever refused there
    assert (accept_probability(p, p) == 1).all()


def joint(model: Markov, last: int, T: int, sampler: Sampler) -> Tensor:
    """The probability of each text of T tokens, as the model alone would draw it."""
    chances = sampler.probabilities(model.table)
    texts = product(range(model.vocab_size), repeat=T)
    return torch.tensor(
        [float(torch.stack([chances[a, b] for a, b in zip((last, *t), t, strict=False)]).prod()) for t in texts]
    )


def test_one_round_has_the_targets_joint_distribution_exactly():
    # All that one round can do, with its probabilities, rather than one draw of it.
    target, draft, last = markov(3, 0).table, markov(3, 1).table, 1
    p, q = target.double().softmax(dim=-1), draft.double().softmax(dim=-1)
    joint_of_three = torch.zeros(3, 3, 3, dtype=torch.float64)
    for x, y in product(range(3), repeat=2):  # what the draft model proposes
        proposed = q[last, x] * q[x, y]
        keep_x = accept_probability(p[last], q[last])[x]
        keep_y = accept_probability(p[x], q[x])[y]
        for a, b, c in product(range(3), repeat=3):  # what comes out; the target itself draws what is missing
            first = (1 - keep_x) * residual(p[last], q[last])[a] * p[a, b] * p[b, c]
            second = keep_x * (1 - keep_y) * (a == x) * residual(p[x], q[x])[b] * p[b, c]
            third = keep_x * keep_y * (a == x) * (b == y) * p[y, c]
            joint_of_three[a, b, c] += proposed * (first + second + third)
    expected = p[last][:, None, None] * p[:, :, None] * p[None]
    torch.testing.assert_close(joint_of_three, expected, rtol=0, atol=1e-14)


def fits(counts: Tensor, probabilities: Tensor) -> bool:
    """Whether the counts are what these probabilities give, by chi-square; says no once in a thousand times if so."""
    assert (counts[probabilities == 0] == 0).all()
    expected = probabilities.double() / probabilities.sum() * counts.sum()
    rare = expected < 5  # too rare to be counted one by one
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts = torch.cat([counts[~rare].double(), counts[rare].double().sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    return degrees == 0 or float(torch.special.gammaincc(torch.tensor(degrees / 2.0).double(), chi_square / 2)) > 1e-3


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("K", [0, 1, 3])
def test_verify_keeps_draws_and_drops_as_often_as_it_should(K):
    p = torch.randn(K + 1, 4, generator=torch.Generator().manual_seed(4)).softmax(dim=-1)
    q = torch.randn(K, 4, generator=torch.Generator().manual_seed(5)).softmax(dim=-1)
    generator = torch.Generator().manual_seed(6)
    first, lengths = torch.zeros(4), torch.zeros(K + 1)
    for _ in range(2000):
        proposed = torch.multinomial(q, 1, generator=generator).squeeze(-1) if K else torch.zeros(0, dtype=torch.long)
        new = verify(p, q, proposed, generator)
        assert torch.equal(new[:-1], proposed[: len(new) - 1])
        first[new[0]] += 1
        lengths[len(new) - 1] += 1
    assert fits(first, p[0])
    rates = [*acceptance_rate(p[:K], q).tolist(), 0.0]
    kept = [torch.tensor(rates[:n]).prod().item() * (1 - rates[n]) for n in range(K + 1)]
    assert fits(lengths, torch.tensor(kept))


@pytest.mark.usefixtures("unchecked")  # for speed: there are many
@pytest.mark.parametrize("sampler", SAMPLERS, ids=["plain", "temperature", "top-k", "top-p", "all"])
def test_texts_come_as_often_as_from_the_model_alone(sampler):
    target, draft = markov(3, 0), markov(3, 1)
    expected = joint(target, 2, 3, sampler)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(27)
    for _ in range(1000):
        ids = speculative(target, draft, [[2]], 3, n_draft=2, sampler=sampler, generator=generator).ids
        counts[int((ids[0] * torch.tensor([9, 3, 1])).sum())] += 1
    assert fits(counts, expected)


@pytest.mark.parametrize("n_draft", [1, 4, 11])
@pytest.mark.parametrize("draft_seed", [0, 1])
@pytest.mark.parametrize("window", [None, 3])
def test_greedy_is_greedy_whoever_drafts(n_draft, draft_seed, window):
    model, draft = llama(window), gpt(seed=draft_seed)
    for row in prompts(2):
        ours = speculative(model, draft, row[None], 11, n_draft=n_draft)
        assert torch.equal(ours.ids, generate(model, row[None], 11))


@pytest.mark.usefixtures("unchecked")  # for speed
def test_greedy_with_windows_that_have_moved_on():
    model, draft = llama(window=3, context=120), llama(window=2, context=120)
    ours = speculative(model, draft, [[5, 6]], 110, n_draft=32)
    assert torch.equal(ours.ids, generate(model, [[5, 6]], 110))
    assert ours.accepted < ours.proposed


def test_greedy_equals_transformers_assisted_generation():
    def small(seed: int) -> GPT2LMHeadModel:
        return enlarged(
            GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=32, n_layer=1, n_head=2, n_embd=16)), 0.4, seed
        )

    model, draft = small(0), small(1)
    for row in prompts(3):
        text = row[None]
        expected = model.generate(
            text, attention_mask=torch.ones_like(text), assistant_model=draft, max_new_tokens=12, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        assert torch.equal(speculative(Theirs(model, 32), Theirs(draft, 32), text, 12).ids, expected[:, 4:])


def test_a_model_that_drafts_for_itself_is_always_right():
    model = gpt()
    for sampler in (None, Sampler(), Sampler(0.7, 5)):
        result = speculative(model, model, prompts(1), 11, n_draft=4, sampler=sampler)
        # 4 proposals and one token more: 5 + 5 + 1
        assert (result.proposed, result.accepted, result.passes) == (8, 8, 3)
        assert result.ids.shape == (1, 11)


def test_a_draft_model_that_is_never_right_costs_a_pass_for_each_token():
    target, wrong = torch.full((3, 3), -torch.inf), torch.full((3, 3), -torch.inf)
    target[:, 1], wrong[:, 2] = 0.0, 0.0
    result = speculative(Markov(target), Markov(wrong), [[0]], 6, n_draft=2, sampler=Sampler())
    assert result.ids.tolist() == [[1] * 6]
    assert (result.proposed, result.accepted, result.passes) == (2 + 2 + 2 + 2 + 1 + 0, 0, 6)


@pytest.mark.usefixtures("unchecked")  # for speed
def test_as_many_are_accepted_as_the_distributions_overlap():
    target, draft = markov(5, 2), markov(5, 3)
    target.table[1:], draft.table[1:] = target.table[0], draft.table[0]  # the same after every token
    p, q = target.table[0].softmax(dim=-1), draft.table[0].softmax(dim=-1)
    generator = torch.Generator().manual_seed(0)
    results = [
        speculative(target, draft, [[0]], 40, n_draft=1, sampler=Sampler(), generator=generator) for _ in range(40)
    ]
    proposed, accepted = sum(r.proposed for r in results), sum(r.accepted for r in results)
    rate = acceptance_rate(p, q).item()
    assert abs(accepted / proposed - rate) < 3.3 * (rate * (1 - rate) / proposed) ** 0.5  # 3.3: once in a thousand
    assert 0.2 < rate < 0.9


@pytest.mark.usefixtures("unchecked")  # for speed
def test_it_ends_with_the_stop_token():
    model, draft = gpt(), gpt(seed=1)
    whole = speculative(model, draft, prompts(1, seed=5), 12).ids[0].tolist()
    assert len(set(whole)) > 3
    for stop, n_draft, drafter in product(whole[:5], (1, 4), (draft, model)):
        ids = speculative(model, drafter, prompts(1, seed=5), 12, n_draft=n_draft, stop_id=stop).ids
        assert ids[0].tolist() == whole[: whole.index(stop) + 1]
    stops = set(whole[2:])
    first = next(i for i, token in enumerate(whole) if token in stops)
    assert speculative(model, draft, prompts(1, seed=5), 12, stop_id=stops).ids[0].tolist() == whole[: first + 1]


def test_of_several_stop_tokens_in_one_round_the_first_ends_the_text():
    always = torch.full((3, 3), -torch.inf)
    always[0, 1] = always[1, 2] = always[2, 2] = 0.0
    assert speculative(Markov(always), Markov(always), [[0]], 9, n_draft=4, stop_id=2).ids.tolist() == [[1, 2]]
    assert speculative(Markov(always), Markov(always), [[0]], 9, n_draft=4, stop_id=[1, 2]).ids.tolist() == [[1]]


def test_the_context_can_be_filled_to_the_last_token():
    for drafter in (gpt(), gpt(seed=1)):
        assert speculative(gpt(), drafter, prompts(1), CONTEXT - 3).ids.shape == (1, CONTEXT - 3)
        assert speculative(gpt(), drafter, prompts(1, CONTEXT), 1).ids.shape == (1, 1)


def test_draws_depend_on_their_generator_alone_and_greedy_on_none():
    model, draft = gpt(), gpt(seed=1)

    def draw(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return speculative(model, draft, prompts(1), 12, sampler=Sampler(), generator=generator).ids.tolist()

    first = draw(1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert draw(1) == first
    assert draw(2) != first
    speculative(model, draft, prompts(1), 12)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_logits_will_do():
    target, draft = markov(5, 0), markov(5, 1)
    target.table, draft.table = target.table.bfloat16(), draft.table.bfloat16()
    for sampler in (None, Sampler()):
        assert speculative(target, draft, [[1]], 9, sampler=sampler).ids.shape == (1, 9)


def test_an_encoder_decoder_can_be_the_target():
    model = enlarged(EncoderDecoder(EncoderDecoderConfig(V, CONTEXT, n_layers=1, n_heads=2, d_model=16, d_ff=32)), 0.5)
    with torch.no_grad():
        given = model.given(torch.tensor([[3, 4, 5, 6]]))
        ours = speculative(given, gpt(), [[1]], 12)
        assert torch.equal(ours.ids, generate(given, [[1]], 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [[1], [2]]}, "one prompt at a time: got 2"),
        ({"prompt": [[]]}, "prompt is empty"),
        ({"prompt": [[7]]}, r"knows 5 tokens, 0 \.\.\. 4: got a prompt with ids from 7 to 7"),
        ({"n_draft": 0}, "from 1 on: got n_draft=0"),
        ({"n_draft": 33}, "between 1 and 32 .* n_draft=33"),
        ({"draft": markov(4, 0)}, "a vocabulary of 5, the draft model one of 4"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 101}, "do not fit the context of 100: at most 100"),
        ({"draft": Markov(torch.zeros(5, 5), context=8)}, "do not fit the draft model's context of 8: at most 8"),
        ({"stop_id": 5}, "stop token"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    model = markov(5, 0)
    arguments = {"draft": markov(5, 1), "prompt": [[1]], "max_new_tokens": 9} | change
    with pytest.raises(ValueError, match=message):
        speculative(model, **arguments)
    assert model.passes == arguments["draft"].passes == 0
