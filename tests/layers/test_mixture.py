"""The mixture of experts against transformers' Mixtral, and against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from llm_core.layers.feedforward import GatedFeedForward
from llm_core.layers.mixture import MixtureOfExperts, balance_loss, route, router_logits

D, F = 12, 20
SIZES = pytest.mark.parametrize(("n", "k"), [(4, 2), (8, 1), (3, 3), (1, 1), (16, 2)])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(n: int, k: int) -> tuple[MixtureOfExperts, MixtralSparseMoeBlock]:
    torch.manual_seed(0)
    ours = MixtureOfExperts(D, [GatedFeedForward(D, F) for _ in range(n)], k)
    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=n, num_experts_per_tok=k)
    theirs = MixtralSparseMoeBlock(config)
    theirs.load_state_dict(in_their_names(ours, lambda parameter: parameter.detach().clone()))
    return ours, theirs


def in_their_names(ours: MixtureOfExperts, of) -> dict[str, Tensor]:
    gate_up = [torch.cat([of(e.gate.weight), of(e.up.weight)]) for e in ours.experts]
    return {
        "gate.weight": of(ours.router.weight),
        "experts.gate_up_proj": torch.stack(gate_up),
        "experts.down_proj": torch.stack([of(e.down.weight) for e in ours.experts]),
    }


@SIZES
@pytest.mark.parametrize(("batch", "T"), [(3, 7), (1, 1), (2, 40)])
def test_output_and_gradients_equal_mixtral(n, k, batch, T):
    ours, theirs = pair(n, k)
    x, their_x = draw(batch, T, D).requires_grad_(), draw(batch, T, D).requires_grad_()
    out, expected = ours(x), theirs(their_x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    weight = draw(batch, T, D, seed=1)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, their_x.grad, rtol=1e-4, atol=1e-6)
    grads = in_their_names(ours, lambda parameter: parameter.grad)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_equals_a_loop_over_tokens():
    ours, _ = pair(5, 3)
    ours = ours.double()
    x = draw(2, 6, D).double()
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(6):
            probabilities = ours.router(x[b, t]).softmax(dim=0)
            best = sorted(range(5), key=lambda e: -probabilities[e].item())[:3]
            total = sum(probabilities[e] for e in best)
            for e in best:
                expected[b, t] += probabilities[e] / total * ours.experts[e](x[b, t][None, None])[0, 0]
    torch.testing.assert_close(ours(x), expected)


def test_an_expert_computes_its_own_tokens_and_no_others():
    torch.manual_seed(0)
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, x):
            seen.append(x.shape[1])
            return x

    ours = MixtureOfExperts(D, [Counting() for _ in range(6)], 2)
    x = draw(3, 10, D)
    torch.testing.assert_close(ours(x), x)  # weights that sum to one, of experts that all say x
    assert len(seen) == 6
    assert sum(seen) == 2 * 30
    _, chosen = route(ours.router(x.flatten(0, 1)), 2)
    assert seen == [int((chosen == e).sum()) for e in range(6)]


def test_an_expert_without_tokens_gets_gradients_of_zero():
    ours, _ = pair(4, 1)
    with torch.no_grad():
        ours.router.weight.zero_()
        ours.router.weight[2] = 1.0
    ours(draw(2, 5, D).abs()).sum().backward()
    for e, expert in enumerate(ours.experts):
        grad = expert.down.weight.grad
        assert grad is not None
        assert (grad.abs().sum() > 0) == (e == 2)


def test_weights_that_are_not_rescaled_are_the_probabilities():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    weights, experts = route(logits, 2, rescale=False)
    assert experts.tolist() == [[1, 2]]
    torch.testing.assert_close(weights, logits.softmax(dim=-1)[:, [1, 2]])
    torch.testing.assert_close(route(logits, 2)[0], weights / weights.sum())


def test_routing_in_bfloat16_compares_in_float32():
    weights, experts = route(torch.tensor([[1.0, 1.0078125, -3.0]], dtype=torch.bfloat16), 1)
    assert weights.dtype == torch.bfloat16
    assert experts.tolist() == [[1]]
    # Probabilities near 1/256 that bfloat16 cannot tell apart.
    logits = torch.zeros(1, 256, dtype=torch.bfloat16)
    logits[0, 200] = 0.001
    assert route(logits, 1)[1].tolist() == [[200]]


@SIZES
def test_balance_loss_equals_transformers(n, k):
    logits = draw(50, n)
    expected = load_balancing_loss_func((logits,), n, k)
    torch.testing.assert_close(balance_loss(logits, k), expected)
    layers = (logits, draw(50, n, seed=1), draw(50, n, seed=2))
    torch.testing.assert_close(balance_loss(torch.cat(layers), k), load_balancing_loss_func(layers, n, k))
    text = torch.rand(5, 10, generator=torch.Generator().manual_seed(3)) > 0.4
    expected = load_balancing_loss_func((logits,), n, k, attention_mask=text.long())
    torch.testing.assert_close(balance_loss(logits[text.flatten()], k), expected)


def test_balance_loss_is_least_when_even_and_most_when_all_go_to_one():
    even = 20.0 * torch.eye(4).repeat(3, 1)
    assert balance_loss(even, 1).item() == pytest.approx(1.0, abs=1e-4)
    one = torch.tensor([[20.0, 0.0, 0.0, 0.0]]).repeat(12, 1)
    assert balance_loss(one, 1).item() == pytest.approx(4.0, abs=1e-4)


def test_following_the_balance_loss_spreads_the_tokens():
    torch.manual_seed(0)
    router = nn.Linear(D, 4, bias=False)
    with torch.no_grad():
        router.weight[0] += 1.0
    x = draw(200, D).abs()

    def most() -> int:
        return int(torch.bincount(route(router(x), 1)[1].flatten(), minlength=4).max())

    assert most() > 180
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        balance_loss(router(x), 1).backward()
        optimizer.step()
    assert most() < 100


def test_router_logits_are_collected_layer_by_layer_and_then_no_more():
    torch.manual_seed(0)
    layers = nn.Sequential(*(MixtureOfExperts(D, [GatedFeedForward(D, F) for _ in range(4)], 2) for _ in range(3)))
    x = draw(2, 5, D)
    with router_logits(layers) as logits:
        out = layers(x)
    assert [tuple(logit.shape) for logit in logits] == [(10, 4)] * 3
    torch.testing.assert_close(logits[0], layers[0].router(x.flatten(0, 1)))
    torch.testing.assert_close(logits[2], layers[2].router(layers[:2](x).flatten(0, 1)))
    balance_loss(torch.cat(logits), 2).backward()
    assert all((layer.router.weight.grad.abs() > 0).any() for layer in layers)
    torch.testing.assert_close(layers(x), out)
    assert len(logits) == 3
    with pytest.raises(RuntimeError, match="stop"), router_logits(layers):
        raise RuntimeError("stop")
    assert not any(layer.router._forward_hooks for layer in layers)


@pytest.mark.parametrize(("n", "k"), [(4, 0), (4, 5), (0, 1)])
def test_impossible_numbers_of_experts_are_refused(n, k):
    with pytest.raises(ValueError, match=f"n_per_token={k}, {n} experts"):
        MixtureOfExperts(D, [GatedFeedForward(D, F) for _ in range(n)], k)
    with pytest.raises(ValueError, match=f"n_per_token={k}, {n} experts"):
        route(torch.zeros(3, n), k)
    with pytest.raises(ValueError, match=f"n_per_token={k}, {n} experts"):
        balance_loss(torch.zeros(3, n), k)


def test_balance_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        balance_loss(torch.zeros(0, 4), 1)
