"""Schemas: which columns hold the record, and which of its text is supervised. One class per kind of record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradfiltering.data.templates import Turn, find_template
from gradfiltering.errors import UserError

Row = Mapping[str, Any]

SCHEMAS = ("auto", "alpaca", "prompt_completion", "messages", "text")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
CONVERSATIONS = ("messages", "conversations", "conversation")
# What ShareGPT and its relatives call the roles.
ROLES = {
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
        text: what is tokenised, apart from its neighbours.
        supervised: whether the model learns to say it; the token that ends a response closes it then.
    """

    text: str
    supervised: bool


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold a record; None looks for the usual names.

    Attributes:
        instruction: of an Alpaca record.
        input: of an Alpaca record; a dataset may lack it.
        output: of an Alpaca record.
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
    """How a row becomes text."""

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
        """The keys of `data.columns` that name them."""

    def problem(self, row: Row) -> str | None:
        """What keeps the row from being of this schema, in words; None where it fits."""

    def segments(self, row: Row, template: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order; a row with nothing to learn has no supervised segment with text."""

    def turn(self, row: Row) -> Turn | None:
        """The record as one question and its answer, None where it has no question."""


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
        """The keys of `data.columns` that name them."""
        return ("instruction", "input", "output") if self.name == "alpaca" else ("prompt", "completion")

    def problem(self, row: Row) -> str | None:
        """What keeps the row from being of this schema; None where it fits."""
        return _not_text(row, self.fields)

    def segments(self, row: Row, template: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order."""
        turn = self.turn(row)
        return [Segment(find_template(template)(turn, tokenizer), False), Segment(turn.output, True)]

    def turn(self, row: Row) -> Turn:
        """The record in `row`; a missing or null input is an empty one."""
        context = row.get(self.input) if self.input is not None else None
        return Turn(row.get(self.instruction) or "", context or "", row.get(self.output) or "")


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
        """The keys of `data.columns` that name them."""
        return ("text",)

    def problem(self, row: Row) -> str | None:
        """What keeps the row from being of this schema; None where it fits."""
        return _not_text(row, self.fields)

    def segments(self, row: Row, template: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order."""
        # The empty segment carries the start token, where the tokenizer has one: nothing predicts it.
        return [Segment("", False), Segment(row.get(self.column) or "", True)]

    def turn(self, row: Row) -> None:
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
        """The keys of `data.columns` that name them."""
        return ("messages",)

    def problem(self, row: Row) -> str | None:
        """What keeps the row from being of this schema; None where it fits."""
        value = row.get(self.column)
        if value is not None and not isinstance(value, list):
            return f"column '{self.column}' holds {value!r:.60}, not a list of messages"
        for describe_row, message in enumerate(value or []):
            wrong = _message_problem(message)
            if wrong:
                return f"column '{self.column}', message {describe_row}: {wrong}"
        return None if isinstance(row.get("system"), str | None) else _not_text(row, ("system",))

    def conversation(self, row: Row) -> list[dict[str, str]]:
        """The messages as role and content; a system turn beside them comes first."""
        found = [
            {"role": ROLES[message.get("role") or message["from"]], "content": _content(message)}
            for message in row.get(self.column) or []
        ]
        system = row.get("system")
        if system and not any(message["role"] == "system" for message in found):
            found.insert(0, {"role": "system", "content": system})
        return found

    def segments(self, row: Row, template: str, tokenizer: Any) -> list[Segment]:
        """Our own layout, the one that the `chat` template writes for a tokenizer without a template."""
        found: list[Segment] = []
        for message in self.conversation(row):
            if message["role"] == "assistant":
                found.append(Segment("<|assistant|>\n", False))
                # A turn without text teaches nothing but to stop.
                found.append(Segment(message["content"], bool(message["content"].strip())))
            else:
                found.append(Segment(f"<|{message['role']}|>\n{message['content']}\n", False))
        return found

    def turn(self, row: Row) -> Turn | None:
        """The first question with its system turn, and the first answer; None where one of them is missing."""
        asked: dict[str, list[str]] = {"system": [], "user": []}
        for message in self.conversation(row):
            if message["role"] == "assistant":
                system, question = ("\n\n".join(asked[role]) for role in ("system", "user"))
                return Turn(question, "", message["content"], system) if question else None
            asked["system" if message["role"] == "system" else "user"].append(message["content"])
        return None


def detect_schema(present: Sequence[str], columns: Columns, wanted: str, origin: str) -> Schema:
    """The schema of a dataset.

    Args:
        present: the dataset's columns.
        columns: the names to look for.
        wanted: one of `SCHEMAS`; `auto` takes the first that fits, in their order.
        origin: the dataset in words, for messages.

    Raises:
        UserError: no such schema, or the columns fit none.
    """
    if wanted not in SCHEMAS:
        raise UserError(f"data.schema={wanted} is unknown; choose one of: {', '.join(SCHEMAS)}")
    known = _candidates(present, columns)
    for name, candidates in known.items():
        for schema in candidates:
            if wanted in ("auto", name) and set(schema.required) <= set(present):
                return schema
    asked = [one for name, candidates in known.items() if wanted in ("auto", name) for one in candidates[:1]]
    # The schema that lacks least is the one that was meant.
    nearest = min(asked, key=lambda one: len(set(one.required) - set(present)) / len(one.required))
    lacking = [name for name in nearest.required if name not in present]
    forms = ", ".join(f"data.columns.{name}=" for name in nearest.options)
    raise UserError(
        f"{origin} has no column {' and no column '.join(repr(name) for name in lacking)} "
        f"(it has: {', '.join(present) or 'none'}), which the schema {nearest.name} needs; name the columns with "
        f"{forms}, or another schema with data.schema= ({', '.join(SCHEMAS[1:])})"
    )


def _candidates(present: Sequence[str], columns: Columns) -> dict[str, list[Schema]]:
    """What each schema could read, the likeliest first. A name that was given is the only one looked for."""
    pairs = [(columns.prompt or prompt, columns.completion or completion) for prompt, completion in PAIRS]
    conversations = (columns.messages,) if columns.messages else CONVERSATIONS
    return {
        "alpaca": [Instruction("alpaca", columns.instruction, columns.input, columns.output)],
        "messages": [Messages(name) for name in conversations],
        "prompt_completion": [
            Instruction("prompt_completion", prompt, None, completion) for prompt, completion in dict.fromkeys(pairs)
        ],
        "text": [Text(columns.text or "text")],
    }


def _not_text(row: Row, fields: Sequence[str]) -> str | None:
    for name in fields:
        if not isinstance(row.get(name), str | None):
            return f"column '{name}' holds {row[name]!r:.60}, not text"
    return None


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"{message!r:.60} is no message; a message has role and content (or from and value)"
    role = message.get("role") or message.get("from")
    if not isinstance(role, str) or role not in ROLES:
        return f"role {role!r:.40} is unknown; the roles are {', '.join(ROLES)}"
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            return None
        return f"content {content!r:.60} has a part that is no text; only text can be trained on"
    return None if isinstance(content, str | None) else f"content {content!r:.60} is not text"


def _content(message: Row) -> str:
    """A message's text; parts of text are joined, and a message without content says nothing."""
    content = message.get("content")
    if content is None:
        content = message.get("value")
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
