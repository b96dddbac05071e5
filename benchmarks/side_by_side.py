"""Measure contenders side by side: each in its own warm process, short turns A B C A B C, ratios pair by pair.

A benchmark file has a table `TASKS`: name of a task -> names of its contenders -> a function that prepares one and
returns its turn. This file is both ends of the pipe between them: `measure` starts the processes and keeps the score,
`python side_by_side.py FILE TASK CONTENDER` is one of those processes.

Neighbouring turns meet the same weather: what else the machine does, its clock, its heat. So the ratio of two turns of
one round says more than the ratio of two averages, and the median over the rounds forgives a round that was disturbed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# A turn does its share of work and returns what the others must agree with (None: nothing to agree on).
Turn = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Args:
        prepare: makes everything that is not measured, and returns the turn. It runs in the contender's own process,
            so it imports what it needs by itself.
        peer: needs the packages of peers.txt, which live in an environment of their own.
        note: what a reader must know about it.
    """

    prepare: Callable[[], Turn]
    peer: bool = False
    note: str = ""


@dataclass
class Score:
    """What one contender needed."""

    contender: str
    note: str
    seconds: list[float]  # of the clock that counts, one a round
    ratio: float | None = None  # median over the rounds of seconds / first contender's seconds
    ratios: tuple[float, float] | None = None  # the smallest and the largest
    memory_mb: float = 0.0  # resident after the last turn
    peak_mb: float = 0.0  # the most it ever had


def measure(
    file: Path, task: str, contenders: dict[str, Contender], *, rounds: int, threads: int, clock: str = "wall"
) -> dict[str, Any]:
    """Run one task and return everything worth keeping. The first contender is the one the others are held against.

    `clock` is "wall", or "cpu" for CPU seconds; where the machine is not quiet, CPU seconds count in any case.

    Raises:
        RuntimeError: a contender failed, or two that must agree did not.
    """
    load = other_load()
    quiet = load < 0.10
    if not quiet:
        clock = "cpu"
    if clock == "cpu":
        threads = 1  # with two, a disturbed turn can take ten times as long, and waiting for each other counts as work
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    environment["LLM_CORE_PYTHON"] = sys.executable  # for a peer that asks llm_core where something lies
    processes = {}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    try:
        for name, contender in contenders.items():
            command = [str(python_of(contender)), str(HERE / "side_by_side.py"), str(file), task, name]
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
            )
            ask(name, processes[name])  # ready: prepared, and one turn taken that does not count
        for _ in range(rounds):
            for name, process in processes.items():
                answers[name].append(ask(name, process, "turn"))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()

    agreed = {json.dumps(answer["result"]) for turns in answers.values() for answer in turns}
    agreed.discard("null")
    if len(agreed) > 1:
        raise RuntimeError(f"{task}: contenders that do the same work must get the same result: {sorted(agreed)[:4]}")

    scores = []
    first = [answer[clock] for answer in next(iter(answers.values()))]
    for name, turns in answers.items():
        seconds = [answer[clock] for answer in turns]
        ratios = [b / a for a, b in zip(first, seconds, strict=True)]
        scores.append(
            Score(
                name,
                contenders[name].note,
                [round(s, 4) for s in seconds],
                round(statistics.median(ratios), 3),
                (round(min(ratios), 3), round(max(ratios), 3)),
                turns[-1]["memory_mb"],
                turns[-1]["peak_mb"],
            )
        )
    return {
        "task": task,
        "date": date.today().isoformat(),
        "machine": machine(threads),
        "quiet": quiet,
        "other_load": round(load, 3),
        "clock": clock,
        "rounds": rounds,
        "scores": [asdict(score) for score in scores],
        "versions": next(iter(answers.values()))[0]["versions"],
    }


def ask(name: str, process: subprocess.Popen[str], command: str | None = None) -> dict[str, Any]:
    """Send a command to a contender and wait for its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    if command is not None:
        process.stdin.write(command + "\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("ANSWER "):
            return json.loads(line.removeprefix("ANSWER "))
    raise RuntimeError(f"{name} ended without an answer (exit status {process.wait()}): its error is above")


def serve(file: str, task: str, contender: str) -> None:
    """One contender's process: prepare, then a turn for each line that comes in."""
    spec = importlib.util.spec_from_file_location("benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module
    spec.loader.exec_module(module)
    turn = module.TASKS[task][contender].prepare()
    turn()
    answer({"ready": True})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), sum(os.times()[:4])  # with the processes that it starts and that end
        result = turn()
        wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
        versions = {
            name: sys.modules[name].__version__
            for name in (
                "torch",
                "transformers",
                "tokenizers",
                "litgpt",
                "x_transformers",
                "tiktoken",
                "gensim",
                "numba",
            )
            if hasattr(sys.modules.get(name), "__version__")
        }
        answer({"wall": wall, "cpu": cpu, "result": result, "versions": versions, **memory()})


def answer(content: dict[str, Any]) -> None:
    """Tell the other end; the word in front tells it from what a library prints."""
    print("ANSWER " + json.dumps(content), flush=True)


def memory() -> dict[str, float]:
    """Resident memory of this process, now and at its highest, in MB."""
    # In kB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    now = peak
    status = Path("/proc/self/statm")
    if status.is_file():
        now = int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    return {"memory_mb": round(now, 1), "peak_mb": round(peak, 1)}


def python_of(contender: Contender) -> Path:
    """The interpreter that has what a contender needs."""
    if not contender.peer:
        return Path(sys.executable)
    found = HERE / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not found.is_file():
        raise RuntimeError(
            "the peers are not installed: python -m venv benchmarks/.venv && "
            "benchmarks/.venv/bin/pip install -r benchmarks/peers.txt"
        )
    return found


def other_load(seconds: float = 2.0) -> float:
    """The share of one core that everything else on this machine takes, watched for a while."""
    import psutil

    return psutil.cpu_percent(interval=seconds) / 100 * (os.cpu_count() or 1)


def machine(threads: int) -> dict[str, Any]:
    """What the numbers belong to."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    units: list[str] = []
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
        units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return {
        "processor": name,
        "units": units,  # processors of one name differ in them, and so does what is quick
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
    }


def multiplies_bf16() -> bool:
    """Whether the processor has an instruction for it; True where that cannot be told."""
    units = machine(1)["units"]
    return not units or not {"avx512_bf16", "amx_bf16"}.isdisjoint(units)


def report(result: dict[str, Any]) -> str:
    """A result as a table to read."""
    quiet = "quiet machine" if result["quiet"] else "machine NOT quiet"
    clock = "CPU seconds" if result["clock"] == "cpu" else "seconds on the clock"
    name, threads = result["machine"]["processor"], result["machine"]["threads"]
    lines = [
        f"{result['task']}: {name}, {threads} thread{'s' * (threads > 1)}, {quiet}, {clock}",
        f"{'contender':34}{'median s':>10}{'ratio':>8}{'from ... to':>16}{'MB':>8}{'peak MB':>9}",
    ]
    for score in result["scores"]:
        low, high = score["ratios"]
        lines.append(
            f"{score['contender']:34}{statistics.median(score['seconds']):10.3f}{score['ratio']:8.2f}"
            f"{f'{low:.2f} ... {high:.2f}':>16}{score['memory_mb']:8.0f}{score['peak_mb']:9.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    serve(*sys.argv[1:])
