"""The machinery that holds notebooks to their outputs notices what it is there to notice.

A kernel takes a second to start, and one with torch and matplotlib four. So the tool is called in this process, all
that can be asked of one kernel is asked of one, and one specimen alone has figures.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import notebook_rules as rules
import notebook_runs as runs
import notebooks
import pytest
from nbformat.v4 import new_output

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "book" / "_tools" / "notebooks.py"

pytestmark = pytest.mark.slow

FIGURE = """\
import matplotlib.pyplot as plt
from llm_core.figures import Interactive, show
height = [1.0, 2.0, 4.0]
fig, ax = plt.subplots()
ax.plot(height)
show(fig, alt="a rising line", caption="It rises.")"""
INTERACTIVE = FIGURE.replace("show(fig,", 'show(fig, interactive=Interactive("dk", {"height": height}),\n    ')

# A kernel is in the notebook's folder, with one thread, without bars, and as on this processor.
SURROUNDINGS = """\
import os, pathlib, torch
from tqdm import tqdm
threads = torch.get_num_threads()
print(pathlib.Path.cwd().name, threads, sum(tqdm(range(4))))
print(os.environ.get("ATEN_CPU_CAPABILITY"))"""

TIME = "import time\nprint(time.perf_counter_ns())"

PRODUCT = """\
generator = torch.Generator().manual_seed(seed)
left, right = torch.randn(2, 9, 9, generator=generator)
print(f"{(left @ right)[0, 0].item():.17g}")"""


def tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def stored(path: Path, cell: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["cells"][cell]
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def printing(path: Path, text: str) -> Path:
    """The notebook, with a text stored as what its third cell printed."""
    output = {"name": "stdout", "output_type": "stream", "text": [text]}
    edit(path, lambda notebook: notebook["cells"][2].update(outputs=[output], execution_count=2))
    return path


def failing(run: runs.Run) -> set[int]:
    """The code cells, counted from 0, of which nbval says that they fail."""
    return {int(number) for number in re.findall(r"^FAILED .*::Cell (\d+)", run.output, re.M)}


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory, write_to: Callable[..., Path]) -> Path:
    """A notebook with an output of each kind, run and stored once; tests work on copies."""
    folder = tmp_path_factory.mktemp("specimen")
    sources = ["print('a')\nprint('b')", "sum(range(seed))", "", FIGURE, INTERACTIVE, SURROUNDINGS, TIME]
    sources += [PRODUCT, PRODUCT.replace(".17g", ".2f"), PRODUCT]
    path = write_to(folder, *sources, name="inside/tiny.ipynb")

    def tag(notebook: dict[str, Any]) -> None:
        for cell, name in ((5, "hide-input"), (6, "hide-input"), (8, rules.UNCOMPARED), (11, rules.UNDISTURBED)):
            notebook["cells"][cell]["metadata"]["tags"] = [name]

    edit(path, tag)
    assert notebooks.refresh(path)[1] == []
    return path


def test_running_stores_what_each_cell_gave(specimen: Path):
    assert stored(specimen, 2)["outputs"][0]["text"] == ["a\n", "b\n"]
    assert stored(specimen, 3)["outputs"][0]["data"]["text/plain"] == ["3"]
    assert stored(specimen, 4)["outputs"] == []
    assert stored(specimen, 5)["outputs"][0]["data"]["image/png"]
    assert stored(specimen, 7)["outputs"][0]["text"] == ["inside 1 6\n", "None\n"]
    assert stored(specimen, 8)["outputs"][0]["text"][0].strip().isdigit()


def test_running_again_changes_nothing_and_a_time_stays_while_its_code_does(specimen: Path):
    first = specimen.read_bytes()
    done, bad = notebooks.refresh(specimen)
    assert "unchanged" in done
    assert bad == []
    assert specimen.read_bytes() == first
    assert rules.problems(rules.read(specimen), specimen, first.decode()) == []


def test_a_time_is_measured_anew_when_its_code_changes(write: Callable[..., Path]):
    path = write(TIME)
    edit(path, lambda notebook: notebook["cells"][2]["metadata"].update(tags=[rules.UNCOMPARED]))
    notebooks.refresh(path)
    edit(path, lambda notebook: notebook["cells"][2].update(source=f"{TIME}\nprint('new')"))
    notebooks.refresh(path)
    assert stored(path, 2)["outputs"][0]["text"][1:] == ["new\n"]


def test_nbval_fails_the_cells_that_changed_and_no_others(specimen: Path, tmp_path: Path):
    notebook = rules.read(specimen)

    def again(cell: int, **changes: Any) -> int:
        """Add a cell once more, changed; returns its number among the code cells."""
        notebook.cells.append(nbformat.from_dict({**copy.deepcopy(notebook.cells[cell]), **changes}))
        notebook.cells[-1]["id"] = f"again-{len(notebook.cells)}"
        return sum(cell.cell_type == "code" for cell in notebook.cells) - 1

    def outputs(cell: int, change: Callable[[list[Any]], Any]) -> dict[str, Any]:
        found = copy.deepcopy(notebook.cells[cell].outputs)
        change(found)
        return {"outputs": found}

    kind = "application/vnd.llm-core.interactive+json"
    # Rounded, the numbers of an interactive figure may differ in the last digit on another processor.
    again(6, **outputs(6, lambda found: found[0].data[kind]["data"]["height"].__setitem__(0, 1.0001)))
    bad = {
        "stale": again(2, outputs=[new_output("stream", text="a\nc\n")]),
        # Code and picture are the stored ones, and what was drawn is not.
        "figure": again(5, source=FIGURE.replace("2.0", "3.0")),
        "interactive": again(6, **outputs(6, lambda found: found[0].data.update({"text/plain": "figure"}))),
        "warning": again(2, source="import warnings\nprint('a')\nprint('b')\nwarnings.warn('take care')"),
        "error": again(2, source="1 / 0"),
    }
    path = tmp_path / "inside" / "changed.ipynb"
    path.parent.mkdir()
    path.write_text(rules.text_of(notebook), encoding="utf-8")
    run = runs.validate(path)
    assert failing(run) == set(bad.values()), run.output
    assert not run.ok
    assert run.cells == sum(cell.cell_type == "code" for cell in notebook.cells) - len(bad)
    assert run.megabytes > 20
    for word in ("text/plain", "stderr", "ZeroDivisionError"):
        assert word in run.output


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
    notebooks.refresh(path)
    lines = stored(path, 2)["outputs"][0]["text"]
    assert lines == ["here: reached\n", "address True\n", "name True\n", "url True\n", "child True\n"]


BAD_OUTPUTS = {
    "stderr": "import warnings\nwarnings.warn('take care')",
    "a folder of the machine": "print(__import__('os').getcwd())",
    "address": "object()",
    "no alt text": "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
}


def test_what_a_kernel_gives_and_may_not_be_committed_is_seen(write: Callable[..., Path]):
    path = write(*BAD_OUTPUTS.values())
    before = path.read_bytes()
    done, bad = notebooks.refresh(path)
    assert "stored" not in done
    for number, problem in enumerate(BAD_OUTPUTS, start=3):
        assert any(line.startswith(f"cell {number}: ") and problem in line for line in bad), bad
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "output",
    [
        new_output("stream", name="stderr", text="take care"),
        new_output("stream", text="/home/ada/book"),
        new_output("execute_result", data={"text/plain": "<object at 0x7f3a2c1d5e80>"}),
        new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "figure"}),
    ],
    ids=list(BAD_OUTPUTS),
)
def test_each_of_them_alone_is_not_stored(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, output: Any):
    path = write("print(1)")
    before = path.read_bytes()

    def kernel(notebook: Any, path: Path, *, threads: int) -> tuple[float, float]:
        notebook.cells[2]["outputs"], notebook.cells[2]["execution_count"] = [output], 2
        return 1.0, 1.0

    monkeypatch.setattr(runs, "execute", kernel)
    assert "stored" not in notebooks.refresh(path)[0]
    assert path.read_bytes() == before
    output = new_output("stream", text="1\n")
    assert "stored" in notebooks.refresh(path)[0]


def test_one_bad_notebook_does_not_stop_the_others(write: Callable[..., Path]):
    failing = write("1 / 0", name="a.ipynb")
    dying = write("import os\nos._exit(3)", name="b.ipynb")
    before = failing.read_bytes(), dying.read_bytes()
    good = write("print(5)", name="c.ipynb")
    answer = tool("execute", good.parent)
    assert answer.returncode == 1
    assert "ZeroDivisionError" in answer.stdout
    assert "DeadKernelError" in answer.stdout
    assert "2 not as they should be" in answer.stderr
    assert stored(good, 2)["outputs"]
    assert (failing.read_bytes(), dying.read_bytes()) == before
    answer = tool("check", good.parent)
    assert answer.returncode == 1
    assert "1 of 3 notebooks" in answer.stdout


def test_an_exercise_loses_its_outputs_and_is_not_run(write: Callable[..., Path]):
    path = printing(write("raise NotImplementedError", name="exercises/x.ipynb"), "left\n")
    notebooks.refresh(path)
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
    path = write("import time\nblock = bytearray(b'1') * 300_000_000\ntime.sleep(100)\nprint(len(block))")
    run = runs.validate(path, limit=250.0)
    assert not run.ok
    assert "MB; a notebook may take 250 MB" in run.problems[0]


def test_a_kernel_that_dies_fails_and_is_not_waited_for(write: Callable[..., Path]):
    run = runs.validate(write("import os\nos._exit(3)"))
    assert run.problems == ["its kernel died"]


def test_a_run_without_end_is_ended(write: Callable[..., Path]):
    run = runs.validate(write("import time\ntime.sleep(1000)"), timeout=5)
    assert not run.ok
    assert "ended after 5 s" in run.problems[0]


def test_another_processor_is_stood_in_for(write: Callable[..., Path]):
    path = printing(write("import os\nprint(os.environ.get('ATEN_CPU_CAPABILITY'))"), "default\n")
    run = runs.validate(path, portable=True)  # the specimen's kernel, an ordinary one, printed None
    assert run.ok, run.output


def test_a_product_of_matrices_is_moved_in_its_last_places(specimen: Path):
    """All digits of a product fail where products are moved; few digits, and all of an excused cell, do not.

    That they pass where nothing is moved, the test of the changed cells shows.
    """
    run = runs.validate(specimen, perturbed=True)
    assert failing(run) == {8}, run.output


def test_every_kind_of_product_is_moved_alike_each_time_and_by_little():
    """Two processes, of which one has its products moved: each line is compared."""
    program = """\
