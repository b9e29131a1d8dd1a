"""People as judge: the run waits on the rating page until enough of them have rated every pair."""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.rating_page import RatingSite, serving
from gradfiltering.judging.ratings import Pair, RatingStore, export_csv, import_csv, majority
from gradfiltering.judging.verdicts import HUMAN, Scores

SCORES: dict[str, Scores] = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}


@dataclass(frozen=True)
class Page:
    """Where people rate.

    Attributes:
        host: where to serve; 127.0.0.1 keeps the page on this machine.
        port: 0 takes a free one.
        password_variable: environment variable with the page's password; None draws one and prints it.
        open_to_all: no password at all.
    """

    host: str
    port: int
    password_variable: str | None
    open_to_all: bool

    def __post_init__(self) -> None:
        if self.open_to_all and self.password_variable is not None:
            raise UserError("judge.open_to_all=true and judge.password_variable exclude each other; give one of them")

    def password(self) -> str | None:
        """The password, None for a page without.

        Raises:
            UserError: the variable is not set.
        """
        if self.open_to_all:
            return None
        if self.password_variable is None:
            return secrets.token_urlsafe(9)
        if not (password := os.environ.get(self.password_variable, "")):
            raise UserError(f"judge=human: the environment variable {self.password_variable} is not set; set it, or "
                            "judge.password_variable=null for a password drawn by chance")  # fmt: skip
        return password


@dataclass(frozen=True)
class Sheets:
    """Ratings with other tools than the page.

    Attributes:
        export: write a sheet for each of these names instead of serving.
        filled: sheets to take over first.
        folder: where sheets are written.
    """

    export: Sequence[str]
    filled: Sequence[str]
    folder: str


class HumanJudge(Judge):
    """Serves a blind page and waits; what is rated already, in this run or an earlier one, is not asked for again.

    A pair's verdict is what most of its raters said. A person sees each pair once, in an order drawn by chance, so both
    orders of a verdict hold the same rating, mirrored.

    Args:
        ratings: SQLite file of all ratings.
        raters: how many people have to rate each pair.
        page: where they do.
        sheets: or how they do without.
        seed: of sides and orders.
    """

    name = HUMAN

    def __init__(self, ratings: str, raters: int, page: Page, sheets: Sheets, seed: int):
        if raters < 1:
            raise UserError(f"judge.raters is {raters}; it must be at least 1")
        self.ratings = Path(ratings)
        self.raters = raters
        self.page = page
        self.sheets = sheets
        self.seed = seed

    def prepare(self, prompts: Sequence[Prompt], questions: int, answer_tokens: int) -> None:
        """Refuses a password or a sheet that is not there."""
        self.page.password()
        for sheet in self._filled():
            if not sheet.is_file():
                raise UserError(f"judge.sheets: no such file: {sheet}")

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """The ratings of every pair, once there are enough; with `export`, of those there are."""
        if any(question.repeat for question in questions):
            raise UserError("judge=human takes several raters (judge.raters=) in place of judge.repeats; set that to 1")
        pairs = list({_pair(question): None for question in questions if question.order == 0})
        store = RatingStore(self.ratings, self.seed)
        try:
            for sheet in self._filled():
                import_csv(sheet, pairs, store)
            if self.sheets.export:
                self._write_sheets(pairs, store)
            else:
                self._wait(pairs, store)
            table = store.by_rater(pairs)
        finally:
            store.close()
        return [_reply(question, {rater: said.get(_pair(question).name) for rater, said in table.items()})
                for question in questions]  # fmt: skip

    def _write_sheets(self, pairs: Sequence[Pair], store: RatingStore) -> None:
        names, folder = self.sheets.export, Path(self.sheets.folder)
        for rater in names:
            export_csv(folder / f"ratings_{rater}.csv", pairs, store, rater)
        Console().print(f"judge=human: sheets for {', '.join(names)} in {folder}; take them over with "
                        "judge.sheets=[FILE,...]", highlight=False, soft_wrap=True)  # fmt: skip

    def _wait(self, pairs: Sequence[Pair], store: RatingStore) -> None:
        def complete() -> bool:
            said = store.by_rater(pairs).values()
            return all(sum(pair.name in labels for labels in said) >= self.raters for pair in pairs)

        if complete():
            return
        password = self.page.password()
        with serving(RatingSite(pairs, store, password), self.page.host, self.page.port) as url:
            words = "no password" if password is None else f"password {password}"
            if self.page.password_variable is not None:
                words = f"password in {self.page.password_variable}"
            Console().print(
                f"judge=human: {len(pairs)} pairs, {self.raters} rater(s) each, at {url} ({words}). Ctrl-C stops; "
                "ratings are kept, and a further run goes on from there", highlight=False, soft_wrap=True
            )  # fmt: skip
            while not complete():
                time.sleep(0.5)

    def _filled(self) -> list[Path]:
        return [Path(sheet).expanduser() for sheet in self.sheets.filled]


def _pair(question: Question) -> Pair:
    """The pair of a question, the candidate's answer first whatever the order."""
    first, second = (question.first, question.second) if question.order == 0 else (question.second, question.first)
    prompt = question.prompt
    return Pair(prompt.prompt_set, prompt.prompt_id, prompt.question, first, second)


def _reply(question: Question, said: dict[str, str | None]) -> Reply:
    labels = {rater: label for rater, label in said.items() if label is not None}
    text = json.dumps(labels, ensure_ascii=False)
    if not labels:
        return Reply(text, None)
    scores = SCORES[majority(list(labels.values()))]
    return Reply(text, scores if question.order == 0 else scores[::-1])
