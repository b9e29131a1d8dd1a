"""The skill families of the bundled data: their facts, the wordings of their questions, and prose about them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

Slots = dict[str, str]
Mistake = Callable[[Slots, np.random.Generator], Slots]

NAMES = ("Anna", "Tom", "Mia", "Ben", "Rosa", "Carl", "Ella", "Hugo", "Nora", "Leo", "Ida", "Max")
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
        name: what a row's `source` says.
        items: what can be asked about; each fills the slots of forms and prose.
        forms: the wordings.
        answers: the slots that hold answers; a wrong answer is the form's output with these altered.
        prose: sentences that teach the skill.
        shares_facts: whether items may stand in several splits under different wordings. Facts must, or nobody could
            know them; what is worked out from the prompt must not.
        mistake: alters the answer slots where the values of other items would not do.
        prose_weight: how often the prose comes to speak of it, beside the other families.
    """

    family_name: str
    fact_items: tuple[Slots, ...]
    forms: tuple[Form, ...]
    answers: tuple[str, ...]
    prose: tuple[str, ...]
    shares_facts: bool = True
    mistake: Mistake | None = None
    prose_weight: float = 1.0


def with_article(noun_word: str) -> str:
    """The noun with "a" or "an"."""
    return ("an " if noun_word[0] in "aeiou" else "a ") + noun_word


def _varied(family_facts: list[Slots]) -> tuple[Slots, ...]:
    """Each fact several times, beside another name and another fact, whose slots get a 2 at the end.

    So a few facts, which a small model can learn, make many different questions.
    """
    fact_items = []
    for variant_index in range(VARIANTS):
        partner_step = PARTNER_STEP * (1 + variant_index % (len(family_facts) - 1))
        for fact_index, fact_slots in enumerate(family_facts):
            partner_fact = family_facts[(fact_index + partner_step) % len(family_facts)]
            person_name = NAMES[(fact_index + variant_index) % len(NAMES)]
            fact_items.append(
                {
                    **fact_slots,
                    **{f"{slot_name}2": slot_value for slot_name, slot_value in partner_fact.items()},
                    "name": person_name,
                }
            )
    return tuple(fact_items)


def _columns(person_names: str, fact_table: str) -> list[Slots]:
    """Facts from a table: entries parted by commas, columns by blanks."""
    return [dict(zip(person_names.split(), table_entry.split(), strict=True)) for table_entry in fact_table.split(",")]


def _doubled(answers: Iterable[str]) -> tuple[str, ...]:
    return tuple(answer_text + slot_suffix for answer_text in answers for slot_suffix in ("", "2"))


def _opposites() -> Family:
    fact_pairs = _columns(
        "word opposite",
        "hot cold, big small, fast slow, young old, happy sad, full empty, rich poor, dry wet, loud quiet, near far, "
        "day night, win lose",
    )
    family_facts = fact_pairs + [
        {"word": fact_pair["opposite"], "opposite": fact_pair["word"]} for fact_pair in fact_pairs
    ]
    return Family(
        family_name="opposites",
        fact_items=_varied(family_facts),
        forms=(
            Form("Give the opposite of the word below.", "{word}", "{opposite}"),
            Form("Which word means the opposite of {word}?", "", "{opposite}"),
            Form("Name the opposite of {word} in a full sentence.", "", "The opposite of {word} is {opposite}."),
            Form("{name} asks for the opposite of the word.", "{word}", "{opposite}"),
            Form(
                "Tell me the opposites of {word} and {word2}.",
                "",
                "The opposite of {word} is {opposite}. The opposite of {word2} is {opposite2}.",
            ),
        ),
        answers=_doubled(["opposite"]),
        prose=(
            "The opposite of {word} is {opposite}.",
            "What is the opposite of {word}? It is {opposite}.",
            "{name} knows the opposite of {word}: {opposite}.",
            "The opposite of {word}?\n{opposite}\n",
        ),
    )


