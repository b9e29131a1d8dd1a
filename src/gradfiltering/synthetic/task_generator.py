"""The bundled data: instruction rows with known right answers, and the prose that a small model learns them from."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.synthetic.task_families import FAMILIES, Family, Form, Slots

Split = Literal["train", "heldout", "evaluation"]
TaskRow = dict[str, str]

HELDOUT_SHARE = 0.1
EVALUATION_SHARE = 0.1
SENTENCES_PER_DOCUMENT = (4, 10)
WRONG_ANSWER_TRIES = 100


def generate_rows(count: int, seed: int, split: Split) -> list[TaskRow]:
    """Rows with right answers, evenly from all families, in shuffled order.

    Args:
        count: how many.
        seed: decides which rows of the split, and their order.
        split: no prompt stands in two splits, whatever the seeds.

    Returns:
        Rows with `instruction`, `input` (may be empty), `output` and `source`, the family's name. Prompts are distinct.

    Raises:
        UserError: the split does not hold that many rows, or there is no such split.
    """
    if split not in get_args(Split):
        raise UserError(f"the bundled tasks have no split {split!r}; the splits are {', '.join(get_args(Split))}")
    if not 0 <= count <= capacity(split):
        raise UserError(
            f"{count} rows of the bundled tasks were asked for; split {split} holds 0 to {capacity(split)}, "
            "so choose a number in this range"
        )
    task_rows = []
    for family_index, family_name in enumerate(FAMILIES):
        split_rows = _rows(family_name)[split]
        family_quota = count // len(FAMILIES) + (family_index < count % len(FAMILIES))
        row_order = numpy_rng(seed, "tasks", split, family_name).permutation(len(split_rows))[:family_quota]
        task_rows += [dict(split_rows[row_index]) for row_index in row_order]
    return [task_rows[row_index] for row_index in numpy_rng(seed, "tasks", split).permutation(len(task_rows))]


def capacity(split: Split) -> int:
    """The most rows that `generate_rows` can give for a split."""
    return len(FAMILIES) * min(len(_rows(family_name)[split]) for family_name in FAMILIES)


def wrong_answer(row: Mapping[str, Any], generator: np.random.Generator) -> str:
    """A fluent answer of the right form and the wrong content to the question of a generated row.

    Raises:
        UserError: the row's prompt is not one of the bundled tasks.
    """
    question = _all_questions().get((row["instruction"], row["input"]))
    if question is None:
        raise UserError(
            f"the prompt {row['instruction']!r} with input {row['input']!r} is not one of the bundled tasks, "
            "so its wrong answer is unknown; use the generic rule for it"
        )
    family, item, form = question
    right_answer = form.output.format(**item)
    for _ in range(WRONG_ANSWER_TRIES):
        altered_answer = form.output.format(**{**item, **family.alter_answers(item, generator)})
        if altered_answer not in (right_answer, row["output"]):
            return altered_answer
    raise RuntimeError(f"family {family.family_name} found no wrong answer to {right_answer!r}")


def prose(characters: int, seed: int) -> list[str]:
    """Plain English that teaches the families' facts and skills, as the web teaches a real model.

    Args:
        characters: about how many characters in all.
        seed: decides the text.

    Returns:
        Documents of several sentences, among them quiz lines whose answers stand on a line of their own, so that words
        are also seen without a blank before them. What the skill families' held-out and evaluation rows ask is not
        worked out in any of them.
    """
    generator = numpy_rng(seed, "prose")
    families = list(FAMILIES.values())
    weights = np.array([family.prose_weight for family in families])
    documents: list[str] = []
    characters_written = 0
    while characters_written < characters:
        # Two subjects a document: the facts of one are seen in the neighbourhood of others.
        subjects = generator.choice(len(families), size=2, p=weights / weights.sum())
        sentences = []
        for subject_draw, sentence_draw, item_draw in generator.random(
            (int(generator.integers(*SENTENCES_PER_DOCUMENT)), 3)
        ):
            family = families[subjects[int(subject_draw * 2)]]
            items = _prose_items(family.family_name)
            template = family.prose[int(sentence_draw * len(family.prose))]
            sentence = template.format(**items[int(item_draw * len(items))])
            sentences.append(sentence[0].upper() + sentence[1:])
        documents.append(" ".join(sentences).replace("\n ", "\n").strip())
        characters_written += len(documents[-1])
    return documents


def _split_of(family: Family, text: str) -> Split:
    split_share = derive_seed("task split", family.family_name, text) / 2**63
    if split_share < HELDOUT_SHARE:
        return "heldout"
    return "evaluation" if split_share < HELDOUT_SHARE + EVALUATION_SHARE else "train"


@cache
def _prose_items(family_name: str) -> list[Slots]:
    family = FAMILIES[family_name]
    return [item for item in family.fact_items if family.shares_facts or _split_of(family, str(item)) == "train"]


@cache
def _questions(family_name: str) -> dict[tuple[str, str], tuple[Family, Slots, Form]]:
    """Collect every question of a family by instruction and input; a form may leave out a slot that items differ in."""
    family = FAMILIES[family_name]
    return {
        (form.instruction.format(**item), form.input.format(**item)): (family, item, form)
        for item in family.fact_items
        for form in family.forms
    }


@cache
def _all_questions() -> dict[tuple[str, str], tuple[Family, Slots, Form]]:
    return {prompt: question for name in FAMILIES for prompt, question in _questions(name).items()}


@cache
def _rows(family_name: str) -> dict[Split, list[TaskRow]]:
    """Every row of a family, by split."""
    split_rows: dict[Split, list[TaskRow]] = {split: [] for split in get_args(Split)}
    for prompt, (family, item, form) in _questions(family_name).items():
        split = _split_of(family, str(prompt if family.shares_facts else item))
        row = {"instruction": prompt[0], "input": prompt[1], "output": form.output.format(**item)}
        split_rows[split].append({**row, "source": family_name})
    return split_rows
