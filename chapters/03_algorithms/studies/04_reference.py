"""The long run of chapter 3.4: 0.8 million weights read nine plays.

    python chapters/03_algorithms/studies/04_reference.py

It writes `04_reference.csv` (the losses) and `04_reference.json` (what the
model writes on the way, and the loss of tables of counts) beside this file.
It takes about six minutes on one core.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch

from llm_core.data.corpora import load_text
from llm_core.evaluation.perplexity import text_likelihood
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.ngram import NGramModel
from llm_core.text.characters import CharacterTokenizer
from llm_core.training.batches import random_crops
from llm_core.training.optimizer import AdamW, decay_groups
from llm_core.training.schedule import warmup_cosine
from llm_core.training.step import train_step

HERE = Path(__file__).parent
STEPS, BATCH, CONTEXT, SEED = 1200, 16, 128, 0
EVERY = 100  # steps between two evaluations
SAMPLES = (100, 400, 1200)  # after these steps it writes something
PROMPT, WRITTEN, TEMPERATURE = "ROMEO:\n", 280, 0.8


def sample(model: GPT, tokenizer: CharacterTokenizer) -> str:
    """What the model writes, each character from the last CONTEXT ones."""
    draw = torch.Generator().manual_seed(SEED)
    ids = tokenizer.encode(PROMPT)
    with torch.no_grad():
        for _ in range(WRITTEN):
            logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
            ids.append(
                int(
                    torch.multinomial(
                        (logits / TEMPERATURE).softmax(-1),
                        1,
                        generator=draw,
                    )
                )
            )
    return tokenizer.decode(ids)


def main() -> None:
    """Train, and write table and samples."""
    torch.set_num_threads(1)
    text = load_text("shakespeare")
    tokenizer = CharacterTokenizer.train(text)
    ids = torch.tensor(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    train, held_out = ids[:cut], ids[cut : cut + 20_000]

    baselines = {}
    for n in (1, 2, 3, 5):
        counts = NGramModel(
            [train.numpy()], n, vocab_size=tokenizer.vocab_size
        )
        baselines[n] = round(
            -float(counts.token_log_probabilities(held_out.numpy()).mean()),
            3,
        )

    torch.manual_seed(SEED)
    model = GPT(
        GPTConfig(
            tokenizer.vocab_size,
            CONTEXT,
            n_layers=4,
            n_heads=4,
            d_model=128,
            dropout=0.1,
        )
    )
    optimizer = AdamW(decay_groups(model, 0.1), betas=(0.9, 0.95))
    draws = torch.Generator().manual_seed(SEED)
    rows, recent, samples = [], [], {}
    for step in range(1, STEPS + 1):
        batch = random_crops(train, BATCH, CONTEXT, generator=draws)
        rate = warmup_cosine(step - 1, peak=3e-3, warmup=100, total=STEPS)
        recent.append(train_step(model, batch, optimizer, lr=rate).loss)
        if step % EVERY == 0:
            model.eval()
            loss = text_likelihood(
                model, held_out, context=CONTEXT, batch_size=32
            ).nats_per_token
            rows.append(
                {
                    "step": step,
                    "training": f"{sum(recent) / EVERY:.3f}",
                    "held_out": f"{loss:.3f}",
                }
            )
            recent.clear()
            if step in SAMPLES:
                samples[step] = sample(model, tokenizer)
            model.train()
            print(rows[-1], file=sys.stderr)

    with (HERE / "04_reference.csv").open(
        "w", encoding="utf-8", newline=""
    ) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    about = {
        "weights": model.n_parameters(),
        "held_out_by_n_gram": baselines,
        "samples": samples,
    }
    (HERE / "04_reference.json").write_text(
        json.dumps(about, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
