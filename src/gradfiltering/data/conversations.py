"""Conversations: messages as the toolkits write them, and which of them a model learns to say.

Sources, as of 2026: TRL (`messages`, `prompt` and `completion` as lists, `tools`, `chat_template_kwargs`);
LLaMA-Factory's `data/converter.py` (roles, `system`, `tools`, `history`); axolotl's
`prompt_strategies/chat_template.py` (`training`, `train_detail`, `reasoning_content`); FastChat (ShareGPT's `from`
and `value`); OpenAI's fine-tuning files (`weight`, `tool_calls`, `function_call`, `functions`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The names that ShareGPT and its relatives have for the roles.
CANONICAL_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "bot": "assistant", "model": "assistant", "function_call": "assistant", "tool_call": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALLING_ROLES = ("function_call", "tool_call")  # their content is the JSON of a call
TRAINING_FLAGS = ("weight", "train", "training")
TRAINING_DETAILS = ("train_detail", "training_detail")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
READ_FIELDS = {
    "role", "from", "content", "value", "tool_calls", "function_call", *TRAINING_FLAGS, *TRAINING_DETAILS,
    *REASONING_FIELDS,
}  # fmt: skip


@dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: its text; parts of text are joined.
        supervised: True for an assistant's turn that the model learns to say.
        reasoning: what the assistant thought before it answered.
        tool_calls: calls of functions, each with `type` and `function` (`name` and `arguments`).
        supervised_stretches: start and stop of the only stretches of the content to learn; None learns the whole turn.
        further_fields: what else the message holds, which a chat template may show.
    """

    role: str
    content: str
    supervised: bool
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    supervised_stretches: tuple[tuple[int, int], ...] | None = None
    further_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that the message says, in the layout for tokenizers without a chat template of their own."""
        return "".join(stretch_text for stretch_text, _ in self.stretches())

    @property
    def calls_text(self) -> str:
        """The tool calls, one JSON object each, as Hermes and Qwen write them."""
        call_texts = [json.dumps(call["function"], ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(f"<tool_call>\n{call_text}\n</tool_call>" for call_text in call_texts)

    @property
    def content_and_calls(self) -> str:
        """Content and calls as one text."""
        return "\n".join(part for part in (self.content, self.calls_text) if part)

    def stretches(self) -> Iterator[tuple[str, bool]]:
        """The text in order, as stretches that are learnt or not."""
        reasoning_text = f"<think>\n{self.reasoning}\n</think>\n\n" if self.reasoning else ""
        if self.supervised_stretches is None or not self.supervised:
            yield reasoning_text + self.content_and_calls, self.supervised
            return
        yield reasoning_text, False
        position = 0
        for start, stop in self.supervised_stretches:
            yield self.content[position:start], False
            yield self.content[start:stop], True
            position = stop
        yield self.content_and_calls[position:], False


@dataclass(frozen=True)
class Conversation:
    """The messages of a row in order.

    Attributes:
        messages: in order; a system turn comes first.
        tools: descriptions of the functions that may be called.
        template_arguments: further arguments of the chat template.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> list[ChatMessage]:
        """The assistant's messages that say anything."""
        return [message for message in self.messages if message.role == "assistant" and message.text.strip()]

    @property
    def tools_text(self) -> str:
        """The tools in the layout for tokenizers without a chat template; empty where there are none."""
        return json.dumps(self.tools, ensure_ascii=False) if self.tools else ""


def describe_message_problem(message: Any) -> str | None:
    """Say why a value is no message of a conversation; None where it is."""
    if not isinstance(message, Mapping):
        return f"{message!r:.60} is no message; a message has role and content (or from and value)"
    role_name = message.get("role") or message.get("from")
    if not isinstance(role_name, str) or role_name.lower() not in CANONICAL_ROLES:
        return f"role {role_name!r:.40} is unknown; the roles are {', '.join(CANONICAL_ROLES)}"
    content = _content_of(message)
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            return f"content {content!r:.60} has a part that is no text; only text can be trained on"
    elif not isinstance(content, str | None):
        return f"content {content!r:.60} is not text"
    for flag_name in TRAINING_FLAGS:
        flag = message.get(flag_name)
        if flag is not None and (not isinstance(flag, bool | int | float) or flag not in (0, 1)):
            return f"{flag_name} {flag!r:.40} is neither 0 nor 1"
    for reasoning_field in REASONING_FIELDS:
        if not isinstance(message.get(reasoning_field), str | None):
            return f"{reasoning_field} {message[reasoning_field]!r:.60} is not text"
    return _describe_call_problem(message) or _describe_detail_problem(message)


def _describe_call_problem(message: Mapping[str, Any]) -> str | None:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        return f"tool_calls {calls!r:.60} is not a list of calls"
    legacy_call = message.get("function_call")
    for call in [*(calls or []), *([] if legacy_call is None else [legacy_call])]:
        function = call.get("function") or call if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return f"the call {call!r:.60} names no function; a call has a function with name and arguments"
    return None


