"""Checkpoints of several processes: any number reads what any number wrote; a crash or damage costs steps, not runs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import on, run_checks

from llm_core.distributed import checkpoint as module
from llm_core.distributed.checkpoint import ShardedStore, load_sharded, save_sharded
from llm_core.distributed.data_parallel import DataParallel, OverAllRanks, over_all_ranks, rows_of
from llm_core.distributed.launch import WorkerError, run_processes
from llm_core.distributed.sharded import clip_sharded, local, shard
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.batches import random_crops
from llm_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llm_core.training.losses import CrossEntropy
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.step import train_step
from llm_core.training.store import latest

SCRIPT = Path(__file__).with_name("train_script.py")
CONFIG = GPTConfig(vocab_size=11, context=8, n_layers=1, n_heads=2, d_model=8)
TEXT = torch.randint(11, (200,), generator=torch.Generator().manual_seed(9))
LOSS = CrossEntropy()


class Run:
    """A model, its optimizer and its generators; all processes draw the same batches."""

    def __init__(self, worker=None, seed=0, dropout=0.0, kind=AdamW, sharded=True, **sizes):
        torch.manual_seed(seed)
        self.worker = worker
        self.model = GPT(GPTConfig(**{**CONFIG.__dict__, "dropout": dropout, **sizes})).double()
        self.options = {"loss": LOSS}
        if worker is not None and sharded:
            shard(self.model, worker.mesh)
            self.options = {"loss": OverAllRanks(LOSS), "clip": clip_sharded}
        elif worker is not None:
            self.options = {"loss": DataParallel(self.model, LOSS)}
        # Weights in two groups: their order in the optimizer is not that of the model.
        self.optimizer = kind(decay_groups(self.model, 0.1), lr=0.01)
        self.generators = {"batches": torch.Generator().manual_seed(seed + 1)}

    def train(self, steps):
        losses = []
        for _ in range(steps):
            batch = random_crops(TEXT, 4, 8, generator=self.generators["batches"])
            part = batch if self.worker is None else rows_of(batch, self.worker.rank, self.worker.world)
            record = train_step(self.model, part, self.optimizer, lr=0.01, **self.options)
            losses.append((record if self.worker is None else over_all_ranks(record)).loss)
        return losses

    def save(self, folder, step=2, **options):
        return save_sharded(
            folder, step=step, model=self.model, optimizer=self.optimizer, generators=self.generators, **options
        )

    def restore(self, found):
        return found.restore(self.model, self.optimizer, self.generators)

    def state(self):
        """Everything that the next step depends on, of this process."""
        moments = [v for p in self.model.parameters() for _, v in sorted(self.optimizer.state[p].items())]
        generators = [g.get_state() for g in self.generators.values()]
        tensors = [*self.model.parameters(), *moments, *generators, torch.get_rng_state()]
        return [local(tensor.detach()).clone() for tensor in tensors]


def sgd(groups, lr):
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


KINDS = {"ours": AdamW, "torch": torch.optim.AdamW, "sgd": sgd}


# ---- what processes do ----


@on(2)
def saved_and_gone_on(worker, folder):
    """Sharded by each optimizer, and whole in both (DataParallel)."""
    results = {}
    for name, kind in KINDS.items():
        run = Run(worker, kind=kind)
        run.train(2)
        torch.manual_seed(worker.rank)
        run.generators["own"] = torch.Generator().manual_seed(worker.rank)
        run.save(f"{folder}/{name}", settings={"rank": worker.rank, "name": "黄"})
        results[name] = run.train(3)
    run = Run(worker, sharded=False)
    run.train(2)
    run.save(f"{folder}/whole")
    results["whole"] = run.train(3)
    return results


@on(2)
def resumed_by_as_many(worker, folder):
    """With dropout, which differs in the two processes: the same bits again."""
    run = Run(worker, dropout=0.2)
    torch.manual_seed(worker.rank)
    run.train(2)
    run.save(f"{folder}/dropout")
    straight = run.train(3)
    torch.manual_seed(77)  # another process: nothing is as it was
    other = Run(worker, seed=5, dropout=0.2)
    other.train(1)
    step = other.restore(latest(ShardedStore(f"{folder}/dropout")))
    return {"step": step, "losses": straight == other.train(3), "state": same(run.state(), other.state())}


@on(4)
def gone_on_from_others(worker, folder):
    results = {}
    for name in (*KINDS, "whole", "from a file"):
        run = Run(worker, seed=5, kind=KINDS.get(name, AdamW))
        own = torch.Generator().manual_seed(50 + worker.rank)
        if name in KINDS:
            run.generators["own"] = own
        torch.manual_seed(60 + worker.rank)
        before = [own.get_state(), torch.get_rng_state()]
        found = latest(ShardedStore(f"{folder}/{name}"))
        step = run.restore(found)
        # These differed in the two processes that saved: which of them should these four go on with?
        kept = name not in KINDS or same(before, [own.get_state(), torch.get_rng_state()])
        results[name] = {"step": step, "world": found.world, "kept": kept, "losses": run.train(3)}
    return results


@on(2)
def damaged(worker, folder):
    folder = Path(folder) / "damaged"
    run = Run(worker)
    paths = [run.save(folder, step=step) for step in (1, 2, 3, 10)]
    if worker.rank == 0:
        cut = paths[3] / "__1_0.distcp"
        cut.write_bytes(cut.read_bytes()[:-1])
        content = bytearray((paths[2] / "__0_0.distcp").read_bytes())
        content[len(content) // 2] ^= 1
        (paths[2] / "__0_0.distcp").write_bytes(content)
        (paths[1] / "random.1.safetensors").unlink()
    dist.barrier()
    messages = []
    for path in paths[1:]:
        with pytest.raises(CheckpointError) as caught:
            load_sharded(path)
        messages.append(str(caught.value))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = latest(ShardedStore(folder))
    warned = [str(w.message) for w in warned if "going on from" in str(w.message)]
    return {"messages": messages, "found": found.step, "warned": warned, "usable": run.restore(found)}


@on(2)
def saves_that_one_process_cannot_finish(worker, folder):
    resource = pytest.importorskip("resource")
    folder = Path(folder) / "failed"
    run = Run(worker)
    run.save(folder, step=1)
    messages = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, sabotage in [(64, None), (soft, "_save_random"), (soft, "_publish")]:
        real = getattr(module, sabotage) if sabotage else None
        if worker.rank == (0 if sabotage == "_publish" else 1):
            # Not simulated: the kernel refuses to make any file of this process longer.
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            if sabotage:
                setattr(module, sabotage, full_disk)
        with pytest.raises(CheckpointError) as caught:
            run.save(folder, step=2)
        messages.append(str(caught.value))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if sabotage:
            setattr(module, sabotage, real)
        dist.barrier()
        messages.append(sorted(path.name for path in folder.iterdir()))
        dist.barrier()
    with pytest.raises(CheckpointError, match="a checkpoint holds numbers, texts"):
        run.save(folder, step=2, settings={"x": object()} if worker.rank == 0 else {})
    found = latest(ShardedStore(folder)).step
    run.save(folder, step=2)
    return {"messages": messages, "found": found, "afterwards": latest(ShardedStore(folder)).step}


def full_disk(*_args):
    raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(folder):
    return run_checks(__file__, 2, str(folder))


@pytest.fixture(scope="module")
def from_a_file(folder):
    """A checkpoint of one process in one file, made into one for several; and how that process goes on."""
    run = Run()
    run.train(2)
    arguments = {"model": run.model, "optimizer": run.optimizer, "generators": run.generators}
    path = save_checkpoint(folder / "one.safetensors", step=2, **arguments)
    losses = run.train(3)
    other = Run(seed=5)
    step = load_checkpoint(path).restore(other.model, other.optimizer, other.generators)
    other.save(folder / "from a file", step=step)
    return losses


@pytest.fixture(scope="module")
def four(folder, two, from_a_file):
    return run_checks(__file__, 4, str(folder))


# ---- any number writes, any number reads ----


@pytest.mark.parametrize("name", [*KINDS, "whole"])
def test_four_processes_go_on_from_what_two_have_saved(two, four, name):
    losses = two["saved_and_gone_on"][0][name]
    for rank in four["gone_on_from_others"]:
        assert rank[name] == {"step": 2, "world": 2, "kept": True, "losses": pytest.approx(losses, abs=1e-8)}


@pytest.mark.parametrize("name", [*KINDS, "whole"])
def test_one_process_goes_on_from_what_two_have_saved(two, folder, name):
    run = Run(seed=5, kind=KINDS.get(name, AdamW))
    found = latest(ShardedStore(folder / name))
    assert run.restore(found) == 2
    assert run.train(3) == pytest.approx(two["saved_and_gone_on"][0][name], abs=1e-8)
    if name in KINDS:
        assert found.settings == {"rank": 0, "name": "黄"}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_one_process_is_made_from_what_two_have_saved(two, folder, name, tmp_path):
    run = Run(seed=5, kind=KINDS[name])
    step = load_sharded(folder / name / "step-00000002").gather().restore(run.model, run.optimizer, run.generators)
    path = save_checkpoint(tmp_path / "one", step=step, model=run.model, optimizer=run.optimizer)
    other = Run(seed=6, kind=KINDS[name])
    other.generators = run.generators
    assert load_checkpoint(path).restore(other.model, other.optimizer) == 2
    assert other.train(3) == pytest.approx(two["saved_and_gone_on"][0][name], abs=1e-8)


def test_four_processes_go_on_from_a_file_of_one(four, from_a_file):
    for rank in four["gone_on_from_others"]:
        assert rank["from a file"]["losses"] == pytest.approx(from_a_file, abs=1e-8)
        assert rank["from a file"]["world"] == 1


def test_as_many_processes_go_on_to_the_bit(two):
    for rank in two["resumed_by_as_many"]:
        assert rank == {"step": 2, "losses": True, "state": True}


def test_what_is_in_both_processes_is_written_once(two, folder):
    model = sum(p.numel() for p in Run().model.parameters())
    for name in ("ours", "whole"):
        path = folder / name / "step-00000002"
        size = sum(file.stat().st_size for file in path.glob("*.distcp"))
        # Weights and two moments in float64; torch's files have a header for each tensor, of a kilobyte or two.
        assert 3 * 8 * model < size < 2 * 3 * 8 * model + 250_000
        assert len(json.loads((path / "manifest.json").read_text())["files"]) == len(list(path.iterdir())) - 1


# ---- damage, and saves that fail ----


def test_damage_is_named_and_the_checkpoint_before_is_used(two):
    for rank in two["damaged"]:
        missing, flipped, cut = rank["messages"]
        assert "step-00000002/random.1.safetensors is missing" in missing
        assert "step-00000003/__0_0.distcp is damaged: it is not what was written" in flipped
        assert "step-00000010/__1_0.distcp is damaged: it has" in cut
        assert rank["found"] == rank["usable"] == 1
        (warned,) = rank["warned"]  # one warning, which names all that was passed over
        assert all(f"step-{step:08d}" in warned for step in (1, 2, 3, 10))


def test_a_save_that_one_process_cannot_finish_fails_in_both_and_leaves_nothing(two):
    for rank in two["saves_that_one_process_cannot_finish"]:
        tensors, *names, publish, last = rank["messages"]
        assert "could not write the tensors" in tensors
        assert names == [["step-00000001"], "process 1 could not write the generators: [Errno 28] No space left on "
                         "device", ["step-00000001"]]  # fmt: skip
        assert publish == "process 0 could not finish the checkpoint: [Errno 28] No space left on device"
        assert last == ["step-00000001"]
        assert rank["found"] == 1
        assert rank["afterwards"] == 2


@pytest.fixture
def saved(tmp_path):
    run = Run()
    run.train(2)
    run.save(tmp_path, step=2, settings={"n": 1})
    return run


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "random.0.safetensors", "manifest.json"])
def test_every_file_is_watched(saved, tmp_path, name):
    path = tmp_path / "step-00000002" / name
    content = path.read_bytes()
    for damage in (content[:-1], content + b"x", b""):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=f"{name}.* is damaged"):
            load_sharded(path.parent)
    if name != "manifest.json":
        flipped = bytearray(content)
        flipped[len(content) // 3] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=f"{name} is damaged: it is not what was written"):
            load_sharded(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_sharded(path.parent)


@pytest.mark.parametrize("where", ["_save_tensors", "_save_random", "_describe", "_publish", "write_whole"])
def test_a_process_that_ends_during_a_save_leaves_the_checkpoint_before(saved, tmp_path, monkeypatch, where):
    def end(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, end)
    with pytest.raises(KeyboardInterrupt):
        saved.save(tmp_path, step=3)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert latest(ShardedStore(tmp_path)).step == 2
    saved.save(tmp_path, step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert latest(ShardedStore(str(tmp_path))).step == 4


def test_a_process_that_ends_once_the_checkpoint_has_its_name_leaves_it_whole(saved, tmp_path, monkeypatch):
    def end(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sync", end)
    with pytest.raises(KeyboardInterrupt):
        saved.save(tmp_path, step=3)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    assert latest(ShardedStore(tmp_path)).step == 3


def test_a_checkpoint_of_the_same_step_is_replaced(saved, tmp_path):
    saved.train(1)
    path = saved.save(str(tmp_path), step=2, settings={"n": 2})
    assert path == tmp_path / "step-00000002"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    found = latest(ShardedStore(tmp_path))
    assert found.settings == {"n": 2}
    other = Run(seed=3)
    other.restore(found)
    assert same(saved.state(), other.state())


def test_there_may_be_no_checkpoint_yet(tmp_path):
    assert latest(ShardedStore(tmp_path)) is None
    assert latest(ShardedStore(tmp_path / "missing")) is None
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000008.ab.part").mkdir()
    (tmp_path / "step-00000008.ab.part" / "manifest.json").write_text("{}")
    assert latest(ShardedStore(tmp_path)) is None
    with pytest.raises(CheckpointError, match="there is no finished checkpoint at"):
        load_sharded(tmp_path / "step-00000007")


@pytest.mark.filterwarnings("ignore:going on from")
def test_a_run_does_not_begin_anew_when_all_is_damaged(saved, tmp_path):
    (tmp_path / "step-00000002" / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*\.metadata is damaged"):
        latest(ShardedStore(tmp_path))


def test_another_format_is_refused(saved, tmp_path):
    path = tmp_path / "step-00000002" / "manifest.json"
    path.write_text(path.read_text().replace("checkpoint 1", "checkpoint 9"))
    with pytest.raises(CheckpointError, match="no checkpoint written by save_sharded: 'llm_core sharded checkpoint 9'"):
        load_sharded(path.parent)


# ---- another model, another optimizer ----


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 12}, r"is \((11|8), 8\) in the checkpoint and \((11|8), 12\) in the model"),
        ({"n_layers": 2}, "16 weights that the checkpoint lacks"),
    ],
)
def test_a_model_of_another_size_is_refused_and_nothing_changes(saved, tmp_path, sizes, message):
    other = Run(seed=3, **sizes)
    other.train(1)
    before = other.state()
    with pytest.raises(CheckpointError, match=message):
        other.restore(latest(ShardedStore(tmp_path)))
    assert same(other.state(), before)


def test_an_optimizer_or_generator_that_is_not_there_is_refused_and_nothing_changes(saved, tmp_path):
    found = latest(ShardedStore(tmp_path))
    other = Run(seed=3)
    other.train(1)
    before = other.state()
    with pytest.raises(CheckpointError, match=r"its groups have \[8, 12\], this one's have \[20\]"):
        found.restore(other.model, AdamW(other.model.parameters()))
    with pytest.raises(CheckpointError, match="in another order"):
        found.restore(other.model, AdamW(decay_groups(other.model, 0.1)[::-1]))
    with pytest.raises(CheckpointError, match=r"generators \['x'\]; it has \['batches', 'torch'\]"):
        found.restore(other.model, other.optimizer, {"x": torch.Generator()})
    save_sharded(tmp_path, step=9, model=saved.model)
    bare = latest(ShardedStore(tmp_path))
    with pytest.raises(CheckpointError, match="without an optimizer"):
        bare.restore(other.model, other.optimizer)
    assert same(other.state(), before)
    assert bare.restore(other.model) == 9  # the weights alone can be had
    assert bare.gather().optimizer_groups is None
    assert all(torch.equal(a, b) for a, b in zip(saved.model.parameters(), other.model.parameters(), strict=True))


def test_the_settings_of_the_optimizer_come_back(saved, tmp_path):
    other = Run(seed=3)
    for group in other.optimizer.param_groups:
        group["lr"] = 5.0
    other.restore(latest(ShardedStore(tmp_path)))
    assert [(g["lr"], g["weight_decay"]) for g in other.optimizer.param_groups] == [(0.01, 0.1), (0.01, 0.0)]


def test_other_settings_of_the_optimizer_are_refused_by_name(saved, tmp_path):
    other = Run(seed=3)
    before = copy.deepcopy(other.state())
    other.optimizer.param_groups[0]["weight_decay"] = 7.0
    with pytest.raises(CheckpointError, match=r"saved with weight_decay=0\.1 .* made with weight_decay=7\.0"):
        other.restore(latest(ShardedStore(tmp_path)))
    other.optimizer.param_groups[0]["weight_decay"] = 0.1
    assert same(other.state(), before)


def test_an_optimizer_without_state_is_saved_as_it_is(tmp_path):
    run = Run()
    before = copy.deepcopy(run.state())
    run.save(tmp_path, step=0)
    assert same(run.state(), before)
    other = Run(seed=3)
    other.train(1)
    assert other.restore(latest(ShardedStore(tmp_path))) == 0
    assert other.train(2) == run.train(2)


def test_the_name_of_the_global_generator_is_taken(tmp_path):
    with pytest.raises(CheckpointError, match="kept for torch's own generators, and 'torch' does: choose another"):
        save_sharded(tmp_path / "a", step=0, model=Run().model, generators={"torch": torch.Generator()})
    assert not (tmp_path / "a").exists()


# ---- real runs, killed ----


def torchrun(*args, max_restarts=0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, f"--max-restarts={max_restarts}", str(SCRIPT), *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def result(folder: Path) -> dict[str, torch.Tensor]:
    found = latest(ShardedStore(folder))
    assert found.step == 8
    return found.gather().tensors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_processes(f"{SCRIPT}:train", 2, str(folder))
    return result(folder)


def test_a_killed_process_ends_the_run_and_the_next_run_goes_on(undisturbed, tmp_path):
    with pytest.raises(WorkerError, match="process 1 of 2 was killed by signal 9"):
        run_processes(f"{SCRIPT}:train", 2, str(tmp_path), "save", 1)
    assert latest(ShardedStore(tmp_path)).step == 3
    assert len(list(tmp_path.glob("step-00000006.*.part/*.distcp"))) > 0  # it was killed in mid-save
    run_processes(f"{SCRIPT}:train", 2, str(tmp_path), "save", 1)
    assert_same_result(result(tmp_path), undisturbed)
    assert not list(tmp_path.glob("*.part"))


def test_torchrun_starts_a_killed_run_again_by_itself(undisturbed, tmp_path):
    healed = torchrun(tmp_path, "step", 0, max_restarts=1)
    assert healed.returncode == 0, healed.stderr[-2000:]
    assert (tmp_path / "died").exists()
    assert_same_result(result(tmp_path), undisturbed)


def assert_same_result(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name in expected:
        assert torch.equal(tensors[name], expected[name]), name
