"""Schemas: which columns hold question and answer, and which text is supervised. One class for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradfiltering.data.templates import Turn, find_template
from gradfiltering.errors import UserError
from gradfiltering.options import options

Row = Mapping[str, Any]

SCHEMAS = ("auto", "alpaca", "prompt_completion", "messages", "text")
PROMPT_COMPLETION_COLUMNS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
# The names that ShareGPT and its relatives have for the roles.
CANONICAL_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "tool": "tool", "function": "tool",
    "observation": "tool",
}  # fmt: skip

EMPTY_RESPONSE = "empty response"
NO_ASSISTANT = "no assistant turn with text in it"


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text.

    Attributes:
        text: tokenised apart from its neighbours.
        supervised: True where the model learns to say it; the token that ends a response then closes it.
    """

    text: str
    supervised: bool


@options
class Columns:
    """Names of the columns that hold question and answer; None looks for the usual names.

    Attributes:
        instruction: of an Alpaca row.
        input: of an Alpaca row; a dataset may lack it.
        output: of an Alpaca row.
        prompt: of a prompt and completion pair.
        completion: of a prompt and completion pair.
        messages: a list of messages (role and content, or from and value).
        text: a whole text.
    """

    instruction: str
    input: str
    output: str
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None


class Schema(Protocol):
    """The way a row becomes text."""

    @property
    def name(self) -> str:
        """One of `SCHEMAS`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read; any of them may be missing from a row."""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order; a row with nothing to learn has no supervised segment with text."""

    def turn(self, row_values: Row) -> Turn | None:
        """The row as one question and its answer, None where it has no question."""


@dataclass(frozen=True)
class Instruction:
    """Instruction, optional input and output; a prompt and completion pair is one without an input.

    Attributes:
        name: `alpaca` or `prompt_completion`.
        instruction: column of the instruction or prompt.
        input: column of the further context, or None.
        output: column of the output or completion.
    """

    name: str
    instruction: str
    input: str | None
    output: str

    @property
    def prompt(self) -> tuple[str, ...]:
        """The columns a prompt is made of."""
        return (self.instruction,) if self.input is None else (self.instruction, self.input)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*self.prompt, self.output)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.instruction, self.output)

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""
        return ("instruction", "input", "output") if self.name == "alpaca" else ("prompt", "completion")

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        return _describe_non_text(row_values, self.fields)

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order."""
        turn = self.turn(row_values)
        return [Segment(find_template(template_name)(turn, tokenizer), False), Segment(turn.output, True)]

    def turn(self, row_values: Row) -> Turn:
        """The row as a question and its answer; a missing or null input is an empty one."""
        input_text = row_values.get(self.input) if self.input is not None else None
        return Turn(row_values.get(self.instruction) or "", input_text or "", row_values.get(self.output) or "")


