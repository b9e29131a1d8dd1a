"""Preference rows: a prompt with an answer that was preferred and one that was rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfiltering.data.conversation_layout import Segment
from gradfiltering.data.conversations import Conversation, describe_message_problem
from gradfiltering.data.row_columns import SYSTEM_COLUMNS, TEMPLATE_ARGUMENTS, TOOLS_COLUMNS, Row
from gradfiltering.data.schemas import CONVERSATION_COLUMNS, Columns, Instruction, Mixed
from gradfiltering.data.templates import Turn
from gradfiltering.errors import UserError

CHOSEN, REJECTED = "chosen", "rejected"
NO_CHOSEN = "no chosen answer"
NO_REJECTED = "no rejected answer"
EQUAL_ANSWERS = "chosen and rejected answer are equal"
EQUAL_WITHIN_LENGTH = "chosen and rejected answer are equal within max_tokens"
FURTHER_COLUMNS = (*SYSTEM_COLUMNS, "history", *TOOLS_COLUMNS, TEMPLATE_ARGUMENTS)
# The forms in which one side of a row, a prompt with one answer, is read.
SIDE_SCHEMA = Mixed(
    (
        Instruction("alpaca", "instruction", "input", "output"),
        Instruction("prompt_completion", "prompt", None, "completion"),
    )
)


@dataclass(frozen=True)
class Preference:
    """Rows with `chosen` and `rejected`, as TRL and LLaMA-Factory write them.

    The prompt stands in a column of its own (text or messages), in `instruction` and `input`, in a conversation, or at
    the beginning of both answers where these are lists of messages. Where a row is taken as one question and answer (on
    the page, by the signs of poor rows, by scores of a response), the answer is the chosen one.

    Attributes:
        instruction, input: columns of an Alpaca row.
        prompt: column of the prompt.
        conversation_columns: columns that may hold the prompt as messages.
        chosen, rejected: columns of the answers.
    """

    instruction: str
    input: str
    prompt: str
    conversation_columns: tuple[str, ...]
    chosen: str = CHOSEN
    rejected: str = REJECTED
    name: str = "preference"
    is_conversational: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a dataset must have."""
        return (self.chosen, self.rejected)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        prompt_columns = (self.prompt, self.instruction, self.input, *self.conversation_columns)
        return tuple(dict.fromkeys((*prompt_columns, *self.required, *FURTHER_COLUMNS)))

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `Columns` that name columns of the prompt."""
        return ("prompt", "instruction", "input", "messages")

    def of_row(self, row_values: Row) -> "Preference | None":
        """The schema itself; None where the row has neither answer."""
        return self if any(name in row_values for name in self.required) else None

    def problem(self, row_values: Row) -> str | None:
        """Say why a row is no preference row; None where it is."""
        for column_name in self.required:
            answer = row_values.get(column_name)
            if not isinstance(answer, str | list | Mapping | None):
                return f"column '{column_name}' holds {answer!r:.60}, neither text nor messages"
            for message in _as_messages(answer):
                message_problem = describe_message_problem(message)
                if message_problem:
                    return f"column '{column_name}': {message_problem}"
        has_prompt = self._prompt_of(row_values) or row_values.get(self.instruction)
        if all(row_values.get(name) for name in self.required) and not has_prompt:
            return (
                f"it has no prompt: none of the columns {self.prompt}, {self.instruction}, "
                f"{', '.join(self.conversation_columns)} holds one, and the answers do not begin with the same messages"
            )
        return next(filter(None, map(SIDE_SCHEMA.problem, self.split(row_values))), None)

    def split(self, row_values: Row) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the prompt with the chosen answer, and with the rejected one, as rows of `SIDE_SCHEMA`."""
        further = {name: row_values[name] for name in FURTHER_COLUMNS if row_values.get(name) is not None}
        prompt = self._prompt_of(row_values)
        sides = []
        for column_name in self.required:
            answer = row_values.get(column_name)
            if isinstance(answer, Mapping):
                answer = [answer]
            if isinstance(answer, list) and isinstance(prompt, list) and self._repeats_prompt(row_values):
                answer = answer[len(prompt) :]
            if prompt is None and not isinstance(answer, list):
                question = {"instruction": row_values.get(self.instruction), "input": row_values.get(self.input)}
                sides.append({**question, "output": answer, **further})
            else:
                sides.append({"prompt": prompt, "completion": answer, **further})
        return sides[0], sides[1]

    def find_reason(self, row_values: Row) -> str:
        """Return the reason why a row teaches nothing; empty where it teaches."""
        answers = [_answer_text(side) for side in self.split(row_values)]
        for answer, reason in zip(answers, (NO_CHOSEN, NO_REJECTED), strict=True):
            if not answer.strip():
                return reason
        return EQUAL_ANSWERS if answers[0].strip() == answers[1].strip() else ""

    def conversation(self, row_values: Row) -> Conversation | None:
        """The prompt and the chosen answer as messages."""
        return SIDE_SCHEMA.conversation(self.split(row_values)[0])

    def is_multi_turn(self, row_values: Row) -> bool:
        """True where a chat template lays out the sides as a whole, and not as one question."""
        return SIDE_SCHEMA.is_multi_turn(self.split(row_values)[0])

    def unused(self, row_values: Row) -> list[str]:
        """Name what the read columns hold and nothing uses, of prompts beside the one that is read, too."""
        names: dict[str, None] = {}
        for side in self.split(row_values):
            layout = SIDE_SCHEMA.of_row(side)
            names |= dict.fromkeys(layout.unused(side) if layout is not None else [])
        for column_name in (self.prompt, *self.conversation_columns, self.instruction, self.input):
            if row_values.get(column_name) and not self._reads_prompt_column(row_values, column_name):
                names[f"{column_name} beside another prompt"] = None
        return list(names)

    def segments(self, row_values: Row, template_name: str, tokenizer: Any) -> list[Segment]:
        """The prompt and the chosen answer in order."""
        return SIDE_SCHEMA.segments(self.split(row_values)[0], template_name, tokenizer)

    def turn(self, row_values: Row) -> Turn | None:
        """The question and the chosen answer."""
        return SIDE_SCHEMA.turn(self.split(row_values)[0])

    def _prompt_of(self, row_values: Row) -> Any:
        """Return the prompt as text or messages; None where it is that of an Alpaca row, or there is none."""
        shared_messages = self._shared_messages(row_values)
        given_prompt = row_values.get(self.prompt)
        if isinstance(given_prompt, list) and given_prompt:
            return given_prompt
        if shared_messages:  # a prompt that is text beside them is the question among them
            return shared_messages
        for column_name in (self.prompt, *self.conversation_columns):
            if row_values.get(column_name):
                return row_values[column_name]
        answers_are_messages = any(isinstance(row_values.get(name), list) for name in self.required)
        return self._question_of(row_values) if answers_are_messages else None

    def _question_of(self, row_values: Row) -> Any:
        """Return instruction and input as one text; the instruction as it is where one of them is no text."""
        instruction, input_text = row_values.get(self.instruction), row_values.get(self.input)
        if not isinstance(input_text, str) or not isinstance(instruction, str | None):
            return instruction
        return "\n\n".join(text for text in (instruction, input_text) if text)

    def _reads_prompt_column(self, row_values: Row, column_name: str) -> bool:
        """Return True where what a column of the prompt holds is in the prompt."""
        prompt, value = self._prompt_of(row_values), row_values[column_name]
        if column_name in (self.instruction, self.input):
            return prompt is None or prompt == self._question_of(row_values)
        if isinstance(prompt, list) and isinstance(value, str):  # the question among these messages
            return any(message.get("content", message.get("value")) == value for message in prompt)
        if isinstance(prompt, list) and isinstance(value, list):  # with an answer behind it, as in UltraFeedback
            return value[: len(prompt)] == prompt
        return bool(value == prompt)

    def _repeats_prompt(self, row_values: Row) -> bool:
        """Return True where both answers begin with the messages of the prompt."""
        prompt = self._prompt_of(row_values)
        answers = [row_values.get(name) for name in self.required]
        return all(isinstance(answer, list) and answer[: len(prompt)] == prompt for answer in answers)

    def _shared_messages(self, row_values: Row) -> list[Any]:
        """Return the messages that both answers begin with, without a last answer that they share."""
        chosen, rejected = (row_values.get(name) for name in self.required)
        if not (isinstance(chosen, list) and isinstance(rejected, list)):
            return []
        shared_count = 0
        # The last message of each is an answer, be it the same.
        for chosen_message, rejected_message in zip(chosen[:-1], rejected[:-1], strict=False):
            if chosen_message != rejected_message:
                break
            shared_count += 1
        return chosen[:shared_count]


