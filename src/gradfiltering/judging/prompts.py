"""Evaluation prompts: generated tasks, held-out rows, public sets, and a user's own file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gradfiltering.data.templates import Turn
from gradfiltering.errors import UserError
from gradfiltering.judging.json_lines import read_prompt_rows
from gradfiltering.options import NonNegativeInt, PositiveInt, options
from gradfiltering.seeding import numpy_rng

Rows = Sequence[Mapping[str, str]]

HELDOUT_SET = "heldout"
MOST_SOURCES = 12  # of held-out rows that are sets of prompts of their own; more would be too few prompts each


@dataclass(frozen=True)
class Prompt:
    """One question to the models.

    Attributes:
        prompt_set: name of the set it belongs to.
        prompt_id: its name within the set.
        instruction: the question itself.
        input: further context; empty when there is none.
        reference: a correct or good answer, where the set has one.
        system: the system turn before the question; empty when there is none.
    """

    prompt_set: str
    prompt_id: str
    instruction: str
    input: str
    reference: str | None
    system: str = ""

    @property
    def turn(self) -> Turn:
        """The question as a template renders it."""
        return Turn(self.instruction, self.input, "", self.system)

    @property
    def question(self) -> str:
        """System turn, instruction and input as one text, as a judge sees it."""
        return self.turn.question


class PromptLoader(Protocol):
    """A prompt set that can be loaded."""

    def load(self, heldout_rows: Rows | None) -> list[Prompt]:
        """Load the set's prompts.

        Args:
            heldout_rows: the training data's held-out rows under the keys instruction, input,
                output and, where they have a system turn or name a source, system and source; None
                without any.
        """


@options
class TaskPrompts:
    """Rows of a task generator that no training set holds, with their outputs as references.

    Attributes:
        generate: makes so many rows of a split, from a seed.
        rows: number of rows to generate.
        seed: seed of the generator.
        limit: most prompts to take; None takes all.
    """

    generate: Callable[..., Rows]
    rows: PositiveInt
    seed: NonNegativeInt
    limit: PositiveInt | None

    def load(self, heldout_rows: Rows | None) -> list[Prompt]:
        """Generate the prompts."""
        prompt_rows = self.generate(self.rows, self.seed, split="evaluation")
        return [
            _prompt_from_row("tasks", row_id, prompt_row) for row_id, prompt_row in enumerate(prompt_rows[: self.limit])
        ]


@options
class HeldoutPrompts:
    """Held-out rows of the training data that have an output, with it as the reference.

    Where the rows are of several sources, such as the tasks of a mixture, and of no more than 12, the
    prompts of each are a set of their own, so that metrics and winning scores are known of each.

    Attributes:
        rows: number of rows to draw; None takes all.
        seed: seed of the draw.
        limit: most prompts to take of those drawn; None takes all.
    """

    rows: PositiveInt | None
    seed: NonNegativeInt
    limit: PositiveInt | None

    def load(self, heldout_rows: Rows | None) -> list[Prompt]:
        """Draw the prompts, in the order of the rows; a prompt's id is its row's position.

        Raises:
            UserError: nothing is held out.
        """
        if not heldout_rows:
            raise UserError(
                "prompts from held-out rows need held-out rows with a question, and there are "
                "none: hold some out (a share, a file, or what a limit on the data leaves over), "
                "or choose other prompts"
            )
        row_ids: Iterable[int] = range(len(heldout_rows))
        if self.rows is not None and self.rows < len(heldout_rows):
            draw_generator = numpy_rng(self.seed, "eval", "heldout")
            row_ids = sorted(draw_generator.choice(len(heldout_rows), size=self.rows, replace=False).tolist())
        drawn_rows = [(row_id, heldout_rows[row_id]) for row_id in row_ids]
        source_names = {row.get("source") for row in heldout_rows}
        name_set = name_heldout_set if 1 < len(source_names) <= MOST_SOURCES else lambda _: HELDOUT_SET
        return [
            _prompt_from_row(name_set(heldout_row.get("source")), row_id, heldout_row)
            for row_id, heldout_row in drawn_rows[: self.limit]
        ]


@options
class PublicPrompts:
    """One of the public prompt sets, from a local file or downloaded.

    Attributes:
        name: name of the set, which names `<name>_test_set.jsonl` in a folder.
        path: a JSON Lines file, or a folder with that file in it; None downloads.
        url: address the file is downloaded from.
        prompt_field: field of the question. A dot steps into a field, a number into a list.
        input_field: field of the further context; None when the set has none.
        reference_field: field of the reference answer; None when the set has none.
        id_field: field of the prompt's id; None numbers the rows from 0.
        limit: most prompts to take; None takes all.
    """

    name: str
    path: str | None
    url: str
    prompt_field: str
    input_field: str | None
    reference_field: str | None
    id_field: str | None
    limit: PositiveInt | None

    def load(self, heldout_rows: Rows | None) -> list[Prompt]:
        """Read the set from `path` if given, else from `url` (kept in the cache of `datasets`).

        Raises:
            UserError: the file is missing, cannot be had, or lacks a field; the message names it.
        """
        file_name = f"{self.name}_test_set.jsonl"
        if self.path is None:
            file_origin, prompt_rows = self.url, self._download(file_name)
        else:
            file_path = Path(self.path).expanduser()
            file_path = file_path / file_name if file_path.is_dir() else file_path
            file_origin, prompt_rows = str(file_path), read_prompt_rows(file_path)
        prompts = [
            self._read_prompt(row_location, row_index, prompt_row)
            for row_index, (row_location, prompt_row) in enumerate(prompt_rows)
        ]
        return _check_ids(prompts, file_origin)[: self.limit]

    def _download(self, file_name: str) -> list[tuple[str, dict[str, Any]]]:
        # Imported here because it takes seconds, and a run with local prompts does without.
        import datasets

        try:
            prompt_rows = datasets.load_dataset("json", data_files=self.url, split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"cannot download the prompts {self.name} from {self.url}: {error}. Check the "
                f"connection, or give the path of a local copy or of a folder with {file_name}",
                owner=self,
                arguments=("path",),
            ) from error
        return [
            (f"{self.url}, line {line_number}", dict(prompt_row))
            for line_number, prompt_row in enumerate(prompt_rows, start=1)
        ]

    def _read_prompt(self, row_location: str, row_index: int, prompt_row: Mapping[str, Any]) -> Prompt:
        question_text = _read_question(row_location, prompt_row, self.prompt_field)
        reference_answer = (
            None if self.reference_field is None else _read_text(row_location, prompt_row, self.reference_field)
        )
        return Prompt(
            prompt_set=self.name,
            prompt_id=str(row_index)
            if self.id_field is None
            else str(_read_field(row_location, prompt_row, self.id_field)),
            instruction=question_text,
            input="" if self.input_field is None else _read_text(row_location, prompt_row, self.input_field),
            reference=reference_answer,
        )


@options
class FilePrompts:
    """Prompts from a user's own file: JSON Lines, a JSON array, csv or tsv.

    Each row holds the question under `instruction` (with an optional `input`) or `prompt`, and
    optionally a reference answer under `output` or `reference`. A row's id is its field `id`, or
    its position from 0.

    Attributes:
        path: path of the file.
        limit: most prompts to take; None takes all.
    """

    path: str | None
    limit: PositiveInt | None

    def load(self, heldout_rows: Rows | None) -> list[Prompt]:
        """Read the file.

        Raises:
            UserError: there is no such file, or a line is not a prompt; names file, line, field.
        """
        if self.path is None:
            raise UserError("prompts of your own need the path of a JSON Lines file", owner=self, arguments=("path",))
        file_path = Path(self.path).expanduser()
        prompts = [
            _read_own_prompt(row_location, row_index, prompt_row)
            for row_index, (row_location, prompt_row) in enumerate(read_prompt_rows(file_path))
        ]
        return _check_ids(prompts, str(file_path))[: self.limit]


def load_prompts(loaders: Iterable[PromptLoader], heldout_rows: Rows | None) -> list[Prompt]:
    """Load the prompts of all chosen sets, one set after the other."""
    return [prompt for loader in loaders for prompt in loader.load(heldout_rows)]


def name_heldout_set(source_name: str | None) -> str:
    """Name the set of the held-out rows of a source, None for those without."""
    return HELDOUT_SET if source_name is None else f"{HELDOUT_SET}_{source_name}"


def is_heldout_set(prompt_set: str) -> bool:
    """Return True for a set of held-out rows of the training data."""
    return prompt_set.partition("_")[0] == HELDOUT_SET


def _prompt_from_row(prompt_set: str, row_id: int, prompt_row: Mapping[str, str]) -> Prompt:
    return Prompt(
        prompt_set=prompt_set,
        prompt_id=str(row_id),
        instruction=prompt_row["instruction"],
        input=prompt_row["input"],
        reference=prompt_row["output"],
        system=prompt_row.get("system", ""),
    )


def _read_own_prompt(row_location: str, row_index: int, prompt_row: Mapping[str, Any]) -> Prompt:
    question_fields = [name for name in ("instruction", "prompt") if name in prompt_row]
    if len(question_fields) != 1:
        raise UserError(
            f"{row_location}: has {' and '.join(question_fields) or 'neither instruction nor prompt'} "
            f"(fields: {', '.join(prompt_row)}); give the question under exactly one of instruction, prompt"
        )
    reference_fields = [name for name in ("output", "reference") if prompt_row.get(name) is not None]
    if len(reference_fields) > 1:
        raise UserError(f"{row_location}: has both output and reference; give the reference answer under one of them")
    return Prompt(
        prompt_set="file",
        prompt_id=str(row_index if prompt_row.get("id") in (None, "") else prompt_row["id"]),
        instruction=_read_question(row_location, prompt_row, question_fields[0]),
        input=_read_text(row_location, prompt_row, "input") if prompt_row.get("input") is not None else "",
        reference=_read_text(row_location, prompt_row, reference_fields[0]) if reference_fields else None,
    )


def _read_question(row_location: str, prompt_row: Mapping[str, Any], field_path: str) -> str:
    question_text = _read_text(row_location, prompt_row, field_path)
    if not question_text.strip():
        raise UserError(f"{row_location}: {field_path} is empty; a prompt needs a question")
    return question_text


def _read_text(row_location: str, prompt_row: Mapping[str, Any], field_path: str) -> str:
    field_value = _read_field(row_location, prompt_row, field_path)
    if not isinstance(field_value, str):
        raise UserError(f"{row_location}: {field_path} is {field_value!r}; expected a text")
    return field_value


def _read_field(row_location: str, prompt_row: Mapping[str, Any], field_path: str) -> Any:
    field_value: Any = prompt_row
    for field_step in field_path.split("."):
        try:
            field_value = field_value[int(field_step)] if isinstance(field_value, list) else field_value[field_step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{row_location}: no field {field_path!r} (fields: {', '.join(prompt_row)}); is this the file of "
                "that prompt set?"
            ) from None
    return field_value


def _check_ids(prompts: list[Prompt], file_origin: str) -> list[Prompt]:
    if not prompts:
        raise UserError(f"{file_origin}: holds no prompts; give at least one line")
    seen_ids: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen_ids:
            raise UserError(f"{file_origin}: the id {prompt.prompt_id!r} stands on two lines; make the ids unique")
        seen_ids.add(prompt.prompt_id)
    return prompts
