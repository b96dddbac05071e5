import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

# pytest imports tests without touching sys.path (importlib mode); `wrapped` is the helper beside this file.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run as a reader does, without the shape checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