def _describe_detail_problem(message: Mapping[str, Any]) -> str | None:
    for detail_name in TRAINING_DETAILS:
        details = message.get(detail_name)
        if details is None:
            continue
        if not isinstance(details, list):
            return f"{detail_name} {details!r:.60} is not a list of stretches"
        for detail in details:
            offsets = [detail.get(name) for name in ("begin_offset", "end_offset")] if isinstance(detail, dict) else []
            if len(offsets) != 2 or not all(type(offset) is int and offset >= 0 for offset in offsets):
                return f"{detail_name} {detail!r:.60} has no begin_offset and end_offset"
            if not isinstance(detail.get("train"), bool):
                return f"{detail_name} {detail!r:.60} does not say whether to train (true or false)"
        if details and not isinstance(_content_of(message), str):
            return f"{detail_name} needs a content that is one text"
    return None


def read_message(message: Mapping[str, Any]) -> ChatMessage:
    """Read a message that `describe_message_problem` has nothing against."""
    role_name = (message.get("role") or message["from"]).lower()
    content = _content_of(message)
    content_text = "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
    tool_calls = _tool_calls(message)
    if role_name in CALLING_ROLES and not tool_calls:
        content_text, tool_calls = _split_call(content_text)
    role = CANONICAL_ROLES[role_name]
    supervised, stretches = _find_supervision(message, len(content_text))
    further_fields = {
        name: value for name, value in without_nulls(message).items() if name not in READ_FIELDS and value != []
    }
    return ChatMessage(
        role=role,
        content=content_text,
        supervised=role == "assistant" and supervised,
        reasoning=next((message[name] for name in REASONING_FIELDS if message.get(name)), ""),
        tool_calls=tool_calls,
        supervised_stretches=stretches,
        further_fields=further_fields,
    )


def unused_parts(message: Mapping[str, Any]) -> Iterator[str]:
    """Name what a message holds and nothing reads, apart from what a chat template may show."""
    role_name = message.get("role") or message.get("from") or ""
    if CANONICAL_ROLES.get(role_name.lower()) != "assistant":
        if any(message.get(name) for name in (*TRAINING_FLAGS, *TRAINING_DETAILS)):
            yield f"training flags of {role_name} messages"
        if any(message.get(name) for name in REASONING_FIELDS):
            yield f"reasoning of {role_name} messages"
        if message.get("tool_calls") or message.get("function_call"):
            yield f"tool calls of {role_name} messages"
    if message.get("content") and message.get("value"):
        yield "message field value beside content"


def read_tools(tools: Any, functions: Any = None) -> tuple[Mapping[str, Any], ...] | None:
    """Read descriptions of tools: a list, its JSON text, or the older `functions`; None where they are neither."""
    if isinstance(tools, str):
        tools = _parse_json(tools) if tools.strip() else []
        if tools is None:
            return None
    found_tools = tools or []
    if not found_tools and isinstance(functions, list):
        if not all(isinstance(description, Mapping) for description in functions):
            return None
        found_tools = [{"type": "function", "function": description} for description in functions]
    if isinstance(found_tools, Mapping):
        found_tools = [found_tools]
    if not isinstance(found_tools, list) or not all(isinstance(tool, Mapping) for tool in found_tools):
        return None
    return tuple(without_nulls(tool) for tool in found_tools)


def without_nulls(value: Any) -> Any:
    """A copy without the nulls that a typed table fills in where a field is absent."""
    if isinstance(value, Mapping):
        return {name: without_nulls(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(entry) for entry in value]
    return value


def _content_of(message: Mapping[str, Any]) -> Any:
    content, value = message.get("content"), message.get("value")
    return content if value is None or content else value


def _tool_calls(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    calls = list(message.get("tool_calls") or [])
    if message.get("function_call"):
        calls.append(message["function_call"])
    return tuple(_standard_call(without_nulls(call)) for call in calls)


def _standard_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call as `{"type": "function", "function": {"name": …, "arguments": …}}`; arguments given as JSON are read."""
    function = dict(call.get("function") or {name: call[name] for name in ("name", "arguments") if name in call})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        parsed_arguments = _parse_json(arguments)
        function["arguments"] = arguments if parsed_arguments is None else parsed_arguments
    outer_fields = {name: value for name, value in call.items() if name not in ("function", "name", "arguments")}
    return {"type": "function", **outer_fields, "function": function}


def _split_call(content: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """The content of a calling role as calls; as it is where it is no JSON of a call."""
    calls = _parse_json(content)
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not calls:
        return content, ()
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return content, ()
    return "", tuple(_standard_call(call) for call in calls)


def _find_supervision(message: Mapping[str, Any], content_size: int) -> tuple[bool, tuple[tuple[int, int], ...] | None]:
    """Return whether a turn is learnt, and which stretches of its content; None for all of it.

    The ends of axolotl's stretches are inclusive.
    """
    flags = [message[name] for name in TRAINING_FLAGS if message.get(name) is not None]
    details = next((message[name] for name in TRAINING_DETAILS if message.get(name) is not None), None)
    supervised = all(flags) if flags else details is None or bool(details)
    if not details:
        return supervised, None
    supervised_characters = [False] * content_size
    for is_supervised in (True, False):  # what is not to be learnt wins over what is
        for detail in details:
            if detail["train"] is is_supervised:
                for position in range(detail["begin_offset"], min(detail["end_offset"] + 1, content_size)):
                    supervised_characters[position] = is_supervised
    return supervised, tuple(_runs(supervised_characters))


def _runs(supervised_characters: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start = None
    for position, supervised in enumerate([*supervised_characters, False]):
        if supervised and start is None:
            start = position
        elif not supervised and start is not None:
            yield start, position
            start = None


def _parse_json(text: str) -> Any:
    """The value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
