"""A run that has ended, or not yet: its model, to write with, to fill in masks and to be examined.

Chapter: 5.4, Train.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_core.evaluation.perplexity import Likelihood
from llm_core.recipes.config import TrainConfig, read_config
from llm_core.recipes.parts import held_out, model_of
from llm_core.recipes.text import documents_of, end_id, texts_of
from llm_core.recipes.train import CHECKPOINTS, CONFIG, TOKENIZER
from llm_core.text.load import Loaded, load_tokenizer
from llm_core.text.wordpiece_fast import WordPieceTokenizer
from llm_core.training.run import RunError
from llm_core.training.store import FileStore, latest


@dataclass(frozen=True)
class OpenedRun:
    """The newest checkpoint of a run, with what belongs to it. `model` is in eval mode, on the CPU, in float32."""

    config: TrainConfig
    model: Any
    tokenizer: Loaded
    step: int

    @property
    def end_id(self) -> int | None:
        """The token that ends a text."""
        return end_id(self.tokenizer)


def open_run(folder: str | Path) -> OpenedRun:
    """Read a run's newest checkpoint that is whole. Torch's own generator stays as it is.

    Raises:
        RunError: the folder holds no run, or none that has saved itself.
        ConfigError: its configuration was changed into one that cannot be.
        CheckpointError: no checkpoint can be used, or they are of another model than the configuration's.
    """
    folder = Path(folder)
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no run: there is no {name} in it. Give the folder that `train` wrote to")
    config, tokenizer = read_config(folder / CONFIG), load_tokenizer(folder / TOKENIZER)
    found = latest(FileStore(folder / CHECKPOINTS))
    if found is None:
        raise RunError(f"the run in {folder} has not saved itself yet: wait for its first checkpoint")
    with torch.random.fork_rng():
        model = model_of(config.model, tokenizer.vocab_size)
        step = found.restore(model)
    return OpenedRun(config, model.eval(), tokenizer, step)


def examine(opened: OpenedRun, files: tuple[Path, ...] = ()) -> Likelihood:
    """How likely the model finds texts: those of the files, or what was held out of its own text.

    `bits_per_byte` of the result is known for causal models; `documents_of` says of which bytes.

    Raises:
        ValueError: a file cannot be read, or there is no text.
    """
    texts = iter([_read(path) for path in files]) if files else texts_of(opened.config.data).validation()
    documents = documents_of(opened.tokenizer, texts)
    if not documents:
        raise ValueError("there is no text to examine the model with: give a file with --text")
    masked = opened.config.objective == "masked"
    before = [] if masked or opened.end_id is None else [opened.end_id]  # so that the first token is a target, too
    return held_out(
        opened.config,
        opened.model,
        opened.tokenizer,
        [[*before, *document.ids] for document in documents],
        n_bytes=None if masked or not before else sum(document.n_bytes for document in documents),
        device=torch.device("cpu"),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


@torch.no_grad()
def fill_masks(opened: OpenedRun, text: str, n: int = 5) -> list[list[tuple[str, float]]]:
    """For each [MASK] of a text, the `n` tokens that the model finds likeliest there, with their probabilities.

    Raises:
        ValueError: the model is causal, there is no [MASK], or the text is longer than the model can read.
    """
    tokenizer = opened.tokenizer
    if opened.config.objective != "masked" or not isinstance(tokenizer, WordPieceTokenizer):
        raise ValueError("this run's model is causal: it continues a text, and fills nothing in")
    ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    places = [place for place, id_ in enumerate(ids) if id_ == tokenizer.mask_id]
    if not places:
        raise ValueError(f"this run's model fills in what is hidden: write [MASK] where, got {text!r}")
    if len(ids) > opened.config.model.context:
        raise ValueError(f"the model reads {opened.config.model.context} tokens, [CLS] and [SEP] too: got {len(ids)}")
    likely = opened.model(torch.tensor([ids]))[0, places].softmax(dim=-1).topk(min(n, tokenizer.vocab_size))
    return [
        [(tokenizer.vocabulary[id_], p) for id_, p in zip(numbers, values, strict=True)]
        for numbers, values in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    ]
