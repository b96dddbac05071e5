"""The interactive figures in headless Chromium: what they show is what PyTorch computes from the same data.

A tiny book with a figure of each kind is opened from disk; the chapters' own figures are then held to the same.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from bookext.colab import colab_copy
from bookext.interactive import INTERACTIVE, KINDS, page_json
from bookext.repository import Place
from bookkit import PAGES, ROOT, Site, build_book, built_once, caption, image, notebook, small_book
from test_in_browser import AXE, STICKING_OUT, UNREACHABLE, open_page

from llm_core import figures
from llm_core.generation.sampling import Sampler
from llm_core.layers.attention import attention, attention_weights, softmax
from llm_core.layers.positions import Rope, rotate_neighbours
from llm_core.text.bpe import SimpleBPE
from llm_core.text.characters import CharacterTokenizer
from llm_core.text.unigram import SimpleUnigram
from llm_core.text.wordpiece import SimpleWordPiece

pytestmark = pytest.mark.browser

# --- a book with one figure of each kind -----------------------------------------------------------------------------


def rounded(numbers: torch.Tensor) -> Any:
    return [rounded(row) if row.ndim else round(row.item(), 4) for row in numbers]


def example_data() -> dict[str, Any]:
    """Data as a notebook hands them over, with what is hard: ties, texts that look like HTML, nothing to read."""
    draw = torch.Generator().manual_seed(3)
    widths = [2**n for n in range(1, 11)]
    q, k = torch.randn(1024, generator=draw), torch.randn(16, 1024, generator=draw)
    logits = 2 * torch.randn(70, generator=draw)
    logits[10:14] = logits[10]  # equals, and more than one of them
    logits[20] = logits[21] = logits.max() + 0.1
    tokens = [chr(ord("0") + n) for n in range(70)]
    tokens[20], tokens[21], tokens[1], tokens[2] = "</script><b>", "<!--<script>", " ", "\n"
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[2] = torch.tensor([True, False, True, False, True])
    mask[1] = False  # may read nothing
    rope_q, rope_k = (rounded(torch.randn(4, 2, generator=draw)) for _ in range(2))
    q5, k5, v5 = (rounded(torch.randn(5, size, generator=draw)) for size in (8, 8, 3))
    return {
        "dk": {"widths": widths, "scores": [rounded(k[:, :width] @ q[:width]) for width in widths]},
        "sampling": {
            "context": 'To be & <not> "to" be',
            "tokens": tokens,
            "logits": rounded(logits),
            "temperature": 1.0,
            "top_p": 0.9,
        },
        "attention": {
            "tokens": ["I", "_x_", "<b>", "love", "books"],
            "q": q5,
            "k": k5,
            "v": v5,
            "mask": mask.tolist(),
            "query": 3,
        },
        "rope": {
            "thetas": [1.0, 0.1, 0.01, 0.001],
            "q": rope_q,
            "k": rope_k,
            "positions": 40,
            "query": 7,
            "key": 2,
        },
        "alignment": {
            "strings": [
                {"read": list("ab"), "written": ["b", "<b>", "·"], "weights": [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]},
                {"read": list("<i>"), "written": ["·"], "weights": [[0.123, 0.2, 0.677]]},
            ]
        },
        "ngram": {
            "orders": [
                {"n": 1, "words": ["<b>", ",", "it"], "copied": [1, 2, 2], "perplexity": 313.4, "seen": 92.8},
                {
                    "n": 5,
                    "words": list("abcdefg!h"),
                    "copied": [5, 5, 6, 6, 6, 6, 6, 6, 2],
                    "perplexity": 1e4,
                    "seen": 0.66,
                },
                {"n": 7, "words": list("abcdef.gh"), "copied": [9] * 9, "perplexity": 175.0, "seen": 0.04},
            ]
        },
        "pipeline": {
            "families": [
                {
                    "name": "one <b>",
                    "stages": [
                        {
                            "title": "ids",
                            "says": "A & b.",
                            "shape": "(1, 3)",
                            "rows": ["<b>", " x", "_y_"],
                            "ids": [7, 0, 99],
                        },
                        {
                            "title": "attention",
                            "says": "To two.",
                            "shape": "(1, 1, 2, 3)",
                            "rows": ["<b>", " x", "_y_"],
                            "queries": ["q", "r"],
                            "weights": [[0.25, 0.125, 0.625], [1.0, 0.0, 0.0]],
                        },
                    ],
                },
                {
                    "name": "two",
                    "stages": [
                        {
                            "title": "next",
                            "says": "C.",
                            "shape": "(1, 3, 9)",
                            "rows": ["a", "b"],
                            "shares": [0.871, 0.06],
                        },
                        {"title": "text", "says": "D.", "shape": "(1, 4)", "rows": ["a b"]},
                    ],
                },
            ]
        },
        "tokenizer": tokenizer_data(),
    }


def tokenizer_data() -> dict[str, Any]:
    """Four vocabularies of a short text; a few Chinese characters and emoji are tokens, most are not."""
    texts = [
        "the lower lowest of the low, <b>and</b> it's 1024 or 102 caf\u00e9s\u2019",
        "\u9ec4\u6cb3\u4e4b\u6c34 \u6c34\u6c34 \U0001f389\U0001f389",
    ]
    bpe = SimpleBPE.train(texts, 330, min_count=1)
    wordpiece = SimpleWordPiece.train(texts, 120)
    unigram = SimpleUnigram.train(texts, 60)
    return {
        "examples": ["", "the </script> low", "\u9ec4\u6cb3\u4e4b\u6c34\u5929\u4e0a\u6765"],
        "characters": "".join(CharacterTokenizer.train("".join(texts)).vocabulary),
        "merges": [" ".join(pair) for pair in bpe.merges],
        "wordpiece": list(wordpiece.vocabulary),
        "unigram": list(unigram.vocabulary),
        "scores": [unigram.scores[piece] for piece in unigram.vocabulary],
    }


EXAMPLES = example_data()

# What lacks something, is of another length or holds what is no number: the picture stays.
BROKEN: list[tuple[str, Any]] = [
    ("dk", {}),
    ("dk", {"widths": [2, 4], "scores": [[1.0, 2.0]]}),
    ("dk", {"widths": [2], "scores": [[1.0, "2"]]}),
    ("sampling", {"tokens": ["a", "b"]}),
    ("sampling", {"tokens": ["a", "b"], "logits": [1.0]}),
    ("sampling", {"tokens": ["a", 1], "logits": [1.0, 2.0]}),
    ("attention", {**EXAMPLES["attention"], "mask": [[1] * 5] * 5}),
    *(
        ("attention", {k: v for k, v in EXAMPLES["attention"].items() if k != gone})
        for gone in ("tokens", *"qkv", "mask")
    ),
    ("attention", None),
    *(("rope", {k: v for k, v in EXAMPLES["rope"].items() if k != gone}) for gone in ("thetas", "q", "k", "positions")),
    ("rope", {**EXAMPLES["rope"], "q": [[1.0, 0.0, 0.0]] * 4}),
    ("alignment", {"strings": []}),
    ("alignment", {"strings": [{**EXAMPLES["alignment"]["strings"][1], "weights": [[0.5, 0.5]]}]}),
    ("alignment", {"strings": [{**EXAMPLES["alignment"]["strings"][1], "written": ["a", "b"]}]}),
    ("ngram", {"orders": []}),
    ("ngram", {"orders": [{**EXAMPLES["ngram"]["orders"][0], "copied": [1, 1]}]}),
    ("ngram", {"orders": [{**EXAMPLES["ngram"]["orders"][0], "seen": None}]}),
    *(("tokenizer", {k: v for k, v in EXAMPLES["tokenizer"].items() if k != gone}) for gone in EXAMPLES["tokenizer"]),
    ("tokenizer", {**EXAMPLES["tokenizer"], "characters": ""}),
    ("tokenizer", {**EXAMPLES["tokenizer"], "merges": ["one two three"]}),
    ("tokenizer", {**EXAMPLES["tokenizer"], "wordpiece": ["the"]}),
    ("tokenizer", {**EXAMPLES["tokenizer"], "scores": [1.0]}),
    ("pipeline", {"families": [{"name": "x", "stages": []}]}),
    *(
        (
            "pipeline",
            {"families": [{"name": "x", "stages": [{**EXAMPLES["pipeline"]["families"][0]["stages"][1], **gone}]}]},
        )
        for gone in ({"shape": 3}, {"rows": []}, {"queries": ["q"]}, {"weights": [[1.0, 0.0]] * 2}, {"ids": [1, 2]})
    ),
]


def interactive(kind: str, data: Any) -> list[nbformat.NotebookNode]:
    """The outputs of `show(..., interactive=Interactive(kind, data))`."""
    picture = image(f"The picture of {kind}.", data=(kind, data))
    if data is EXAMPLES[kind]:
        picture["metadata"]["image/png"]["width"] = 400  # as `show` does: Sphinx then links it to its file
    return [picture, caption(f"What does {kind} show? This.")]


GOOD, BAD = "chapters/04_mathematics/01_good", "chapters/04_mathematics/02_bad"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Site:
    pages = {
        f"{GOOD}.ipynb": notebook("# Good\n\n## First", *(interactive(*item) for item in EXAMPLES.items())),
        f"{BAD}.ipynb": notebook("# Bad\n\n## First", *(interactive(*item) for item in BROKEN)),
    }
    built = built_once(
        tmp_path_factory, "interactive", lambda folder: build_book(small_book(folder / "book", pages), folder / "out")
    )
    assert built.status == 0, built.log
    return built


@pytest.fixture(scope="module", params=["light", "dark"])
def good(request: pytest.FixtureRequest, browser: Any, tiny: Site) -> Iterator[Any]:
    """The good page, opened from disk; what it complained of is in `complaints`."""
    page, visit = open_page(browser, tiny.html.as_uri(), request.param)
    page.goto(f"{tiny.html.as_uri()}/{GOOD}.html")
    page.complaints = visit.complaints
    page.outside = visit.outside
    yield page
    page.context.close()


# --- what a figure shows ---------------------------------------------------------------------------------------------


def number(words: str) -> float:
    """A number as it is shown: with a true minus sign, an infinity sign, a per cent sign."""
    return float(words.removesuffix("%").strip().replace("−", "-").replace("∞", "inf"))


def same(shown: str, expected: float, digits: int) -> bool:
    """Whether a shown number is the expected one, to so many digits."""
    assert len(shown.removesuffix("%").strip().partition(".")[2]) == (digits if math.isfinite(expected) else 0), shown
    if math.isinf(expected):
        return number(shown) == expected
    return abs(number(shown) - expected) <= 0.5 * 10**-digits + 1e-9


# Brings a figure's controls to positions, or presses a button, one after another: what it shows after each. All in one
# message: a figure is looked at thousands of times, and a message to the browser and back takes longer than the look.
SHOW = """(box, changes) => changes.map(change => {
    for (const [name, position] of Object.entries(change)) {
        if (name === 'press') {
            [...box.querySelectorAll('button')].find(button => button.textContent === position).click();
            continue;
        }
        const control = box.querySelector(`[name=${name}]`);
        if (control.type === 'checkbox') control.checked = position;
        else if (control.tagName === 'SELECT') control.selectedIndex = position;
        else control.value = position;
        control.dispatchEvent(new Event('input', {bubbles: true}));
    }
    const every = selector => [...box.querySelectorAll(selector)];
    const text = selector => box.querySelector(selector)?.textContent;
    const sliders = every('[type=range]');
    return {
        rows: every('tbody tr').map(row => [...row.cells].map(cell => cell.textContent)),
        bars: every('.bar .filled').map(bar => parseFloat(bar.style.inlineSize) / 100),
        numbers: Object.fromEntries(every('[data-value]').map(node => [node.dataset.value, node.textContent])),
        heard: sliders.map(slider => slider.getAttribute('aria-valuetext')),
        seen: sliders.map(slider => [slider.name, slider.parentElement.querySelector('.reading').textContent]),
        columns: every('thead th').map(head => head.textContent),
        hands: every('.hand').map(hand => [hand.x2, hand.y2].map(end => end.baseVal.value)),
        marked: every('.written mark').map(mark => mark.textContent),
        texts: Object.fromEntries(['written', 'where', 'asked', 'step', 'says'].map(name => [name, text(`.${name}`)])),
        caption: text('caption'),
    };
})"""


@dataclass
class Shown:
    """What a figure shows at one moment."""

    rows: list[list[str]]
    bars: list[float]  # how far each is filled, from 0 to 1
    readings: dict[str, str]  # the named numbers, and what the sliders stand at
    columns: list[str]  # the heads of the table
    caption: str | None
    hands: list[list[float]]
    marked: list[str]
    texts: dict[str, str]


@dataclass
class Figure:
    """One figure on an open page, and the data that it was made from."""

    page: Any
    kind: str
    data: Any
    place: int = 0  # among those of its kind

    @property
    def box(self) -> Any:
        return self.page.locator(f".interactive[data-kind={self.kind}]").nth(self.place)

    def after(self, changes: list[dict[str, Any]]) -> list[Shown]:
        """What is shown after each of these changes of the controls, made as the browser does when they are dragged."""
        found = []
        for now in self.box.evaluate(SHOW, changes):
            seen = dict(now.pop("seen"))
            assert now.pop("heard") == list(seen.values())  # to the ear as to the eye
            found.append(Shown(readings=now.pop("numbers") | seen, **now))
        return found

    def now(self) -> Shown:
        return self.after([{}])[0]

    def rows(self) -> list[list[str]]:
        return self.now().rows

    def readings(self) -> dict[str, str]:
        return self.now().readings

    def set(self, **positions: int | bool) -> None:
        self.after([positions])

    def value(self, name: str) -> float:
        return float(self.readings()[name].split()[0])

    def heard(self) -> str:
        """What a screen reader says of the last change, once the reader rests."""
        self.page.wait_for_timeout(600)
        return self.box.locator("[aria-live]").text_content()

    def last(self, name: str) -> int:
        """A slider's last position."""
        return int(self.box.locator(f"[name={name}]").get_attribute("max"))


