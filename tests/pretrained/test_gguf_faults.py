"""GGUF files with something wrong: each is read as it says, or refused with a ValueError that names what is wrong.

Files are written by the package gguf, and models are held to those that transformers reads from the same file.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue
from gguf_files import shapes, theirs_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llm_core.pretrained import gguf as ours
from llm_core.pretrained.gguf import gguf_tokenizer, load_gguf

NAMES = ["<unk>", "<|end|>", "<think>", "    ", "[PAD]"]
LETTERS = sorted(set("theinkunkpadxPAD<>|/s[]Ġ"))  # enough for the texts here, and few to be read again and again
TOKENS = [*LETTERS, "he", "Ġt", "Ġthe", *NAMES]
TYPES = [1] * (len(LETTERS) + 3) + [2, 3, 4, 4, 5]
END = TOKENS.index("<|end|>")
MERGES = ["h e", "Ġ t", "Ġt he"]
IDS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
TEXT = "the the<think>x    </s><|end|>[PAD] h<unk>"

Edit = Callable[[GGUFWriter], None]


def write(path: Path, edit: Edit = lambda writer: None, *, kind: GGMLQuantizationType | None = None) -> Path:
    """A small model with a small tokenizer; `edit` is given the writer before anything is written."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(40)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_vocab_size(50)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_key_value("llama.attention.key_length", 8, GGUFValueType.UINT32)
    writer.add_key_value("llama.attention.value_length", 8, GGUFValueType.UINT32)
    writer.add_key_value("llama.expert_count", 0, GGUFValueType.UINT32)
    writer.add_string("llama.rope.scaling.type", "none")
    writer.add_float32("llama.rope.scaling.factor", 1.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    for key in ("bos", "eos", "unknown", "padding"):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", 7)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        writer.add_bool(f"tokenizer.ggml.{key}", False)
    writer.add_string("general.name", "small")
    writer.add_string("general.type", "model")
    writer.add_uint32("general.file_type", 0)
    draw = np.random.default_rng(0)
    for name, shape in shapes().items():
        numbers = draw.normal(float("norm" in name), 0.3, shape).astype(np.float32)
        of = kind if kind is not None and len(shape) == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(numbers, of), raw_dtype=of)
    edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def setting(key: str, value: Any) -> Edit:
    def edit(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if value is not None:
            kind = GGUFValueType.UINT32 if type(value) is int and value >= 0 else GGUFValueType.get_type(value)
            sub = GGUFValueType.get_type(value[0]) if isinstance(value, list) and value else None
            writer.kv_data[0][key] = GGUFValue(value=value, type=kind, sub_type=sub)

    return edit


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found.logits if hasattr(found, "logits") else found


def other_values(key: str, value: Any) -> Iterator[Any]:
    """None stands for an entry that is left out: the format has no null."""
    yield from (None, "other", 2.5)
    if key.startswith("llama.") or key in ("general.architecture", "general.type"):
        yield from (True, 0, 1, -1, 2**31, float("nan"), float("inf"), [1, 2])
    if key.startswith("llama.") and isinstance(value, int | float):
        yield from (value * 2, value + 1, str(value))


def entries(path: Path) -> dict[str, Any]:
    return {key: value for key, value in ours.gguf_metadata(path).items() if not key.startswith("GGUF.")}


def test_every_entry_of_the_model_is_obeyed_or_refused_by_name(tmp_path):
    base = write(tmp_path / "base.gguf")
    expected, verdicts = logits(load_gguf(base)), Counter[str]()
    torch.testing.assert_close(expected, logits(theirs_of(base)), rtol=1e-5, atol=2e-5)
    for key, value in entries(base).items():
        for i, other in enumerate(other_values(key, value)):
            if (type(other), other) == (type(value), value) or (key, other) == ("llama.context_length", 1):
                continue  # the same value, and one that is obeyed: the text is longer than that
            file = write(tmp_path / f"{key}-{i}.gguf", setting(key, other))
            try:
                found = logits(load_gguf(file))
            except ValueError as error:
                verdicts["refused" if key in str(error) else f"refused without its name: {key}={other}: {error}"] += 1
            else:
                if key.startswith("llama.") and "scaling" not in key and not isinstance(other, bool):
                    torch.testing.assert_close(found, logits(theirs_of(file)), rtol=1e-5, atol=2e-5)
                    verdicts["as transformers"] += 1
                else:
                    torch.testing.assert_close(found, expected, rtol=0, atol=0)
                    verdicts["no difference"] += 1
            file.unlink()
    assert verdicts.keys() == {"refused", "as transformers", "no difference"}, verdicts
    assert verdicts["refused"] > 120, verdicts
    assert verdicts["as transformers"] > 10, verdicts


@pytest.mark.parametrize(("said", "factor"), [({"type": "linear"}, 4.0), ({"type": None}, 4.0), ({}, None)])
def test_slower_positions_are_obeyed(said, factor, tmp_path):
    def edit(writer: GGUFWriter) -> None:
        for key, value in (said | {"factor": factor or 1.0}).items():
            setting(f"llama.rope.scaling.{key}", value)(writer)

    file = write(tmp_path / "it.gguf", edit)
    theirs = theirs_of(file)
    if factor:  # transformers leaves it out when it reads a GGUF file, so it is told
        theirs.config.rope_parameters = {"rope_type": "linear", "factor": factor, "rope_theta": 500.0}
        theirs.model.rotary_emb = LlamaRotaryEmbedding(theirs.config)
    torch.testing.assert_close(logits(load_gguf(file)), logits(theirs), rtol=1e-5, atol=2e-5)


# --- tensors ---


KINDS = [kind for kind in GGMLQuantizationType if kind in gguf.quants._type_traits or kind.name in ("F16", "F32")]


@pytest.mark.filterwarnings("ignore::RuntimeWarning:gguf.quants")  # random bytes are also scales beyond all numbers
@pytest.mark.parametrize("kind", GGMLQuantizationType)
def test_kinds_of_numbers_are_those_that_gguf_can_turn_into_weights(kind, tmp_path):
    # Rows of 256, as the formats with the largest blocks need. Any bytes are weights in such a format.
    rows, raw = {"token_embd.weight": (50, 256)}, np.random.default_rng(0)
    for name, shape in shapes().items():
        rows[name] = tuple({32: 256, 64: 256, 16: 128}.get(size, size) for size in shape)

    def edit(writer: GGUFWriter) -> None:
        for key in ("embedding_length", "feed_forward_length"):
            setting(f"llama.{key}", 256)(writer)
        for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            setting(f"llama.{key}", 64)(writer)
        writer.tensors[0].clear()
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for name, shape in rows.items():
            if len(shape) == 2:
                content = raw.integers(256, size=(shape[0], shape[1] // block * size), dtype=np.uint8)
                writer.add_tensor(name, content, raw_shape=content.shape, raw_dtype=kind)
            else:
                writer.add_tensor(name, np.ones(shape, dtype=np.float32))

    file = write(tmp_path / "it.gguf", edit)
    if kind not in KINDS:
        with pytest.raises(ValueError, match=rf"it.gguf: token_embd.weight is stored as {kind.name}, which"):
            load_gguf(file)
        return
    found = load_gguf(file).state_dict()
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "blk.1.ffn_down.weight":
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            actual = found["blocks.1.feed_forward.down.weight"].numpy()
            assert np.array_equal(actual, expected, equal_nan=True)


def test_every_tensor_that_is_missing_extra_or_of_another_shape_is_named(tmp_path):
    def changed(name: str, change: str) -> Edit:
        def edit(writer: GGUFWriter) -> None:
            tensors = writer.tensors[0]
            kept = tensors.pop(name)
            if change == "wider":
                shape = [size + 4 for size in kept.shape]
                writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
            if change == "renamed":
                tensors[f"{name}s"] = kept

        return edit

    for name in shapes():
        for change in ("missing", "wider", "renamed"):
            with pytest.raises(ValueError, match=rf"it.gguf: .*{re.escape(name)}"):
                load_gguf(write(tmp_path / "it.gguf", changed(name, change)))


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_is_obeyed(alignment, tmp_path):
    expected = logits(load_gguf(write(tmp_path / "base.gguf")))

    def edit(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)

    assert torch.equal(logits(load_gguf(write(tmp_path / "it.gguf", edit))), expected)


def test_flipped_and_missing_bytes_before_the_weights(tmp_path):
    file = write(tmp_path / "it.gguf")
    whole, verdicts = file.read_bytes(), Counter[str]()
    expected = load_gguf(file).state_dict()
    begin = gguf.GGUFReader(file).data_offset
    draw = random.Random(0)
    places = [*range(32), *range(begin - 1600, begin, 31), *draw.choices(range(32, begin), k=40)]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        file.write_bytes(broken)
        for read in (load_gguf, gguf_tokenizer):
            try:
                found = read(file)
            except ValueError:
                verdicts["refused"] += 1
            else:
                verdicts[type(found).__name__] += 1
                if read is load_gguf and place >= begin - 1600:  # where the tensors are listed
                    state = found.state_dict()
                    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items()), place
    for kept in (*range(0, begin, 211), len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"it.gguf is no whole GGUF file"):
            load_gguf(file)
    assert sum(verdicts.values()) == 2 * len(places)
    assert verdicts["refused"] > 120, verdicts


def test_a_list_of_a_billion_numbers_and_another_processors_bytes_are_refused_at_once(tmp_path):
    file = write(tmp_path / "it.gguf", setting("general.tags", [1, 2]))
    whole = file.read_bytes()
    at = whole.index(b"general.tags") + len(b"general.tags") + 8
    file.write_bytes(whole[:at] + (10**12).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(ValueError, match=r"no whole GGUF file .it ends after"):
        load_gguf(file)
    swapped = GGUFWriter(tmp_path / "swapped.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    swapped.add_tensor("x", np.ones(1, dtype=np.float32))
    for finish in (swapped.write_header_to_file, swapped.write_kv_data_to_file, swapped.write_tensors_to_file):
        finish()
    swapped.close()
    with pytest.raises(ValueError, match="order of another kind of processor"):
        load_gguf(tmp_path / "swapped.gguf")


# --- the tokenizer ---


def library() -> Tokenizer:
    """The engine behind tokenizer.json, given the tokens of each type as a converter would."""
    theirs = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, [tuple(m.split(" ")) for m in MERGES]))
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    theirs.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES[:2]])
    theirs.add_tokens([AddedToken(name, special=False, normalized=False) for name in NAMES[2:4]])
    return theirs


