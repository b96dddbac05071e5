"""Perplexity: between how many tokens does a model waver?

    total nats        sum of -ln p(token | those before it) over the targets
    nats per token    total nats / number of targets              the cross-entropy
    perplexity        exp(nats per token)                         V for a model that knows nothing
    bits per byte     total nats / ln 2 / bytes of the text       8 for a model of bytes that knows nothing

Perplexities of two tokenizers cannot be compared: the one with the longer tokens has fewer and harder questions to
answer. Bits per byte can, as the bytes of the text (in UTF-8) are the same for both.

A text that is longer than the context is read in windows that may overlap. Each target counts once, in the first window
that reaches it, and after the first window each has at least context - stride + 1 tokens to look back to:

    context 4, stride 2        tokens    0 1 2 3 4 5 6 7 8
                               window 1  0 1 2 3             targets 1 2 3 4
                               window 2      2 3 4 5         targets         5 6
                               window 3          4 5 6 7     targets             7 8
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llm_core.checks import check_sizes

NO_TARGET = -1  # no token has it


@runtime_checkable
class Predicts(Protocol):
    """What is evaluated: ids (B, T) -> logits (B, T, V) of the token after each, which later tokens do not change."""

    def __call__(self, ids: Tensor) -> Any:
        """The logits (B, T, V)."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds some text.

    Attributes:
        total_nats: the sum of -ln p over the targets.
        n_tokens: the number of targets.
        n_bytes: how many bytes of UTF-8 the targets stand for; None where it was not said.

    Raises:
        ValueError: there is no target, or n_bytes is below 1.

    >>> known = Likelihood(total_nats=math.log(8) * 10, n_tokens=10, n_bytes=30)
    >>> round(known.perplexity, 3), round(known.bits_per_byte, 3)
    (8.0, 1.0)
    """

    total_nats: float
    n_tokens: int
    n_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise ValueError(f"a likelihood needs at least one target: got n_tokens={self.n_tokens}")
        _check_bytes(self.n_bytes)

    @property
    def nats_per_token(self) -> float:
        """The cross-entropy: the mean of -ln p over the targets."""
        return self.total_nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp of the nats per token; infinite where a target has no probability, or next to none."""
        return float(torch.tensor(self.nats_per_token, dtype=torch.float64).exp())  # math.exp would overflow

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model would need to write down one byte of the text.

        Raises:
            ValueError: the number of bytes was not said.
        """
        if self.n_bytes is None:
            raise ValueError("bits per byte needs the number of bytes: give n_bytes=len(text.encode()) when evaluating")
        return self.total_nats / math.log(2) / self.n_bytes


def text_likelihood(
    model: Predicts,
    ids: Int[Tensor, " ..."] | Sequence[int],
    *,
    context: int,
    stride: int | None = None,
    batch_size: int = 8,
    n_bytes: int | None = None,
) -> Likelihood:
    """The likelihood of one text of any length.

    The first token has nothing before it and is no target. If the whole text is to count, put a token before it that
    stands for the beginning of a text (GPT-2's <|endoftext|>, for one); `n_bytes` is then `len(text.encode())`.

    Args:
        model: reads from left to right. A module is put into eval mode, and back into its own afterwards.
        ids: the text, (N,); a tensor on the device of the model.
        context: the longest text that the model can read at once, in tokens.
        stride: by how many tokens the window moves on. The context unless given, which is quickest; smaller ones let
            each target look back further and cost context / stride as much.
        batch_size: how many windows are read at once. The result does not depend on it; the memory does.
        n_bytes: how many bytes the targets stand for, for bits per byte.

    Raises:
        ValueError: the text has fewer than two tokens or is not one row of ids, the stride is outside 1 ... context, or
            a size is below 1.
    """
    return texts_likelihood(model, [ids], context=context, stride=stride, batch_size=batch_size, n_bytes=n_bytes)


def texts_likelihood(
    model: Predicts,
    texts: Sequence[Int[Tensor, " ..."] | Sequence[int]],
    *,
    context: int,
    stride: int | None = None,
    batch_size: int = 8,
    n_bytes: int | None = None,
) -> Likelihood:
    """The likelihood of many texts of any lengths, all targets counting the same. No text sees another one.

    Arguments are those of `text_likelihood`. A text of fewer than two tokens has no target and adds nothing; `n_bytes`
    is that of all texts together.

    Raises:
        ValueError: as `text_likelihood`; or no text has a target.
    """
    stride = context if stride is None else stride
    check_sizes(context=context, batch_size=batch_size)
    if not 1 <= stride <= context:
        raise ValueError(
            f"the stride must be 1 ... context, else tokens are never or always read: got stride={stride}, "
            f"context={context}"
        )
    _check_bytes(n_bytes)
    windows = [window for text in texts for window in _windows(_as_row(text), context, stride)]
    if not windows:
        raise ValueError(
            f"there is no token to predict: got {len(texts)} texts, none of which has 2 tokens. Put a token before "
            "each that stands for the beginning of a text"
        )
    windows.sort(key=lambda window: len(window[0]))  # those read together need little padding
    batches = (_batch(windows[i : i + batch_size]) for i in range(0, len(windows), batch_size))
    return _sum_up(model, batches, NO_TARGET, n_bytes)


def masked_likelihood(
    model: nn.Module, batches: Iterable[tuple[tuple[Tensor, ...], Tensor]], *, ignore_id: int
) -> Likelihood:
    """How likely a model that reads both ways finds the tokens that were hidden from it.

    This is no likelihood of the text, as every guess sees most of the others' answers; compare it with its like only.

    Args:
        model: called as `model(*inputs)`, gives logits (B, T, V) of the token at each position.
        batches: (inputs, targets) pairs, as masking makes them; targets (B, T).
        ignore_id: the target of positions that do not count.

    Raises:
        ValueError: no position counts.

    Source: Devlin et al. 2019, section 3.1, for the task.
    """
    return _sum_up(model, batches, ignore_id, n_bytes=None)


def token_nats(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], *, ignore_id: int | None = None
) -> Float[Tensor, "B T"]:
    """-ln p(target) at each position, at least in single precision; zero where the target is `ignore_id`.

    >>> token_nats(torch.zeros(1, 2, 8), torch.tensor([[3, -1]]), ignore_id=-1)
    tensor([[2.0794, 0.0000]])
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    skipped = torch.zeros_like(targets, dtype=torch.bool) if ignore_id is None else targets == ignore_id
    nats = F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(skipped, 0).flatten().long(), reduction="none")
    return nats.view_as(targets).masked_fill(skipped, 0.0)


