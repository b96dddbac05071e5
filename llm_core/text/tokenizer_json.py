"""`tokenizer.json`, the file format of the package tokenizers: what BPE, WordPiece and Unigram read and write alike.

The file names a normaliser, a pre-tokeniser, a model, a decoder and more. A tokenizer of this package does one
combination of them; a file that asks for another is refused, and the message names the component.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llm_core.text.special import SpecialTokens
from llm_core.text.tokenizer import Vocabulary

Read = TypeVar("Read")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token; ours have none of them


def as_json(vocabulary: Vocabulary, special: SpecialTokens, components: Mapping[str, Any]) -> str:
    """The text of a `tokenizer.json`: the components, and the special tokens with their ids."""
    added = [
        {"id": vocabulary.id_of(name), "content": name, "special": name in special.names} | dict.fromkeys(FLAGS, False)
        for name in sorted((*special.names, *special.always), key=vocabulary.id_of)
    ]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **components}
    return json.dumps(content, ensure_ascii=False, indent=2)


def read_components(text: str, *, model: str, **types: str | None) -> tuple[dict[str, Any], dict[str, int]]:
    """The components of a `tokenizer.json`, and the ids of its special tokens.

    Args:
        text: what the file holds.
        model: the type of its model.
        **types: the type that each other component must have; None: it must not be there.

    Raises:
        ValueError: it is no such file, a component has another type, or an added token is not a special one that is
            looked for in the text as it stands.
    """
    with reading(model):
        content = json.loads(text)
        expect("model.type", content["model"].get("type", model), [model])  # old files do not name it
        iter(content["model"]["vocab"])  # every model has one: an error where it has not
        for name, expected in types.items():
            expect(f"{name}.type", type_of(content.get(name)), [expected])
        added = content.get("added_tokens") or []
        # Without a normaliser it makes no difference whether a token is looked for before or after it.
        flags = FLAGS if content.get("normalizer") else FLAGS[:-1]
        for token in added:
            expect(f"special of the added token {token['content']!r}", token.get("special"), [True])
            for flag in flags:
                expect(f"{flag} of the added token {token['content']!r}", token.get(flag, False), [False])
        return content, {token["content"]: token["id"] for token in added}


def with_added(vocabulary: Mapping[str, int], special: Mapping[str, int]) -> dict[str, int]:
    """Token -> id of a model and of its added tokens, which need not be in the model's own vocabulary.

    Raises:
        ValueError: the two give a token different ids.
    """
    ids = dict(special) | dict(vocabulary)
    for token, id_ in special.items():
        expect(f"the id of the added token {token!r}", id_, [ids[token]])
    return ids


def type_of(component: Mapping[str, Any] | None) -> str | None:
    """The type of a component; None where there is none."""
    return None if component is None else component["type"]


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
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no tokenizer.json with a {model} model: {type(error).__name__}: {error}") from None


def load(path: str | Path, from_json: Callable[[str], Read]) -> Read:
    """What `from_json` makes of a file; its errors, with the path before them, and OSError."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
