"""What a configuration describes: the model, what takes the steps, the rate of each, the batch of each, and the loss.

Where the work is done is said in one place, `Place`: on one device by default. A run of several processes has another
place, whose `rank` and `world` choose the rows and whose `step` adds up the gradients; nothing else changes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from llm_core.data.shards import TokenShards
from llm_core.evaluation.perplexity import Likelihood, texts_likelihood
from llm_core.models.bert import Bert, BertConfig, MaskedLanguageModel
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.recipes.config import ConfigError, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from llm_core.text.load import Loaded
from llm_core.text.wordpiece_fast import WordPieceTokenizer
from llm_core.training.batches import Batch
from llm_core.training.compiled import Compiled
from llm_core.training.losses import CrossEntropy, Loss
from llm_core.training.masking import IGNORE_ID, mask_tokens
from llm_core.training.muon import Muon, muon_groups
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.schedule import warmup_cosine, warmup_stable_decay
from llm_core.training.step import StepRecord, train_step
from llm_core.training.windows import WindowSampler

EVALUATION_SEED = 0  # of what is hidden in held-out text: the same at every look
AT_ONCE = 8  # rows that an evaluation reads together


@dataclass(frozen=True)
class Place:
    """Where a run works: a device, and this process among those that share the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def put(self, model: nn.Module) -> nn.Module:
        """The model as this place trains it."""
        return model.to(self.device)

    def step(
        self, model: nn.Module, parts: Sequence[Batch], optimizer: torch.optim.Optimizer, **how: Any
    ) -> StepRecord:
        """One step; arguments are those of `train_step`."""
        return train_step(model, [on_device(part, self.device) for part in parts], optimizer, **how)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch, moved to where the model is."""
    return Batch(tuple(ids.to(device) for ids in batch.inputs), batch.targets.to(device))


def place_of(run: RunConfig) -> Place:
    """The device that `[run]` asks for.

    Raises:
        ConfigError: there is no GPU, or several processes were started, which this command does not divide work among.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} processes were started, and each would train the whole model by "
            "itself: start one. llm_core.distributed.parallelize trains one model on several"
        )
    here = torch.cuda.is_available()
    if run.device == "cuda" and not here:
        raise ConfigError('run.device = "cuda", and PyTorch finds no GPU here: take "cpu" or "auto"')
    return Place(torch.device("cuda" if here and run.device != "cpu" else "cpu"))


def model_of(config: ModelConfig, vocab_size: int) -> GPT | Llama | MaskedLanguageModel:
    """The model, with weights drawn from torch's global generator.

    The biases of BERT's head and its segments are those of the published class.
    """
    if config.kind == "gpt":
        return GPT(
            GPTConfig(
                vocab_size, config.context, config.n_layers, config.n_heads, config.d_model, config.dropout, config.d_ff
            )
        )
    if config.kind == "llama":
        return Llama(
            LlamaConfig(
                vocab_size,
                config.context,
                config.n_layers,
                config.n_heads,
                config.n_kv_heads or config.n_heads,
                config.d_model,
                config.d_ff,
            )
        )
    return MaskedLanguageModel(
        Bert(
            BertConfig(
                vocab_size,
                config.context,
                config.n_layers,
                config.n_heads,
                config.d_model,
                config.d_ff,
                dropout=config.dropout,
            )
        )
    )


def optimizer_of(config: OptimizerConfig, model: nn.Module, *, lr: float) -> torch.optim.Optimizer:
    """What takes the steps. Adam is AdamW without weight decay."""
    options: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.kind == "muon":
        return Muon(muon_groups(model, config.weight_decay), lr, **options)
    return AdamW(decay_groups(model, config.weight_decay), lr, **options)


