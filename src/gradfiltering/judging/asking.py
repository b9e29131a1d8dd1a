"""How a language model is asked, however it is reached, and where a question stands."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Question, Reply
from gradfiltering.judging.protocol import Message, Protocol


@dataclass(frozen=True)
class Asking:
    """What a language model is shown, and how often.

    Attributes:
        protocol: what is shown and how replies are read.
        max_reply_tokens: longest reply.
        asks: how often a question is asked until its reply can be read.
        replies: SQLite file of all replies, so that none is asked for twice.
    """

    protocol: Protocol
    max_reply_tokens: int
    asks: int
    replies: str

    def __post_init__(self) -> None:
        for name in ("max_reply_tokens", "asks"):
            if getattr(self, name) < 1:
                raise UserError(f"judge.{name}={getattr(self, name)}: it must be at least 1")

    def open(self, question: Question, control: Sequence[str] = ()) -> "Asked":
        """A question that has not been asked yet; `control` as in `Protocol.messages`."""
        return Asked(question, self.protocol.messages(question.prompt, question.first, question.second, control))

    def take(self, asked: "Asked", text: str) -> None:
        """A reply that can be read ends a question, and so does the last that cannot; else it is to be asked again."""
        scores = self.protocol.read(text)
        asked.attempt += 1
        if scores is not None or asked.attempt >= self.asks:
            asked.final = Reply(text, scores)
        else:
            asked.messages = self.protocol.ask_again(asked.messages, text)


@dataclass
class Asked:
    """Where a question stands.

    Attributes:
        question: what is asked.
        messages: to be sent next.
        attempt: replies so far.
        final: the reply that ended it; None while it is open.
    """

    question: Question
    messages: list[Message]
    attempt: int = 0
    final: Reply | None = None
