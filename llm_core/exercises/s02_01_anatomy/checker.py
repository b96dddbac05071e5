"""Checks `decoder_parameters`, `encoder_parameters` and `encoder_decoder_parameters` against the package's models."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report
from llm_core.models.bert import Bert, BertConfig
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig

NORMS_OR_BIASES_MISSING = Mistake(
    "four_widths_missing",
    "In each block 4 D numbers are missing: those of its two norms, or the biases of attention.",
    "A LayerNorm has a scale and a shift, 2 D numbers. Query, key, value and output have a bias of D numbers each.",
    ({"attention_biases": 0},),
)
BIASES_OF_THE_NETWORK_MISSING = Mistake(
    "network_biases_missing",
    "The biases of the feed-forward network are missing.",
    "There are F numbers on the way up and D on the way down.",
    ({"network_biases": False},),
)
NORMS_MISSING = Mistake(
    "norms_missing",
    "The norms of the blocks are missing.",
    "A LayerNorm has a scale and a shift, 2 D numbers. Count how many stand in a block.",
    ({"norms": 0},),
)
SCALES_ONLY = Mistake(
    "scales_only",
    "Of each norm only the scale is counted.",
    "A LayerNorm has a shift too: 2 D numbers.",
    ({"of_a_norm": 1},),
)
ONE_BLOCK = Mistake(
    "blocks_forgotten",
    "Only one block is counted.",
    "Everything inside a block is there L times.",
    ({"blocks": 1},),
)
WIDTH_ASSUMED = Mistake(
    "width_of_the_network_assumed",
    "The feed-forward network is counted with F = 4 D.",
    "Its width is the argument F.",
    ({"wide": True},),
)
NO_TABLE = Mistake(
    "embedding_missing",
    "The table of the tokens is missing.",
    "It has V rows of D numbers.",
    ({"tables": 0},),
)

DECODER = (
    NORMS_OR_BIASES_MISSING,
    BIASES_OF_THE_NETWORK_MISSING,
    SCALES_ONLY,
    ONE_BLOCK,
    NO_TABLE,
    Mistake(
        "head_of_its_own",
        "The output head is counted as a matrix of its own.",
        "It is the table of the tokens once more, and counts once.",
        ({"tables": 2},),
    ),
    Mistake(
        "positions_missing",
        "The positions are missing.",
        "They are learned here: T rows of D numbers.",
        ({"positions": 0},),
    ),
    Mistake(
        "last_norm_missing",
        "The norm after the last block is missing.",
        "It stands before the output head and has 2 D numbers.",
        ({"outer_norms": 0},),
    ),
)

ENCODER = (
    NORMS_OR_BIASES_MISSING,
    BIASES_OF_THE_NETWORK_MISSING,
    SCALES_ONLY,
    ONE_BLOCK,
    Mistake(
        "two_widths_missing",
        "2 D numbers are missing: the vectors of the two segments, or the norm after the embedding.",
        "Each token gets one of two segment vectors, and BERT norms the sum before the first block.",
        ({"segments": 0},),
    ),
    NO_TABLE,
    Mistake(
        "positions_missing",
        "The positions are missing.",
        "They are learned here: T rows of D numbers.",
        ({"positions": 0},),
    ),
    Mistake(
        "segments_and_norm_missing",
        "The vectors of the two segments are missing, and the norm after the embedding.",
        "Both stand before the first block.",
        ({"segments": 0, "outer_norms": 0},),
    ),
    WIDTH_ASSUMED,
)

ENCODER_DECODER = (
    Mistake(
        "attention_biases_counted",
        "There are too many numbers: biases of attention.",
        "The projections of 2017 are plain matrices.",
        ({"attention_biases": 4},),
    ),
    BIASES_OF_THE_NETWORK_MISSING,
    NORMS_MISSING,
    SCALES_ONLY,
    ONE_BLOCK,
    NO_TABLE,
    Mistake(
        "three_tables",
        "The tables are counted three times.",
        "Source, target and output head share one.",
        ({"tables": 3},),
    ),
    Mistake(
        "two_tables",
        "The tables are counted twice.",
        "Source, target and output head share one.",
        ({"tables": 2},),
    ),
    Mistake(
        "cross_attention_missing",
        "The cross-attention is missing.",
        "A block of the decoder has two attentions, each with four matrices.",
        ({"attentions": 2},),
    ),
    Mistake(
        "third_norm_missing",
        "A block of the decoder is counted with two norms.",
        "It has three parts, and a norm after each.",
        ({"norms": 4},),
    ),
    Mistake(
        "cross_attention_and_norm_missing",
        "A block of the decoder is counted like one of the encoder.",
        "It has a third part, cross-attention, and a third norm.",
        ({"attentions": 2, "norms": 4},),
    ),
    WIDTH_ASSUMED,
)


def counted(model: type[nn.Module], config: object) -> int:
    """How many numbers the package's model learns; built without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model(config).parameters())


