"""Starting processes: they meet, give back results, and none is left behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llm_core.distributed import launch
from llm_core.distributed.launch import WorkerError, init_from_environment, run_processes

HERE = str(Path(__file__).resolve())
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def meet(worker, numbers, folder):
    """What each process sees of itself and of the others."""
    ranks = torch.tensor([float(worker.rank)])
    dist.all_reduce(ranks)
    return {
        "rank": (worker.rank, worker.local_rank, worker.world),
        "mesh": (worker.mesh.size(), worker.mesh.get_local_rank(), worker.mesh.mesh_dim_names),
        "sum": ranks,
        "numbers": numbers,
        "folder": folder,
        "threads": torch.get_num_threads(),
        "device": str(worker.device),
        "pid": os.getpid(),
    }


def fail(worker, how, folder):
    """Rank 1 fails in some way, while rank 0 waits for it."""
    (Path(folder) / str(worker.rank)).write_text(str(os.getpid()))
    print(f"{worker.rank} says something", flush=True)
    if worker.rank == 1:
        if how == "raise":
            raise KeyError("what was missing")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "leave":
            os._exit(3)
        if how == "hang":
            time.sleep(1000)
    if how == "pickle":
        return lambda: None
    dist.barrier()
    dist.barrier()


def wait_in_vain(worker, folder):
    (Path(folder) / "child").write_text(str(os.getpid()))
    time.sleep(1000)


def is_there(pid: int) -> bool:
    """Whether a process runs (one that has ended and was not yet asked for its status does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(("function", "n"), [(meet, 3), (f"{HERE}:meet", 1)], ids=["function", "place"])
def test_processes_meet_and_give_back_results_by_rank(function, n):
    results = run_processes(function, n, {"a": torch.arange(3)}, Path("x"))
    for rank, result in enumerate(results):
        assert result["rank"] == (rank, rank, n)
        assert result["mesh"] == (n, rank, ("data",))
        assert result["sum"].tolist() == [n * (n - 1) / 2]
        assert result["numbers"]["a"].tolist() == [0, 1, 2]
        assert result["folder"] == Path("x")
        assert (result["threads"], result["device"]) == (1, "cpu")
        assert not is_there(result["pid"])
    assert len({result["pid"] for result in results} | {os.getpid()}) == n + 1
    assert not dist.is_initialized()  # this process is in no group


def test_a_function_of_a_module_is_found_by_its_name():
    import calendar

    with pytest.raises(WorkerError, match="TypeError") as caught:
        run_processes(calendar.leapdays, 1)
    assert "leapdays() missing 1 required positional argument" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "raise",
            r"process 1 of 2 failed\nTraceback[\s\S]*in fail\n[\s\S]*KeyError: 'what was missing'\n1 says something",
        ),
        ("die", r"process 1 of 2 was killed by signal 9\n1 says something"),
        ("leave", r"process 1 of 2 ended with status 3\n1 says something"),
        ("pickle", r"process [01] of 2 failed\n[\s\S]*pickle"),
    ],
)
def test_a_process_that_fails_stops_the_others_and_is_named(tmp_path, how, message):
    with pytest.raises(WorkerError, match=message) as caught:
        run_processes(fail, 2, how, str(tmp_path))
    assert how == "pickle" or caught.value.rank == 1
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not any(is_there(pid) for pid in pids)


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_errors_the_first_is_the_one_that_is_told(tmp_path, first):
    """The later ones say only that a connection was closed."""
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for rank in range(2):
        (tmp_path / f"{rank}.log").touch()
        (tmp_path / f"{rank}.error").write_text(f"error of {rank}\n")
        os.utime(tmp_path / f"{rank}.error", (1000 + (rank != first), 1000 + (rank != first)))
    error = launch._failure(tmp_path, [running, running])
    launch._stop([running])
    assert error.rank == first
    assert str(error) == f"process {first} of 2 failed\nerror of {first}\n"


def test_processes_that_wait_for_ever_are_stopped(tmp_path):
    with pytest.raises(WorkerError, match=r"time ran out: of 2 processes, \[0, 1\] were still at work") as caught:
        run_processes(fail, 2, "hang", str(tmp_path), timeout=15)
    assert not any(is_there(int(path.read_text())) for path in tmp_path.iterdir())
    if len(list(tmp_path.iterdir())) == 2:  # a slow machine may not have got there
        assert "in barrier" in str(caught.value)  # where rank 0 waits
        assert "line" in str(caught.value)


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc")
def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    code = f"from llm_core.distributed.launch import *; run_processes('{HERE}:wait_in_vain', 1, '{tmp_path}')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}  # it cannot tidy up
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    child = tmp_path / "child"
    for _ in range(2400):  # Python and torch begin twice: on a machine with other work that takes a while
        if child.exists() and child.read_text():
            break
        time.sleep(0.1)
    pid = int(child.read_text())
    assert is_there(pid)
    parent.kill()
    parent.wait()
    for _ in range(600):
        if not is_there(pid):
            break
        time.sleep(0.1)
    assert not is_there(pid)


