"""Checkpoints: resumed runs are the same run, to the bit; damage is found; a failed save leaves the old file."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training import checkpoint as module
from llm_core.training.batches import random_crops
from llm_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from llm_core.training.masters import MasterWeights
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

CONFIG = GPTConfig(vocab_size=11, context=8, n_layers=2, n_heads=2, d_model=8, dropout=0.2)
TEXT = torch.randint(11, (200,), generator=torch.Generator().manual_seed(9))
OPTIMIZERS = {
    "ours": lambda model: AdamW(decay_groups(model, 0.1)),
    "torch": lambda model: torch.optim.AdamW(decay_groups(model, 0.1)),
    "masters": lambda model: MasterWeights(model, AdamW(decay_groups(model, 0.1))),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
}


def train(model, optimizer, generator, start, stop):
    losses = []
    for step in range(start, stop):
        lr = warmup_cosine(step, peak=0.02, warmup=3, total=12)
        batch = random_crops(TEXT, 4, 8, generator=generator)
        losses.append(train_step(model, batch, optimizer, lr=lr).loss)
    return losses


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small checkpoint, of a model that has taken two steps."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer, generator = AdamW(model.parameters()), torch.Generator().manual_seed(1)
    train(model, optimizer, generator, 0, 2)
    return save_checkpoint(
        tmp_path / "run.safetensors",
        step=2,
        model=model,
        optimizer=optimizer,
        generators={"batches": generator},
        settings={"n_layers": 2, "name": "黄 é", "rate": 0.1, "none": None},
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resuming_is_the_same_run_to_the_bit(kind, tmp_path):
    torch.manual_seed(0)
    straight = GPT(CONFIG)
    optimizer, generator = OPTIMIZERS[kind](straight), torch.Generator().manual_seed(1)
    losses = train(straight, optimizer, generator, 0, 5)
    path = save_checkpoint(
        tmp_path / "run.safetensors", step=5, model=straight, optimizer=optimizer, generators={"batches": generator}
    )
    losses += train(straight, optimizer, generator, 5, 10)

    torch.manual_seed(77)  # another process: nothing is as it was
    resumed = GPT(CONFIG)
    other_optimizer, other_generator = OPTIMIZERS[kind](resumed), torch.Generator().manual_seed(78)
    train(resumed, other_optimizer, other_generator, 0, 1)
    step = load_checkpoint(path).restore(resumed, other_optimizer, {"batches": other_generator})
    assert step == 5
    assert train(resumed, other_optimizer, other_generator, step, 10) == losses[5:]
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_can_be_restored_again_after_training_on(saved):
    checkpoint = load_checkpoint(saved)
    runs = []
    for _ in range(2):
        model, generator = GPT(CONFIG), torch.Generator()
        optimizer = AdamW(model.parameters())
        checkpoint.restore(model, optimizer, {"batches": generator})
        runs.append(train(model, optimizer, generator, 2, 6))
    assert runs[0] == runs[1]


def test_the_dropout_of_the_next_step_is_the_same(tmp_path):
    """The global generator is part of a checkpoint: without it this test's masks would differ."""
    model = GPT(CONFIG)
    path = save_checkpoint(tmp_path / "a", step=0, model=model)
    first = model(TEXT[None, :8])
    torch.manual_seed(5)
    load_checkpoint(path).restore(model)
    assert torch.equal(model(TEXT[None, :8]), first)


def test_what_was_saved_is_what_is_read(saved):
    checkpoint = load_checkpoint(str(saved))
    assert checkpoint.step == 2
    assert checkpoint.settings == {"n_layers": 2, "name": "黄 é", "rate": 0.1, "none": None}
    assert checkpoint.path == saved
    assert [p.name for p in saved.parent.iterdir()] == ["run.safetensors"]


def test_every_type_of_tensor_comes_back(tmp_path):
    model = nn.Module()
    model.register_buffer("bfloat16_numbers", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    model.register_buffer("flags", torch.tensor([True, False]))
    model.register_buffer("number", torch.tensor(3))
    model.register_buffer("empty", torch.zeros(0, 4))
    model.register_buffer("strided", torch.arange(6.0).view(2, 3).T)
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "a", step=0, model=model))
    for name, tensor in model.state_dict().items():
        assert checkpoint.tensors[f"model/{name}"].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[f"model/{name}"], tensor)


