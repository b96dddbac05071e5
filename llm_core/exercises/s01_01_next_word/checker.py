"""Checks `windows`, `log_probabilities` and `mean_model` against torch's own layers and functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llm_core.exercises.exam import Exam, Mistake, generator, mistakes, positive
from llm_core.exercises.report import Report
from llm_core.exercises.s01_01_next_word.spec import logarithms, network, text

WINDOWS = (
    Mistake(
        "word_in_its_context",
        "The word to be predicted stands in its own context.",
        "The word of context i is the one right after it: `ids[i + n]`.",
        ({"word": "last"},),
    ),
    Mistake(
        "last_window_missing",
        "The last context is missing.",
        "The last word of the text has a context, too: there are T - n of them.",
        ({"until": "before the last"},),
    ),
    Mistake(
        "side_by_side",
        "The contexts do not overlap.",
        "Each begins one word after the one before: every word of the text but the first n has a context.",
        ({"step": "a window"},),
    ),
    Mistake(
        "backwards",
        "The words of each context stand in reverse order.",
        "The oldest word comes first.",
        ({"order": "newest first"},),
    ),
)

NETWORK = (
    Mistake(
        "no_tanh",
        "There is no tanh between the two matrix products.",
        "Without it the whole is one matrix product, whatever its size.",
        ({"bend": "nothing"},),
    ),
    Mistake(
        "relu_for_tanh",
        "The mixed numbers go through relu, not tanh.",
        "The model of 2003 has tanh.",
        ({"bend": "relu"},),
    ),
    Mistake(
        "no_bias",
        "The bias is not added.",
        "Each word of the vocabulary has one, which says how frequent it is.",
        ({"bias_used": False},),
    ),
    Mistake(
        "newest_first",
        "The rows of the newest word come first.",
        "The first D numbers are those of the oldest word.",
        ({"order": "newest first"},),
    ),
    Mistake(
        "numbers_interleaved",
        "The numbers of the words of a context are interleaved.",
        "All D numbers of the first word, then all D of the second: `flatten(1)` on (N, n, D).",
        ({"order": "interleaved"},),
    ),
    Mistake(
        "not_logarithms",
        "These are probabilities, not their logarithms.",
        "torch.log_softmax gives the logarithm at once.",
        ({"out": "probabilities"},),
    ),
    Mistake(
        "not_normalised",
        "These are the logits; their exponentials do not sum to one.",
        "log_softmax over the vocabulary is missing.",
        ({"out": "logits"},),
    ),
    Mistake(
        "over_the_contexts",
        "The probabilities sum to one over the contexts, not over the vocabulary.",
        "The vocabulary is the last dimension.",
        ({"out": "over contexts"},),
    ),
)

MEAN = (
    Mistake(
        "mean_of_logarithms",
        "This is the mean of the logarithms, which is the geometric mean of the probabilities.",
        "The mean is taken of the probabilities, and its logarithm then. Over a vocabulary geometric means do not sum "
        "to one.",
        ({"of": "logarithms"},),
    ),
    Mistake(
        "sum_for_mean",
        "The two probabilities are added and not divided by two.",
        "The logarithm of a half is -ln 2.",
        ({"half": "no"},),
    ),
    Mistake(
        "half_of_the_logarithm",
        "The logarithm of the sum is divided by two, not the sum.",
        "To divide by two before the logarithm is to subtract ln 2 after it.",
        ({"half": "after"},),
    ),
    Mistake(
        "not_a_logarithm",
        "This is the mean probability; its logarithm is asked for.",
        "The results go into a perplexity, which is made of logarithms.",
        ({"out": "probability"},),
    ),
    Mistake(
        "larger_of_two",
        "This is the larger of the two.",
        "Both models count, each for a half.",
        ({"of": "larger"},),
    ),
)


def windows_variant(
    ids: Tensor, n: int, *, word: str = "next", until: str = "the last", step: str = "one", order: str = "oldest first"
) -> tuple[Tensor, Tensor]:
    """Contexts and words, with a knob for every usual mistake; as it stands, it is right."""
    starts = range(0, len(ids) - n - (until == "before the last"), n if step == "a window" else 1)
    contexts = torch.stack([ids[i : i + n] for i in starts]) if starts else ids.new_zeros(0, n)
    words = ids[[i + n - (word == "last") for i in starts]]
    return (contexts.flip(1) if order == "newest first" else contexts), words


def network_variant(
    contexts: Tensor,
    table: Tensor,
    mix: Tensor,
    bias: Tensor,
    *,
    bend: str = "tanh",
    bias_used: bool = True,
    order: str = "oldest first",
    out: str = "logarithms",
) -> Tensor:
    """Log-probabilities, with a knob for every usual mistake; as it stands, it is right."""
    rows = table[contexts]
    if order == "newest first":
        rows = rows.flip(1)
    elif order == "interleaved":
        rows = rows.transpose(1, 2)
    mixed = rows.flatten(1) @ mix
    mixed = {"tanh": mixed.tanh(), "relu": mixed.relu(), "nothing": mixed}[bend]
    logits = mixed @ table.T + (bias if bias_used else 0)
    return {
        "logarithms": logits.log_softmax(-1),
        "probabilities": logits.softmax(-1),
        "logits": logits,
        "over contexts": logits.log_softmax(0),
    }[out]


def mean_variant(
    first: Tensor, second: Tensor, *, of: str = "probabilities", half: str = "yes", out: str = ""
) -> Tensor:
    """The logarithm of the mean, with a knob for every usual mistake; as it stands, it is right."""
    if of == "logarithms":
        return (first + second) / 2
    if of == "larger":
        return torch.maximum(first, second)
    both = torch.logaddexp(first, second)
    result = {"yes": both - math.log(2), "no": both, "after": both / 2}[half]
    return result.exp() if out == "probability" else result


def reference(contexts: Tensor, table: Tensor, mix: Tensor, bias: Tensor) -> Tensor:
    """The log-probabilities of the same network, made of torch's layers."""
    V, D = table.shape
    embedding = nn.Embedding(V, D, _weight=table)
    mixing, head = nn.Linear(len(mix), D, bias=False), nn.Linear(D, V)
    with torch.no_grad():
        mixing.weight.copy_(mix.T)
        head.weight.copy_(table)
        head.bias.copy_(bias)
        model = nn.Sequential(embedding, nn.Flatten(), mixing, nn.Tanh(), head, nn.LogSoftmax(-1))
        return model(contexts)


