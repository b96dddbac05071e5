"""Generation on a CPU, beside the peers: batch 1, greedy, a prompt of 64 tokens, the same number of new ones for all.

A turn is one call of the contender's own generate, reading of the prompt included. Where two contenders have the same
weights in the same precision, the tokens must be the same too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from side_by_side import Contender, Turn

PROMPT, NEW = 64, 64


def prompt_ids(vocab_size: int) -> Any:
    import torch

    return torch.randint(vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1))


def random_gpt2() -> Any:
    """GPT-2 small with random weights: the same for everyone who can load it."""
    import torch

    from llm_core.models.gpt import GPT, GPT2_SIZES

    torch.manual_seed(0)
    return GPT(GPT2_SIZES["gpt2"]).eval()


def ours(make: Callable[[], Any], *, tokens_must_agree: bool) -> Callable[[], Turn]:
    def prepare() -> Turn:
        from llm_core.generation.generate import generate

        model = make()
        prompt = prompt_ids(model.vocab_size)

        def turn() -> list[int] | None:
            tokens = generate(model, prompt, NEW)[0].tolist()
            assert len(tokens) == NEW
            return tokens if tokens_must_agree else None

        return turn

    return prepare


def transformers(make: Callable[[], Any]) -> Callable[[], Turn]:
    def prepare() -> Turn:
        import torch

        model = make().eval()
        prompt = prompt_ids(model.config.vocab_size)
        model.generation_config.eos_token_id = None

        def turn() -> list[int]:
            with torch.inference_mode():
                ids = model.generate(prompt, max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)
            return ids[0, PROMPT:].tolist()

        return turn

    return prepare


def written_by(code: str, folder: str) -> None:
    """Write a checkpoint from another process, so that making it leaves nothing in the memory of this one."""
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def gpt2_of_transformers() -> Any:
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        written_by(
            "import sys; sys.path.insert(0, 'benchmarks'); from generation import random_gpt2; "
            "from llm_core.pretrained.gpt2 import save_gpt2; save_gpt2(random_gpt2(), sys.argv[1])",
            folder,
        )
        return GPT2LMHeadModel.from_pretrained(folder)


def litgpt() -> Turn:
    import litgpt
    import torch
    from litgpt.generate.base import generate

    # GPT-2's shape in litgpt's terms; its positions are rotary, which costs next to nothing.
    config = litgpt.Config(
        block_size=1024,
        vocab_size=50257,
        padded_vocab_size=50257,
        n_layer=12,
        n_head=12,
        n_embd=768,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        intermediate_size=3072,
    )
    torch.manual_seed(0)
    model = litgpt.GPT(config).eval()
    prompt = prompt_ids(50257)[0]
    length = PROMPT + NEW
    model.max_seq_length = length
    model.set_kv_cache(batch_size=1)

    def turn() -> None:
        with torch.inference_mode():
            ids = generate(model, prompt, length, temperature=0.0, top_k=1)
        assert len(ids) == length

    return turn


def x_transformers() -> Turn:
    import torch
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    torch.manual_seed(0)
    decoder = Decoder(dim=768, depth=12, heads=12, attn_dim_head=64, attn_flash=True)
    net = TransformerWrapper(num_tokens=50257, max_seq_len=1024, attn_layers=decoder, tie_embedding=True)
    model = AutoregressiveWrapper(net).eval()
    prompt = prompt_ids(50257)

    def turn() -> None:
        with torch.inference_mode():
            ids = model.generate(prompt, NEW, temperature=0.0, cache_kv=True)
        assert ids.shape[-1] == NEW

    return turn


def smollm2(convert: Callable[[Any], Any] = lambda model: model) -> Callable[[], Any]:
    def make() -> Any:
        from llm_core.pretrained.gguf import load_smollm2

        return convert(load_smollm2().eval())

    return make


def smollm2_of_transformers() -> Any:
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        written_by(
            "import sys; from llm_core.pretrained.gguf import load_smollm2; "
            "from llm_core.pretrained.llama import save_llama; save_llama(load_smollm2(), sys.argv[1])",
            folder,
        )
        return LlamaForCausalLM.from_pretrained(folder)


def split(model: Any) -> Any:
    from llm_core.compression.split import split_for_generation

    return split_for_generation(model)


def int8(model: Any) -> Any:
    from llm_core.compression.quantize import quantize_8bit

    return quantize_8bit(model)


def smollm2_int8() -> Any:
    from llm_core.compression.quantize import to_8bit
    from llm_core.pretrained.gguf import load_smollm2

    return load_smollm2(convert=to_8bit)


def compiled(bits: int, make: Callable[[Any], Any]) -> Callable[[], Any]:
    """What `make(to_4bit)` or `make(to_8bit)` gives, compiled; the first turn, which does not count, compiles."""

    def compile_it() -> Any:
        from llm_core.compression.compiled import compile_decoder
        from llm_core.compression.quantize import to_4bit, to_8bit

        return compile_decoder(make(to_4bit if bits == 4 else to_8bit), bits=bits)

    return compile_it


def smollm2_in_layers(convert: Any) -> Any:
    from llm_core.pretrained.gguf import load_smollm2

    return load_smollm2(convert=convert)


def llama_cpp() -> Turn:
    """llama.cpp's engine through its C interface: the generate of its package copies all logits in a Python loop."""
    import ik_llama_cpp._ctypes_api as engine
    import numpy
    from ik_llama_cpp._internals import make_batch_range, make_batch_single
    from ik_llama_cpp.llama import IkLlama

    said = subprocess.run(
        [
            os.environ["LLM_CORE_PYTHON"],
            "-c",
            "import sys; sys.path.insert(0, 'benchmarks'); from generation import prompt_ids; "
            "from llm_core.pretrained.gguf import find_smollm2; "
            "print(find_smollm2(), *prompt_ids(49152)[0].tolist(), sep=chr(10))",
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    file, *prompt = said.stdout.splitlines()
    llama = IkLlama(file, n_ctx=256, n_threads=int(os.environ["OMP_NUM_THREADS"]), verbose=False)

    def read(batch: Any) -> None:
        status = llama._context.decode(batch)
        engine.llama_batch_free(batch)
        assert status == 0

    def turn() -> None:
        llama._context.kv_cache_clear()
        read(make_batch_range([int(token) for token in prompt], pos_start=0))
        for i in range(NEW):
            token = int(numpy.ctypeslib.as_array(llama._context.get_logits(), (49152,)).argmax())
            if i < NEW - 1:  # as the others: the last token is chosen, never read
                read(make_batch_single(token, PROMPT + i))

    return turn


def int4(model: Any) -> Any:
    from llm_core.compression.quantize import quantize_4bit

    return quantize_4bit(model, for_generation=True)


THEIRS = Contender(transformers(gpt2_of_transformers), note="transformers' generate with its cache, float32")
TASKS = {
    "gpt2-fp32": {
        "llm_core": Contender(ours(lambda: split(random_gpt2()), tokens_must_agree=True), note="split_for_generation"),
        "llm_core, plain": Contender(ours(random_gpt2, tokens_must_agree=True)),
        "transformers": THEIRS,
        "litgpt": Contender(litgpt, peer=True, note="same shape, own weights, rotary positions, untied head"),
        "x-transformers": Contender(x_transformers, peer=True, note="same shape, own weights, tied head"),
    },
    "gpt2-int8": {
        "llm_core, 8-bit weights": Contender(ours(lambda: int8(random_gpt2()), tokens_must_agree=False)),
        "llm_core, 4-bit weights": Contender(
            ours(lambda: int4(random_gpt2()), tokens_must_agree=False), note="groups of 32; the embedding has 8 bits"
        ),
        "transformers fp32": THEIRS,
    },
    "gpt2-compiled": {
        "llm_core compiled, 4-bit weights": Contender(
            ours(compiled(4, lambda _: random_gpt2()), tokens_must_agree=False), note="one function compiled by numba"
        ),
        "llm_core compiled, 8-bit weights": Contender(
            ours(compiled(8, lambda _: random_gpt2()), tokens_must_agree=False)
        ),
        "transformers fp32": THEIRS,
    },
    "smollm2-compiled": {
        "llm_core compiled, 4-bit weights": Contender(
            ours(compiled(4, smollm2_in_layers), tokens_must_agree=False),
            note="one function compiled by numba; groups of 32; the embedding has 8 bits",
        ),
        "llm_core compiled, 8-bit weights": Contender(ours(compiled(8, smollm2_in_layers), tokens_must_agree=False)),
        "llama.cpp": Contender(llama_cpp, peer=True, note="ik_llama.cpp's engine, 4-bit weights (Q4_1), same file"),
        "transformers fp32": Contender(transformers(smollm2_of_transformers), note="the same weights"),
    },
    "smollm2": {
        "llm_core, 8-bit weights": Contender(ours(smollm2_int8, tokens_must_agree=False)),
        "llm_core, 4-bit weights": Contender(
            ours(smollm2(int4), tokens_must_agree=False), note="groups of 32; the embedding has 8 bits"
        ),
        "llm_core fp32": Contender(ours(smollm2(split), tokens_must_agree=True), note="split_for_generation"),
        "transformers fp32": Contender(transformers(smollm2_of_transformers), note="the same weights"),
    },
}