import subprocess, sys, torch
from torch import nn
from torch.nn.functional import conv1d, linear, scaled_dot_product_attention
generator = torch.Generator().manual_seed(1)
a, b = torch.randn(2, 1, 40, 40, generator=generator)
q = torch.randn(2, 3, 20, 8, generator=generator)
a.requires_grad_()
attended = scaled_dot_product_attention(a[0], b[0], b[0])
results = {
    "@": a @ b, "matrix @ vector": a[0] @ b[0, 0], "vector @ vector": a[0, 0] @ b[0, 0],
    "linear": linear(a, b[0]), "linear with bias": linear(a, b[0], b[0, 0]), "bmm": torch.bmm(a, b),
    "einsum": torch.einsum("nij,nkj->nik", a, b), "attention": scaled_dot_product_attention(q, q, q),
    "causal": scaled_dot_product_attention(q, q, q, is_causal=True),
    "out": torch.mm(b[0], b[0], out=torch.empty(40, 40)),
    "gradient": torch.autograd.grad((a @ b).square().sum(), a)[0],
    "gradient of attention": torch.autograd.grad(attended.sum(), a)[0],
    "convolution": conv1d(b, b[0][:, :, None]), "float64": a.double() @ b.double(),
    "bfloat16": a.bfloat16() @ b.bfloat16(),
}
for name, result in results.items():
    print(name, result.flatten().tolist(), sep="|")
