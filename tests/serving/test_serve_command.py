"""`llm-core serve` as a person runs it: a process, a port, a client, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch

from llm_core.generation.text import generate_text
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.llama import save_llama
from llm_core.text.bpe_fast import BPETokenizer

COMMAND = [sys.executable, "-c", "from llm_core.cli import app; app()", "serve"]
TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as `huggingface-cli download` would leave it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train([TEXT], 280)
    save_llama(
        Llama(LlamaConfig(vocab_size=280, context=512, d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=32)), path
    )
    tokenizer.save(path / "tokenizer.json")
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_a_folder_is_served_until_ctrl_c(folder):
    from llm_core.pretrained.opening import open_model

    process = subprocess.Popen([*COMMAND, str(folder), "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        opened = open_model(folder)
        with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", max_retries=0, timeout=30) as client:
            answer = client.completions.create(model="tiny", prompt="the cat", max_tokens=8, temperature=0)
            assert answer.choices[0].text == generate_text(opened.model, opened.tokenizer, "the cat", 8)
            stream = client.completions.create(model="tiny", prompt="the", max_tokens=400, stream=True)
            next(iter(stream))
            process.send_signal(signal.SIGINT)  # while it writes
            stream.close()
        rest = process.communicate(timeout=20)[1]
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_served_is_said(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, str(folder), "--port", str(port)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"nothing can listen at 127.0.0.1:{port}: give another --port" in done.stderr
    assert "Traceback" not in done.stderr
