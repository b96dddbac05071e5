"""`make test` is what CI runs, it runs every test, and it cannot pass by skipping."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_tools"))

import checks  # noqa: E402

# To start pytest without what is installed beside it takes half the time.
WITHOUT_PLUGINS = ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_ci_runs_the_readmes_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "export CI=true" in text
    assert text.rstrip().endswith("exec make test </dev/null")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflows_run_the_same_commands():
    test = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert {"run": "bash .ci/run"} in test["jobs"]["test"]["steps"]
    assert test["jobs"]["test"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    weekly = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    assert "schedule" in weekly[True]  # YAML reads the word "on" so
    assert {"run": "make test-all KEEP_GOING=1 </dev/null", "env": {"CI": "true"}} in weekly["jobs"]["test-all"][
        "steps"
    ]
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    steps = publish["jobs"]["build"]["steps"]
    assert "make book" in [step.get("run") for step in steps]
    # Colab opens notebooks from a branch only: the buttons need this one.
    assert any("push" in step.get("run", "") and step["working-directory"].endswith("/colab") for step in steps)
    json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert targets is not None
    answer = subprocess.run(["make", "--no-print-directory", "-C", ROOT], capture_output=True, text=True)
    listed = {line.split()[1] for line in answer.stdout.splitlines()}
    assert listed == set(targets[1].split()) - {"help"}


def test_before_a_commit_runs_what_the_quick_phases_run():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repository,) = yaml.safe_load(text)["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert list(hooks) == ["lint", "format", "notebooks"]
    quick = {phase.name: phase for phase in checks.phases() if phase.quick}
    for name in ("lint", "format"):
        assert hooks[name]["entry"].split() == [".venv/bin/python", *quick[name].command[1:]]
    # tests/chapters/test_notebooks.py, of the phase `project`, asks the same of every notebook.
    assert "tests/chapters" in quick["project"].pytest
    assert hooks["notebooks"]["entry"].endswith("book/_tools/notebooks.py check")
    assert re.search(hooks["notebooks"]["files"], "chapters/03_x/exercises/01_y.ipynb")


@pytest.mark.parametrize("config", ["pyproject.toml", "tests/mypy.ini"])
def test_a_name_that_is_not_there_fails_the_types(tmp_path: Path, config: str):
    used = [phase.command for phase in checks.phases() if "mypy" in phase.command]
    assert any(config in command for command in used) or config == "pyproject.toml"
    program = tmp_path / "program.py"
    program.write_text("def f(x: int) -> int:\n    return x + not_there\n")
    command = [sys.executable, "-m", "mypy", "--config-file", config, f"--cache-dir={tmp_path / 'cache'}", str(program)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1, answer.stderr
    assert "[name-defined]" in answer.stdout


def test_doctests_run_once():
    assert not [phase.name for phase in checks.phases() if "--doctest-modules" in phase.pytest]
    assert (ROOT / "tests" / "test_doctests.py").is_file()


@pytest.mark.parametrize(
    ("slow", "browser", "full"),
    [(False, False, False), (True, False, False), (False, True, False), (False, True, True), (True, True, True)],
)
def test_every_test_file_belongs_to_a_phase(slow: bool, browser: bool, full: bool):
    def runs(phase: checks.Phase, file: str) -> bool:
        ignored = [argument.partition("=")[2] for argument in phase.pytest if argument.startswith("--ignore=")]
        folders = [argument for argument in phase.pytest if (ROOT / argument).is_dir()]
        marks = phase.pytest[phase.pytest.index("-m") + 1] if "-m" in phase.pytest else "True"
        return (
            any(file.startswith(folder + "/") for folder in folders)
            and not any(file.startswith(folder + "/") for folder in ignored)
            and bool(eval(marks, {"slow": slow, "browser": browser, "full": full}))
        )

    # The other extra phases run the notebooks once more, and nothing else.
    every = [*checks.phases(), *(phase for phase in checks.extra_phases() if phase.name == "full")]

    for path in (ROOT / "tests").rglob("test_*.py"):
        file = path.relative_to(ROOT).as_posix()
        if browser and not file.startswith("tests/book/"):
            assert "mark.browser" not in path.read_text(encoding="utf-8") or file == "tests/project/test_checks.py"
            continue
        running = [phase.name for phase in every if phase.pytest and runs(phase, file)]
        assert len(running) == 1, f"{file} runs in {running}"


def test_a_phase_that_fails_or_finds_nothing_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "REPORTS", tmp_path)
    monkeypatch.setenv(*WITHOUT_PLUGINS)
    files = {"good": "def test_a(): pass", "bad": "def test_a(): assert 0", "none": "", "broken": "import nothing_here"}
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(text)

    def outcome(name: str) -> checks.Outcome:
        file = str(tmp_path / f"test_{name}.py")
        return checks.run(checks.Phase(name, name, pytest=[file, "-p", "no:cacheprovider", "--noconftest"]))

    assert (outcome("good").status, outcome("good").passed) == (0, 1)
    for name in ("bad", "none", "broken"):
        result = outcome(name)
        assert result.status != 0
        assert result.failed == 1


def test_commands_run_together_and_say_which_failed(capsys: pytest.CaptureFixture[str]):
    commands = {
        "first": "print('words')",
        "second": "raise SystemExit(3)",
        "third": "import sys; sys.stderr.write('e')",
    }
    phases = [checks.Phase(name, "x", command=[sys.executable, "-c", code]) for name, code in commands.items()]
    outcomes = checks.run_together(phases)
    assert [(o.phase, o.status, o.passed, o.failed) for o in outcomes] == [
        ("first", 0, 1, 0),
        ("second", 3, 0, 1),
        ("third", 0, 1, 0),
    ]
    shown = capsys.readouterr().out
    places = [shown.index(part) for part in ("first", "words", "second", "third: x\ne")]
    assert places == sorted(places)


def test_the_exercises_seconds_are_summed_from_the_report(tmp_path: Path):
    cases = [("test_a[03/01_self_attention]", 1.5), ("test_b[0-03/01_self_attention]", 2.0), ("test_c", 0.25)]
    cases += [("test_d[04/02_multi_head-no_gradient]", 9.0)]
    inside = "".join(f'<testcase classname="x" name="{name}" time="{seconds}"/>' for name, seconds in cases)
    (tmp_path / "exercises.xml").write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
    expected = {"04/02_multi_head": (1, 9.0), "03/01_self_attention": (2, 3.5), "of all together": (1, 0.25)}
    found = checks.exercises(tmp_path / "exercises.xml")
    assert found == expected
    assert list(found) == list(expected)
    assert checks.exercises(tmp_path / "none.xml") == {}


def test_the_report_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(checks, "REPORTS", tmp_path)
    (tmp_path / "exercises.xml").write_text('<testsuite><testcase name="test_a[03/01_x]" time="7.5"/></testsuite>')
    outcomes = [checks.Outcome("exercises", 0, 600.0, 5), checks.Outcome("perturbed", 0, 900.0, 5)]
    checks.summary(outcomes, [], 10.0)
    assert "10.0 of 45 minutes; 35.0 are left" in capsys.readouterr().out
    kept = json.loads((tmp_path / "checks.json").read_text())
    assert [(phase["phase"], phase["seconds"]) for phase in kept] == [("exercises", 600.0), ("perturbed", 900.0)]


def test_an_unknown_phase_is_an_error():
    command = [sys.executable, str(ROOT / "book" / "_tools" / "checks.py"), "--only", "unit"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "There is no phase unit" in answer.stderr


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_in_ci_a_skipped_browser_test_fails(tmp_path: Path, ci: str, status: int):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = browser\n")
    for name in ("conftest.py", "shape_checks.py"):
        (tmp_path / name).write_text((ROOT / "tests" / name).read_text(encoding="utf-8"))
    test = "import pytest\n@pytest.mark.browser\ndef test_a():\n    pytest.skip('no Chromium')\ndef test_b(): pass\n"
    (tmp_path / "test_x.py").write_text(test)
    env = dict([*os.environ.items(), ("CI", ci), WITHOUT_PLUGINS])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    answer = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert answer.returncode == status, answer.stdout
    assert ("does not accept a skipped browser test" in answer.stdout) == bool(ci)
