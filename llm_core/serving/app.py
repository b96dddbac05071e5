"""The addresses: requests come in, texts go out, whole or as a stream of events.

    GET  /v1/models              the one model that there is
    POST /v1/completions         continues a prompt
    POST /v1/chat/completions    answers in a conversation

The form is that of OpenAI's API, so that its clients, and what is built on them, work with a model of this package.
Whatever is wrong with a request is answered in that form too, with a message that says what to do.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm_core.generation.generate import check_room
from llm_core.serving.engine import Busy, End, Engine, ShutDown, Text, Written
from llm_core.serving.requests import BadRequest, Body, ChatBody, CompletionBody, read_body, texts_of

Chat = Callable[[Sequence[dict[str, str]]], str]
# A client that is still sending does not hear an answer. So what is too long is read to its end and forgotten, within
# reason: so many times the longest request.
PATIENCE = 100


class ModelFailed(RuntimeError):
    """A text could not be written to its end."""


@dataclass(frozen=True)
class Service:
    """What is served, and within which limits.

    Args:
        engine: writes the texts.
        name: of the model; a request must name it.
        chat: messages -> the text that the model continues. None: it is no chat model, and says so.
        encode: a prompt to be continued -> ids, with what belongs around it. None: the tokenizer's own `encode`.
        max_body: bytes of a request.
        max_new_tokens: of one text. A request that does not say gets 16 for a completion, as at OpenAI, and as many
            as there is room for, up to this, for an answer.
    """

    engine: Engine
    name: str
    chat: Chat | None = None
    encode: Callable[[str], list[int]] | None = None
    max_body: int = 1_000_000
    max_new_tokens: int = 1024
    started: int = field(default_factory=lambda: int(time.time()))


def application(service: Service) -> Starlette:
    """The ASGI application. When it stops, the engine is closed."""

    async def completions(request: Request) -> Response:
        body = read_body(CompletionBody, await _json(request, service.max_body))
        _check_name(service, body.model)
        encode = service.encode or service.engine.tokenizer.encode
        prompts = [_ids(encode, prompt) for prompt in body.prompts()]
        limit = body.max_tokens or min(16, service.max_new_tokens)
        return await _answer(service, request, body, prompts, limit, "text_completion")

    async def chat(request: Request) -> Response:
        body = read_body(ChatBody, await _json(request, service.max_body))
        _check_name(service, body.model)
        if service.chat is None:
            raise BadRequest(f"{service.name} is no chat model: ask /v1/completions to continue a text", "messages")
        try:
            text = service.chat([message.plain() for message in body.messages])
        except ValueError as error:
            raise BadRequest(str(error), "messages") from None
        prompt = _ids(service.engine.tokenizer.encode, text)
        room = service.engine.model.context - len(prompt) + 1
        limit = body.limit() or max(1, min(room, service.max_new_tokens))
        return await _answer(service, request, body, [prompt], limit, "chat.completion")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        _check_name(service, request.path_params["name"])
        return JSONResponse(_model(service))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(service.engine.close)

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={
            BadRequest: _refused,
            Busy: lambda request, error: _error(429, str(error), "rate_limit_error", code="queue_full"),
            ShutDown: lambda request, error: _error(503, str(error), "server_error"),
            HTTPException: _no_such_address,
            ModelFailed: lambda request, error: _error(500, str(error), "server_error"),
            Exception: lambda request, error: _error(500, f"the server failed: {error}", "server_error"),
        },
        lifespan=lifespan,
    )


async def _answer(
    service: Service, request: Request, body: Body, prompts: list[list[int]], limit: int, kind: str
) -> Response:
    if limit > service.max_new_tokens:
        raise BadRequest(
            f"at most {service.max_new_tokens} new tokens can be asked for: got {limit}", "max_tokens", code="too_long"
        )
    for prompt in prompts:
        try:
            check_room("the context", service.engine.model.context, len(prompt), limit)
        except ValueError as error:
            raise BadRequest(str(error), code="context_length_exceeded") from None
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Written | End]]()

    def deliver(index: int) -> Callable[[Written | End], None]:
        def put(event: Written | End) -> None:  # called from the engine's thread
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

        return put

    texts = texts_of(body, prompts, limit, deliver)
    if len(texts) > service.engine.max_waiting:
        raise BadRequest(
            f"at most {service.engine.max_waiting} texts can be asked for at once: got {len(prompts)} prompts with "
            f"n={body.n or 1}", "n", code="too_many"
        )  # fmt: skip
    try:
        service.engine.submit(texts)
    except ValueError as error:
        raise BadRequest(str(error), "prompt") from None
    form = _Form(kind, service.name, sum(map(len, prompts)))
    if body.streams:
        return _Stream(_chunks(form, events, len(texts), tells_usage=body.tells_usage), texts)
    return await _whole(form, events, texts, request)


@dataclass(frozen=True)
class _Form:
    """How answers are written."""

    kind: str
    model: str
    n_prompt: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat.completion"

    def whole(self, texts: list[str], reasons: list[str | None], n_new: int) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for i, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            said: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
            )
            choices.append({"index": i, **said, "logprobs": None, "finish_reason": reason})
        return {**self._head(self.kind), "choices": choices, "usage": self.usage(n_new)}

    def chunk(self, index: int, text: str | None, reason: str | None = None, *, first: bool = False) -> dict[str, Any]:
        """A piece of one text, or its end."""
        if self.is_chat:
            said: dict[str, Any] = {"delta": {} if text is None else {"content": text}}
            if first:
                said["delta"]["role"] = "assistant"
        else:
            said = {"text": text or ""}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk" if self.is_chat else self.kind), "choices": [choice]}

    def last_chunk(self, n_new: int) -> dict[str, Any]:
        """How many tokens there were."""
        return {**self.chunk(0, None), "choices": [], "usage": self.usage(n_new)}

    def usage(self, n_new: int) -> dict[str, int]:
        return {"prompt_tokens": self.n_prompt, "completion_tokens": n_new, "total_tokens": self.n_prompt + n_new}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


async def _whole(
    form: _Form, events: asyncio.Queue[tuple[int, Written | End]], texts: Sequence[Text], request: Request
) -> Response:
    """Wait for all texts; a client that hangs up meanwhile ends them."""
    gone = asyncio.create_task(_hangs_up(request))
    pieces: list[list[str]] = [[] for _ in texts]
    reasons: list[str | None] = [None] * len(texts)
    n_new = 0
    try:
        while None in reasons:
            event = asyncio.create_task(events.get())
            done, _ = await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if event not in done:
                event.cancel()
                return Response(status_code=499)  # nobody reads it
            index, what = event.result()
            if isinstance(what, Written):
                pieces[index].append(what.text)
                n_new += what.n_tokens
            elif what.error is not None:
                raise what.error if isinstance(what.error, ShutDown) else ModelFailed(str(what.error))
            else:
                reasons[index] = what.reason
        return JSONResponse(form.whole(["".join(each) for each in pieces], reasons, n_new))
    finally:
        gone.cancel()
        for text in texts:
            text.cancel()


async def _hangs_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chunks(
    form: _Form, events: asyncio.Queue[tuple[int, Written | End]], n_texts: int, *, tells_usage: bool
) -> AsyncIterator[str]:
    """The lines of a stream: server-sent events, the last of which says [DONE]."""
    n_new, runs = 0, n_texts
    if form.is_chat:
        for i in range(n_texts):
            yield _line(form.chunk(i, "", first=True))
    while runs:
        index, what = await events.get()
        if isinstance(what, Written):
            n_new += what.n_tokens
            if what.text:
                yield _line(form.chunk(index, what.text))
        elif what.error is not None:
            yield _line({"error": _said(str(what.error), "server_error")})
            return
        else:
            runs -= 1
            yield _line(form.chunk(index, None, what.reason))
    if tells_usage:
        yield _line(form.last_chunk(n_new))
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """Server-sent events; however it ends, what is still being written ends with it."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[str], texts: Sequence[Text]) -> None:
        super().__init__(lines, headers={"Cache-Control": "no-cache"})
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for text in self._texts:
                text.cancel()