ROWS = "body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent))"


def entropy(weights: torch.Tensor) -> float:
    return torch.special.entr(weights).sum().item()


def check_dk(figure: Figure) -> None:
    """Every width, scaled and not."""
    every = torch.tensor(figure.data["scores"], dtype=torch.float64)
    cases = list(itertools.product(enumerate(figure.data["widths"]), (False, True)))
    shown_after = figure.after([{"width": n, "scaled": scaled} for (n, _), scaled in cases])
    for ((n, width), scaled), shown in zip(cases, shown_after, strict=True):
        assert shown.readings["width"] == str(width)
        scores = every[n] / (math.sqrt(width) if scaled else 1)
        weights = softmax(scores)
        assert len(shown.rows) == len(weights)
        for j, (name, score, _, weight) in enumerate(shown.rows):
            assert name == str(j + 1)
            assert same(score, scores[j].item(), 1)
            assert same(weight, weights[j].item(), 2)
        assert shown.bars == pytest.approx(weights.tolist(), abs=1e-4)
        assert same(shown.readings["variance"], scores.var().item(), 1)
        assert same(shown.readings["effective"], math.exp(entropy(weights)), 1)


SLIDERS = ("temperature", "top_k", "top_p", "min_p")


def check_sampling(figure: Figure, settings: int = 30) -> None:
    """Where it starts, the ends of every slider, and settings drawn at random."""
    logits = torch.tensor(figure.data["logits"], dtype=torch.float64)
    start = {name: int(figure.box.locator(f"[name={name}]").input_value()) for name in SLIDERS}
    last = {name: figure.last(name) for name in SLIDERS}
    tried = [start | {name: end} for name in SLIDERS for end in (0, last[name])]
    draw = random.Random(1)
    for _ in range(settings):  # some sliders stay: one filter would hide the others
        tried.append({name: draw.randint(0, last[name]) if draw.random() < 0.7 else start[name] for name in SLIDERS})
    for moment in figure.after([{}, *tried]):
        check_sampler(figure, logits, moment)


