"""Linear layers split among threads: the numbers of nn.Linear, the same tensors, no copies."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm_core.compression.split import SplitEmbedding, SplitLinear, split_for_generation, split_product
from llm_core.generation.generate import generate
from llm_core.layers.embedding import TokenEmbedding
from llm_core.models.gpt import GPT, GPTConfig


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 10])
def test_the_parts_of_a_product_join_to_the_whole(parts):
    weight, x = torch.randn(10, 6), torch.randn(6)
    torch.testing.assert_close(split_product(x, weight, parts), weight @ x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (2, 8), (1, 3, 8)])
def test_a_split_layer_is_the_linear_layer(shape, bias):
    linear = nn.Linear(8, 5, bias=bias)
    layer = SplitLinear(linear, 2)
    x = torch.randn(*shape)
    torch.testing.assert_close(layer(x), linear(x))
    assert layer.weight is linear.weight


def test_a_split_embedding_is_the_embedding():
    embedding = TokenEmbedding(7, 4)
    split = SplitEmbedding(embedding, 3)
    assert split.weight is embedding.weight
    assert torch.equal(split(torch.tensor([[6, 0]])), embedding(torch.tensor([[6, 0]])))
    for shape in [(1, 1, 4), (2, 3, 4)]:
        x = torch.randn(*shape)
        torch.testing.assert_close(split.logits(x), F.linear(x, embedding.weight))
    with pytest.raises(ValueError, match=r"0 \.\.\. 6: got 7 to 7"):
        split(torch.tensor([[7]]))


def test_a_split_model_generates_the_same_tokens_and_keeps_its_names():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=53, context=32, n_layers=2, n_heads=2, d_model=24)).eval()
    split = split_for_generation(copy.deepcopy(model), parts=2)
    prompt = torch.randint(53, (1, 6))
    assert torch.equal(generate(split, prompt, 20), generate(model, prompt, 20))
    assert split.state_dict().keys() == model.state_dict().keys()
    assert any(isinstance(m, SplitLinear) for m in split.modules())
    assert isinstance(split.token_embedding, SplitEmbedding)
    assert split.n_parameters() == model.n_parameters()


def test_there_must_be_a_part():
    with pytest.raises(ValueError, match="parts=0"):
        split_for_generation(nn.Linear(2, 2), parts=0)
