"""Checks `n_parameters`, `forward_flops` and `cache_bytes` against torch's modules, FLOP counter and tensors."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llm_core.exercises.exam import Exam, Mistake, Wrong, generator, mistakes, positive, wrong
from llm_core.exercises.report import Report

PARAMETERS = (
    Mistake(
        "one_table_for_both_ends",
        "The embedding and the output head are counted once.",
        "Here they are two tables of V rows and D columns. Models that share one are called tied.",
        ({"tables": 1},),
    ),
    Mistake(
        "keys_and_values_for_every_head",
        "Keys and values are counted for all H heads.",
        "With grouped queries there are K heads of keys and values: their projections have the shape (D, K E).",
        ({"kv": "H"},),
    ),
    Mistake(
        "output_projection_missing",
        "The output projection of attention is missing.",
        "After the heads are joined, one more matrix maps H E numbers back to D.",
        ({"out": False},),
    ),
    Mistake(
        "gate_missing",
        "The feed-forward layer is counted with two matrices.",
        "SwiGLU has three: up, gate and down.",
        ({"ff": 2},),
    ),
    Mistake(
        "norms_missing",
        "The scales of the norms are missing.",
        "Two norms of D numbers in every layer, and one after the last.",
        ({"norms": "none"},),
    ),
    Mistake(
        "last_norm_missing",
        "The norm after the last layer is missing.",
        "It stands before the output head and has D numbers.",
        ({"norms": "of layers"},),
    ),
    Mistake(
        "biases_counted",
        "There are too many numbers: one for each output of a matrix more, as if there were biases.",
        "The matrices of a Llama have none.",
        ({"biases": True},),
    ),
    Mistake(
        "layers_forgotten",
        "Only one layer is counted.",
        "Everything inside a block is there L times.",
        ({"layers": 1},),
    ),
)

FLOPS = (
    Mistake(
        "multiplications_only",
        "This is half of the FLOPs: multiplications without their additions.",
        "Each number of a matrix product takes n multiplications and n additions, 2 n FLOPs.",
        ({"factor": 1},),
    ),
    Mistake(
        "attention_forgotten",
        "The products without weights are missing: scores, and weighted sums of the values.",
        "Every query meets every key once for its score and once for the sum, in every head.",
        ({"attention": "none"},),
    ),
    Mistake(
        "scores_only",
        "Of attention only one product is counted; there are two.",
        "The scores take 2 T S E FLOPs for each head, and the weighted sum of the values as many again.",
        ({"attention": "half"},),
    ),
    Mistake(
        "attention_of_kv_heads",
        "The scores are counted for the K heads of keys.",
        "Each of the H query heads computes scores of its own; heads in a group only share the keys.",
        ({"attention": "K"},),
    ),
    Mistake(
        "tokens_meet_tokens_only",
        "The scores are counted for T keys.",
        "There are S of them: what is in the cache counts too.",
        ({"attention": "T x T"},),
    ),
    Mistake(
        "embedding_is_a_product",
        "The embedding is counted as a matrix product.",
        "It is looked up: a row is copied, nothing is multiplied.",
        ({"head": 2},),
    ),
    Mistake(
        "head_forgotten",
        "The output head is missing.",
        "Each token's last vector is multiplied with a matrix of D rows and V columns.",
        ({"head": 0},),
    ),
    Mistake(
        "backward_counted",
        "This is a training step: three times the forward pass.",
        "Asked for is the forward pass alone.",
        ({"factor": 6},),
    ),
)

CACHE = (
    Mistake(
        "keys_only",
        "Only the keys are counted, or only the values.",
        "The cache holds both.",
        ({"both": 1},),
    ),
    Mistake(
        "cache_of_every_head",
        "The cache is counted for all H heads.",
        "Only the K heads of keys and values are kept. That is what grouped queries are for.",
        ({"heads": "H"},),
    ),
    Mistake(
        "cache_of_one_layer",
        "The cache of a single layer is counted.",
        "Every layer keeps keys and values of its own.",
        ({"layers": 1},),
    ),
    Mistake(
        "width_not_divided",
        "Each head is counted with the whole width D.",
        "A head is E = D / H numbers wide.",
        ({"width": "D"},),
    ),
    Mistake(
        "numbers_not_bytes",
        "These are numbers, not bytes.",
        "Each number takes `number` bytes.",
        ({"size": "none"},),
    ),
    Mistake(
        "bits_not_bytes",
        "These are bits.",
        "`number` is in bytes already.",
        ({"size": "bits"},),
    ),
)

Sizes = tuple[int, int, int, int, int, int]  # V, L, H, K, D, F

LLAMA_3_8B: Sizes = (128256, 32, 32, 8, 4096, 14336)


def modules(V: int, L: int, H: int, K: int, D: int, F: int) -> nn.ModuleDict:
    """The layers, in torch's modules and without memory: what is counted is what torch made."""
    E = D // H
    with torch.device("meta"):
        linear = [
            [(D, H * E), (D, K * E), (D, K * E), (H * E, D), (D, F), (D, F), (F, D)] for _ in range(L)
        ]  # query, key, value, output, up, gate, down
        blocks = nn.ModuleList(nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in block) for block in linear)
        norms = nn.ModuleList(nn.RMSNorm(D) for _ in range(2 * L + 1))
        return nn.ModuleDict(
            {
                "embedding": nn.Embedding(V, D),
                "blocks": blocks,
                "norms": norms,
                "head": nn.Linear(D, V, bias=False),
            }
        )