def check_sampler(figure: Figure, logits: torch.Tensor, moment: Shown) -> None:
    """What is shown at one moment."""
    shown, rows = moment.readings, moment.rows
    V, order = len(logits), logits.argsort(descending=True, stable=True).tolist()
    temperature, k, p, least = (float(shown[name].split()[0]) for name in SLIDERS)
    settings = dict(zip(SLIDERS, (temperature, int(k), p, least), strict=True))
    stages = {
        "top-k": Sampler(temperature, int(k)),
        "top-p": Sampler(temperature, int(k), p),
        "min-p": Sampler(temperature, int(k), p, least),
    }
    left = {name: sampler.probabilities(logits[None])[0] for name, sampler in stages.items()}
    probabilities = left["min-p"]
    for n, (name, _, share, _) in zip(order[:15], rows, strict=False):
        assert name == figure.data["tokens"][n].replace(" ", "␣").replace("\n", "⏎")
        gone = [stage for stage, probability in left.items() if probability[n] == 0]
        if gone:
            assert share == f"out: {gone[0]}", settings
        else:
            assert same(share, 100 * probabilities[n].item(), 1), settings
    if V > 15:
        assert rows[15][0] == f"{V - 15} more, together"
        assert same(rows[15][2], 100 * probabilities[order[15:]].sum().item(), 1), settings
    assert len(rows) == min(V, 16)
    assert len(moment.bars) == min(V, 15)  # a bar for one token each, none for a sum of many
    assert shown["kept"] == f"{int((probabilities > 0).sum())} of {V}", settings
    assert same(shown["entropy"], entropy(probabilities), 2), settings


def few(numbers: list[float]) -> list[float]:
    """Of a wide vector only the first three numbers are shown."""
    return numbers[:3] if len(numbers) > 6 else numbers


