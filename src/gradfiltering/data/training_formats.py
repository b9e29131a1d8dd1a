"""Selected rows as other trainers read them: conversations, or prompts with their completions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradfiltering.data.conversations import ChatMessage, Conversation
from gradfiltering.data.preference_schema import Preference
from gradfiltering.data.row_columns import TEMPLATE_ARGUMENTS, Row
from gradfiltering.data.schemas import Messages, Schema, Text
from gradfiltering.data.templates import template_messages
from gradfiltering.errors import UserError
from gradfiltering.options import options

ExportedRow = dict[str, Any]


@options
class ExportSettings:
    """The layouts that a subset is written in.

    Attributes:
        format: `native` for the rows as they came in; `messages` and `prompt_completion` write, beside these, a file
            that TRL, axolotl and LLaMA-Factory read whatever the rows were.
    """

    format: Literal["native", "messages", "prompt_completion"] = "native"

    def check(self, schema: Schema) -> None:
        """Refuse whole texts, which have no turns to export, and preference rows, which have two answers.

        Raises:
            UserError: all rows are such, and the format is not `native`.
        """
        if self.format != "native" and isinstance(schema, Preference):
            raise UserError(
                f"the rows are preferences, and {self.format} has one answer; give the format native, which TRL reads "
                "as it is",
                owner=self,
                arguments=("format",),
            )
        if self.format != "native" and isinstance(schema, Text):
            raise UserError(
                f"the rows are whole texts without question and answer, which cannot be exported as {self.format}; "
                "give the format native",
                owner=self,
                arguments=("format",),
            )

    def export(self, dataset_rows: Sequence[Row], schema: Schema) -> "ExportedRows":
        """Lay out rows in this format, which is not `native`."""
        conversations = [schema.conversation(row_values) for row_values in dataset_rows]
        usable = [conversation for conversation in conversations if conversation and conversation.answers]
        if self.format == "messages":
            exported_rows = [_messages_row(conversation) for conversation in usable]
        else:
            exported_rows = _prompt_completion_rows(usable)
        return ExportedRows(exported_rows, len(conversations) - len(usable))


@dataclass(frozen=True)
class ExportedRows:
    """Rows in a layout of other trainers.

    Attributes:
        rows: in the order of the subset.
        left_out: number of selected rows that have no answer to export.
    """

    rows: Sequence[ExportedRow]
    left_out: int


def export_warnings(dataset_rows: Sequence[Row], schema: Schema, settings: ExportSettings) -> list[str]:
    """Count what an export cannot express or leaves out.

    Args:
        dataset_rows: the selected rows.
        schema: of the dataset.
        settings: the format.
    """
    warnings = []
    flagged_count = sum(_flags_that_are_lost(row_values, schema, settings.format) for row_values in dataset_rows)
    if flagged_count:
        remedies = {
            "native": "export prompts with completions, or train with axolotl (message_field_training)",
            "messages": "export prompts with completions, or train with axolotl (message_field_training: train, "
            "message_field_training_detail: train_detail)",
            "prompt_completion": "export messages and train with axolotl",
        }
        warnings.append(
            f"{flagged_count} of {len(dataset_rows)} selected rows mark what is not to be learnt of their answers, and "
            f"LLaMA-Factory and TRL would train on all of it; {remedies[settings.format]}"
        )
    if settings.format == "native":
        return warnings
    exported = settings.export(dataset_rows, schema)
    if exported.left_out:
        warnings.append(
            f"{exported.left_out} of {len(dataset_rows)} selected rows have no question and answer and are not in the "
            f"{settings.format} file; they are in subset.jsonl"
        )
    exported_count = len(dataset_rows) - exported.left_out
    if len(exported.rows) != exported_count:
        warnings.append(
            f"{exported_count} selected rows became {len(exported.rows)} prompts with completions, one for each answer "
            "that is to be learnt"
        )
    return warnings


def holds_messages(exported_rows: Sequence[ExportedRow]) -> bool:
    """True where prompts and completions are lists of messages, which LLaMA-Factory does not read."""
    return any(isinstance(exported_row.get("prompt"), list) for exported_row in exported_rows)


def _flags_that_are_lost(row_values: Row, schema: Schema, export_format: str) -> bool:
    row_schema = schema.of_row(row_values)
    conversation = row_schema.conversation(row_values) if row_schema is not None else None
    if conversation is None or (export_format == "native" and not isinstance(row_schema, Messages)):
        return False
    has_stretches = any(
        answer.supervised and answer.supervised_stretches is not None for answer in conversation.answers
    )
    has_unsupervised = any(not answer.supervised for answer in conversation.answers)
    return has_stretches or (has_unsupervised and export_format != "prompt_completion")


def _messages_row(conversation: Conversation) -> ExportedRow:
    """A row of TRL's conversational language modelling: `messages`, and `tools` where there are any."""
    marks_turns = any(
        not answer.supervised or answer.supervised_stretches is not None for answer in conversation.answers
    )
    messages = []
    for message, exported_message in zip(conversation.messages, _exported(conversation.messages), strict=True):
        if marks_turns and message.role == "assistant":
            exported_message["train"] = message.supervised
            if message.supervised and message.supervised_stretches is not None:
                exported_message["train_detail"] = list(_details(message))
        messages.append(exported_message)
    return {"messages": messages, **_further_columns(conversation)}


def _prompt_completion_rows(conversations: Sequence[Conversation]) -> list[ExportedRow]:
    """A prompt with its completion for each answer to learn: as texts where all rows are single questions."""
    pairs = [
        (conversation, index)
        for conversation in conversations
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant" and message.supervised and message.text.strip()
    ]
    if all(_is_plain_question(conversation) for conversation, _ in pairs):
        return [
            {"prompt": conversation.messages[0].content, "completion": conversation.messages[index].content}
            for conversation, index in pairs
        ]
    return [
        {
            "prompt": _exported(conversation.messages[:index]),
            "completion": _exported(conversation.messages[index : index + 1]),
            **_further_columns(conversation),
        }
        for conversation, index in pairs
    ]


def _is_plain_question(conversation: Conversation) -> bool:
    """True for one question with its answer, both of them nothing but text."""
    roles = [message.role for message in conversation.messages]
    has_more = conversation.tools or conversation.template_arguments
    return (
        roles == ["user", "assistant"]
        and not has_more
        and all(message.text == message.content and not message.further_fields for message in conversation.messages)
    )


def _exported(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages with role and content first; reasoning under `reasoning_content`, calls as OpenAI's `tool_calls`."""
    exported_messages = []
    for message, rendered in zip(messages, template_messages(messages), strict=True):
        further = {name: value for name, value in rendered.items() if name not in ("role", "content", "thinking")}
        exported_messages.append({"role": message.role, "content": message.content, **further})
    return exported_messages


def _further_columns(conversation: Conversation) -> Mapping[str, Any]:
    columns: dict[str, Any] = {"tools": list(conversation.tools), TEMPLATE_ARGUMENTS: conversation.template_arguments}
    return {name: value for name, value in columns.items() if value}


def _details(message: ChatMessage) -> Iterator[dict[str, Any]]:
    """The stretches of an answer as axolotl counts them: the end is the last character."""
    position = 0
    for start, stop in (*(message.supervised_stretches or ()), (len(message.content), len(message.content))):
        if start > position:
            yield {"begin_offset": position, "end_offset": start - 1, "train": False}
        if stop > start:
            yield {"begin_offset": start, "end_offset": stop - 1, "train": True}
        position = stop
