"""Learners' work for the tests: code loaded as if it stood in a notebook's cell, and notebooks built from it."""

from __future__ import annotations

import linecache
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from llm_core.exercises import Report, check
from llm_core.exercises.catalogue import Exercise, exercises

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"

# The first set of each are the notebook's own defaults; then the smallest sizes, and larger ones.
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "03/01_self_attention": [
        {"seed": 0, "n_tokens": 5, "d_model": 8, "n_heads": 2},
        {"seed": 1, "n_tokens": 1, "d_model": 1, "n_heads": 1},
        {"seed": 2, "n_tokens": 7, "d_model": 12, "n_heads": 3},
        {"seed": 3, "n_tokens": 17, "d_model": 32, "n_heads": 8},
    ],
    "03/02_residual_block": [
        {"seed": 0, "n_tokens": 4, "d_model": 6, "p": 0.25},
        {"seed": 1, "n_tokens": 1, "d_model": 1, "p": 0.0},
        {"seed": 2, "n_tokens": 7, "d_model": 9, "p": 0.5},
        {"seed": 3, "n_tokens": 40, "d_model": 64, "p": 0.9},
    ],
    "03/03_rope": [
        {"seed": 0, "n_heads": 2, "n_tokens": 5, "d_head": 8, "base": 100.0},
        {"seed": 1, "n_heads": 1, "n_tokens": 1, "d_head": 2, "base": 2.0},
        {"seed": 2, "n_heads": 4, "n_tokens": 7, "d_head": 6, "base": 10_000.0},
        {"seed": 3, "n_heads": 16, "n_tokens": 40, "d_head": 64, "base": 500_000.0},
    ],
    "03/04_training_step": [
        {"seed": 0, "n_parts": 3, "max_length": 7, "n_words": 9},
        {"seed": 1, "n_parts": 1, "max_length": 1, "n_words": 1},
        {"seed": 2, "n_parts": 5, "max_length": 4, "n_words": 2},
        {"seed": 3, "n_parts": 8, "max_length": 24, "n_words": 200},
    ],
    "03/05_sampling": [
        {"seed": 0, "batch_size": 3, "vocab_size": 8, "temperature": 0.8, "top_k": 5, "top_p": 0.9},
        {"seed": 1, "batch_size": 1, "vocab_size": 1, "temperature": 1.0, "top_k": 1, "top_p": 1.0},
        {"seed": 2, "batch_size": 2, "vocab_size": 5, "temperature": 2.0, "top_k": 4, "top_p": 0.5},
        {"seed": 3, "batch_size": 16, "vocab_size": 200, "temperature": 0.3, "top_k": 50, "top_p": 0.95},
    ],
    "03/06_three_sentences": [
        {"seed": 0, "batch_size": 3, "max_length": 5, "n_words": 12},
        {"seed": 1, "batch_size": 1, "max_length": 1, "n_words": 1},
        {"seed": 2, "batch_size": 8, "max_length": 2, "n_words": 3},
        {"seed": 3, "batch_size": 12, "max_length": 20, "n_words": 300},
    ],
    "04/06_compute": [
        {"seed": 0, "vocab_size": 300, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "d_model": 64, "d_ff": 160},
        {"seed": 1, "vocab_size": 1, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 1, "d_ff": 1},
        {"seed": 2, "vocab_size": 50, "n_layers": 3, "n_heads": 5, "n_kv_heads": 5, "d_model": 15, "d_ff": 7},
        {"seed": 3, "vocab_size": 512, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "d_model": 288, "d_ff": 512},
    ],
    "04/04_backpropagation": [
        {"seed": 0, "n_tokens": 5, "n_heads": 2, "d_head": 4, "vocab_size": 8},
        {"seed": 1, "n_tokens": 1, "n_heads": 1, "d_head": 1, "vocab_size": 1},
        {"seed": 2, "n_tokens": 3, "n_heads": 4, "d_head": 7, "vocab_size": 2},
        {"seed": 3, "n_tokens": 40, "n_heads": 8, "d_head": 16, "vocab_size": 300},
    ],
    "04/05_perplexity": [
        {"seed": 0, "n_tokens": 5, "vocab_size": 8, "n_batches": 3},
        {"seed": 1, "n_tokens": 1, "vocab_size": 2, "n_batches": 1},
        {"seed": 2, "n_tokens": 2, "vocab_size": 50, "n_batches": 2},
        {"seed": 3, "n_tokens": 40, "vocab_size": 300, "n_batches": 12},
    ],
    "03/07_data_parallel": [
        {"seed": 0, "n_workers": 4, "n_weights": 6},
        {"seed": 1, "n_workers": 1, "n_weights": 1},
        {"seed": 2, "n_workers": 2, "n_weights": 3},
        {"seed": 3, "n_workers": 16, "n_weights": 200},
    ],
    "04/01_dot_product_attention": [
        {"seed": 0, "n_tokens": 4, "d_k": 4, "d_v": 3, "causal": False},
        {"seed": 1, "n_tokens": 1, "d_k": 1, "d_v": 1, "causal": True},
        {"seed": 2, "n_tokens": 6, "d_k": 4, "d_v": 16, "causal": True},
        {"seed": 3, "n_tokens": 50, "d_k": 64, "d_v": 64, "causal": True},
    ],
    "04/02_multi_head": [
        {"seed": 0, "batch_size": 2, "n_tokens": 5, "d_model": 12, "n_heads": 3},
        {"seed": 1, "batch_size": 1, "n_tokens": 1, "d_model": 1, "n_heads": 1},
        {"seed": 2, "batch_size": 3, "n_tokens": 4, "d_model": 7, "n_heads": 7},
        {"seed": 3, "batch_size": 8, "n_tokens": 20, "d_model": 96, "n_heads": 12},
    ],
    "04/03_worked_example": [
        {"seed": 0, "n_tokens": 3, "d_k": 4},
        {"seed": 1, "n_tokens": 1, "d_k": 1},
        {"seed": 2, "n_tokens": 5, "d_k": 9},
        {"seed": 3, "n_tokens": 12, "d_k": 2},
    ],
}