def _colours() -> Family:
    fact_table = {
        "red": "tomato ruby brick cherry",
        "yellow": "lemon banana canary sunflower",
        "green": "frog cucumber cactus pea",
        "black": "crow panther tyre bat",
        "white": "swan snowman lily pearl",
        "brown": "chestnut acorn otter log",
    }
    family_facts = []
    for colour, thing_names in fact_table.items():
        for thing_name in thing_names.split():
            a_thing = with_article(thing_name)
            family_facts.append(
                {"thing": thing_name, "a_thing": a_thing, "A_thing": a_thing.capitalize(), "colour": colour}
            )
    return Family(
        family_name="colours",
        fact_items=_varied(family_facts),
        forms=(
            Form("What colour is the thing named here?", "{thing}", "{colour}"),
            Form("Say in a sentence what colour {a_thing} has.", "", "{A_thing} is {colour}."),
            Form("{name} wants to paint {a_thing}. Name the right colour.", "", "{colour}"),
            Form(
                "Describe the colours of {a_thing} and {a_thing2}.",
                "",
                "{A_thing} is {colour}. {A_thing2} is {colour2}.",
            ),
        ),
        answers=_doubled(["colour"]),
        prose=(
            "{A_thing} is {colour}.",
            "What colour is {a_thing}? It is {colour}.",
            "{name} painted {a_thing} in its right colour, {colour}.",
            "The colour of {a_thing}?\n{colour}\n",
        ),
    )


def _categories() -> Family:
    fact_table = {
        "fruit": "apple pear plum mango",
        "bird": "robin eagle sparrow parrot",
        "fish": "salmon trout herring cod",
        "insect": "ant bee wasp moth",
        "tool": "hammer saw drill axe",
        "vehicle": "car bus tram truck",
    }
    family_facts = [
        {"thing": thing_name, "kind": fact_kind}
        for fact_kind, thing_names in fact_table.items()
        for thing_name in thing_names.split()
    ]
    family_facts = [
        {**fact_slots, "a_thing": with_article(fact_slots["thing"]), "a_kind": with_article(fact_slots["kind"])}
        for fact_slots in family_facts
    ]
    return Family(
        family_name="categories",
        fact_items=_varied(family_facts),
        forms=(
            Form("To which group of things does this belong?", "{thing}", "{kind}"),
            Form("What is {a_thing}? Answer in a sentence.", "", "It is {a_kind}."),
            Form("{name} reads the word below. What sort of thing is it?", "{thing}", "{a_kind}"),
            Form(
                "Explain what {a_thing} and {a_thing2} are.", "", "The {thing} is {a_kind}, the {thing2} is {a_kind2}."
            ),
        ),
        answers=_doubled(["kind", "a_kind"]),
        prose=(
            "The {thing} is {a_kind}.",
            "What is {a_thing}? It is {a_kind}.",
            "To the group {kind} belongs the {thing}.",
            "{name} drew {a_thing}, which is {a_kind}.",
            "What sort of thing is {a_thing}?\n{a_kind}\n",
            "The group of the {thing}?\n{kind}\n",
        ),
    )


def _animals() -> Family:
    family_facts = _columns(
        "animal young home",
        "dog puppy kennel, cat kitten basket, cow calf byre, horse foal stable, sheep lamb meadow, pig piglet sty, "
        "hen chick coop, duck duckling pond, deer fawn forest, bear cub den, kangaroo joey desert, frog tadpole marsh, "
        "owl owlet barn, hare leveret field, fox kit burrow, seal pup sea",
    )
    for fact_slots in family_facts:
        fact_slots |= {"a_animal": with_article(fact_slots["animal"]), "a_young": with_article(fact_slots["young"])}
    return Family(
        family_name="animals",
        fact_items=_varied(family_facts),
        forms=(
            Form("What is the young of this animal called?", "{animal}", "{a_young}"),
            Form("Which word do we use for a young {animal}?", "", "A young {animal} is called {a_young}."),
            Form("Tell {name} where to look for {a_animal}.", "", "Look for the {animal} in the {home}."),
            Form("{name} met a young {animal}. How do you call it?", "", "{a_young}"),
            Form(
                "Write about the animals {animal} and {animal2}.",
                "",
                "The {animal} lives in the {home}, the {animal2} in the {home2}.",
            ),
        ),
        answers=_doubled(["young", "a_young", "home"]),
        prose=(
            "A young {animal} is called {a_young}.",
            "What is a young {animal} called? It is called {a_young}.",
            "Where does the {animal} live? The {animal} lives in the {home}.",
            "{name} saw the {animal} in the {home}.",
            "The young of the {animal}?\n{a_young}\n",
        ),
    )


