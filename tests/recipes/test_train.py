"""`llm-core train`, `generate`, `evaluate`, `export`: a run goes on with the same bits, or says why it does not."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from llm_core.cli import app
from llm_core.data.corpora import load_documents
from llm_core.data.shards import write_shards
from llm_core.files import NotWritten
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.pretrained.opening import open_model
from llm_core.recipes.config import DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, read_config
from llm_core.recipes.opened import examine, fill_masks, open_run
from llm_core.recipes.parts import optimizer_of, schedule_of
from llm_core.recipes.text import texts_of
from llm_core.recipes.train import prepare, train
from llm_core.training import checkpoint
from llm_core.training import run as run_module
from llm_core.training.lock import FolderLock
from llm_core.training.masking import IGNORE_ID
from llm_core.training.run import RunError

TEXT = load_documents("shakespeare")[0][:12_000]
SMALL = """
[tokenizer]
vocab_size = 300
[model]
context = 16
d_model = 16
n_heads = 2
n_layers = 1
d_ff = 32
dropout = 0.1
[run]
steps = 36
batch_size = 4
parts = 2
evaluate_every = 9
evaluate_tokens = 64
save_every = 6
"""
MASKED = SMALL.replace("[model]", '[model]\nkind = "bert"')


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mine(folder: Path, text: str = SMALL, *, objective: str = "causal") -> Path:
    """A configuration file beside its text."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    path = folder / "mine.toml"
    path.write_text(f'objective = "{objective}"\n[data]\nfiles = ["{folder / "text.txt"}"]\n{text}', encoding="utf-8")
    return path


