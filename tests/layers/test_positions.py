"""Positions against their formulas by loops, transformers' Llama, and the values that the papers print."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from llm_core.layers.positions import (
    Alibi,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    NtkScaling,
    PairScaling,
    PartialRope,
    Rope,
    SinusoidalPositions,
    YarnScaling,
    alibi_slopes,
    rotate_halves,
    rotate_neighbours,
    sinusoidal,
)

BOTH_PAIRINGS = pytest.mark.parametrize("turn", [rotate_halves, rotate_neighbours])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def in_double():
    """Tables in float64, for properties that should hold to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("T", "D", "base"), [(7, 6, 10_000.0), (3, 2, 10_000.0), (5, 8, 100.0)])
def test_sinusoidal_equals_the_formula_by_loops(T, D, base):
    table = sinusoidal(T, D, base=base)
    for p in range(T):
        for i in range(D // 2):
            angle = p / base ** (2 * i / D)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.usefixtures("in_double")
def test_sinusoidal_is_exact_far_out():
    p = 1_000_003
    far = sinusoidal(1, 4, start=p)
    expected = [math.sin(p), math.cos(p), math.sin(p / 100), math.cos(p / 100)]
    torch.testing.assert_close(far[0], torch.tensor(expected), rtol=0, atol=1e-9)
    torch.testing.assert_close(sinusoidal(3, 8, start=5), sinusoidal(8, 8)[5:])


def test_sinusoidal_needs_an_even_width():
    with pytest.raises(ValueError, match="D=5"):
        sinusoidal(3, 5)


def test_sinusoidal_positions_add_the_table_from_start():
    module, x = SinusoidalPositions(6, 10), draw(2, 4, 6, dtype=torch.float32)
    torch.testing.assert_close(module(x), x + sinusoidal(10, 6)[:4])
    torch.testing.assert_close(module(x, 3), x + sinusoidal(10, 6)[3:7])
    torch.testing.assert_close(module(x, 6), x + sinusoidal(10, 6)[6:])
    assert list(module.state_dict()) == []
    assert module.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert module(x.double()).dtype == torch.float64


def test_learned_positions_add_their_rows_from_start():
    module, x = LearnedPositions(6, 10), draw(2, 4, 6, dtype=torch.float32)
    for start in (0, 3, 6):
        expected = torch.stack([x[:, t] + module.embedding.weight[start + t] for t in range(4)], dim=1)
        torch.testing.assert_close(module(x, start), expected)
    module(x, 3).sum().backward()
    touched = module.embedding.weight.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [3 <= p < 7 for p in range(10)]


@pytest.mark.parametrize("make", [SinusoidalPositions, LearnedPositions, Rope])
def test_no_room_is_an_error_with_the_numbers(make):
    positions = make(6, 10)
    with pytest.raises(ValueError, match=r"7 to 10 do not fit a table of 10.*by 1 tokens"):
        positions(torch.zeros(1, 4, 6), 7)
    with pytest.raises(ValueError, match=r"0 to 11.*by 2 tokens"):
        positions(torch.zeros(1, 12, 6))


# ---- RoPE ----


@BOTH_PAIRINGS
def test_a_position_may_be_a_tensor(turn):
    rope, learned = Rope(6, 20, turn=turn), LearnedPositions(6, 20)
    x, text = draw(2, 3, 4, 6), draw(2, 4, 6, dtype=torch.float32)
    for start in (0, 3, 16):
        assert torch.equal(rope(x, torch.tensor(start)), rope(x, start))
        assert torch.equal(learned(text, torch.tensor([start])), learned(text, start))
    with pytest.raises(ValueError, match=r"17 to 20 do not fit a table of 20.*by 1 tokens"):
        learned(text, torch.tensor([3, 17]))


@BOTH_PAIRINGS
@pytest.mark.usefixtures("in_double")
def test_rope_turns_each_pair_by_its_angle(turn):
    E, rope = 6, Rope(6, 20, turn=turn)
    x = draw(2, 3, 20, E)
    turned = rope(x)
    for p in (0, 1, 7, 19):
        for i in range(E // 2):
            first, second = (i, i + E // 2) if turn is rotate_halves else (2 * i, 2 * i + 1)
            angle = p / 10_000 ** (2 * i / E)
            point = torch.complex(x[:, :, p, first], x[:, :, p, second]) * complex(math.cos(angle), math.sin(angle))
            torch.testing.assert_close(turned[:, :, p, first], point.real)
            torch.testing.assert_close(turned[:, :, p, second], point.imag)


@BOTH_PAIRINGS
@pytest.mark.usefixtures("in_double")
def test_rope_scores_depend_on_the_distance_alone(turn):
    rope = Rope(8, 200, turn=turn)
    q, k = draw(1, 8), draw(1, 8, seed=1)

    def score(at: int, distance: int) -> float:
        return (rope(q, at) @ rope(k, at - distance).T).item()

    for distance in (0, 1, 5, 50):
        scores = [score(at, distance) for at in (distance, 60, 111, 199)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-12)
    assert abs(score(60, 1) - score(60, 5)) > 1e-3
    assert score(60, 0) == pytest.approx((q @ k.T).item(), abs=1e-12)


@BOTH_PAIRINGS
@pytest.mark.usefixtures("in_double")
def test_rope_keeps_lengths_and_the_first_position(turn):
    rope, x = Rope(8, 50, turn=turn), draw(2, 3, 50, 8)
    torch.testing.assert_close(rope(x).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rope(x)[:, :, 0], x[:, :, 0])
    assert not torch.allclose(rope(x)[:, :, 1], x[:, :, 1])


@BOTH_PAIRINGS
def test_rope_from_start_is_a_slice_of_the_whole(turn):
    rope, x = Rope(8, 20, turn=turn), draw(2, 3, 20, 8, dtype=torch.float32)
    whole = rope(x)
    for start in (0, 1, 13, 19):
        torch.testing.assert_close(rope(x[:, :, start:], start), whole[:, :, start:], rtol=0, atol=0)


@pytest.mark.usefixtures("in_double")
def test_the_two_pairings_differ_in_the_order_of_columns_only():
    halves, neighbours = Rope(8, 20), Rope(8, 20, turn=rotate_neighbours)
    x = draw(2, 3, 20, 8)
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # what stands i and i + E/2 in the one stands 2i and 2i + 1 in the other
    torch.testing.assert_close(neighbours(x[..., order]), halves(x)[..., order])
    assert not torch.allclose(neighbours(x), halves(x))


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rope_equals_transformers_llama(base):
    E, T = 8, 30
    query, key = draw(2, 4, T, E, dtype=torch.float32), draw(2, 2, T, E, seed=1, dtype=torch.float32)
    angles = torch.outer(torch.arange(T).float(), base ** -(torch.arange(0, E, 2).float() / E))
    angles = torch.cat([angles, angles], dim=-1)[None]
    their_query, their_key = apply_rotary_pos_emb(query, key, angles.cos(), angles.sin())
    rope = Rope(E, T, base=base)
    torch.testing.assert_close(rope(query), their_query, rtol=0, atol=2e-5)
    torch.testing.assert_close(rope(key), their_key, rtol=0, atol=2e-5)


@BOTH_PAIRINGS
def test_a_model_cast_to_bfloat16_keeps_far_positions_right(turn):
    """Angles of thousands of radians, rounded to bfloat16's 8 bits, would point anywhere."""
    rope, exact = Rope(8, 8000, turn=turn).to(torch.bfloat16), Rope(8, 8000, turn=turn)
    x = draw(1, 1, 1, 8, dtype=torch.float32).to(torch.bfloat16)
    for start in (1, 4097, 7999):
        turned = rope(x, start)
        assert turned.dtype == torch.bfloat16
        torch.testing.assert_close(turned.float(), exact(x.float(), start), rtol=0.02, atol=0.03)


def test_rope_has_no_weights_and_keeps_the_type():
    rope = Rope(8, 20)
    assert list(rope.state_dict()) == []
    assert rope(draw(1, 2, 3, 8)).dtype == torch.float64


def test_rope_needs_an_even_width():
    with pytest.raises(ValueError, match="d_head=5"):
        Rope(5, 10)


# ---- RoPE for longer texts ----

SCALINGS = [
    (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    (LinearScaling(1.0), {"rope_type": "linear", "factor": 1.0}),
    *(
        (
            Llama3Scaling(factor, low, high, original),
            {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            },
        )
        for factor, low, high, original in [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 64), (2.0, 0.5, 0.75, 100)]
    ),
    *(
        (
            YarnScaling(factor, original, **ours),
            {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **theirs},
        )
        for factor, original, ours, theirs in [
            (4.0, 32768, {}, {}),
            (1.0, 2048, {}, {}),
            (16.0, 300, {"fast": 8.0, "slow": 2.0}, {"beta_fast": 8.0, "beta_slow": 2.0}),
            (40.0, 4096, {"attention_factor": 0.7}, {"attention_factor": 0.7}),
            (2.0, 7, {}, {}),  # hardly a pair turns once
        ]
    ),
]


@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS)
@pytest.mark.parametrize(("E", "base"), [(64, 10_000.0), (128, 1_000_000.0), (8, 500_000.0), (4, 100.0)])
def test_scaled_frequencies_equal_transformers(scaling, theirs, E, base):
    config = LlamaConfig(
        hidden_size=4 * E, num_attention_heads=4, head_dim=E, rope_parameters={**theirs, "rope_theta": base}
    )
    expected, amplitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
    frequencies = base ** -(torch.arange(0, E, 2, dtype=torch.float64) / E)
    torch.testing.assert_close(scaling(frequencies), expected.double(), rtol=1e-5, atol=0)
    assert scaling.amplitude == pytest.approx(amplitude)


@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS)
def test_scaled_rope_equals_transformers_llama(scaling, theirs):
    E, T = 16, 40
    config = LlamaConfig(
        hidden_size=4 * E, num_attention_heads=4, head_dim=E, rope_parameters={**theirs, "rope_theta": 500.0}
    )
    query, key = draw(2, 4, T, E, dtype=torch.float32), draw(2, 2, T, E, seed=1, dtype=torch.float32)
    cos, sin = LlamaRotaryEmbedding(config)(query, torch.arange(T)[None])
    their_query, their_key = apply_rotary_pos_emb(query, key, cos, sin)
    rope = Rope(E, T, base=500.0, scaling=scaling)
    torch.testing.assert_close(rope(query), their_query, rtol=0, atol=2e-5)
    torch.testing.assert_close(rope(key), their_key, rtol=0, atol=2e-5)


def test_yarn_leaves_pairs_alone_that_all_turn_often():
    # transformers slows them all down here: its ramp runs backwards where the first pair to slow lies beyond the last.
    frequencies = torch.tensor([1.0, 0.1])
    assert torch.equal(YarnScaling(2.0, 10**9, fast=2.0)(frequencies), frequencies)


@pytest.mark.usefixtures("in_double")
def test_position_interpolation_puts_far_positions_where_near_ones_were():
    plain, slow = Rope(8, 20), Rope(8, 60, scaling=LinearScaling(3.0))
    x = draw(2, 8)
    for p in range(20):
        torch.testing.assert_close(slow(x[:1], 3 * p), plain(x[:1], p))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.5), "factor=0.5"),
        (lambda: YarnScaling(0.0, 10), "factor=0.0"),
        (lambda: YarnScaling(2.0, 0), "original_context=0"),
        (lambda: YarnScaling(2.0, 10, fast=1.0), "fast=1.0, slow=1.0"),
        (lambda: YarnScaling(2.0, 10, slow=0.0), "fast=32.0, slow=0.0"),
        (lambda: Llama3Scaling(0.9, 1.0, 4.0, 10), "factor=0.9"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 10), "low_frequency_factor=4.0, high_frequency_factor=4.0"),
        (lambda: Llama3Scaling(8.0, 1.0, 4.0, -1), "original_context=-1"),
        (lambda: Rope(2, 10, scaling=YarnScaling(2.0, 10)), "at least 4: got 2"),
    ],
)
def test_impossible_scalings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rope(8, 20, base=500.0, scaling=YarnScaling(4.0, 10)),
        lambda: Rope(8, 20, turn=rotate_neighbours),
        lambda: SinusoidalPositions(6, 10, base=100.0),
        lambda: Alibi(6),
    ],
)
def test_tables_made_on_the_meta_device_can_be_computed_later(make):
    with torch.device("meta"):
        module = make()
    assert all(buffer.is_meta for buffer in module.buffers())
    module.reset_tables()
    for (name, buffer), expected in zip(module.named_buffers(), make().buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert list(module.state_dict()) == []


# ---- ALiBi ----


def test_alibi_slopes_are_those_that_the_paper_prints():
    # Press et al. 2022, section 3: "for models with 8 heads, the slopes ... are 1/2^1, 1/2^2, ..., 1/2^8";
    # with 16 heads they run from 1/2^0.5 to 1/2^8 in steps of 1/2^0.5.
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    torch.testing.assert_close(alibi_slopes(16), torch.tensor([2 ** (-0.5 * i) for i in range(1, 17)]))
    assert alibi_slopes(1).tolist() == [2.0**-8]
    assert alibi_slopes(2).tolist() == [2.0**-4, 2.0**-8]


@pytest.mark.parametrize("n", [3, 5, 6, 7, 12, 20])
def test_alibi_slopes_of_other_numbers_are_those_of_the_papers_code(n):
    # get_slopes of github.com/ofirpress/attention_with_linear_biases, fairseq/models/transformer.py.
    def get_slopes(n):
        def get_slopes_power_of_2(n):
            start = 2 ** (-(2 ** -(math.log2(n) - 3)))
            ratio = start
            return [start * ratio**i for i in range(n)]

        if math.log2(n).is_integer():
            return get_slopes_power_of_2(n)
        closest = 2 ** math.floor(math.log2(n))
        return get_slopes_power_of_2(closest) + get_slopes(2 * closest)[0::2][: n - closest]

    assert len(alibi_slopes(n)) == n
    torch.testing.assert_close(alibi_slopes(n), torch.tensor(get_slopes(n)))


@pytest.mark.parametrize(("T", "S"), [(4, 4), (1, 6), (3, 5)])
def test_alibi_takes_slope_times_distance_off(T, S):
    bias = Alibi(8)(T, S)
    assert bias.shape == (8, T, S)
    for h in range(8):
        for i in range(T):
            for j in range(S):
                distance = max(0, S - T + i - j)
                assert bias[h, i, j].item() == -(2.0 ** -(h + 1)) * distance


def test_alibi_needs_a_head():
    with pytest.raises(ValueError, match="n_heads=0"):
        Alibi(0)


@BOTH_PAIRINGS
def test_positions_that_are_given_turn_as_those_from_start(turn):
    rope = Rope(6, 20, turn=turn, scaling=YarnScaling(2.0, 10))
    x = draw(2, 3, 5, 6, dtype=torch.float32)
    assert torch.equal(rope(x, positions=torch.arange(4, 9)), rope(x, 4))
    rows = torch.tensor([[4, 5, 6, 7, 8], [19, 0, 3, 3, 1]])
    turned = rope(x, positions=rows)
    assert torch.equal(turned[0], rope(x, 4)[0])
    for t, p in enumerate(rows[1].tolist()):
        assert torch.equal(turned[1, :, t], rope(x[:, :, t : t + 1], p)[1, :, 0])
    assert torch.equal(rope(x[:, 0], positions=rows), turned[:, 0])  # without heads


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 20]), r"must lie in 0 ... 19: got 0 to 20"),
        (torch.tensor([0, 1, 2, -1, 3]), r"got -1 to 3"),
        (torch.arange(4), r"got positions \(4,\)"),
        (torch.zeros(3, 5, dtype=torch.long), r"got positions \(3, 5\)"),
        (torch.zeros(2, 3, 5, dtype=torch.long), r"got positions \(2, 3, 5\)"),
        (torch.arange(5.0), "whole numbers: got torch.float32"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_positions_that_are_given_must_fit(positions, message):
    with pytest.raises(ValueError, match=message):
        Rope(6, 20)(draw(2, 3, 5, 6), positions=positions)


BY_LENGTH = {
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, DynamicScaling(3.0, 16)),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5, 2.0],
            "long_factor": [2.0, 5.0, 9.0],
            "original_max_position_embeddings": 10,
            "attention_factor": 1.3,
        },
        LongScaling((1.0, 1.5, 2.0), (2.0, 5.0, 9.0), 10, 1.3),
    ),
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_scalings_by_length_turn_as_transformers_at_every_length(name):
    said, scaling = BY_LENGTH[name]
    ours = Rope(6, 48, base=100.0, scaling=scaling)
    config = LlamaConfig(
        hidden_size=12, num_attention_heads=2, max_position_embeddings=16, rope_parameters={**said, "rope_theta": 100.0}
    )
    theirs = LlamaRotaryEmbedding(config)
    x = draw(1, 1, 48, 6, dtype=torch.float32)
    turns = set()
    for T in range(1, 49):
        cos, sin = theirs(x, torch.arange(T)[None])
        expected, _ = apply_rotary_pos_emb(x[:, :, :T], x[:, :, :T], cos, sin)
        torch.testing.assert_close(ours(x[:, :, :T]), expected, rtol=0, atol=1e-5)
        turns.add(ours.by_length.at(T))
        # A step with a cache is turned by the length that the text has then.
        torch.testing.assert_close(ours(x[:, :, T - 1 : T], T - 1), expected[:, :, -1:], rtol=0, atol=1e-5)
    assert len(turns) == (33 if name == "dynamic" else 2)