def without_rest(cells: list[str]) -> list[str]:
    return [cell for cell in cells if cell != "…"]


def check_attention(figure: Figure) -> None:
    """Every step of every query."""
    q, k, v = (torch.tensor(figure.data[name], dtype=torch.float64) for name in "qkv")
    mask = torch.tensor(figure.data["mask"])
    T, E = q.shape
    scores = q @ k.T
    scaled = scores / math.sqrt(E)
    masked = scaled.masked_fill(~mask, float("-inf"))
    weights, outputs = attention_weights(q, k, mask), attention(q, k, v, mask)
    for name, place in (("Next", 5), ("Previous", 1)):  # with the mouse
        for _ in range(4):
            figure.box.get_by_role("button", name=name).click()
        assert figure.now().texts["where"] == f"{place} of 5"
    for i in range(T):
        back, on = [{"press": "Previous"}] * 4, [{"press": "Next"}] * 4
        moments = figure.after([{"query": i}, *back, *on])[4:]
        assert [moment.texts["where"] for moment in moments] == [f"{n} of 5" for n in range(1, 6)]
        assert moments[3].bars == pytest.approx(weights[i].tolist(), abs=1e-4)
        steps = [moment.rows for moment in moments]
        for step in steps:
            assert [row[0] for row in step[:T]] == figure.data["tokens"]
        asked = moments[-1].texts["asked"]
        assert f"“{figure.data['tokens'][i]}”" in asked
        vector = asked.partition("= (")[2].removesuffix(")").split(", ")
        assert ("…" in vector) == (E > 6)
        for shown, x in zip(without_rest(vector), few(q[i].tolist()), strict=True):
            assert same(shown, x, 2)
        for j in range(T):
            expected = [
                [*few(k[j].tolist()), scores[i, j].item()],
                [scores[i, j].item(), scaled[i, j].item()],
                [scaled[i, j].item(), masked[i, j].item()],
                [masked[i, j].item(), masked[i, j].exp().item(), weights[i, j].item()],
                [weights[i, j].item(), *few(v[j].tolist())],
            ]
            shown = [without_rest(step[j][1:]) for step in steps]
            assert shown[2].pop(1) == ("yes" if mask[i, j] else "no")
            assert shown[3].pop() == ""  # the bar
            for numbers, values in zip(shown, expected, strict=True):
                assert all(same(*pair, 2) for pair in zip(numbers, values, strict=True)), (i, j, numbers, values)
        name, nothing, *total = steps[4][T]
        assert (name, nothing) == ("sum", "")
        assert all(same(*pair, 2) for pair in zip(without_rest(total), few(outputs[i].tolist()), strict=True))


def check_rope(figure: Figure) -> None:
    """Every pair at some positions: the hands point where the package's rotation turns the query and the key."""
    thetas = figure.data["thetas"]
    E, last = 2 * len(thetas), figure.data["positions"] - 1
    rope = Rope(E, last + 1, turn=rotate_neighbours)
    assert thetas == pytest.approx([10_000 ** (-2 * i / E) for i in range(len(thetas))], abs=1e-4)
    q, k = (torch.tensor(figure.data[name]).flatten()[None, None, None] for name in "qk")
    places = [(0, 0), (7, 2), (12, 7), (2, last), (last, last)]
    cases = list(itertools.product(range(len(thetas)), places))
    moments = figure.after([{"pair": n, "query": m, "key": p} for n, (m, p) in cases])
    for (n, (m, p)), moment in zip(cases, moments, strict=True):
        turned_q, turned_k = (rope(x, at).reshape(-1, 2).double() for x, at in ((q, m), (k, p)))
        products = (turned_q * turned_k).sum(-1)
        shown = moment.readings
        assert (shown["query"], shown["key"]) == (f"position {m}", f"position {p}")
        # The rotation is float32, and thetas are rounded: a last digit may differ.
        assert abs(number(shown["score"]) - products[n].item()) < 0.015 + 1e-3 * last
        assert abs(number(shown["total"]) - products.sum().item()) < 0.015 + 1e-3 * last
        between = torch.atan2(*turned_q[n].flip(0)) - torch.atan2(*turned_k[n].flip(0))
        apart = number(shown["between"].removesuffix(" rad")) - between.item()
        assert abs(math.remainder(apart, 2 * math.pi)) < 0.01 + 1e-3 * last
        for (x, y), vector in zip(moment.hands, (turned_k[n], turned_q[n]), strict=True):
            drawn = torch.tensor([x, -y], dtype=torch.float64)
            assert torch.cosine_similarity(drawn, vector, dim=0) > 0.999
    figure.set(pair=0, query=9, key=4)
    before = figure.readings()
    for _ in range(6):  # the key comes to position 0, and both stay there
        figure.box.get_by_role("button", name="Both back").click(force=True)  # also while it is disabled
    after = figure.readings()
    assert (after["query"], after["key"]) == ("position 5", "position 0")
    assert {name: after[name] for name in ("between", "score", "total")} == {
        name: before[name] for name in ("between", "score", "total")
    }


def check_ngram(figure: Figure) -> None:
    """Every n: the text word for word, its long copied stretches marked whole, and the numbers of the data."""
    for place, order in enumerate(figure.data["orders"]):
        (moment,) = figure.after([{"n": place}])
        shown = moment.readings
        assert shown["n"] == str(order["n"])
        assert same(shown["perplexity"], order["perplexity"], 0)
        assert same(shown["seen"], order["seen"], 1)
        assert shown["stretch"] == str(max(order["copied"]))
        expected = "".join(word if word in ",.;:!?" else f" {word}" for word in order["words"]).strip()
        assert moment.texts["written"] == expected
        runs = itertools.groupby(zip(order["words"], order["copied"], strict=True), lambda pair: pair[1] >= 6)
        stretches = ["".join(word for word, _ in run) for long, run in runs if long]
        assert [words.replace(" ", "") for words in moment.marked] == stretches
    assert figure.box.locator(".key").text_content() == "Marked: 6 words or more in a row are copied."
    told = f"n = {order['n']}: perplexity {shown['perplexity']}, longest copied stretch {shown['stretch']} words."
    assert figure.heard() == told