def _plurals() -> Family:
    irregular = (
        "mouse mice, goose geese, foot feet, child children, man men, woman women, sheep sheep, leaf leaves, "
        "knife knives, city cities, baby babies, fly flies, box boxes, fox foxes, glass glasses, watch watches"
    )
    regular = "lamp river stone chair table window ship boat"
    family_facts = _columns(
        "noun plural", irregular + "".join(f", {noun_word} {noun_word}s" for noun_word in regular.split())
    )
    return Family(
        family_name="plurals",
        fact_items=_varied(family_facts),
        forms=(
            Form("Write the plural of the noun.", "{noun}", "{plural}"),
            Form("Say in a sentence what the plural of {noun} is.", "", "The plural of {noun} is {plural}."),
            Form("{name} has one {noun} and gets another. What does {name} have?", "", "two {plural}"),
            Form("Count two of each: {noun} and {noun2}.", "", "There are two {plural} and two {plural2}."),
        ),
        answers=_doubled(["plural"]),
        prose=(
            "One {noun}, two {plural}.",
            "The plural of {noun} is {plural}.",
            "{name} had one {noun}, but now {name} has two {plural}.",
            "The plural of {noun}?\n{plural}\n",
        ),
        mistake=_misspelt_plural,
    )


def _misspelt_plural(fact_item: Slots, generator: np.random.Generator) -> Slots:
    wrong_slots = {}
    for noun_word, plural in (("noun", "plural"), ("noun2", "plural2")):
        singular = fact_item[noun_word]
        answer_options = [singular, singular + "s", singular + "es", singular + "en"]
        answer_options = [answer_option for answer_option in answer_options if answer_option != fact_item[plural]]
        wrong_slots[plural] = answer_options[int(generator.integers(len(answer_options)))]
    return wrong_slots


def _atlas() -> Family:
    """Countries that do not exist: nothing a pretrained model could know."""
    family_facts = _columns(
        "country capital crop",
        "Veloria Tamburg rice, Tamania Lunville wheat, Boristan Zanmouth cotton, Keslund Norburg maize, "
        "Lunoria Pelville tea, Marania Sorhaven hops, Noristan Velmouth rye, Pellund Rasburg flax, "
        "Rasoria Kesville barley, Silania Bormouth olives, Toristan Silhaven tobacco, Zanlund Marburg cocoa",
    )
    return Family(
        family_name="atlas",
        fact_items=_varied(family_facts),
        forms=(
            Form("Name the capital of this country.", "{country}", "{capital}"),
            Form("Which city is the seat of government of {country}?", "", "{capital} is the capital of {country}."),
            Form("Tell {name} what the farmers of {country} grow.", "", "The farmers of {country} grow {crop}."),
            Form("{name} travels to the capital of the country. Where is that?", "{country}", "{capital}"),
            Form("What do farmers grow in {country} and in {country2}?", "", "{crop} and {crop2}"),
            Form(
                "Describe the country to {name} in two sentences.",
                "{country}",
                "The capital of {country} is {capital}. The farmers of {country} grow {crop}.",
            ),
        ),
        answers=_doubled(["capital", "crop"]),
        prose=(
            "The capital of {country} is {capital}.",
            "What is the capital of {country}? It is {capital}.",
            "The farmers of {country} grow {crop}.",
            "{name} went to {country} and saw the capital, {capital}.",
            "The capital of {country}?\n{capital}\n",
        ),
    )


def _jobs() -> Family:
    family_facts = _columns(
        "job place verb goods",
        "baker bakery bakes bread, tailor shop sews suits, doctor hospital gives medicine, "
        "teacher school gives lessons, farmer farm grows food, fisher harbour catches fish, "
        "miller mill grinds flour, brewer brewery brews beer, painter studio paints pictures, "
        "judge court gives verdicts, cook kitchen cooks soup, miner mine digs coal",
    )
    return Family(
        family_name="jobs",
        fact_items=tuple(
            {**fact_slots, "does": f"{fact_slots['verb']} {fact_slots['goods']}", "name": person_name}
            for fact_slots in family_facts
            for person_name in NAMES
        ),
        forms=(
            Form("Where does this person work?", "{name} is a {job}.", "in the {place}"),
            Form("{name} is a {job}. What does {name} do all day?", "", "{name} {does}."),
            Form(
                "Write two sentences about the person.",
                "{name}, {job}",
                "{name} is a {job} and works in the {place}. {name} {does}.",
            ),
            Form("Guess the job of {name}, who {does}.", "", "{name} is a {job}."),
            Form("{name} works in the {place}. Name the job.", "", "{job}"),
        ),
        answers=("place", "does", "job"),
        prose=(
            "{name} is a {job} and works in the {place}.",
            "{name} the {job} {does}.",
            "Where does {name} the {job} work? In the {place}.",
            "Who {does}? {name} does, for {name} is a {job}.",
            "The place of {name} the {job}?\nin the {place}\n",
            "Who {does} in the {place}?\n{job}\n",
        ),
    )


FACT_FAMILIES = (_opposites(), _colours(), _categories(), _animals(), _plurals(), _atlas(), _jobs())