def last(folder: Path) -> dict[str, str]:
    """The header of the last checkpoint; its checksum is over the weights, the optimizer and the generators, too."""
    path = folder / "checkpoints" / "step-00000036.safetensors"
    checkpoint.load_checkpoint(path)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal run that nothing has stopped: the folder that holds `mine.toml` and `run`."""
    folder = tmp_path_factory.mktemp("whole")
    result = call("train", mine(folder), "--folder", folder / "run", "--tensorboard")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder / "run" / "checkpoints" / "step-00000036.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole_masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    result = call("train", mine(folder, MASKED, objective="masked"), "--folder", folder / "run")
    assert result.exit_code == 0, result.output
    return folder


def slow_run(config: str, folder: str) -> None:
    """The command in a process of its own, with time between its steps to be killed in."""
    import llm_core.training.step as step

    torch.set_num_threads(1)
    update = step.update

    def slower(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.03)
        return update(*arguments, **options)

    step.update = slower  # type: ignore[assignment]
    call("train", config, "--folder", folder, "--tensorboard")


def test_a_run_that_was_killed_goes_on_with_the_same_bits(whole: Path, tmp_path: Path):
    config, run = whole / "mine.toml", tmp_path / "run"
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["llm_core.cli", "llm_core.recipes.train", "llm_core.cli_training"])
    process = forks.Process(target=slow_run, args=(str(config), str(run)))
    process.start()
    ends = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000012.safetensors").exists():
        assert process.is_alive(), "it ended before it was killed"
        assert time.monotonic() < ends
        time.sleep(0.02)
    time.sleep(0.1)  # some steps after the checkpoint, which will be taken again
    process.kill()
    process.join()
    assert len(records(run)) < 36

    refused = call("train", config, "--folder", run)
    assert (refused.exit_code, "say --resume, or give another --folder" in refused.stderr) == (2, True)
    with pytest.raises(RunError, match="holds a run that has saved itself"):  # from Python, too
        train(prepare(read_config(config)), run)
    resumed = call("train", "--folder", run, "--resume", "--tensorboard")  # the folder knows its configuration
    assert resumed.exit_code == 0, resumed.output
    assert last(run) == last(whole / "run")
    assert records(run) == records(whole / "run")
    assert scalars(run) == scalars(whole / "run")


def test_a_masked_run_that_was_broken_off_goes_on_with_the_same_bits(
    whole_masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is hidden is drawn at random, and so is dropout: both go on where they were."""
    append = run_module.append_record

    def broken_off(path: Path, record: dict[str, Any]) -> None:
        if record["step"] == 15:
            raise SystemExit(9)
        append(path, record)

    monkeypatch.setattr(run_module, "append_record", broken_off)
    assert call("train", whole_masked / "mine.toml", "--folder", tmp_path / "run").exit_code == 9
    monkeypatch.undo()
    assert len(records(tmp_path / "run")) == 15
    assert call("train", "--folder", tmp_path / "run", "--resume").exit_code == 0
    assert last(tmp_path / "run") == last(whole_masked / "run")
    assert records(tmp_path / "run") == records(whole_masked / "run")


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds in a folder."""
    reader = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_reads_what_the_records_say(whole: Path):
    read, said = scalars(whole / "run"), records(whole / "run")
    for tag, name in {"loss/training": "loss", "step/rate": "lr", "step/gradient norm": "grad_norm"}.items():
        assert [step for step, _ in read[tag]] == list(range(36))
        torch.testing.assert_close([value for _, value in read[tag]], [line[name] for line in said])
    assert [step for step, _ in read["loss/held out"]] == [8, 17, 26, 35]


def test_a_run_that_has_ended_is_not_taken_further(whole: Path):
    before = files(whole / "run")
    again = call("train", whole / "mine.toml", "--folder", whole / "run", "--resume")
    assert again.exit_code == 0
    assert files(whole / "run") == before


def test_two_runs_in_one_folder_are_refused(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    lock = FolderLock(run)
    assert lock.acquire()
    before = files(run)
    result = call("train", mine(tmp_path), "--folder", run)
    assert result.exit_code == 2
    assert f"another run is at work in {run}" in result.stderr
    assert files(run) == before
    lock.release()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.d_model=32", "model.d_model: 16 there, 32 here"),
        ("schedule.peak=0.5", "schedule.peak: 0.001 there, 0.5 here"),
        ("run.seed=1", "run.seed: 0 there, 1 here"),
        ("tokenizer.vocab_size=200", "tokenizer's checksum: "),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(option: str, message: str, whole: Path):
    before = files(whole / "run")
    result = call("train", whole / "mine.toml", "-o", option, "--folder", whole / "run", "--resume")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Go on with its own, or give this run another folder" in result.stderr
    assert files(whole / "run") == before


def test_a_text_that_has_changed_is_refused(whole: Path, tmp_path: Path):
    config, run = mine(tmp_path), tmp_path / "run"
    assert call("train", config, "-o", "run.steps=3", "--folder", run).exit_code == 0
    (tmp_path / "text.txt").write_text(TEXT.replace("Romeo", "Romeus"), encoding="utf-8")
    result = call("train", config, "-o", "run.steps=3", "--folder", run, "--resume")
    assert (result.exit_code, "tokens' checksum" in result.stderr) == (2, True)


def test_what_changes_no_weight_may_change(whole: Path):
    options = ["-o", "run.save_every=7", "-o", "run.keep=3", "-o", "run.evaluate_every=0", "-o", "run.device=cpu"]
    result = call("train", whole / "mine.toml", *options, "--folder", whole / "run", "--resume")
    assert result.exit_code == 0, result.output
    assert call("train", whole / "mine.toml", "--folder", whole / "run", "--resume").exit_code == 0  # as it was


def test_a_vocabulary_larger_than_the_text_gives_is_what_there_is(tmp_path: Path):
    (tmp_path / "text.txt").write_text("low lower lowest\n" * 40)
    config = mine(tmp_path, SMALL.replace("vocab_size = 300", "vocab_size = 30000"))
    (tmp_path / "text.txt").write_text("low lower lowest\n" * 40)
    result = call("train", config, "-o", "run.steps=2", "--folder", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = re.search(r"Warning: the text gives (\d+) tokens, not the tokenizer.vocab_size = 30,000", result.stderr)
    assert found is not None, result.stderr
    assert open_run(tmp_path / "run").model.vocab_size == int(found[1]) < 40


@pytest.mark.parametrize("step", [12, 36])
def test_a_disk_that_is_full_in_mid_checkpoint(step: int, whole: Path, tmp_path: Path, monkeypatch: Any):
    """The file that holds the middle of the checkpoint is cut short, as the disk leaves it."""
    write = checkpoint.write_whole

    def full(path: Path, content: bytes) -> Path:
        if path.name == f"step-{step:08}.safetensors":
            raise NotWritten(path, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", full)
    result = call("train", whole / "mine.toml", "--folder", tmp_path / "run")
    assert "No space left on device" in result.stderr
    assert not list((tmp_path / "run").rglob("*.part"))
    if step == 12:
        assert result.exit_code == 0
        assert "Warning: step 12 was not saved, and training goes on" in result.stderr
    else:
        assert result.exit_code == 2
        monkeypatch.undo()
        assert call("train", "--folder", tmp_path / "run", "--resume").exit_code == 0
    assert last(tmp_path / "run") == last(whole / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CONFIG file or --preset"),
        (["--preset", "bok"], "did you mean book?"),
        (["--preset", "book", "-o", "data.corpus=shakespear"], "there is no corpus 'shakespear'"),
        (["--preset", "book", "-o", "data.corpus=pydoc-topics"], "pydoc-topics has no fixed parts"),
        (["--preset", "book", "-o", "data.files=['nowhere.txt']"], "data.files: nowhere.txt cannot be read"),
        (["--preset", "book", "-o", "data.articles=nowhere"], "nowhere"),
        (["--preset", "book", "-o", "tokenizer.file=nowhere"], "tokenizer.file: nowhere cannot be read"),
        (["--preset", "book", "-o", "tokenizer.vocab_size=9"], "tokenizer.vocab_size = 9: vocab_size must be at least"),
    ],
)
def test_a_call_that_cannot_work_ends_with_2_and_writes_nothing(arguments: list[str], message: str, tmp_path: Path):
    result = call("train", *arguments, "--folder", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_too_short_is_refused(tmp_path: Path):
    config = mine(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not")
    result = call("train", config, "--folder", tmp_path / "run")
    assert (result.exit_code, "model.context = 16, and the whole text for training has" in result.stderr) == (2, True)


def test_several_processes_are_refused_until_they_share_the_work(whole: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call("train", whole / "mine.toml", "--folder", tmp_path / "run")
    assert (result.exit_code, "WORLD_SIZE=2 processes were started" in result.stderr) == (2, True)


def test_show_prints_what_the_run_keeps(whole: Path):
    shown = call("train", whole / "mine.toml", "--show")
    assert shown.stdout == (whole / "run" / "config.toml").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------


def test_evaluate_says_what_torch_says_of_each_window(whole: Path, tmp_path: Path):
    """Every held-out token once, each window of 16 by itself, by torch's cross-entropy."""
    opened = open_run(whole / "run")
    text = TEXT[TEXT.find("\n", int(len(TEXT) * 0.9)) + 1 :]
    end = opened.tokenizer.sep_id  # type: ignore[union-attr]
    ids = [end, *opened.tokenizer.encode(text)]
    nats = 0.0
    for begin in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[begin : begin + 17])
        nats += F.cross_entropy(opened.model(window[None, :-1])[0], window[1:], reduction="sum").item()
    n_bytes = len(" ".join(text.lower().split()).encode())
    result = call("evaluate", whole / "run")
    numbers = dict(re.findall(r"(\S[\w ]+?)  +([\d.,]+)", result.stdout))
    assert int(numbers["targets"].replace(",", "")) == len(ids) - 1
    assert float(numbers["nats per token"]) == pytest.approx(nats / (len(ids) - 1), abs=1e-4)
    assert float(numbers["bits per byte"]) == pytest.approx(nats / torch.tensor(2.0).log().item() / n_bytes, abs=1e-3)
    (tmp_path / "held.txt").write_text(text, encoding="utf-8")
    assert call("evaluate", whole / "run", "--text", tmp_path / "held.txt").stdout == result.stdout


