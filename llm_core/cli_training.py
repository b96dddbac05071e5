"""The `llm-core train`, `generate`, `evaluate` and `export` commands: a model from a configuration, and what it can do.

llm-core train mine.toml --folder runs/mine
llm-core train --preset book -o run.steps=1000 --folder runs/book --tensorboard
llm-core train --folder runs/book --resume
llm-core generate runs/book --prompt "ROMEO."
llm-core evaluate runs/book --text mine.txt
llm-core export runs/book mine.gguf
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm  # type: ignore[import-untyped]

Folder = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")]
STOPPED = 130  # what a shell calls a program that Ctrl-C has ended


class Kind(StrEnum):
    """How the numbers of a matrix are stored."""

    q8_0 = "Q8_0"
    f16 = "F16"
    f32 = "F32"


class TokenBar(tqdm):
    """A bar that counts tokens where a run counts steps, so that its rate is tokens/s; loss and ETA stand beside it."""

    def __init__(self, *, tokens: int, total: int, initial: int, unit: str) -> None:
        super().__init__(total=total * tokens, initial=initial * tokens, unit="tok", unit_scale=True, disable=None)
        self.tokens = tokens

    def update(self, n: float | None = 1) -> bool | None:
        """`n` steps more."""
        shown: bool | None = super().update((1 if n is None else n) * self.tokens)
        return shown


def train(
    config: Annotated[Path | None, typer.Argument(help="A TOML file.", metavar="CONFIG", show_default=False)] = None,
    folder: Annotated[Path, typer.Option(help="Where the run is kept.", metavar="RUN")] = Path("runs/mine"),
    preset: Annotated[str | None, typer.Option(help="What the file changes: book, article or gpu.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A key; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its files, too, into RUN.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the whole configuration, and train nothing.")] = False,
) -> None:
    """Train a model as a configuration says; what was killed goes on with --resume, with the same bits."""
    from llm_core.recipes.config import ConfigError, read_config, to_toml
    from llm_core.recipes.train import CONFIG, begun, kept_tokenizer, prepare
    from llm_core.recipes.train import train as run
    from llm_core.training.run import RunError, Stopped

    watch: Any = None
    with _errors():
        if config is None and preset is None and resume and (folder / CONFIG).is_file():
            config = folder / CONFIG
        if config is None and preset is None:
            raise ConfigError("give a CONFIG file or --preset book, article or gpu; --show prints all keys")
        settings = read_config(config, preset=preset, options=option or [])
        if show:
            typer.echo(to_toml(settings), nl=False)
            return
        if begun(folder) and not resume:  # said now, not after the text was read
            raise RunError(f"{folder} holds a run that has saved itself: say --resume, or give another --folder")
        if tensorboard:
            if find_spec("tensorboard") is None:
                raise ConfigError("tensorboard is not installed: pip install 'llm-core[tensorboard]'")
            from llm_core.recipes.tensorboard import TensorBoard

            watch = partial(TensorBoard, folder)
        prepared = prepare(settings, tokenizer=kept_tokenizer(folder, settings) if resume else None)
        seen = prepared.steps * prepared.tokens_per_step
        typer.echo(
            f"{prepared.n_parameters:,} parameters, {prepared.tokenizer.vocab_size:,} tokens in the vocabulary, "
            f"{len(prepared.batches.sampler.tokens):,} in the text; {prepared.steps:,} steps read {seen:,} of them",
            err=True,
        )
        try:
            saved = run(
                prepared,
                folder,
                resume=resume,
                bar=partial(TokenBar, tokens=prepared.tokens_per_step),
                watch=watch,
            )
        except Stopped as stopped:
            typer.echo(f"\n{stopped}", err=True)
            raise typer.Exit(STOPPED) from None
    typer.echo(str(saved))


def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="What to continue; for a masked model, a text with [MASK].")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Fewer where the context ends.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the likeliest token, always.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of the K likeliest tokens only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of those that make up this probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text.")] = 0,
) -> None:
    """Let a run's model continue a text, or fill in what is hidden."""
    import torch

    from llm_core.generation.sampling import Sampler, greedy
    from llm_core.generation.text import stream_text
    from llm_core.recipes.opened import fill_masks, open_run

    with _errors():
        opened = open_run(folder)
        if opened.config.objective == "masked":
            for number, likely in enumerate(fill_masks(opened, prompt), 1):
                typer.echo(f"[MASK] {number}: " + ", ".join(f"{token} {p:.1%}" for token, p in likely))
            return
        end = None if opened.end_id is None else opened.tokenizer.vocabulary[opened.end_id]
        if not prompt and end is None:
            raise ValueError("this run's tokenizer has no token that ends a text, so --prompt must begin one")
        room = opened.config.model.context - max(1, len(opened.tokenizer.encode(prompt)))
        if room < 1:
            raise ValueError(
                f"the prompt fills the model's context of {opened.config.model.context} tokens: shorten it"
            )
        pieces = stream_text(
            opened.model,
            opened.tokenizer,
            prompt or str(end),
            min(max_new_tokens, room),
            choose=greedy if temperature == 0 else Sampler(temperature, top_k, top_p),
            stop_id=opened.end_id,
            generator=torch.Generator().manual_seed(seed),
        )
        typer.echo(prompt, nl=False)
        for piece in pieces:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()


