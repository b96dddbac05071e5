"""GGUF files that we write, read back by our own loader, by gguf and by transformers."""

from __future__ import annotations

import errno
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_files import theirs_of
from tokenizers import Tokenizer as TheirTokenizer

from llm_core.files import NotWritten
from llm_core.layers.positions import Llama3Scaling, rotate_neighbours
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.gguf import gguf_metadata, gguf_tokenizer, load_gguf
from llm_core.pretrained.gguf_saving import KINDS, save_gguf
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.pretokenize import CL100K

TEXT = "The state of the Union is strong, and 1,234 naïve people said so. 大好き " * 3
TOKENIZER = BPETokenizer.train(TEXT, 300, special_tokens=["<|endoftext|>"], min_count=1)
END = "<|endoftext|>"
CONFIG = LlamaConfig(300, 24, 2, 4, 2, 32, 64)


def a_model(config: LlamaConfig = CONFIG) -> Llama:
    torch.manual_seed(0)
    model = Llama(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=False, n_kv_heads=4),
        replace(CONFIG, d_model=48, n_heads=3, n_kv_heads=1, d_head=32, rope_base=1e6, norm_eps=1e-6),
        replace(CONFIG, d_head=8),
    ],
    ids=["tied", "own head", "odd heads of a width of their own", "the width that they would have"],
)
def test_what_is_saved_is_loaded_by_us_and_by_transformers(tmp_path, ids, config):
    model = a_model(config)
    file = save_gguf(tmp_path / "a.gguf", model, TOKENIZER, end=END, kind="F32")
    with torch.no_grad():
        ours = model(ids)
        assert torch.equal(load_gguf(file)(ids), ours)
        torch.testing.assert_close(theirs_of(file)(ids).logits, ours, atol=1e-5, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_8_bits_move_no_weight_by_more_than_half_a_step(tmp_path):
    model = a_model()
    loaded = dict(load_gguf(save_gguf(tmp_path / "a.gguf", model, TOKENIZER)).named_parameters())
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(loaded[name], weight)
            continue
        blocks, moved = weight.reshape(-1, 32), (loaded[name] - weight).reshape(-1, 32).abs()
        step = blocks.abs().amax(dim=1, keepdim=True) / 127
        # The scale itself is rounded to 16 bits: 127 steps, each off by 2^-11 of itself.
        assert (moved <= step * (0.5 + 127 * 2**-11)).all(), name
        assert moved.max() > 0


def test_8_bits_are_those_of_gguf_and_take_a_quarter(tmp_path):
    model = a_model()
    sizes = {kind: save_gguf(tmp_path / kind, model, TOKENIZER, kind=kind).stat().st_size for kind in KINDS}
    n_matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert sizes["F32"] - sizes["F16"] == pytest.approx(2 * n_matrices, rel=0.01)
    assert sizes["F32"] - sizes["Q8_0"] == pytest.approx((4 - 34 / 32) * n_matrices, rel=0.01)
    up = next(t for t in gguf.GGUFReader(tmp_path / "Q8_0").tensors if t.name == "blk.1.ffn_up.weight")
    weight = model.blocks[1].feed_forward.up.weight.detach().numpy()
    assert np.array_equal(up.data, gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0))


def test_tokenizer_gives_the_same_ids_when_read_back(tmp_path):
    file = save_gguf(tmp_path / "a.gguf", a_model(), TOKENIZER, end=END, name="the model")
    ours, theirs = gguf_tokenizer(file), TheirTokenizer.from_str(TOKENIZER.to_json())
    for text in ("", TEXT, f"{END}The Union{END}", "naïve 𝄞 12 345"):
        assert ours.encode(text) == TOKENIZER.encode(text) == theirs.encode(text).ids
    said = gguf_metadata(file)
    assert said["tokenizer.ggml.eos_token_id"] == TOKENIZER.special_tokens[END]
    assert said["general.name"] == "the model"


def test_without_an_end_the_file_names_none(tmp_path):
    assert "tokenizer.ggml.eos_token_id" not in gguf_metadata(save_gguf(tmp_path / "a.gguf", a_model(), TOKENIZER))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"window": 8}, "window"),
        ({"rope_turn": rotate_neighbours}, "rope_turn"),
        ({"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192)}, "rope_scaling"),
        ({"qk_norm": True}, "qk_norm"),
        ({"n_experts": 2, "experts_per_token": 1}, "n_experts"),
    ],
)
def test_what_a_file_cannot_say_is_refused(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        save_gguf(tmp_path / "a.gguf", a_model(replace(CONFIG, **change)), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_slips_are_clear_errors(tmp_path):
    model, file = a_model(), tmp_path / "a.gguf"
    with pytest.raises(ValueError, match="300 tokens and the tokenizer 257"):
        save_gguf(file, model, BPETokenizer.train("a", 257, special_tokens=[END]))
    with pytest.raises(ValueError, match="'<end>' is no special token"):
        save_gguf(file, model, TOKENIZER, end="<end>")
    cut_otherwise = BPETokenizer(TOKENIZER.vocabulary, TOKENIZER.merges, split=CL100K, special_tokens=[END])
    with pytest.raises(ValueError, match="gpt-2, smollm are the names"):
        save_gguf(file, model, cut_otherwise)
    with pytest.raises(ValueError, match=r"one of Q8_0, F16, F32: got 'Q4_0'"):
        save_gguf(file, model, TOKENIZER, kind="Q4_0")
    with pytest.raises(ValueError, match=r"rows of .* have 48.*F16"):
        save_gguf(file, a_model(replace(CONFIG, d_model=48)), TOKENIZER)
    gpt = GPT(GPTConfig(300, 24, 1, 2, 32))
    with pytest.raises((ValueError, TypeError), match=r"Llama"):
        save_gguf(file, gpt, TOKENIZER)
    with pytest.raises(NotWritten, match=r"nowhere"):
        save_gguf(tmp_path / "nowhere" / "a.gguf", model, TOKENIZER)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(NotWritten, match="No space left"):
        save_gguf(file, a_model(), TOKENIZER)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