def check_alignment(figure: Figure) -> None:
    """Every letter of every string: what was written, the letter at hand marked, and all its weights."""
    for place, string in enumerate(figure.data["strings"]):
        figure.set(string=place)
        moments = figure.after([{"step": n} for n in range(len(string["weights"]))])
        for n, (weights, moment) in enumerate(zip(string["weights"], moments, strict=True)):
            assert moment.readings["step"] == str(n + 1)
            rows = moment.rows
            assert [row[0] for row in rows] == string["read"]
            assert all(same(row[2], weight, 2) for row, weight in zip(rows, weights, strict=True))
            assert moment.bars == pytest.approx(weights, abs=1e-4)
            assert moment.texts["written"] == "Written: " + "".join(string["written"])
            assert moment.marked == [string["written"][n]]
    most = weights.index(max(weights))
    told = f"Letter {n + 1}, {string['written'][n]}: most of the weight, {rows[most][2]}, is on letter {most + 1}, "
    assert figure.heard() == f"{told}{string['read'][most]}."
    assert moment.columns == ["read", "share", "weight"]
    named = figure.box.locator("[name=string] option").all_text_contents()
    assert named == [f"{''.join(string['read'])} ({len(string['read'])})" for string in figure.data["strings"]]
    figure.set(string=0)  # another string begins at its first letter
    assert figure.readings()["step"] == "1"


NASTY = [
    "", " ", "  ", "\n", "\t\t x", "a", "A", " a", "a ", "  a  b  ", "\n\n a\n", "low lower lowest", "Lowest!LOW",
    "it's I'VE we're", "''s 's's", "don't", "1024", "10 2 4", "3.14159", "\u0663\u0664\u0665", "\uff12\uff10",
    "\u2160\u2161 \u00bd x\u00b2", "_a_b_", "a-b--c", "e\u0301 \u00e9 E\u0301", "\u1e9b\u0323", "\u00c5ngstr\u00f6m",
    "\u0130stanbul", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3", "\u00dfSS", "\u0390", "\ufb01n", "\u01c5",
    "\u9ec4\u6cb3\u4e4b\u6c34\u5929\u4e0a\u6765\uff0c", "a\u9ec4b", "\u304b\u306a\u30ab\u30ca", "\ud55c\uad6d\uc5b4",
    "\U00020000\U0002f800", "\U0001f389", "\U0001f469\u200d\U0001f680", "\U0001f1e9\U0001f1ea", "\U0001f3f3\ufe0f",
    "\u00a0x\u00a0", "\u2003em", "\u3000\u9ec4", "\u2028x\u2029", "\u0085x", "a\x0bb\x0cc", "x\x00y",
    "\x1c\x1d\x1e\x1f", "\u200b\u200d\ufeff", "\ufffd?", "\ue000", "\u2581low", "low\u2581\u2581er", "\u2581",
    "\u2581 \u2581", "##er", "# #low", "[UNK] [CLS]", "<unk>", "<unk> low <UNK>", "<b>the</b>", "</script>",
    "\u0120low \u0120 \u010a", "$+^`|~<=>", "\u00ab\u201equoted\u201c\u00bb", "\u2026\u2014\u2013", "a" * 101,
    "low" * 40, "\u0301\u0301", "\u05d0\u05b7\u05d1", "\u0e44\u0e17\u0e22", "\u0928\u092e\u0938\u094d\u0924\u0947",
]  # fmt: skip


def nasty_texts(known: str) -> list[str]:
    """Two hundred strings: those above, and mixtures of theirs and of what the vocabulary knows."""
    draw = random.Random(2)
    parts = [*NASTY, *(known[at : at + 9] for at in range(0, len(known), 9)), " ", " "]
    mixed = ["".join(draw.choices(parts, k=draw.randint(2, 5))) for _ in range(200 - len(NASTY))]
    return [*NASTY, *mixed]


SHOWN_IDS = """(box, texts) => texts.map(text => {
    const input = box.querySelector('textarea');
    input.value = text;
    input.dispatchEvent(new Event('input'));
    const way = name => {
        const ids = [...box.querySelectorAll(`[data-way=${name}] .id`)].map(node => node.textContent);
        const said = box.querySelector(`[data-value=${name}]`).textContent;
        return [ids.map(id => id === 'none' ? null : Number(id)), said];
    };
    return ['characters', 'bpe', 'wordpiece', 'unigram'].map(way);
})"""


def check_tokenizer(figure: Figure) -> None:
    """Two hundred texts and the figure's own examples: the ids of the first rungs of `llm_core.text`, all four."""
    data = figure.data
    characters = {character: id_ for id_, character in enumerate(data["characters"])}
    bpe = SimpleBPE(tuple(line.split(" ")) for line in data["merges"])
    wordpiece = SimpleWordPiece(data["wordpiece"])
    unigram = SimpleUnigram(list(zip(data["unigram"], data["scores"], strict=True)))
    texts = [*nasty_texts(data["characters"]), *data["examples"]]
    for text, shown in zip(texts, figure.box.evaluate(SHOWN_IDS, texts), strict=True):
        ids = [[characters.get(c) for c in text], bpe.encode(text), wordpiece.encode(text), unigram.encode(text)]
        assert [found for found, _ in shown] == ids, text
        assert [said for _, said in shown] == [f"{len(one)} token{'s' * (len(one) != 1)}" for one in ids]
    for place, example in enumerate(data["examples"]):
        figure.set(example=place)
        assert figure.box.locator("textarea").input_value() == example
        pieces = figure.box.locator("[data-way=characters] .piece").all_text_contents()
        assert "".join(pieces) == example.replace(" ", "␣").replace("\n", "⏎")
    titles = ["Characters", "BPE on bytes", "WordPiece", "Unigram"]
    assert figure.box.locator(".way strong").all_text_contents() == titles
    counts = [figure.readings()[way].split()[0] for way in ("characters", "bpe", "wordpiece", "unigram")]
    told = ", ".join(f"{title}: {count}" for title, count in zip(titles, counts, strict=True))
    assert figure.heard() == f"Tokens: {told}."
    figure.box.locator("textarea").fill("\t\u2603\n")
    assert figure.box.locator("[data-way=characters] .piece").all_text_contents() == ["⇥", "\u2603", "⏎"]
    unknown = figure.box.locator("[data-way=characters] .unknown .piece").all_text_contents()
    assert unknown == [shown for shown, c in zip("⇥\u2603⏎", "\t\u2603\n", strict=True) if c not in characters]
    figure.box.locator("textarea").fill("\u9ec4 \u2603")  # a snowman: three bytes, no merge
    shown = figure.box.locator("[data-way=bpe] .piece").all_text_contents()
    assert shown[-3:] == ["E2", "98", "83"]
    unknown = figure.box.locator("[data-way=wordpiece] .unknown, [data-way=unigram] .unknown")
    assert unknown.last.text_content() == "<unk>0"


