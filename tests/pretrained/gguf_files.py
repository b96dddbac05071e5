"""What the tests of GGUF files share: the tensors of a small model, and the model that transformers makes of a file."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def shapes(tied: bool = True, heads: int = 4, kv_heads: int = 2, E: int = 8) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (50, 32), "output_norm.weight": (32,)}
    if not tied:
        found["output.weight"] = (50, 32)
    for i in range(2):
        block = {
            "attn_norm": (32,),
            "ffn_norm": (32,),
            "attn_q": (heads * E, 32),
            "attn_k": (kv_heads * E, 32),
            "attn_v": (kv_heads * E, 32),
            "attn_output": (32, heads * E),
            "ffn_gate": (64, 32),
            "ffn_up": (64, 32),
            "ffn_down": (32, 64),
        }
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return found


def theirs_of(file: Path) -> LlamaForCausalLM:
    """The model that transformers makes of a GGUF file: its own names, its own order of the rows."""
    said = load_gguf_checkpoint(file)["config"]
    config = TheirConfig(
        **{key: value for key, value in said.items() if key != "_model_name_or_path"}, attn_implementation="eager"
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    return model.eval()