def test_types_of_tokens_are_those_of_added_tokens(tmp_path):
    tokenizer, theirs = gguf_tokenizer(write(tmp_path / "it.gguf")), library()
    draw = random.Random(0)
    for text in (TEXT, *("".join(draw.choices([*NAMES, "the", " ", "h", "<thin"], k=8)) for _ in range(200))):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text).ids, text
        assert tokenizer.decode(ids) == text == theirs.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
    assert set(tokenizer.special_tokens) == set(NAMES[:2])
    assert set(tokenizer.added_tokens) == set(NAMES[2:4])
    assert tokenizer.encode("<think>", allowed_special=()) == [TOKENS.index("<think>")]
    assert "[PAD]" in tokenizer.vocabulary


def test_every_entry_of_the_tokenizer_is_obeyed_or_refused_by_name(tmp_path):
    expected, verdicts = library().encode(TEXT).ids, Counter[str]()
    base = entries(write(tmp_path / "base.gguf"))
    n = len(TOKENS)
    lists: dict[str, list[Any]] = {
        "tokens": [TOKENS[:-1], [*TOKENS, "more"], [*TOKENS[:-1], "he"], [1, 2], "one", [*TOKENS[:-1], "a b"]],
        "token_type": [TYPES[:-1], [*TYPES, 1], ["1"] * n, [6] * n, [0] * n, [1.0] * n, [3] * n, 1],
        "merges": [["he"], ["h e e"], ["h x"], [" h"], [*MERGES, "h e"], [1, 2], "h e", ["", "h e"]],
    }
    for key, value in base.items():
        name = key.removeprefix("tokenizer.ggml.")
        others = [None, "other", 2.5, True, 7, [1, 2], *lists.get(name, [])]
        for i, other in enumerate(others):
            if (type(other), other) == (type(value), value):
                continue
            try:
                found = gguf_tokenizer(write(tmp_path / f"{key}-{i}.gguf", setting(key, other))).encode(TEXT)
            except ValueError as error:
                verdicts["refused" if key in str(error) else f"refused without its name: {key}={other}: {error}"] += 1
            else:
                verdicts["obeyed" if found == expected else f"other ids: {key}={other}"] += 1
                assert name not in lists, (key, other)
    assert verdicts.keys() == {"refused", "obeyed"}, verdicts
    assert verdicts["refused"] > 50, verdicts


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
def test_a_token_at_the_beginning_and_one_at_the_end_are_those_of_transformers(bos, eos, tmp_path):
    def edit(writer: GGUFWriter) -> None:
        for name, added, id_ in (("bos", bos, END), ("eos", eos, END + 1)):
            setting(f"tokenizer.ggml.add_{name}_token", added)(writer)
            setting(f"tokenizer.ggml.{name}_token_id", id_)(writer)

    tokenizer = gguf_tokenizer(write(tmp_path / "it.gguf", edit))
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_json()),
        bos_token=TOKENS[END],
        eos_token=TOKENS[END + 1],
        add_bos_token=bool(bos),
        add_eos_token=bool(eos),
    )
    theirs.update_post_processor()
    plain = tokenizer.encode("the")
    added = tokenizer.encode("the", add_special_tokens=True)
    assert added == theirs("the").input_ids == [END] * bool(bos) + plain + [END + 1] * bool(eos)
    pair = theirs("the", "he", return_token_type_ids=True)
    assert tokenizer.encode_pair("the", "he") == (pair.input_ids, pair.token_type_ids)
    assert tokenizer.tokens("the") == ["t", "he"]  # nothing is added unless asked for


