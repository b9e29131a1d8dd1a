"""Schemas: which columns hold question and answer, and which text is supervised. One class for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from jinja2 import TemplateError

from gradfiltering.data.conversations import (
    ChatMessage,
    Conversation,
    describe_message_problem,
    read_message,
    read_tools,
    unused_parts,
    without_nulls,
)
from gradfiltering.data.templates import (
    Turn,
    closing_token,
    contains_text,
    drop_doubled_start,
    find_template,
    render_chat,
    template_messages,
)
from gradfiltering.errors import UserError
from gradfiltering.options import options

Row = Mapping[str, Any]

SCHEMAS = ("auto", "alpaca", "prompt_completion", "messages", "text")
PROMPT_COMPLETION_COLUMNS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
)
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
TOOLS_COLUMNS = ("tools", "functions")
TEMPLATE_ARGUMENTS = "chat_template_kwargs"  # a column of TRL's
# Arguments of `apply_chat_template` that are not a row's to give.
RESERVED_ARGUMENTS = {
    "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "messages",
}  # fmt: skip

EMPTY_RESPONSE = "empty response"
NO_ASSISTANT = "no assistant turn with text in it"
NOT_TRAINED = "every assistant turn is marked as not to be trained on"
NO_SCHEMA = "no field of a schema of this dataset"


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text.

    Attributes:
        text: tokenised apart from its neighbours.
        supervised: True where the model learns to say it.
        ends_turn: True where the token that ends a response follows.
    """

    text: str
    supervised: bool
    ends_turn: bool = False


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
            return _messages_pair_problem(row_values, self.required)
        return _describe_non_text(row_values, (*self.prompt, self.output))

    def conversation(self, row_values: Row) -> Conversation:
        """The row as messages: system turn, history, question, answer."""
        further = _further_columns(row_values)
        if self._is_message_pair(row_values):
            messages = _messages_of_pair(row_values, self.required)
        else:
            messages = []
            for question, answer in _history(row_values) or ():
                messages += [ChatMessage("user", question, False), ChatMessage("assistant", answer, True)]
            question = self._last_turn(row_values).question
            messages += [
                ChatMessage("user", question, False),
                ChatMessage("assistant", row_values.get(self.output) or "", True),
            ]
        return Conversation(_with_system(messages, row_values), *further)

    def is_multi_turn(self, row_values: Row) -> bool:
        """True where there are earlier questions, or prompt and completion are messages."""
        return self._is_message_pair(row_values) or bool(_history(row_values))

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses."""
        names = _unused_further_columns(row_values)
        if self._is_message_pair(row_values):
            names += _unused_message_parts(row_values, _pair_messages(row_values, self.required))
            names += ["history"] if row_values.get("history") else []
        elif row_values.get("history") and _history(row_values) is None:
            names.append("history that is no list of question and answer")
        return names + _unused_system_columns(row_values)

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The row's text in order: each question by the template, each answer closed."""
        if template_name == "conversation" or self._is_message_pair(row_values):
            return conversation_segments(self.conversation(row_values))
        earlier_turns = [Turn(question, "", answer) for question, answer in _history(row_values) or ()]
        system_text = _system_column(row_values) or ""
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
        history = _history(row_values)
        if history:
            return Turn(history[0][0], "", history[0][1], _system_column(row_values) or "")
        return self._last_turn(row_values, _system_column(row_values) or "")

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
        return _describe_non_text(row_values, self.fields)

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
        return _message_list_problem(row_values, self.column) or _describe_non_text(row_values, SYSTEM_COLUMNS)

    def conversation(self, row_values: Row) -> Conversation:
        """The messages; a system turn beside them comes first."""
        messages = [read_message(message) for message in row_values.get(self.column) or []]
        return Conversation(_with_system(messages, row_values), *_further_columns(row_values))

    def is_multi_turn(self, row_values: Row) -> bool:
        """True: messages are a conversation, be it of one question."""
        return True

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses."""
        return [
            *_unused_message_parts(row_values, row_values.get(self.column) or []),
            *_unused_further_columns(row_values),
            *_unused_system_columns(row_values),
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


def conversation_segments(conversation: Conversation) -> list[Segment]:
    """Lay out a conversation for a tokenizer whose chat template does not mark the assistant's words."""
    segments = []
    if conversation.tools:
        segments.append(Segment(f"<|tools|>\n{conversation.tools_text}\n", False))
    for message in conversation.messages:
        if message.role != "assistant":
            segments.append(Segment(f"<|{message.role}|>\n{message.content}\n", False))
            continue
        segments.append(Segment("<|assistant|>\n", False))
        if message.text.strip():
            segments += [Segment(text, learnt) for text, learnt in message.stretches() if text]
            segments.append(Segment("", message.trained, ends_turn=True))
        else:  # a turn without text teaches nothing but to stop
            segments.append(Segment(message.text, False))
    return segments


