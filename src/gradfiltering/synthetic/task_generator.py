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
Row = dict[str, str]

HELDOUT_SHARE = 0.1
EVALUATION_SHARE = 0.1
SENTENCES_PER_DOCUMENT = (4, 10)
WRONG_ANSWER_TRIES = 100
HARD_PROSE_WEIGHT = 0.2  # more would take time from what a small model can learn, and not teach it these

# No more words than a small model can tell apart within minutes.
_WORDS = (
    "lamp river stone cup bridge chair garden table cloud window ship boat farm horse tree king queen bird ring fox"
)


def _word_lists(family: str) -> tuple[Slots, ...]:
    rng = numpy_rng("task items", family)
    vocabulary = _WORDS.split()
    items = []
    for _ in range(LIST_ITEMS):
        words = [vocabulary[place] for place in rng.permutation(len(vocabulary))[: rng.integers(3, 5)]]
        items.append(
            {
                "words": ", ".join(words),
                "first": words[0],
                "second": words[1],
                "last": words[-1],
                "reversed": ", ".join(words[::-1]),
                "sorted": ", ".join(sorted(words)),
            }
        )
    return tuple(items)


def _pick_word() -> Family:
    def mistake(item: Slots, rng: np.random.Generator) -> Slots:
        words = item["words"].split(", ")
        wrong = {}
        for slot in ("first", "second", "last"):
            others = [word for word in words if word != item[slot]]
            wrong[slot] = others[int(rng.integers(len(others)))]
        return wrong

    return Family(
        name="pick_word",
        items=_word_lists("pick_word"),
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


def _reordered(slot: str) -> Mistake:
    """A mistake that brings the words of a list answer into another, wrong, order."""

    def mistake(item: Slots, rng: np.random.Generator) -> Slots:
        words = item[slot].split(", ")
        first, second = rng.permutation(len(words))[:2]
        words[first], words[second] = words[second], words[first]
        return {slot: ", ".join(words)}

    return mistake


def _reverse() -> Family:
    return Family(
        name="reverse",
        items=_word_lists("reverse"),
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
        name="alphabet",
        items=_word_lists("alphabet"),
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
    def mistake(item: Slots, rng: np.random.Generator) -> Slots:
        slips = (-20, -10, -2, -1, 1, 2, 10, 20)
        return {"sum": str(int(item["sum"]) + slips[int(rng.integers(len(slips)))])}

    rng = numpy_rng("task items", "addition")
    pairs = rng.permutation(90 * 90)[:LIST_ITEMS]
    return Family(
        name="addition",
        items=tuple(
            {"a": str(10 + pair // 90), "b": str(10 + pair % 90), "sum": str(20 + pair // 90 + pair % 90)}
            for pair in pairs
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
    names = NAMES
    things = ["ball", "kite", "hat", "boat", "book", "lamp", "cup", "ring"]
    colours = ["red", "yellow", "green", "black", "white", "brown"]
    rng = numpy_rng("task items", "reading")
    items = []
    for _ in range(LIST_ITEMS):
        name, name2 = (names[place] for place in rng.permutation(len(names))[:2])
        thing, thing2 = (things[place] for place in rng.permutation(len(things))[:2])
        colour, colour2 = (colours[place] for place in rng.permutation(len(colours))[:2])
        # "whose", "hue" and "what" are answers, so that a mistake can change them and leave the story as it is.
        story = f"{name} has a {colour} {thing} and {name2} has a {colour2} {thing2}."
        asked = (name, thing, colour) if rng.random() < 0.5 else (name2, thing2, colour2)
        other = (name2, thing2, colour2) if asked[0] == name else (name, thing, colour)
        items.append({"story": story, "name": asked[0], "thing": asked[1]})
        items[-1] |= {"whose": asked[0], "what": asked[1], "hue": asked[2]}
        items[-1] |= {"not_whose": other[0], "not_what": other[1], "not_hue": other[2]}

    def mistake(item: Slots, rng: np.random.Generator) -> Slots:
        if rng.random() < 0.5:  # the other one in the story is the mistake that reading in haste makes
            return {slot: item[f"not_{slot}"] for slot in ("whose", "what", "hue")}
        wrong = {}
        for slot, values in (("whose", names), ("what", things), ("hue", colours)):
            others = [value for value in values if value != item[slot]]
            wrong[slot] = others[int(rng.integers(len(others)))]
        return wrong

    return Family(
        name="reading",
        items=tuple(items),
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
    family.name: family for family in (*FACT_FAMILIES, _pick_word(), _reading(), _reverse(), _alphabet(), _addition())
}


def generate_rows(count: int, seed: int, split: Split) -> list[Row]:
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
    rows = []
    for place, name in enumerate(FAMILIES):
        pool = _rows(name)[split]
        quota = count // len(FAMILIES) + (place < count % len(FAMILIES))
        order = numpy_rng(seed, "tasks", split, name).permutation(len(pool))[:quota]
        rows += [dict(pool[index]) for index in order]
    return [rows[index] for index in numpy_rng(seed, "tasks", split).permutation(len(rows))]


def capacity(split: Split) -> int:
    """The most rows that `generate_rows` can give for a split."""
    return len(FAMILIES) * min(len(_rows(name)[split]) for name in FAMILIES)


def wrong_answer(row: Mapping[str, Any], rng: np.random.Generator) -> str:
    """A fluent answer of the right form and the wrong content to the question of a generated row.

    Raises:
        UserError: the row's prompt is not one of the bundled tasks.
    """
    found = _questions().get((row["instruction"], row["input"]))
    if found is None:
        raise UserError(
            f"the prompt {row['instruction']!r} with input {row['input']!r} is not one of the bundled tasks, "
            "so its wrong answer is unknown; use the generic rule for it"
        )
    family, item, form = found
    truth = form.output.format(**item)
    for _ in range(WRONG_ANSWER_TRIES):
        answer = form.output.format(**{**item, **_mistake(family, item, rng)})
        if answer not in (truth, row["output"]):
            return answer
    raise RuntimeError(f"family {family.name} found no wrong answer to {truth!r}")


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
    rng = numpy_rng(seed, "prose")
    families = list(FAMILIES.values())
    weights = np.array([family.prose_weight for family in families])
    documents = []
    written = 0
    while written < characters:
        # Two subjects a document: the facts of one are seen in the neighbourhood of others.
        subjects = [families[place] for place in rng.choice(len(families), size=2, p=weights / weights.sum())]
        sentences = []
        for draw in rng.random((int(rng.integers(*SENTENCES_PER_DOCUMENT)), 3)):
            family = subjects[int(draw[0] * 2)]
            items = _prose_items(family.name)
            template = family.prose[int(draw[1] * len(family.prose))]
            sentence = template.format(**items[int(draw[2] * len(items))])
            sentences.append(sentence[0].upper() + sentence[1:])
        documents.append(" ".join(sentences).replace("\n ", "\n").strip())
        written += len(documents[-1])
    return documents


def _split_of(family: Family, item_text: str) -> Split:
    share = derive_seed("task split", family.name, item_text) / 2**63
    if share < HELDOUT_SHARE:
        return "heldout"
    return "evaluation" if share < HELDOUT_SHARE + EVALUATION_SHARE else "train"


@cache
def _prose_items(name: str) -> list[Slots]:
    family = FAMILIES[name]
    return [item for item in family.items if family.shares_facts or _split_of(family, str(item)) == "train"]


@cache
def _rows(name: str) -> dict[Split, list[Row]]:
    """Every row of a family, by split."""
    family = FAMILIES[name]
    rows: dict[Split, list[Row]] = {split: [] for split in get_args(Split)}
    seen = set()
    for item in family.items:
        for form in family.forms:
            row = {"instruction": form.instruction.format(**item), "input": form.input.format(**item)}
            prompt = (row["instruction"], row["input"])
            if prompt in seen:  # a form that leaves out a slot of the item
                continue
            seen.add(prompt)
            split = _split_of(family, str(prompt) if family.shares_facts else str(item))
            rows[split].append({**row, "output": form.output.format(**item), "source": name})
    return rows


@cache
def _questions() -> dict[tuple[str, str], tuple[Family, Slots, Form]]:
    return {
        (form.instruction.format(**item), form.input.format(**item)): (family, item, form)
        for family in FAMILIES.values()
        for item in family.items
        for form in family.forms
    }


def _mistake(family: Family, item: Slots, rng: np.random.Generator) -> Slots:
    """Other values for the answer slots of an item."""
    if family.mistake is not None:
        return family.mistake(item, rng)
    wrong = {}
    for slot in family.answers:
        while (value := family.items[int(rng.integers(len(family.items)))][slot]) == item[slot]:
            pass
        wrong[slot] = value
    return wrong
