"""`tokenizer.json` of Unigram, both ways: T5's, XLM-RoBERTa's, and what the package tokenizers trains.

Used by `unigram_fast`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from llm_core.text import components, decoders, pretokenisers
from llm_core.text.components import refuse
from llm_core.text.pretokenize import SPACE, WHOLE
from llm_core.text.tokenizer_json import read_parts


def read(text: str, ignore: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `UnigramTokenizer` that a `tokenizer.json` asks for.

    Raises:
        ValueError: it is no Unigram, or asks for something that the class does not do. The message names it.
    """
    parts = read_parts(text, "Unigram", ignore)
    pieces = [(piece, float(score)) for piece, score in parts.model["vocab"]]
    for i, (piece, score) in enumerate(pieces):
        if not piece or not math.isfinite(score):
            refuse(f"model.vocab[{i}]", "a piece that is not empty, and a finite score", [piece, str(score)])
    unk_id = parts.setting("unk_id", int | None, None)
    if not pieces or (unk_id is not None and unk_id >= len(pieces)):
        refuse("model.unk_id", f"null, or the place of one of the {len(pieces)} pieces of model.vocab", unk_id)
    if parts.decoder is None:
        refuse("decoder", "there: it says what ▁ becomes", None)
    for step, is_first in _steps(parts.pre_tokeniser):
        if isinstance(step, pretokenisers.ByteLevel):
            refuse("pre_tokenizer.type", "one that leaves characters as they are", "ByteLevel")
        if isinstance(step, pretokenisers.Metaspace) and step.prepend_scheme == "first" and not is_first:
            refuse("pre_tokenizer.prepend_scheme", '"always" or "never", where it is not the first step', "first")
    names = {piece for piece, _ in pieces}
    if parts.setting("byte_fallback", bool, False):
        if not set(BYTES) <= names:
            refuse("model.byte_fallback", "false, where not all of <0x00> ... <0xFF> are pieces", True)
        if unk_id is None:  # the package tokenizers then stops at what is unknown, whatever the bytes
            refuse("model.unk_id", "the id of a piece, where model.byte_fallback is true", None)
    return {
        "pieces": pieces,
        "unk_id": unk_id,
        "byte_fallback": parts.setting("byte_fallback", bool, False),
        "more_tokens": [token for token in parts.vocabulary if token not in names],
        "special_tokens": parts.special,
        "added_tokens": parts.others,
        "normaliser": parts.normaliser,
        "split": parts.pre_tokeniser or WHOLE,
        "decoder": parts.decoder,
        "framing": parts.framing,
    }


def write(
    pieces: Sequence[tuple[str, float]],
    unk_id: int | None,
    byte_fallback: bool,
    normaliser: Any,
    split: Any,
    decoder: Any,
) -> dict[str, Any]:
    """The components of a `tokenizer.json` of these pieces."""
    return {
        "normalizer": components.write(normaliser),
        "pre_tokenizer": None if split == WHOLE else components.write(split),
        "decoder": components.write(decoder),
        "model": {"type": "Unigram", "unk_id": unk_id, "vocab": list(pieces), "byte_fallback": byte_fallback},
    }


BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def decoder_of(prepend: Any, byte_fallback: bool) -> decoders.Decoder:
    """What turns pieces into text again where words begin with ▁."""
    spaces = decoders.Metaspace(SPACE, prepend)
    return decoders.InTurn((decoders.ByteFallback(), spaces)) if byte_fallback else spaces


def _steps(component: Any, is_first: bool = True) -> Iterator[tuple[Any, bool]]:
    """The steps of a pre-tokeniser, each with whether nothing is done before it."""
    if isinstance(component, pretokenisers.InTurn):
        for i, step in enumerate(component.steps):
            yield from _steps(step, is_first and i == 0)
    else:
        yield component, is_first
