"""Schemas: which columns hold question and answer, and which text is supervised. One class for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradfiltering.data.conversation_layout import Segment, conversation_segments, first_turn
from gradfiltering.data.conversations import ChatMessage, Conversation, read_message
from gradfiltering.data.row_columns import (
    SYSTEM_COLUMNS,
    TEMPLATE_ARGUMENTS,
    TOOLS_COLUMNS,
    Row,
    describe_message_list_problem,
    describe_message_pair_problem,
    describe_non_text,
    list_pair_messages,
    list_unused_further_columns,
    list_unused_message_parts,
    list_unused_system_columns,
    put_system_first,
    read_further_columns,
    read_history,
    read_message_pair,
    read_system_column,
)
from gradfiltering.data.templates import Turn, find_template
from gradfiltering.errors import UserError
from gradfiltering.options import options

SCHEMAS = ("auto", "alpaca", "prompt_completion", "messages", "text")
PROMPT_COMPLETION_COLUMNS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
)
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")

EMPTY_RESPONSE = "empty response"
NO_ASSISTANT = "no assistant turn with text in it"
NOT_TRAINED = "every assistant turn is marked as not to be trained on"
NO_SCHEMA = "no field of a schema of this dataset"


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
        """One of `SCHEMAS`, or mixed."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read; any of them may be missing from a row."""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""

    @property
    def is_conversational(self) -> bool:
        """True where rows have the layout of conversations, whatever the template of single questions."""

    def of_row(self, row_values: Row) -> "Schema | None":
        """The schema of one row, None where it has no field of this one."""

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""

    def conversation(self, row_values: Row) -> Conversation | None:
        """The row as messages; None for a text without turns."""

    def is_multi_turn(self, row_values: Row) -> bool:
        """True for a row that a chat template lays out as a whole, and not as one question."""

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses."""

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order; a row with nothing to learn has no supervised segment with text."""

    def turn(self, row_values: Row) -> Turn | None:
        """The row as one question and its answer, None where it has no question."""


@dataclass(frozen=True)
class Instruction:
    """Instruction, optional input and output; a prompt and completion pair is one without an input.

    A column `system` or `system_prompt` is the system turn, and a column `history` of pairs holds earlier questions
    and answers, which are learnt as LLaMA-Factory learns them.

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
    is_conversational: bool = False

    @property
    def prompt(self) -> tuple[str, ...]:
        """The columns a prompt is made of."""
        return (self.instruction,) if self.input is None else (self.instruction, self.input)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.instruction, self.output)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        further_columns = (*SYSTEM_COLUMNS, "history", *TOOLS_COLUMNS, TEMPLATE_ARGUMENTS)
        return (*self.prompt, self.output, *(name for name in further_columns if name not in self.prompt))

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""
        return ("instruction", "input", "output") if self.name == "alpaca" else ("prompt", "completion")

    def of_row(self, row_values: Row) -> "Instruction | None":
        """The schema itself; None where the row has neither column."""
        return self if any(name in row_values for name in self.required) else None

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        if self._is_message_pair(row_values):
            return describe_message_pair_problem(row_values, self.required)
        return describe_non_text(row_values, (*self.prompt, self.output))

    def conversation(self, row_values: Row) -> Conversation:
        """The row as messages: system turn, history, question, answer."""
        further = read_further_columns(row_values)
        if self._is_message_pair(row_values):
            messages = read_message_pair(row_values, self.required)
        else:
            messages = []
            for question, answer in read_history(row_values) or ():
                messages += [ChatMessage("user", question, False), ChatMessage("assistant", answer, True)]
            question = self._last_turn(row_values).question
            messages += [
                ChatMessage("user", question, False),
                ChatMessage("assistant", row_values.get(self.output) or "", True),
            ]
        return Conversation(put_system_first(messages, row_values), *further)

    def is_multi_turn(self, row_values: Row) -> bool:
        """True where there are earlier questions, or prompt and completion are messages."""
        return self._is_message_pair(row_values) or bool(read_history(row_values))

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses."""
        names = list_unused_further_columns(row_values)
        if self._is_message_pair(row_values):
            names += list_unused_message_parts(row_values, list_pair_messages(row_values, self.required))
            names += ["history"] if row_values.get("history") else []
        elif row_values.get("history") and read_history(row_values) is None:
            names.append("history that is no list of question and answer")
        return names + list_unused_system_columns(row_values)

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order: each question by the template, each answer closed."""
        if template_name == "conversation" or self._is_message_pair(row_values):
            return conversation_segments(self.conversation(row_values))
        earlier_turns = [Turn(question, "", answer) for question, answer in read_history(row_values) or ()]
        system_text = read_system_column(row_values) or ""
        last_turn = self._last_turn(row_values)
        turns = [*earlier_turns, Turn(last_turn.instruction, last_turn.input, last_turn.output)]
        turns[0] = Turn(turns[0].instruction, turns[0].input, turns[0].output, system_text)
        prompt_texts = [find_template(template_name)(turn, tokenizer) for turn in turns]
        found_segments = []
        for prompt_text, turn in zip(prompt_texts, turns, strict=True):
            has_answer = bool(turn.output.strip())  # a turn without text teaches nothing but to stop
            found_segments += [Segment(prompt_text, False), Segment(turn.output, has_answer, has_answer)]
        return found_segments

    def turn(self, row_values: Row) -> Turn | None:
        """The first question and its answer; a missing or null input is an empty one."""
        if self._is_message_pair(row_values):
            return first_turn(self.conversation(row_values))
        history = read_history(row_values)
        if history:
            return Turn(history[0][0], "", history[0][1], read_system_column(row_values) or "")
        return self._last_turn(row_values, read_system_column(row_values) or "")

    def _last_turn(self, row_values: Row, system_text: str = "") -> Turn:
        input_text = row_values.get(self.input) if self.input is not None else None
        return Turn(
            row_values.get(self.instruction) or "", input_text or "", row_values.get(self.output) or "", system_text
        )

    def _is_message_pair(self, row_values: Row) -> bool:
        """True for TRL's conversational form: prompt and completion as lists of messages."""
        return self.name == "prompt_completion" and any(
            isinstance(row_values.get(name), list) for name in self.required
        )


