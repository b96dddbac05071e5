"""T5: the same weights and the same config.json give transformers' logits, gradients and texts, or a clear refusal."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.generation.beam_search import beam_search
from llm_core.generation.generate import generate
from llm_core.models.t5 import T5, T5Config
from llm_core.pretrained.files import NOTES
from llm_core.pretrained.names import to_ours, to_theirs
from llm_core.pretrained.t5 import load_t5, save_t5, t5_config, t5_table

PAD, EOS, V = 0, 1, 23
SOURCE = torch.tensor([[5, 7, 9, 11, 3, 6, 2, 1], [8, 4, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]])
TARGET = torch.tensor([[0, 9, 8, 7, 6, 5, 12], [0, 3, 4, 1, 0, 0, 0], [0, 22, 21, 20, 1, 0, 0]])
# Few buckets that end early, so that a text of eight tokens has all of them.
SMALL = {
    "vocab_size": V, "d_model": 12, "d_kv": 5, "d_ff": 17, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6, "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
}  # fmt: skip
VERSIONS: dict[str, dict[str, Any]] = {
    "v1": {"feed_forward_proj": "relu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@cache
def their_model(version: str, untied: bool = False) -> transformers.T5ForConditionalGeneration:
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL, **VERSIONS[version]))
    if untied:
        theirs.lm_head.weight = nn.Parameter(torch.empty(V, 12))
    for name, parameter in theirs.named_parameters():  # no norm of one: a swapped pair would not show
        nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    return theirs.eval()


def run_theirs(theirs: nn.Module, source: Tensor, target: Tensor, pad: int = PAD) -> Tensor:
    logits: Tensor = theirs(input_ids=source, attention_mask=(source != pad).long(), decoder_input_ids=target).logits
    return logits


@pytest.fixture(scope="module", params=[("v1", False), ("v1.1", True)], ids=["v1", "v1.1"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A checkpoint as transformers writes it, and its model; the second has a head of its own."""
    version, untied = request.param
    theirs = their_model(version, untied)
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    if untied:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {**tensors, "lm_head.weight": theirs.lm_head.weight.data}, folder / "model.safetensors", {"format": "pt"}
        )
    return folder, theirs


