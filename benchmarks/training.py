"""Training on a CPU, beside the peers: one step on the same batch of random tokens, again and again.

    article   2 layers, 8 heads, D 512, V 30000, T 128, B 16   the model of the book's project; the head is most of it
    medium    6 layers, 6 heads, D 384, V 65,    T 256, B 8    nanoGPT's model of characters, in smaller batches
    small     4 layers, 4 heads, D 128, V 65,    T 64,  B 12   what nanoGPT trains on a laptop

Each in three ways:

    eager          float32, no compiler: for a peer the loop that a tutorial would write, for llm_core the same with
                   torch's fused AdamW, and with memory kept or, where logits are large, the head and loss in chunks
    best           what helps on a processor that multiplies bf16 (AVX-512 BF16, AMX). For a peer that is its own model
                   with bf16 autocast, torch.compile and fused AdamW; for llm_core it is what `training/` offers
    best-float32   the same on all others, where bf16 is slower by far

In `best`, llm_core's model is bf16 itself, with float32 masters; beside it stands the same under autocast, which is
what the peers have. Much of the gain is memory that is kept, so one peer is shown with that as well. The small model
has no `best`, as bf16 does not help it, but `small-compiled`: GPT-2 compiled, and the leanest GPT, once from our layers
and once in plain torch.

The last contender takes no step: it only multiplies matrices of the sizes that a step needs. What it takes is the least
that a step can take on this processor, as long as it multiplies through torch.

A turn is a few steps: forward, loss, backward, clipping, update. All have about the same number of parameters, and all
but litgpt a tied output head; llm_core and transformers have the same GPT-2, and their losses must agree. litgpt and
x-transformers have the exact GELU, which torch computes in a third of the time of GPT-2's approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from side_by_side import Contender, Turn


@dataclass(frozen=True)
class Work:
    """The sizes of a task, and how many steps make a turn."""

    vocab_size: int
    n_layers: int
    n_heads: int
    d_model: int
    length: int
    batch: int
    steps: int

    def ids(self) -> Any:
        import torch

        ids = torch.randint(self.vocab_size, (self.batch, self.length + 1), generator=torch.Generator().manual_seed(1))
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


WORK = {
    "article": Work(30000, 2, 8, 512, 128, 16, 1),
    "medium": Work(65, 6, 6, 384, 256, 8, 1),
    "small": Work(65, 4, 4, 128, 64, 12, 20),
}
LR, MAX_NORM = 1e-4, 1.0


def our_model(work: Work) -> Any:
    import torch

    from llm_core.models.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    return GPT(GPTConfig(work.vocab_size, work.length, work.n_layers, work.n_heads, work.d_model))


def lean_model(work: Work) -> Any:
    """The package's layers put together as in `lean`: no biases, the exact GELU, and no mask to read."""
    from cpu import causal_attention
    from torch import nn

    from llm_core.layers.attention import MultiHeadAttention
    from llm_core.layers.blocks import PreNormBlock
    from llm_core.layers.feedforward import FeedForward, fused_gelu
    from llm_core.layers.norms import LayerNorm

    model, D = our_model(work), work.d_model
    model.blocks = nn.ModuleList(
        PreNormBlock(
            MultiHeadAttention(D, work.n_heads, bias=False),
            FeedForward(D, 4 * D, activation=fused_gelu, bias=False),
            (LayerNorm(D, bias=False), LayerNorm(D, bias=False)),
        )
        for _ in range(work.n_layers)
    )
    model.norm = LayerNorm(D, bias=False)
    model._init_weights()
    causal_attention(model)
    return model


def warmed(step: Callable[[], float], steps: int) -> Turn:
    """A turn of some steps, after the steps in which memory is laid out and graphs are compiled."""
    first = step()
    step()

    def turn() -> float:
        for _ in range(steps):
            step()
        return first

    return turn