def find_preference_schema(column_names: Sequence[str], column_options: Columns, origin: str) -> Preference:
    """Build the schema of preference rows.

    Args:
        column_names: the dataset's columns.
        column_options: the names of prompt columns.
        origin: the dataset in words, for messages.

    Raises:
        UserError: a column of answers is missing.
    """
    missing_columns = [repr(name) for name in (CHOSEN, REJECTED) if name not in column_names]
    if missing_columns:
        raise UserError(
            f"{origin} has no column {' and no column '.join(missing_columns)} (it has: "
            f"{', '.join(column_names) or 'none'}), which preference rows have; rename the columns, or choose an "
            "objective that learns responses"
        )
    conversation_columns = (column_options.messages,) if column_options.messages else CONVERSATION_COLUMNS
    return Preference(
        instruction=column_options.instruction,
        input=column_options.input,
        prompt=column_options.prompt or ("prompt" if "prompt" in column_names else "question"),
        conversation_columns=conversation_columns,
    )


def _as_messages(answer: Any) -> list[Any]:
    if isinstance(answer, Mapping):
        return [answer]
    return answer if isinstance(answer, list) else []


def _answer_text(side: Row) -> str:
    """Return the text of a side's last answer, tool calls and reasoning included; empty where there is none."""
    conversation = SIDE_SCHEMA.conversation(side)
    if conversation is None or not conversation.messages or conversation.messages[-1].role != "assistant":
        return ""
    return conversation.messages[-1].text