@dataclass(frozen=True)
class Text:
    """A whole text, all of it supervised."""

    column: str
    name: str = "text"

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column,)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.column,)

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""
        return ("text",)

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        return _describe_non_text(row_values, self.fields)

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order."""
        # The empty segment carries the start token, where the tokenizer has one: nothing predicts it.
        return [Segment("", False), Segment(row_values.get(self.column) or "", True)]

    def turn(self, row_values: Row) -> None:
        """None: a text asks nothing."""
        return None


@dataclass(frozen=True)
class Messages:
    """A conversation: every assistant turn is supervised.

    Attributes:
        column: of the list of messages; a column `system` may hold a system turn beside it.
        name: of the schema.
    """

    column: str
    name: str = "messages"

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column, "system")

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.column,)

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""
        return ("messages",)

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        message_list = row_values.get(self.column)
        if message_list is not None and not isinstance(message_list, list):
            return f"column '{self.column}' holds {message_list!r:.60}, not a list of messages"
        for message_index, chat_message in enumerate(message_list or []):
            message_problem = _message_problem(chat_message)
            if message_problem:
                return f"column '{self.column}', message {message_index}: {message_problem}"
        return None if isinstance(row_values.get("system"), str | None) else _describe_non_text(row_values, ("system",))

    def conversation(self, row_values: Row) -> list[dict[str, str]]:
        """The messages as role and content; a system turn beside them comes first."""
        chat_messages = []
        for message in row_values.get(self.column) or []:
            role = CANONICAL_ROLES[message.get("role") or message["from"]]
            chat_messages.append({"role": role, "content": _message_text(message)})
        system_text = row_values.get("system")
        if system_text and not any(message["role"] == "system" for message in chat_messages):
            chat_messages.insert(0, {"role": "system", "content": system_text})
        return chat_messages

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """Our own layout, the one that the `chat` template writes for a tokenizer without a template."""
        segments_found: list[Segment] = []
        for chat_message in self.conversation(row_values):
            if chat_message["role"] == "assistant":
                segments_found.append(Segment("<|assistant|>\n", False))
                # A turn without text teaches nothing but to stop.
                segments_found.append(Segment(chat_message["content"], bool(chat_message["content"].strip())))
            else:
                message_text = f"<|{chat_message['role']}|>\n{chat_message['content']}\n"
                segments_found.append(Segment(message_text, False))
        return segments_found

    def turn(self, row_values: Row) -> Turn | None:
        """The first question with its system turn, and the first answer; None where one of them is missing."""
        earlier_turns: dict[str, list[str]] = {"system": [], "user": []}
        for chat_message in self.conversation(row_values):
            if chat_message["role"] == "assistant":
                system_text, question_text = ("\n\n".join(earlier_turns[role_name]) for role_name in ("system", "user"))
                return Turn(question_text, "", chat_message["content"], system_text) if question_text else None
            earlier_turns["system" if chat_message["role"] == "system" else "user"].append(chat_message["content"])
        return None


def detect_schema(column_names: Sequence[str], column_options: Columns, schema_name: str, origin: str) -> Schema:
    """Find the schema of a dataset.

    Args:
        column_names: the dataset's columns.
        column_options: the names to look for.
        schema_name: one of `SCHEMAS`; `auto` takes the first that fits, in their order.
        origin: the dataset in words, for messages.

    Raises:
        UserError: no such schema, or the columns fit none.
    """
    candidates_by_name = _candidate_schemas(column_options)
    if schema_name != "auto":
        candidates_by_name = {schema_name: candidates_by_name[schema_name]}
    for candidates in candidates_by_name.values():
        for candidate in candidates:
            if set(candidate.required) <= set(column_names):
                return candidate
    likeliest_schemas = [candidates[0] for candidates in candidates_by_name.values()]

    def missing_share(candidate: Schema) -> float:
        return len(set(candidate.required) - set(column_names)) / len(candidate.required)

    nearest_schema = min(likeliest_schemas, key=missing_share)
    missing_columns = [repr(name) for name in nearest_schema.required if name not in column_names]
    raise UserError(
        f"{origin} has no column {' and no column '.join(missing_columns)} (it has: "
        f"{', '.join(column_names) or 'none'}), which the schema {nearest_schema.name} needs; name the "
        f"columns, or choose another schema ({', '.join(SCHEMAS[1:])})",
        owner=column_options,
        arguments=nearest_schema.options,
    )


def _candidate_schemas(column_options: Columns) -> dict[str, list[Schema]]:
    """List what each schema could read, the likeliest first; a name that the user gave is the only candidate."""
    prompt_pairs = [
        (column_options.prompt or prompt_column, column_options.completion or completion_column)
        for prompt_column, completion_column in PROMPT_COMPLETION_COLUMNS
    ]
    conversation_columns = (column_options.messages,) if column_options.messages else CONVERSATION_COLUMNS
    return {
        "alpaca": [Instruction("alpaca", column_options.instruction, column_options.input, column_options.output)],
        "messages": [Messages(column_name) for column_name in conversation_columns],
        "prompt_completion": [
            Instruction("prompt_completion", prompt_column, None, completion_column)
            for prompt_column, completion_column in dict.fromkeys(prompt_pairs)
        ],
        "text": [Text(column_options.text or "text")],
    }


def _describe_non_text(row_values: Row, field_names: Sequence[str]) -> str | None:
    for column_name in field_names:
        if not isinstance(row_values.get(column_name), str | None):
            return f"column '{column_name}' holds {row_values[column_name]!r:.60}, not text"
    return None


def _message_problem(chat_message: Any) -> str | None:
    if not isinstance(chat_message, Mapping):
        return f"{chat_message!r:.60} is no message; a message has role and content (or from and value)"
    role_name = chat_message.get("role") or chat_message.get("from")
    if not isinstance(role_name, str) or role_name not in CANONICAL_ROLES:
        return f"role {role_name!r:.40} is unknown; the roles are {', '.join(CANONICAL_ROLES)}"
    message_content = chat_message.get("content", chat_message.get("value"))
    if isinstance(message_content, list):
        if all(
            isinstance(content_part, Mapping) and isinstance(content_part.get("text"), str)
            for content_part in message_content
        ):
            return None
        return f"content {message_content!r:.60} has a part that is no text; only text can be trained on"
    return None if isinstance(message_content, str | None) else f"content {message_content!r:.60} is not text"


def _message_text(chat_message: Row) -> str:
    """A message's text; parts of text are joined, and a message without content says nothing."""
    message_content = chat_message.get("content")
    if message_content is None:
        message_content = chat_message.get("value")
    return (
        "".join(content_part["text"] for content_part in message_content)
        if isinstance(message_content, list)
        else message_content or ""
    )
