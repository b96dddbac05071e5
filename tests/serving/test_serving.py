"""The server, asked by OpenAI's own client over a real connection, beside `generate_text`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn

from llm_core.generation.adjust import FrequencyPenalty, PresencePenalty, in_turn
from llm_core.generation.generate import generate
from llm_core.generation.text import generate_text
from llm_core.models.llama import Llama, LlamaConfig
from llm_core.pretrained.chat import ChatML
from llm_core.serving.app import Service, application
from llm_core.serving.engine import Busy, End, Engine, ShutDown, Text, Written
from llm_core.serving.requests import NOT_DONE
from llm_core.text.characters import CharacterTokenizer

ALPHABET = "abcdefghij klmnop.<|>_\nqrstuvwxyz"
CONTEXT = 160
CHATML = ChatML()


class Slow(torch.nn.Module):
    """A model that takes its time, counts its steps, and can be broken."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model, self.pause, self.steps, self.broken = model, 0.0, 0, False

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "model" else getattr(super().__getattr__("model"), name)

    def forward(self, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.steps += 1
        time.sleep(self.pause)
        logits = self.model(ids, cache)
        return logits * float("nan") if self.broken else logits


class Served:
    """A server in a thread of this process, and a client of it."""

    def __init__(self, *, chat: Any = CHATML, encode: Any = None, longest: int = 100, **limits: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(ALPHABET) + 3, context=CONTEXT, d_model=16, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=32
        )
        self.model = Slow(Llama(config).eval())
        with torch.no_grad():  # peaked, so that rounding in a batch changes no choice
            for weight in self.model.model.parameters():
                weight.mul_(4.0)
        self.tokenizer = CharacterTokenizer(ALPHABET)
        engine = Engine(self.model, self.tokenizer, **{"max_batch": 4, "max_waiting": 8} | limits)
        self.service = Service(engine, "tiny", chat, encode, max_body=20_000, max_new_tokens=longest)
        config_ = uvicorn.Config(application(self.service), port=0, log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config_)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread.start()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def expected(self, prompt: str, n: int = 16, **options: Any) -> str:
        """What `generate_text` writes."""
        return generate_text(self.model.model, self.tokenizer, prompt, n, **options)

    def complete(self, **request: Any) -> Any:
        return self.client.completions.create(**{"model": "tiny", "temperature": 0} | request)

    def post(self, data: Any, path: str = "completions", **options: Any) -> httpx.Response:
        content, headers = json.dumps(data), {"content-type": "application/json"}  # half characters too
        return httpx.post(f"{self.url}/v1/{path}", content=content, headers=headers, timeout=30, **options)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.listening.close()


@contextmanager
def served(**options: Any) -> Iterator[Served]:
    server = Served(**options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with served() as server:
        yield server


@pytest.fixture
def tiny(shared: Served) -> Iterator[Served]:
    shared.model.pause = 0.0
    yield shared
    shared.model.pause, shared.model.broken = 0.0, False


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# --- what is asked for is written ---


def test_a_prompt_is_continued_as_generate_text_does(tiny):
    answer = tiny.complete(prompt="a cab ", max_tokens=12)
    [choice] = answer.choices
    assert choice.text == tiny.expected("a cab ", 12)
    assert (choice.finish_reason, choice.index, answer.object, answer.model) == ("length", 0, "text_completion", "tiny")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 12, 18)
    assert len(tiny.complete(prompt="a").choices[0].text) == 16  # OpenAI's default
    assert tiny.complete(prompt="a", max_tokens=1).choices[0].text == tiny.expected("a", 1)


def test_a_prompt_gets_what_belongs_around_it_and_a_conversation_does_not():
    tokenizer = CharacterTokenizer(ALPHABET)
    with served(chat=lambda messages: "no", encode=lambda text: tokenizer.encode("a" + text), longest=5) as one:
        answer = one.complete(prompt="b")
        assert answer.choices[0].text == one.expected("ab", 5)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)  # no more than may be asked for
        chat = one.client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
        assert chat.choices[0].message.content == one.expected("no", 5)


