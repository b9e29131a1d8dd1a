"""The words of a verdict, the same on screen, page and cards; of the form that `summary.json` has it in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradfiltering.reports.plan_table import format_seconds

USE_IT, DO_NOT_USE_IT = "use it", "do not use it"
# What a verdict means for who is to decide.
VERDICT_MEANINGS = {
    USE_IT: "Models trained on these rows beat models trained on as many random rows.",
    DO_NOT_USE_IT: "Training on these rows is worse than on as many random ones, or the selection means nothing.",
    "not tested": "Nobody knows yet if these rows are better than as many random ones.",
    "no difference shown": "These rows were tested, and random rows of the same number did about as well.",
}
# How a page colours a verdict: green where the use of the subset was tested and an advantage shown, and nowhere else.
VERDICT_CLASSES = {USE_IT: "good", DO_NOT_USE_IT: "bad"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a subset; as text, the sentence that screen, page and card show.

    Attributes:
        word: `use it`, `do not use it`, `no difference shown` or `not tested`.
        reasons: in words.
        seeds: number of seeds behind it.
        command: that would settle it; None where it stands, or where more seeds would change nothing.
        command_seconds: an estimate of its time; None where there is no command.
    """

    word: str
    reasons: tuple[str, ...]
    seeds: int
    command: str | None
    command_seconds: float | None

    @classmethod
    def from_json(cls, verdict: Mapping[str, Any]) -> "Verdict":
        """Take the verdict out of the form of `summary.json`."""
        return cls(
            word=verdict["verdict"],
            reasons=tuple(verdict["reasons"]),
            seeds=verdict["seeds"],
            command=verdict["command"],
            command_seconds=verdict["command_seconds"],
        )

    def __str__(self) -> str:
        return format_verdict({"verdict": self.word, "reasons": self.reasons})


def format_verdict(verdict: Mapping[str, Any]) -> str:
    """Write a verdict and its reasons as a sentence.

    An example: `Not tested: one seed alone; it takes 3 to tell a difference from chance`.
    """
    word = str(verdict["verdict"])
    return f"{word[0].upper()}{word[1:]}: {'; '.join(verdict['reasons'])}"


def format_command_time(verdict: Mapping[str, Any]) -> str | None:
    """Say how long the command takes that would settle a verdict; None where there is none."""
    if verdict.get("command") is None:
        return None
    seconds = verdict["command_seconds"]
    if seconds is None:
        return "time not known"
    if not verdict["command_seconds_are_all"]:
        return f"at least {format_seconds(seconds)}: training and judging of the models were not timed"
    return f"about {format_seconds(seconds)}"
