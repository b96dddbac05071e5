"""What a run learns from: documents for training, documents held out, and the tokenizer and the ids made of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from llm_core.data import extraction
from llm_core.data.corpora import corpus_path, known, load_documents, load_split
from llm_core.data.shards import TokenShards
from llm_core.data.wikipedia import pages
from llm_core.data.wikitext import plain_text
from llm_core.recipes.config import ConfigError, DataConfig, TokenizerConfig
from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.load import Loaded, load_tokenizer
from llm_core.text.wordpiece_fast import WordPieceTokenizer

DUMPS = ("wikipedia-sample", "wikipedia-articles", "simple-wikipedia")
HELD_OUT = 10  # every tenth article
END = "<|endoftext|>"  # of byte-pair encodings; WordPiece has [SEP]


@dataclass(frozen=True)
class Texts:
    """The documents, each read anew whenever it is asked for: memory holds one of them."""

    training: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]]


def texts_of(data: DataConfig) -> Texts:
    """The documents that `[data]` names. Which are held out depends on nothing but the text.

    Of a dump and of extracted articles it is every tenth article; a corpus brings its own parts; of a file it is the
    last `validation_share`, from a line's beginning on.

    Raises:
        ConfigError: a file cannot be read or is no UTF-8.
        CorpusError: the corpus is not known, is not here, or has no parts.
    """
    if data.corpus in DUMPS:
        path = corpus_path(data.corpus)
        return _every_tenth(
            lambda: (plain_text(page.wikitext) for page in pages(path) if page.namespace == 0 and not page.redirect)
        )
    if data.corpus:
        name, split = data.corpus, known(data.corpus).split
        read = load_documents if split else (lambda name, part: [load_split(name, part)])
        read(name, "validation")  # an error of the corpus now, not after minutes
        return Texts(lambda: iter(read(name, "train")), lambda: iter(read(name, "validation")))
    if data.articles:
        folder = Path(data.articles)
        return _every_tenth(lambda: (article.text for article in extraction.articles(folder)))
    held_out = [_read(name, "data.validation_files") for name in data.validation_files]
    documents = [_read(name, "data.files") for name in data.files]
    if held_out or data.shards:
        return Texts(lambda: iter(documents), lambda: iter(held_out))
    cut = [_cut(text, data.validation_share) for text in documents]
    return Texts(lambda: (text for text, _ in cut), lambda: (text for _, text in cut))


def _every_tenth(documents: Callable[[], Iterator[str]]) -> Texts:
    def some(held_out: bool) -> Iterator[str]:
        for number, text in enumerate(documents(), 1):
            if (number % HELD_OUT == 0) is held_out:
                yield text

    return Texts(lambda: some(False), lambda: some(True))


def _read(name: str, where: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: {name} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} is no text in UTF-8: {error}") from None


def _cut(text: str, share: float) -> tuple[str, str]:
    place = text.find("\n", int(len(text) * (1 - share))) + 1 or int(len(text) * (1 - share))
    return text[:place], text[place:]


def tokenizer_of(config: TokenizerConfig, texts: Texts) -> Loaded:
    """The tokenizer that `[tokenizer]` names, trained on the documents for training unless there is a file.

    Where the text has no more pieces than fewer, there are fewer, and a warning says so.

    Raises:
        ConfigError: the file cannot be read, or the text or the size is too small to train one.
    """
    if config.file:
        try:
            return load_tokenizer(config.file)
        except OSError as error:
            raise ConfigError(f"tokenizer.file: {config.file} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise ConfigError(f"tokenizer.file: {error}") from None
    made: Loaded
    try:
        if config.kind == "wordpiece":
            made = WordPieceTokenizer.train(texts.training(), config.vocab_size, lowercase=config.lowercase)
        else:
            made = BPETokenizer.train(texts.training(), config.vocab_size, special_tokens=[END])
    except ValueError as error:
        raise ConfigError(f"tokenizer.vocab_size = {config.vocab_size}: {error}") from None
    if made.vocab_size < config.vocab_size:
        warnings.warn(
            f"the text gives {made.vocab_size:,} tokens, not the tokenizer.vocab_size = {config.vocab_size:,} that was "
            f"asked for: no more pairs are left to join. The model is made for {made.vocab_size:,}",
            stacklevel=2,
        )
    return made


def end_id(tokenizer: Loaded) -> int | None:
    """The token that stands after each document: [SEP] or <|endoftext|>; None where a tokenizer has neither."""
    ids = tokenizer.vocabulary.ids
    return next((ids[name] for name in ("[SEP]", END) if name in ids), None)


@dataclass(frozen=True)
class Document:
    """A held-out document: its ids, and the bytes that they stand for."""

    ids: list[int]
    n_bytes: int


def documents_of(tokenizer: Loaded, texts: Iterator[str]) -> list[Document]:
    """Ids of each document that is not empty, with the number of its bytes in UTF-8.

    For WordPiece they are those of the text as its normaliser leaves it, without the spaces between words that its ids
    cannot give back. Only then does "bits per byte" say what it costs to write down what the ids hold.
    """
    found = []
    for text in texts:
        if ids := tokenizer.encode(text, allowed_special=()):
            found.append(Document(ids, len(_kept(tokenizer, text).encode())))
    return found


def _kept(tokenizer: Loaded, text: str) -> str:
    return " ".join(tokenizer.normalise(text).split()) if isinstance(tokenizer, WordPieceTokenizer) else text


def stream_of(tokenizer: Loaded, texts: Iterator[str]) -> Int[Tensor, " N"]:
    """The ids of all documents one after another, each with the end token behind it."""
    end, parts = end_id(tokenizer), [np.empty(0, np.int32)]
    for text in texts:
        ids = tokenizer.encode(text, allowed_special=())
        parts.append(np.array(ids if end is None else [*ids, end], dtype=np.int32))
    return torch.from_numpy(np.concatenate(parts))


def fingerprint(tokens: TokenShards | Int[Tensor, " N"]) -> str:
    """A checksum of the tokens: a run goes on with those that it began with."""
    if isinstance(tokens, TokenShards):
        return tokens.fingerprint
    return hashlib.sha256(tokens.numpy().data).hexdigest()


def joined(documents: Sequence[Document], end: int | None, n: int) -> list[int]:
    """The first `n` ids of the documents, each with the end token behind it."""
    ids: list[int] = []
    for document in documents:
        ids += document.ids if end is None else [*document.ids, end]
        if len(ids) >= n:
            break
    return ids[:n]