def test_unequal_prompts_are_written_together(tiny):
    prompts = ["a", "the cat sat on the mat and the dog", "no", "x y z. " * 8]
    before = tiny.model.steps
    answer = tiny.complete(prompt=prompts, max_tokens=20)
    assert [choice.text for choice in answer.choices] == [tiny.expected(prompt, 20) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert tiny.model.steps - before <= 22  # not 80
    ids = [tiny.tokenizer.encode(prompt) for prompt in prompts]
    assert [c.text for c in tiny.complete(prompt=ids, max_tokens=20).choices] == [c.text for c in answer.choices]
    assert tiny.complete(prompt=ids[1], max_tokens=20).choices[0].text == answer.choices[1].text
    more = [*prompts, *prompts[:3]]  # more than a batch holds
    assert [c.text for c in tiny.complete(prompt=more, max_tokens=3).choices] == [tiny.expected(p, 3) for p in more]


def test_prompts_that_only_fit_one_by_one_are_written_one_by_one(tiny):
    """Padded to one length, a long prompt with a short answer and a short one with a long answer do not fit."""
    long, results = "ab " * 50, {}

    def ask(name: str, **request: Any) -> None:
        results[name] = tiny.complete(**request).choices[0].text

    tiny.model.pause = 0.002
    threads = [
        threading.Thread(target=ask, args=("first",), kwargs={"prompt": "q", "max_tokens": 40}),
        threading.Thread(target=ask, args=("long",), kwargs={"prompt": long, "max_tokens": 8}),
        threading.Thread(target=ask, args=("short",), kwargs={"prompt": "a", "max_tokens": 90}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {
        "first": tiny.expected("q", 40), "long": tiny.expected(long, 8), "short": tiny.expected("a", 90),
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"stop": "e"}, {"n": 2, "temperature": 1.0, "seed": 3}])
def test_a_stream_joined_is_the_whole(tiny, options):
    request = {"prompt": ["a cab ", "no"], "max_tokens": 30} | options
    whole = tiny.complete(**request)
    texts = [""] * len(whole.choices)
    reasons: list[str | None] = [None] * len(whole.choices)
    usage = None
    for chunk in tiny.complete(**request, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_pieces_arrive_while_the_text_is_written(tiny):
    tiny.model.pause = 0.02
    before = tiny.model.steps
    stream = tiny.complete(prompt="a cab ", max_tokens=50, stream=True)
    next(iter(stream))
    assert tiny.model.steps - before < 25
    stream.close()
    until(lambda: not tiny.service.engine._waiting)


def test_a_stop_string_and_a_stop_token_end_a_text():
    with served() as one:
        text = one.expected("a cab ", 40)
        stop = text[5:7]
        answer = one.complete(prompt="a cab ", max_tokens=40, stop=stop).choices[0]
        assert (answer.text, answer.finish_reason) == (one.expected("a cab ", 40, stop=stop), "stop")
        assert stop not in answer.text
        both = one.complete(prompt="a cab ", max_tokens=40, stop=["never", stop]).choices[0]
        assert both.text == answer.text
        one.service.engine.stop_ids = tuple(one.tokenizer.encode(text[9]))
        [choice] = one.complete(prompt="a cab ", max_tokens=40).choices
        assert (choice.text, choice.finish_reason) == (text[: text.index(text[9])], "stop")


def test_the_penalties_are_those_of_the_package(tiny):
    answer = tiny.complete(prompt=["a cab ", "no"], max_tokens=30, presence_penalty=1.5, frequency_penalty=-0.5)
    adjust = in_turn(PresencePenalty(1.5), FrequencyPenalty(-0.5))
    expected = [tiny.expected(prompt, 30, adjust=adjust) for prompt in ("a cab ", "no")]
    assert [choice.text for choice in answer.choices] == expected
    assert expected[0] != tiny.expected("a cab ", 30)


def test_a_seed_gives_the_same_texts_whatever_else_is_written(tiny):
    request = {"prompt": "a cab ", "max_tokens": 40, "temperature": 2.0, "n": 3, "seed": 11}
    alone = [choice.text for choice in tiny.complete(**request).choices]
    assert len(set(alone)) == 3
    tiny.model.pause = 0.002
    others = [
        threading.Thread(target=tiny.complete, kwargs={"prompt": prompt, "max_tokens": 60, "temperature": 1.0})
        for prompt in ("no", "x y z")
    ]
    for other in others:
        other.start()
    assert [choice.text for choice in tiny.complete(**request).choices] == alone
    for other in others:
        other.join(30)
    assert [choice.text for choice in tiny.complete(**request | {"seed": 12}).choices] != alone
    free = [tiny.complete(**request | {"seed": None, "n": 1}).choices[0].text for _ in range(2)]
    assert free[0] != free[1]


def test_top_k_of_one_is_greedy_at_any_temperature(tiny):
    request = {"prompt": "a cab ", "max_tokens": 20, "temperature": 2.0}
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert tiny.complete(**request, extra_body=extra).choices[0].text == tiny.expected("a cab ", 20)
    assert tiny.complete(**request, top_p=1e-6).choices[0].text == tiny.expected("a cab ", 20)


def test_a_conversation_is_answered_in_its_form(tiny):
    messages = [{"role": "system", "content": "be nice"}, {"role": "user", "content": [{"type": "text", "text": "no"}]}]
    plain = [messages[0], {"role": "user", "content": "no"}]
    request = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 12}
    answer = tiny.client.chat.completions.create(**request)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", tiny.expected(CHATML(plain), 12))
    assert (choice.finish_reason, answer.object) == ("length", "chat.completion")
    chunks = list(tiny.client.chat.completions.create(**request, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    # without a limit: as far as the context goes
    longest = tiny.client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert longest.usage.total_tokens == CONTEXT + 1
    assert tiny.client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=3
    ).usage.completion_tokens == 3  # fmt: skip


def test_the_model_can_be_asked_for(tiny):
    assert [model.id for model in tiny.client.models.list()] == ["tiny"]
    assert tiny.client.models.retrieve("tiny").owned_by == "llm-core"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here, only 'tiny'"):
        tiny.client.models.retrieve("gpt-4")


# --- what is wrong is said ---

MESSAGES = [{"role": "user", "content": "no"}]
BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("completions", {"prompt": None}, 400, "prompt"),
    ("completions", {"prompt": ""}, 400, "the prompt is empty"),
    ("completions", {"prompt": []}, 400, "prompt"),
    ("completions", {"prompt": [[]]}, 400, "prompt"),
    ("completions", {"prompt": ["a", 3]}, 400, "prompt"),
    ("completions", {"prompt": [99]}, 400, "the model knows 36 tokens"),
    ("completions", {"prompt": [-1]}, 400, "greater than or equal to 0"),
    ("completions", {"prompt": [35]}, 400, "ids run from 0 to 32"),
    ("completions", {"prompt": [True]}, 400, "prompt"),
    ("completions", {"prompt": "A"}, 400, "A"),
    ("completions", {"prompt": "\ud800"}, 400, ""),
    ("completions", {"prompt": "a " * 100}, 400, "do not fit the context of 160"),
    ("completions", {"prompt": "a", "max_tokens": 101}, 400, "at most 100 new tokens"),
    ("completions", {"prompt": "a" * 100, "max_tokens": 90}, 400, "at most 61 new tokens do"),
    ("completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": 2.5}, 400, "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": "5"}, 400, "max_tokens"),
    ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
    ("completions", {"prompt": "a", "temperature": 3}, 400, "less than or equal to 2: got 3"),
    ("completions", {"prompt": "a", "temperature": True}, 400, "temperature"),
    ("completions", {"prompt": "a", "top_p": 0}, 400, "top_p"),
    ("completions", {"prompt": "a", "top_k": 0}, 400, "top_k"),
    ("completions", {"prompt": "a", "n": 17}, 400, "n: "),
    ("completions", {"prompt": ["a"] * 5, "n": 2}, 400, "at most 8 texts"),
    ("completions", {"prompt": "a", "stop": ""}, 400, "stop"),
    ("completions", {"prompt": "a", "stop": ["a", ""]}, 400, "stop"),
    ("completions", {"prompt": "a", "stop": ["a"] * 17}, 400, "stop"),
    ("completions", {"prompt": "a", "seed": 2**63}, 400, "seed"),
    ("completions", {"prompt": "a", "stream": "yes"}, 400, "stream"),
    ("completions", {"prompt": "a", "stream_options": {"usage": True}}, 400, "stream_options"),
    ("completions", {"prompt": "a", "temprature": 1}, 400, "did you mean temperature?"),
    ("completions", {"prompt": "a", "zzz": 1}, 400, "there is no parameter zzz"),
    ("completions", {"prompt": "a", "\ud800": 1}, 400, "there is no parameter \\ud800"),
    ("completions", {"prompt": "a", "logprobs": 3}, 400, "logprobs is not supported here"),
    ("completions", {"prompt": "a", "logprobs": 0}, 400, "logprobs is not supported here"),
    ("completions", {"prompt": "a", "echo": True}, 400, "echo is not supported here"),
    ("completions", {"prompt": "a", "best_of": 2}, 400, "best_of is not supported here"),
    ("completions", {"messages": MESSAGES}, 400, "no parameter messages; /v1/chat/completions has it"),
    ("completions", {}, 400, "prompt is missing"),
    ("completions", {"prompt": "a", "model": "gpt-4"}, 404, "there is no model 'gpt-4' here, only 'tiny'"),
    ("completions", {"prompt": "a", "model": None}, 400, "model"),
    ("chat/completions", {"messages": []}, 400, "messages"),
    ("chat/completions", {"messages": "no"}, 400, "messages"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0][content]"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "no"}]}, 400, "'system', 'user' or 'assistant'"),
    ("chat/completions", {"messages": [{"role": "user", "content": None}]}, 400, "messages[0]"),
    ("chat/completions", {"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, "<|im_end|>"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "'text'"),
    ("chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "tools is not supported here"),
    ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}, 400, "response_format"),
    ("chat/completions", {"prompt": "a"}, 400, "no parameter prompt; /v1/completions has it"),
    ("chat/completions", {}, 400, "messages is missing"),
    ("nowhere", {}, 404, "POST /v1/nowhere: Not Found. There are GET /v1/models"),
    ("models", {}, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("path", "entries", "status", "part"), BAD)
def test_a_bad_request_is_told_what_is_wrong(tiny, path, entries, status, part):
    answer = tiny.post({"model": "tiny"} | entries, path)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    if part.startswith("messages[0][content]"):
        part = "messages"
    assert part in error["message"]
    assert len(error["message"]) < 400


def test_what_asks_for_nothing_is_not_refused(tiny):
    nothing = {name: values[-1] for name, values in NOT_DONE.items()}
    answer = tiny.post({"model": "tiny", "prompt": "a", "user": "ada", **nothing})
    assert answer.status_code == 200, answer.text


def test_no_json_is_said_to_be_none(tiny):
    url = f"{tiny.url}/v1/completions"
    as_json = {"content-type": "application/json"}
    for content, headers, status, part in [
        (b"{", as_json, 400, "the body is no JSON"),
        (b"", as_json, 400, "the body is no JSON"),
        (b"\xff\xfe", as_json, 400, "the body is no JSON"),
        (b"[" * 9000, as_json, 400, "the body is no JSON"),
        (b"[1]", as_json, 400, "the body must be a JSON object: got [1]"),
        (b'{"model": "tiny", "prompt": "a"}', {"content-type": "text/plain"}, 415, "application/json: got text/plain"),
        (b'{"model": "tiny", "prompt": "a"}', {}, 415, "application/json: got none"),
    ]:
        answer = httpx.post(url, content=content, headers=headers)
        assert (answer.status_code, part in answer.json()["error"]["message"]) == (status, True), answer.text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_of_ten_megabytes_is_refused_and_forgotten(tiny, chunked):
    big = b'{"model": "tiny", "prompt": "' + b"a" * 10_000_000 + b'"}'
    if tiny.service.max_body * 100 < len(big):  # so much is not even read to its end
        big = big[: tiny.service.max_body * 90]
    content = (big[i : i + 65536] for i in range(0, len(big), 65536)) if chunked else big
    answer = httpx.post(f"{tiny.url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert tiny.complete(prompt="a", max_tokens=2).choices[0].text == tiny.expected("a", 2)


def test_a_model_without_a_chat_form_says_so():
    with served(chat=None) as one, pytest.raises(openai.BadRequestError, match="is no chat model: ask /v1/completions"):
        one.client.chat.completions.create(model="tiny", messages=MESSAGES)


# --- clients and models that fail ---


def test_a_client_that_hangs_up_in_mid_stream_ends_its_text(tiny):
    tiny.model.pause = 0.01
    stream = tiny.complete(prompt="a cab ", max_tokens=100, stream=True)
    next(iter(stream))
    stream.close()
    idle(tiny, 60)
    assert tiny.complete(prompt="a", max_tokens=2).choices[0].text == tiny.expected("a", 2)


def test_what_nobody_waits_for_any_more_is_not_begun():
    with served(max_waiting=2, max_batch=1) as one:
        one.model.pause = 0.01
        stream = one.complete(prompt="a cab ", max_tokens=60, stream=True)
        until(lambda: one.model.steps)
        waits: list[Any] = []
        texts = [Text([3], 50, waits.append), Text([4], 50, waits.append)]
        one.service.engine.submit(texts)
        for text in texts:
            text.cancel()
        more: list[Any] = []
        one.service.engine.submit([Text([5], 2, more.append), Text([6], 2, more.append)])  # there is room again
        assert "".join(chunk.choices[0].text for chunk in stream) == one.expected("a cab ", 60)
        until(lambda: len(more) == 6)
        assert not waits
        assert one.model.steps <= 60 + 2 * 2


def test_a_client_that_hangs_up_before_the_answer_ends_its_text(tiny):
    tiny.model.pause = 0.01
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{tiny.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 100}, timeout=0.2
        )  # fmt: skip
    idle(tiny, 80)


def idle(server: Served, within: int) -> None:
    """The model stops long before the text would have ended."""
    before = server.model.steps
    seen = -1
    while seen != server.model.steps:
        seen = server.model.steps
        time.sleep(0.15)
    assert server.model.steps - before < within


def test_more_than_may_wait_is_refused_and_nothing_is_lost():
    with served(max_waiting=3, max_batch=1) as one:
        one.model.pause = 0.02
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(one.complete(prompt="a", max_tokens=40)))
        first.start()
        until(lambda: one.model.steps)
        second = threading.Thread(target=lambda: answers.append(one.complete(prompt=["no", "x", "y"], max_tokens=2)))
        second.start()
        until(lambda: len(one.service.engine._waiting) == 3)
        with pytest.raises(openai.RateLimitError, match="3 texts wait, and at most 3 may: try again later"):
            one.complete(prompt="b", max_tokens=2)
        one.model.pause = 0.0
        first.join(30)
        second.join(30)
        texts = sorted(choice.text for answer in answers for choice in answer.choices)
        assert texts == sorted([one.expected("a", 40), *(one.expected(prompt, 2) for prompt in ("no", "x", "y"))])


