"""Generation against an argmax loop, transformers' own `generate`, and models that are made up for one question."""

from __future__ import annotations

import math

import pytest
import torch
from looks import on_a_device  # noqa: F401
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from wrapped import CONTEXT, TextCache, Theirs, V, enlarged, gpt, llama, prompts

from llm_core.generation.adjust import RepetitionPenalty, in_turn
from llm_core.generation.beam_search import beam_search
from llm_core.generation.generate import batch_prompts, generate, generate_scored, stream
from llm_core.generation.sampling import ImpossibleLogits, Sampler, greedy
from llm_core.generation.speculative import speculative
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

UNEQUAL = [[5], [6, 7, 8, 9, 10], [3, 4]]


class Counting:
    """Each token is followed by the next number; counts what it is asked."""

    context, vocab_size = 12, V

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


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    return enlarged(
        GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=CONTEXT, n_layer=2, n_head=2, n_embd=32)), 0.4, seed
    )


@pytest.mark.parametrize("prompt", [prompts().tolist(), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("n_stops", [0, 1, 3])
def test_greedy_is_what_transformers_generates(n_stops, prompt):
    model, T = gpt2(), max(map(len, prompt))
    whole = generate(Theirs(model, CONTEXT), prompt, 10, use_cache=False)
    stops = whole[0, 3 : 3 + n_stops].tolist()  # tokens that one row gets in the middle
    text = torch.tensor([[0] * (T - len(row)) + row for row in prompt])
    expected = model.generate(
        text,
        attention_mask=(text != 0).long(),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=0,
    )[:, T:]
    ours = generate(Theirs(model, CONTEXT), prompt, 10, stop_id=stops or None, use_cache=False)
    assert ours.shape == expected.shape
    for row, expected_row in zip(ours.tolist(), expected.tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in stops), 9) + 1
        assert row[:end] == expected_row[:end]
        assert set(row[end:]) <= {row[end - 1]}  # what stopped it, again and again; theirs is padding
        assert set(expected_row[end:]) <= {0}


@pytest.mark.parametrize("prompt", [prompts().tolist(), UNEQUAL], ids=["equal", "unequal"])
def test_samples_are_those_of_transformers(prompt):
    model, T = gpt2(), max(map(len, prompt))
    text = torch.tensor([[0] * (T - len(row)) + row for row in prompt])
    torch.manual_seed(5)
    expected = model.generate(
        text,
        attention_mask=(text != 0).long(),
        max_new_tokens=10,
        do_sample=True,
        temperature=1.5,
        top_k=12,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.4,
        pad_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(5)
    sampler, penalty = Sampler(1.5, 12, 0.9, 0.02), RepetitionPenalty(1.4)
    assert torch.equal(generate(Theirs(model, CONTEXT), prompt, 10, choose=sampler, adjust=penalty), expected[:, T:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_repetition_penalty_sees_the_text_and_not_the_padding(use_cache):
    model = gpt()
    greedy = generate(model, UNEQUAL, 10, use_cache=use_cache)
    together = generate(model, UNEQUAL, 10, adjust=RepetitionPenalty(8.0), use_cache=use_cache)
    assert not torch.equal(together, greedy)
    for row, new in zip(UNEQUAL, together, strict=True):
        text = torch.tensor([row])
        for _ in range(10):
            with torch.no_grad():
                logits = RepetitionPenalty(8.0)(model(text)[:, -1], text)
            text = torch.cat([text, logits.argmax(dim=-1, keepdim=True)], dim=1)
        assert text[0, len(row) :].tolist() == new.tolist()


def test_adjust_gets_the_logits_the_whole_text_and_the_padding():
    seen = []

    def look(logits: Tensor, text: Tensor, padding: Tensor | None, n_prompt: int) -> Tensor:
        seen.append((logits.shape, text.tolist(), padding, n_prompt))
        return logits

    generate(Counting(), torch.tensor([[3, 4], [7, 8]]), 3, adjust=in_turn(look))
    assert seen == [
        ((2, V), [[3, 4], [7, 8]], None, 2),
        ((2, V), [[3, 4, 5], [7, 8, 9]], None, 2),
        ((2, V), [[3, 4, 5, 6], [7, 8, 9, 10]], None, 2),
    ]
    generate(gpt(), UNEQUAL, 1, adjust=look)
    assert seen[-1][2].tolist() == [4, 0, 3]
    assert seen[-1][3] == 5


MODELS = {"GPT": gpt, "Llama": llama, "windowed Llama": lambda: llama(window=3)}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("stop_id", [None, 13])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_unequal_prompts_gets_what_it_gets_alone(name, stop_id, use_cache):
    model = MODELS[name]()
    rows = [[5], [6, 7, 8, 9, 10], [3, 4], [11, 12, 13, 14, 15, 16], [17]]
    together = generate(model, rows, 11, stop_id=stop_id, use_cache=use_cache).tolist()
    for row, new in zip(rows, together, strict=True):
        [alone] = generate(model, [row], 11, stop_id=stop_id).tolist()
        assert new == alone + [stop_id] * (len(new) - len(alone))
    assert len({tuple(new) for new in together}) > 2


def test_prompts_may_be_lists():
    model, text = gpt(), prompts()
    assert torch.equal(generate(model, text.tolist(), 8), generate(model, text, 8))
    assert generate(model, (range(3, 6), (7,)), 2).shape == (2, 2)
    assert generate(model, text.int(), 8).tolist() == generate(model, text, 8).tolist()


def test_the_longest_of_unequal_prompts_may_fill_the_context():
    model = gpt()
    rows = [[5], list(range(3, 13))]
    assert generate(model, rows, CONTEXT - 9).shape == (2, 7)
    with pytest.raises(ValueError, match="10 prompt tokens and 8 new ones do not fit the context of 16: at most 7"):
        generate(model, rows, 8)


def test_the_ids_can_go_into_a_training_step():
    model = gpt()
    for ids in stream(model, prompts(), 2):
        model(ids[:, None]).log_softmax(dim=-1).gather(-1, ids[:, None, None]).mean().backward()
    assert model.token_embedding.weight.grad is not None


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


def test_any_of_several_stop_tokens_stops_a_row():
    prompt = torch.tensor([[3], [5], [1]])
    assert generate(Counting(), prompt, 9, stop_id=[7, 4]).tolist() == [[4, 4, 4], [6, 7, 7], [2, 3, 4]]
    assert generate(Counting(), prompt, 3, stop_id={3}).tolist() == [[4, 5, 6], [6, 7, 8], [2, 3, 3]]
    assert generate(Counting(), prompt, 2, stop_id=()).tolist() == [[4, 5], [6, 7], [2, 3]]


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
    with pytest.raises(ValueError, match="there is no prompt"):
        call(model, [], 1)
    with pytest.raises(ValueError, match=r"prompt is empty \(row 1\)"):
        call(model, [[3], [], [4]], 1)
    for ids in (torch.tensor([[3, V]]), [[3], [0, V]]):
        with pytest.raises(ValueError, match=r"knows 19 tokens, 0 \.\.\. 18: got a prompt with ids from [03] to 19"):
            call(model, ids, 1)
    with pytest.raises(ValueError, match="from -1 to 3"):
        call(model, [[3, -1]], 1)
    for stop_id in (V, [2, V]):
        with pytest.raises(ValueError, match="stop token must be one of the model's 19"):
            call(model, [[3]], 1, stop_id=stop_id)
    with pytest.raises(ValueError, match="a stop token is a whole number from 0 on: got -1"):
        call(model, [[3]], 1, stop_id=-1)
    for use_cache in (True, False):  # its cache is a list
        with pytest.raises(
            ValueError, match=r"differ in length, by up to 2 tokens, and the cache .* a list, cannot pad"
        ):
            call(model, [[3], [4, 5, 6]], 1, use_cache=use_cache)
    assert model.read == []


def test_prompts_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"one row for each: got shape \(3,\)"):
        batch_prompts(Counting(), torch.tensor([3, 4, 5]), 1)


def test_an_encoder_decoder_takes_targets_of_equal_length_only():
    model = EncoderDecoder(EncoderDecoderConfig(V, CONTEXT, n_layers=1, n_heads=2, d_model=16, d_ff=32)).eval()
    with torch.no_grad():
        given = model.given(torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(ValueError, match="a DecoderCache, cannot pad: give prompts of equal length"):
        generate(given, [[1], [1, 2]], 3)


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


def test_logits_of_a_prompt_are_computed_at_its_last_position_only(monkeypatch):
    model = gpt()
    asked: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: asked.append(hidden.shape[1]) or logits(hidden))
    prompt = torch.tensor([[1, 2, 3, 4]])
    for use_cache in (True, False):
        tokens = generate(model, prompt, 3, use_cache=use_cache)
        with torch.no_grad():
            assert int(tokens[0, 0]) == int(model(prompt)[0, -1].argmax())
    assert asked == [1, 1, 1, 4, 1, 1, 1, 4]


def test_a_model_without_a_head_of_its_own_is_run_as_a_whole():
    model = gpt()

    class Wrapped:
        context, vocab_size, new_cache = model.context, model.vocab_size, model.new_cache

        def __call__(self, ids, cache=None):
            return model(ids, cache)

    prompt = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(generate(Wrapped(), prompt, 4), generate(model, prompt, 4))


GPU = torch.device("cuda")


def on(device: torch.device) -> torch.Generator:
    """A generator that says it draws there."""

    class Elsewhere(torch.Generator):
        @property
        def device(self):
            return device

    return Elsewhere()


SLIPS = [  # prompt, options, message
    ([1, 2, 3], {}, r"a list of rows, \[\[3, 4, 5\]\] if there is one: got 1 where row 0 should be"),
    ([[1], 2], {}, "got 2 where row 1 should be"),
    (torch.tensor([1, 2, 3]), {}, r"got shape \(3,\). Write prompt\[None\]"),
    (torch.tensor([[[1]]]), {}, r"got shape \(1, 1, 1\)"),
    ([[1, 2.5]], {}, r"ids are whole numbers: got 2\.5 in row 0"),
    ([[1], [2.0]], {}, r"got 2\.0 in row 1"),
    ([[1, True]], {}, "got True in row 0"),
    ([[1, None]], {}, "got None in row 0"),
    ([[1, "2"]], {}, "got '2' in row 0"),
    ([[math.nan]], {}, "got nan in row 0"),
    ([[[1]]], {}, r"got \[1\] in row 0"),
    ("head", {}, "a prompt is ids, not text: got 'head'. generate_text takes text"),
    (["head"], {}, "ids, not text: got 'head' in row 0"),
    (torch.tensor([[1.0, 2.0]]), {}, r"whole numbers: got a prompt of torch\.float32"),
    (torch.tensor([[True]]), {}, r"got a prompt of torch\.bool"),
    (torch.zeros(0, 3, dtype=torch.long), {}, "there is no prompt"),
    (torch.zeros(2, 0, dtype=torch.long), {}, "prompt is empty"),
    ([[]], {}, r"prompt is empty \(row 0\)"),
    (torch.zeros(1, 2, dtype=torch.long, device="meta"), {}, "the prompt lies on meta, the model on cpu: move it"),
    ([[2**70]], {}, "no token of a model is as large: got 1180591620717411303424 in row 0"),
    ([[1, 2]], {"stop_id": True}, "a stop token is a whole number from 0 on: got True"),
    ([[1, 2]], {"stop_id": 2.0}, r"got 2\.0"),
    ([[1, 2]], {"stop_id": "2"}, "got '2'"),
    ([[1, 2]], {"stop_id": [2, 3.5]}, r"got 3\.5"),
    ([[1, 2]], {"stop_id": [False]}, "got False"),
    ([[1, 2]], {"stop_id": object()}, "ids are whole numbers, one or a collection"),
    ([[1, 2]], {"max_new_tokens": 2.0}, r"whole number from 1 on: got max_new_tokens=2\.0"),
    ([[1, 2]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
    ([[1, 2]], {"max_new_tokens": True}, "max_new_tokens=True"),
    ([[1, 2]], {"max_new_tokens": math.nan}, "max_new_tokens=nan"),
    ([[1, 2]], {"max_new_tokens": None}, "max_new_tokens=None"),
    ([[1, 2]], {"generator": on(GPU)}, r'draws on cuda, the model runs on cpu: make it with torch\.Generator\("cpu"\)'),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", [generate, generate_scored, beam_search, speculative])
def test_common_slips_say_what_is_wanted(call):
    model = gpt()
    for prompt, options, message in SLIPS:
        options = {"max_new_tokens": 3, **options}
        more = {"draft": model} if call is speculative else {"n_beams": 2} if call is beam_search else {}
        if call is beam_search and "generator" in options:
            continue  # nothing is drawn
        with pytest.raises(ValueError, match=message):
            call(model, prompt=prompt, **options, **more)


@pytest.mark.usefixtures("unchecked")
def test_what_is_as_good_as_a_list_of_lists_is_taken():
    model, expected = gpt(), generate(gpt(), [[3, 4], [5, 6]], 4, stop_id=[7, 9])
    text = torch.tensor([[3, 4], [5, 6]])
    for prompt in (text, text.int(), text.numpy(), list(text), [row.numpy() for row in text], ((3, 4), range(5, 7))):
        for stops in ([7, 9], {9, 7}, torch.tensor([7, 9]), (torch.tensor(7), 9), text.new_tensor([9, 7]).numpy()):
            assert torch.equal(generate(model, prompt, 4, stop_id=stops), expected)
    assert torch.equal(generate(model, text, 4, stop_id=torch.tensor(9)), generate(model, text, 4, stop_id=9))


class Broken:
    """A model whose logits are not numbers from some token on, in one row."""

    context, vocab_size = 50, V

    def __init__(self, value: float, after: int, row: int) -> None:
        self.value, self.left, self.row = value, after, row

    def __call__(self, ids: Tensor, cache: object = None) -> Tensor:
        if isinstance(cache, TextCache):
            cache.text = torch.cat([cache.text, ids], dim=1)
        logits = torch.zeros(*ids.shape, V)
        if self.left == 0:
            logits[self.row, :, 3 if self.value > -math.inf else slice(None)] = self.value
        self.left -= 1
        return logits

    def new_cache(self, batch: int, capacity: int) -> TextCache:
        return TextCache(batch)


def choose_the_last(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A rule of one's own, that looks at nothing."""
    return torch.full((len(logits),), V - 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("choose", [greedy, Sampler(0.7, 5, 0.9, 0.1), choose_the_last], ids=["greedy", "drawn", "own"])
def test_logits_that_are_no_numbers_are_named_by_step_and_row(value, choose):
    what = "all 19 tokens are ruled out" if value == -math.inf else f"a logit of {value}"
    for after in (0, 3):
        for use_cache in (True, False):
            tokens = stream(Broken(value, after, 1), [[1], [2]], 5, choose=choose, use_cache=use_cache)
            for _ in range(after):
                next(tokens)
            with pytest.raises(ImpossibleLogits, match=f"after {after} new tokens, row 1: .*{what}"):
                next(tokens)
    with pytest.raises(ValueError, match=f"after 2 new tokens, row 0: .*{what}"):
        speculative(Broken(value, 1, 0), Broken(0.0, -1, 0), [[1]], 5, n_draft=1)
    with pytest.raises(ValueError, match=f"after 2 new tokens, .*{what}"):
        beam_search(Broken(value, 2, 0), [[1]], 5, n_beams=2)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("choose", [greedy, Sampler(0.7, 5)], ids=["greedy", "drawn"])
def test_on_a_device_the_look_of_the_step_finds_them(value, choose):
    with pytest.raises(ImpossibleLogits, match="after 2 new tokens, row 1"):
        generate(Broken(value, 2, 1), [[1], [2]], 5, choose=choose)


@pytest.mark.parametrize("choose", [greedy, Sampler()])
def test_the_rules_themselves_refuse_what_is_no_number(choose):
    for row, message in (
        ([math.nan, 1.0], "row 1: there is a logit of nan"),
        ([math.inf, 1.0], "row 1: there is a logit of inf"),
        ([-math.inf, -math.inf], "row 1: all 2 tokens are ruled out"),
    ):
        with pytest.raises(ImpossibleLogits, match=message):
            choose(torch.tensor([[0.0, -math.inf], row]))


def test_several_texts_for_each_prompt_read_the_prompt_once():
    model = Counting()

    class Reordered(TextCache):
        pass

    model.new_cache = lambda batch, capacity: Reordered(batch)  # type: ignore[method-assign]
    found = generate_scored(model, [[3, 4], [7, 8]], 4, n=3, choose=Sampler(0.01), stop_id=6)
    assert [tuple(ids.shape) for ids in model.read] == [(2, 2), (6, 1), (6, 1), (6, 1)]
    assert found.ids.tolist() == [[[5, 6, 6, 6]] * 3, [[9, 10, 11, 12]] * 3]
    assert found.lengths.tolist() == [[2] * 3, [4] * 3]
    assert found.log_probability.shape == (2, 3)
    assert (found.log_probabilities[0, :, 2:] == 0).all()


def test_an_encoder_decoder_gives_several_texts_for_each_source():
    model = enlarged(EncoderDecoder(EncoderDecoderConfig(V, CONTEXT, n_layers=1, n_heads=2, d_model=16, d_ff=32)))
    sources = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    with torch.no_grad():
        found = generate_scored(
            model.given(sources), [[1], [1]], 6, n=4, choose=Sampler(), generator=torch.Generator().manual_seed(0)
        )
        for source, rows, chances in zip(sources, found.ids, found.log_probabilities, strict=True):
            text = torch.cat([torch.ones(4, 1, dtype=torch.long), rows], dim=1)
            logits = model(source.expand(4, -1), text[:, :-1])
            expected = logits.log_softmax(dim=-1).gather(-1, rows[..., None])[..., 0]
            torch.testing.assert_close(chances, expected)
    assert len({tuple(row) for row in found.ids[0].tolist()}) > 1


@pytest.mark.usefixtures("unchecked")
def test_several_texts_that_cannot_be_are_refused():
    for n in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"n is a whole number from 1 on: got n={n}"):
            generate_scored(gpt(), [[3]], 2, n=n, choose=Sampler())
    with pytest.raises(ValueError, match=r"greedy gives one text .* got n=2.* Sampler, or use beam_search"):
        generate_scored(gpt(), [[3]], 2, n=2)
    with pytest.raises(ValueError, match=r"a list, cannot reorder its rows.* got n=2"):
        generate_scored(Counting(), [[3]], 2, n=2, choose=Sampler())