@cache
def counted_decoder(V: int, T: int, L: int, D: int) -> int:
    """The numbers of a GPT."""
    return counted(GPT, GPTConfig(V, T, n_layers=L, n_heads=1, d_model=D))


@cache
def counted_encoder(V: int, T: int, L: int, D: int, F: int) -> int:
    """The numbers of a BERT."""
    return counted(Bert, BertConfig(V, T, n_layers=L, n_heads=1, d_model=D, d_ff=F))


@cache
def counted_encoder_decoder(V: int, L: int, D: int, F: int) -> int:
    """The numbers of a Transformer of 2017."""
    return counted(EncoderDecoder, EncoderDecoderConfig(V, 8, n_layers=L, n_heads=1, d_model=D, d_ff=F))


def _variant(
    V: int,
    T: int,
    L: int,
    D: int,
    F: int,
    *,
    tables: int,
    positions: int,
    segments: int,
    outer_norms: int,
    attentions: int,
    attention_biases: int,
    networks: int,
    network_biases: bool,
    norms: int,
    of_a_norm: int,
    blocks: int | None,
    wide: bool,
) -> Tensor:
    """The number of parameters by its parts; a "block" is one of each stack."""
    F = 4 * D if wide else F
    block = attentions * (4 * D * D + attention_biases * D)
    block += networks * (2 * D * F + network_biases * (F + D))
    block += norms * of_a_norm * D
    total = tables * V * D + positions * T * D + segments * D + outer_norms * of_a_norm * D
    total += (L if blocks is None else blocks) * block
    return torch.tensor(float(total), dtype=torch.float64)


def decoder_variant(V: int, T: int, L: int, D: int, **knobs: Any) -> Tensor:
    """The numbers of a GPT with a knob for every usual mistake; as it stands, it is right."""
    right: dict[str, Any] = {
        "tables": 1, "positions": 1, "segments": 0, "outer_norms": 1, "attentions": 1, "attention_biases": 4,
        "networks": 1, "network_biases": True, "norms": 2, "of_a_norm": 2, "blocks": None, "wide": True,
    }  # fmt: skip
    return _variant(V, T, L, D, 4 * D, **(right | knobs))


def encoder_variant(V: int, T: int, L: int, D: int, F: int, **knobs: Any) -> Tensor:
    """The numbers of a BERT with a knob for every usual mistake; as it stands, it is right."""
    right: dict[str, Any] = {
        "tables": 1, "positions": 1, "segments": 2, "outer_norms": 1, "attentions": 1, "attention_biases": 4,
        "networks": 1, "network_biases": True, "norms": 2, "of_a_norm": 2, "blocks": None, "wide": False,
    }  # fmt: skip
    return _variant(V, T, L, D, F, **(right | knobs))


