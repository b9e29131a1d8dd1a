"""Conversations with a language model that judges, however it is reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradfiltering.judging.base import Question, Reply
from gradfiltering.judging.judge_prompt import JudgePrompt, Message
from gradfiltering.options import PositiveInt, options


@options
class ConversationSettings:
    """Rules of the conversation about one question.

    Attributes:
        prompt: presents the question and reads replies.
        max_reply_tokens: longest reply.
        max_attempts: times a question is asked until its reply can be read.
        replies: SQLite file of all replies, so that none is asked for twice.
    """

    prompt: JudgePrompt
    max_reply_tokens: PositiveInt
    max_attempts: PositiveInt
    replies: str

    def start(self, question: Question, forbidden_marks: Sequence[str] = ()) -> "Conversation":
        """Open a question; `forbidden_marks` as in `JudgePrompt.render`."""
        return Conversation(question, self.prompt.render(question, forbidden_marks))

    def add_reply(self, conversation: "Conversation", reply_text: str) -> None:
        """Add a reply: one that can be read ends the question, and so does the last that cannot."""
        reply_scores = self.prompt.parse(reply_text)
        conversation.attempt += 1
        if reply_scores is not None or conversation.attempt >= self.max_attempts:
            conversation.final_reply = Reply(reply_text, reply_scores)
        else:
            conversation.messages = self.prompt.ask_again(conversation.messages, reply_text)


@dataclass
class Conversation:
    """State of one question.

    Attributes:
        question: the question.
        messages: messages to be sent next.
        attempt: replies so far.
        final_reply: the reply that ended it; None while it is open.
    """

    question: Question
    messages: list[Message]
    attempt: int = 0
    final_reply: Reply | None = None
