"""A figure in a notebook, with its alt text, its caption, and data that the built page lets a reader play with."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from llm_core.figures.fingerprints import fingerprint
from llm_core.figures.style import PIXELS_PER_INCH

# A static figure may carry the data of an interactive one; only the built page knows what to do with this type.
INTERACTIVE = "application/vnd.llm-core.interactive+json"


@dataclass(frozen=True)
class Interactive:
    """What the page lets a reader play with in the place of a figure (book/_static/interactive.js draws it).

    In JupyterLab, in Colab, on paper and without scripts the static figure is what one sees.

    Attributes:
        kind: which of the page's interactive figures.
        data: its numbers and texts, as plain JSON data. They come from the notebook, like everything the page shows.
            Few digits (`round(x, 4)`) keep the notebook small; the page shows two or three.

    Raises:
        ValueError: the data hold what JSON cannot: a tensor, for one, or a number that is not finite.
    """

    kind: str
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(dict(self.data), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the data of an interactive figure are texts, finite numbers, True and False, in lists and "
                f"dictionaries (`tensor.tolist()` makes lists): {error}"
            ) from error


def show(fig: Figure, *, alt: str, caption: str, digits: int = 4, interactive: Interactive | None = None) -> None:
    """Show a figure under its caption, and close it.

    Two outputs are made. The first holds the image with its alt text, and a fingerprint of what was drawn as plain
    text: nbval compares that, so a figure that changed fails a test though images are not compared. The second holds
    the caption; the book makes a numbered figure of both.

    Args:
        fig: the figure.
        alt: what the figure shows, for a reader who cannot see it.
        caption: the question that the figure answers, and the answer.
        digits: significant digits of the data that the fingerprint holds. 3 or more: ranges and a hash of all
            points. 1 or 2, where training is involved: ranges only. 0: only what was drawn and how often.
        interactive: what the built page shows in the figure's place, if scripts run there.

    Raises:
        ValueError: alt or caption is empty.
    """
    for name, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"every figure of the book needs its {name}: say what the figure shows")
    image = io.BytesIO()
    fig.savefig(image, format="png", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    picture = base64.b64encode(image.getvalue()).decode()
    width = round(fig.get_figwidth() * PIXELS_PER_INCH)
    bundle: dict[str, Any] = {"image/png": picture, "text/plain": fingerprint(fig, digits=digits)}
    if interactive is not None:
        bundle[INTERACTIVE] = {"kind": interactive.kind, "data": dict(interactive.data)}
    display(
        bundle,
        metadata={"image/png": {"alt": " ".join(alt.split()), "width": width}},
        raw=True,
    )
    text = f"**Figure.** {' '.join(caption.split())}"
    display({"text/markdown": text, "text/plain": text}, raw=True)