FUNCTIONS = {
    "04/06_compute": ("n_parameters", "forward_flops", "cache_bytes"),
    "04/04_backpropagation": ("softmax_backward", "cross_entropy_backward", "attention_backward"),
    "04/05_perplexity": ("token_losses", "perplexity", "bits_per_byte"),
    "03/01_self_attention": ("self_attention",),
    "03/02_residual_block": ("layer_norm", "dropout", "pre_norm_block"),
    "03/03_rope": ("rotate", "alibi_bias"),
    "03/04_training_step": ("clip", "training_step"),
    "03/05_sampling": ("next_token_probabilities", "judge"),
    "03/06_three_sentences": ("make_batch", "mean_loss"),
    "03/07_data_parallel": ("all_reduce_mean", "ring_bytes", "scaled_step"),
    "04/01_dot_product_attention": ("attention",),
    "04/02_multi_head": ("split_heads", "join_heads", "head_contributions"),
    "04/03_worked_example": ("one_head", "two_heads"),
}

EXERCISES = exercises()
_number = count()


def names(exercise: Exercise) -> str:
    return exercise.name


def load(*cells: str) -> dict[str, Any]:
    """What these cells define, each compiled as a file of its own, as ipykernel does it."""
    namespace: dict[str, Any] = {}
    for text in cells:
        file = f"<cell {next(_number)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), namespace)
    return namespace


def examined(exercise: Exercise, parameters: dict[str, Any], *cells: str) -> Report:
    """The report on these cells, the later ones redefining what the earlier ones define."""
    defined = load(*cells)
    return check(exercise.name, **{name: defined[name] for name in FUNCTIONS[exercise.name]}, **parameters)


def learners_notebook(exercise: Exercise) -> NotebookNode:
    path = exercise.notebook(CHAPTERS)
    assert path is not None
    return nbformat.read(path, as_version=4)


def cell_of(notebook: NotebookNode, tag: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))


def handed_in(exercise: Exercise, path: Path, stub: str) -> Path:
    """The learner's notebook with this in its stub cell, saved to `path`."""
    notebook = learners_notebook(exercise)
    cell_of(notebook, "stub").source = stub
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
