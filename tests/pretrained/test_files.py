"""Checkpoints read from one file or several, written whole or not at all, and refused with what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_core.pretrained.files import (
    begin_id,
    check_config,
    end_ids,
    entry,
    forbidden_ids,
    naming,
    obeyed,
    pad_id,
    read_config,
    read_shapes,
    read_weights,
    write,
)

TENSORS = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(1.5, dtype=torch.bfloat16)}


def assert_same(found, expected=None):
    expected = TENSORS if expected is None else expected
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def sharded(folder, weight_map=None):
    save_file({"a": TENSORS["a"]}, folder / "model-1.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "model-2.safetensors")
    weight_map = weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "deep" / "folder", {"n": 1, "name": "é"}, TENSORS)
    assert read_config(tmp_path / "deep" / "folder") == {"n": 1, "name": "é"}
    assert_same(read_weights(tmp_path / "deep" / "folder"))
    assert_same(load_file(tmp_path / "deep" / "folder" / "model.safetensors"))
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    write(tmp_path / "deep" / "folder", {"n": 2}, {"a": TENSORS["a"]})
    assert_same(read_weights(str(tmp_path / "deep" / "folder")), {"a": TENSORS["a"]})


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path):
    write(tmp_path, {"n": 1}, TENSORS)
    with pytest.raises(TypeError):
        write(tmp_path, {"n": object()}, {"a": torch.zeros(1)})
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError):
        write(tmp_path, {"n": 2}, {"a": shared, "b": shared})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert read_config(tmp_path) == {"n": 1}
    assert_same(read_weights(tmp_path))


def test_several_files_and_an_index_are_one_checkpoint(tmp_path):
    sharded(tmp_path)
    assert_same(read_weights(tmp_path))
    assert read_shapes(tmp_path) == {"a": (3, 4), "b": (5,), "c": ()}


def test_one_file_wins_over_an_index_that_was_left_behind(tmp_path):
    sharded(tmp_path)
    write(tmp_path, {}, {"a": torch.zeros(2)})
    assert_same(read_weights(tmp_path), {"a": torch.zeros(2)})
    assert read_shapes(tmp_path) == {"a": (2,)}


def test_shapes_are_read_without_the_weights(tmp_path):
    write(tmp_path, {}, TENSORS)
    assert read_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


BOTH = pytest.mark.parametrize("read", [read_weights, read_shapes])


@BOTH
def test_missing_and_broken_weights_are_named(read, tmp_path):
    with pytest.raises(ValueError, match=r"there is no model.safetensors in .*pickles"):
        read(tmp_path)
    write(tmp_path, {}, TENSORS)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for broken in (b"", whole[:5], whole[:60], whole[:-1], b"\xff" * 100):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match=r"is no whole safetensors file \(.+\): download it again"):
            read(tmp_path)


@BOTH
@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-3.safetensors"}, "there is no model-3.safetensors in"),
        ({"a": "../model-1.safetensors"}, 'has no "weight_map" from tensors to files beside it'),
        ({"a": "/etc/passwd"}, 'has no "weight_map" from tensors to files beside it'),
        ([1, 2], 'has no "weight_map"'),
        ({"a": None}, r'index.json has no .* it says "a": null'),
        ({"a": 3}, r'index.json has no .* it says "a": 3'),
        ({"a": {"b": []}}, r'index.json has no .* it says "a": {"b": '),
        ({"a": ""}, r'index.json has no .* it says "a": ""'),
    ],
)
def test_an_index_names_files_beside_it(read, weight_map, message, tmp_path):
    sharded(tmp_path, weight_map)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match='has no "weight_map"'):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no config.json in .*give the folder of a checkpoint"),
        (b"{", r"config.json is not JSON \("),
        (b"\xff\xfe", "config.json is not JSON"),
        (b"[1]", "holds no JSON object: got list"),
        (b"[" * 200_000, "config.json is not JSON"),
        (b'{"n": ' + b"9" * 9999 + b"}", "config.json is not JSON"),
    ],
)
def test_a_config_that_cannot_be_read_is_an_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_what_a_config_says_is_known_or_refused():
    check_config(
        {"size": 3, "act": "silu", "torch_dtype": "bfloat16", "new": None, "drop": 0},
        read=["size"],
        fixed={"act": "silu", "drop": 0.0, "absent": 1},
    )
    with pytest.raises(ValueError, match='"act": "gelu", but this model only does "silu"'):
        check_config({"act": "gelu"}, read=[], fixed={"act": "silu"})
    with pytest.raises(ValueError, match='"act": null, but this model only does "silu"'):
        check_config({"act": None}, read=[], fixed={"act": "silu"})
    with pytest.raises(ValueError, match='"on": 0, but this model only does false'):
        check_config({"on": 0}, read=[], fixed={"on": False})
    with pytest.raises(ValueError, match='"new": false, which this loader does not know'):
        check_config({"size": 3, "new": False}, read=["size"], fixed={})


def test_entries_have_the_type_that_is_asked_for():
    config = {"n": 3, "x": 1.5, "on": True, "none": None, "text": "3"}
    assert entry(config, "n", int) == 3
    assert entry(config, "x", float) == 1.5
    assert entry(config, "on", bool) is True
    as_float = entry(config, "n", float)
    assert (as_float, type(as_float)) == (3.0, float)
    assert entry(config, "none", int, 7) == entry(config, "absent", int, 7) == 7
    assert entry(config, "absent", bool, False) is False
    for key, kind in [("on", int), ("x", int), ("text", int), ("n", bool), ("on", float), ("n", str)]:
        with pytest.raises(ValueError, match=f'"{key}": .*, which is no {kind.__name__}'):
            entry(config, key, kind)
    for key in ("none", "absent"):
        with pytest.raises(ValueError, match=f'config.json has no "{key}"'):
            entry(config, key, int)


def test_entries_that_are_absent_have_the_default_and_null_is_none_where_it_may_be():
    config = {"n": 3, "none": None, "on": 1, "nan": float("nan"), "huge": 10**400}
    config |= {"inf": float("inf"), "inexact": 2**53 + 1}
    assert obeyed(config, "n", 7) == 3
    assert obeyed(config, "absent", 7) == 7
    assert obeyed(config, "none", 7, null=True) is None
    assert type(obeyed(config, "n", 7.0)) is float
    for key, default in [
        ("none", 7),
        ("on", False),
        ("nan", 1.0),
        ("huge", 1.0),
        ("n", "x"),
        ("inf", 1.0),
        ("inexact", 1.0),
    ]:
        with pytest.raises(ValueError, match=f'"{key}": .*, which is no {type(default).__name__}'):
            obeyed(config, key, default)


def test_errors_of_a_model_are_told_with_the_entries():
    message = r'n_heads is 0. config.json says "heads": 0, no "width"'
    with pytest.raises(ValueError, match=message), naming({"heads": 0}, ["heads", "width"]):
        raise ValueError("n_heads is 0")


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 9]}, (7, 9)),
        ({"eos_token_id": [0, 5]}, {"eos_token_id": None}, (0, 5)),
        ({"eos_token_id": None}, {}, ()),
        ({}, None, ()),
    ],
)
def test_ids_that_end_a_text_are_those_that_transformers_stops_at(config, generation, expected, tmp_path):
    write(tmp_path, config, TENSORS)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_ids(tmp_path) == expected


def test_ids_that_begin_and_fill(tmp_path):
    write(tmp_path, {"bos_token_id": 1, "pad_token_id": None}, TENSORS)
    assert (begin_id(tmp_path), pad_id(tmp_path)) == (1, None)
    (tmp_path / "generation_config.json").write_text('{"pad_token_id": 0}')
    assert (begin_id(tmp_path), pad_id(tmp_path)) == (1, 0)


@pytest.mark.parametrize("bad", ["2", True, -1, 1.5, [2, None], {"id": 2}])
def test_what_is_no_id_is_refused(bad, tmp_path):
    write(tmp_path, {"eos_token_id": bad, "bos_token_id": bad}, TENSORS)
    for read, key in ((end_ids, "eos_token_id"), (begin_id, "bos_token_id")):
        with pytest.raises(ValueError, match=f'"{key}": .*which is no id'):
            read(tmp_path)


def test_what_must_not_be_written_is_read_without_what_ends_a_text(tmp_path):
    write(tmp_path, {"bad_words_ids": [[4], [1, 2]], "eos_token_id": [1, 7]}, TENSORS)
    assert forbidden_ids(tmp_path) == ((4,), (1, 2))
    (tmp_path / "generation_config.json").write_text('{"bad_words_ids": [[7], [7, 7], [1], [3]]}')
    assert forbidden_ids(tmp_path) == ((7, 7), (3,))
    (tmp_path / "generation_config.json").write_text('{"bad_words_ids": null, "eos_token_id": 4}')
    assert forbidden_ids(tmp_path) == ((1, 2),)
    write(tmp_path, {}, TENSORS)
    assert forbidden_ids(tmp_path) == ()


@pytest.mark.parametrize("bad", [3, [3], "3", [[]], [[True]], [[-1]], [[1.0]], [["3"]], {"3": 1}, [[None]]])
def test_what_is_no_list_of_lists_of_ids_is_refused(bad, tmp_path):
    write(tmp_path, {"bad_words_ids": bad}, TENSORS)
    with pytest.raises(ValueError, match=r'"bad_words_ids": .*which is no'):
        forbidden_ids(tmp_path)