@dataclass(frozen=True)
class Text:
    """A whole text, all of it supervised."""

    column: str
    name: str = "text"
    is_conversational: bool = False

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

    def of_row(self, row_values: Row) -> "Text | None":
        """The schema itself; None where the row has no such column."""
        return self if self.column in row_values else None

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        return describe_non_text(row_values, self.fields)

    def conversation(self, row_values: Row) -> None:
        """None: a text has no turns."""
        return None

    def is_multi_turn(self, row_values: Row) -> bool:
        """False: a text has no turns."""
        return False

    def unused(self, row_values: Row) -> list[str]:
        """Nothing: the text is all that is read."""
        return []

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order."""
        # The empty segment carries the start token, where the tokenizer has one: nothing predicts it.
        return [Segment("", False), Segment(row_values.get(self.column) or "", True, True)]

    def turn(self, row_values: Row) -> None:
        """None: a text asks nothing."""
        return None


@dataclass(frozen=True)
class Messages:
    """A conversation: every assistant turn is supervised, unless it is marked as not to be trained on.

    Attributes:
        column: of the list of messages; a column `system` may hold a system turn beside it.
        name: of the schema.
    """

    column: str
    name: str = "messages"
    is_conversational: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column, *SYSTEM_COLUMNS, *TOOLS_COLUMNS, TEMPLATE_ARGUMENTS)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.column,)

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name them."""
        return ("messages",)

    def of_row(self, row_values: Row) -> "Messages | None":
        """The schema itself; None where the row has no such column."""
        return self if self.column in row_values else None

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of this schema; None where it is."""
        return describe_message_list_problem(row_values, self.column) or describe_non_text(row_values, SYSTEM_COLUMNS)

    def conversation(self, row_values: Row) -> Conversation:
        """The messages; a system turn beside them comes first."""
        messages = [read_message(message) for message in row_values.get(self.column) or []]
        return Conversation(put_system_first(messages, row_values), *read_further_columns(row_values))

    def is_multi_turn(self, row_values: Row) -> bool:
        """True: messages are a conversation, be it of one question."""
        return True

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses."""
        return [
            *list_unused_message_parts(row_values, row_values.get(self.column) or []),
            *list_unused_further_columns(row_values),
            *list_unused_system_columns(row_values),
        ]

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """Our own layout, the one that the `chat` template writes for a tokenizer without a template."""
        return conversation_segments(self.conversation(row_values))

    def turn(self, row_values: Row) -> Turn | None:
        """The first question with its system turn, and the first answer; None where one of them is missing."""
        return first_turn(self.conversation(row_values))