def encoder_decoder_variant(V: int, L: int, D: int, F: int, **knobs: Any) -> Tensor:
    """The numbers of a Transformer of 2017 with a knob for every usual mistake; as it stands, it is right."""
    right: dict[str, Any] = {
        "tables": 1, "positions": 0, "segments": 0, "outer_norms": 0, "attentions": 3, "attention_biases": 0,
        "networks": 2, "network_biases": True, "norms": 5, "of_a_norm": 2, "blocks": None, "wide": False,
    }  # fmt: skip
    return _variant(V, 0, L, D, F, **(right | knobs))


def examine(
    decoder_parameters: Any,
    encoder_parameters: Any,
    encoder_decoder_parameters: Any,
    *,
    seed: int,
    vocab_size: int,
    context: int,
    n_layers: int,
    d_model: int,
    d_ff: int,
) -> Report:
    """Check a learner's three functions.

    Raises:
        ValueError: a size or the seed is out of range, or d_model is odd.
    """
    given = {
        "vocab_size": vocab_size,
        "context": context,
        "n_layers": n_layers,
        "d_model": d_model,
        "d_ff": d_ff,
    }
    positive(**given)
    if d_model % 2:
        raise ValueError(f"d_model must be even, for the sines of 2017: got {d_model}: change the parameters cell")
    source = generator(seed)
    exam = Exam("02/01_anatomy", {"seed": seed, **given}, rtol=0.0, atol=0.25)  # whole numbers

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=source))

    def count(what: str, got: Any, expected: int, known: Any) -> None:
        number = exam.number(got, what)
        right = torch.tensor(float(expected), dtype=torch.float64)
        try:
            exam.compare(number, right, known, what=what)
        except Wrong as found:
            if found.explanations[0][0].id != "differs":
                raise
            raise wrong(
                "differs",
                f"{what[0].upper() + what[1:]} should be {expected:,}; you get {float(number):,.0f}.",
                "Write down every matrix and vector with its shape, and how often it is there.",
                about=what,
            ) from None

    def decoder(*sizes: int) -> None:
        names = dict(zip(("V", "T", "L", "D"), sizes, strict=True))
        known = mistakes(decoder_variant, DECODER, **names)
        count(
            "the decoder's number of parameters", exam.call(decoder_parameters, *sizes), counted_decoder(*sizes), known
        )

    def encoder(*sizes: int) -> None:
        names = dict(zip(("V", "T", "L", "D", "F"), sizes, strict=True))
        known = mistakes(encoder_variant, ENCODER, **names)
        count(
            "the encoder's number of parameters", exam.call(encoder_parameters, *sizes), counted_encoder(*sizes), known
        )

    def both(*sizes: int) -> None:
        names = dict(zip(("V", "L", "D", "F"), sizes, strict=True))
        known = mistakes(encoder_decoder_variant, ENCODER_DECODER, **names)
        got = exam.call(encoder_decoder_parameters, *sizes)
        count("the encoder-decoder's number of parameters", got, counted_encoder_decoder(*sizes), known)

    V, T, L, D, F = drawn(20, 90), drawn(5, 40), drawn(2, 6), 2 * drawn(3, 30), drawn(5, 80)
    with exam.part("a decoder with your sizes"):
        decoder(vocab_size, context, n_layers, d_model)
    with exam.part("a decoder with drawn sizes"):
        decoder(V, T, L, D)
    with exam.part("GPT-2, 124 million"):
        decoder(50257, 1024, 12, 768)
    with exam.part("an encoder with your sizes"):
        encoder(vocab_size, context, n_layers, d_model, d_ff)
    with exam.part("an encoder with drawn sizes"):
        encoder(V, T, L, D, F)
    with exam.part("MiniLM, 22.6 million"):
        encoder(30522, 512, 6, 384, 1536)
    with exam.part("an encoder-decoder with your sizes"):
        both(vocab_size, n_layers, d_model, d_ff)
    with exam.part("an encoder-decoder with drawn sizes"):
        both(V, L, D, F)
    with exam.part("the Transformer of 2017, 63 million"):
        both(37000, 6, 512, 2048)
    return exam.report()
