"""Tokenizers on a CPU, beside the packages tokenizers and tiktoken: training of BPE, encoding with it, WordPiece.

The texts are those of the tests, and a few megabytes of Python's library. The library has several ways to encode; each
is a contender, and the fastest is the one to be held against. Whoever does the same work must get the same ids. Caches
of words are emptied before every turn, on both sides.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from side_by_side import Contender, Turn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "text"))

CLOCK = "cpu"  # the library spreads a batch over all cores, and ours is one process
LIBRARY_MB = 5  # of Python's library: English and code in one


@functools.cache
def text_of(kind: str) -> str:
    import corpus

    if kind != "library":
        return {"mixed": corpus.mixed_text, "chinese": corpus.chinese}[kind]()
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if size > LIBRARY_MB * 1e6:
            break
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    return "".join(parts)


def digest(ids: Iterable[Iterable[int]]) -> str:
    """The same for the same ids, short enough to be kept with the results, and quick beside what is measured."""
    return hashlib.sha256(array("I", chain.from_iterable(ids)).tobytes()).hexdigest()[:12]


# --- training ---


def train_ours(kind: str, vocab_size: int) -> Any:
    from llm_core.text.bpe_fast import BPETokenizer

    return BPETokenizer.train(text_of(kind), vocab_size)


def train_theirs(kind: str, vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text_of(kind)], trainer)
    return tokenizer


def training(kind: str, vocab_size: int) -> dict[str, Contender]:
    def prepare(train: Callable[[str, int], Any], encode: Callable[[Any, str], list[int]]) -> Callable[[], Turn]:
        def prepared() -> Turn:
            sample = text_of(kind)[:50_000]  # the same ids here: the same merges, as good as
            return lambda: digest([encode(train(kind, vocab_size), sample)])

        return prepared

    return {
        "llm_core": Contender(prepare(train_ours, lambda tokenizer, text: tokenizer.encode(text))),
        "tokenizers": Contender(prepare(train_theirs, lambda tokenizer, text: tokenizer.encode(text).ids)),
    }


def long_pieces(vocab_size: int = 300) -> dict[str, Contender]:
    """Training on one piece without a cut: a genome, twice as long each time."""

    def prepare(n: int, library: bool) -> Callable[[], Turn]:
        def prepared() -> Turn:
            import random

            from tokenizers import Tokenizer, models, pre_tokenizers, trainers

            from llm_core.text.bpe_fast import BPETokenizer
            from llm_core.text.pretokenize import WHOLE

            text = "".join(random.Random(0).choices("ACGT", k=n))

            def theirs() -> None:
                tokenizer = Tokenizer(models.BPE())
                tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
                alphabet = pre_tokenizers.ByteLevel.alphabet()
                trainer = trainers.BpeTrainer(
                    vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
                )
                tokenizer.train_from_iterator([text], trainer)

            def ours() -> None:
                BPETokenizer.train(text, vocab_size, split=WHOLE)

            return theirs if library else ours

        return prepared

    # The library's work grows with the square of the length: four times as long, sixteen times the seconds.
    lengths = {False: (5, 10, 20, 40, 80, 160, 320, 640), True: (5, 10, 20, 40, 80)}
    return {
        f"{'tokenizers' if library else 'llm_core'}, {n},000 letters": Contender(prepare(1000 * n, library))
        for library, sizes in lengths.items()
        for n in sizes
    }


# --- encoding ---


def bpe(kind: str) -> tuple[Any, Any]:
    """The two tokenizers, with one vocabulary."""
    from llm_core.text.bpe_fast import BPETokenizer

    theirs = train_theirs(kind, 20_000)
    return BPETokenizer.from_json(theirs.to_str()), theirs


def wordpiece(kind: str) -> tuple[Any, Any]:
    from tokenizers import BertWordPieceTokenizer

    from llm_core.text.wordpiece_fast import WordPieceTokenizer

    # The library's own training gives another vocabulary in every process.
    ours = WordPieceTokenizer.train(text_of(kind).splitlines(), 20_000, limit_alphabet=5000)
    vocabulary = ours.vocabulary.ids
    return ours, BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)._tokenizer


def tiktokens(kind: str, lines: bool) -> Callable[[], Turn]:
    """tiktoken with the same vocabulary: it merges by ids, which here come in the order of the merges."""

    def prepare() -> Turn:
        import tiktoken

        from llm_core.text.pretokenize import GPT2

        ours = bpe(kind)[0]
        ranks = {ours.decode_bytes([id_]): id_ for id_ in ours.vocabulary.ids.values()}
        encoder = tiktoken.Encoding("ours", pat_str=str(GPT2.pattern), mergeable_ranks=ranks, special_tokens={})
        parts = text_of(kind).splitlines(keepends=True) if lines else [text_of(kind)]
        return lambda: digest([encoder.encode_ordinary(part) for part in parts])

    return prepare


def encoding(kind: str, make: Callable[[str], tuple[Any, Any]], lines: bool) -> dict[str, Contender]:
    def texts() -> list[str]:
        return text_of(kind).splitlines(keepends=True) if lines else [text_of(kind)]

    def ours() -> Turn:
        tokenizer, parts = make(kind)[0], texts()
        caches = [value for value in vars(tokenizer).values() if hasattr(value, "__missing__")]

        def turn() -> str:
            for cache in caches:
                cache.clear()
            return digest([tokenizer.encode(part) for part in parts])

        return turn

    def theirs(method: str) -> Callable[[], Turn]:
        def prepare() -> Turn:
            tokenizer, parts = make(kind)[1], texts()
            forget = getattr(tokenizer.model, "_clear_cache", lambda: None)  # WordPiece has no cache in the library

            def turn() -> str:
                forget()
                if method == "encode":
                    encodings = [tokenizer.encode(part, add_special_tokens=False) for part in parts]
                else:
                    encodings = getattr(tokenizer, method)(parts, add_special_tokens=False)
                return digest([encoding.ids for encoding in encodings])

            return turn

        return prepare

    methods = ("encode", "encode_batch", "encode_batch_fast") if lines else ("encode", "encode_batch_fast")
    found = {"llm_core": Contender(ours)} | {f"tokenizers, {method}": Contender(theirs(method)) for method in methods}
    if make is bpe:
        found["tiktoken"] = Contender(tiktokens(kind, lines), note="keeps no pieces between turns")
    return found


TASKS = {
    "bpe-training": training("library", 16_000),
    "bpe-training-mixed": training("mixed", 16_000),
    "bpe-training-chinese": training("chinese", 16_000),
    "bpe-training-long": long_pieces(),
    "bpe-encoding": encoding("library", bpe, lines=False),
    "bpe-encoding-lines": encoding("library", bpe, lines=True),
    "bpe-encoding-mixed": encoding("mixed", bpe, lines=False),
    "bpe-encoding-chinese": encoding("chinese", bpe, lines=False),
    "wordpiece-encoding": encoding("library", wordpiece, lines=False),
    "wordpiece-encoding-lines": encoding("library", wordpiece, lines=True),
    "wordpiece-encoding-mixed": encoding("mixed", wordpiece, lines=False),
}
