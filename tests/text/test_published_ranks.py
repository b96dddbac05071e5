"""The ids of GPT-2 and of cl100k_base, from the ranks that OpenAI published."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import tiktoken
from corpus import AWKWARD, mixed_text

from llm_core.text.bpe_fast import BPETokenizer
from llm_core.text.pretokenize import CL100K, GPT2, O200K


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encodings of the npm package tiktoken: ranks, patterns and special tokens as JSON."""
    folder = tmp_path_factory.mktemp("npm")
    try:
        npm = shutil.which("npm")
        assert npm is not None, "npm is not installed"
        command = [npm, "pack", "tiktoken@1.0.22", "--silent"]
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert packed.returncode == 0, f"npm pack: {packed.stderr[-300:]}"
    except (AssertionError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI=true does not accept a skipped comparison with published ranks. {error}")
        pytest.skip(str(error))
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "encoders"


@pytest.mark.parametrize(("name", "split"), [("gpt2", GPT2), ("cl100k_base", CL100K)])
def test_ids_are_those_of_published_encodings(name, split, published):
    encoding = json.loads((published / f"{name}.json").read_text(encoding="utf-8"))
    ranks: dict[bytes, int] = {}
    for line in encoding["bpe_ranks"].split("\n"):
        _, first, *tokens = line.split(" ")  # "! <rank of the first token> <token in base 64> ..."
        ranks.update({base64.b64decode(token): int(first) + i for i, token in enumerate(tokens)})
    special = encoding["special_tokens"]
    assert split.pattern == encoding["pat_str"]
    ours = BPETokenizer.from_ranks(ranks, split=split, special_tokens=special)
    theirs = tiktoken.Encoding(
        name, pat_str=encoding["pat_str"], mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=None
    )
    assert ours.vocab_size == theirs.n_vocab
    for text in [mixed_text(), *AWKWARD, "<|endoftext|>a <|endoftext|>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, allowed_special="all")
        assert ours.decode(ids) == text
        assert ours.encode(text[:1000], allowed_special=()) == theirs.encode_ordinary(text[:1000])
    if name == "gpt2":
        # Radford et al. 2019: merges.txt begins so.
        assert [" ".join(merge) for merge in ours.merges[:7]] == ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he"]
        assert len(ours.merges) == 50_000
        assert ours.encode("Hello world") == [15496, 995]


def test_the_pattern_of_o200k_is_the_published_one(published):
    assert json.loads((published / "o200k_base.json").read_text(encoding="utf-8"))["pat_str"] == O200K.pattern
