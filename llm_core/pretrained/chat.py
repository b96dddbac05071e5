"""Chats: how a conversation becomes one text that a model continues.

A model only continues texts. One that answers has been trained on conversations in a fixed form, and must be given
that form to the letter. ChatML, here of two messages and the beginning of an answer:

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hello!<|im_end|>
    <|im_start|>assistant

`<|im_start|>` and `<|im_end|>` are special tokens, one id each; the model ends its answer with the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatML:
    """Writes messages in the form of ChatML.

    Args:
        system: what the system says where the first message is not the system's. None: nothing.

    >>> print(ChatML()([{"role": "user", "content": "Hello!"}]))
    <|im_start|>user
    Hello!<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>
    """

    system: str | None = None

    def __call__(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Args:
            messages: a "role" (one of `ROLES`) and a "content" each.
            add_generation_prompt: whether to add the beginning of an answer, for the model to go on from.

        Raises:
            ValueError: there is no message; one has another role, or lacks an entry; or one holds a special token of
                the form, which would end it early and speak in another's name.
        """
        if not messages:
            raise ValueError("a conversation has at least one message: got none")
        for i, message in enumerate(messages):
            _check(i, message)
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        text = "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)
        return text + f"{START}assistant\n" if add_generation_prompt else text


SMOLLM2_CHAT = ChatML(system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
"""The form that SmolLM2-Instruct was trained on."""


def _check(i: int, message: Mapping[str, str]) -> None:
    if set(message) != {"role", "content"}:
        raise ValueError(f'message {i} must have a "role" and a "content", and nothing else: got {sorted(message)}')
    if message["role"] not in ROLES:
        raise ValueError(f"message {i} must have one of the roles {', '.join(ROLES)}: got {message['role']!r}")
    for token in (START, END):
        if token in message["content"]:
            raise ValueError(f"message {i} holds {token}, which would end it early: take it out")
