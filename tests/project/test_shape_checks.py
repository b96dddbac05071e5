"""The tests see every shape: the import hook of tests/conftest.py is at work."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from llm_core.generation.sampling import Sampler
from llm_core.layers.attention import attention
from llm_core.models.gpt import GPTConfig
from llm_core.text.characters import CharacterTokenizer


def test_a_wrong_shape_is_caught_by_its_annotation():
    right = torch.zeros(1, 2, 3, 4)
    assert attention(right, right, right) is not None
    with pytest.raises(TypeCheckError):
        attention(right, right[0], right)


def test_what_has_no_shape_is_held_to_its_types_too():
    with pytest.raises(TypeCheckError):
        CharacterTokenizer.train(3)
    with pytest.raises(TypeCheckError):
        GPTConfig(vocab_size="many")
    with pytest.raises(TypeCheckError):
        Sampler(1.0, "top")


def test_llm_cores_own_errors_can_be_seen(unchecked):
    with pytest.raises(TypeError, match="not iterable"):
        CharacterTokenizer.train(3)
