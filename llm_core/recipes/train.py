"""A run from its configuration: everything is made, the loop runs, and a folder holds what came of it.

    runs/mine/
        config.toml         the whole configuration, with a comment on every key
        tokenizer.json      what the package tokenizers reads, too
        checkpoints/, records.jsonl, lock       of `llm_core.training.run`

    for step in run.steps(...):
        record = place.step(model, batches(step), optimizer, lr=schedule(step), ...)
        run.log(record)

The same configuration started again in the same folder goes on where the last checkpoint was, with the same bits.

Chapter: 5.4, Train.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llm_core.data.shards import TokenShards
from llm_core.files import write_whole
from llm_core.recipes.config import ConfigError, TrainConfig, read_config, settings, to_toml
from llm_core.recipes.parts import (
    Batches,
    Place,
    held_out,
    loss_of,
    model_of,
    optimizer_of,
    place_of,
    precision_of,
    schedule_of,
)
from llm_core.recipes.text import documents_of, end_id, fingerprint, joined, stream_of, texts_of, tokenizer_of
from llm_core.text.load import Loaded, load_tokenizer
from llm_core.training.run import Run, RunError
from llm_core.training.store import FileStore

CONFIG, TOKENIZER, CHECKPOINTS = "config.toml", "tokenizer.json", "checkpoints"


class Watch(Protocol):
    """Whoever is told of each step, besides records.jsonl."""

    def __call__(self, step: int, record: Mapping[str, float]) -> None:
        """The numbers of a step."""

    def close(self) -> None:
        """There are no more."""


@dataclass(frozen=True)
class Prepared:
    """What a run needs, before its first step.

    Attributes:
        config, tokenizer, batches, place: as they are named.
        held_out: the ids that each look reads; empty if there are none.
        steps: how many the run takes.
        model: with the weights that it begins with.
        identity: what a checkpoint has to agree with: the settings, and checksums of the tokenizer and the tokens.
    """

    config: TrainConfig
    tokenizer: Loaded
    batches: Batches
    place: Place
    held_out: list[int]
    steps: int
    model: torch.nn.Module
    identity: dict[str, Any]

    @property
    def n_parameters(self) -> int:
        """All weights of the model; a tied table counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def tokens_per_step(self) -> int:
        """Positions that a step learns from; of a masked model, reads."""
        return self.config.run.batch_size * self.batches.length


def prepare(config: TrainConfig, *, tokenizer: Loaded | None = None) -> Prepared:
    """Read the text, train the tokenizer, make the model. Nothing is written.

    Args:
        config: the run.
        tokenizer: one that was made of the same settings before; None: make it.

    Raises:
        ConfigError: the text, the tokenizer and the sizes do not go together, or a file cannot be read.
        CorpusError: see `texts_of`.
        ShardError: see `TokenShards`.
    """
    place = place_of(config.run)
    texts = texts_of(config.data)
    tokenizer = tokenizer_of(config.tokenizer, texts) if tokenizer is None else tokenizer
    tokens = TokenShards(config.data.shards) if config.data.shards else stream_of(tokenizer, texts.training())
    if isinstance(tokens, TokenShards) and tokens.vocab_size > tokenizer.vocab_size:
        raise ConfigError(
            f"data.shards = {config.data.shards!r} holds ids below {tokens.vocab_size}, and tokenizer.file has "
            f"{tokenizer.vocab_size} tokens: name the tokenizer that made the shards"
        )
    batches = Batches(config, tokens, tokenizer, place)
    looks: list[int] = []
    if config.run.evaluate_every:
        looks = joined(documents_of(tokenizer, texts.validation()), end_id(tokenizer), config.run.evaluate_tokens)
        if len(looks) < 2:
            raise ConfigError(
                "no text is held out: raise data.validation_share, give data.validation_files, "
                "or run.evaluate_every = 0"
            )
    epochs = config.run.epochs
    steps = config.run.steps or max(1, math.ceil((epochs or 1) * batches.sampler.n_windows / config.run.batch_size))
    torch.manual_seed(config.run.seed)
    model = place.put(model_of(config.model, tokenizer.vocab_size))
    identity = settings(config) | {
        "tokenizer's checksum": hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16],
        "tokens' checksum": fingerprint(tokens)[:16],
    }
    return Prepared(config, tokenizer, batches, place, looks, steps, model, identity)


def begun(folder: str | Path) -> bool:
    """Whether a folder holds a run that has saved itself."""
    return bool(FileStore(Path(folder) / CHECKPOINTS).finished())


def kept_tokenizer(folder: str | Path, config: TrainConfig) -> Loaded | None:
    """The tokenizer that the folder's run has made of the same text and settings, so that it need not be made again."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / TOKENIZER).is_file():
        return None
    there = read_config(folder / CONFIG)
    same = (there.data, there.tokenizer) == (config.data, config.tokenizer) and not config.tokenizer.file
    return load_tokenizer(folder / TOKENIZER) if same else None


def train(
    prepared: Prepared,
    folder: str | Path,
    *,
    resume: bool = False,
    bar: Callable[..., Any] | None = None,
    watch: Callable[[int], Watch] | None = None,
) -> Path:
    """Take the steps; returns the path of the last checkpoint.

    Args:
        prepared: see `prepare`.
        folder: the run's; made if it is missing.
        resume: go on with what is there. Without it a folder with a run in it is refused.
        bar: `tqdm`, or what is called like it: total, initial, unit.
        watch: is told the step at which it begins, and gives what is told of the steps from there on.

    Raises:
        RunError: the folder holds a run and `resume` was not said, another run is at work in it, or its settings, its
            text or its tokenizer are others.
        CheckpointError: the last checkpoint cannot be written, or none that is there can be used.
        NotFinite: the loss or a gradient is not finite.
        Stopped: the run was interrupted, and has saved itself.
    """
    folder, config = Path(folder), prepared.config
    if begun(folder) and not resume:
        raise RunError(
            f"{folder} holds a run that has saved itself: say --resume to go on with it, or give another folder"
        )
    model, place = prepared.model, prepared.place
    schedule = schedule_of(config.schedule, prepared.steps)
    optimizer = optimizer_of(config.optimizer, model, lr=config.schedule.peak)
    loss, max_norm = loss_of(config), config.optimizer.max_norm
    with Run(
        folder,
        model=model,
        optimizer=optimizer,
        generators={"hidden": prepared.batches.draws},
        settings=prepared.identity,
        keep=config.run.keep,
    ) as run:
        write_whole(folder / CONFIG, to_toml(config))
        write_whole(folder / TOKENIZER, prepared.tokenizer.to_json())
        with closing(watch(run.step) if watch is not None else _Nobody()) as tell:
            for step in run.steps(prepared.steps, save_every=config.run.save_every, bar=bar):
                record: dict[str, float] = asdict(
                    place.step(
                        model,
                        prepared.batches(step),
                        optimizer,
                        lr=schedule(step),
                        loss=loss,
                        max_norm=max_norm,
                        precision=precision_of(config.run, place.device),
                    )
                )
                if _looks(config, step, prepared.steps):
                    record["held_out"] = held_out(
                        config, model, prepared.tokenizer, [prepared.held_out], device=place.device
                    ).nats_per_token
                run.log(record)
                tell(step, record)
        return run.saved or run.save()


class _Nobody:
    def __call__(self, step: int, record: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _looks(config: TrainConfig, step: int, steps: int) -> bool:
    every = config.run.evaluate_every
    return bool(every) and ((step + 1) % every == 0 or step + 1 == steps)