def evaluate(
    folder: Folder,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A file; what was held out unless given. May be repeated.", metavar="FILE"),
    ] = None,
) -> None:
    """Say how likely a run's model finds a text that it has not learned from."""
    from llm_core.recipes.opened import examine, open_run

    with _errors():
        opened = open_run(folder)
        found = examine(opened, tuple(text or ()))
    typer.echo(f"step            {opened.step:>12,}")
    typer.echo(f"targets         {found.n_tokens:>12,}")
    typer.echo(f"nats per token  {found.nats_per_token:>12.4f}")
    typer.echo(f"perplexity      {found.perplexity:>12.2f}")
    if found.n_bytes is None:
        typer.echo("bits per byte              -  (it is no model of a text from left to right)")
    else:
        typer.echo(f"bits per byte   {found.bits_per_byte:>12.4f}")


def export(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE.gguf")],
    kind: Annotated[Kind, typer.Option(help="Numbers of the matrices: 8, 16 or 32 bits.")] = Kind.q8_0,
) -> None:
    """Write a run's model and tokenizer as one GGUF file, which `llm-core serve` and llama.cpp can run."""
    from llm_core.pretrained.gguf_saving import save_gguf
    from llm_core.recipes.opened import open_run
    from llm_core.text.bpe_fast import BPETokenizer

    with _errors():
        opened = open_run(folder)
        if opened.config.model.kind != "llama" or not isinstance(opened.tokenizer, BPETokenizer):
            raise ValueError(
                'a GGUF file of this kind holds a model with model.kind = "llama" and tokenizer.kind = "bpe": this run '
                f"has {opened.config.model.kind!r} and {opened.config.tokenizer.kind!r}"
            )
        end = None if opened.end_id is None else opened.tokenizer.vocabulary[opened.end_id]
        save_gguf(file, opened.model, opened.tokenizer, end=end, name=folder.resolve().name, kind=kind.value)
    typer.echo(f"{file}: {file.stat().st_size:,} bytes")


def add_to(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    for command in (train, generate, evaluate, export):
        app.command()(command)


@contextmanager
def _errors() -> Iterator[None]:
    """A ValueError as one sentence and status 2, warnings as sentences."""
    with warnings.catch_warnings():
        warnings.showwarning = _say  # type: ignore[assignment]
        try:
            yield
        except ValueError as error:
            notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
            typer.echo(f"Error: {error}{notes}", err=True)
            raise typer.Exit(2) from None


def _say(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    if issubclass(category, UserWarning):
        tqdm.write(f"Warning: {message}", file=sys.stderr)