@cache
def counted_parameters(sizes: Sizes) -> int:
    """How many numbers torch's modules hold."""
    return sum(parameter.numel() for parameter in modules(*sizes).parameters())


@cache
def counted_flops(sizes: Sizes, T: int, S: int) -> int:
    """What torch's counter sees when T tokens pass through the products."""
    _, _, H, _, D, _ = sizes
    E = D // H
    model: Any = modules(*sizes)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = model["embedding"](torch.zeros(T, dtype=torch.long))
        for query, key, value, output, up, gate, down in model["blocks"]:
            q = query(x).unflatten(-1, (H, E)).transpose(0, 1)
            key(x), value(x)
            keys = torch.zeros(H, S, E)  # those of the cache among them, shared within a group
            mixed = (q @ keys.transpose(1, 2)) @ keys
            x = output(mixed.transpose(0, 1).flatten(1))
            x = down(up(x) * gate(x))
        model["head"](x)
    return int(counter.get_total_flops())


def parameters_variant(
    V: int,
    L: int,
    H: int,
    K: int,
    D: int,
    F: int,
    *,
    tables: int = 2,
    kv: str = "K",
    out: bool = True,
    ff: int = 3,
    norms: str = "all",
    biases: bool = False,
    layers: int | None = None,
) -> Tensor:
    """The number of parameters with a knob for every usual mistake; as it stands, it is right."""
    E = D // H
    KE = {"K": K, "H": H}[kv] * E
    block = D * H * E + 2 * D * KE + out * H * E * D + ff * D * F
    block += 2 * D * (norms != "none")
    block += biases * (H * E + 2 * KE + D + 2 * F + D)
    total = tables * V * D + (L if layers is None else layers) * block + D * (norms == "all")
    return torch.tensor(float(total), dtype=torch.float64)


def flops_variant(
    V: int,
    L: int,
    H: int,
    K: int,
    D: int,
    F: int,
    T: int,
    S: int,
    *,
    factor: int = 2,
    attention: str = "all",
    head: int = 1,
) -> Tensor:
    """The FLOPs of a forward pass with a knob for every usual mistake; as it stands, it is right."""
    E = D // H
    weights = L * (2 * D * H * E + 2 * D * K * E + 3 * D * F) + head * V * D
    pairs = {
        "all": 2 * H * T * S,
        "none": 0,
        "half": H * T * S,
        "K": 2 * K * T * S,
        "T x T": 2 * H * T * T,
    }[attention]
    return torch.tensor(float(factor * (T * weights + L * E * pairs)), dtype=torch.float64)