def test_functions_that_no_process_could_find_are_refused(tmp_path):
    def local(worker):
        return None

    cell: dict = {"__name__": "__main__"}
    exec(compile("def work(worker): pass", "/tmp/ipykernel_1/2.py", "exec"), cell)
    for function in (local, lambda worker: None, cell["work"], print):
        with pytest.raises(ValueError, match=r"new processes cannot find .*Write it to a file.*train\.py:work"):
            run_processes(function, 2)
    for place in (f"{tmp_path}/missing.py:work", HERE, f"{HERE}:", "work"):
        with pytest.raises(ValueError, match=r"of a file that exists: got "):
            run_processes(place, 2)
    with pytest.raises(ValueError, match="n must be at least 1: got 0"):
        run_processes(meet, 0)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(timeout):
    for call in (lambda: run_processes(meet, 1, timeout=timeout), init_from_environment(timeout=timeout).__enter__):
        with pytest.raises(ValueError, match=f"timeout must be a number of seconds above 0: got {timeout}"):
            call()


def test_arguments_that_cannot_be_pickled_are_refused_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(launch, "_fork", None)
    monkeypatch.setattr(launch, "_start", None)
    for argument in (lambda: None, (i for i in "ab"), sys.stdout):
        with pytest.raises(ValueError, match=r"must be pickled for that: .*Give what they are made from"):
            run_processes(meet, 1, argument)


def test_a_file_that_is_no_module_is_named(tmp_path):
    (tmp_path / "work.txt").write_text("def work(worker): return 1")
    with pytest.raises(ImportError, match=r"work\.txt cannot be read as a Python module: its name should end in \.py"):
        launch._load("", str(tmp_path / "work.txt"), "work")


# ---- this process alone ----


@pytest.fixture
def bare(monkeypatch):
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.usefixtures("bare")
def test_without_torchrun_one_process_is_a_group_again_and_again():
    for _ in range(2):
        with init_from_environment(device="cpu") as worker:
            x = torch.ones(1)
            dist.all_reduce(x)
            assert x.item() == 1
            assert (worker.rank, worker.world, worker.local_rank, worker.mesh.size()) == (0, 1, 0, 1)
        assert not dist.is_initialized()


@pytest.mark.usefixtures("bare")
def test_the_group_is_left_after_an_error_too():
    with pytest.raises(KeyError), init_from_environment(device="cpu"):
        raise KeyError
    assert not dist.is_initialized()


def test_half_an_environment_is_refused(bare):
    bare.setenv("RANK", "0")
    bare.setenv("MASTER_PORT", "1")
    message = r"\['RANK', 'MASTER_PORT'\] are there and \['WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'\] are not"
    with pytest.raises(ValueError, match=message), init_from_environment():
        pass


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"RANK": "x"}, "RANK must be a whole number from 0 on: got 'x'. Let torchrun set it"),
        ({"RANK": ""}, "RANK must be a whole number from 0 on: got ''"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK must be a whole number from 0 on: got '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1 on: got '0'"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE must be a whole number from 1 on: got '1.5'"),
        ({"RANK": "2"}, "ranks run from 0 to WORLD_SIZE - 1: got RANK=2, WORLD_SIZE=2"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused_by_name(bare, said, message):
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (whole | said).items():
        bare.setenv(name, value)
    with pytest.raises(ValueError, match=message), init_from_environment(device="cpu"):
        pass
    assert not dist.is_initialized()


@pytest.mark.usefixtures("bare")
def test_a_second_group_and_a_device_that_is_not_there_are_refused():
    with init_from_environment(device="cpu"):
        with pytest.raises(ValueError, match="already is in a group"), init_from_environment():
            pass
        assert dist.is_initialized()
    with (
        pytest.raises(ValueError, match=r"must be .cpu. or .cuda..*got 'cuda:1'"),
        init_from_environment(device="cuda:1"),
    ):
        pass
    if torch.cuda.device_count() == 0:
        with pytest.raises(ValueError, match="process 0 of this machine has no GPU: there are 0"):
            init_from_environment(device="cuda").__enter__()
    assert not dist.is_initialized()


def test_the_device_is_a_gpu_where_each_process_can_have_one(bare):
    bare.setattr(torch.cuda, "device_count", lambda: 2)
    bare.setattr(torch.cuda, "set_device", lambda index: None)
    for here, local_rank, expected in [(1, 0, "cuda:0"), (2, 1, "cuda:1"), (3, 1, "cpu")]:
        bare.setenv("LOCAL_WORLD_SIZE", str(here))
        assert str(launch._device(None, local_rank)) == expected
    assert str(launch._device("cpu", 0)) == "cpu"
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU: there are 2"):
        launch._device("cuda", 2)


def test_a_run_that_is_started_again_does_not_meet_what_is_left_of_the_last(bare):
    """torchrun keeps its store from one attempt to the next, with the addresses of processes that are gone."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in {**variables, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        bare.setenv(name, str(value))
    found = []
    for attempt in range(2):
        bare.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        with init_from_environment(device="cpu"):
            shared = dist.distributed_c10d._get_default_store()
            found.append(shared.check(["address"]))
            shared.set("address", "mine")
            assert shared.check(["address"])
    assert found == [False, False]
