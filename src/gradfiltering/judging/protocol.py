"""What a judge is shown: a question and two answers, rendered from a template file."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Literal, get_args

from gradfiltering.errors import UserError
from gradfiltering.judging.parse import ReplyFormat, parse_scores
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.verdicts import Scores

Mode = Literal["corrected", "paper_compatible"]
Message = dict[str, str]
TEMPLATES = Path(__file__).parent / "templates"
PLACES = {"question", "first", "second"}
_SECTION = re.compile(r"^=== (system|user)\n", flags=re.MULTILINE)
# By these marks chat models keep turns apart; a server may read them in a text too, and take the rest for a new turn.
_CONTROL = re.compile(
    r"<\|[\w ]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:begin|end)▁of▁sentence>|</?think>"
)
INVISIBLE = "\u200b"


@dataclass(frozen=True)
class Protocol:
    """How a pair of answers is put before a language model, and how its reply is read.

    Attributes:
        mode: "corrected" shows the whole question, as the models saw it, and fences question and answers with a mark
            that none of them can hold. "paper_compatible" is the published prompt, letter by letter: markers that an
            answer may imitate, and the instruction without its input (which matters for Self-Instruct).
        reply: "text" for two scores on the first line, "json" for an object.
        template: a template file of one's own; None takes the mode's.
    """

    mode: Mode
    reply: ReplyFormat
    template: str | None

    def __post_init__(self) -> None:
        for name, allowed in (("mode", Mode), ("reply", ReplyFormat)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise UserError(f"judge.protocol.{name}={getattr(self, name)}: choose one of {choices}")
        if self.mode == "paper_compatible" and (self.reply == "json" or self.template is not None):
            raise UserError(
                "judge.protocol.mode=paper_compatible is the published prompt, which asks for text; set "
                "judge.protocol.reply=text and judge.protocol.template=null, or judge.protocol.mode=corrected"
            )
        _ = self._sections  # so that a broken template shows now

    def messages(self, prompt: Prompt, first: str, second: str, control: Sequence[str] = ()) -> list[Message]:
        """The conversation that asks for a judgement.

        Args:
            prompt: what was asked.
            first: the answer shown first.
            second: the answer shown second.
            control: further marks that would break a text out of its place, such as a tokenizer's special tokens.
        """
        if self.mode == "paper_compatible":
            shown = {"question": prompt.instruction, "first": first, "second": second}
        else:
            raw = {"question": prompt.question, "first": first, "second": second}
            shown = {name: _harmless(text, control) for name, text in raw.items()}
            shown["fence"] = fence(list(shown.values()))
        # One pass over the template: what an answer says is never looked at for places to fill.
        return [{"role": role, "content": _sendable(text.substitute(shown))} for role, text in self._sections]

    def ask_again(self, messages: Sequence[Message], reply: str) -> list[Message]:
        """The conversation continued after a reply without readable scores."""
        name = "again_json.txt" if self.reply == "json" else "again.txt"
        again = (TEMPLATES / name).read_text("utf-8").strip()
        # An empty turn is refused by some servers.
        said = reply.strip() or "(empty)"
        return [*messages, {"role": "assistant", "content": _sendable(said)}, {"role": "user", "content": again}]

    def read(self, reply: str) -> Scores | None:
        """The scores a reply gives, None if it gives none beyond doubt."""
        return parse_scores(reply, self.reply)

    @cached_property
    def _sections(self) -> list[tuple[str, Template]]:
        return _read_template(self._file, needs_fence=self.mode == "corrected")

    @property
    def _file(self) -> Path:
        if self.template is not None:
            return Path(self.template).expanduser()
        if self.mode == "paper_compatible":
            return TEMPLATES / "paper.txt"
        return TEMPLATES / ("fenced_json.txt" if self.reply == "json" else "fenced.txt")


def fence(texts: Sequence[str]) -> str:
    """A mark that no text holds or could have been written to hold.

    It is a digest of all texts: unforeseeable to whoever wrote one of them, and the same when the same pair is asked
    about again, so that a stored reply is found.
    """
    for count in range(100):
        mark = hashlib.sha256(json.dumps([*texts, count]).encode("utf-8", "surrogatepass")).hexdigest()[:20]
        if not any(mark in text for text in texts):
            return mark
    raise AssertionError("a hundred digests of a text stand in it")


def _harmless(text: str, control: Sequence[str]) -> str:
    """A text whose control marks are split by an invisible character, so that no server takes them for its own."""
    for mark in sorted(control, key=len, reverse=True):
        if len(mark) > 1:
            text = text.replace(mark, mark[0] + INVISIBLE + mark[1:])
    return _CONTROL.sub(lambda found: found[0][0] + INVISIBLE + found[0][1:], text)


def _sendable(text: str) -> str:
    """A text that can be sent: lone surrogates, which no encoding has, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_template(path: Path, needs_fence: bool) -> list[tuple[str, Template]]:
    """(role, text) of a template file: sections under the lines `=== system` and `=== user`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge.protocol.template={path}: cannot be read ({error}); give a text file") from error
    start, *parts = _SECTION.split(text)
    sections = [(role, Template(body.removesuffix("\n"))) for role, body in zip(parts[::2], parts[1::2], strict=True)]
    if start.strip() or not sections or sections[-1][0] != "user":
        raise UserError(f"{path}: a template has a line '=== user' (perhaps after '=== system') and its text below it")
    if not all(template.is_valid() for _, template in sections):
        raise UserError(f"{path}: a single $ stands in it; write $$ for a dollar sign")
    found = {name for _, template in sections for name in template.get_identifiers()}
    wanted = PLACES | ({"fence"} if needs_fence else set())
    if found != wanted:
        wrong = ", ".join(f"${name}" for name in sorted(found ^ wanted))
        names = ", ".join(f"${name}" for name in sorted(wanted))
        raise UserError(f"{path}: {wrong} missing or unknown; a template holds each of {names}")
    return sections
