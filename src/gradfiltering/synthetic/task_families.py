"""The skill families of the bundled data: what their questions ask about, and how wrong answers to them come about.

Facts and wordings are in `task_families.yaml`. Most families ask for facts that the prose teaches; the others ask for
something to be worked out from the prompt, which a small model finds hard, so that losses and gradients are as uneven
as on real data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from gradfiltering.seeding import numpy_rng

Slots = dict[str, str]
Mistake = Callable[[Slots, np.random.Generator], Slots]

NAMES = ("Anna", "Tom", "Mia", "Ben", "Rosa", "Carl", "Ella", "Hugo", "Nora", "Leo", "Ida", "Max")
# No more words than a small model can tell apart within minutes.
WORDS = (
    "lamp", "river", "stone", "cup", "bridge", "chair", "garden", "table", "cloud", "window", "ship", "boat", "farm",
    "horse", "tree", "king", "queen", "bird", "ring", "fox",
)  # fmt: skip
THINGS = ("ball", "kite", "hat", "boat", "book", "lamp", "cup", "ring")
COLOURS = ("red", "yellow", "green", "black", "white", "brown")
SUM_ERRORS = (-20, -10, -2, -1, 1, 2, 10, 20)
VARIANTS = 12  # of each fact's neighbours and names: what makes a few facts fill hundreds of prompts
PARTNER_STEP = 5  # shares no divisor with the number of facts in any family, so that partners differ
LIST_ITEMS = 500  # word lists, sums and stories per family; with the wordings, room for thousands of distinct rows


@dataclass(frozen=True)
class Form:
    """One wording of a question: templates that the slots of an item fill."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Family:
    """One skill.

    Attributes:
        family_name: a row's `source`.
        fact_items: what can be asked about; each fills the slots of forms and prose.
        forms: the wordings.
        answers: the slots that hold answers; a wrong answer is the form's output with these altered.
        prose: sentences that teach the skill.
        prose_weight: how often the prose comes to speak of it, beside the other families.
        shares_facts: whether items may stand in several splits under different wordings. Facts must, or nobody could
            know them; what is worked out from the prompt must not.
        mistake: alters the answer slots where the values of other items would not do.
    """

    family_name: str
    fact_items: Sequence[Slots]
    forms: Sequence[Form]
    answers: Sequence[str]
    prose: Sequence[str]
    prose_weight: float
    shares_facts: bool
    mistake: Mistake | None

    def alter_answers(self, item: Slots, generator: np.random.Generator) -> Slots:
        """Draw other values for the answer slots of an item."""
        if self.mistake is not None:
            return self.mistake(item, generator)
        altered_answers = {}
        for slot in self.answers:
            altered_answers[slot] = item[slot]
            while altered_answers[slot] == item[slot]:
                altered_answers[slot] = self.fact_items[int(generator.integers(len(self.fact_items)))][slot]
        return altered_answers


def _read_facts(slots: str, facts: str, articles: Sequence[str] = ()) -> list[Slots]:
    """Read a table of facts, and add the slots whose noun has an article before it."""
    fact_table = [dict(zip(slots.split(), fact.split(), strict=True)) for fact in facts.split(",")]
    for fact in fact_table:
        for slot in articles:
            article, _, noun_slot = slot.partition("_")
            noun = fact[noun_slot]
            fact[slot] = f"{article}n {noun}" if noun[0] in "aeiou" else f"{article} {noun}"
    return fact_table


def _vary_facts(facts: Sequence[Slots]) -> list[Slots]:
    """Repeat each fact beside another name and another fact, whose slots get a 2 at the end.

    So a few facts, which a small model can learn, make many different questions.
    """
    items = []
    for variant in range(VARIANTS):
        partner_step = PARTNER_STEP * (1 + variant % (len(facts) - 1))
        for position, fact in enumerate(facts):
            partner_fact = facts[(position + partner_step) % len(facts)]
            partner_slots = {f"{slot}2": value for slot, value in partner_fact.items()}
            items.append({**fact, **partner_slots, "name": NAMES[(position + variant) % len(NAMES)]})
    return items


def _job_items(facts: Sequence[Slots]) -> list[Slots]:
    return [{**fact, "does": f"{fact['verb']} {fact['goods']}", "name": name} for fact in facts for name in NAMES]


def _word_lists(family_name: str) -> list[Slots]:
    generator = numpy_rng("task items", family_name)
    items = []
    for _ in range(LIST_ITEMS):
        listed_words = [WORDS[index] for index in generator.permutation(len(WORDS))[: generator.integers(3, 5)]]
        item = {
            "words": ", ".join(listed_words),
            "first": listed_words[0],
            "second": listed_words[1],
            "last": listed_words[-1],
        }
        items.append({**item, "reversed": ", ".join(listed_words[::-1]), "sorted": ", ".join(sorted(listed_words))})
    return items


