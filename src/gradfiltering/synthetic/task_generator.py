"""The bundled data: instruction rows with known right answers, and the prose that a small model learns them from.

Seeded code without files. Most families ask for facts that the prose teaches; the others ask for something to be worked
out from the prompt, which a small model finds hard, so that losses and gradients are as uneven as on real data.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.synthetic.task_families import FACT_FAMILIES, LIST_ITEMS, NAMES, Family, Form, Mistake, Slots

Split = Literal["train", "heldout", "evaluation"]
TaskRow = dict[str, str]

HELDOUT_SHARE = 0.1
EVALUATION_SHARE = 0.1
SENTENCES_PER_DOCUMENT = (4, 10)
WRONG_ANSWER_TRIES = 100
HARD_PROSE_WEIGHT = 0.2  # more would take time from what a small model can learn, and not teach it these

# No more words than a small model can tell apart within minutes.
_WORDS = (
    "lamp river stone cup bridge chair garden table cloud window ship boat farm horse tree king queen bird ring fox"
)


def _word_lists(skill_family: str) -> tuple[Slots, ...]:
    generator = numpy_rng("task items", skill_family)
    word_vocabulary = _WORDS.split()
    fact_items = []
    for _ in range(LIST_ITEMS):
        list_words = [
            word_vocabulary[family_index]
            for family_index in generator.permutation(len(word_vocabulary))[: generator.integers(3, 5)]
        ]
        fact_items.append(
            {
                "words": ", ".join(list_words),
                "first": list_words[0],
                "second": list_words[1],
                "last": list_words[-1],
                "reversed": ", ".join(list_words[::-1]),
                "sorted": ", ".join(sorted(list_words)),
            }
        )
    return tuple(fact_items)


def _pick_word() -> Family:
    def mistake(fact_item: Slots, generator: np.random.Generator) -> Slots:
        list_words = fact_item["words"].split(", ")
        wrong_slots = {}
        for answer_slot in ("first", "second", "last"):
            other_values = [list_word for list_word in list_words if list_word != fact_item[answer_slot]]
            wrong_slots[answer_slot] = other_values[int(generator.integers(len(other_values)))]
        return wrong_slots

    return Family(
        family_name="pick_word",
        fact_items=_word_lists("pick_word"),
        forms=(
            Form("Which word comes first in the list?", "{words}", "{first}"),
            Form("Name the last word of the list.", "{words}", "{last}"),
            Form("Find the second word below.", "{words}", "The second word is {second}."),
            Form("Give the first and the last of the words {words}.", "", "The first is {first}, the last is {last}."),
        ),
        answers=("first", "second", "last"),
        prose=(
            "The list {words} has the first word {first}, the second word {second} and the last word {last}.",
            "In the list {words} the first word is {first} and the last word is {last}.",
            "Remember this list: {words}. Now say it again: {words}.",
            "Here is a list: {words}. Which word comes first? {first}.",
            "Here is a list: {words}. Which word comes last? {last}.",
            "First of {words}?\n{first}\n",
            "Last of {words}?\n{last}\n",
        ),
        shares_facts=False,
        mistake=mistake,
    )


def _reordered(answer_slot: str) -> Mistake:
    """A mistake that brings the words of a list answer into another, wrong, order."""

    def mistake(fact_item: Slots, generator: np.random.Generator) -> Slots:
        list_words = fact_item[answer_slot].split(", ")
        first_index, second_index = generator.permutation(len(list_words))[:2]
        list_words[first_index], list_words[second_index] = list_words[second_index], list_words[first_index]
        return {answer_slot: ", ".join(list_words)}

    return mistake


def _reverse() -> Family:
    return Family(
        family_name="reverse",
        fact_items=_word_lists("reverse"),
        forms=(
            Form("Write the words in reverse order.", "{words}", "{reversed}"),
            Form("Turn the list round, so that its last word stands first.", "{words}", "{reversed}"),
            Form("Read this list from the back: {words}.", "", "From the back it reads {reversed}."),
        ),
        answers=("reversed",),
        prose=("The list {words} becomes {reversed} when it is turned round.", "Backwards, {words} reads {reversed}."),
        shares_facts=False,
        mistake=_reordered("reversed"),
        prose_weight=HARD_PROSE_WEIGHT,
    )


def _alphabet() -> Family:
    return Family(
        family_name="alphabet",
        fact_items=_word_lists("alphabet"),
        forms=(
            Form("Sort these words by the alphabet.", "{words}", "{sorted}"),
            Form("Put the list into alphabetical order.", "{words}", "{sorted}"),
            Form("How would a dictionary order the words {words}?", "", "A dictionary has {sorted}."),
        ),
        answers=("sorted",),
        prose=("In alphabetical order, {words} are {sorted}.", "A dictionary lists {words} as {sorted}."),
        shares_facts=False,
        mistake=_reordered("sorted"),
        prose_weight=HARD_PROSE_WEIGHT,
    )


def _addition() -> Family:
    def mistake(fact_item: Slots, generator: np.random.Generator) -> Slots:
        sum_errors = (-20, -10, -2, -1, 1, 2, 10, 20)
        return {"sum": str(int(fact_item["sum"]) + sum_errors[int(generator.integers(len(sum_errors)))])}

    generator = numpy_rng("task items", "addition")
    number_pairs = generator.permutation(90 * 90)[:LIST_ITEMS]
    return Family(
        family_name="addition",
        fact_items=tuple(
            {
                "a": str(10 + number_pair // 90),
                "b": str(10 + number_pair % 90),
                "sum": str(20 + number_pair // 90 + number_pair % 90),
            }
            for number_pair in number_pairs
        ),
        forms=(
            Form("Work out the sum.", "{a} + {b}", "{sum}"),
            Form("How much is {a} and {b} together?", "", "{a} plus {b} is {sum}."),
            Form("Add the second number to the first.", "{a}, {b}", "The sum is {sum}."),
            Form("Someone has {a} coins and finds {b} more. How many are there now?", "", "{sum} coins"),
        ),
        answers=("sum",),
        prose=("The sum of {a} and {b} is {sum}.", "What is {a} + {b}? It is {sum}.", "{a} plus {b} is {sum}."),
        shares_facts=False,
        mistake=mistake,
        prose_weight=HARD_PROSE_WEIGHT,
    )


def _reading() -> Family:
    person_names = NAMES
    thing_names = ["ball", "kite", "hat", "boat", "book", "lamp", "cup", "ring"]
    colour_names = ["red", "yellow", "green", "black", "white", "brown"]
    generator = numpy_rng("task items", "reading")
    fact_items = []
    for _ in range(LIST_ITEMS):
        family_name, other_name = (
            person_names[family_index] for family_index in generator.permutation(len(person_names))[:2]
        )
        thing_name, other_thing = (
            thing_names[family_index] for family_index in generator.permutation(len(thing_names))[:2]
        )
        thing_colour, other_colour = (
            colour_names[family_index] for family_index in generator.permutation(len(colour_names))[:2]
        )
        # "whose", "hue" and "what" are answers, so that a mistake can change them and leave the story as it is.
        story_text = (
            f"{family_name} has a {thing_colour} {thing_name} and {other_name} has a {other_colour} {other_thing}."
        )
        asked_person = (
            (family_name, thing_name, thing_colour)
            if generator.random() < 0.5
            else (other_name, other_thing, other_colour)
        )
        other_person = (
            (other_name, other_thing, other_colour)
            if asked_person[0] == family_name
            else (family_name, thing_name, thing_colour)
        )
        fact_items.append({"story": story_text, "name": asked_person[0], "thing": asked_person[1]})
        fact_items[-1] |= {"whose": asked_person[0], "what": asked_person[1], "hue": asked_person[2]}
        fact_items[-1] |= {"not_whose": other_person[0], "not_what": other_person[1], "not_hue": other_person[2]}

    def mistake(fact_item: Slots, generator: np.random.Generator) -> Slots:
        if generator.random() < 0.5:  # the other one in the story is the mistake that reading in haste makes
            return {answer_slot: fact_item[f"not_{answer_slot}"] for answer_slot in ("whose", "what", "hue")}
        wrong_slots = {}
        for answer_slot, values in (("whose", person_names), ("what", thing_names), ("hue", colour_names)):
            other_values = [slot_value for slot_value in values if slot_value != fact_item[answer_slot]]
            wrong_slots[answer_slot] = other_values[int(generator.integers(len(other_values)))]
        return wrong_slots

    return Family(
        family_name="reading",
        fact_items=tuple(fact_items),
        forms=(
            Form("Who has the {thing}?", "{story}", "{whose}"),
            Form("Which colour is the {thing} in the story?", "{story}", "The {thing} is {hue}."),
            Form("Tell me what {name} has.", "{story}", "{name} has a {hue} {what}."),
        ),
        answers=("whose", "what", "hue"),
        prose=(
            "{story} Who has the {thing}? {whose} has it.",
            "{story} What has {name}? {name} has a {hue} {what}.",
            "{story} The {thing} is {hue} and belongs to {whose}.",
        ),
        shares_facts=False,
        mistake=mistake,
    )


FAMILIES: dict[str, Family] = {
    skill_family.family_name: skill_family
    for skill_family in (*FACT_FAMILIES, _pick_word(), _reading(), _reverse(), _alphabet(), _addition())
}


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
    known_question = _questions().get((row["instruction"], row["input"]))
    if known_question is None:
        raise UserError(
            f"the prompt {row['instruction']!r} with input {row['input']!r} is not one of the bundled tasks, "
            "so its wrong answer is unknown; use the generic rule for it"
        )
    skill_family, fact_item, question_form = known_question
    right_answer = question_form.output.format(**fact_item)
    for _ in range(WRONG_ANSWER_TRIES):
        wrong_answer_text = question_form.output.format(**{**fact_item, **_mistake(skill_family, fact_item, generator)})
        if wrong_answer_text not in (right_answer, row["output"]):
            return wrong_answer_text
    raise RuntimeError(f"family {skill_family.family_name} found no wrong answer to {right_answer!r}")


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
    skill_families = list(FAMILIES.values())
    family_weights = np.array([skill_family.prose_weight for skill_family in skill_families])
    prose_documents = []
    characters_written = 0
    while characters_written < characters:
        # Two subjects a document: the facts of one are seen in the neighbourhood of others.
        document_subjects = [
            skill_families[family_index]
            for family_index in generator.choice(len(skill_families), size=2, p=family_weights / family_weights.sum())
        ]
        sentences = []
        for random_draw in generator.random((int(generator.integers(*SENTENCES_PER_DOCUMENT)), 3)):
            skill_family = document_subjects[int(random_draw[0] * 2)]
            fact_items = _prose_items(skill_family.family_name)
            sentence_template = skill_family.prose[int(random_draw[1] * len(skill_family.prose))]
            sentence_text = sentence_template.format(**fact_items[int(random_draw[2] * len(fact_items))])
            sentences.append(sentence_text[0].upper() + sentence_text[1:])
        prose_documents.append(" ".join(sentences).replace("\n ", "\n").strip())
        characters_written += len(prose_documents[-1])
    return prose_documents


def _split_of(skill_family: Family, item_text: str) -> Split:
    split_share = derive_seed("task split", skill_family.family_name, item_text) / 2**63
    if split_share < HELDOUT_SHARE:
        return "heldout"
    return "evaluation" if split_share < HELDOUT_SHARE + EVALUATION_SHARE else "train"


@cache
def _prose_items(family_name: str) -> list[Slots]:
    skill_family = FAMILIES[family_name]
    return [
        fact_item
        for fact_item in skill_family.fact_items
        if skill_family.shares_facts or _split_of(skill_family, str(fact_item)) == "train"
    ]


@cache
def _rows(family_name: str) -> dict[Split, list[TaskRow]]:
    """Every row of a family, by split."""
    skill_family = FAMILIES[family_name]
    task_rows: dict[Split, list[TaskRow]] = {split: [] for split in get_args(Split)}
    seen_prompts = set()
    for fact_item in skill_family.fact_items:
        for question_form in skill_family.forms:
            row = {
                "instruction": question_form.instruction.format(**fact_item),
                "input": question_form.input.format(**fact_item),
            }
            prompt_key = (row["instruction"], row["input"])
            if prompt_key in seen_prompts:  # a form that leaves out a slot of the item
                continue
            seen_prompts.add(prompt_key)
            split = _split_of(skill_family, str(prompt_key) if skill_family.shares_facts else str(fact_item))
            task_rows[split].append({**row, "output": question_form.output.format(**fact_item), "source": family_name})
    return task_rows


@cache
def _questions() -> dict[tuple[str, str], tuple[Family, Slots, Form]]:
    return {
        (question_form.instruction.format(**fact_item), question_form.input.format(**fact_item)): (
            skill_family,
            fact_item,
            question_form,
        )
        for skill_family in FAMILIES.values()
        for fact_item in skill_family.fact_items
        for question_form in skill_family.forms
    }


def _mistake(skill_family: Family, fact_item: Slots, generator: np.random.Generator) -> Slots:
    """Other values for the answer slots of an item."""
    if skill_family.mistake is not None:
        return skill_family.mistake(fact_item, generator)
    wrong_slots = {}
    for answer_slot in skill_family.answers:
        while (
            slot_value := skill_family.fact_items[int(generator.integers(len(skill_family.fact_items)))][answer_slot]
        ) == fact_item[answer_slot]:
            pass
        wrong_slots[answer_slot] = slot_value
    return wrong_slots