def ours(
    work: Work,
    *,
    chunk: int | None = None,
    bf16: bool = False,
    fused: bool = False,
    compiled: bool = False,
    cpu: bool = False,
    masters: bool = False,
    made: Callable[[Work], Any] = our_model,
) -> Callable[[], Turn]:
    """llm_core's own step; the arguments are what its reader would switch on, and how the model is made."""

    def prepare() -> Turn:
        import contextlib

        import torch
        from cpu import keep_memory, short_attention

        from llm_core.training.batches import Batch
        from llm_core.training.chunked import ChunkedCrossEntropy
        from llm_core.training.compiled import Compiled
        from llm_core.training.losses import CrossEntropy
        from llm_core.training.masters import MasterWeights
        from llm_core.training.optimizer import AdamW
        from llm_core.training.step import train_step

        model = made(work)
        if cpu:
            keep_memory()
        if cpu and bf16:  # which is what it is for
            short_attention(model)
        ids, targets = work.ids()
        batch = Batch((ids,), targets)
        if fused:
            optimizer: Any = torch.optim.AdamW(model.parameters(), fused=True)
        else:
            optimizer = AdamW(model.parameters())
        if masters:
            optimizer = MasterWeights(model, optimizer)
        loss: Any = CrossEntropy() if chunk is None else ChunkedCrossEntropy(chunk)
        if compiled and chunk is None:
            loss = Compiled(loss)
        elif compiled:
            loss = ChunkedCrossEntropy(chunk, hidden=torch.compile(lambda model, ids: model.hidden(ids)))
        # With masters the whole model is bf16, and there is nothing to cast.
        autocast = bf16 and not masters
        precision: Any = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

        def step() -> float:
            record = train_step(model, batch, optimizer, lr=LR, loss=loss, max_norm=MAX_NORM, precision=precision)
            return round(record.loss, 1 if bf16 else 3)

        turn = warmed(step, work.steps)
        return turn if made is our_model else lambda: turn() and None  # weights of its own

    return prepare


def products_alone(work: Work, *, bf16: bool = False) -> Callable[[], Turn]:
    """The matrix products of a step, forward and backward, those of attention aside; and nothing else."""

    def prepare() -> Turn:
        import torch

        D, V, N = work.d_model, work.vocab_size, work.batch * work.length
        block = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]
        layers = block * work.n_layers + [(D, V)]

        def tensors(width: int, out: int) -> list[Any]:
            sizes = [(N, width), (width, out), (N, out)]
            made = [torch.randn(size).to(torch.bfloat16 if bf16 else torch.float32) for size in sizes]
            return [*made, *(torch.empty_like(tensor) for tensor in made)]

        kept = {layer: tensors(*layer) for layer in dict.fromkeys(layers)}

        def turn() -> None:  # nothing that others could agree with
            for layer in work.steps * layers:
                x, weight, grad, d_x, d_weight, y = kept[layer]
                torch.mm(x, weight, out=y)
                torch.mm(grad, weight.T, out=d_x)
                torch.mm(x.T, grad, out=d_weight)

        return turn

    return prepare


def torchs_loop(
    work: Work, loss_of: Callable[..., Any], model: Any, *, bf16: bool, fused: bool, compiled: bool
) -> Turn:
    """The loop of a tutorial, for the peers: `loss_of(model, ids, targets)` is theirs."""
    import torch

    ids, targets = work.ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=fused)
    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model, ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return round(loss.item(), 1 if bf16 else 3)

    return warmed(step, work.steps)