def assert_same_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_logits_equal_transformers(saved):
    folder, theirs = saved
    ours = load_t5(folder)
    assert not ours.training
    with torch.no_grad():
        expected = run_theirs(theirs, SOURCE, TARGET)
        torch.testing.assert_close(ours(SOURCE, TARGET), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.1  # numbers that could differ
        long = torch.randint(2, V, (2, 40), generator=torch.Generator().manual_seed(0))  # far beyond all buckets
        torch.testing.assert_close(ours(long, long), run_theirs(theirs, long, long), rtol=0, atol=1e-5)


def test_gradients_equal_transformers(saved):
    folder, theirs = saved
    ours = load_t5(folder)
    targets = TARGET[:, 1:].masked_fill(TARGET[:, 1:] == PAD, -100).flatten()
    for model, logits in (
        (ours, ours(SOURCE, TARGET[:, :-1])),
        (theirs, run_theirs(theirs, SOURCE, TARGET[:, :-1])),
    ):
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
    expected = to_ours(t5_table(ours.config), {name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_checkpoint_goes_to_transformers_and_back_bit_by_bit(saved, tmp_path):
    folder, theirs = saved
    ours = load_t5(folder)
    save_t5(ours, tmp_path / "ours", eos_id=EOS)
    assert_same_tensors(load_file(tmp_path / "ours/model.safetensors"), load_file(folder / "model.safetensors"))
    again, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    said, expected = again.config.to_dict(), theirs.config.to_dict()
    assert {name for name in expected if expected[name] != said.get(name)} <= {
        "_name_or_path", "architectures", "dtype", "feed_forward_proj", "tie_word_embeddings",
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(run_theirs(again, SOURCE, TARGET), run_theirs(theirs, SOURCE, TARGET))
    assert load_t5(tmp_path / "ours").config == ours.config


def test_the_table_leads_there_and_back_bit_by_bit(saved):
    folder, _ = saved
    ours = load_t5(folder)
    table, tensors = t5_table(ours.config), load_file(folder / "model.safetensors")
    assert_same_tensors(to_theirs(table, ours.state_dict()), tensors)
    assert_same_tensors(to_ours(table, tensors), dict(ours.state_dict()))


def test_weights_come_in_the_type_that_is_asked_for(saved):
    for asked, expected in ((None, torch.float32), (torch.float64, torch.float64)):
        assert {p.dtype for p in load_t5(saved[0], dtype=asked).parameters()} == {expected}


# --- config.json, key by key ---

ABSENT = object()
# Of these transformers looks at the type, and refuses it or not; to the logits they are nothing.
NO_EFFECT = NOTES | {"classifier_dropout", "initializer_factor", "id2label", "label2id", "problem_type"}
# Keys that a config.json may have beside those that transformers writes: aliases, older names, and one of the future.
ALSO = {
    "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "head_dim": 5, "n_positions": 512,
    "output_past": True, "something_new": 1, "num_beams": 4, "tie_encoder_decoder": True,
}  # fmt: skip


def edits(key: str, value: Any) -> list[Any]:
    """What a key is changed to: gone, null, and other values of its type and of other types."""
    found: list[Any] = [ABSENT, None, "none", [], {"a": 1}]
    if isinstance(value, bool):
        found += [not value, 1]
    elif isinstance(value, int):
        found += [value + 1, value - 1, 2 * value + 4, 0, -1, float(value), True, 10**9, 2**70]
    elif isinstance(value, float):
        found += [value + 0.25, 10 * value, -1.0, 0, float("nan")]
    elif isinstance(value, str):
        found += [
            "relu",
            "gelu",
            "gelu_new",
            "silu",
            "swish",
            "gated-relu",
            "gated-silu",
            "gated-gelu",
            "gated",
            "tanh",
        ]
        found += ["a-b-c", "gated-gelu_new", "dense-relu", "gated-"]
    return [edit for edit in found if edit is ABSENT or json.dumps(edit) != json.dumps(value)]


def loaded_or_refused(folder: Path) -> tuple[T5 | None, str]:
    """The model, or the message of the ValueError; any other error is one of the test."""
    try:
        return load_t5(folder), ""
    except ValueError as error:
        return None, str(error)


def their_from(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    return model, report


def test_every_entry_of_the_config_is_obeyed_or_refused(saved, tmp_path):
    """Deleted, nulled, flipped: logits are transformers' to 1e-5, or a ValueError names the entry."""
    folder, _ = saved
    said = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    counts: Counter[str] = Counter()
    for key in sorted({*said, *ALSO, "decoder_start_token_id"}):
        for edit in [*edits(key, said.get(key, ALSO.get(key, 0))), *([ALSO[key]] if key in ALSO else [])]:
            config = {name: value for name, value in said.items() if name != key}
            if edit is not ABSENT:
                config[key] = edit
            (tmp_path / "config.json").write_text(json.dumps(config))
            counts["tried"] += 1
            ours, refused = loaded_or_refused(tmp_path)
            if ours is None:
                assert f'"{key}"' in refused, (key, edit, refused)
                counts["refused"] += 1
                continue
            try:
                theirs, report = their_from(tmp_path)
            except Exception:
                assert key in NO_EFFECT, (key, edit)
                counts["only ours"] += 1
                continue
            assert not report["missing_keys"], (key, edit)
            with torch.no_grad():
                expected = run_theirs(theirs, SOURCE, TARGET, ours.config.pad_id)
                got = ours(SOURCE, TARGET)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5, msg=f"{key}: {edit}")
            counts["equal"] += 1
    print(dict(counts))  # pytest -s shows it
    assert counts["tried"] >= 440
    assert counts["equal"] >= 120
    assert counts["refused"] >= 280


def test_what_the_published_configs_say_is_understood():
    """The entries of t5-small and of google/flan-t5-small, from public copies."""
    first = json.loads("""{
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_heads": 8, "num_layers": 6, "output_past": true, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "task_specific_params": {}, "vocab_size": 32128}""")
    ours = t5_config(first)
    assert (ours.n_layers, ours.n_decoder_layers, ours.activation, ours.gated) == (6, 6, "relu", False)
    assert (ours.tied, ours.scaled_logits, ours.max_distance) == (True, True, 128)
    flan = json.loads("""{
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "n_positions": 512, "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": true,
        "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": false, "transformers_version": "4.23.1", "use_cache": true, "vocab_size": 32128}""")
    for config, millions, untied in ((first, 60.5, False), (flan, 77.0, True)):
        with torch.device("meta"):
            model = T5(t5_config(config, tied=not untied))
            theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
        head = config["vocab_size"] * config["d_model"] if untied else 0
        assert model.n_parameters() == sum(p.numel() for p in theirs.parameters()) + head
        assert round(model.n_parameters() / 1e6, 1) == millions
    assert (model.config.activation, model.config.gated, model.config.scaled_logits) == ("gelu_tanh", True, False)


def test_copies_of_the_table_are_held_to_be_copies(saved, tmp_path):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    shared = tensors["shared.weight"]
    copies = {name: shared.clone() for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}
    save_file({**tensors, **copies, unread: torch.ones(8, 3)}, tmp_path / "model.safetensors")  # as the first ones
    assert_same_tensors(load_t5(tmp_path).state_dict(), load_t5(folder).state_dict())
    save_file({**tensors, "decoder.embed_tokens.weight": shared + 1}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"decoder\.embed_tokens\.weight and shared\.weight|shared\.weight and decoder"
    ):
        load_t5(tmp_path)


def test_weights_that_are_not_those_of_the_config_are_refused(saved, tmp_path):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = "decoder.block.2.layer.1.EncDecAttention.q.weight"
    for wrong, message in (
        ({key: value for key, value in tensors.items() if key != name}, f"lacks {name}"),
        ({**tensors, name: torch.zeros(15, 13)}, r"\(15, 13\) among the weights, \(15, 12\) by the config"),
        ({**tensors, "decoder.block.3.layer.0.SelfAttention.q.weight": torch.zeros(15, 12)}, "4 layers of the decoder"),
        ({**tensors, "decoder.block.2.layer.3.q.weight": torch.zeros(15, 12)}, "has not"),
        ({key: value for key, value in tensors.items() if key != "shared.weight"}, r"lacks shared\.weight"),
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_t5(tmp_path)


def test_a_model_that_could_not_end_is_not_written(tmp_path):
    model = T5(T5Config(V, 1, 1, 1, 8, 4, 8))
    for eos_id in (-1, V):
        with pytest.raises(ValueError, match=f"got {eos_id}"):
            save_t5(model, tmp_path / "none", eos_id=eos_id)
    assert not (tmp_path / "none").exists()


# --- generation ---


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> tuple[T5, nn.Module, Tensor]:
    """Ours after learning for a moment to turn a text round, the same in transformers, and texts to turn."""
    generator = torch.Generator().manual_seed(0)

    def texts(n: int) -> tuple[Tensor, Tensor]:
        """Sources `text </s>` and targets `<pad> text backwards </s>`, of up to five tokens, padded."""
        source, target = torch.full((n, 6), PAD), torch.full((n, 7), PAD)
        for row in range(n):
            length = int(torch.randint(1, 6, (), generator=generator))
            text = torch.randint(2, 10, (length,), generator=generator)
            source[row, : length + 1] = torch.cat([text, torch.tensor([EOS])])
            target[row, 1 : length + 2] = torch.cat([text.flip(0), torch.tensor([EOS])])
        return source, target

    torch.manual_seed(0)
    ours = T5(T5Config(V, 2, 2, 2, 16, 6, 24, activation="gelu_tanh", gated=True, n_buckets=8, max_distance=16))
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
    for _ in range(60):
        source, target = texts(32)
        logits = ours(source, target[:, :-1])
        targets = target[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(targets == PAD, -100).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("writer")
    save_t5(ours, folder, eos_id=EOS)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    return ours.eval(), theirs, texts(12)[0]


def until_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def test_greedy_texts_equal_transformers_generate(writers):
    ours, theirs, source = writers
    expected = theirs.generate(
        source, attention_mask=(source != PAD).long(), num_beams=1, do_sample=False, max_new_tokens=6
    )[:, 1:].tolist()
    with torch.no_grad():
        got = generate(ours.given(source), torch.full((12, 1), PAD), 6, stop_id=EOS).tolist()
        anew = generate(ours.given(source), torch.full((12, 1), PAD), 6, stop_id=EOS, use_cache=False).tolist()
    assert got == anew
    for ids, wanted in zip(got, expected, strict=True):
        assert until_eos(ids) == until_eos(wanted)
    assert {EOS in ids for ids in got} == {True, False}  # worth comparing: some end and some do not, and they differ
    assert len({tuple(ids) for ids in got}) > 6


def test_beam_search_finds_transformers_texts(writers):
    ours, theirs, source = writers
    expected = theirs.generate(
        source, attention_mask=(source != PAD).long(), num_beams=3, do_sample=False, max_new_tokens=5,
        length_penalty=1.0, early_stopping=False, num_return_sequences=3, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    wanted = zip(expected.sequences[:, 1:].tolist(), expected.sequences_scores.tolist(), strict=True)
    with torch.no_grad():
        for row in source:
            for hypothesis in beam_search(
                ours.given(row[None]), torch.tensor([[PAD]]), 5, n_beams=3, n_best=3, stop_id=EOS
            )[0]:
                ids, score = next(wanted)
                assert list(hypothesis.ids) == until_eos(ids)
                assert hypothesis.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 3]])
def test_cached_decoding_equals_uncached(saved, chunks):
    folder, _ = saved
    given = load_t5(folder).given(SOURCE)
    with torch.no_grad():
        whole = given(TARGET)
        cache = given.new_cache(3, 7)
        parts = [given(part, cache) for part in TARGET.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