@dataclass(frozen=True)
class Mixed:
    """Rows of several schemas in one dataset; each row is read by the first that it fits.

    Attributes:
        members: the schemas, in the order in which they are tried.
    """

    members: tuple[Schema, ...]
    name: str = "mixed"

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.fields))

    @property
    def required(self) -> tuple[str, ...]:
        """No column: a row has those of its own schema."""
        return ()

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name the columns."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.options))

    @property
    def is_conversational(self) -> bool:
        """True where any member is: all rows of a dataset share one layout."""
        return any(member.is_conversational for member in self.members)

    def of_row(self, row_values: Row) -> Schema | None:
        """Find the first member whose columns all hold something, else the first of which any does.

        A text beside other columns is most often a rendering of them, so that it comes last.
        """

        def filled_columns(member: Schema) -> int:
            return sum(row_values.get(name) not in (None, "", []) for name in member.required)

        filled_members = [
            member
            for member in self.members
            if filled_columns(member) == len(member.required) and member.name != "text"
        ]
        partly_filled = [member for member in self.members if filled_columns(member)]
        present_members = [member for member in self.members if member.of_row(row_values)]
        return next(iter([*filled_members, *partly_filled, *present_members]), None)

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is not of the schema that it fits best; None where it is, or fits none."""
        member = self.of_row(row_values)
        return member.problem(row_values) if member else None

    def conversation(self, row_values: Row) -> Conversation | None:
        """The row as messages, none where it fits no schema."""
        member = self.of_row(row_values)
        return member.conversation(row_values) if member else Conversation(())

    def is_multi_turn(self, row_values: Row) -> bool:
        """True where the row's own schema says so."""
        member = self.of_row(row_values)
        return member is not None and member.is_multi_turn(row_values)

    def unused(self, row_values: Row) -> list[str]:
        """Name what the columns of the row's schema hold and nothing uses, and other columns that hold anything."""
        member = self.of_row(row_values)
        own_fields = member.fields if member else ()
        other_fields = [name for name in self.fields if name not in own_fields]
        names = [name for name in other_fields if row_values.get(name) not in (None, "", [])]
        return [*names, *(member.unused(row_values) if member else [])]

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order, none where it fits no schema."""
        member = self.of_row(row_values)
        return member.segments(row_values, template_name, tokenizer) if member else []

    def turn(self, row_values: Row) -> Turn | None:
        """The row as one question and its answer, None where it has no question."""
        member = self.of_row(row_values)
        return member.turn(row_values) if member else None


def describe_schema(schema: Schema) -> str:
    """Name a schema and its columns."""
    return f"{schema.name} ({', '.join(schema.required)})"


def find_candidates(
    column_names: Sequence[str], column_options: Columns, schema_name: str, origin: str
) -> list[Schema]:
    """List the schemas that some row of a dataset may have.

    Args:
        column_names: the dataset's columns.
        column_options: the names to look for.
        schema_name: one of `SCHEMAS`; `auto` allows all of them.
        origin: the dataset in words, for messages.

    Raises:
        UserError: no such schema, or the columns fit none.
    """
    candidates_by_name = _candidate_schemas(column_options)
    if schema_name != "auto":
        candidates_by_name = {schema_name: candidates_by_name[schema_name]}
    fitting_schemas = [
        candidate
        for candidates in candidates_by_name.values()
        for candidate in candidates
        if set(candidate.required) <= set(column_names)
    ]
    if fitting_schemas:
        return fitting_schemas
    likeliest_schemas = [candidates[0] for candidates in candidates_by_name.values()]

    def missing_share(candidate: Schema) -> float:
        return len(set(candidate.required) - set(column_names)) / len(candidate.required)

    nearest_schema = min(likeliest_schemas, key=missing_share)
    missing_columns = [repr(name) for name in nearest_schema.required if name not in column_names]
    remedy = f"name the columns, or choose another schema ({', '.join(SCHEMAS[1:])})"
    if {"chosen", "rejected"} <= set(column_names):
        remedy = (
            "choose an objective that learns preferences, such as dpo, or name the columns of a question and its answer"
        )
    raise UserError(
        f"{origin} has no column {' and no column '.join(missing_columns)} (it has: "
        f"{', '.join(column_names) or 'none'}), which the schema {nearest_schema.name} needs; {remedy}",
        owner=column_options,
        arguments=nearest_schema.options,
    )


def find_missing_columns(schema: Schema, column_names: Sequence[str]) -> list[str]:
    """List the columns that a schema reads and a file lacks; of `Mixed`, those of the member that lacks the fewest."""
    possible_schemas = schema.members if isinstance(schema, Mixed) else (schema,)
    return min(
        ([name for name in possible.required if name not in column_names] for possible in possible_schemas), key=len
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