def test_the_loss_falls_and_what_was_held_out_was_not_learned_from(whole: Path):
    said = records(whole / "run")
    assert said[-1]["held_out"] < said[8]["held_out"] < 5.8  # ln 300 = 5.70
    texts = texts_of(read_config(whole / "mine.toml").data)
    assert "".join([*texts.training(), *texts.validation()]) == TEXT


def test_every_tenth_article_of_a_dump_is_held_out():
    texts = texts_of(DataConfig(corpus="wikipedia-sample"))
    training, validation = list(texts.training()), list(texts.validation())
    assert len(validation) == (len(training) + len(validation)) // 10 > 0
    assert not set(training) & set(validation)
    assert not any("{{" in text or "<ref" in text for text in training + validation)


def test_masked_rows_are_framed_and_the_frame_is_never_hidden(whole_masked: Path):
    prepared = prepare(read_config(whole_masked / "mine.toml"))
    tokenizer: Any = prepared.tokenizer
    for step in range(5):
        for part in prepared.batches(step):
            ids, targets = part.inputs[0], part.targets
            assert ids.shape == targets.shape == (2, 16)
            assert (ids[:, 0] == tokenizer.cls_id).all()
            assert (ids[:, -1] == tokenizer.sep_id).all()
            assert (targets[:, [0, -1]] == IGNORE_ID).all()
            assert (targets != IGNORE_ID).any()
    assert "bits per byte              -" in call("evaluate", whole_masked / "run").stdout
    assert examine(open_run(whole_masked / "run")).n_bytes is None


