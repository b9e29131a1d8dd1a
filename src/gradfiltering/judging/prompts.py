"""Evaluation prompts: the bundled tasks, held-out rows, five public sets, and a user's own file.

Every loader has `load(heldout)`, so that a run can hold any mixture of them; only `HeldoutPrompts` looks at the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gradfiltering.errors import UserError
from gradfiltering.judging.jsonl import read_jsonl
from gradfiltering.models.templates import Turn
from gradfiltering.seeding import numpy_rng
from gradfiltering.synthetic.task_generator import generate_rows

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One question to the models.

    Attributes:
        prompt_set: name of the set it belongs to.
        prompt_id: its name within the set.
        instruction: what is asked.
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

    def load(self, heldout: Rows | None) -> list[Prompt]:
        """The set's prompts.

        Args:
            heldout: the training data's held-out rows under the keys instruction, input, output and, where they have a
                system turn, system; None without any.
        """


class TaskPrompts:
    """Rows of the bundled task generator that no training set holds.

    Args:
        rows: how many to generate.
        seed: of the generator.
        limit: take only the first so many; None takes all.
    """

    def __init__(self, rows: int, seed: int, limit: int | None):
        self.rows = _at_least_one("eval.sets.tasks.rows", rows)
        self.seed = seed
        self.limit = _limit(limit)

    def load(self, heldout: Rows | None) -> list[Prompt]:
        """Generate the prompts; each has a reference."""
        rows = generate_rows(self.rows, self.seed, split="evaluation")
        return _from_rows("tasks", list(enumerate(rows))[: self.limit])


class HeldoutPrompts:
    """Held-out rows of the training data, with their outputs as references; rows without an output are left out.

    Args:
        rows: how many to draw; None takes all.
        seed: of the draw.
        limit: take only the first so many of those drawn; None takes all.
    """

    def __init__(self, rows: int | None, seed: int, limit: int | None):
        self.rows = None if rows is None else _at_least_one("eval.sets.heldout.rows", rows)
        self.seed = seed
        self.limit = _limit(limit)

    def load(self, heldout: Rows | None) -> list[Prompt]:
        """Draw the prompts, in the order of the held-out rows; a prompt's id is its row's position.

        Raises:
            UserError: nothing is held out.
        """
        if not heldout:
            raise UserError(
                "eval=heldout needs held-out rows with a question, and there are none: these follow data.limit, "
                "so set data.limit below the file's length, or data.heldout.share=0.05, or data.heldout.path=FILE, or "
                "choose another eval"
            )
        positions: Iterable[int] = range(len(heldout))
        if self.rows is not None and self.rows < len(heldout):
            drawn = numpy_rng(self.seed, "eval", "heldout").choice(len(heldout), size=self.rows, replace=False)
            positions = sorted(int(position) for position in drawn)
        return _from_rows("heldout", [(position, heldout[position]) for position in positions][: self.limit])


class PublicPrompts:
    """One of the public prompt sets, from a local file or downloaded.

    Args:
        name: of the set; it names `<name>_test_set.jsonl` in a folder.
        path: a JSON Lines file, or a folder with that file in it; None downloads.
        url: where the file is downloaded from.
        prompt_field: field of the question. A dot steps into a field, a number into a list.
        input_field: field of the further context; None when the set has none.
        reference_field: field of the reference answer; None when the set has none.
        id_field: field of the prompt's id; None numbers the rows from 0.
        limit: take only the first so many; None takes all.
    """

    def __init__(
        self,
        name: str,
        path: str | None,
        url: str,
        prompt_field: str,
        input_field: str | None,
        reference_field: str | None,
        id_field: str | None,
        limit: int | None,
    ):
        self.name = name
        self.path = path
        self.url = url
        self.prompt_field = prompt_field
        self.input_field = input_field
        self.reference_field = reference_field
        self.id_field = id_field
        self.limit = _limit(limit)

    def load(self, heldout: Rows | None) -> list[Prompt]:
        """Read the set, from `path` if given, else from `url` (kept in the cache of `datasets`).

        Raises:
            UserError: the file is missing, cannot be had, or lacks a field; the message names it.
        """
        rows = list(self._downloaded() if self.path is None else read_jsonl(self._file(Path(self.path))))
        origin = self.url if self.path is None else str(self._file(Path(self.path)))
        prompts = [self._prompt(f"{origin}, line {line}", index, row) for index, (line, row) in enumerate(rows)]
        return _checked(prompts, origin)[: self.limit]

    def _file(self, path: Path) -> Path:
        path = path.expanduser()
        return path / f"{self.name}_test_set.jsonl" if path.is_dir() else path

    def _downloaded(self) -> list[tuple[int, dict[str, Any]]]:
        # Imported here because it takes seconds, and a run with local prompts does without.
        import datasets

        try:
            rows = datasets.load_dataset("json", data_files=self.url, split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"eval={self.name}: cannot download {self.url}: {error}. Check the connection, or give a local copy "
                f"with eval.path=FILE or a folder that holds {self.name}_test_set.jsonl"
            ) from error
        return [(number, dict(row)) for number, row in enumerate(rows, start=1)]

    def _prompt(self, where: str, index: int, row: Mapping[str, Any]) -> Prompt:
        instruction = _text(where, row, self.prompt_field)
        if not instruction.strip():
            raise UserError(f"{where}: {self.prompt_field} is empty; a prompt needs a question")
        return Prompt(
            prompt_set=self.name,
            prompt_id=str(index) if self.id_field is None else str(_field(where, row, self.id_field)),
            instruction=instruction,
            input="" if self.input_field is None else _text(where, row, self.input_field),
            reference=None if self.reference_field is None else _text(where, row, self.reference_field),
        )


class FilePrompts:
    """Prompts from a user's own JSON Lines file.

    Each line holds the question under `instruction` (with an optional `input`) or `prompt`, and optionally a reference
    answer under `output` or `reference`. A line's id is its field `id`, or its position from 0.

    Args:
        path: of the file.
        limit: take only the first so many; None takes all.
    """

    def __init__(self, path: str | None, limit: int | None):
        self.path = path
        self.limit = _limit(limit)

    def load(self, heldout: Rows | None) -> list[Prompt]:
        """Read the file.

        Raises:
            UserError: there is no such file, or a line is not a prompt; the message names file, line and field.
        """
        if self.path is None:
            raise UserError("eval=file needs a file of prompts; set eval.path=FILE (JSON Lines)")
        path = Path(self.path).expanduser()
        prompts = [
            _user_prompt(f"{path}, line {line}", index, row) for index, (line, row) in enumerate(read_jsonl(path))
        ]
        return _checked(prompts, str(path))[: self.limit]


def load_prompts(loaders: Iterable[PromptLoader], heldout: Rows | None) -> list[Prompt]:
    """The prompts of all chosen sets, one set after the other."""
    return [prompt for loader in loaders for prompt in loader.load(heldout)]


def _from_rows(prompt_set: str, rows: Iterable[tuple[int, Mapping[str, str]]]) -> list[Prompt]:
    return [
        Prompt(prompt_set, str(index), row["instruction"], row["input"], row["output"], row.get("system", ""))
        for index, row in rows
    ]


def _user_prompt(where: str, index: int, row: Mapping[str, Any]) -> Prompt:
    questions = [name for name in ("instruction", "prompt") if name in row]
    if len(questions) != 1:
        raise UserError(
            f"{where}: has {' and '.join(questions) or 'neither instruction nor prompt'} (fields: {', '.join(row)}); "
            "give the question under exactly one of instruction, prompt"
        )
    references = [name for name in ("output", "reference") if row.get(name) is not None]
    if len(references) > 1:
        raise UserError(f"{where}: has both output and reference; give the reference answer under one of them")
    instruction = _text(where, row, questions[0])
    if not instruction.strip():
        raise UserError(f"{where}: {questions[0]} is empty; a prompt needs a question")
    return Prompt(
        prompt_set="file",
        prompt_id=str(row.get("id", index)),
        instruction=instruction,
        input=_text(where, row, "input") if row.get("input") is not None else "",
        reference=_text(where, row, references[0]) if references else None,
    )


def _field(where: str, row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for step in path.split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{where}: no field {path!r} (fields: {', '.join(row)}); is this the file of that prompt set?"
            ) from None
    return value


def _text(where: str, row: Mapping[str, Any], path: str) -> str:
    value = _field(where, row, path)
    if not isinstance(value, str):
        raise UserError(f"{where}: {path} is {value!r}; expected a text")
    return value


def _checked(prompts: list[Prompt], origin: str) -> list[Prompt]:
    if not prompts:
        raise UserError(f"{origin}: holds no prompts; give at least one line")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise UserError(f"{origin}: the id {prompt.prompt_id!r} stands on two lines; make the ids unique")
        seen.add(prompt.prompt_id)
    return prompts


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1")
    return value


def _limit(limit: int | None) -> int | None:
    return None if limit is None else _at_least_one("eval.limit", limit)
