"""Conversations in a tokenizer's chat template: the prompt for the next turn, and what a model learns of a whole one.

What people say stays text: a special token that they quote is no control token; the template's own are. Every field of
a message reaches the template, and so do the tools of a conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edlm_jax.errors import InputError, refusing
from edlm_jax.pretrained.encode import HFTokenizer, encode_bare, encode_text, quote

Message = Mapping[str, Any]  # role, content, and what the template knows: tool_calls, reasoning_content, name, ...
Part = tuple[str, bool]  # text with quotations marked (encode.py), and whether the assistant says it


def encode_chat(tokenizer: HFTokenizer, messages: Sequence[Message], tools: Any = None) -> list[int]:
    """The prompt that asks for the next turn."""
    return encode_bare(tokenizer, render(tokenizer, messages, tools, add_generation_prompt=True))


def encode_prompt(tokenizer: HFTokenizer, text: str, chat: bool) -> list[int]:
    """A text to go on with; with `chat`, what a user says."""
    return encode_chat(tokenizer, [{"role": "user", "content": text}]) if chat else encode_text(tokenizer, text)


def render(tokenizer: HFTokenizer, messages: Sequence[Message], tools: Any = None, **how) -> str:
    """The template's text, with quotations marked (encode.py). Whatever the template raises is an InputError."""
    return _write(tokenizer, *_quoted_all(tokenizer, messages, tools), **how)


def learned_turns(tokenizer: HFTokenizer, messages: Sequence[Message], tools: Any = None) -> list[list[Part]]:
    """The parts of each document that a conversation makes; joined, they are what the template writes.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n   Hello<|im_end|>\\n   <|im_start|>user ...
    False                                                    True                 False

    That is one document with all of its answers as long as the template only ever adds. One that shows an earlier turn
    in another way when the next is asked for (without its thought, say) begins another document there: each answer is
    learned after what will stand before it when it is generated.
    """
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    messages = messages[: turns[-1] + 1] if turns else []  # what follows the last answer teaches nothing
    _check(tokenizer, messages, tools)
    messages, tools = _quoted_all(tokenizer, messages, tools)
    documents, done = [], ""
    for turn in turns:
        prompt = _write(tokenizer, messages[:turn], tools, add_generation_prompt=True)
        answered = _write(tokenizer, messages[: turn + 1], tools)
        if not answered.startswith(prompt):
            raise InputError(
                f"the chat template writes message {turn} otherwise than it asks for it, so no answer can be told from "
                "its prompt; use another template, or prompt and response columns"
            )
        if not documents or not prompt.startswith(done):
            documents, done = [*documents, []], ""
        documents[-1] += [(prompt[len(done) :], False), (answered[len(prompt) :], True)]
        done = answered
    return documents


def _write(tokenizer, messages: list[Message], tools: Any, **how) -> str:
    if not tokenizer.chat_template:
        raise InputError("messages need a tokenizer with a chat template, and this one has none")
    with refusing("the chat template refuses it", Exception):  # by what its author and Jinja like
        return tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, **how)


def _check(tokenizer, messages: Sequence[Message], tools: Any) -> None:
    if not messages:
        raise InputError("a conversation without an assistant message has nothing to learn")
    if messages[0]["role"] == "assistant":
        raise InputError("the conversation begins with the assistant: nothing asks for what it says")
    # A template passes over fields that it does not know: an assistant that calls a function would say nothing.
    calls = any(message.get("tool_calls") for message in messages)
    for name, used in (("tool_calls", calls), ("tools", tools)):
        if used and name not in str(tokenizer.chat_template):
            raise InputError(f"the chat template knows no {name}: use one that does, or a corpus without them")
    for number, message in enumerate(messages):
        if message.get("content") is None and not message.get("tool_calls"):
            raise InputError(f"message {number} has no content")


def _quoted_all(tokenizer, *values: Any) -> list[Any]:
    with refusing("the conversation has too many brackets in brackets", RecursionError):
        return [_quoted(tokenizer, value) for value in values]


def _quoted(tokenizer, value: Any) -> Any:
    """The value with the special tokens in all of its texts marked, names of arguments among them."""
    if isinstance(value, str):
        return quote(tokenizer, value)
    if isinstance(value, Mapping):
        return {_quoted(tokenizer, name): _quoted(tokenizer, item) for name, item in value.items()}
    return [_quoted(tokenizer, item) for item in value] if isinstance(value, list | tuple) else value