# ---- damage ----


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A checkpoint small enough to damage in every place."""
    model = nn.Linear(2, 1)
    optimizer = AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return save_checkpoint(tmp_path / "tiny", step=7, model=model, optimizer=optimizer, settings={"a": [1, "b"]})


def test_every_flipped_byte_of_the_header_is_found(tiny):
    saved, content = tiny, tiny.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(header):
        damaged = bytearray(content)
        damaged[at] ^= 0x20 if at % 2 else 0x01
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


def test_flipped_bytes_of_the_tensors_are_found(tiny):
    saved, content = tiny, tiny.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(header, len(content), 13), len(content) - 1]:
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged.*[Ee]arlier checkpoint"):
            load_checkpoint(saved)


def test_a_file_that_was_cut_short_is_found(saved):
    content = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            load_checkpoint(saved)
    saved.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint written by save_checkpoint"):
        load_checkpoint(path)
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load_checkpoint(path)


# ---- another model, another optimizer ----


def snapshot(model, optimizer, generator):
    tensors = [p.detach().clone() for p in model.parameters()]
    state = [v.clone() for s in optimizer.state.values() for v in s.values()]
    return [*tensors, *state, generator.get_state(), torch.get_rng_state()]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 12}, r"token_embedding\.weight is \(11, 8\) in the checkpoint and \(11, 12\) in the model"),
        ({"n_layers": 3}, r"16 weights that the checkpoint lacks"),
        ({"n_layers": 1}, r"16 that the model lacks"),
    ],
)
def test_a_model_of_another_size_is_refused_and_nothing_changes(saved, sizes, message):
    model = GPT(GPTConfig(**{**CONFIG.__dict__, **sizes}))
    optimizer, generator = AdamW(model.parameters()), torch.Generator().manual_seed(4)
    train(model, optimizer, generator, 0, 1)
    before = snapshot(model, optimizer, generator)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved).restore(model, optimizer, {"batches": generator})
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, optimizer, generator), strict=True))


def test_weights_of_another_kind_are_refused_and_nothing_changes(saved):
    found = load_checkpoint(saved)
    name = next(name for name in found.tensors if name.startswith("model/") and name.endswith("weight"))
    found.tensors[name] = found.tensors[name].to(torch.int8)
    model = GPT(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=rf"{name.removeprefix('model/')} in torch\.int8, the model in torch\.float32"
    ):
        found.restore(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_optimizer_or_generator_that_is_not_there_is_refused_and_nothing_changes(saved):
    model = GPT(CONFIG)
    optimizer, generator = AdamW(decay_groups(model, 0.1)), torch.Generator().manual_seed(4)
    train(model, optimizer, generator, 0, 1)
    before = snapshot(model, optimizer, generator)
    checkpoint = load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"groups have \[36\] parameters; this one's have \[14, 22\]"):
        checkpoint.restore(model, optimizer)
    with pytest.raises(CheckpointError, match=r"\['other'\]; it has \['batches', 'torch'\]"):
        checkpoint.restore(model, generators={"other": generator})
    bare = load_checkpoint(save_checkpoint(saved.parent / "bare", step=0, model=model))
    with pytest.raises(CheckpointError, match="without an optimizer"):
        bare.restore(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, optimizer, generator), strict=True))
    assert checkpoint.restore(model) == 2  # the weights alone can be had


# ---- saves that fail ----


def save_again(path: Path) -> None:
    torch.manual_seed(3)
    save_checkpoint(path, step=99, model=GPT(CONFIG))


def assert_as_before(saved: Path, content: bytes) -> None:
    assert saved.read_bytes() == content
    assert load_checkpoint(saved).step == 2
    assert [p.name for p in saved.parent.iterdir()] == ["run.safetensors"]


def no_space(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Interrupted:
    """An open file to which something happens in mid-write, or when it is flushed."""

    def __init__(self, file, where, happens):
        self.file, self.where, self.happens = file, where, happens

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def write(self, content):
        if self.where == "write":
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            self.happens()
        self.file.write(content)

    def flush(self):
        if self.where == "flush":
            self.happens()
        self.file.flush()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(saved, monkeypatch, where):
    content = saved.read_bytes()
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", no_space)
    else:
        real = Path.open
        monkeypatch.setattr(Path, "open", lambda *args: Interrupted(real(*args), where, no_space))
    with pytest.raises(CheckpointError, match=r"No space left on device.*still there"):
        save_again(saved)
    monkeypatch.undo()
    assert_as_before(saved, content)
    save_again(saved)
    assert load_checkpoint(saved).step == 99


def test_a_limit_of_the_operating_system_leaves_the_old_file(saved):
    """Not simulated: the kernel refuses to make any file of this process longer than 1000 bytes."""
    resource = pytest.importorskip("resource")
    content = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save_again(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_as_before(saved, content)


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_name(saved, monkeypatch):
    calls, fsync, replace = [], os.fsync, Path.replace

    def watched_fsync(number):
        calls.append(("fsync", os.fstat(number).st_ino, os.fstat(number).st_size))
        fsync(number)

    def watched_replace(path, target):
        calls.append(("replace", path.stat().st_ino, path.stat().st_size))
        assert path.parent == Path(target).parent
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    save_again(saved)
    assert [name for name, *_ in calls] == ["fsync", "replace", "fsync"]
    assert calls[0][1:] == calls[1][1:] == (saved.stat().st_ino, saved.stat().st_size)
    assert calls[2][1] == saved.parent.stat().st_ino


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_a_child(work) -> int:
    """Run in a forked process; 0 if it returned, 1 if it raised, -n if signal n ended it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@forks
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_kill_in_mid_write_leaves_the_old_file(saved, where):
    content = saved.read_bytes()

    def die(*_args):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        if where == "fsync":
            os.fsync = die
        elif where == "replace":
            Path.replace = die
        else:
            real = Path.open
            Path.open = lambda *args: Interrupted(real(*args), where, die)
        save_again(saved)

    assert in_a_child(work) == -signal.SIGKILL
    assert saved.read_bytes() == content
    assert load_checkpoint(saved).step == 2
    # What the dead process left does not look like a checkpoint, and is in nobody's way.
    left = [p for p in saved.parent.iterdir() if p != saved]
    assert all(p.suffix == ".part" for p in left)
    assert len(left) == 1
    save_again(saved)
    assert load_checkpoint(saved).step == 99


