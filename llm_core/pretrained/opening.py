"""A model to write with, whatever it comes as: a name, a GGUF file, or a folder of Hugging Face's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_core.models.gpt import GPT
from llm_core.models.llama import Llama
from llm_core.pretrained.chat import END, SMOLLM2_CHAT, START, ChatML
from llm_core.pretrained.files import CONFIG, end_ids, entry, read_config
from llm_core.pretrained.gguf import find_smollm2, gguf_metadata, gguf_tokenizer, load_gguf
from llm_core.pretrained.gpt2 import load_gpt2
from llm_core.pretrained.llama import load_llama
from llm_core.text.load import Loaded, load_tokenizer
from llm_core.text.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class Opened:
    """What it takes to write with a model.

    Args:
        name: what it is called.
        model: in eval mode.
        tokenizer: the one that it was trained with.
        stop_ids: the tokens that end a text.
        chat: messages -> the text that the model continues; None: it was not trained to answer, as far as one can see.
    """

    name: str
    model: Llama | GPT
    tokenizer: Loaded
    stop_ids: tuple[int, ...]
    chat: Callable[[Sequence[dict[str, str]]], str] | None

    def encode(self, text: str) -> list[int]:
        """The ids of a text that the model is to continue, with the special tokens that belong around it.

        Llama 2 for one was trained on texts that begin with <s>. What `chat` makes has all that it needs, and is for
        the tokenizer alone.
        """
        return self.tokenizer.encode(text, add_special_tokens=True)


def open_model(source: str | Path, *, dtype: torch.dtype | None = torch.float32) -> Opened:
    """Load a model and what belongs to it.

    Args:
        source: "smollm2" for the installed SmolLM2-135M-Instruct; a .gguf file; or a folder with config.json,
            model.safetensors and tokenizer.json.
        dtype: of the weights; None: as they are stored. For folders; a GGUF file becomes float32.

    Raises:
        ValueError: there is no such thing, a file is missing or broken, or the model is of a kind that cannot be
            opened so. The message names the file.
    """
    if source == SMOLLM2:
        return _opened_gguf(SMOLLM2, find_smollm2(), ChatML(SMOLLM2_CHAT.system))
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return _opened_gguf(path.stem, path, ChatML())
    if path.is_dir():
        return _opened_folder(path, dtype)
    raise ValueError(
        f"{source}: there is no such model. Give a folder with {CONFIG} and {TOKENIZER}, a .gguf file, or {SMOLLM2!r}"
    )


def _opened_gguf(name: str, file: Path, chat: ChatML) -> Opened:
    tokenizer = gguf_tokenizer(file)
    end = gguf_metadata(file).get("tokenizer.ggml.eos_token_id")
    stops = () if end is None else (int(end),)
    return Opened(name, load_gguf(file).eval(), tokenizer, _with_end(stops, tokenizer), _form(tokenizer, chat))


def _opened_folder(folder: Path, dtype: torch.dtype | None) -> Opened:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: there is no {CONFIG} in it, so it holds no model")
    if not (folder / TOKENIZER).is_file():
        raise ValueError(
            f"{folder}: there is no {TOKENIZER} in it; `huggingface-cli download` brings it with the model"
        )
    kind = entry(read_config(folder), "model_type", str)
    model = load_gpt2(folder, dtype=dtype) if kind == "gpt2" else load_llama(folder, dtype=dtype)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    return Opened(
        folder.resolve().name,
        model.eval(),
        tokenizer,
        _with_end(end_ids(folder), tokenizer),
        _form(tokenizer, ChatML()),
    )


def _form(tokenizer: Tokenizer, chat: ChatML) -> ChatML | None:
    """The chat form, if the vocabulary has its tokens."""
    return chat if START in tokenizer.vocabulary and END in tokenizer.vocabulary else None


def _with_end(stops: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The stop tokens, and the one that ends a message."""
    end = tokenizer.vocabulary.ids.get(END)
    return stops if end is None or end in stops else (*stops, end)