def test_generate_continues_by_seed_and_fills_what_is_hidden(whole: Path, whole_masked: Path):
    def text(*options: object) -> str:
        result = call("generate", whole / "run", *options)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    assert text("--prompt", "romeo") == text("--prompt", "romeo") != text("--prompt", "romeo", "--seed", 1)
    assert text("--prompt", "romeo").startswith("romeo")
    assert text()  # begins by itself
    opened = open_run(whole / "run")
    ids = opened.tokenizer.encode("romeo")
    likeliest = opened.model(torch.tensor([ids]))[0, -1].argmax().item()
    written = text("--prompt", "romeo", "--temperature", 0, "--max-new-tokens", 1)
    assert written.strip() == opened.tokenizer.decode([*ids, likeliest])

    masked = open_run(whole_masked / "run")
    [likely] = fill_masks(masked, "to be or [MASK] to be", 3)
    tokenizer: Any = masked.tokenizer
    row = [tokenizer.cls_id, *tokenizer.encode("to be or [MASK] to be"), tokenizer.sep_id]
    scores = masked.model(torch.tensor([row]))[0, row.index(tokenizer.mask_id)].softmax(-1)
    assert [token for token, _ in likely] == [tokenizer.vocabulary[i] for i in scores.argsort(descending=True)[:3]]
    shown = call("generate", whole_masked / "run", "--prompt", "to be or [MASK] to be").stdout
    assert shown.startswith(f"[MASK] 1: {likely[0][0]} {likely[0][1]:.1%}, ")


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("whole", ["generate", "--prompt", "romeo " * 40], "the prompt fills the model's context of 16 tokens"),
        ("whole", ["generate", "--top-p", "2"], "top_p"),
        ("whole", ["evaluate", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        ("whole_masked", ["generate", "--prompt", "to be"], "write [MASK] where"),
        ("whole_masked", ["generate", "--prompt", "[MASK] " * 40], "the model reads 16 tokens"),
        (None, ["generate", "--prompt", "a"], "holds no run: there is no config.toml in it"),
        (None, ["evaluate"], "holds no run: there is no config.toml in it"),
    ],
)
def test_what_a_run_cannot_do_is_said(
    run: str | None, arguments: list[str], message: str, request: pytest.FixtureRequest, tmp_path: Path
):
    folder = tmp_path if run is None else request.getfixturevalue(run) / "run"
    result = call(arguments[0], folder, *arguments[1:])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_opening_a_run_leaves_chance_alone(whole: Path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    open_run(whole / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_learns_from_shards(whole: Path, tmp_path: Path):
    tokenizer = whole / "run" / "tokenizer.json"
    encode = open_run(whole / "run").tokenizer.encode
    write_shards(tmp_path / "shards", [encode(TEXT)], vocab_size=300)
    options = [f"data.shards={tmp_path / 'shards'}", f"tokenizer.file={tokenizer}", "run.steps=3"]
    options += [f"data.validation_files=['{whole / 'text.txt'}']"]
    flags = [flag for option in options for flag in ("-o", option)]
    result = call("train", whole / "mine.toml", *flags, "--folder", tmp_path / "run")
    assert result.exit_code == 0, result.output
    write_shards(tmp_path / "more", [encode(TEXT)], vocab_size=301)
    flags[1] = f"data.shards={tmp_path / 'more'}"
    refused = call("train", whole / "mine.toml", *flags, "--folder", tmp_path / "other")
    assert (refused.exit_code, "holds ids below 301, and tokenizer.file has 300" in refused.stderr) == (2, True)


def test_adam_takes_torchs_steps():
    config = OptimizerConfig("adam", weight_decay=0.0, betas=(0.9, 0.999))
    finals = []
    for make in (lambda m: optimizer_of(config, m, lr=1e-2), lambda m: torch.optim.Adam(m.parameters(), lr=1e-2)):
        torch.manual_seed(0)
        model = GPT(GPTConfig(11, 8, 1, 2, 8))
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(8)[None]).square().mean().backward()
            optimizer.step()
        finals.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*finals)


