"""The machinery that holds notebooks to their outputs notices what it is there to notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import notebook_rules as rules
import notebook_runs as runs
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "book" / "_tools" / "notebooks.py"

pytestmark = pytest.mark.slow

FIGURE = """\
import matplotlib.pyplot as plt
from llm_core.figures import show
height = [1.0, 2.0, 4.0]
fig, ax = plt.subplots()
ax.plot(height)
show(fig, alt="a rising line", caption="It rises.")"""


def tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def stored(path: Path, cell: int) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))["cells"][cell]


def edit(path: Path, change: Callable[[dict], None]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def test_running_stores_outputs_and_running_again_changes_nothing(write: Callable[..., Path]):
    path = write("print('a')\nprint('b')", "sum(range(seed))", "", FIGURE)
    answer = tool("execute", path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    first = path.read_bytes()
    assert stored(path, 2)["outputs"][0]["text"] == ["a\n", "b\n"]
    assert stored(path, 3)["outputs"][0]["data"]["text/plain"] == ["3"]
    again = tool("execute", path)
    assert "unchanged" in again.stdout
    assert path.read_bytes() == first
    assert tool("check", path).returncode == 0
    run = runs.validate(path)
    assert run.ok, run.output
    assert run.cells == 5
    assert run.megabytes > 20


def test_a_time_stays_as_it_is_while_its_code_does(write: Callable[..., Path]):
    path = write("import time\nprint(time.perf_counter_ns())")
    edit(path, lambda notebook: notebook["cells"][2]["metadata"].update(tags=[rules.UNCOMPARED]))
    assert tool("execute", path).returncode == 0
    first = path.read_bytes()
    assert stored(path, 2)["outputs"][0]["text"][0].strip().isdigit()
    assert "unchanged" in tool("execute", path).stdout
    assert path.read_bytes() == first
    source = "import time\nprint('new', time.perf_counter_ns())"
    edit(path, lambda notebook: notebook["cells"][2].update(source=source))
    assert tool("execute", path).returncode == 0
    assert stored(path, 2)["outputs"][0]["text"][0].startswith("new ")


def test_the_kernel_runs_in_the_notebooks_folder_with_one_thread_and_no_bars(write: Callable[..., Path]):
    source = (
        "import os, pathlib, torch\nfrom tqdm import tqdm\n"
        "print(pathlib.Path.cwd().name, torch.get_num_threads(), sum(tqdm(range(4))))"
    )
    path = write(source, name="inside/tiny.ipynb")
    answer = tool("execute", path)
    assert answer.returncode == 0, answer.stdout
    assert stored(path, 2)["outputs"][0]["text"] == ["inside 1 6\n"]


def test_the_network_is_off_and_this_machine_is_not(write: Callable[..., Path]):
    source = """\
import socket, subprocess, sys, urllib.request
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
print("here: reached")
# 192.0.2.0/24 is kept for documentation: nobody is there, even where this guard is not
for name, call in {
    "address": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "name": lambda: socket.getaddrinfo("example.org", 80),
    "url": lambda: urllib.request.urlopen("http://example.org", timeout=1),
}.items():
    try:
        call()
        print(name, "reached")
    except OSError as error:
        print(name, "the network is off" in str(error))
