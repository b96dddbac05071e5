"""The benchmarks' engine, on contenders made up for the purpose; nothing here depends on how quick anything is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

TOY = """
import sys, time
from side_by_side import Contender

def works(seconds, result):
    def prepare():
        print("a library that talks")
        def turn():
            until = time.process_time() + seconds
            while time.process_time() < until:
                pass
            return result
        return turn
    return prepare

def fails():
    raise MemoryError("no room")

TASKS = {
    "agree": {"a": Contender(works(0.02, [1])), "b": Contender(works(0.2, [1])), "c": Contender(works(0, None))},
    "disagree": {"a": Contender(works(0, [1])), "b": Contender(works(0, [2]))},
    "fail": {"a": Contender(works(0, 1)), "b": Contender(fails)},
}
"""


def module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


side_by_side = module("side_by_side", BENCHMARKS / "side_by_side.py")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "other_load", lambda: 0.0)
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    return file, module("toy", file).TASKS


def test_turns_are_compared_pair_by_pair(toy):
    file, tasks = toy
    result = side_by_side.measure(file, "agree", tasks["agree"], rounds=3, threads=1, clock="cpu")
    a, b, c = result["scores"]
    assert [score["contender"] for score in (a, b, c)] == ["a", "b", "c"]
    assert len(a["seconds"]) == len(b["seconds"]) == 3
    assert a["ratio"] == 1.0
    assert c["ratio"] < 1 < 3 < b["ratio"]  # ten times the CPU time, by its own making
    low, high = b["ratios"]
    assert low <= b["ratio"] <= high
    assert 5 < a["memory_mb"] <= a["peak_mb"] + 1
    assert (result["clock"], result["quiet"], result["machine"]["threads"]) == ("cpu", True, 1)
    json.dumps(result)
    assert side_by_side.report(result).count("\n") == 4


def test_a_machine_that_is_busy_is_said_to_be_and_gets_one_thread(toy, monkeypatch):
    file, tasks = toy
    monkeypatch.setattr(side_by_side, "other_load", lambda: 0.8)
    result = side_by_side.measure(file, "agree", tasks["agree"], rounds=1, threads=2)
    assert (result["clock"], result["quiet"], result["machine"]["threads"]) == ("cpu", False, 1)
    assert "NOT quiet" in side_by_side.report(result)


def test_contenders_that_disagree_or_fail_end_the_run(toy, capfd):
    file, tasks = toy
    with pytest.raises(RuntimeError, match=r"must get the same result: \['\[1\]', '\[2\]'\]"):
        side_by_side.measure(file, "disagree", tasks["disagree"], rounds=1, threads=1)
    with pytest.raises(RuntimeError, match="b ended without an answer"):
        side_by_side.measure(file, "fail", tasks["fail"], rounds=1, threads=1)
    assert "no room" in capfd.readouterr().err


def test_a_peer_that_is_not_installed_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, "HERE", tmp_path)
    with pytest.raises(RuntimeError, match=r"pip install -r benchmarks/peers\.txt"):
        side_by_side.python_of(side_by_side.Contender(lambda: lambda: None, peer=True))


@pytest.mark.parametrize("name", ["generation", "tokenization", "training", "word_vectors"])
def test_every_benchmark_has_tasks_with_someone_to_compare_with(name, monkeypatch):
    tasks = module(name + "_benchmark", BENCHMARKS / f"{name}.py").TASKS
    assert tasks
    for contenders in tasks.values():
        assert next(iter(contenders)).startswith("llm_core")
        assert any(not contender.startswith("llm_core") for contender in contenders)


def test_results_name_their_machine_and_are_those_of_tasks_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # they import each other
    kept = sorted((BENCHMARKS / "results").glob("*.json"))
    assert kept
    for file in kept:
        result = json.loads(file.read_text(encoding="utf-8"))
        name, _, task = file.stem.partition("-")
        tasks = module(name + "_benchmark", BENCHMARKS / f"{name}.py").TASKS
        assert result["task"] == task
        scored = [score["contender"] for score in result["scores"]]
        # A result may be older than a contender; it may not name one that is gone.
        assert scored == [contender for contender in tasks[task] if contender in scored]
        assert len(scored) > 1
        assert result["machine"]["processor"]


@pytest.mark.parametrize(
    ("units", "named", "ran"),
    [
        (["avx2"], None, ["a-eager", "a-best-float32"]),
        (["avx2"], ["a-best"], ["a-best"]),  # who asks for it by name gets it
        (["avx2", "avx512_bf16"], None, ["a-eager", "a-best", "a-best-float32"]),
        ([], None, ["a-eager", "a-best", "a-best-float32"]),  # not to be told
    ],
)
def test_tasks_in_bf16_are_left_out_where_the_processor_has_none(units, named, ran, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run = module("run_benchmark", BENCHMARKS / "run.py")
    toy = ModuleType("toy")
    toy.__file__ = str(BENCHMARKS / "toy.py")
    vars(toy)["TASKS"] = {"a-eager": {}, "a-best": {}, "a-best-float32": {}}
    monkeypatch.setattr(run, "FILES", {"toy": toy})
    monkeypatch.setattr(run.side_by_side, "machine", lambda threads: {"units": units})
    measured = []
    monkeypatch.setattr(run.side_by_side, "measure", lambda path, task, contenders, **more: measured.append(task))
    monkeypatch.setattr(run.side_by_side, "report", lambda result: "")
    run.main("toy", named, rounds=1, threads=1, save=False)
    assert measured == ran
    assert ("a-best: left out" in capsys.readouterr().out) == ("a-best" not in ran)
