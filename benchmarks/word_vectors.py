"""Word vectors on a CPU, beside gensim: skip-gram with negative sampling, from lists of words to vectors.

The text is the Shakespeare that comes with the package, a speech a sentence. Width, window, noise words, thinning out,
learning rate and passes are the same for both, and those of the word2vec program. A turn is the whole training, the
counting of words included; the words are the same, so a ratio of times is one of words per second, upside down.

The vectors cannot be the same: noise is drawn by chance, and in gensim each pair draws its own while in llm_core the
words of a stretch share it. So that nobody wins by learning nothing, words that keep company must have come together.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from side_by_side import Contender, Turn

CLOCK = "cpu"  # gensim reads in one thread and learns in another, ours is one


@functools.cache
def sentences() -> list[list[str]]:
    from llm_core.data.corpora import load_text

    speeches = load_text("shakespeare").lower().split("\n\n")
    return [words for speech in speeches if (words := re.findall(r"[a-z']+", speech))]


def check(similarity: Callable[[str, str], float]) -> None:
    """Words that keep company must be nearer than words that do not."""
    near = sum(similarity(a, b) for a, b in (("thou", "thee"), ("king", "queen"), ("my", "your")))
    far = sum(similarity(a, b) for a, b in (("thou", "act"), ("king", "thee"), ("my", "exeunt")))
    assert near > far + 0.5, f"these vectors have not learnt: {near:.2f} and {far:.2f}"


def ours() -> Turn:
    import torch

    from llm_core.models.word2vec import Word2VecConfig, train_word2vec

    text, config = sentences(), Word2VecConfig()  # whose defaults are the program's

    def turn() -> None:
        vectors, _ = train_word2vec(text, config, generator=torch.Generator().manual_seed(0))
        check(vectors.similarity)

    return turn


def gensim() -> Turn:
    from gensim.models import Word2Vec

    from llm_core.models.word2vec import Word2VecConfig

    text, config = sentences(), Word2VecConfig()

    def turn() -> None:
        model = Word2Vec(
            text,
            sg=1,
            vector_size=config.d_model,
            window=config.window,
            negative=config.negative,
            min_count=config.min_count,
            sample=config.sample,
            epochs=config.epochs,
            alpha=config.lr,
            min_alpha=config.min_lr,
            seed=1,
            workers=1,
        )
        check(model.wv.similarity)

    return turn


TASKS = {"skip-gram": {"llm_core": Contender(ours), "gensim": Contender(gensim, note="one worker")}}