child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
answer = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
print("child", "the network is off" in answer.stderr)"""
    path = write(source)
    tool("execute", path)
    lines = stored(path, 2)["outputs"][0]["text"]
    assert lines == ["here: reached\n", "address True\n", "name True\n", "url True\n", "child True\n"]


def test_a_stale_output_fails(write: Callable[..., Path]):
    path = write("print(6 * 7)")
    tool("execute", path)
    assert runs.validate(path).ok

    def stale(notebook: dict) -> None:
        notebook["cells"][2]["outputs"][0]["text"] = ["41\n"]

    edit(path, stale)
    run = runs.validate(path)
    assert not run.ok
    assert "41" in run.output


def test_a_changed_figure_fails_though_its_code_and_picture_are_the_stored_ones(write: Callable[..., Path]):
    path = write(FIGURE)
    tool("execute", path)

    def other_data(notebook: dict) -> None:
        source = "".join(notebook["cells"][2]["source"])
        notebook["cells"][2]["source"] = source.replace("2.0", "3.0")

    edit(path, other_data)
    run = runs.validate(path)
    assert not run.ok
    assert "text/plain" in run.output


def test_the_numbers_of_an_interactive_figure_are_not_compared_but_its_picture_is(write: Callable[..., Path]):
    """Rounded, they may differ in the last digit on another processor."""
    source = FIGURE.replace("show(fig,", 'show(fig, interactive=Interactive("dk", {"height": height}),')
    path = write(source.replace("import show", "import Interactive, show"))
    assert tool("execute", path).returncode == 0
    kind = "application/vnd.llm-core.interactive+json"

    def last_digit(notebook: dict) -> None:
        notebook["cells"][2]["outputs"][0]["data"][kind]["data"]["height"][0] = 1.0001

    edit(path, last_digit)
    run = runs.validate(path)
    assert run.ok, run.output

    def other_picture(notebook: dict) -> None:
        text = notebook["cells"][2]["outputs"][0]["data"]["text/plain"]
        notebook["cells"][2]["outputs"][0]["data"]["text/plain"] = [*text, "more"]

    edit(path, other_picture)
    run = runs.validate(path)
    assert not run.ok
    assert "text/plain" in run.output


def test_a_warning_that_was_not_there_fails(write: Callable[..., Path]):
    path = write("import warnings\nprint(1)")
    tool("execute", path)

    def warn(notebook: dict) -> None:
        notebook["cells"][2]["source"] = "import warnings\nprint(1)\nwarnings.warn('take care')"

    edit(path, warn)
    run = runs.validate(path)
    assert not run.ok
    assert "stderr" in run.output


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import warnings\nwarnings.warn('take care')", "stderr"),
        ("print(__import__('os').getcwd())", "a folder of the machine"),
        ("object()", "address"),
        ("1 / 0", "ZeroDivisionError"),
        ("import matplotlib.pyplot as plt\nplt.plot([1, 2]);", "no alt text"),
        ("import os\nos._exit(3)", "DeadKernelError"),
    ],
)
def test_an_output_that_may_not_be_committed_is_not_stored(write: Callable[..., Path], source: str, problem: str):
    path = write(source)
    before = path.read_bytes()
    answer = tool("execute", path)
    assert answer.returncode == 1
    assert problem in answer.stdout
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_one_bad_notebook_does_not_stop_the_others(write: Callable[..., Path]):
    write("1 / 0", name="a.ipynb")
    good = write("print(5)", name="b.ipynb")
    answer = tool("execute", good.parent)
    assert answer.returncode == 1
    assert stored(good, 2)["outputs"]


def test_an_exercise_loses_its_outputs_and_is_not_run(write: Callable[..., Path]):
    path = write("raise NotImplementedError", name="exercises/x.ipynb")

    def keep_output(notebook: dict) -> None:
        output = {"name": "stdout", "output_type": "stream", "text": ["left\n"]}
        notebook["cells"][2].update(outputs=[output], execution_count=5)

    edit(path, keep_output)
    assert tool("execute", path).returncode == 0
    assert stored(path, 2)["outputs"] == []
    assert stored(path, 2)["execution_count"] is None


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_old_file_and_no_kernel(write: Callable[..., Path], number: int):
    path = write("import time, pathlib, os\npathlib.Path('begun').write_text(str(os.getpid()))\ntime.sleep(100)")
    before = path.read_bytes()
    process = subprocess.Popen(
        [sys.executable, str(TOOL), "execute", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    begun = path.parent / "begun"
    deadline = time.monotonic() + 120
    while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(begun.read_text())
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None), output
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["begun", path.name]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("the kernel outlived its notebook")


def test_too_much_memory_fails_and_is_ended(write: Callable[..., Path]):
    path = write("import time\nblock = bytearray(b'1') * 600_000_000\ntime.sleep(100)\nprint(len(block))")
    run = runs.validate(path, limit=400.0)
    assert not run.ok
    assert "MB; a notebook may take 400 MB" in run.problems[0]


def test_a_kernel_that_dies_fails_and_is_not_waited_for(write: Callable[..., Path]):
    run = runs.validate(write("import os\nos._exit(3)"))
    assert run.problems == ["its kernel died"]


def test_a_run_without_end_is_ended(write: Callable[..., Path]):
    run = runs.validate(write("import time\ntime.sleep(1000)"), timeout=15)
    assert not run.ok
    assert "ended after 15 s" in run.problems[0]


def test_another_processor_is_stood_in_for(write: Callable[..., Path]):
    path = write("import os\nprint(os.environ.get('ATEN_CPU_CAPABILITY'))")
    tool("execute", path)
    assert runs.validate(path).ok
    assert not runs.validate(path, portable=True).ok


def test_the_report_lists_each_run(tmp_path: Path):
    for name, seconds in (("chapters/b.ipynb", 4.0), ("chapters/a.ipynb", 100.0)):
        runs.record(runs.Run(name, True, seconds, 512.0, 7), tmp_path)
    kept = list(runs.recorded(tmp_path))
    assert [run["notebook"] for run in kept] == ["chapters/a.ipynb", "chapters/b.ipynb"]
    lines = runs.table(kept, {"chapters/a.ipynb": (20, 400)}).splitlines()
    assert "took more" in lines[1]
    assert "over 90 s" in lines[1]
    assert "took more" not in lines[2]
    assert lines[3].split()[:3] == ["2", "notebooks", "104.0"]


def test_a_chapter_is_no_exercise():
    assert rules.is_exercise(Path("chapters/x/exercises/a.ipynb"))
    assert not rules.is_exercise(Path("chapters/x/a.ipynb"))