def _sums(family_name: str) -> list[Slots]:
    number_pairs = numpy_rng("task items", family_name).permutation(90 * 90)[:LIST_ITEMS]
    addends = [(10 + pair // 90, 10 + pair % 90) for pair in number_pairs]
    return [{"a": str(first), "b": str(second), "sum": str(first + second)} for first, second in addends]


def _stories(family_name: str) -> list[Slots]:
    generator = numpy_rng("task items", family_name)
    items = []
    for _ in range(LIST_ITEMS):
        people, objects, colours = (
            [values[index] for index in generator.permutation(len(values))[:2]] for values in (NAMES, THINGS, COLOURS)
        )
        asked_person, other_person = zip(people, objects, colours, strict=True)
        story = (
            f"{asked_person[0]} has a {asked_person[2]} {asked_person[1]} and "
            f"{other_person[0]} has a {other_person[2]} {other_person[1]}."
        )
        if generator.random() >= 0.5:
            asked_person, other_person = other_person, asked_person
        # "whose", "hue" and "what" are answers, so that a mistake can change them and leave the story as it is.
        item = {"story": story, "name": asked_person[0], "thing": asked_person[1]}
        item |= {"whose": asked_person[0], "what": asked_person[1], "hue": asked_person[2]}
        items.append({**item, "not_whose": other_person[0], "not_what": other_person[1], "not_hue": other_person[2]})
    return items


def _draw_other(values: Sequence[str], right_value: str, generator: np.random.Generator) -> str:
    other_values = [value for value in values if value != right_value]
    return other_values[int(generator.integers(len(other_values)))]


def _misspell_plural(item: Slots, generator: np.random.Generator) -> Slots:
    return {
        plural: _draw_other([item[noun] + ending for ending in ("", "s", "es", "en")], item[plural], generator)
        for noun, plural in (("noun", "plural"), ("noun2", "plural2"))
    }


def _pick_other_words(item: Slots, generator: np.random.Generator) -> Slots:
    listed_words = item["words"].split(", ")
    return {slot: _draw_other(listed_words, item[slot], generator) for slot in ("first", "second", "last")}


def _misread_story(item: Slots, generator: np.random.Generator) -> Slots:
    if generator.random() < 0.5:  # the other one in the story is the mistake that reading in haste makes
        return {slot: item[f"not_{slot}"] for slot in ("whose", "what", "hue")}
    slot_values = {"whose": NAMES, "what": THINGS, "hue": COLOURS}
    return {slot: _draw_other(values, item[slot], generator) for slot, values in slot_values.items()}


def _swap_words(slot: str, item: Slots, generator: np.random.Generator) -> Slots:
    listed_words = item[slot].split(", ")
    first, second = generator.permutation(len(listed_words))[:2]
    listed_words[first], listed_words[second] = listed_words[second], listed_words[first]
    return {slot: ", ".join(listed_words)}


def _miscalculate(item: Slots, generator: np.random.Generator) -> Slots:
    return {"sum": str(int(item["sum"]) + SUM_ERRORS[int(generator.integers(len(SUM_ERRORS)))])}


# Families whose items are computed; the others have a table of facts.
COMPUTED_ITEMS: dict[str, Callable[[str], list[Slots]]] = {
    "pick_word": _word_lists,
    "reading": _stories,
    "reverse": _word_lists,
    "alphabet": _word_lists,
    "addition": _sums,
}
MISTAKES: dict[str, Mistake] = {
    "plurals": _misspell_plural,
    "pick_word": _pick_other_words,
    "reading": _misread_story,
    "reverse": partial(_swap_words, "reversed"),
    "alphabet": partial(_swap_words, "sorted"),
    "addition": _miscalculate,
}


def _build_family(name: str, wordings: dict[str, Any]) -> Family:
    if name in COMPUTED_ITEMS:
        items = COMPUTED_ITEMS[name](name)
    else:
        facts = _read_facts(wordings["slots"], wordings["facts"], wordings.get("articles", ()))
        items = _job_items(facts) if name == "jobs" else _vary_facts(facts)
    return Family(
        family_name=name,
        fact_items=items,
        forms=[Form(*templates) for templates in wordings["forms"]],
        answers=wordings["answers"],
        prose=wordings["prose"],
        prose_weight=wordings.get("prose_weight", 1.0),
        shares_facts=name not in COMPUTED_ITEMS,
        mistake=MISTAKES.get(name),
    )


_WORDINGS = yaml.safe_load((files("gradfiltering.synthetic") / "task_families.yaml").read_text("utf-8"))
FAMILIES = {name: _build_family(name, wordings) for name, wordings in _WORDINGS.items()}
