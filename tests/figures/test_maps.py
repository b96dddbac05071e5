"""The maps show the numbers they were given, under the right names, in colours and words that can be read."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from llm_core.figures import accuracy_by_layer, head_map, heat_map, lens_table, patching_map, show, use_style

WORDS = ["I", "love", "books"]
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.125, 0.875, 0.0], [1 / 3, 1 / 3, 1 / 3]])


def test_a_heat_map_writes_its_numbers_and_dots():
    ax = heat_map(WEIGHTS, rows=WORDS, columns=WORDS, mask=np.tri(3, dtype=bool))
    texts = {text.get_position()[::-1]: text for text in ax.texts}
    assert [texts[i, j].get_text() for i in range(3) for j in range(3)] == [
        "1.00", "·", "·", "0.12", "0.88", "·", "0.33", "0.33", "0.33",
    ]  # fmt: skip
    assert texts[0, 0].get_color() == "white"
    assert texts[2, 0].get_color() == "black"
    assert [t.get_text() for t in ax.get_yticklabels()] == WORDS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")
    assert ax.images[0].get_clim() == (0.0, 1.0)
    np.testing.assert_array_equal(ax.images[0].get_array(), WEIGHTS)


def test_the_same_number_is_written_the_same_on_every_machine():
    """0.125 is 0.12 in two digits; 0.125 and the last bit of a float32 would be 0.13."""
    for noise in (0.0, 1e-8, -1e-8):
        ax = heat_map(WEIGHTS + noise, rows=WORDS, columns=WORDS)
        assert [text.get_text() for text in ax.texts][3] == "0.12"
    assert heat_map(-WEIGHTS, rows=WORDS, columns=WORDS).texts[1].get_text() == "0.00"


def test_a_heat_map_draws_where_it_is_told():
    _, (left, right) = plt.subplots(1, 2)
    assert heat_map(WEIGHTS, rows=WORDS, columns=WORDS, ax=right) is right
    assert not left.images


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(WEIGHTS),
        torch.tensor(WEIGHTS, requires_grad=True),
        torch.tensor(WEIGHTS).to(torch.bfloat16),
    ],
)
def test_a_heat_map_takes_tensors_as_a_model_gives_them(tensor):
    ax = heat_map(tensor, rows=WORDS, columns=WORDS, mask=torch.ones(3, 3).tril().bool())
    np.testing.assert_allclose(ax.images[0].get_array(), WEIGHTS, atol=0.01)
    assert ax.texts[1].get_text() == "·"


def test_a_heat_map_wants_a_label_for_each_row_and_column():
    with pytest.raises(ValueError, match=r"\(3, 3\), 2 row labels and 3 column labels"):
        heat_map(WEIGHTS, rows=WORDS[:2], columns=WORDS)
    with pytest.raises(ValueError, match=r"\(2, 3\), 3 row labels and 2 column labels"):
        heat_map(WEIGHTS[:2], rows=WORDS, columns=WORDS[:2])
    with pytest.raises(ValueError, match=r"\(2, 3, 3\)"):
        heat_map(np.stack([WEIGHTS, WEIGHTS]), rows=WORDS, columns=WORDS)


LENS = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.6, 1.0]])
TOKENS = [["a", "b", "$c$"], [" d", "e", "\n"]]


def cells(ax):
    """What stands in each cell and in which colour, by row and column."""
    return {text.get_position()[::-1]: (text.get_text(), text.get_color()) for text in ax.texts}


def test_a_lens_table_writes_each_token_on_the_colour_of_its_probability():
    ax = lens_table(LENS, TOKENS, columns=["x", "y", "5$ and 6$"])
    assert cells(ax) == {
        (0, 0): ("a", "black"), (0, 1): ("b", "white"), (0, 2): (r"\$c\$", "black"),
        (1, 0): (" d", "black"), (1, 1): ("e", "white"), (1, 2): ("↵", "white"),
    }  # fmt: skip
    np.testing.assert_allclose(ax.images[0].get_array(), LENS)
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", r"5\$ and 6\$"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("token (T)", "layer (L)")


def test_a_token_of_dollars_is_no_formula():
    """matplotlib draws $c$ as an italic c, and stops at $\\frac$."""
    ax = lens_table(LENS, [["$c$"] * 3, ["$\\frac$"] * 3], columns=["$_$", "$", "$$"])
    ax.figure.canvas.draw()
    drawn = [text for text in (*ax.texts, *ax.get_xticklabels()) if text.get_text()]
    assert len(drawn) == 9
    assert not any(text._preprocess_math(text.get_text())[1] is True for text in drawn)
    assert drawn[0]._preprocess_math(drawn[0].get_text())[0] == "$c$"


def test_a_lens_table_wants_a_token_for_each_cell_and_a_label_for_each_column():
    with pytest.raises(ValueError, match=r"probabilities \(2, 3\), tokens \(1, 3\)"):
        lens_table(LENS, TOKENS[:1], columns=WORDS)
    with pytest.raises(ValueError, match=r"probabilities \(2, 3\), tokens \(2, 2, 3\)"):
        lens_table(LENS, [["a", "b"], TOKENS[1]], columns=WORDS)
    with pytest.raises(ValueError, match=r"tokens \(2, 3\) and 2 labels"):
        lens_table(LENS, TOKENS, columns=WORDS[:2])
    assert plt.get_fignums() == []


def test_a_head_map_has_a_row_for_each_layer_and_a_column_for_each_head():
    ax = head_map(LENS)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head (H)", "layer (L)")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1"]
    assert cells(ax)[0, 1] == ("0.90", "white")
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert not head_map(LENS, numbers=None).texts
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\)"):
        head_map(LENS[None])


@pytest.mark.parametrize(("largest", "limit"), [(0.5, 1.0), (1.0, 1.0), (2.0, 2.0), (-3.0, 3.0)])
def test_a_patching_map_has_its_zero_in_the_middle(largest, limit):
    scores = torch.tensor([[0.0, largest], [0.1, -0.2]])
    ax = patching_map(scores, columns=["$a$", "b"])
    assert ax.images[0].get_clim() == (-limit, limit)
    red, green, blue, _ = ax.images[0].get_cmap()(0.5)
    assert min(red, green, blue) > 0.95
    above, below = (ax.images[0].get_cmap()(x) for x in (1.0, 0.0))
    assert above[2] > above[0]
    assert below[0] > below[2]
    colour = "white" if abs(largest) > 0.7 * limit else "black"
    assert cells(ax) == {
        (0, 0): ("0.00", "black"), (0, 1): (f"{largest:.2f}", colour),
        (1, 0): ("0.10", "black"), (1, 1): ("-0.20", "black"),
    }  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("token (T)", "layer (L)")
    assert [t.get_text() for t in ax.get_xticklabels()] == [r"\$a\$", "b"]


def test_a_patching_map_of_heads():
    ax = patching_map(LENS, rows=["first", "last"], column_title="head (H)", row_title="block", numbers="{:.1f}")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head (H)", "block")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "last"]
    assert cells(ax)[0, 0] == ("0.1", "black")
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        patching_map(LENS[0])
    with pytest.raises(ValueError, match=r"2 row labels and 1 column labels"):
        patching_map(LENS, columns=["a"])


def test_accuracies_are_a_line_for_each_task():
    ax = accuracy_by_layer({"tags": torch.tensor([0.5, 0.75, 1.0]), "control": [0.0, 0.25, 0.5]}, chance=0.1)
    tags, control, chance = ax.lines
    assert tags.get_xydata().tolist() == [[0, 0.5], [1, 0.75], [2, 1.0]]
    assert control.get_xydata().tolist() == [[0, 0.0], [1, 0.25], [2, 0.5]]
    assert list(chance.get_ydata()) == [0.1, 0.1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["tags", "control", "guessing"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer (L)", "accuracy on held-out tokens")
    low, high = ax.get_ylim()
    assert low == 0
    assert high > 1
    assert all(tick == int(tick) for tick in ax.get_xticks())
    assert len(accuracy_by_layer({"tags": [0.5]}).lines) == 1


@pytest.mark.parametrize("wrong", [[0.5, 1.5], [-0.1], [float("nan")], np.array([[0.5]]), torch.tensor(0.5)])
def test_what_is_no_accuracy_is_refused(wrong):
    with pytest.raises(ValueError, match=r"shares, 0 \.\.\. 1, one for each layer: got 'tags' of shape"):
        accuracy_by_layer({"tags": wrong})
    with pytest.raises(ValueError, match="at least one task"):
        accuracy_by_layer({})
    assert plt.get_fignums() == []


@pytest.mark.parametrize("draw", [
    lambda ax: lens_table(LENS, TOKENS, columns=WORDS, ax=ax),
    lambda ax: head_map(LENS, ax=ax),
    lambda ax: patching_map(LENS, ax=ax),
    lambda ax: accuracy_by_layer({"tags": [0.5]}, ax=ax),
])  # fmt: skip
def test_maps_and_lines_are_drawn_where_they_are_told(draw, shown):
    use_style()
    fig, (left, right) = plt.subplots(1, 2)
    assert draw(right) is right
    assert not left.has_data()
    assert len(plt.get_fignums()) == 1
    show(fig, alt="a", caption="b")
    assert len(shown) == 2
