"""`tokenizer.json` of byte-level BPE, both ways: the ways of cutting a text, the vocabulary and the merges.

Used by `bpe_fast`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llm_core.text.byte_alphabet import ALPHABET
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split
from llm_core.text.special import SpecialTokens
from llm_core.text.tokenizer import Vocabulary
from llm_core.text.tokenizer_json import as_json, expect, read_components, reading, type_of, with_added

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_NO_REGEX = _BYTE_LEVEL | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_KNOWN = {split.pattern: split for split in (CL100K, O200K, WHITESPACE)}


def write(
    vocabulary: Vocabulary,
    merges: Sequence[tuple[str, str]],
    split: Split,
    special: SpecialTokens,
    ignore_merges: bool,
) -> str:
    """What a `tokenizer.json` of this vocabulary and these merges holds."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }
    components = {
        "normalizer": None,
        "pre_tokenizer": _split_as_json(split),
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": model,
    }
    return as_json(vocabulary, special, components)


def read(text: str) -> dict[str, Any]:
    """The arguments of `BPETokenizer` that a `tokenizer.json` asks for.

    Raises:
        ValueError: it is no byte-level BPE, or asks for something that the class does not do.
    """
    parts, special = read_components(text, model="BPE", normalizer=None, decoder="ByteLevel")
    with reading("BPE"):
        model = parts["model"]
        vocabulary, merges = with_added(model["vocab"], special), list(model["merges"])
        for name in ("truncation", "padding"):
            expect(name, parts.get(name), [None])
        expect("post_processor.type", type_of(parts.get("post_processor")), [None, "ByteLevel"])  # it changes no ids
        expect("model.dropout", model.get("dropout"), [None, 0.0])
        expect("model.byte_fallback", model.get("byte_fallback", False), [False])
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            expect(f"model.{name}", model.get(name), [None, ""])
        if not vocabulary.keys() >= set(ALPHABET):  # else nothing is ever unknown
            expect("model.unk_token, in a vocabulary without all 256 bytes,", model.get("unk_token"), [None])
        return {
            "vocabulary": vocabulary,
            "merges": read_merges(merges) if merges and isinstance(merges[0], str) else list(map(tuple, merges)),
            "split": _split_from_json(parts.get("pre_tokenizer")),
            "special_tokens": list(special),
            "ignore_merges": model.get("ignore_merges", False),
        }


def read_merges(lines: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs that lines "left right" hold; a first line "#version: ..." is passed over.

    Raises:
        ValueError: a line is no pair.
    """
    merges: list[tuple[str, str]] = []
    for n, line in enumerate(lines):
        if n == 0 and line.startswith("#version:"):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ValueError(f'a merge is two tokens with a space between them, "left right": got {line!r}')
        merges.append((left, right))
    return merges


def _split_as_json(split: Split) -> dict[str, Any]:
    if split == GPT2:
        return _BYTE_LEVEL
    if split == WHOLE:
        return _NO_REGEX
    if split == DIGITS_THEN_GPT2:
        return {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]}
    pattern = {"type": "Split", "pattern": {"Regex": split.pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pattern, _NO_REGEX]}


def _split_from_json(component: Any) -> Split:
    steps = component["pretokenizers"] if type_of(component) == "Sequence" else [component]
    expect("pre_tokenizer.type", type_of(steps[-1]), ["ByteLevel"])
    expect("pre_tokenizer.add_prefix_space", steps[-1]["add_prefix_space"], [False])
    with_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2 if with_regex else WHOLE
    if len(steps) == 2 and with_regex:
        expect("pre_tokenizer before ByteLevel with a pattern", steps[0], [_DIGITS])
        return DIGITS_THEN_GPT2
    expect("the number of steps of pre_tokenizer", len(steps), [1, 2])
    expect("pre_tokenizer before ByteLevel without a pattern", type_of(steps[0]), ["Split"])
    expect("pre_tokenizer.behavior", steps[0]["behavior"], ["Isolated"])
    expect("pre_tokenizer.invert", steps[0]["invert"], [False])
    expect("the kind of pre_tokenizer.pattern", list(steps[0]["pattern"]), [["Regex"]])
    split = Split(steps[0]["pattern"]["Regex"])
    return _KNOWN.get(split.pattern, split)
