"""DPO and IPO against the papers' formulas, and a small model that learns what is preferred."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from llm_core.adaptation.lora import LoRAConfig, add_lora, lora_parameters
from llm_core.adaptation.preference import (
    FrozenModel,
    LoRAOff,
    PreferenceLoss,
    Stored,
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    preference_batch,
    sequence_log_probs,
)
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.losses import CrossEntropy, Loss
from llm_core.training.masking import IGNORE_ID
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

PAIRS = [([5, 6], [7, 8, 2], [9, 2]), ([5], [2], [6, 7, 8, 9, 2]), ([3, 4, 5, 6, 7], [10, 2], [11, 2])]


def gpt(dropout: float = 0.0, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=13, context=16, n_layers=1, n_heads=2, d_model=16, dropout=dropout))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def log_prob(model: nn.Module, prompt: list[int], answer: list[int]) -> Tensor:
    """ln p(answer | prompt), one token after the other, without padding or batch."""
    ids = prompt + answer
    return torch.stack(
        [F.log_softmax(model(torch.tensor([ids[:i]]))[0, -1], dim=-1)[ids[i]] for i in range(len(prompt), len(ids))]
    ).sum()


def draw(n: int = 6, seed: int = 0) -> list[Tensor]:
    """Four times log-probabilities of n answers."""
    generator = torch.Generator().manual_seed(seed)
    return list(-20 * torch.rand(4, n, generator=generator, dtype=torch.float64))


# -- log-probabilities of answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_id", [0, 2])
def test_log_probs_are_sums_over_the_completion_alone(pad_id):
    model = gpt().eval()
    rows = [(prompt, chosen) for prompt, chosen, _ in PAIRS]
    longest = max(len(prompt + answer) for prompt, answer in rows)
    ids = torch.tensor([p + a + [pad_id] * (longest - len(p + a)) for p, a in rows])
    mask = torch.tensor([[len(p) <= i < len(p + a) for i in range(longest)] for p, a in rows])
    ours = sequence_log_probs(model, ids, mask)
    expected = torch.stack([log_prob(model, *row) for row in rows])
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(ours @ torch.tensor([1.0, -2.0, 3.0]), [model.token_embedding.weight])
    (wanted,) = torch.autograd.grad(expected @ torch.tensor([1.0, -2.0, 3.0]), [model.token_embedding.weight])
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sequence_log_probs(model, ids[1:2], mask[1:2]), expected[1:2])


def test_log_probs_of_half_precision_logits_are_summed_in_float32():
    class Half(nn.Module):
        def forward(self, ids):
            torch.manual_seed(0)
            return torch.randn(*ids.shape, 13).bfloat16()

    ids = torch.randint(13, (2, 300), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[:, 0] = False
    exact = F.log_softmax(Half()(ids[:, :-1]).double(), dim=-1).gather(-1, ids[:, 1:, None]).sum(dim=(1, 2))
    ours = sequence_log_probs(Half(), ids, mask)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)


def test_a_completion_needs_something_before_it_and_something_in_it():
    ids = torch.tensor([[5, 6, 2], [7, 8, 2]])
    with pytest.raises(ValueError, match="nothing stands before it"):
        sequence_log_probs(gpt(), ids, torch.tensor([[False, True, True], [True, True, True]]))
    with pytest.raises(ValueError, match="row 1 has no token of a completion"):
        sequence_log_probs(gpt(), ids, torch.tensor([[False, True, True], [False, False, False]]))


# -- the losses -------------------------------------------------------------------------------------------------------


def test_at_the_start_the_loss_is_ln_2_and_nothing_is_told_apart():
    chosen, rejected, *_ = draw()
    for smoothing in (0.0, 0.3):
        start = dpo_loss(chosen, rejected, chosen, rejected, beta=0.7, label_smoothing=smoothing)
        torch.testing.assert_close(start.losses, torch.full_like(chosen, math.log(2)))
        assert start.accuracy == 0
        assert not start.margins.any()


@pytest.mark.parametrize("beta", [0.1, 1, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_binary_cross_entropy_of_the_margin(beta, smoothing):
    pc, pr, rc, rr = draw()
    result = dpo_loss(pc, pr, rc, rr, beta=beta, label_smoothing=smoothing)
    margin = beta * ((pc - pr) - (rc - rr))
    labels = torch.full_like(margin, 1 - smoothing)
    expected = F.binary_cross_entropy_with_logits(margin, labels, reduction="none")
    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(result.margins, margin)
    torch.testing.assert_close(result.chosen_rewards, beta * (pc - rc))
    torch.testing.assert_close(result.rejected_rewards, beta * (pr - rr))
    assert result.accuracy == pytest.approx(sum(m > 0 for m in margin.tolist()) / 6)
    assert 0 < result.accuracy < 1


def test_the_gradient_of_dpo_is_that_of_the_paper():
    """Rafailov et al. 2023, below equation 7: -beta sigmoid(r_rejected - r_chosen) (grad chosen - grad rejected)."""
    pc, pr, rc, rr = (t.requires_grad_() for t in draw())
    result = dpo_loss(pc, pr, rc, rr, beta=0.3)
    chosen, rejected = torch.autograd.grad(result.losses.sum(), [pc, pr])
    weight = 0.3 * torch.sigmoid(result.rejected_rewards - result.chosen_rewards)
    torch.testing.assert_close(chosen, -weight)
    torch.testing.assert_close(rejected, weight)
    assert not result.margins.requires_grad


@pytest.mark.parametrize("loss", [partial(dpo_loss, beta=0.4), partial(dpo_loss, label_smoothing=0.1), ipo_loss])
def test_gradients_equal_finite_differences(loss):
    inputs = [t.requires_grad_() for t in draw(3)]
    assert torch.autograd.gradcheck(lambda *args: loss(*args).losses, inputs)


def test_margins_that_are_extreme_stay_finite():
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    zero = torch.zeros(2)
    losses = dpo_loss(far, zero, zero, zero, beta=1.0).losses
    torch.testing.assert_close(losses, torch.tensor([0.0, 1e4]))
    losses.sum().backward()
    torch.testing.assert_close(far.grad, torch.tensor([0.0, -1.0]))


def test_rewards_learned_from_pairs_are_those_that_logistic_regression_finds():
    """Bradley and Terry: with one reward for each of 4 players, the wins of all pairs say how far they are apart."""
    wins = torch.tensor([[0, 6, 7, 9], [4, 0, 6, 7], [3, 4, 0, 5], [1, 3, 5, 0]], dtype=torch.float64)
    rewards = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    first, second = wins.nonzero(as_tuple=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (wins[first, second] * bradley_terry_loss(rewards[first], rewards[second])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    design = np.zeros((len(first), 4))
    design[np.arange(len(first)), first] = 1
    design[np.arange(len(first)), second] = -1
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    # Each pair both ways round: the classifier needs both outcomes.
    counts = wins[first, second].numpy()
    model.fit(np.concatenate([design, -design]), [1] * len(first) + [0] * len(first), np.concatenate([counts] * 2))
    expected = model.coef_[0] - model.coef_[0].mean()
    np.testing.assert_allclose((rewards - rewards.mean()).detach(), expected, atol=1e-4)
    assert torch.isfinite(bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4]))).all()


@pytest.mark.parametrize("tau", [0.1, 1])
def test_ipo_is_smallest_at_a_margin_of_half_of_one_over_tau(tau):
    pc, pr, rc, rr = draw()
    result = ipo_loss(pc, pr, rc, rr, tau=tau)
    ratio = torch.log(pc.exp() / rc.exp() / (pr.exp() / rr.exp()))  # Azar et al. 2023, equation 17
    torch.testing.assert_close(result.losses, (ratio - 1 / (2 * tau)) ** 2)
    torch.testing.assert_close(result.margins, tau * ratio)
    best = (pr + rc - rr + 0.5 / tau).requires_grad_()
    (gradient,) = torch.autograd.grad(ipo_loss(best, pr, rc, rr, tau=tau).losses.sum(), [best])
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(dpo_loss, beta=0.0), "beta must be above 0: got 0.0"),
        (partial(dpo_loss, beta=math.nan), "got nan"),
        (partial(dpo_loss, label_smoothing=0.5), "share < 0.5: got 0.5"),
        (partial(dpo_loss, label_smoothing=-0.1), "got -0.1"),
        (partial(ipo_loss, tau=-1), "tau must be above 0: got -1"),
    ],
)
def test_settings_that_make_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call(*draw())


# -- batches and references -------------------------------------------------------------------------------------------


def test_a_batch_has_the_chosen_rows_and_then_the_rejected_ones():
    batch = preference_batch(PAIRS, pad_id=0)
    assert len(batch.targets) == 6
    for row, (prompt, answer) in enumerate([(p, c) for p, c, _ in PAIRS] + [(p, r) for p, _, r in PAIRS]):
        ids, size = prompt + answer, len(prompt + answer)
        assert batch.inputs[0][row].tolist()[: size - 1] == ids[:-1]
        assert batch.targets[row].tolist()[len(prompt) - 1 : size - 1] == answer
        assert (batch.targets[row] != IGNORE_ID).sum() == len(answer)


def test_the_loss_of_a_batch_is_that_of_its_pairs_one_by_one():
    model, reference = gpt(seed=0).eval(), gpt(seed=1).eval()
    loss = PreferenceLoss(FrozenModel(reference), partial(dpo_loss, beta=0.2))
    assert isinstance(loss, Loss)
    batch = preference_batch(PAIRS, pad_id=0)
    each = []
    for prompt, chosen, rejected in PAIRS:
        margin = log_prob(model, prompt, chosen) - log_prob(reference, prompt, chosen)
        margin -= log_prob(model, prompt, rejected) - log_prob(reference, prompt, rejected)
        each.append(-F.logsigmoid(0.2 * margin))
    torch.testing.assert_close(loss.compare(model, batch).losses, torch.stack(each))
    torch.testing.assert_close(loss.total(model, batch), sum(each))
    assert loss.count(batch) == 3


@pytest.mark.parametrize("objective", [dpo_loss, ipo_loss])
def test_a_step_on_parts_is_the_step_on_the_whole(objective):
    whole, parts = gpt().double(), gpt().double()
    loss = PreferenceLoss(FrozenModel(gpt(seed=1).double()), objective)
    cut = [preference_batch(PAIRS[:1], pad_id=0), preference_batch(PAIRS[1:], pad_id=0)]
    records = [
        train_step(model, batch, AdamW(model.parameters()), lr=0.01, loss=loss)
        for model, batch in ((whole, preference_batch(PAIRS, pad_id=0)), (parts, cut))
    ]
    assert records[0].loss == pytest.approx(records[1].loss, rel=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_the_three_references_are_the_same_reference():
    base = gpt()
    model = add_lora(copy.deepcopy(base), LoRAConfig(rank=2, alpha=4))
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    batch = preference_batch(PAIRS, pad_id=0)
    stored = Stored.of(batch, base)
    answers = {
        "model": PreferenceLoss(FrozenModel(base)).compare(model, batch),
        "off": PreferenceLoss(LoRAOff()).compare(model, batch),
        "stored": PreferenceLoss(Stored()).compare(model, stored),
    }
    assert answers["model"].margins.abs().max() > 0.01
    for name in ("off", "stored"):
        assert torch.equal(answers[name].losses, answers["model"].losses), name
    answers["off"].losses.sum().backward()
    assert all(parameter.grad.any() for parameter in lora_parameters(model))
    assert all(parameter.grad is None for parameter in base.parameters())
    assert not stored.inputs[1].requires_grad


@pytest.mark.parametrize("kind", ["model", "off", "stored"])
def test_a_reference_does_not_drop_out_though_the_model_does(kind):
    model = gpt(dropout=0.5).train()
    if kind == "off":
        add_lora(model, LoRAConfig(rank=2, alpha=4))
    model.norm.eval()  # a mode of its own, to be found again
    modes = [module.training for module in model.modules()]
    batch = preference_batch(PAIRS, pad_id=0)
    reference = {"model": FrozenModel(model), "off": LoRAOff(), "stored": lambda m, b: Stored.of(b, m).inputs[1]}[kind]
    assert torch.equal(reference(model, batch), reference(model, batch))
    assert [module.training for module in model.modules()] == modes
    loss = PreferenceLoss(reference)
    assert not torch.equal(loss.total(model, batch), loss.total(model, batch))  # the policy does


def test_what_no_batch_of_pairs_can_be():
    with pytest.raises(ValueError, match="at least one sequence"):
        preference_batch([], pad_id=0)
    for pair, name in ((([], [2], [3]), "prompt"), (([1], [], [3]), "chosen answer"), (([1], [2], []), "rejected")):
        with pytest.raises(ValueError, match=f"the {name}.* of pair 1 is empty"):
            preference_batch([PAIRS[0], pair], pad_id=0)
    with pytest.raises(ValueError, match="text 2 is too long: it has 7 tokens, 6 are allowed"):
        preference_batch(PAIRS, pad_id=0, max_length=6)
    odd = preference_batch(PAIRS, pad_id=0)
    odd = odd._replace(targets=odd.targets[:5])
    with pytest.raises(ValueError, match="got 5"):
        PreferenceLoss(LoRAOff()).count(odd)


def test_references_that_are_not_there():
    batch = preference_batch(PAIRS, pad_id=0)
    with pytest.raises(ValueError, match="this GPT has no LoRA"):
        PreferenceLoss(LoRAOff()).total(gpt(), batch)
    with pytest.raises(ValueError, match="it has 1 inputs, not 2"):
        PreferenceLoss(Stored()).total(gpt(), batch)


# -- it learns --------------------------------------------------------------------------------------------------------


def polite(n: int, seed: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompts of three tokens out of 3 ... 9. Preferred is the answer that repeats the first and ends in 10, not 11."""
    prompts = torch.randint(3, 10, (n, 3), generator=torch.Generator().manual_seed(seed)).tolist()
    return [(prompt, [prompt[0], 10, 2], [prompt[0], 11, 2]) for prompt in prompts]