def check_pipeline(figure: Figure) -> None:
    """Every stage of every family, forwards and back: its words, its shape, its rows, and each row of its weights."""
    previous, following = (figure.box.get_by_role("button", name=name) for name in ("One step back", "One step on"))
    for place, family in enumerate(figure.data["families"]):
        figure.set(family=place)
        for step, stage in enumerate(family["stages"]):
            if step:
                following.click()
            shares = dict(enumerate(stage.get("weights", [])))
            moment, *of_queries = figure.after([{}, *({"query": query} for query in shares)])
            assert moment.texts["where"] == f"{step + 1} of {len(family['stages'])}"
            assert moment.texts["step"] == f"{stage['title']} {stage['shape']}"
            assert moment.texts["says"] == stage["says"]
            assert [row[0] for row in moment.rows] == stage["rows"]
            assert moment.caption == stage["title"]
            said = {"ids": ["id"], "weights": ["share", "weight"], "shares": ["share", "probability"]}
            assert moment.columns == ["token", *(name for key in said if key in stage for name in said[key])]
            if "ids" in stage:
                assert [row[1] for row in moment.rows] == [str(number) for number in stage["ids"]]
            if shares:
                assert moment.readings["query"] == stage["queries"][-1]
            for (query, expected), now in zip(shares.items(), of_queries, strict=True):
                assert now.readings["query"] == stage["queries"][query]
                check_shares(now, expected)
            if not shares:
                check_shares(moment, stage.get("shares", []))
        assert following.get_attribute("aria-disabled") == "true"
        n = len(family["stages"])
        told = f"Step {n} of {n}: {stage['title']}, {stage['shape']}. {stage['says']}"
        assert figure.heard() == told
        following.press("ArrowLeft")
        assert figure.box.locator(".where").text_content() == f"{len(family['stages']) - 1} of {len(family['stages'])}"
        for _ in family["stages"]:
            previous.press("Enter")
        assert previous.get_attribute("aria-disabled") == "true"
        assert figure.box.locator(".step").text_content().startswith(family["stages"][0]["title"])
    following.click()
    figure.set(family=0)  # another model begins at its first step
    assert figure.box.locator(".where").text_content() == f"1 of {len(figure.data['families'][0]['stages'])}"


def check_shares(moment: Shown, expected: list[float]) -> None:
    """The bars, and the numbers beside them."""
    assert moment.bars == pytest.approx(expected, abs=1e-4)
    assert all(same(row[-1], share, 2) for row, share in zip(moment.rows, expected, strict=False))


CHECKS: dict[str, Callable[[Figure], None]] = {
    "alignment": check_alignment,
    "attention": check_attention,
    "dk": check_dk,
    "ngram": check_ngram,
    "pipeline": check_pipeline,
    "rope": check_rope,
    "sampling": check_sampling,
    "tokenizer": check_tokenizer,
}


def test_every_kind_is_checked() -> None:
    assert KINDS == sorted(CHECKS) == sorted(EXAMPLES)


@pytest.mark.parametrize("kind", CHECKS)
def test_it_shows_what_torch_computes(good: Any, kind: str) -> None:
    CHECKS[kind](Figure(good, kind, EXAMPLES[kind]))


def test_nothing_complains_and_nothing_is_fetched(good: Any) -> None:
    assert good.locator(".interactive-box").count() == len(KINDS)
    assert good.complaints == []  # in whatever the tests before this one did
    assert good.outside == []


# --- sampling: chance ------------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_distribution(browser: Any, tiny: Site) -> None:
    logits = torch.tensor(EXAMPLES["sampling"]["logits"], dtype=torch.float64)
    order = logits.argsort(descending=True, stable=True).tolist()
    probabilities = Sampler(1.0, top_p=0.9).probabilities(logits[None])[0]
    every = []
    for _ in range(2):  # the same for every reader
        page, visit = open_page(browser, tiny.html.as_uri(), "light")
        page.goto(f"{tiny.html.as_uri()}/{GOOD}.html")
        figure = Figure(page, "sampling", EXAMPLES["sampling"])
        draws = figure.box.evaluate(
            f"""box => Array.from({{length: 100}}, () => {{
                box.querySelector('button').click();
                return ({ROWS})(box.querySelector('tbody')).map(row => Number(row[3]));
            }})"""
        )
        assert {sum(counts) for counts in draws} == {20}
        assert figure.box.locator(".drawn code").count() == 20
        every.append(draws)
        totals = torch.tensor(draws, dtype=torch.float64).sum(0)
        expected = torch.tensor([*probabilities[order[:15]].tolist(), probabilities[order[15:]].sum().item()])
        spread = (2000 * expected * (1 - expected)).sqrt()
        assert ((totals - 2000 * expected).abs() <= 4.5 * spread + 1e-9).all(), (totals, 2000 * expected)
        figure.set(temperature=0)
        assert {row[3] for row in figure.rows()} == {""}  # other settings: what was drawn is no longer theirs
        assert visit.complaints == []
        page.context.close()
    assert every[0] == every[1]


# --- reading it without a mouse, without sight, without scripts -----------------------------------------------------


