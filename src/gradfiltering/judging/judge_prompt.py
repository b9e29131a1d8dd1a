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
        texts = {
            "question": question.prompt.instruction,
            "first": question.first_answer,
            "second": question.second_answer,
        }
        if self.mode == "corrected":
            texts["question"] = question.prompt.question
            texts = {name: _split_marks(text, forbidden_marks) for name, text in texts.items()}
            texts["fence"] = make_fence(list(texts.values()))
        # One pass over the template: placeholders in an answer are never filled.
        return [{"role": role, "content": _encodable(section.substitute(texts))} for role, section in self._sections]

    def ask_again(self, messages: Sequence[Message], reply: str) -> list[Message]:
        """Continue the conversation after a reply without readable scores."""
        file_name = "again_json.txt" if self.reply == "json" else "again.txt"
        reminder = (TEMPLATES / file_name).read_text("utf-8").strip()
        # An empty turn is refused by some servers.
        unreadable = _encodable(reply.strip() or "(empty)")
        return [
            *messages,
            {"role": "assistant", "content": unreadable},
            {"role": "user", "content": reminder},
        ]

    def parse(self, reply: str) -> Scores | None:
        """Read the scores of a reply; None if it states none beyond doubt."""
        return parse_scores(reply, self.reply)

    @cached_property
    def _sections(self) -> list[tuple[str, Template]]:
        if self.template is not None:
            path = Path(self.template).expanduser()
        elif self.mode == "paper_compatible":
            path = TEMPLATES / "paper.txt"
        else:
            path = TEMPLATES / ("fenced_json.txt" if self.reply == "json" else "fenced.txt")
        return _read_template(path, needs_fence=self.mode == "corrected")


def make_fence(texts: Sequence[str]) -> str:
    """Make a mark that no text holds or could have been written to hold.

    It is a digest of all texts: unforeseeable to whoever wrote one of them, and the same when the
    same pair is judged again, so that a stored reply is found.
    """
    for attempt in range(100):
        content = json.dumps([*texts, attempt]).encode("utf-8", "surrogatepass")
        mark = hashlib.sha256(content).hexdigest()[:20]
        if not any(mark in text for text in texts):
            return mark
    raise AssertionError("a hundred digests of a text stand in it")


def _split_marks(text: str, forbidden_marks: Sequence[str]) -> str:
    """Split marks by an invisible character, so that no server takes them for its own."""
    for mark in sorted(forbidden_marks, key=len, reverse=True):
        if len(mark) > 1:
            text = text.replace(mark, mark[0] + INVISIBLE + mark[1:])
    return _TURN_MARKS.sub(lambda match: match[0][0] + INVISIBLE + match[0][1:], text)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no encoding has, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_template(path: Path, needs_fence: bool) -> list[tuple[str, Template]]:
    """Read (role, text) of a template file: sections under lines `=== system` and `=== user`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template {path} cannot be read ({error}); give a text file") from error
    start, *parts = _SECTION.split(text)
    sections = [(role, Template(body.removesuffix("\n"))) for role, body in zip(parts[::2], parts[1::2], strict=True)]
    if start.strip() or not sections or sections[-1][0] != "user":
        raise UserError(f"{path}: a template has a line '=== user' (perhaps after '=== system') and its text below it")
    if not all(section.is_valid() for _, section in sections):
        raise UserError(f"{path}: a single $ stands in it; write $$ for a dollar sign")
    placeholders = {name for _, section in sections for name in section.get_identifiers()}
    expected = PLACEHOLDERS | ({"fence"} if needs_fence else set())
    if placeholders != expected:
        wrong_names = ", ".join(f"${name}" for name in sorted(placeholders ^ expected))
        raise UserError(
            f"{path}: {wrong_names} missing or unknown; a template holds each of "
            + ", ".join(f"${name}" for name in sorted(expected))
        )
    return sections
