"""The `llm-core wikipedia` commands: from a dump to clean text, and to tokens.

llm-core wikipedia extract enwiki-latest-pages-articles-multistream.xml.bz2 articles --workers 8
llm-core wikipedia show articles --title Abacus
llm-core wikipedia shards enwiki-latest-pages-articles-multistream.xml.bz2 job --tokenizer tokenizer.json --workers 8
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm  # type: ignore[import-untyped]

app = typer.Typer(help="Make clean text of a dump of Wikipedia.", no_args_is_help=True)


@app.command()
def extract(
    dump: Annotated[Path, typer.Argument(help="*-pages-articles*.xml, .xml.bz2 or .xml.gz", metavar="DUMP")],
    folder: Annotated[Path, typer.Argument(help="Where the articles are to lie; made if need be.", metavar="OUT")],
    workers: Annotated[int, typer.Option(help="Processes at work.", min=1)] = 1,
    index: Annotated[
        Path | None, typer.Option(help="The index of a multistream dump.", metavar="FILE", show_default=False)
    ] = None,
    part_mb: Annotated[int, typer.Option(help="XML in each file of articles, in MB.", min=1)] = 32,
) -> None:
    """Clean all articles. What was interrupted goes on where it stopped; the number of workers changes no byte.

    The exit status is 1 if the dump was damaged: what is good in it is kept.
    """
    from llm_core.data.extraction import extract as run

    try:
        size = dump.stat().st_size
        with tqdm(total=size, desc=dump.name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            found = run(dump, folder, workers=workers, part_bytes=part_mb * 1_000_000, index=index, progress=bar.update)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    for name, count in found.counts.items():
        typer.echo(f"{name.replace('_', ' '):18}{count:>18,}")
    for sentence in found.damage:
        typer.echo(f"Damaged: {sentence}", err=True)
    raise typer.Exit(1 if found.damage else 0)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of an extraction.", metavar="FOLDER")],
    title: Annotated[str, typer.Option(help="Which article.", metavar="TITLE")],
) -> None:
    """Print the text of one article."""
    from llm_core.data.extraction import articles

    try:
        text = next((article.text for article in articles(folder) if article.title == title), None)
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    if text is None:
        typer.echo(f"Error: there is no article {title!r} in {folder}", err=True)
        raise typer.Exit(2)
    typer.echo(text)


@app.command()
def shards(
    dump: Annotated[Path, typer.Argument(help="*-pages-articles*.xml, .xml.bz2 or .xml.gz", metavar="DUMP")],
    folder: Annotated[Path, typer.Argument(help="For all that the job writes; made if need be.", metavar="OUT")],
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer.json.", metavar="FILE")],
    workers: Annotated[int, typer.Option(help="Processes at work.", min=1)] = 1,
    tasks: Annotated[int | None, typer.Option(help="Into how many the work is cut; as many as workers.", min=1)] = None,
    language: Annotated[str, typer.Option(help="The language that is kept.", metavar="CODE")] = "en",
    index: Annotated[
        Path | None, typer.Option(help="The index of a multistream dump.", metavar="FILE", show_default=False)
    ] = None,
    part_mb: Annotated[int, typer.Option(help="XML in each part, in MB; a task does whole parts.", min=1)] = 32,
) -> None:
    """Clean, filter, remove near-duplicates, and write token shards into OUT/shards.

    What was interrupted goes on where it stopped. datatrove divides the work; `llm_core.recipes.at_scale` gives the
    same job to Slurm or Ray. The exit status is 1 if the dump was damaged: what is good in it is kept.
    """
    if find_spec("datatrove") is None:
        typer.echo("Error: datatrove is not installed: pip install 'llm-core[scale]'", err=True)
        raise typer.Exit(2)
    from llm_core.recipes.at_scale import Job, damage, run

    try:
        job = Job(
            dump,
            folder,
            tokenizer,
            tasks or workers,
            language,
            index=index,
            part_bytes=part_mb * 1_000_000,
        )
        found = run(job, workers)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{found.folder}: {found.n_documents:,} documents, {len(found):,} tokens")
    damaged = damage(job)
    for sentence in damaged:
        typer.echo(f"Damaged: {sentence}", err=True)
    raise typer.Exit(1 if damaged else 0)
