"""Alt text, caption and fingerprint travel with the image, and so do the data of an interactive figure."""

from __future__ import annotations

import base64
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from llm_core import figures
from llm_core.figures import Interactive, fingerprint, heat_map, show, use_style


def lines() -> Figure:
    fig, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, 4], label="loss")
    return fig


def map_() -> Figure:
    return heat_map(np.eye(3), rows=["I", "love", "books"], columns=["I", "love", "books"]).figure


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