def test_the_schedules_have_their_shapes():
    constant, cosine, stable = (
        [schedule_of(ScheduleConfig(kind, 1.0, warmup=0.2, decay=0.5), 10)(step) for step in range(10)]
        for kind in ("constant", "cosine", "stable")
    )
    assert constant == [0.5, *[1.0] * 9]
    assert stable == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)


def test_epochs_are_steps_that_read_the_text_so_often(whole: Path):
    flags = ["run.epochs=2.5", "run.batch_size=3", "run.parts=1"]
    prepared = prepare(read_config(whole / "mine.toml", options=flags))
    assert prepared.steps == -(-2.5 * prepared.batches.sampler.n_windows // 3)
    assert RunConfig(epochs=2.5).steps is None


def test_export_writes_a_file_that_is_opened_again(tmp_path: Path, whole: Path):
    small = SMALL.replace("[model]", '[model]\nkind = "llama"').replace("dropout = 0.1", "")
    small = small.replace("steps = 36", "steps = 2").replace("[tokenizer]", '[tokenizer]\nkind = "bpe"')
    path = mine(tmp_path, small.replace("d_model = 16", "d_model = 32"))
    assert call("train", path, "--folder", tmp_path / "run").exit_code == 0
    file = tmp_path / "it.gguf"
    shown = call("export", tmp_path / "run", file)
    assert shown.exit_code == 0, shown.stderr
    assert f"{file.stat().st_size:,} bytes" in shown.stdout
    ours, again = open_run(tmp_path / "run"), open_model(file)
    ids = ours.tokenizer.encode("To be, or not")
    assert again.encode("To be, or not") == ids
    assert again.stop_ids == (ours.end_id,)
    with torch.no_grad():
        logits = [model(torch.tensor([ids[:16]])) for model in (ours.model, again.model)]
    torch.testing.assert_close(*logits, atol=0.02, rtol=0)  # 8 bits
    refused = call("export", whole / "run", file)
    assert refused.exit_code == 2
    assert 'model.kind = "llama"' in refused.stderr
