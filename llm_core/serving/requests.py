"""What a client may ask for, in the form of OpenAI's API, and what it is told if it may not.

`CompletionBody` and `ChatBody` hold a request's entries with their types and limits; `texts_of` makes of them the
texts for the engine. Entries that would change the answer and that this server does not do are refused by name, not
passed over.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_core.generation.adjust import Adjust, FrequencyPenalty, PresencePenalty, in_turn
from llm_core.generation.generate import Choose
from llm_core.generation.sampling import Sampler, greedy
from llm_core.serving.engine import End, Text, Written

# Entries of the API that this server does not do, with the values that ask for nothing.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
# Entries that say something about the client, and nothing about the answer.
NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

ELSEWHERE = {"messages": "/v1/chat/completions", "prompt": "/v1/completions"}

Stop = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class BadRequest(ValueError):
    """A request that is refused.

    Args:
        message: what was expected, what came, what to do.
        param: the entry that it is about.
        status: of HTTP.
        code: a word for programs.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


class StreamOptions(BaseModel):
    """Whether the last chunk of a stream says how many tokens there were."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of request have. `top_k` and `min_p` are not OpenAI's, but common among local servers."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.stream)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the number of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def choose(self) -> Choose:
        """How a token is chosen: the likeliest at temperature 0."""
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature == 0:
            return greedy
        return Sampler(temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)

    def adjust(self) -> Adjust | None:
        """The penalties, or None."""
        penalties: list[Adjust] = []
        if self.presence_penalty:
            penalties.append(PresencePenalty(self.presence_penalty))
        if self.frequency_penalty:
            penalties.append(FrequencyPenalty(self.frequency_penalty))
        return in_turn(*penalties) if penalties else None

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionBody(Body):
    """`POST /v1/completions`: the prompt is continued as it stands."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]

    def prompts(self) -> list[str] | list[list[int]]:
        """One for each text, or group of n texts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TextPart(BaseModel):
    """A part of a message. Pictures and sound have types of their own, which this server does not know."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As the chat form wants it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatBody(Body):
    """`POST /v1/chat/completions`: the next message of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def limit(self) -> int | None:
        """The longest answer, by the name that the API has had since 2024 or by the older one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


AnyBody = TypeVar("AnyBody", bound=Body)


def read_body(kind: type[AnyBody], data: object) -> AnyBody:
    """The entries of a request, checked.

    Raises:
        BadRequest: it is no JSON object; an entry is missing, unknown, of the wrong type or out of its limits; or it
            asks for what this server does not do.
    """
    if not isinstance(data, Mapping):
        raise BadRequest(f"the body must be a JSON object: got {_short(data)}")
    for name, nothing in NOT_DONE.items():
        # `in` would take 0 for False and 1 for True.
        if name in data and not any(type(data[name]) is type(value) and data[name] == value for value in nothing):
            raise BadRequest(f"{name} is not supported here: leave it out", name, code="unsupported_parameter")
    given = {name: value for name, value in data.items() if name not in NOT_DONE and name not in NOTES}
    for name in given:
        if name not in kind.model_fields:
            near = difflib.get_close_matches(name, [*kind.model_fields, *NOT_DONE], n=1)
            hint = f"; {ELSEWHERE[name]} has it" if name in ELSEWHERE else f"; did you mean {near[0]}?" if near else ""
            raise BadRequest(f"there is no parameter {name}{hint}", name, code="unknown_parameter")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None


def texts_of(
    body: Body,
    prompts: Sequence[Sequence[int]],
    limit: int,
    deliver: Callable[[int], Callable[[Written | End], None]],
) -> list[Text]:
    """The texts that a request asks for: n for each prompt, side by side.

    Args:
        limit: the longest answer, in tokens.
        deliver: text number -> what is given its events.
    """
    n = body.n or 1
    first = torch.Generator()
    if body.seed is None:
        first.seed()
    else:
        first.manual_seed(body.seed)
    # One seed for each text, drawn from that of the request: none depends on what else is written meanwhile.
    seeds = torch.randint(2**62, (len(prompts) * n,), generator=first).tolist()
    return [
        Text(
            prompts[i // n],
            limit,
            deliver(i),
            choose=body.choose(),
            adjust=body.adjust(),
            stops=body.stops(),
            generator=torch.Generator().manual_seed(seed),
        )
        for i, seed in enumerate(seeds)
    ]


def _refusal(error: ValidationError) -> BadRequest:
    """The first fault, in words."""
    faults = error.errors(include_url=False)
    fault = faults[0]
    name = str(fault["loc"][0])
    where = name + "".join(f"[{at}]" if isinstance(at, int) else "" for at in fault["loc"][1:])
    if fault["type"] == "missing" and len(fault["loc"]) == 1:
        return BadRequest(f"{name} is missing", name, code="missing_required_parameter")
    # A value of several possible types fails for each of them: all that could have been are said.
    said = dict.fromkeys(each["msg"] for each in faults if each["loc"][0] == name)
    return BadRequest(f"{where}: {', or '.join(said)}: got {_short(fault['input'])}", name, code="invalid_value")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
