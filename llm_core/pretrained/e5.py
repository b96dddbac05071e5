"""multilingual-e5-small: one encoder for texts in about a hundred languages, from its installed package.

    model = SentenceEncoder(load_e5(), pad_id=1)                   # the mean over tokens, brought to length 1
    tokenizer = e5_tokenizer()
    ids = tokenizer.encode("query: how much rain", add_special_tokens=True)

It was trained with a word before each text: "query: " before what is looked for, "passage: " before what is looked in.
The encoder is a `Bert` with XLM-RoBERTa's vocabulary of 250,002 pieces, a Unigram.

The package has it in a file of its own: a head with the sizes; the pieces with their scores; what each character is
replaced by; a table of tensors, and the tensors. Matrices are in 4 bits a weight, in the blocks of GGUF's Q4_0, which
the package gguf turns into numbers. All numbers are little-endian.

Source: Wang et al. 2024 (multilingual E5); Conneau et al. 2020 (XLM-RoBERTa and its vocabulary).
"""

from __future__ import annotations

import struct
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_core.models.bert import Bert, BertConfig
from llm_core.pretrained.names import Line, check_shapes, load, same, to_ours
from llm_core.pretrained.packages import E5, MissingPackage, locate
from llm_core.text.framing import Framing, Template
from llm_core.text.normalisers import NFC, InTurn, Replace
from llm_core.text.unigram_fast import UnigramTokenizer

_MAGIC, _VERSION, _BLOCK = b"E5S1", 1, 32
_FLOATS, _BLOCKS = 0, 1  # how a tensor is stored: 32 bits a number, or Q4_0
_MASK = "<mask>"
_LAYER = {
    "attention.query": "q",
    "attention.key": "k",
    "attention.value": "v",
    "attention.output": "ao",
    "attention_norm": "aln",
    "feed_forward.up": "fi",
    "feed_forward.down": "fo",
    "feed_forward_norm": "oln",
}


class Stored(NamedTuple):
    """Where a tensor lies in the file, and how: `_FLOATS` or `_BLOCKS`."""

    kind: int
    size: int
    offset: int
    n_bytes: int


class E5File(NamedTuple):
    """What the file holds, but for the tensors themselves."""

    path: Path
    config: BertConfig
    pieces: list[tuple[str, float]]
    special: dict[str, int]
    replaced: dict[int, str]
    """Code point -> what stands for it."""
    tensors: dict[str, Stored]