@pytest.mark.parametrize("name", ["bos", "eos"])
@pytest.mark.parametrize("value", [None, -1, len(TOKENS), 2.0, True, "7"])
def test_a_flag_without_its_token_is_refused(name, value, tmp_path):
    def edit(writer: GGUFWriter) -> None:
        setting(f"tokenizer.ggml.add_{name}_token", True)(writer)
        setting(f"tokenizer.ggml.{name}_token_id", value)(writer)

    with pytest.raises(
        ValueError, match=rf'"tokenizer.ggml.add_{name}_token": True and "tokenizer.ggml.{name}_token_id'
    ):
        gguf_tokenizer(write(tmp_path / "it.gguf", edit))


@pytest.mark.parametrize("key", ["add_sep_token", "add_space_prefix", "new_setting"])
def test_a_tokenizer_that_adds_something_is_refused(key, tmp_path):
    file = write(tmp_path / "it.gguf", setting(f"tokenizer.ggml.{key}", True))
    with pytest.raises(ValueError, match=rf'it.gguf: the file says "tokenizer.ggml.{key}": True'):
        gguf_tokenizer(file)


def test_a_token_that_is_no_text_in_bytes_is_named(tmp_path):
    for kind in (1, 5):
        tokens, types = [*TOKENS, "<｜tool｜>"], [*TYPES, kind]

        def edit(writer: GGUFWriter, tokens: list[str] = tokens, types: list[int] = types) -> None:
            setting("tokenizer.ggml.tokens", tokens)(writer)
            setting("tokenizer.ggml.token_type", types)(writer)

        with pytest.raises(ValueError, match=rf"tokenizer.ggml.token_type.*id {len(TOKENS)}: the token '<｜tool｜>'"):
            gguf_tokenizer(write(tmp_path / "it.gguf", edit))
