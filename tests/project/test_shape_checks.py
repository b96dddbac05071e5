"""The tests see every shape: the import hook of tests/conftest.py is at work."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from llm_core.layers.attention import attention


def test_a_wrong_shape_is_caught_by_its_annotation():
    right = torch.zeros(1, 2, 3, 4)
    assert attention(right, right, right) is not None
    with pytest.raises(TypeCheckError):
        attention(right, right[0], right)