def cache_variant(
    L: int,
    H: int,
    K: int,
    D: int,
    S: int,
    number: int,
    *,
    both: int = 2,
    heads: str = "K",
    layers: int | None = None,
    width: str = "E",
    size: str = "bytes",
) -> Tensor:
    """The bytes of a cache with a knob for every usual mistake; as it stands, it is right."""
    numbers = both * (L if layers is None else layers) * {"K": K, "H": H}[heads] * {"E": D // H, "D": D}[width] * S
    return torch.tensor(float(numbers * {"bytes": number, "none": 1, "bits": 8 * number}[size]), dtype=torch.float64)


def examine(
    n_parameters: Any,
    forward_flops: Any,
    cache_bytes: Any,
    *,
    seed: int,
    vocab_size: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_model: int,
    d_ff: int,
) -> Report:
    """Check a learner's `n_parameters`, `forward_flops` and `cache_bytes`.

    Raises:
        ValueError: a size or the seed is out of range, or heads do not divide.
    """
    given = {
        "vocab_size": vocab_size,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_model": d_model,
        "d_ff": d_ff,
    }
    positive(**given)
    if n_heads % n_kv_heads or d_model % n_heads:
        raise ValueError(
            f"n_kv_heads must divide n_heads, and n_heads d_model, got {n_kv_heads}, {n_heads} and {d_model}: change "
            "the parameters cell"
        )
    source = generator(seed)
    exam = Exam("04/06_compute", {"seed": seed, **given}, rtol=0.0, atol=0.25)  # whole numbers

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
                "Write down every matrix with its shape, and how often it is there.",
                about=what,
            ) from None

    def parameters(sizes: Sizes) -> None:
        expected = counted_parameters(sizes)
        got = exam.call(n_parameters, *sizes)
        names = dict(zip("VLHKDF", sizes, strict=True))
        count("the number of parameters", got, expected, mistakes(parameters_variant, PARAMETERS, **names))

    def flops(sizes: Sizes, T: int, S: int) -> None:
        got = exam.call(forward_flops, *sizes, T, S)
        names = {**dict(zip("VLHKDF", sizes, strict=True)), "T": T, "S": S}
        count("the number of FLOPs", got, counted_flops(sizes, T, S), mistakes(flops_variant, FLOPS, **names))

    def cache(sizes: Sizes, S: int, kind: torch.dtype) -> None:
        _, L, H, K, D, _ = sizes
        expected = torch.empty(2, L, K, S, D // H, dtype=kind, device="meta").nbytes
        got = exam.call(cache_bytes, L, H, K, D, S, kind.itemsize)
        names = {"L": L, "H": H, "K": K, "D": D, "S": S, "number": kind.itemsize}
        count("the number of bytes", got, expected, mistakes(cache_variant, CACHE, **names))

    yours: Sizes = (vocab_size, n_layers, n_heads, n_kv_heads, d_model, d_ff)
    T, past = drawn(3, 12), drawn(3, 30)
    one_head: Sizes = (drawn(20, 90), 3, 1, 1, drawn(4, 30), drawn(5, 80))
    grouped: Sizes = (drawn(20, 90), drawn(2, 6), 12, 4, 12 * drawn(2, 6), drawn(50, 200))
    for name, sizes in (("your sizes", yours), ("grouped queries", grouped), ("one head", one_head)):
        with exam.part(f"the parameters with {name}"):
            parameters(sizes)
    with exam.part("the parameters of Llama 3 8B"):
        parameters(LLAMA_3_8B)
    with exam.part("a text with your sizes, and some in the cache"):
        flops(yours, T, T + past)
    with exam.part("a text with grouped queries"):
        flops(grouped, T, T)
    with exam.part("one token after many"):
        flops(grouped, 1, 100 + past)
    with exam.part("one token of Llama 3 8B"):
        flops(LLAMA_3_8B, 1, 8192)
    with exam.part("the cache with your sizes"):
        cache(yours, T + past, torch.float32)
    with exam.part("the cache with grouped queries"):
        cache(grouped, 100 + past, torch.bfloat16)
    with exam.part("the cache of Llama 3 8B"):
        cache(LLAMA_3_8B, 8192, torch.int8)
    return exam.report()