def test_scalings_by_length_are_held_to_their_bounds():
    for wrong, message in [
        (lambda: DynamicScaling(0.5, 10), "factor=0.5"),
        (lambda: DynamicScaling(2.0, 0), "original_context=0"),
        (lambda: LongScaling((1.0,), (1.0, 2.0), 4), "of one length: got 1 and 2"),
        (lambda: LongScaling((1.0,), (0.0,), 4), "must be above 0"),
        (lambda: LongScaling((1.0,), (1.0,), 0), "original_context=0"),
        (lambda: Rope(6, 8, scaling=LongScaling((1.0,), (2.0,), 4)), "one factor for each of 3 pairs: got 1"),
        (lambda: NtkScaling(2.0)(torch.ones(1)), "at least 4: got 2"),
        (lambda: PairScaling((1.0,), amplitude=0.0), "amplitude=0.0"),
        (lambda: YarnScaling(2.0, 8, attention_factor=0.0), "attention_factor must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_part_of_the_columns_turns_and_the_others_stay():
    part, x = PartialRope(Rope(4, 12, base=100.0)), torch.randn(2, 3, 5, 10)
    turned = part(x, 2)
    assert torch.equal(turned[..., :4], Rope(4, 12, base=100.0)(x[..., :4], 2))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(part(x, positions=torch.arange(2, 7)), turned)
    with pytest.raises(ValueError, match="do not fit a table of 12"):
        part(x, 8)