def read_e5(file: Path | str) -> E5File:
    """The file, opened. Its tensors are not read yet.

    Raises:
        ValueError: there is no such file, or it is none of this format, or not whole.
    """
    file = Path(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if content[:4] != _MAGIC:
        raise ValueError(f"{file} is no file of this format: it begins with {content[:4]!r}, expected {_MAGIC!r}")
    try:
        return _read(file, _Reader(content))
    except (struct.error, ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{file} is broken, or not whole ({error}): install its package again") from None


def e5_table(config: BertConfig) -> list[Line]:
    """The names in the file, and ours."""
    layers = {"norm": "emb.ln"}
    for i in range(config.n_layers):
        layers |= {f"blocks.{i}.{ours}": f"l{i}.{theirs}" for ours, theirs in _LAYER.items()}
    return [
        same("token_embedding.weight", "emb.word"),
        same("positions.embedding.weight", "emb.pos"),
        same("segment_embedding.weight", "emb.type"),
        *(
            same(f"{ours}.{kind}", f"{theirs}.{kind[0]}")
            for ours, theirs in layers.items()
            for kind in ("weight", "bias")
        ),
    ]


def find_e5() -> Path:
    """Where the file of multilingual-e5-small lies.

    Raises:
        MissingPackage: its package is not installed; the message has the command that installs it.
        ValueError: it is not the file that is expected.
    """
    return locate(E5, next(iter(E5.sha256)))


def load_e5(file: Path | str | None = None) -> Bert:
    """The encoder, in eval mode, its weights as float32: 117.5M parameters, 470 MB.

    Args:
        file: the file; that of the installed package unless given.

    Raises:
        MissingPackage: the package with the file, or gguf, is not installed.
        ValueError: see `read_e5`; or the tensors are not those of the sizes that the file says.
    """
    opened = read_e5(find_e5() if file is None else file)
    with torch.device("meta"):
        model = Bert(opened.config)
    table = e5_table(opened.config)
    shapes = _shapes(opened, model)
    check_shapes(table, model, shapes)
    load(model, to_ours(table, {name: _tensor(opened, name).reshape(shape) for name, shape in shapes.items()}))
    return model.eval()


def e5_tokenizer(file: Path | str | None = None) -> UnigramTokenizer:
    """The tokenizer, XLM-RoBERTa's: <s> before a text and </s> behind it with `add_special_tokens=True`.

    The file says what each character is replaced by, but not what a letter and a mark after it are, which XLM-RoBERTa's
    own table puts together; `NFC` does that before.

    Args:
        file: as in `load_e5`.

    Raises:
        MissingPackage: the package with the file is not installed.
        ValueError: see `read_e5`.
    """
    opened = read_e5(find_e5() if file is None else file)
    begin, end = (((opened.special[name],), 0) for name in ("<s>", "</s>"))
    return UnigramTokenizer(
        opened.pieces,
        unk_id=opened.special["<unk>"],
        special_tokens=[*opened.special],
        normaliser=InTurn((NFC(), Replaced(opened.replaced), Replace({"Regex": " {2,}"}, " "))),
        framing=Framing(Template((begin, ("A", 0), end), (begin, ("A", 0), end, end, ("B", 0), end))),
    )


class Replaced:
    """A normaliser: each character by itself becomes what a table says.

    >>> Replaced({ord("½"): "1/2"})("½ cup")
    '1/2 cup'
    """

    def __init__(self, table: dict[int, str]) -> None:
        self.table = table

    def __call__(self, text: str) -> str:
        """The text with its replacements."""
        return text.translate(self.table)


class _Reader:
    """Reads on from place to place."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        """Numbers, by the letters of `struct`."""
        found = struct.unpack_from(f"<{kinds}", self.content, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return found

    def bytes(self, n: int) -> bytes:
        """The next n bytes."""
        if n > len(self.content) - self.at:
            raise ValueError(f"{n} bytes are to come, and {len(self.content) - self.at} are left")
        self.at += n
        return self.content[self.at - n : self.at]


def _read(file: Path, reader: _Reader) -> E5File:
    reader.bytes(len(_MAGIC))
    (version,) = reader.numbers("I")
    d_model, n_layers, n_heads, d_ff, vocab_size, context, n_segments = reader.numbers("7i")
    eps, block = reader.numbers("fi")
    if (version, block) != (_VERSION, _BLOCK):
        raise ValueError(f"version {version} with blocks of {block}, expected {_VERSION} with {_BLOCK}")
    n_pieces, begin, end, pad, unknown = reader.numbers("5i")
    pieces = _pieces(reader, n_pieces)
    config = BertConfig(
        vocab_size,
        context,
        n_layers,
        n_heads,
        d_model,
        d_ff,
        n_segments=n_segments,
        pad_id=pad,
        norm_eps=float(f"{eps:.7g}"),  # stored in 32 bits: as many digits as they hold
    )
    special = {pieces[id_][0]: id_ for id_ in (begin, pad, end, unknown)}
    if pieces[-1][0] == _MASK:
        special[_MASK] = n_pieces - 1
    if list(special)[:4] != ["<s>", "<pad>", "</s>", "<unk>"]:
        raise ValueError(f"the special tokens are {', '.join(special)}, expected <s>, <pad>, </s>, <unk>")
    replaced = _replacements(reader)
    return E5File(file, config, pieces, special, replaced, _directory(reader))


def _pieces(reader: _Reader, n: int) -> list[tuple[str, float]]:
    (n_bytes,) = reader.numbers("Q")
    places = reader.numbers(f"{n + 1}I")
    scores = reader.numbers(f"{n}f")
    text = reader.bytes(n_bytes)
    return [(text[places[i] : places[i + 1]].decode(), score) for i, score in enumerate(scores)]


def _replacements(reader: _Reader) -> dict[int, str]:
    n, _ = reader.numbers("iI")
    found: dict[int, str] = {}
    for _ in range(n):
        code, length = reader.numbers("IB")
        found[code] = "".join(map(chr, reader.numbers(f"{length}I")))
    return found


def _directory(reader: _Reader) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    (n,) = reader.numbers("i")
    for _ in range(n):
        (length,) = reader.numbers("H")
        name = reader.bytes(length).decode()
        tensors[name] = Stored(*reader.numbers("BIQQ"))
        if tensors[name].offset + tensors[name].n_bytes > len(reader.content):
            raise ValueError(f"{name} would end behind the end of the file")
    return tensors


def _shapes(opened: E5File, model: Bert) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors. The file only says how many numbers each has: those that are as many are taken."""
    state = model.state_dict()
    expected = {line.theirs: tuple(state[line.ours[0]].shape) for line in e5_table(opened.config)}
    return {
        name: shape if int(np.prod(shape := expected.get(name, ()))) == stored.size else (stored.size,)
        for name, stored in opened.tensors.items()
    }


def _tensor(opened: E5File, name: str) -> Tensor:
    kind, size, offset, n_bytes = opened.tensors[name]
    content = np.memmap(opened.path, np.uint8, "r", offset, n_bytes)
    if kind == _FLOATS and n_bytes == 4 * size:
        return torch.from_numpy(np.array(content.view("<f4"), np.float32))
    try:
        quants, constants = import_module("gguf.quants"), import_module("gguf.constants")
    except ModuleNotFoundError:
        raise MissingPackage("weights in 4 bits are read by the package gguf: run `pip install gguf==0.19.0`") from None
    if kind != _BLOCKS or n_bytes != size // _BLOCK * 18:  # 16 bits of scale and 32 weights of 4 bits
        raise ValueError(f"{opened.path}: {name} has {size} numbers of kind {kind} in {n_bytes} bytes: expected Q4_0")
    return torch.from_numpy(quants.dequantize(np.asarray(content), constants.GGMLQuantizationType.Q4_0))
