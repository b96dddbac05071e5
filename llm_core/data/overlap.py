"""Whether a text for training holds parts of a text for evaluation.

A model that has read the exam is not examined. What it has read is told by runs of n words that both texts have, 13 of
them as for GPT-3 (Brown et al., 2020, appendix C): so many in a row are hardly ever the same by chance.
Chapter 5.2 teaches it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from llm_core.checks import check_sizes
from llm_core.data.duplicates import words


class Overlap:
    """The runs of n words of some texts, to look for in others.

    Args:
        texts: those that evaluate.
        n: words in a run. Texts with fewer words cannot be found.

    Raises:
        ValueError: n is below 1.

    >>> exam = Overlap(["To be, or not to be: that is the question."], n=5)
    >>> exam.share("To be or not, that is the question."), exam.share("He: or not to be that is he.")
    (0.0, 0.75)
    """

    def __init__(self, texts: Iterable[str], n: int = 13) -> None:
        check_sizes(n=n)
        self.n = n
        self._runs = {run for text in texts for run in self._runs_of(text)}

    def share(self, text: str) -> float:
        """The share of a text's words that stand in a run that the others have too."""
        found = words(text)
        if not found:
            return 0.0
        common = bytearray(len(found))
        for start, run in enumerate(self._runs_of(text)):
            if run in self._runs:
                common[start : start + self.n] = b"\1" * self.n
        return sum(common) / len(found)

    def _runs_of(self, text: str) -> Iterator[bytes]:
        found = words(text)
        for start in range(len(found) - self.n + 1):
            run = " ".join(found[start : start + self.n])
            yield hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest()
