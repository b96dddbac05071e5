"""Figures: the fingerprint sees what a reader would, and no rounding; alt text and caption travel with the image."""

from __future__ import annotations

import base64
import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from llm_core import figures
from llm_core.figures import (
    Interactive,
    accuracy_by_layer,
    fingerprint,
    head_map,
    heat_map,
    lens_table,
    patching_map,
    show,
    use_style,
)

X = np.linspace(0, 1, 33)  # steps of 1/32 = 0.03125: every second point ends in 5 where four digits end
WORDS = ["I", "love", "books"]
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.125, 0.875, 0.0], [1 / 3, 1 / 3, 1 / 3]])


@pytest.fixture(autouse=True)
def _clean():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def lines(y=None, label="loss", title="A title", xlabel="step", ylabel="nats", scale="linear", colour=None) -> Figure:
    fig, ax = plt.subplots()
    ax.plot(X, X**2 if y is None else y, label=label, color=colour)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=scale)
    return fig


def map_(values=WEIGHTS, rows=WORDS, columns=WORDS, **options) -> Figure:
    return heat_map(values, rows=rows, columns=columns, **options).figure


def bars(heights=(1.0, 2.0, 3.0), bottom=0.0, width=0.8) -> Figure:
    fig, ax = plt.subplots()
    ax.bar([0, 1, 2], heights, bottom=bottom, width=width)
    return fig


def points(x=(0.0, 1.0, 2.0), y=(3.0, 1.0, 2.0), c=(0.0, 0.5, 1.0)) -> Figure:
    fig, ax = plt.subplots()
    ax.scatter(x, y, c=c)
    return fig


def band(low=0.0, high=1.0) -> Figure:
    fig, ax = plt.subplots()
    ax.fill_between(X, X + low, X + high)
    return fig


def stems(top=1.0) -> Figure:
    fig, ax = plt.subplots()
    ax.vlines([0, 1, 2], 0, [top, 2, 3])
    return fig


def words(text="peak", over="Two runs", legend="run") -> Figure:
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], label="run")
    ax.legend(title=legend)
    ax.annotate(text, (0.5, 0.5))
    fig.suptitle(over)
    return fig


def moved(y, by):
    y = np.array(y, dtype=float)
    y[5] += by
    return y


