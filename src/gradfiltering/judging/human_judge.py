"""People as judge: the run waits on the rating page until enough of them have rated every pair."""

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from annotated_types import Ge, Le

from gradfiltering.errors import UserError, attributed_to
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.page_server import open_socket, serve
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.rating_page import RatingPage
from gradfiltering.judging.ratings import AnswerPair, RatingStore, import_sheet, majority_label, write_sheet
from gradfiltering.judging.verdicts import HUMAN, Scores
from gradfiltering.options import NonNegativeInt, PositiveInt, model_validator, options
from gradfiltering.runs.logs import screen

SCORES_OF_LABEL: dict[str, Scores] = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}


@options
class PageSettings:
    """Address and access of the rating page.

    Attributes:
        host: network interface to serve on; 127.0.0.1 keeps the page on this machine.
        port: port, at most 65535; 0 takes a free one.
        host_names: further names by which raters reach the page, such as that of a server with TLS before it. Requests
            under other names are refused.
        password_variable: environment variable with the page's password; None draws a password and
            prints it.
        open_to_all: serve without a password.
    """

    host: str
    port: Annotated[int, Ge(0), Le(65535)]
    host_names: Sequence[str]
    password_variable: str | None
    open_to_all: bool

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if not self.host.strip():
            raise UserError(
                "the host is empty, which would open the page to the network; give 127.0.0.1, or 0.0.0.0 to do so",
                owner=self,
                arguments=("host",),
            )
        if self.open_to_all and self.password_variable is not None:
            raise UserError(
                "open_to_all and password_variable exclude each other; give one of them",
                owner=self,
                arguments=("open_to_all", "password_variable"),
            )
        return self

    def choose_password(self) -> str | None:
        """Return the password, None for a page without.

        Raises:
            UserError: the variable is not set.
        """
        if self.open_to_all:
            return None
        if self.password_variable is None:
            return secrets.token_urlsafe(9)
        page_password = os.environ.get(self.password_variable, "")
        if not page_password:
            raise UserError(
                f"the environment variable {self.password_variable} with the page's password is "
                "not set; set it, or name none for a password drawn by chance",
                owner=self,
                arguments=("password_variable",),
            )
        return page_password


@options
class HumanJudge(Judge):
    """Serves a blind page and waits; what is rated already, in any run, is not asked for again.

    A pair's verdict is what most of its raters said. A person sees each pair once, in an order
    drawn by chance, so both orders of a verdict hold the same rating, mirrored.

    Attributes:
        ratings: SQLite file of all ratings.
        raters: people that have to rate each pair.
        page: address and access of the rating page.
        sheets: filled sheets of ratings to take over first.
        export: names of raters to write a sheet for, instead of serving the page.
        export_folder: folder that these sheets are written to.
        seed: seed of sides and orders.
    """

    name = HUMAN
    ratings: str
    raters: PositiveInt
    page: PageSettings
    sheets: Sequence[str]
    export: Sequence[str]
    export_folder: str
    seed: NonNegativeInt

    def check_feasible(self, prompts: Sequence[Prompt], questions_per_prompt: int, max_answer_tokens: int) -> None:
        """Refuse a password or a sheet that is not there, a sheet without a file name, and an address that is taken."""
        self.page.choose_password()
        for rater in self.export:
            if not rater.strip() or not rater.isprintable() or set(rater) & set("/\\"):
                raise UserError(
                    f"{rater!r} cannot be part of a file's name; give a rater's name without slashes",
                    owner=self,
                    arguments=("export",),
                )
        if not self.export:
            with attributed_to(self.page, "host", "port"):
                open_socket(self.page.host, self.page.port).close()
        for sheet_path in self._sheet_paths():
            if not sheet_path.is_file():
                raise UserError(f"no such file of ratings: {sheet_path}", owner=self, arguments=("sheets",))

    def answer_questions(self, questions: Sequence[Question]) -> list[Reply]:
        """Return the ratings of every pair, once there are enough; with `export`, those so far."""
        if any(judge_question.repeat for judge_question in questions):
            raise UserError(
                "the human judge takes several raters in place of repeats; set repeats to 1",
                owner=self,
                arguments=("raters",),
            )
        pairs = list(
            dict.fromkeys(_make_pair(judge_question) for judge_question in questions if judge_question.order == 0)
        )
        rating_store = RatingStore(Path(self.ratings), self.seed)
        try:
            for sheet_path in self._sheet_paths():
                import_sheet(sheet_path, pairs, rating_store)
            if self.export:
                self._write_sheets(pairs, rating_store)
            else:
                self._wait_for_raters(pairs, rating_store)
            labels_by_rater = rating_store.labels_by_rater(pairs)
        finally:
            rating_store.close()
        return [_make_reply(judge_question, labels_by_rater) for judge_question in questions]

    def _sheet_paths(self) -> list[Path]:
        return [Path(sheet).expanduser() for sheet in self.sheets]

    def _write_sheets(self, pairs: Sequence[AnswerPair], rating_store: RatingStore) -> None:
        sheet_folder = Path(self.export_folder)
        for rater in self.export:
            write_sheet(sheet_folder / f"ratings_{rater}.csv", pairs, rating_store, rater)
        screen().print(
            f"judge={self.name}: sheets for {', '.join(self.export)} in {sheet_folder}; take them "
            "over with judge.sheets=[FILE,...]",
            markup=False,
        )

    def _wait_for_raters(self, pairs: Sequence[AnswerPair], rating_store: RatingStore) -> None:
        def is_complete() -> bool:
            all_labels = rating_store.labels_by_rater(pairs).values()
            return all(sum(pair.pair_id in pair_labels for pair_labels in all_labels) >= self.raters for pair in pairs)

        if is_complete():
            return
        rating_store.check_writable()
        page_password = self.page.choose_password()
        rating_page = RatingPage(pairs, rating_store, page_password, self.page.host, self.page.host_names)
        with (
            attributed_to(self.page, "host", "port"),
            serve(rating_page.application, self.page.host, self.page.port) as page_url,
        ):
            access_text = "no password" if page_password is None else f"password {page_password}"
            if self.page.password_variable is not None:
                access_text = f"password in {self.page.password_variable}"
            screen().print(
                f"Progress and agreement, for you alone: {page_url}{rating_page.organiser_path}", markup=False
            )
            screen().print(
                f"judge={self.name}: {len(pairs)} pairs, {self.raters} rater(s) each, at {page_url} "
                f"({access_text}). Ctrl-C stops; ratings are kept, and a further run goes on from there",
                markup=False,
            )
            while not is_complete():
                time.sleep(0.5)


def _make_pair(judge_question: Question) -> AnswerPair:
    """Make the pair of a question, the candidate's answer first whatever the order."""
    answers = [judge_question.first_answer, judge_question.second_answer]
    first, second = answers if judge_question.order == 0 else answers[::-1]
    eval_prompt = judge_question.prompt
    return AnswerPair(eval_prompt.prompt_set, eval_prompt.prompt_id, eval_prompt.question, first, second)


def _make_reply(judge_question: Question, labels_by_rater: Mapping[str, Mapping[str, str]]) -> Reply:
    pair_id = _make_pair(judge_question).pair_id
    pair_labels = {
        rater: rater_labels[pair_id] for rater, rater_labels in labels_by_rater.items() if pair_id in rater_labels
    }
    label_text = json.dumps(pair_labels, ensure_ascii=False)
    if not pair_labels:
        return Reply(label_text, None)
    pair_scores = SCORES_OF_LABEL[majority_label(list(pair_labels.values()))]
    return Reply(label_text, pair_scores if judge_question.order == 0 else pair_scores[::-1])
