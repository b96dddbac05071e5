"""`tokenizer.json`, the file format of the package tokenizers: what BPE, WordPiece and Unigram read and write alike.

The file names a normaliser, a pre-tokeniser, a model, a decoder and more. A tokenizer of this package does one
combination of them; a file that asks for another is refused, and the message names the component.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_core.text import components, decoders, framing_json, normalisers, precompiled, pretokenisers
from llm_core.text.components import as_type, read_list, refuse
from llm_core.text.framing import PLAIN_FRAMING, Framing
from llm_core.text.special import AddedToken, SpecialTokens
from llm_core.text.tokenizer import Vocabulary

Read = TypeVar("Read")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


@dataclass(frozen=True)
class Parts:
    """What a `tokenizer.json` holds, read and checked, all but the settings of its model."""

    model: dict[str, Any]
    """As it stands in the file."""
    vocabulary: dict[str, int]
    """Token -> id, the added tokens among them."""
    special: tuple[AddedToken, ...]
    others: tuple[AddedToken, ...]
    """Added tokens that are not special."""
    normaliser: Any
    pre_tokeniser: Any
    decoder: Any
    framing: Framing

    def setting(self, name: str, expected: Any, default: Any = MISSING) -> Any:
        """A setting of the model, of the type that it must have."""
        if name not in self.model and default is MISSING:
            refuse(f"model.{name}", "there", None)
        return as_type(self.model.get(name, default), expected, f"model.{name}")


def read_parts(text: str, model: str, ignore: Collection[str] = ()) -> Parts:
    """The parts of a `tokenizer.json`.

    Args:
        text: what the file holds.
        model: the type of its model.
        ignore: which of "truncation" and "padding" to leave out.

    Raises:
        ValueError: it is no such file, or holds something that is broken or not supported. The message names it.
    """
    if not set(ignore) <= {"truncation", "padding"} or isinstance(ignore, str):
        raise ValueError(f'ignore is a collection of "truncation" and "padding": got {ignore!r}')
    with reading(model):
        content = json.loads(text, object_pairs_hook=_without_repetition)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise TypeError("there is no model")
        own = content["model"]
        expect("model.type", own.get("type", model), [model])  # old files do not name it
        vocabulary = (_numbered if model == "Unigram" else _vocabulary)(own.get("vocab"))
        expect("version", content.get("version"), ["1.0"])
        tokens = content.get("added_tokens")
        added = [
            _added_token(token, f"added_tokens[{i}]")
            for i, token in enumerate(read_list([] if tokens is None else tokens, "added_tokens"))
        ]
        ids = _with_added(vocabulary, added)
        known = {key: value for key, value in content.items() if key not in ignore}
        read_component = {
            key: None if content.get(key) is None else components.read(content[key], key, table)
            for key, table in _TABLES.items()
        }
        return Parts(
            own,
            ids,
            tuple(token for token, _, special in added if special),
            tuple(token for token, _, special in added if not special),
            read_component["normalizer"],
            read_component["pre_tokenizer"],
            read_component["decoder"],
            framing_json.read(known, ids),
        )


_TABLES: dict[str, Mapping[str, type]] = {
    "normalizer": normalisers.TABLE | precompiled.TABLE,
    "pre_tokenizer": pretokenisers.TABLE,
    "decoder": decoders.TABLE,
}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands in this tokenizer.json more than once in one place")
    return content


def _vocabulary(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise TypeError("model.vocab must have an id for each token")
    seen: set[int] = set()
    for token, id_ in value.items():
        if type(id_) is not int or not 0 <= id_ < 2**32 or id_ in seen:
            refuse(f"model.vocab[{token!r}]", "an id of its own, 0 or more", id_)
        seen.add(id_)
    return value


def _numbered(value: Any) -> dict[str, int]:
    """Piece -> id of a vocabulary that is a list of pieces with their scores."""
    ids: dict[str, int] = {}
    for i, pair in enumerate(read_list(value, "model.vocab")):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in ids:
            refuse(f"model.vocab[{i}]", "a piece that is not there yet, and its score", pair)
        as_type(pair[1], float | int, f"the score of model.vocab[{i}]")
        ids[pair[0]] = i
    return ids


def _added_token(value: Any, where: str) -> tuple[AddedToken, int, bool]:
    if not isinstance(value, dict):
        refuse(where, "a token with its id", value)
    for key, expected in (("id", int), ("content", str), *((flag, bool) for flag in ("special", *FLAGS))):
        name = f"{key} of the added token {value.get('content')!r} ({where})"
        if key not in value:
            refuse(name, "there", None)
        as_type(value[key], expected, name)
    flags = {flag: value[flag] for flag in FLAGS}
    return AddedToken(value["content"], **flags), value["id"], value["special"]


def _with_added(vocabulary: Mapping[str, int], added: Sequence[tuple[AddedToken, int, bool]]) -> dict[str, int]:
    """Token -> id of a model and of its added tokens, which need not be in the model's own vocabulary.

    A token that the model lacks gets the next id from the package tokenizers, whatever the file says: so a file that
    says something else is refused.
    """
    ids = dict(vocabulary)
    highest = -1
    seen: set[str] = set()
    for i, (token, id_, _) in enumerate(added):
        if not token.content or token.content in seen:
            refuse(f"the added token added_tokens[{i}]", "a token that is not there yet, and not empty", token.content)
        seen.add(token.content)
        expected = ids.setdefault(token.content, max(len(vocabulary), highest + 1))
        if id_ != expected:
            refuse(
                f"the id of the added token {token.content!r} (added_tokens[{i}])",
                f"{expected}, as model.vocab is",
                id_,
            )
        highest = max(highest, id_)
    return ids


def as_json(
    vocabulary: Vocabulary, special: SpecialTokens, parts: Mapping[str, Any], framing: Framing = PLAIN_FRAMING
) -> str:
    """The text of a `tokenizer.json`: the other components, the framing, and the added tokens with their ids."""
    added = [
        {"id": vocabulary.id_of(name), "content": name, "special": name in special.names}
        | {flag: getattr(special.tokens[name], flag) for flag in FLAGS}
        for name in sorted(special.tokens, key=vocabulary.id_of)
    ]
    content = {"version": "1.0", "added_tokens": added, **framing_json.write(framing, vocabulary), **parts}
    return json.dumps(content, ensure_ascii=False, indent=2)


def expect(name: str, value: Any, supported: Collection[Any]) -> None:
    """Raise a ValueError unless a setting of a `tokenizer.json` is among those that are supported."""
    if value not in supported:
        choice = " or ".join(json.dumps(one, ensure_ascii=False) for one in supported)
        raise ValueError(
            f"tokenizer.json asks for something that this class does not do: {name} must be {choice}, "
            f"got {json.dumps(value, ensure_ascii=False)}. The package tokenizers can read the file"
        )


@contextmanager
def reading(model: str) -> Iterator[None]:
    """Turn what goes wrong with the content of a file into a ValueError that says what the file is not."""
    try:
        yield
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no tokenizer.json with a {model} model: {type(error).__name__}: {error}") from None


def load(path: str | Path, from_json: Callable[[str], Read]) -> Read:
    """What `from_json` makes of a file; its errors, with the path before them, and OSError."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
