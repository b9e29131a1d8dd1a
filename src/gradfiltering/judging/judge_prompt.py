"""Conversations that ask a language model for a judgement, rendered from template files."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Literal, Self

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Question
from gradfiltering.judging.reply_parser import ReplyFormat, parse_scores
from gradfiltering.judging.verdicts import Scores
from gradfiltering.options import model_validator, options
from gradfiltering.runs.plain_text import replace_lone_surrogates

Message = dict[str, str]
TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDERS = {"question", "first", "second"}
INVISIBLE = "\u200b"
_SECTION = re.compile(r"^=== (system|user)\n", flags=re.MULTILINE)
# Chat models keep turns apart by these marks; a server may read them in a text too, and take the
# rest for a new turn.
_TURN_MARKS = re.compile(
    r"<\|[\w ]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:begin|end)▁of▁sentence>|</?think>"
)


@options
class JudgePrompt:
    """Presents a pair of answers to a language model, and reads its reply.

    Attributes:
        mode: "corrected" shows the whole question, as the models saw it, and fences question and
            answers with a mark that none of them can hold. "paper_compatible" is the published
            prompt, letter by letter: markers that an answer may imitate, and the instruction
            without its input (which matters for Self-Instruct).
        reply: "text" for two scores on the first line, "json" for an object.
        template: a template file of your own; None takes the mode's.
    """

    mode: Literal["corrected", "paper_compatible"]
    reply: ReplyFormat
    template: str | None

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.mode == "paper_compatible" and (self.reply == "json" or self.template is not None):
            raise UserError(
                "the mode paper_compatible is the published prompt, which asks for text; reply "
                "must be text and template null, or the mode corrected",
                owner=self,
                arguments=("mode", "reply", "template"),
            )
        _ = self._sections  # so that a broken template shows now
        return self

    def render(self, question: Question, forbidden_marks: Sequence[str] = ()) -> list[Message]:
        """Render the conversation that asks for a judgement.

        Args:
            question: prompt and answers.
            forbidden_marks: further marks that would break a text out of its place, such as a
                tokenizer's special tokens.
        """
        quoted_texts = {
            "question": question.prompt.instruction,
            "first": question.first_answer,
            "second": question.second_answer,
        }
        if self.mode == "corrected":
            quoted_texts["question"] = question.prompt.question
            quoted_texts = {name: _split_marks(text, forbidden_marks) for name, text in quoted_texts.items()}
            quoted_texts["fence"] = make_fence(list(quoted_texts.values()))
        # One pass over the template: placeholders in an answer are never filled.
        return [
            {"role": role, "content": replace_lone_surrogates(template_section.substitute(quoted_texts))}
            for role, template_section in self._sections
        ]

    def ask_again(self, messages: Sequence[Message], reply_text: str) -> list[Message]:
        """Continue the conversation after a reply without readable scores."""
        file_name = "again_json.txt" if self.reply == "json" else "again.txt"
        retry_reminder = (TEMPLATES / file_name).read_text("utf-8").strip()
        # An empty turn is refused by some servers.
        unreadable_reply = replace_lone_surrogates(reply_text.strip() or "(empty)")
        return [
            *messages,
            {"role": "assistant", "content": unreadable_reply},
            {"role": "user", "content": retry_reminder},
        ]

    def parse(self, reply_text: str) -> Scores | None:
        """Read the scores of a reply; None if it states none beyond doubt."""
        return parse_scores(reply_text, self.reply)

    @cached_property
    def _sections(self) -> list[tuple[str, Template]]:
        if self.template is not None:
            template_path = Path(self.template).expanduser()
        elif self.mode == "paper_compatible":
            template_path = TEMPLATES / "paper.txt"
        else:
            template_path = TEMPLATES / ("fenced_json.txt" if self.reply == "json" else "fenced.txt")
        return _read_template(template_path, needs_fence=self.mode == "corrected")


def make_fence(quoted_texts: Sequence[str]) -> str:
    """Make a mark that no text holds or could have been written to hold.

    It is a digest of all texts: unforeseeable to whoever wrote one of them, and the same when the
    same pair is judged again, so that a stored reply is found.
    """
    for fence_attempt in range(100):
        fence_content = json.dumps([*quoted_texts, fence_attempt]).encode("utf-8", "surrogatepass")
        fence_mark = hashlib.sha256(fence_content).hexdigest()[:20]
        if not any(fence_mark in text for text in quoted_texts):
            return fence_mark
    raise AssertionError("a hundred digests of a text stand in it")


def _split_marks(text: str, forbidden_marks: Sequence[str]) -> str:
    """Split marks by an invisible character, so that no server takes them for its own."""
    for mark in sorted(forbidden_marks, key=len, reverse=True):
        if len(mark) > 1:
            text = text.replace(mark, mark[0] + INVISIBLE + mark[1:])
    return _TURN_MARKS.sub(lambda mark_match: mark_match[0][0] + INVISIBLE + mark_match[0][1:], text)


def _read_template(template_path: Path, needs_fence: bool) -> list[tuple[str, Template]]:
    """Read (role, text) of a template file: sections under lines `=== system` and `=== user`."""
    try:
        template_text = template_path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template {template_path} cannot be read ({error}); give a text file") from error
    text_before, *section_parts = _SECTION.split(template_text)
    template_sections = [
        (role, Template(section_body.removesuffix("\n")))
        for role, section_body in zip(section_parts[::2], section_parts[1::2], strict=True)
    ]
    if text_before.strip() or not template_sections or template_sections[-1][0] != "user":
        raise UserError(
            f"{template_path}: a template has a line '=== user' (perhaps after '=== system') and its text below it"
        )
    if not all(template_section.is_valid() for _, template_section in template_sections):
        raise UserError(f"{template_path}: a single $ stands in it; write $$ for a dollar sign")
    found_placeholders = {
        name for _, template_section in template_sections for name in template_section.get_identifiers()
    }
    expected_placeholders = PLACEHOLDERS | ({"fence"} if needs_fence else set())
    if found_placeholders != expected_placeholders:
        wrong_names = ", ".join(f"${name}" for name in sorted(found_placeholders ^ expected_placeholders))
        raise UserError(
            f"{template_path}: {wrong_names} missing or unknown; a template holds each of "
            + ", ".join(f"${name}" for name in sorted(expected_placeholders))
        )
    return template_sections
