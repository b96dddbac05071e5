"""The `llm-core wikipedia` commands: from a dump to clean text.

llm-core wikipedia extract enwiki-latest-pages-articles-multistream.xml.bz2 articles --workers 8
llm-core wikipedia show articles --title Abacus
"""

from __future__ import annotations

import sys
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
