"""`tokenizer.json` of byte-pair encoding, both ways: the ways of cutting a text, the vocabulary and the merges.

Used by `bpe_fast`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from llm_core.text import components, decoders, pretokenisers
from llm_core.text.bpe_characters import Characters
from llm_core.text.byte_alphabet import ALPHABET
from llm_core.text.components import refuse
from llm_core.text.pretokenisers import PreTokeniser
from llm_core.text.pretokenize import CL100K, DIGITS_THEN_GPT2, GPT2, O200K, WHITESPACE, WHOLE, Split
from llm_core.text.tokenizer import Vocabulary
from llm_core.text.tokenizer_json import Parts, expect, read_parts

_BYTES = pretokenisers.ByteLevel(add_prefix_space=False, trim_offsets=True)
_NO_REGEX = pretokenisers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
_DIGITS = pretokenisers.Digits(individual_digits=True)
_KNOWN = {split.pattern: split for split in (CL100K, O200K, WHITESPACE)}
_BEHAVIOURS = {ours: theirs for theirs, ours in pretokenisers.BEHAVIOURS.items()}


def write(
    vocabulary: Vocabulary,
    merges: Iterable[tuple[str, str]],
    split: PreTokeniser,
    ignore_merges: bool,
    normaliser: Any,
    characters: Characters | None,
    decoder: Any,
) -> dict[str, Any]:
    """The components of a `tokenizer.json` of this vocabulary and these merges."""
    own = characters or Characters()
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": own.unk_token,
        "continuing_subword_prefix": own.continuing_subword_prefix,
        "end_of_word_suffix": own.end_of_word_suffix,
        "fuse_unk": own.fuse_unk,
        "byte_fallback": own.byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": list(merges),
    }
    return {
        "normalizer": components.write(normaliser),
        "pre_tokenizer": components.write(_component(split, characters is None)),
        "decoder": components.write(
            decoders.ByteLevel(add_prefix_space=False, trim_offsets=True) if characters is None else decoder
        ),
        "model": model,
    }


def read(text: str, ignore: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `BPETokenizer` that a `tokenizer.json` asks for.

    Raises:
        ValueError: it is no BPE, or asks for something that the class does not do. The message names it.
    """
    parts = read_parts(text, "BPE", ignore)
    merges = _merges(parts.setting("merges", list))
    _check_bytes(parts.pre_tokeniser)
    by_bytes = _ends_in_bytes(parts.pre_tokeniser)
    characters = Characters(
        parts.setting("unk_token", str | None, None),
        parts.setting("fuse_unk", bool, False),
        parts.setting("byte_fallback", bool, False),
        parts.setting("continuing_subword_prefix", str | None, None) or None,
        parts.setting("end_of_word_suffix", str | None, None) or None,
    )
    prefix = characters.continuing_subword_prefix or ""
    for i, (left, right) in enumerate(merges):
        if not right.startswith(prefix):
            refuse(
                f"model.merges[{i}]",
                f"a pair whose second begins with continuing_subword_prefix, {prefix!r}",
                [left, right],
            )
        for token in (left, right, characters.joined(left, right)):
            if token not in parts.vocabulary:
                refuse(
                    f"model.merges[{i}]",
                    f"of tokens that are in model.vocab, and make one: not {token!r}",
                    [left, right],
                )
    expect("model.dropout", parts.setting("dropout", float | int | None, None), [None, 0])
    if by_bytes:
        _expect_bytes(parts, characters)
    unknown = characters.unk_token
    for added in () if by_bytes else (*parts.special, *parts.others):
        # It would be taken for a character that is a token, where it is not found as a whole.
        if len(added.content) == 1 and added.content not in parts.model["vocab"]:
            refuse(f"the added token {added.content!r}", "longer than one character, or in model.vocab", added.content)
    if not by_bytes and unknown is not None and unknown not in parts.model["vocab"]:
        refuse("model.unk_token", "a token of model.vocab", unknown)
    return {
        "vocabulary": parts.vocabulary,
        "merges": merges,
        "split": _split(parts.pre_tokeniser) if by_bytes else parts.pre_tokeniser or WHOLE,
        "special_tokens": parts.special,
        "added_tokens": parts.others,
        "ignore_merges": parts.setting("ignore_merges", bool, False),
        "normaliser": parts.normaliser,
        "characters": None if by_bytes else characters,
        "decoder": None if by_bytes else parts.decoder,
        "framing": parts.framing,
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


def _merges(value: list[Any]) -> list[tuple[str, str]]:
    """Merges are lines in files of before 2024, and pairs since: of one kind in one file."""
    if value and isinstance(value[0], str):
        for i, line in enumerate(value):
            if not isinstance(line, str):
                refuse(f"model.merges[{i}]", "a line as those before it", line)
        return read_merges(value)
    for i, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            refuse(f"model.merges[{i}]", "a pair of tokens", pair)
    return [(left, right) for left, right in value]


# --- bytes ---


def _expect_bytes(parts: Parts, characters: Characters) -> None:
    """What a model of bytes may ask for. Where all 256 bytes are tokens nothing is unknown, whatever the file says."""
    expect("decoder.type", parts.decoder and components.name_of(parts.decoder), ["ByteLevel"])
    expect("model.continuing_subword_prefix", characters.continuing_subword_prefix, [None])
    expect("model.end_of_word_suffix", characters.end_of_word_suffix, [None])
    if not parts.model["vocab"].keys() >= set(ALPHABET):
        expect("model.unk_token, in a vocabulary without all 256 bytes,", characters.unk_token, [None])
        expect("model.byte_fallback, in a vocabulary without all 256 bytes,", characters.byte_fallback, [False])


def _steps(component: Any) -> list[Any]:
    if isinstance(component, pretokenisers.InTurn):
        return [step for one in component.steps for step in _steps(one)]
    return [] if component is None else [component]


def _ends_in_bytes(component: Any) -> bool:
    return bool(steps := _steps(component)) and isinstance(steps[-1], pretokenisers.ByteLevel)


def _check_bytes(component: Any) -> None:
    if any(isinstance(step, pretokenisers.ByteLevel) for step in _steps(component)[:-1]):
        refuse("pre_tokenizer", "a sequence in which ByteLevel comes last", components.write(component))


def _split(component: Any) -> PreTokeniser:
    """The pre-tokeniser of a model of bytes; a single pattern where it can be written so."""
    steps = _steps(component)
    last = steps[-1]
    if last.add_prefix_space:
        return component
    if len(steps) == 1:
        return GPT2 if last.use_regex else WHOLE
    if len(steps) == 2 and last.use_regex and steps[0] == _DIGITS:
        return DIGITS_THEN_GPT2
    if len(steps) == 2 and not last.use_regex and isinstance(steps[0], pretokenisers.Split):
        split = steps[0].split
        return _KNOWN.get(split.pattern, split) if split.behaviour == "isolated" and not split.invert else split
    return component


def _component(split: PreTokeniser, by_bytes: bool) -> Any:
    if not isinstance(split, Split):
        return split
    if split == WHOLE:
        return _NO_REGEX if by_bytes else None
    if split == GPT2 and by_bytes:
        return _BYTES
    if split == DIGITS_THEN_GPT2 and by_bytes:
        return pretokenisers.InTurn((_DIGITS, _BYTES))
    pattern = pretokenisers.Split({"Regex": str(split.pattern)}, _BEHAVIOURS[split.behaviour], split.invert)
    return pretokenisers.InTurn((pattern, _NO_REGEX)) if by_bytes else pattern