def transformers(work: Work, *, kept: bool = False, **best: bool) -> Callable[[], Turn]:
    def prepare() -> Turn:
        import tempfile

        import torch.nn.functional as F
        from cpu import keep_memory
        from transformers import GPT2LMHeadModel

        from llm_core.pretrained.gpt2 import save_gpt2

        if kept:
            keep_memory()
        with tempfile.TemporaryDirectory() as folder:
            save_gpt2(our_model(work), folder)
            model = GPT2LMHeadModel.from_pretrained(folder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()

        def loss_of(model: Any, ids: Any, targets: Any) -> Any:
            logits = model(ids, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        return torchs_loop(work, loss_of, model, **settings(best))

    return prepare


def lean(work: Work, *, kept: bool = False, **best: bool) -> Callable[[], Turn]:
    """The least that a GPT can be: no biases, the exact GELU, one product for query, key and value, a tied head."""

    def prepare() -> Turn:
        import torch
        import torch.nn.functional as F
        from cpu import keep_memory
        from torch import nn

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                D = work.d_model
                self.read, self.think = (nn.LayerNorm(D, bias=False) for _ in range(2))
                self.qkv, self.output = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
                self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

            def forward(self, x: Any) -> Any:
                B, T, D = x.shape
                parts = self.qkv(self.read(x)).view(B, T, 3, work.n_heads, D // work.n_heads).transpose(1, 3).unbind(2)
                heads = F.scaled_dot_product_attention(*parts, is_causal=True)
                x = x + self.output(heads.transpose(1, 2).reshape(B, T, D))
                return x + self.down(F.gelu(self.up(self.think(x))))

        class Lean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tokens = nn.Embedding(work.vocab_size, work.d_model)
                self.places = nn.Parameter(torch.zeros(work.length, work.d_model))
                self.blocks = nn.Sequential(*(Block() for _ in range(work.n_layers)))
                self.norm = nn.LayerNorm(work.d_model, bias=False)
                for weight in self.parameters():
                    if weight.ndim == 2:
                        nn.init.normal_(weight, std=0.02)

            def forward(self, ids: Any) -> Any:
                x = self.tokens(ids) + self.places[: ids.shape[1]]
                return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

        def loss_of(model: Any, ids: Any, targets: Any) -> Any:
            return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())

        if kept:
            keep_memory()
        torch.manual_seed(0)
        turn = torchs_loop(work, loss_of, Lean(), **settings(best))
        return lambda: turn() and None  # weights of its own

    return prepare


def torchs_chunks(work: Work) -> Callable[[], Turn]:
    """Our model with torch's own chunked head and loss."""

    def prepare() -> Turn:
        import torch
        import torch.nn.functional as F

        model, options = our_model(work), torch.nn.LinearCrossEntropyOptions()

        def loss_of(model: Any, ids: Any, targets: Any) -> Any:
            hidden = model.hidden(ids).flatten(0, 1)
            return F.linear_cross_entropy(hidden, model.head_weight, targets.flatten(), options=options)

        return torchs_loop(work, loss_of, model, **settings({"fused": True}))

    return prepare


def litgpt(work: Work, **best: bool) -> Callable[[], Turn]:
    def prepare() -> Turn:
        import litgpt
        import torch
        import torch.nn.functional as F

        torch.manual_seed(0)
        config = litgpt.Config(
            block_size=work.length,
            vocab_size=work.vocab_size,
            padded_vocab_size=work.vocab_size,
            n_layer=work.n_layers,
            n_head=work.n_heads,
            n_embd=work.d_model,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=True,
            norm_class_name="LayerNorm",
            mlp_class_name="GptNeoxMLP",
            intermediate_size=4 * work.d_model,
        )
        model = litgpt.GPT(config).train()

        def loss_of(model: Any, ids: Any, targets: Any) -> Any:
            return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())

        turn = torchs_loop(work, loss_of, model, **settings(best))
        return lambda: turn() and None  # weights of its own

    return prepare


def x_transformers(work: Work, **best: bool) -> Callable[[], Turn]:
    def prepare() -> Turn:
        import torch
        import torch.nn.functional as F
        from x_transformers import Decoder, TransformerWrapper

        torch.manual_seed(0)
        decoder = Decoder(
            dim=work.d_model,
            depth=work.n_layers,
            heads=work.n_heads,
            attn_dim_head=work.d_model // work.n_heads,
            attn_flash=True,
        )
        model = TransformerWrapper(
            num_tokens=work.vocab_size, max_seq_len=work.length, attn_layers=decoder, tie_embedding=True
        ).train()

        def loss_of(model: Any, ids: Any, targets: Any) -> Any:
            return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())

        turn = torchs_loop(work, loss_of, model, **settings(best))
        return lambda: turn() and None  # weights of its own

    return prepare


