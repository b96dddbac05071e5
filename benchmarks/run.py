"""The command: which benchmarks there are, run them, keep what they found.

python benchmarks/run.py                       lists the tasks
python benchmarks/run.py generation gpt2-fp32  runs one
python benchmarks/run.py all --save            runs all and keeps the results in benchmarks/results
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import generation
import side_by_side
import tokenization
import training
import typer
import wikipedia
import word_vectors

FILES = {
    "generation": generation,
    "tokenization": tokenization,
    "training": training,
    "wikipedia": wikipedia,
    "word_vectors": word_vectors,
}
RESULTS = Path(__file__).resolve().parent / "results"


def main(
    file: Annotated[
        str | None, typer.Argument(help="generation, tokenization, training, wikipedia, word_vectors or all")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Argument(help="tasks of that file; all if none is named")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    save: Annotated[bool, typer.Option(help="keep the results in benchmarks/results")] = False,
) -> None:
    """Measure llm_core beside its peers."""
    if file is None:
        for name, module in FILES.items():
            print(name, *module.TASKS)
        return
    if file != "all" and file not in FILES:
        raise typer.BadParameter(f"there is no {file!r}; there are: all, {', '.join(FILES)}")
    for name in FILES if file == "all" else [file]:
        known = FILES[name].TASKS
        for task in tasks or known:
            if task not in known:
                raise typer.BadParameter(f"{name} has no task {task!r}; it has: {', '.join(known)}")
            if not tasks and task.endswith("-best") and not side_by_side.multiplies_bf16():
                print(f"{task}: left out, as this processor has no instruction for bf16. Name the task to run it\n")
                continue
            path = Path(FILES[name].__file__)
            clock = getattr(FILES[name], "CLOCK", "wall")
            result = side_by_side.measure(path, task, known[task], rounds=rounds, threads=threads, clock=clock)
            print(side_by_side.report(result) + "\n", flush=True)
            if save:
                target = RESULTS / f"{name}-{task}.json"
                target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
