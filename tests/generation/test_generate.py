"""Generation against an argmax loop, transformers' own `generate`, and models that are made up for one question."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from llm_core.generation.generate import generate, stream
from llm_core.generation.sampling import Sampler
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.models.gpt import GPT, GPTConfig

V, CONTEXT = 19, 16


def gpt() -> GPT:
    """Random, with large weights, so that what comes next depends on what was read."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=V, context=CONTEXT, n_layers=2, n_heads=2, d_model=16))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def prompts(batch: int = 3, T: int = 4) -> Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(1))


class Counting:
    """Each token is followed by the next number; counts what it is asked."""

    context = 12

    def __init__(self) -> None:
        self.read: list[Tensor] = []

    def __call__(self, ids: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        self.read.append(ids)
        assert not torch.is_grad_enabled()
        return torch.nn.functional.one_hot((ids + 1) % V, V).float()

    def new_cache(self, batch: int, capacity: int) -> list[tuple[int, int]]:
        self.asked = (batch, capacity)
        return []


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_an_argmax_loop(use_cache):
    model, text = gpt(), prompts()
    new = generate(model, text, 8, use_cache=use_cache)
    for _ in range(8):
        text = torch.cat([text, model(text)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(new, text[:, 4:])
    assert len({tuple(row) for row in new.tolist()}) > 1


class Theirs:
    """transformers' model in the shape that generation asks for."""

    context = CONTEXT

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(
            GPT2Config(vocab_size=V, n_positions=CONTEXT, n_layer=2, n_head=2, n_embd=16)
        ).eval()
        for parameter in self.model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)

    def __call__(self, ids: Tensor, cache: None = None) -> Tensor:
        return self.model(ids).logits

    def new_cache(self, batch: int, capacity: int) -> None:
        raise AssertionError("it is asked for no cache")


@pytest.mark.parametrize("stop_id", [None, "some"])
def test_greedy_equals_transformers_generate(stop_id):
    theirs, text = Theirs(), prompts()
    if stop_id == "some":  # a token that one row gets in the middle
        stop_id = int(generate(theirs, text, 10, use_cache=False)[0, 3])
    expected = theirs.model.generate(
        text,
        attention_mask=torch.ones_like(text),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=stop_id,
        pad_token_id=stop_id if stop_id is not None else 0,
    )
    assert torch.equal(generate(theirs, text, 10, stop_id=stop_id, use_cache=False), expected[:, 4:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_samples_are_the_same_with_and_without_cache(use_cache):
    model, text = gpt(), prompts()
    new = generate(
        model, text, 9, choose=Sampler(1.3, 12), generator=torch.Generator().manual_seed(3), use_cache=use_cache
    )
    generator, sampler = torch.Generator().manual_seed(3), Sampler(1.3, 12)
    with torch.no_grad():
        for _ in range(9):
            text = torch.cat([text, sampler(model(text)[:, -1], generator)[:, None]], dim=1)
    assert torch.equal(new, text[:, 4:])


def test_with_a_cache_each_token_is_read_once():
    model = Counting()
    new = generate(model, torch.tensor([[3, 4], [7, 8]]), 4)
    assert new.tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert [ids.shape[1] for ids in model.read] == [2, 1, 1, 1]
    assert model.read[1].tolist() == [[5], [9]]
    assert model.asked == (2, 5)  # the last token is never read
    model = Counting()
    generate(model, torch.tensor([[3, 4]]), 4, use_cache=False)
    assert [ids.shape[1] for ids in model.read] == [2, 3, 4, 5]


def test_a_row_stops_at_the_stop_token_and_the_whole_when_all_have():
    prompt = torch.tensor([[3], [5], [1]])
    assert generate(Counting(), prompt, 9, stop_id=7).tolist() == [
        [4, 5, 6, 7, 7, 7],
        [6, 7, 7, 7, 7, 7],
        [2, 3, 4, 5, 6, 7],
    ]
    assert generate(Counting(), prompt, 2, stop_id=7).tolist() == [[4, 5], [6, 7], [2, 3]]
    model = Counting()
    assert generate(model, torch.tensor([[6], [6]]), 9, stop_id=7).tolist() == [[7], [7]]
    assert len(model.read) == 1
    assert generate(Counting(), torch.tensor([[7]]), 2, stop_id=7).tolist() == [
        [8, 9]
    ]  # the prompt's own does not count


def test_the_stream_is_lazy_and_leaves_gradients_as_they_are():
    model = Counting()
    tokens = stream(model, torch.tensor([[3]]), 5)
    assert model.read == []
    assert next(tokens).tolist() == [4]
    assert len(model.read) == 1
    assert torch.is_grad_enabled()
    assert next(tokens).tolist() == [5]
    assert [t.tolist() for t in tokens] == [[6], [7], [8]]


@pytest.mark.parametrize("call", [stream, generate])
def test_what_cannot_work_is_refused_by_the_call_itself(call):
    model = Counting()
    with pytest.raises(ValueError, match="prompt is empty"):
        call(model, torch.zeros(1, 0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        call(model, torch.tensor([[1]]), 0)
    with pytest.raises(ValueError, match="4 prompt tokens and 10 new ones do not fit the context of 12: at most 9"):
        call(model, torch.ones(1, 4, dtype=torch.long), 10)
    with pytest.raises(ValueError, match="at most 0"):
        call(model, torch.ones(1, 20, dtype=torch.long), 1)
    assert model.read == []


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_context_can_be_filled_to_the_last_token(use_cache):
    model = gpt()
    assert generate(model, prompts(2, 4), CONTEXT - 4 + 1, use_cache=use_cache).shape == (2, 13)
    assert generate(model, prompts(2, CONTEXT), 1, use_cache=use_cache).shape == (2, 1)


def test_rows_of_a_batch_do_not_touch():
    model, text = gpt(), prompts()
    together = generate(model, text, 8)
    alone = torch.cat([generate(model, row[None], 8) for row in text])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_encoder_decoder_generates_through_given(use_cache):
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(V, CONTEXT, n_layers=2, n_heads=2, d_model=16, d_ff=32)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    source = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    text = torch.ones(2, 1, dtype=torch.long)
    with torch.no_grad():
        new = generate(model.given(source), text, 8, use_cache=use_cache)
        for _ in range(8):
            text = torch.cat([text, model(source, text)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(new, text[:, 1:])
