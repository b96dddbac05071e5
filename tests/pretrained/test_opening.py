"""`open_model`: a name, a file or a folder, beside what transformers makes of the same folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from llm_core.generation.generate import generate
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained import opening
from llm_core.pretrained.chat import END, SMOLLM2_CHAT, START
from llm_core.pretrained.gpt2 import save_gpt2
from llm_core.pretrained.llama import save_llama
from llm_core.pretrained.opening import open_model
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.load import load_tokenizer
from llm_core.text.unigram_fast import UnigramTokenizer
from llm_core.text.wordpiece_fast import WordPieceTokenizer

TEXTS = ["the cat sat on the mat, and the dog sat on the cat. " * 3]


def saved(kind, folder, special=()):
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train(TEXTS, 290, special_tokens=special)
    sizes = {"vocab_size": 290, "context": 64, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32}
    if kind == "gpt2":
        save_gpt2(GPT(GPTConfig(**sizes)), folder)
    else:
        save_llama(Llama(LlamaConfig(**sizes, n_kv_heads=1)), folder, eos_id=3)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def test_a_text_begins_as_the_tokenizer_file_says(tmp_path):
    folder = saved("llama", tmp_path / "tiny", special=("<s>",))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = open_model(folder).encode("the cat")
    assert ids == theirs("the cat")["input_ids"]
    assert ids[0] == begin


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_writes_what_transformers_writes(kind, tmp_path):
    folder = saved(kind, tmp_path / "tiny")
    opened = open_model(str(folder))
    assert (opened.name, opened.chat, opened.model.training) == ("tiny", None, False)
    assert opened.stop_ids == (() if kind == "gpt2" else (3,))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = opened.tokenizer.encode("the cat sat")
    assert ids == tokenizer("the cat sat")["input_ids"]
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(ids) :]
    assert generate(opened.model, [ids], 8)[0].tolist() == expected.tolist()
    assert open_model(folder, dtype=torch.bfloat16).model.token_embedding.weight.dtype == torch.bfloat16


def test_a_chat_form_is_found_by_its_tokens(tmp_path):
    opened = open_model(saved("llama", tmp_path / "chat", special=(START, END)))
    assert opened.chat is not None
    text = opened.chat([{"role": "user", "content": "the cat"}])
    assert text == f"{START}user\nthe cat{END}\n{START}assistant\n"
    assert opened.stop_ids == (3, opened.tokenizer.vocabulary.ids[END])


def test_smollm2_by_its_name_and_by_its_file(smollm2_file, monkeypatch):
    # That the weights are read is test_gguf's matter, and takes its time.
    sizes = LlamaConfig(vocab_size=8, context=8, n_layers=1, n_heads=1, n_kv_heads=1, d_model=2, d_ff=2)
    monkeypatch.setattr(opening, "load_gguf", lambda file: Llama(sizes))
    by_name, by_file = open_model("smollm2"), open_model(smollm2_file)
    messages = [{"role": "user", "content": "Hello!"}]
    assert by_name.chat is not None
    assert by_name.chat(messages) == SMOLLM2_CHAT(messages)
    assert by_file.chat is not None
    assert not by_file.chat(messages).startswith(f"{START}system")  # a file does not say what the system says
    end = by_name.tokenizer.vocabulary.ids[END]
    assert by_name.stop_ids == by_file.stop_ids == (end,)
    assert (by_name.name, by_file.name) == ("smollm2", smollm2_file.stem)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: there is no such model\. Give a folder with config\.json"):
        open_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: there is no config\.json in it"):
        open_model(tmp_path / "empty")
    folder = saved("llama", tmp_path / "tiny")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tiny: there is no tokenizer\.json in it"):
        open_model(folder)
    shutil.copy(tmp_path / "tokenizer.json", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match='"model_type": "mamba"'):
        open_model(folder)
    (tmp_path / "text.gguf").write_text("no")
    with pytest.raises(ValueError, match=r"text\.gguf"):
        open_model(tmp_path / "text.gguf")


# --- tokenizers of any kind ---


def test_a_tokenizer_file_says_its_kind(tmp_path):
    for tokenizer in (
        BPETokenizer.train(TEXTS, 270),
        WordPieceTokenizer.train(TEXTS, 60),
        UnigramTokenizer.train(TEXTS, 40),
    ):
        path = tokenizer.save(tmp_path / "tokenizer.json")
        loaded = load_tokenizer(path)
        assert type(loaded) is type(tokenizer)
        assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "this is no JSON file"),
        ("[]", "got None"),
        ("{}", "got None"),
        ('{"model": 3}', "got None"),
        ('{"model": {"type": "WordLevel"}}', "must be one of BPE, WordPiece, Unigram: got 'WordLevel'"),
        ('{"model": {"type": ["BPE"]}}', "got ['BPE']"),
        ('{"model": {"type": "BPE"}}', "tokenizer.json"),
    ],
)
def test_no_tokenizer_is_said_to_be_none(tmp_path, content, part):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert part in str(error.value)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "tokenizer.json")