def schedule_of(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step, which counts from 0. Shares of the steps are rounded down."""
    warmup, decay = int(config.warmup * steps), int(config.decay * steps)
    if config.kind == "cosine":
        return lambda step: warmup_cosine(step, peak=config.peak, warmup=warmup, total=steps, floor=config.floor)
    if config.kind == "stable":
        return lambda step: warmup_stable_decay(
            step, peak=config.peak, warmup=warmup, decay=decay, total=steps, floor=config.floor
        )
    return lambda step: warmup_stable_decay(step, peak=config.peak, warmup=warmup, decay=0, total=steps)


def loss_of(config: TrainConfig) -> Loss:
    """What is made small, compiled or not."""
    loss: Loss = CrossEntropy(ignore_id=IGNORE_ID if config.objective == "masked" else None)
    return Compiled(loss) if config.run.compile else loss


def precision_of(run: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """What the forward pass runs under."""
    return torch.autocast(device.type, torch.bfloat16) if run.dtype == "bfloat16" else nullcontext()


class Batches:
    """The batch of each step. Where tokens are hidden, `draws` says which, and its state belongs to the run.

    Raises:
        ConfigError: the text is too short for one row, or the tokenizer has no [MASK].
    """

    def __init__(
        self, config: TrainConfig, tokens: TokenShards | Int[Tensor, " N"], tokenizer: Loaded, place: Place
    ) -> None:
        self.masked, self.tokenizer = config.objective == "masked", tokenizer
        self.length = config.model.context - 2 * self.masked  # room for [CLS] and [SEP]
        self.parts = config.run.parts
        self.draws = torch.Generator().manual_seed(config.run.seed)
        if len(tokens) <= self.length:
            raise ConfigError(
                f"model.context = {config.model.context}, and the whole text for training has {len(tokens):,} tokens: "
                "give more text, or a shorter context"
            )
        self.sampler = WindowSampler(
            tokens,
            batch_size=config.run.batch_size,
            length=self.length,
            seed=config.run.seed,
            rank=place.rank,
            world=place.world,
        )

    def __call__(self, step: int) -> list[Batch]:
        """The parts of the batch of a step."""
        batch = self.sampler.batch(step)
        rows = -(-len(batch.targets) // self.parts)
        if self.masked:
            batch = hidden(self.tokenizer, batch.inputs[0], self.draws)
        return [
            Batch((inputs,), targets)
            for inputs, targets in zip(batch.inputs[0].split(rows), batch.targets.split(rows), strict=True)
        ]


def hidden(tokenizer: Loaded, ids: Int[Tensor, "B T"], draws: torch.Generator) -> Batch:
    """Rows of a text as BERT reads them: [CLS] and [SEP] around each, and some tokens hidden, at least one.

    Raises:
        ConfigError: the tokenizer lacks a token that this needs.
    """
    if not isinstance(tokenizer, WordPieceTokenizer) or "[MASK]" not in tokenizer.vocabulary:
        raise ConfigError(
            'objective = "masked" needs a WordPiece tokenizer with [MASK], [CLS] and [SEP]: this has none'
        )
    edges = [torch.full((len(ids), 1), id_) for id_ in (tokenizer.cls_id, tokenizer.sep_id)]
    rows = torch.cat([edges[0], ids, edges[1]], dim=1)
    while True:
        batch = mask_tokens(
            rows,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=[tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id],
            generator=draws,
        )
        if (batch.targets != IGNORE_ID).any():
            return batch


@torch.no_grad()
def masked_likelihood(
    model: nn.Module, tokenizer: Loaded, texts: Sequence[Sequence[int]], *, context: int, device: torch.device
) -> Likelihood:
    """How likely a masked model finds the tokens that are hidden from it, 15 % of each text, by a seed of its own.

    It is no likelihood of the text, for each token is guessed from both sides: bits per byte cannot be had of it.

    Raises:
        ValueError: there is no text.
    """
    draws, loss = torch.Generator().manual_seed(EVALUATION_SEED), CrossEntropy(ignore_id=IGNORE_ID)
    was_training, nats, n = model.training, 0.0, 0
    model.eval()
    try:
        for text in texts:
            for begin in range(0, len(text), context - 2):
                row = torch.tensor([list(text[begin : begin + context - 2])])
                batch = on_device(hidden(tokenizer, row, draws), device)
                nats, n = nats + loss.total(model, batch).item(), n + int(loss.count(batch))
    finally:
        model.train(was_training)
    if not math.isfinite(nats):
        return Likelihood(math.inf, max(n, 1))
    return Likelihood(nats, n)


def held_out(
    config: TrainConfig,
    model: nn.Module,
    tokenizer: Loaded,
    texts: Sequence[Sequence[int]],
    *,
    n_bytes: int | None = None,
    device: torch.device,
) -> Likelihood:
    """How likely the model finds texts that it has not learned from, by its own objective."""
    if config.objective == "masked":
        return masked_likelihood(model, tokenizer, texts, context=config.model.context, device=device)
    rows = [torch.tensor(text, device=device) for text in texts]
    return texts_likelihood(model, rows, context=config.model.context, batch_size=AT_ONCE, n_bytes=n_bytes)