def test_the_keyboard_alone_moves_everything(good: Any) -> None:
    keyboard = good.keyboard
    dk, sampling, steps = (Figure(good, kind, EXAMPLES[kind]) for kind in ("dk", "sampling", "attention"))
    dk.set(width=0)
    dk.box.locator("[name=width]").focus()
    keyboard.press("ArrowRight")
    assert dk.value("width") == 4
    keyboard.press("End")
    assert dk.value("width") == 1024
    before = dk.rows()
    keyboard.press("Tab")
    keyboard.press("Space")
    assert dk.rows() != before

    sampling.set(**dict.fromkeys(SLIDERS, 3))
    sampling.box.locator("[name=temperature]").focus()
    for name in SLIDERS:
        before_value = sampling.value(name)
        assert good.evaluate("document.activeElement.name") == name
        keyboard.press("ArrowRight")
        assert sampling.value(name) > before_value
        keyboard.press("Tab")
    keyboard.press("Enter")  # the button comes next
    assert sampling.box.locator(".drawn code").count() == 20

    steps.set(query=0)
    steps.box.locator("select").focus()
    before = steps.rows()
    keyboard.press("ArrowDown")
    assert steps.box.locator("select").evaluate("select => select.selectedIndex") == 1
    keyboard.press("Tab")  # Previous: while there is none, it keeps the focus and does nothing
    where = steps.box.locator(".where")
    while where.text_content() != "1 of 5":
        keyboard.press("ArrowLeft")
    keyboard.press("Enter")
    assert where.text_content() == "1 of 5"
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert where.text_content() == "3 of 5"
    keyboard.press("Enter")  # the focus went with the arrow
    assert where.text_content() == "4 of 5"
    keyboard.press("ArrowLeft")
    assert where.text_content() == "3 of 5"

    rope = Figure(good, "rope", EXAMPLES["rope"])
    rope.set(pair=0, query=3, key=1)
    rope.box.locator("[name=query]").focus()
    keyboard.press("ArrowRight")
    assert rope.readings()["query"] == "position 4"
    keyboard.press("Tab")
    keyboard.press("ArrowRight")
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")
    assert (rope.readings()["query"], rope.readings()["key"]) == ("position 5", "position 3")

    alignment = Figure(good, "alignment", EXAMPLES["alignment"])
    alignment.set(string=1)
    alignment.box.locator("select").focus()
    keyboard.press("ArrowUp")
    assert alignment.box.locator("select").evaluate("select => select.selectedIndex") == 0
    keyboard.press("Tab")
    keyboard.press("ArrowRight")
    assert alignment.readings()["step"] == "2"
    cut = Figure(good, "tokenizer", EXAMPLES["tokenizer"])
    cut.set(example=0)
    cut.box.locator("select").focus()
    keyboard.press("ArrowDown")
    keyboard.press("Tab")
    keyboard.press("End")
    keyboard.type(" low")
    assert cut.box.locator("textarea").input_value() == EXAMPLES["tokenizer"]["examples"][1] + " low"
    assert cut.box.locator("[data-way=wordpiece] .piece").last.text_content() == "low"


def test_the_focus_is_seen(good: Any) -> None:
    good.locator(".interactive [name=width]").focus()
    # After another test's click a focus that a script sets is not shown: the browser waits for a key.
    good.keyboard.press("Tab")
    good.keyboard.press("Shift+Tab")
    seen = []
    while len(seen) < 10:
        inside, *style = good.evaluate(
            """() => {
                const element = document.activeElement, style = getComputedStyle(element);
                return [element.closest('.interactive') !== null, style.outlineStyle, style.outlineWidth];
            }"""
        )
        seen += [style] if inside else []  # between the figures stand their captions' links
        good.keyboard.press("Tab")
    assert seen == [["solid", "3px"]] * 10


def test_every_control_has_a_name(good: Any) -> None:
    names = {
        ("slider", "width dk"),
        ("checkbox", "scaled: divide by √dk"),
        ("slider", "temperature"),
        ("slider", "top-k"),
        ("slider", "top-p"),
        ("slider", "min-p"),
        ("button", "Draw 20 tokens"),
        ("combobox", "query"),
        ("button", "Previous"),
        ("button", "Next"),
        ("combobox", "columns"),
        ("slider", "query q"),
        ("slider", "key k"),
        ("button", "Both back"),
        ("button", "Both on"),
        ("slider", "n"),
        ("combobox", "string"),
        ("slider", "letter written"),
        ("combobox", "example"),
        ("textbox", "your text"),
        ("combobox", "model"),
        ("button", "One step back"),
        ("button", "One step on"),
    }
    for role, name in names:
        assert good.locator(".interactive").get_by_role(role, name=name, exact=True).count() == 1, name
    assert good.locator(".interactive :is(input, select, button, textarea)").count() == len(names)