assert torch.equal(results["@"], a @ b)  # the same product again
print("plain sum|", (a + b).flatten().tolist(), (torch.arange(9).view(3, 3) @ torch.arange(9).view(3, 3)).tolist())
print("random numbers|", torch.rand(3, generator=generator).tolist(), torch.initial_seed() * 0)
child = "import torch; x = torch.linspace(1, 2, 9); print(f'child|{[(x @ x).item()]}')"
print(subprocess.run([sys.executable, "-W", "error", "-c", child], capture_output=True, text=True).stdout)"""
    printed = []
    for perturbed in (False, True):
        environment = runs.surroundings(perturbed=perturbed)
        command = [sys.executable, "-W", "error", "-c", program]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        printed.append(dict(line.split("|") for line in answer.stdout.splitlines() if line))
    ordinary, moved = printed
    same = {name for name in ordinary if ordinary[name] == moved[name]}
    assert same == {"plain sum", "random numbers"}
    for name in ordinary.keys() - same:
        pairs = list(zip(json.loads(ordinary[name]), json.loads(moved[name]), strict=True))
        largest = max(abs(number) for number, _ in pairs)
        allowed = {"bfloat16": 2**-7, "float64": 1e-15}.get(name, 4e-6)
        assert max(abs(x - y) for x, y in pairs) <= allowed * largest, name
        if name == "bfloat16":
            assert sum(x != y for x, y in pairs) < len(pairs) / 20


def test_the_report_lists_each_run(tmp_path: Path):
    for name, seconds in (("chapters/b.ipynb", 4.0), ("chapters/a.ipynb", 100.0)):
        runs.record(runs.Run(name, True, seconds, 512.0, 7), tmp_path)
    kept = list(runs.recorded(tmp_path))
    assert [run["notebook"] for run in kept] == ["chapters/a.ipynb", "chapters/b.ipynb"]
    lines = runs.table(kept, {"chapters/a.ipynb": (20, 400)}).splitlines()
    assert "took more" in lines[1]
    assert "over 90 s" in lines[1]
    assert [line.split()[3] for line in lines[1:3]] == ["-10", "86"]
    assert "52.0 s on average" in lines[3]
    assert "took more" not in lines[2]
    assert lines[3].split()[:3] == ["2", "notebooks", "104.0"]


def test_a_chapter_is_no_exercise():
    assert rules.is_exercise(Path("chapters/x/exercises/a.ipynb"))
    assert not rules.is_exercise(Path("chapters/x/a.ipynb"))