CHANGES = {
    "one point": (lines, {"y": moved(X**2, 0.001)}),
    "label": (lines, {"label": "accuracy"}),
    "title": (lines, {"title": "Another"}),
    "x name": (lines, {"xlabel": "epoch"}),
    "y name": (lines, {"ylabel": "bits"}),
    "log scale": (lines, {"scale": "log"}),
    "one cell": (map_, {"values": WEIGHTS + np.eye(3) * 0.001}),
    "row label": (map_, {"rows": ["I", "love", "maps"]}),
    "column label": (map_, {"columns": ["I", "love", "maps"]}),
    "axis title": (map_, {"row_title": "reader"}),
    "colour scale": (map_, {"limits": (0.0, 2.0)}),
    "mask": (map_, {"mask": np.tri(3, dtype=bool)}),
    "how numbers are written": (map_, {"numbers": "{:.1f}"}),
    "no numbers": (map_, {"numbers": None}),
    "bar height": (bars, {"heights": (1.0, 2.1, 3.0)}),
    "bar bottom": (bars, {"heights": (0.5, 1.5, 2.5), "bottom": 0.5}),
    "bar width": (bars, {"width": 0.7}),
    "scatter x": (points, {"x": (0.0, 1.1, 2.0)}),
    "scatter y": (points, {"y": (3.0, 1.1, 2.0)}),
    "scatter colour": (points, {"c": (0.0, 0.6, 1.0)}),
    "band below": (band, {"low": 0.1}),
    "band above": (band, {"high": 1.1}),
    "segments": (stems, {"top": 1.5}),
    "annotation": (words, {"text": "peaks"}),
    "figure title": (words, {"over": "Three runs"}),
    "legend title": (words, {"legend": "runs"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_sees_a_change_of(what):
    draw, change = CHANGES[what]
    assert fingerprint(draw()) == fingerprint(draw())
    assert fingerprint(draw(**change)) != fingerprint(draw())


@pytest.mark.parametrize("kind", ["plot", "scatter"])
def test_the_fingerprint_sees_small_numbers_on_a_logarithmic_axis(kind):
    def draw(smallest):
        fig, ax = plt.subplots()
        getattr(ax, kind)([1, 2, 3, 4], [1.0, 1e-3, smallest, 0.0])
        ax.set_yscale("log")
        return fig

    assert fingerprint(draw(1e-6)) == fingerprint(draw(1e-6 * (1 + 1e-12)))
    assert fingerprint(draw(1e-6)) != fingerprint(draw(2e-6))


def test_the_fingerprint_sees_another_artist_and_other_axes():
    fig = lines()
    before = fingerprint(fig)
    fig.axes[0].plot(X, X)
    more = fingerprint(fig)
    fig.add_axes((0.5, 0.5, 0.1, 0.1))
    assert len({before, more, fingerprint(fig)}) == 3


@pytest.mark.parametrize("noise", [1e-12, -1e-12])
def test_the_fingerprint_does_not_see_rounding(noise):
    """Not where a number is zero, and not where it lies just between two that are written with four digits."""
    assert fingerprint(lines(y=X + noise)) == fingerprint(lines(y=X))
    assert fingerprint(lines(y=moved(X, noise))) == fingerprint(lines(y=X))
    assert fingerprint(map_(WEIGHTS + noise)) == fingerprint(map_(WEIGHTS))
    assert fingerprint(points(y=(3.0, 1.0 + noise, noise))) == fingerprint(points(y=(3.0, 1.0, 0.0)))
    assert fingerprint(bars((1.0, 2.0 + noise, noise))) == fingerprint(bars((1.0, 2.0, 0.0)))
    assert fingerprint(band(low=noise)) == fingerprint(band())


def test_fewer_digits_forgive_more():
    a, b = lines(y=X**2), lines(y=moved(X**2, 0.004))
    assert fingerprint(a, digits=4) != fingerprint(b, digits=4)
    assert fingerprint(a, digits=2) == fingerprint(b, digits=2)
    assert fingerprint(a, digits=1) == fingerprint(b, digits=1)
    other = lines(y=X**2 * 3)
    assert fingerprint(a, digits=1) != fingerprint(other, digits=1)
    assert fingerprint(a, digits=0) == fingerprint(other, digits=0)
    assert fingerprint(a, digits=0) != fingerprint(bars(), digits=0)
    # The numbers in the cells of a map are data too.
    assert fingerprint(map_(WEIGHTS + 0.006), digits=1) == fingerprint(map_(WEIGHTS), digits=1)


def test_numbers_that_are_not_there_are_no_trouble():
    assert "empty" in fingerprint(lines(y=np.full(33, np.nan)))
    y = X.copy()
    y[3] = np.nan
    assert fingerprint(lines(y=y)) != fingerprint(lines(y=X))
    assert fingerprint(lines(y=np.zeros(33))) == fingerprint(lines(y=np.zeros(33)))


# ---- show ----


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(figures, "display", lambda data, **rest: outputs.append((data, rest)))
    return outputs


def test_show_gives_the_image_with_its_alt_text_and_then_the_caption(shown):
    fig = lines()
    expected = fingerprint(fig)
    show(fig, alt="A curve that\n    rises.", caption="Does it rise?\n   It does.")
    (image, image_rest), (caption, caption_rest) = shown
    assert set(image) == {"image/png", "text/plain"}
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert image["text/plain"] == expected
    size = {"width": round(fig.get_figwidth() * figures.PIXELS_PER_INCH)}
    assert image_rest == {"metadata": {"image/png": {"alt": "A curve that rises.", **size}}, "raw": True}
    assert caption == dict.fromkeys(("text/markdown", "text/plain"), "**Figure.** Does it rise? It does.")
    assert caption_rest == {"raw": True}


def test_show_closes_the_figure(shown):
    fig = lines()
    assert plt.fignum_exists(fig.number)
    show(fig, alt="a", caption="b")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("missing", ["alt", "caption"])
@pytest.mark.parametrize("nothing", ["", "  \n"])
def test_show_wants_alt_and_caption(shown, missing, nothing):
    with pytest.raises(ValueError, match=f"needs its {missing}"):
        show(lines(), **{"alt": "a", "caption": "b", missing: nothing})
    assert shown == []
    with pytest.raises(TypeError):
        show(lines(), alt="a")


def test_the_image_is_the_same_each_time(shown):
    use_style()
    for _ in range(2):
        show(map_(), alt="a", caption="b")
    assert shown[0] == shown[2]
    assert b"matplotlib" not in base64.b64decode(shown[0][0]["image/png"]).lower()


def test_show_hands_its_digits_on(shown):
    fig = lines()
    expected = fingerprint(fig, digits=1)
    show(fig, alt="a", caption="b", digits=1)
    assert shown[0][0]["text/plain"] == expected != fingerprint(fig)


# ---- what only the page can draw ----


def test_show_hands_the_data_of_an_interactive_figure_on(shown):
    data = {"widths": [2, 4], "names": ["a", "</script>"], "may": [True, None]}
    show(lines(), alt="a", caption="b")
    show(lines(), alt="a", caption="b", interactive=Interactive("dk", data))
    (plain, plain_rest), (rich, rich_rest) = shown[0], shown[2]
    assert rich.pop(figures.INTERACTIVE) == {"kind": "dk", "data": data}
    assert (rich, rich_rest) == (plain, plain_rest)  # the picture and its fingerprint are what they are without


@pytest.mark.parametrize("wrong", [torch.ones(2), np.float32(1.0), math.nan, math.inf, {1, 2}, b"x"])
def test_interactive_data_are_plain_json(wrong):
    with pytest.raises(ValueError, match=r"texts, finite numbers.*tolist"):
        Interactive("dk", {"widths": [2, wrong]})


# ---- heat_map ----


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


# ---- what is inside a model ----

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


def test_the_style_is_the_books():
    use_style()
    fig, ax = plt.subplots()
    for _ in range(3):
        ax.plot(X, X)
    assert [line.get_color() for line in ax.lines] == figures.COLOURS[:3]
    assert len({line.get_linestyle() for line in ax.lines}) == 3
    assert fig.dpi == 150


def test_the_colours_stand_out_from_white():
    """WCAG 2.1, success criterion 1.4.11: at least 3:1."""

    def luminance(colour):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    for colour in figures.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour
