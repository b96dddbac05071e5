"""Published weights for tests, from installed packages. Without them a test fails in CI and is skipped elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_core.pretrained.bert import find_minilm
from llm_core.pretrained.e5 import find_e5
from llm_core.pretrained.packages import SMOLLM2, MissingPackage, locate

# pytest imports tests without touching sys.path (importlib mode); `gguf_files` is the helper beside this file.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return installed(find_minilm)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return installed(lambda: locate(SMOLLM2, "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="session")
def e5_file() -> Path:
    """The file of multilingual-e5-small."""
    return installed(find_e5)


def installed(find: Callable[[], Path]) -> Path:
    """The path, or no test: in CI the packages are to be had, so there it fails."""
    try:
        return find()
    except MissingPackage as missing:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI=true does not accept tests without published weights. {missing}")
        pytest.skip(str(missing))
