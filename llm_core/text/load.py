"""A `tokenizer.json` of any kind: the file says which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.unigram_fast import UnigramTokenizer
from llm_core.text.wordpiece_fast import WordPieceTokenizer

Loaded = BPETokenizer | UnigramTokenizer | WordPieceTokenizer
LOADERS: dict[str, Callable[[str | Path], Loaded]] = {
    "BPE": BPETokenizer.load,
    "WordPiece": WordPieceTokenizer.load,
    "Unigram": UnigramTokenizer.load,
}


def load_tokenizer(path: str | Path) -> Loaded:
    """The tokenizer that a `tokenizer.json` describes: byte-pair encoding, WordPiece or Unigram.

    Raises:
        ValueError: it is no JSON, says no kind or another one, or asks for something that this package does not do.
        OSError: the file cannot be read.

    Chapter: 2.2, Tokenization.
    """
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON file ({error})") from None
    model = said.get("model") if isinstance(said, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    if kind is None and isinstance(model, dict) and "merges" in model:
        kind = "BPE"  # files from before the entry existed
    if kind not in tuple(LOADERS):  # what it says may be anything
        raise ValueError(
            f'{path}: "model": {{"type": ...}} must be one of {", ".join(LOADERS)}: got {kind!r}. '
            "Is it the tokenizer.json of the package tokenizers?"
        )
    return LOADERS[kind](path)