def _line(data: object) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _json(request: Request, max_body: int) -> object:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page cannot send this to another address without asking
        raise BadRequest(f"the content type must be application/json: got {kind or 'none'}", status=415)
    raw, n_bytes = bytearray(), 0
    async for part in request.stream():
        n_bytes += len(part)
        if n_bytes <= max_body:
            raw += part
        elif n_bytes > PATIENCE * max_body:
            break
    if n_bytes > max_body:
        raise BadRequest(f"a request may have {max_body} bytes: got more", status=413, code="request_too_large")
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None


def _ids(encode: Callable[[str], list[int]], prompt: str | list[int]) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    try:
        ids = encode(prompt)
    except ValueError as error:
        raise BadRequest(str(error), "prompt") from None
    if not ids:
        raise BadRequest("the prompt is empty: give at least one character", "prompt")
    return ids


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise BadRequest(
            f"there is no model {name!r} here, only {service.name!r}", "model", status=404, code="model_not_found"
        )


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.started, "owned_by": "llm-core"}


def _said(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"message": _sendable(message), "type": kind, "param": param and _sendable(param), "code": code}


def _sendable(text: str) -> str:
    """Half characters, which a request may hold, cannot be sent back as they are."""
    return text.encode("utf-8", "backslashreplace").decode()


def _error(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> Response:
    return JSONResponse({"error": _said(message, kind, param, code)}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _error(error.status, str(error), "invalid_request_error", error.param, error.code)


async def _no_such_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}. There are GET /v1/models, POST /v1/completions "
    return _error(error.status_code, message + "and POST /v1/chat/completions", "invalid_request_error")
