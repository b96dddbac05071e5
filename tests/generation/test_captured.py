"""Steps of fixed shapes against the growing cache, recorded without a GPU and run again; and what would wait for one.

No GPU was at hand when this was written: `cuda_graph` itself is only run where there is one (the last test).
"""

from __future__ import annotations

import pytest
import torch
from looks import Looks, on_a_device, recorded  # noqa: F401
from wrapped import CONTEXT, V, gpt, llama, prompts

from llm_core.generation.adjust import Forbid, FrequencyPenalty, MinNewTokens, NoRepeatNgram, RepetitionPenalty, in_turn
from llm_core.generation.captured import Captured, cuda_graph
from llm_core.generation.generate import generate, generate_scored, steps
from llm_core.generation.sampling import Sampler
from llm_core.generation.text import stream_text
from llm_core.layers.cache import StaticCache
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.text.characters import CharacterTokenizer

UNEQUAL = [[5], [6, 7, 8, 9, 10], [3, 4]]
MODELS = {"GPT": gpt, "Llama": llama, "windowed Llama": lambda: llama(window=3)}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_static_cache_gives_the_logits_of_the_growing_one(name, padded):
    model = MODELS[name]()
    text = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(1))
    growing, static = model.new_cache(3, 14), StaticCache(model.new_cache(3, 14))
    if padded:
        for cache in (growing, static):
            cache.pad_left(torch.tensor([0, 2, 3]))
    begin = 0
    with torch.no_grad():
        for T in (4, 1, 1, 3, 1, 1, 1):
            ids = text[:, begin : begin + T]
            ours, expected = model(ids, static), model(ids, growing)
            begin += T
            torch.testing.assert_close(ours[padded * (begin < 5) :, -1:], expected[padded * (begin < 5) :, -1:])
            assert int(static.length) == growing.length == begin
    static.rewind(4)
    growing.rewind(4) if name != "windowed Llama" else None
    with torch.no_grad():
        again = model(text[:, 4:5], static)[:, -1]
        fresh = model.new_cache(3, 14)
        if padded:
            fresh.pad_left(torch.tensor([0, 2, 3]))
        model(text[:, :4], fresh)
        torch.testing.assert_close(again, model(text[:, 4:5], fresh)[:, -1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_one_graph_and_waits_for_nothing(name):
    model = MODELS[name]()
    static, growing = StaticCache(model.new_cache(2, CONTEXT)), model.new_cache(2, CONTEXT)
    text = prompts(2, CONTEXT)
    step = torch.compile(lambda ids: model(ids, static), backend="eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(text[:, :3], static), model(text[:, :3], growing))
        for i in range(3, CONTEXT):
            torch.testing.assert_close(step(text[:, i : i + 1]), model(text[:, i : i + 1], growing))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one for all positions
        static.rewind(3)
        with Looks() as looks:
            model(text[:, 3:4], static)
    assert looks.found == []


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("prompt", [prompts().tolist(), UNEQUAL, [[5]]], ids=["equal", "unequal", "one token"])
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_step_generates_what_the_model_does(name, prompt):
    model = MODELS[name]()
    captured = Captured(model, recorded)
    for options in ({}, {"stop_id": 13, "choose": Sampler(1.3, 12), "adjust": FrequencyPenalty(0.5)}):
        ours, expected = (
            generate(m, prompt, 11, generator=torch.Generator().manual_seed(2), **options) for m in (captured, model)
        )
        assert torch.equal(ours, expected)
    assert len(set(expected.flatten().tolist())) > 2


def test_a_recorder_sees_what_a_graph_would_not():
    # The growing cache's position is a number of Python's: what was recorded with it is wrong at the next position.
    model = gpt()
    growing = model.new_cache(1, CONTEXT)
    with torch.no_grad():
        model(torch.tensor([[3, 4]]), growing)
        run = recorded(lambda ids: model(ids, growing), torch.tensor([[5]]), lambda: None)
        run(torch.tensor([[5]]))
        expected = model(torch.tensor([[3, 4, 5, 6]]))[:, -1:]
        assert not torch.allclose(run(torch.tensor([[6]])), expected, atol=0.1)


ADJUST = in_turn(
    RepetitionPenalty(1.3), NoRepeatNgram(2), Forbid([3, [4, 5]]), MinNewTokens(3, 7), FrequencyPenalty(0.3)
)


@pytest.mark.usefixtures("on_a_device", "unchecked")
@pytest.mark.parametrize("model", [gpt(), llama(window=3), Captured(llama(), recorded)], ids=["GPT", "Llama", "graph"])
@pytest.mark.parametrize("options", [{}, {"choose": Sampler(1.3, 12, 0.95, 0.01), "adjust": ADJUST}], ids=["", "drawn"])
def test_a_step_of_generation_waits_once(model, options):
    for prompt in (prompts().tolist(), UNEQUAL):
        written = steps(model, prompt, 10, stop_id=[7, 9], **options)
        next(written)  # the first brings the stop tokens to the device
        for _ in range(3):
            with Looks() as looks:
                next(written)
            assert looks.found == ["tolist"]


@pytest.mark.usefixtures("on_a_device", "unchecked")
def test_a_piece_of_text_waits_once():
    pieces = stream_text(gpt(), CharacterTokenizer("abcdefghij"), "head", 10, stop_id=15, stop="zz")
    next(pieces)
    for _ in range(3):
        with Looks() as looks:
            next(pieces)
        assert looks.found == ["tolist"]


def test_the_counter_counts():
    x = torch.tensor([1.0, 2.0])
    for wait in (
        x.tolist, x[0].item, lambda: bool(x[0] > 0), lambda: int(x[0]), lambda: x[x > 1], x.nonzero,
        lambda: torch.multinomial(x, 1), lambda: torch.tensor([3]), lambda: float(x.sum()), x.numpy,
    ):  # fmt: skip
        with Looks() as looks:
            wait()
        assert len(looks.found) >= 1
    with Looks() as looks:
        (x + 1).argmax().where(x > 1, 3).isfinite()
        x[torch.zeros(2, dtype=torch.long)]
    assert looks.found == []


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_fixed_shapes_is_refused():
    model = EncoderDecoder(EncoderDecoderConfig(V, CONTEXT, n_layers=1, n_heads=2, d_model=16, d_ff=32)).eval()
    with torch.no_grad():
        given = model.given(torch.tensor([[3, 4]]))
    with pytest.raises(ValueError, match="sizes of a Cache: got a DecoderCache"):
        generate(Captured(given, recorded), [[1]], 3)
    used = gpt().new_cache(1, 4)
    with torch.no_grad():
        gpt()(torch.tensor([[1]]), used)
    with pytest.raises(ValueError, match="from an empty one: this one holds 1 tokens"):
        StaticCache(used)
    cache = StaticCache(gpt().new_cache(2, 8))
    with pytest.raises(ValueError, match=r"keeps its 2 rows: got 6\. Repeat the prompts"):
        cache.reorder(torch.arange(2).repeat_interleave(3))
    with pytest.raises(ValueError, match="room for 8 tokens cannot be rewound to 9"):
        cache.rewind(9)
    with pytest.raises(ValueError, match="a static cache for 20 tokens, and 1 new ones, do not fit the context of 16"):
        gpt()(torch.tensor([[1], [1]]), StaticCache(gpt().new_cache(2, 20)))
    with pytest.raises(ValueError, match="keeps its 1 rows: got 3"):
        generate_scored(Captured(gpt(), recorded), [[3]], 2, n=3, choose=Sampler())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="recorded on a GPU: these ids are on cpu"):
            generate(Captured(gpt()), [[1]], 3)


def test_rows_may_change_places():
    model = llama()
    growing, static = model.new_cache(2, 8), StaticCache(model.new_cache(2, 8))
    ids, rows = prompts(2, 4), torch.tensor([1, 1])
    with torch.no_grad():
        for cache in (growing, static):
            cache.pad_left(torch.tensor([0, 1]))
            model(ids, cache)
            cache.reorder(rows)
        torch.testing.assert_close(model(ids[:, :1], static), model(ids[:, :1], growing))
    assert static.padding.tolist() == [1, 1]


if torch.cuda.is_available():

    @pytest.mark.parametrize("prompt", [prompts().tolist(), UNEQUAL], ids=["equal", "unequal"])
    def test_on_a_gpu_a_cuda_graph_generates_what_the_model_does(prompt):
        model = llama().cuda()
        expected = generate(model, prompt, 11)
        assert torch.equal(generate(Captured(model, cuda_graph), prompt, 11), expected)