def test_accessible(good: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    Figure(good, "dk", None).set(width=9)  # nothing has its full width
    good.add_style_tag(content="* { transition: none !important }")
    violations = Axe().run(good, context=".interactive", options=AXE).response["violations"]
    assert [(violation["id"], violation["nodes"][0]["html"][:200]) for violation in violations] == []


def test_a_change_is_spoken_once_the_reader_rests(good: Any) -> None:
    figure = Figure(good, "dk", EXAMPLES["dk"])
    spoken = figure.box.locator("[aria-live=polite]")
    good.wait_for_timeout(700)
    before = spoken.text_content()
    for position in range(10):
        figure.set(width=position)
    assert spoken.text_content() == before
    good.wait_for_timeout(700)
    assert spoken.text_content().startswith("Width 1024")
    assert good.locator(".interactive [aria-live]").count() == len(KINDS)  # one a figure


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(browser: Any, tiny: Site, width: int) -> None:
    page, _ = open_page(browser, tiny.html.as_uri(), "light")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{tiny.html.as_uri()}/{GOOD}.html")
    steps = Figure(page, "attention", EXAMPLES["attention"])
    steps.set(query=3)
    Figure(page, "sampling", None).set(top_k=5, temperature=0)
    page.get_by_role("button", name="Draw 20 tokens").click()
    for _ in range(5):
        assert page.evaluate(STICKING_OUT) == []
        assert page.evaluate(UNREACHABLE) == []
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        for box in page.locator(".interactive-box, .interactive-box table").all():
            assert box.evaluate("box => box.scrollWidth <= box.clientWidth + 1")
        steps.box.get_by_role("button", name="Next").focus()
        page.keyboard.press("Enter")
    page.context.close()


PICTURES = "figure img"


def test_with_scripts_the_picture_gives_way_on_the_screen_but_not_on_paper(good: Any) -> None:
    assert [picture.is_visible() for picture in good.locator(PICTURES).all()] == [False] * len(KINDS)
    assert [box.is_visible() for box in good.locator(".interactive-box").all()] == [True] * len(KINDS)
    assert good.locator("figure figcaption").nth(0).is_visible()
    good.emulate_media(media="print")
    assert [picture.is_visible() for picture in good.locator(PICTURES).all()] == [True] * len(KINDS)
    assert [box.is_visible() for box in good.locator(".interactive-box").all()] == [False] * len(KINDS)
    good.emulate_media(media="screen")


def test_without_scripts_the_picture_stands_there(browser: Any, tiny: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{tiny.html.as_uri()}/{GOOD}.html")
    assert [picture.is_visible() for picture in page.locator(PICTURES).all()] == [True] * len(KINDS)
    assert page.locator(".interactive-box").count() == 0
    assert [place.bounding_box()["height"] for place in page.locator(".interactive").all()] == [0] * len(KINDS)
    context.close()


def test_what_cannot_be_drawn_stays_a_picture(browser: Any, tiny: Site) -> None:
    page, visit = open_page(browser, tiny.html.as_uri(), "light")
    page.goto(f"{tiny.html.as_uri()}/{BAD}.html")
    assert page.locator(".is-interactive, .interactive-box").count() == 0
    assert [picture.is_visible() for picture in page.locator(PICTURES).all()] == [True] * len(BROKEN)
    assert len(visit.complaints) == len(BROKEN)
    assert all("stays a picture" in complaint for complaint in visit.complaints), visit.complaints
    page.context.close()


def test_who_wants_no_motion_gets_none(browser: Any, tiny: Site) -> None:
    for wish, expected in (("reduce", {"0s"}), ("no-preference", {"0.15s"})):
        context = browser.new_context(reduced_motion=wish)
        page = context.new_page()
        page.goto(f"{tiny.html.as_uri()}/{GOOD}.html")
        times = page.locator(".bar > *").evaluate_all(
            "bars => bars.map(bar => getComputedStyle(bar).transitionDuration)"
        )
        assert set(times) == expected
        context.close()


# --- the built page --------------------------------------------------------------------------------------------------


def test_data_stand_in_the_figure_and_end_nothing(tiny: Site) -> None:
    found = tiny.article(GOOD).select("figure > div.interactive > script[type='application/json']")
    assert [json.loads(script.string) for script in found] == list(EXAMPLES.values())
    text = (tiny.html / f"{GOOD}.html").read_text(encoding="utf-8")
    assert "</script><b>" not in text
    assert "<!--<script>" not in text


def test_only_pages_with_a_figure_load_what_draws_it(tiny: Site) -> None:
    def loaded(page: str) -> list[str]:
        tags = tiny.soups[page].select("script[src], link[href][rel=stylesheet]")
        names = [(tag.get("src") or tag["href"]).partition("_static/")[2].partition("?")[0] for tag in tags]
        return [name for name in names if name.startswith("interactive")]

    expected = ["interactive.css", "interactive.js", *(f"interactive/{kind}.js" for kind in KINDS)]
    assert sorted(loaded(GOOD)) == sorted(expected)
    assert loaded("references") == []


def test_the_colab_copy_has_the_picture_only() -> None:
    original = notebook("# T", interactive("dk", EXAMPLES["dk"]))
    copy = colab_copy(original, "chapters/x", {}, {}, Place())
    assert set(copy.cells[-1].outputs[0].data) == {"image/png", "text/plain"}
    assert INTERACTIVE in original.cells[-1].outputs[0].data


@pytest.mark.parametrize("text", ["</script>", "<!--", "<script", "]]>", "&amp;", 'a "b" \\ c', "\u2028 \n ü 语"])
def test_json_on_a_page_is_the_same_data(text: str) -> None:
    written = page_json({"text": text})
    assert json.loads(written) == {"text": text}
    assert not set(written) & set("<>&")


def test_the_type_is_the_packages() -> None:
    assert INTERACTIVE == figures.INTERACTIVE


# --- the chapters' own -----------------------------------------------------------------------------------------------


def own_figures() -> list[tuple[str, str, Any, int]]:
    """(page, kind, data, place among those of its kind) of every interactive figure in the book."""
    found = []
    for page in PAGES:
        path = ROOT / f"{page}.ipynb"
        seen: dict[str, int] = {}
        for cell in nbformat.read(path, as_version=4).cells if path.is_file() else ():
            for output in cell.get("outputs", ()):
                bundle = output.get("data", {}).get(INTERACTIVE)
                if bundle:
                    kind = bundle["kind"]
                    found.append((page, kind, bundle["data"], seen.setdefault(kind, 0)))
                    seen[kind] += 1
    return found


OWN = own_figures()


def test_the_book_has_interactive_figures() -> None:
    assert {"attention", "dk"} <= {kind for _, kind, _, _ in OWN}


@pytest.mark.parametrize(("name", "kind", "data", "place"), OWN, ids=[f"{Path(own[0]).name}-{own[1]}" for own in OWN])
def test_the_chapters_figures_show_what_torch_computes(
    browser: Any, site: Site, name: str, kind: str, data: Any, place: int
) -> None:
    base = site.html.as_uri()
    page, visit = open_page(browser, base, "light")
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(f"{base}/{name}.html")
    figure = Figure(page, kind, data, place)
    assert figure.box.locator(".interactive-box").is_visible()
    CHECKS[kind](figure)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert visit.complaints == []
    page.context.close()
