"""Tiny models that transformers drew and saved, read into ours: what is inside theirs must be inside ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llm_core.pretrained.gpt2 import load_gpt2
from llm_core.pretrained.llama import load_llama

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "attn_implementation": "eager",
    **NO_TOKENS,
}


class Pair(NamedTuple):
    """The same model twice; `norm` and `head` are theirs."""

    ours: Any
    theirs: Any
    norm: nn.Module
    head: nn.Module

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, ...]:
        """L + 1 of them; transformers gives the last one after the final norm."""
        return self.theirs(ids, output_hidden_states=True).hidden_states


def _gpt2(folder) -> Pair:
    config = GPT2Config(vocab_size=31, n_positions=32, n_layer=3, n_head=4, n_embd=24, **NO_TOKENS)
    config._attn_implementation = "eager"
    theirs = GPT2LMHeadModel(config).eval()
    _save(theirs, folder)
    return Pair(load_gpt2(folder), theirs, theirs.transformer.ln_f, theirs.lm_head)


def _llama(folder, *, tied: bool) -> Pair:
    theirs = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied)).eval()
    _save(theirs, folder)
    return Pair(load_llama(folder), theirs, theirs.model.norm, theirs.lm_head)


def _save(theirs: Any, folder: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():  # sharp attention; no bias of 0, no norm of 1
        norm = float("norm" in name or "ln_" in name)
        torch.nn.init.normal_(parameter, mean=norm if name.endswith("weight") else 0.0, std=0.3, generator=generator)
    theirs.save_pretrained(folder)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> dict[str, Pair]:
    return {
        "gpt2": _gpt2(tmp_path_factory.mktemp("gpt2")),
        "llama": _llama(tmp_path_factory.mktemp("llama"), tied=False),
        "llama, tied": _llama(tmp_path_factory.mktemp("tied"), tied=True),
    }


@pytest.fixture(params=["gpt2", "llama", "llama, tied"])
def pair(request, pairs) -> Pair:
    return pairs[request.param]


@pytest.fixture
def ids() -> Tensor:
    """Two texts of seven tokens."""
    return torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(1))