def _windows(ids: Tensor, context: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs and targets of each window, (T,) each; targets that an earlier window has counted are NO_TARGET."""
    done = 0
    while done < len(ids) - 1:
        # The first window counts `context` targets, each one after it `stride`.
        start = 0 if done == 0 else done - (context - stride)
        stop = min(start + context, len(ids) - 1)
        targets = ids[start + 1 : stop + 1].clone()
        targets[: done - start] = NO_TARGET
        yield ids[start:stop], targets
        done = stop


def _batch(windows: list[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor], Tensor]:
    """Windows side by side, padded on the right, where a model that reads from left to right does not see it."""
    inputs, targets = zip(*windows, strict=True)
    return (
        (pad_sequence(list(inputs), batch_first=True, padding_value=0),),
        pad_sequence(list(targets), batch_first=True, padding_value=NO_TARGET),
    )


def _sum_up(
    model: Any, batches: Iterable[tuple[tuple[Tensor, ...], Tensor]], ignore_id: int, n_bytes: int | None
) -> Likelihood:
    total, n_tokens = 0.0, 0
    with _in_eval_mode(model), torch.no_grad():
        for inputs, targets in batches:
            # Many small numbers: in double precision their order, and so the batch size, does not matter.
            total += float(token_nats(model(*inputs), targets, ignore_id=ignore_id).double().sum())
            n_tokens += int((targets != ignore_id).sum())
    if n_tokens == 0:
        raise ValueError(f"there is no token to predict: every target is ignore_id={ignore_id}, or none came")
    return Likelihood(total, n_tokens, n_bytes)


@contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    """Dropout off; then every part of the model back in its own mode (parts may differ: a frozen one, for instance)."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def _as_row(text: Tensor | Sequence[int]) -> Tensor:
    ids = text if isinstance(text, Tensor) else torch.tensor(text, dtype=torch.long)
    if ids.ndim != 1:
        raise ValueError(f"a text is one row of ids, (N,): got {tuple(ids.shape)}. Give rows as a list of texts")
    if ids.numel() and int(ids.min()) < 0:
        raise ValueError(f"ids are 0 or more: got {int(ids.min())}. Leave padding out")
    return ids


def _check_bytes(n_bytes: int | None) -> None:
    if n_bytes is not None and n_bytes < 1:
        raise ValueError(f"a text has at least one byte: got n_bytes={n_bytes}")