def examine(
    windows: Any, log_probabilities: Any, mean_model: Any, *, seed: int, window: int, width: int, vocab_size: int
) -> Report:
    """Check a learner's `windows`, `log_probabilities` and `mean_model`.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    positive(window=window, width=width, vocab_size=vocab_size)
    source = generator(seed)
    exam = Exam("01/01_next_word", {"seed": seed, "window": window, "width": width, "vocab_size": vocab_size})

    def cut(ids: Tensor, n: int) -> None:
        got = exam.unpack(exam.call(windows, ids, n), "contexts, words")
        expected = [ids[i : i + n].tolist() for i in range(len(ids) - n)], ids[n:].tolist()
        for place, what in enumerate(("the contexts", "the words")):
            known = (
                (explanation, result[place])
                for explanation, result in mistakes(windows_variant, WINDOWS, ids=ids, n=n)  # type: ignore[arg-type]
            )
            exam.compare(exam.tensor(got[place], what), torch.tensor(expected[place]), known, what=what)

    def predicted(contexts: Tensor, table: Tensor, mix: Tensor, bias: Tensor) -> None:
        got = exam.tensor(exam.call(log_probabilities, contexts, table, mix, bias), "the log-probabilities")
        known = mistakes(network_variant, NETWORK, contexts=contexts, table=table, mix=mix, bias=bias)
        exam.compare(got, reference(contexts, table, mix, bias), known, what="the log-probabilities")

    def mean(first: Tensor, second: Tensor) -> None:
        got = exam.tensor(exam.call(mean_model, first, second), "the logarithms of the mean")
        expected = ((first.double().exp() + second.double().exp()) / 2).log().float()
        known = mistakes(mean_variant, MEAN, first=first, second=second)
        exam.compare(got, expected, known, what="the logarithms of the mean")

    with exam.part("the windows of your text"):
        cut(text(source, 3 * window + 4, vocab_size), window)
    with exam.part("the windows of ten words"):
        cut(torch.arange(10), 3)
    with exam.part("your network"):
        predicted(*network(source, 6, window, width, vocab_size))
    with exam.part("a network of four words of context"):
        predicted(*network(source, 5, 4, 3, 8))
    with exam.part("two models on your text"):
        mean(*logarithms(source, 3 * window))
    with exam.part("two models on five words"):
        mean(*logarithms(source, 5))
    return exam.report()
