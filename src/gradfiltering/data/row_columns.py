"""Columns of a row: texts, lists of messages, and what may stand beside them (system turn, earlier turns, tools)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradfiltering.data.conversations import (
    ChatMessage,
    describe_message_problem,
    read_message,
    read_tools,
    unused_parts,
    without_nulls,
)

Row = Mapping[str, Any]
SYSTEM_COLUMNS = ("system", "system_prompt")
TOOLS_COLUMNS = ("tools", "functions")
TEMPLATE_ARGUMENTS = "chat_template_kwargs"  # a column of TRL's
# Arguments of `apply_chat_template` that are not a row's to give.
RESERVED_ARGUMENTS = {
    "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "messages",
}  # fmt: skip


def describe_non_text(row_values: Row, field_names: Sequence[str]) -> str | None:
    """Say which of these columns holds something else than text; None where none does."""
    for column_name in field_names:
        if not isinstance(row_values.get(column_name), str | None):
            return f"column '{column_name}' holds {row_values[column_name]!r:.60}, not text"
    return None


def describe_message_list_problem(row_values: Row, column_name: str) -> str | None:
    """Say why a column holds no list of messages; None where it does, or holds nothing."""
    message_list = row_values.get(column_name)
    if message_list is not None and not isinstance(message_list, list):
        return f"column '{column_name}' holds {message_list!r:.60}, not a list of messages"
    for message_index, message in enumerate(message_list or []):
        message_problem = describe_message_problem(message)
        if message_problem:
            return f"column '{column_name}', message {message_index}: {message_problem}"
    return None


def describe_message_pair_problem(row_values: Row, column_names: Sequence[str]) -> str | None:
    """Say which of prompt and completion is neither text nor messages; None where none is."""
    for column_name in column_names:
        if not isinstance(row_values.get(column_name), str):
            problem = describe_message_list_problem(row_values, column_name)
            if problem:
                return problem
    return None


def list_pair_messages(row_values: Row, column_names: Sequence[str]) -> list[Any]:
    """List the messages of those of the columns that hold any, as they came in."""
    return [
        message
        for column_name in column_names
        if isinstance(row_values.get(column_name), list)
        for message in row_values[column_name]
    ]


def read_message_pair(row_values: Row, column_names: Sequence[str]) -> list[ChatMessage]:
    """Prompt and completion as messages; no turn of the prompt is learnt."""
    messages = []
    for column_name, role in zip(column_names, ("user", "assistant"), strict=True):
        value = row_values.get(column_name) or []
        part = [ChatMessage(role, value, role == "assistant")] if isinstance(value, str) else map(read_message, value)
        messages += [message if role == "assistant" else replace(message, supervised=False) for message in part]
    return messages


def read_system_column(row_values: Row) -> str | None:
    """The text of the first system column that holds any; None where one holds something else."""
    for column_name in SYSTEM_COLUMNS:
        value = row_values.get(column_name)
        if value:
            return value if isinstance(value, str) else None
    return ""


def list_unused_system_columns(row_values: Row) -> list[str]:
    """Name the system columns that hold something which is not read."""
    filled_columns = [name for name in SYSTEM_COLUMNS if row_values.get(name)]
    if filled_columns and read_system_column(row_values) is None:
        return ["system that is no text"]
    return [f"{name} beside {filled_columns[0]}" for name in filled_columns[1:]]


def put_system_first(messages: Sequence[ChatMessage], row_values: Row) -> tuple[ChatMessage, ...]:
    """Put the text of the system column before the messages, unless they have a system turn themselves."""
    system_text = read_system_column(row_values)
    if system_text and not any(message.role == "system" for message in messages):
        return (ChatMessage("system", system_text, False), *messages)
    return tuple(messages)


def read_history(row_values: Row) -> list[tuple[str, str]] | None:
    """Earlier questions and answers, in LLaMA-Factory's form: a list of pairs; None where it is no such list."""
    pairs = row_values.get("history")
    if not isinstance(pairs, list):
        return None
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    if not all(isinstance(text, str | None) for pair in pairs for text in pair):
        return None
    return [(question or "", answer or "") for question, answer in pairs]


def read_further_columns(row_values: Row) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    """Read the tools, and the arguments of the chat template that a row may give; empty where there are none."""
    tools = read_tools(*(row_values.get(name) for name in TOOLS_COLUMNS))
    arguments = row_values.get(TEMPLATE_ARGUMENTS)
    usable_arguments = isinstance(arguments, Mapping) and not RESERVED_ARGUMENTS & set(arguments)
    return tools or (), without_nulls(arguments) if usable_arguments else {}


def list_unused_further_columns(row_values: Row) -> list[str]:
    """Name the columns of tools and template arguments that hold something which is not read."""
    names = []
    tools, functions = (row_values.get(name) for name in TOOLS_COLUMNS)
    if tools and read_tools(tools) is None:
        names.append("tools that are no list of tools")
    elif functions and (tools or read_tools(None, functions) is None):
        names.append("functions beside tools" if tools else "functions that are no list of functions")
    arguments = row_values.get(TEMPLATE_ARGUMENTS)
    if arguments and not read_further_columns(row_values)[1]:
        names.append(f"{TEMPLATE_ARGUMENTS} that a row cannot give")
    return names


def list_unused_message_parts(row_values: Row, messages: Sequence[Row]) -> list[str]:
    """Name what messages hold and nothing uses, a system column beside a system turn included."""
    names = dict.fromkeys(name for message in messages for name in unused_parts(message))
    if read_system_column(row_values) and any(read_message(message).role == "system" for message in messages):
        names["system column beside a system message"] = None
    return list(names)