def test_a_model_that_fails_is_an_error_and_the_next_text_is_written(tiny):
    tiny.model.broken = True
    with pytest.raises(openai.InternalServerError, match="there is a logit of nan"):
        tiny.complete(prompt="a", max_tokens=3)
    with pytest.raises(openai.APIError, match="there is a logit of nan"):
        list(tiny.complete(prompt="a", max_tokens=3, stream=True))
    tiny.model.broken = False
    assert tiny.complete(prompt="a", max_tokens=3).choices[0].text == tiny.expected("a", 3)


def test_a_server_that_is_stopped_ends_what_it_writes():
    one = Served()
    one.model.pause = 0.05
    stream = one.complete(prompt="a cab ", max_tokens=100, stream=True)
    next(iter(stream))
    began = time.monotonic()
    one.server.should_exit = True
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(stream)
    one.close()
    assert time.monotonic() - began < 10
    with pytest.raises(ShutDown):
        one.service.engine.submit([])


# --- the engine by itself ---


def test_the_engine_hands_out_every_token_once_and_one_end():
    tokenizer = CharacterTokenizer(ALPHABET)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(ALPHABET), context=64, d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=16)
    model = Llama(config).eval()
    engine = Engine(model, tokenizer, max_batch=3, max_waiting=4)
    events: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    prompts = [[1], [4, 5, 6, 7], [2, 3]]
    engine.submit([Text(prompts[i], 5 + i, events[i].append) for i in range(3)])
    until(lambda: all(each and isinstance(each[-1], End) for each in events.values()))
    for i, each in events.items():
        assert [type(event) for event in each] == [Written] * (5 + i) + [End]
        expected = generate(model, [prompts[i]], 5 + i)[0].tolist()
        assert "".join(event.text for event in each[:-1]) == tokenizer.decode(expected)
        assert each[-1] == End("length")
    with pytest.raises(ValueError, match="do not fit the context"):
        engine.submit([Text([1], 3, print), Text([1] * 60, 20, print)])
    with pytest.raises(Busy):
        engine.submit([Text([1], 60, lambda event: time.sleep(0.01)) for _ in range(5)])
    engine.close()
    with pytest.raises(ShutDown, match="the server is stopping"):
        engine.submit([Text([1], 3, print)])
    engine.close()  # twice does no harm


def test_a_reader_that_fails_does_not_stop_the_others():
    tokenizer = CharacterTokenizer(ALPHABET)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(ALPHABET), context=64, d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=16)
    engine = Engine(Llama(config).eval(), tokenizer)
    good: list[Any] = []
    engine.submit([Text([1], 9, lambda event: 1 / 0), Text([2], 9, good.append)])  # type: ignore[arg-type, return-value]
    until(lambda: len(good) == 10)
    engine.close()


def test_an_engine_refuses_what_cannot_work():
    config = LlamaConfig(vocab_size=5, context=64, d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=16)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the model knows 5"):
        Engine(Llama(config), CharacterTokenizer(ALPHABET))
    with pytest.raises(ValueError, match="max_batch"):
        Engine(Llama(config), CharacterTokenizer("abc"), max_batch=0)