def settings(best: dict[str, bool]) -> dict[str, bool]:
    return {"bf16": False, "fused": False, "compiled": False} | best


LITGPT, X = "untied head, rotary positions", "learned positions, tied head"


def eager(work: Work, *, large: bool) -> dict[str, Contender]:
    torchs = {"llm_core, torch's chunks": Contender(torchs_chunks(work), note="fused AdamW, linear_cross_entropy")}
    return {
        "llm_core": Contender(
            # Where memory is what matters it is not kept: that would cost 60 MB, for one or two percent of the time.
            ours(work, chunk=512 if large else None, fused=True, cpu=not large),
            note="fused AdamW, " + ("head and loss in chunks of 512" if large else "memory kept"),
        ),
        **(torchs if large else {}),
        "transformers": Contender(transformers(work)),
        "litgpt": Contender(litgpt(work), peer=True, note=LITGPT),
        "x-transformers": Contender(x_transformers(work), peer=True, note=X),
        "matrix products alone": Contender(products_alone(work)),
    }


def best(work: Work, *, large: bool, bf16: bool) -> dict[str, Contender]:
    helps = {"bf16": bf16, "fused": True, "compiled": True}
    note = "bf16, " * bf16 + "fused AdamW, compiled"
    chunks = ", head and loss in chunks of 1024" * large
    switches = "fused AdamW, " + "short_attention, " * bf16 + "memory kept, "
    chunk = 1024 if large else None
    autocast = ours(work, chunk=chunk, bf16=bf16, fused=True, compiled=not large, cpu=True)
    autocast_note = switches + (chunks.removeprefix(", ") or "compiled")
    if bf16:
        masters = ours(work, chunk=chunk, bf16=True, fused=True, compiled=True, cpu=True, masters=True)
        us = {
            "llm_core": Contender(masters, note=f"bf16 with float32 masters, {switches}compiled{chunks}"),
            "llm_core, autocast": Contender(autocast, note=f"bf16, {autocast_note}"),
        }
    else:
        us = {"llm_core": Contender(autocast, note=autocast_note)}
    return {
        **us,
        "transformers": Contender(transformers(work, **helps), note=note),
        "transformers, memory kept": Contender(
            transformers(work, kept=True, **helps), note="the same, with our switch"
        ),
        "litgpt": Contender(litgpt(work, **helps), peer=True, note=f"{note}; {LITGPT}"),
        "x-transformers": Contender(x_transformers(work, **helps), peer=True, note=f"{note}; {X}"),
        "matrix products alone": Contender(products_alone(work, bf16=bf16)),
    }


def compiled_small(work: Work) -> dict[str, Contender]:
    """The small model compiled, as it is and as lean as a GPT can be: what do biases and GPT-2's GELU cost?"""
    settings = "fused AdamW, compiled, memory kept"
    same = ours(work, fused=True, compiled=True, cpu=True, made=lean_model)
    return {
        "llm_core, lean": Contender(same, note=f"{settings}; our layers without biases, exact GELU, no mask"),
        "lean": Contender(
            lean(work, kept=True, fused=True, compiled=True), note=f"{settings}; the same in plain torch"
        ),
        "llm_core": Contender(ours(work, fused=True, compiled=True, cpu=True), note=f"{settings}; GPT-2"),
        "transformers": Contender(
            transformers(work, kept=True, fused=True, compiled=True), note=f"{settings}; the same GPT-2"
        ),
    }


TASKS: dict[str, dict[str, Contender]] = {}
for name, work in WORK.items():
    large = name == "article"  # the only one whose vocabulary is
    TASKS[f"{name}-eager"] = eager(work, large=large)
    if name == "small":
        TASKS["small-compiled"] = compiled_small(work)
    else:
        TASKS[f"{name}-best"] = best(work, large=large, bf16=True)
        TASKS[f"{name}-best-float32"] = best(work, large=large, bf16=False)