def chat_segments(conversation: Conversation, tokenizer: Any) -> list[Segment]:
    """Lay out a conversation by a chat template that does not mark the assistant's words.

    An answer begins where the template, given the messages before it, asks for it, and ends in the template's end of
    turn. So it holds all that the template writes of it: reasoning and tool calls, too.

    Raises:
        TemplateError: the template refuses the conversation, or writes it otherwise than one answer after the other.
    """
    messages = template_messages(conversation.messages, names_calls="tool_calls" in str(tokenizer.chat_template))

    def render(first_messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        return render_chat(
            first_messages,
            tokenizer,
            add_generation_prompt,
            **{**conversation.template_arguments, "tools": list(conversation.tools) or None},
        )

    whole_text = render(messages, add_generation_prompt=False)
    closing_text = tokenizer.convert_ids_to_tokens(closing_token("chat", tokenizer))
    segments: list[Segment] = []
    position = 0
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant" or not message.text.strip():
            continue
        content = messages[index]["content"]
        prompt = render(messages[:index], True) if index else whole_text.partition(content)[0]
        if len(prompt) < position or not whole_text.startswith(prompt):
            raise TemplateError("it writes an earlier answer otherwise than as it is")
        answer, ending = _written_answer(whole_text[len(prompt) :], content, closing_text)
        if not contains_text(answer, message.content):
            raise TemplateError("it leaves out or rewrites an answer")
        prompt_text = whole_text[position : len(prompt)]
        segments.append(Segment(prompt_text if segments else drop_doubled_start(prompt_text, tokenizer), False))
        segments += [*_answer_segments(message, answer), Segment("", message.trained, ends_turn=True)]
        position = len(prompt) + len(ending)
    if conversation.messages and conversation.messages[-1].role != "assistant":
        segments.append(Segment(whole_text[position:], False))
    return segments


def _written_answer(text_after: str, content: str, closing_text: str) -> tuple[str, str]:
    """Find what a chat template wrote of an answer in the text that begins with it.

    Returns:
        The answer as it is to be learnt, and the text up to where the rest of the conversation begins.
    """
    opening = next((text for text in (content, content.strip()) if text and text_after.startswith(text)), "")
    end_of_answer = text_after.find(closing_text, len(opening))
    if end_of_answer < 0:
        if not opening:
            raise TemplateError("it does not show where an answer ends")
        return opening, opening
    answer = text_after[:end_of_answer]
    if opening and not answer.removeprefix(opening).strip():
        answer = opening
    return answer, text_after[: end_of_answer + len(closing_text)]


def _answer_segments(message: ChatMessage, answer: str) -> list[Segment]:
    """An answer as the stretches of it that are learnt or not."""
    if not message.trained or message.trained_stretches is None:
        return [Segment(answer, message.trained)]
    content_start = answer.find(message.content)
    if content_start < 0:
        raise TemplateError("it alters an answer of which only stretches are to be learnt")
    segments = []
    position = 0
    for start, stop in message.trained_stretches:
        segments.append(Segment(answer[position : content_start + start], False))
        segments.append(Segment(answer[content_start + start : content_start + stop], True))
        position = content_start + stop
    segments.append(Segment(answer[position:], False))
    return [segment for segment in segments if segment.text]


def first_turn(conversation: Conversation) -> Turn | None:
    """The first question with its system turn, and the first answer; None where there is none to learn."""
    earlier_texts: dict[str, list[str]] = {"system": [], "user": []}
    for message in conversation.messages:
        if message.role == "assistant":
            system_text, question_text = ("\n\n".join(earlier_texts[role]) for role in ("system", "user"))
            return Turn(question_text, "", message.text, system_text) if question_text and message.trained else None
        earlier_texts["system" if message.role == "system" else "user"].append(message.content)
    return None


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


def _message_list_problem(row_values: Row, column_name: str) -> str | None:
    message_list = row_values.get(column_name)
    if message_list is not None and not isinstance(message_list, list):
        return f"column '{column_name}' holds {message_list!r:.60}, not a list of messages"
    for message_index, message in enumerate(message_list or []):
        message_problem = describe_message_problem(message)
        if message_problem:
            return f"column '{column_name}', message {message_index}: {message_problem}"
    return None


def _messages_pair_problem(row_values: Row, column_names: Sequence[str]) -> str | None:
    for column_name in column_names:
        if not isinstance(row_values.get(column_name), str):
            problem = _message_list_problem(row_values, column_name)
            if problem:
                return problem
    return None


def _pair_messages(row_values: Row, column_names: Sequence[str]) -> list[Any]:
    return [
        message
        for column_name in column_names
        if isinstance(row_values.get(column_name), list)
        for message in row_values[column_name]
    ]


def _messages_of_pair(row_values: Row, column_names: Sequence[str]) -> list[ChatMessage]:
    """Prompt and completion as messages; no turn of the prompt is learnt."""
    messages = []
    for column_name, role in zip(column_names, ("user", "assistant"), strict=True):
        value = row_values.get(column_name) or []
        part = [ChatMessage(role, value, role == "assistant")] if isinstance(value, str) else map(read_message, value)
        messages += [message if role == "assistant" else replace(message, trained=False) for message in part]
    return messages


def _system_column(row_values: Row) -> str | None:
    """The text of the first system column that holds any; None where one holds something else."""
    for column_name in SYSTEM_COLUMNS:
        value = row_values.get(column_name)
        if value:
            return value if isinstance(value, str) else None
    return ""


def _unused_system_columns(row_values: Row) -> list[str]:
    filled_columns = [name for name in SYSTEM_COLUMNS if row_values.get(name)]
    if filled_columns and _system_column(row_values) is None:
        return ["system that is no text"]
    return [f"{name} beside {filled_columns[0]}" for name in filled_columns[1:]]


def _with_system(messages: Sequence[ChatMessage], row_values: Row) -> tuple[ChatMessage, ...]:
    system_text = _system_column(row_values)
    if system_text and not any(message.role == "system" for message in messages):
        return (ChatMessage("system", system_text, False), *messages)
    return tuple(messages)


def _history(row_values: Row) -> list[tuple[str, str]] | None:
    """Earlier questions and answers, in LLaMA-Factory's form: a list of pairs; None where it is no such list."""
    pairs = row_values.get("history")
    if not isinstance(pairs, list):
        return None
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    if not all(isinstance(text, str | None) for pair in pairs for text in pair):
        return None
    return [(question or "", answer or "") for question, answer in pairs]


def _further_columns(row_values: Row) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    tools = read_tools(*(row_values.get(name) for name in TOOLS_COLUMNS))
    arguments = row_values.get(TEMPLATE_ARGUMENTS)
    usable_arguments = isinstance(arguments, Mapping) and not RESERVED_ARGUMENTS & set(arguments)
    return tools or (), without_nulls(arguments) if usable_arguments else {}


def _unused_further_columns(row_values: Row) -> list[str]:
    names = []
    tools, functions = (row_values.get(name) for name in TOOLS_COLUMNS)
    if tools and read_tools(tools) is None:
        names.append("tools that are no list of tools")
    elif functions and (tools or read_tools(None, functions) is None):
        names.append("functions beside tools" if tools else "functions that are no list of functions")
    arguments = row_values.get(TEMPLATE_ARGUMENTS)
    if arguments and not _further_columns(row_values)[1]:
        names.append(f"{TEMPLATE_ARGUMENTS} that a row cannot give")
    return names


def _unused_message_parts(row_values: Row, messages: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for message in messages for name in unused_parts(message))
    if _system_column(row_values) and any(read_message(message).role == "system" for message in messages):
        names["system column beside a system message"] = None
    return list(names)