@forks
def test_a_folder_that_may_only_be_read(saved):
    content = saved.read_bytes()

    def work():
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with pytest.raises(CheckpointError, match=r"Permission denied.*still there"):
            save_again(saved)

    saved.parent.chmod(0o555)
    try:
        assert in_a_child(work) == 0
    finally:
        saved.parent.chmod(0o755)
    assert_as_before(saved, content)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"No such file.*give a folder that exists"):
        save_again(tmp_path / "nowhere" / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_again(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_settings_must_be_json(saved):
    content = saved.read_bytes()
    with pytest.raises(CheckpointError, match=r"object of type GPTConfig\. Leave it out of the settings"):
        save_checkpoint(saved, step=3, model=GPT(CONFIG), settings={"config": CONFIG})
    assert_as_before(saved, content)


def test_one_tensor_under_two_names_is_refused(saved):
    content = saved.read_bytes()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(CheckpointError, match="share memory"):
        save_checkpoint(saved, step=3, model=tied)
    assert_as_before(saved, content)


def test_no_generator_may_take_the_name_of_the_global_one(saved):
    content = saved.read_bytes()
    with pytest.raises(CheckpointError, match="'torch'"):
        save_checkpoint(saved, step=3, model=GPT(CONFIG), generators={"torch": torch.Generator()})
    assert_as_before(saved, content)


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = save_checkpoint(tmp_path / "run", step=0, model=nn.Linear(2, 2))
    assert path.stat().st_mode == plain.stat().st_mode


def test_errors_are_value_errors():
    assert issubclass(module.CheckpointError, ValueError)


def test_an_optimizer_of_the_same_groups_in_another_order_is_refused(tmp_path):
    def model():
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))

    trained = model()
    optimizer = AdamW(trained.parameters())
    trained(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = save_checkpoint(tmp_path / "run", step=1, model=trained, optimizer=optimizer)
    other = model()
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \(3, 2\), and the parameter is \(4,\)"):
        load_checkpoint(path).restore(other, AdamW(list(other.parameters())[::-1]))
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_the_state_of_a_generator_on_another_device_is_refused(tmp_path, monkeypatch):
    """No GPU is needed: a GPU's generator has a state of 16 bytes, its seed and how much it has drawn."""

    class OnAGPU(torch.Generator):
        def get_state(self):
            return torch.arange(16, dtype=torch.uint8)

    path = save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(2, 2), generators={"batches": OnAGPU()})
    model, here = nn.Linear(2, 2), torch.Generator().manual_seed(3)
    before = [*[p.clone() for p in model.parameters()], here.get_state(), torch.get_rng_state()]
    with pytest.raises(CheckpointError, match=r"'batches' of 16 bytes, and one on cpu has \d+: .* seed it anew"):
        load_checkpoint(path).restore(model, generators={"batches": here})
    after = [*model.parameters(), here.get_state(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    load_checkpoint(path).restore(model)  # without it


def test_the_generators_of_gpus_are_saved_and_put_back_where_there_are_as_many(tmp_path, monkeypatch):
    """No GPU is needed: two are made up, each with a state of its own."""
    states = {0: torch.arange(16, dtype=torch.uint8), 1: torch.arange(16, 32, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda index: states[index].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: states.__setitem__(index, state))
    path = save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(2, 2))
    saved, states[0], states[1] = dict(states), torch.zeros(16), torch.zeros(16)
    load_checkpoint(path).restore(nn.Linear(2, 2))
    assert all(torch.equal(states[index], saved[index]) for index in saved)
    del states[1]
    load_checkpoint(path).restore(nn.Linear(2, 2))  # on a machine with one GPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    load_checkpoint(path).restore(nn.Linear(2, 2))  # and with none