@pytest.mark.parametrize("kind", ["all weights", "lora", "ipo"])
def test_a_model_learns_what_is_preferred_and_it_holds_for_other_prompts(kind):
    model = gpt().train()
    train, held_out = preference_batch(polite(16, 0), pad_id=0), preference_batch(polite(16, 1), pad_id=0)
    reference, objective = FrozenModel(copy.deepcopy(model)), dpo_loss
    if kind == "lora":
        add_lora(model, LoRAConfig(rank=4, alpha=16, targets=("*.query", "*.value", "*.up", "*.down")))
        reference, objective = LoRAOff(), partial(dpo_loss, beta=0.5)
    if kind == "ipo":
        objective = partial(ipo_loss, tau=0.25)
    loss = PreferenceLoss(reference, objective)
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    records = [train_step(model, train, optimizer, lr=0.01, loss=loss) for _ in range(60)]
    with torch.no_grad():
        after, elsewhere = loss.compare(model, train), loss.compare(model, held_out)
    assert records[0].loss == pytest.approx(4.0 if kind == "ipo" else math.log(2), abs=1e-5)
    assert records[-1].loss < records[0].loss / 2
    assert after.accuracy == 1
    assert elsewhere.accuracy == 1
    assert elsewhere.margins.mean() > 0.4
    if kind == "ipo":  # tau times 1 / (2 tau), and no further
        assert after.margins.mean() == pytest.approx(0.5, abs=0.1)


def test_the_same_batch_serves_supervised_training():
    """Targets and ignore id are those of supervised_batch: the rows of the chosen answers are its rows."""
    model, batch = gpt().eval(), preference_batch(PAIRS, pad_id=0)
    chosen = batch._replace(inputs=(batch.inputs[0][:3],), targets=batch.targets[:3])
    expected = -sum(log_prob(model, prompt, answer) for prompt, answer, _ in PAIRS)
    torch.testing.assert_close(CrossEntropy(ignore_id=IGNORE_ID).total(model, chosen), expected)
