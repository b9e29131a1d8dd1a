import collections
import re

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.synthetic import task_generator as tasks

SPLITS = ("train", "heldout", "evaluation")

# Written down again on purpose: the generator's own tables cannot vouch for themselves.
OPPOSITES = {
    "hot": "cold",
    "cold": "hot",
    "big": "small",
    "day": "night",
    "win": "lose",
    "near": "far",
}
COLOURS = {"lemon": "yellow", "crow": "black", "swan": "white", "otter": "brown", "frog": "green", "tomato": "red"}
KINDS = {"apple": "fruit", "robin": "bird", "salmon": "fish", "bee": "insect", "saw": "tool", "tram": "vehicle"}
YOUNG = {"dog": "puppy", "cow": "calf", "hen": "chick", "owl": "owlet", "pig": "piglet", "sheep": "lamb"}
HOMES = {"dog": "kennel", "cow": "byre", "hen": "coop", "owl": "barn", "pig": "sty", "sheep": "meadow"}
PLURALS = {"mouse": "mice", "child": "children", "sheep": "sheep", "box": "boxes", "lamp": "lamps", "city": "cities"}
JOBS = {"baker": ("bakery", "bakes bread"), "cook": ("kitchen", "cooks soup"), "miner": ("mine", "digs coal")}


def key(row):
    return row["instruction"], row["input"]


def words(text):
    return re.findall(r"[\w]+", text)


def asked(row, table):
    """The entries of a table that a row asks for, in its order."""
    return [word for word in words(row["instruction"] + " " + row["input"]) if word in table]


def facts_right(row, table):
    """Whether the row's output names every fact asked for that the table knows."""
    return all(table[word] in words(row["output"]) for word in asked(row, table))


def listed(row):
    """The list of words in a row's prompt."""
    return re.search(r"\w+(, \w+){2,}", row["instruction"] + " " + row["input"]).group().split(", ")


def pick_word_right(row):
    items = listed(row)
    named = {"first": items[0], "second": items[1], "last": items[-1]}
    wanted = [named[word] for word in words(row["instruction"]) if word in named]
    return [word for word in words(row["output"]) if word in items] == wanted


def order_right(row, expected):
    return [word for word in words(row["output"]) if word in expected] == expected


def addition_right(row):
    a, b = (int(number) for number in re.findall(r"\d+", row["instruction"] + row["input"]))
    return int(re.findall(r"\d+", row["output"])[-1]) == a + b


def reading_right(row):
    story = {thing: (name, colour) for name, colour, thing in re.findall(r"(\w+) has an? (\w+) (\w+)", row["input"])}
    owner = re.search(r"what (\w+) has", row["instruction"])
    if owner:
        (thing,) = (thing for thing, (name, _) in story.items() if name == owner.group(1))
        return row["output"] == f"{owner.group(1)} has a {story[thing][1]} {thing}."
    (thing,) = (thing for thing in story if thing in words(row["instruction"]))
    if row["instruction"].startswith("Who"):
        return row["output"] == story[thing][0]
    return row["output"] == f"The {thing} is {story[thing][1]}."


def animals_right(row):
    is_home = re.search("look for|about the animals", row["instruction"])
    return facts_right(row, HOMES if is_home else YOUNG)


def jobs_right(row):
    prompt = row["instruction"] + " " + row["input"]
    for job, (place, does) in JOBS.items():
        if place in words(prompt) or does in prompt:
            return job in words(row["output"])
        if job in words(prompt):
            return re.search(rf"\b{place}\b", row["output"]) is not None or does in row["output"]
    return True


ATLAS = {}


def atlas_right(row):
    """The atlas is invented, so all that can be checked is that rows agree with each other."""
    countries = re.findall(r"\w+(?:oria|ania|istan|lund)\b", row["instruction"] + " " + row["input"])
    found = {
        "capital": re.findall(r"\w+(?:burg|ville|mouth|haven)\b", row["output"]),
        "crop": re.findall(r"grow (\w+)", row["output"]),
    }
    return all(
        ATLAS.setdefault((country, what), value) == value
        for what, values in found.items()
        for country, value in zip(countries, values, strict=False)
    )


CHECKS = {
    "opposites": lambda row: facts_right(row, OPPOSITES),
    "colours": lambda row: facts_right(row, COLOURS),
    "categories": lambda row: facts_right(row, KINDS),
    "animals": animals_right,
    "plurals": lambda row: facts_right(row, PLURALS),
    "atlas": atlas_right,
    "jobs": jobs_right,
    "pick_word": pick_word_right,
    "reading": reading_right,
    "reverse": lambda row: order_right(row, listed(row)[::-1]),
    "alphabet": lambda row: order_right(row, sorted(listed(row))),
    "addition": addition_right,
}
TABLES = {
    "opposites": OPPOSITES,
    "colours": COLOURS,
    "categories": KINDS,
    "animals": YOUNG,
    "plurals": PLURALS,
    "jobs": {job: place for job, (place, _) in JOBS.items()},
}
WORKED_OUT = ("pick_word", "reading", "reverse", "alphabet", "addition")


@pytest.fixture(scope="module")
def everything() -> list[dict]:
    return [row for split in SPLITS for row in tasks.generate_rows(tasks.capacity(split), 0, split)]


def test_every_family_has_an_independent_check():
    assert set(CHECKS) == set(tasks.FAMILIES)


@pytest.mark.parametrize("family", CHECKS)
def test_outputs_are_right(family, everything):
    wrong = [row for row in everything if row["source"] == family and not CHECKS[family](row)]
    assert not wrong


@pytest.mark.parametrize("family", CHECKS)
def test_wrong_answers_are_wrong(family, everything):
    rng = np.random.default_rng(0)
    rows = [row for row in everything if row["source"] == family]
    spoilt = [{**row, "output": tasks.wrong_answer(row, rng)} for row in rows]
    assert all(bad["output"] != good["output"] for bad, good in zip(spoilt, rows, strict=True))
    if family in WORKED_OUT:
        assert not [row for row in spoilt if CHECKS[family](row)]
    if family in TABLES:
        known = 0
        for good, bad in zip(rows, spoilt, strict=True):
            # The good output is known to be right, so a fact is wrong where its word has gone from its place.
            gone = {old for old, new in zip(words(good["output"]), words(bad["output"]), strict=True) if old != new}
            facts = {TABLES[family][word] for word in asked(good, TABLES[family])} & set(words(good["output"]))
            known += len(facts)
            assert facts <= gone, (good, bad)
        assert known > 20


def test_a_wrong_answer_differs_from_the_row_it_is_given(everything):
    rng = np.random.default_rng(1)
    for row in everything[::50]:
        first = {**row, "output": tasks.wrong_answer(row, rng)}
        assert tasks.wrong_answer(first, rng) not in (row["output"], first["output"])


def test_wrong_answer_refuses_foreign_rows():
    with pytest.raises(UserError, match="not one of the bundled tasks"):
        tasks.wrong_answer({"instruction": "Sing.", "input": "", "output": "La."}, np.random.default_rng(0))


def test_no_question_asks_for_the_same_fact_twice():
    for family in tasks.FAMILIES.values():
        for item in family.fact_items:
            assert not [
                slot
                for slot in item
                if f"{slot}2" in item and slot not in family.answers and item[slot] == item[f"{slot}2"]
            ]


def test_same_seed_same_rows():
    assert tasks.generate_rows(100, 5, "train") == tasks.generate_rows(100, 5, "train")
    assert tasks.generate_rows(100, 5, "train") != tasks.generate_rows(100, 6, "train")
    assert tasks.prose(5000, 5) == tasks.prose(5000, 5) != tasks.prose(5000, 6)


def test_changing_a_row_does_not_change_the_next_data():
    rows = tasks.generate_rows(10, 0, "train")
    rows[0]["output"] = "spoilt"
    assert tasks.generate_rows(10, 0, "train")[0]["output"] != "spoilt"


def test_prompts_are_distinct_and_splits_disjoint(everything):
    assert len({key(row) for row in everything}) == len(everything)
    train = {key(row) for row in tasks.generate_rows(2000, 1, "train")}
    for split in ("heldout", "evaluation"):
        assert not train & {key(row) for row in tasks.generate_rows(200, 2, split)}


def test_no_working_out_is_shared_between_splits():
    lists = {}
    for split in SPLITS:
        rows = [row for row in tasks.generate_rows(tasks.capacity(split), 0, split) if row["source"] == "reverse"]
        lists[split] = {tuple(listed(row)) for row in rows}
    assert not lists["train"] & lists["evaluation"] and not lists["train"] & lists["heldout"]


def test_families_are_balanced_and_mixed():
    rows = tasks.generate_rows(2000, 0, "train")
    counts = collections.Counter(row["source"] for row in rows)
    assert set(counts) == set(tasks.FAMILIES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({row["source"] for row in rows[:60]}) > 8


def test_rows_have_four_filled_fields(everything):
    for row in everything:
        assert list(row) == ["instruction", "input", "output", "source"]
        assert row["instruction"] and row["output"] and "{" not in "".join(row.values())
    assert 0.3 < np.mean([row["input"] == "" for row in everything]) < 0.7


def test_response_lengths_vary(everything):
    lengths = np.array([len(row["output"].split()) for row in everything])
    assert np.mean(lengths == 1) > 0.15
    assert np.mean(lengths >= 8) > 0.1
    assert lengths.max() <= 20


def test_capacity():
    assert tasks.capacity("train") >= 4000
    assert min(tasks.capacity("heldout"), tasks.capacity("evaluation")) >= 400
    assert len(tasks.generate_rows(tasks.capacity("train"), 9, "train")) == tasks.capacity("train")
    assert tasks.generate_rows(0, 0, "train") == []
    with pytest.raises(UserError, match="asked for"):
        tasks.generate_rows(tasks.capacity("heldout") + 1, 0, "heldout")
    with pytest.raises(UserError, match="asked for"):
        tasks.generate_rows(-1, 0, "train")
    with pytest.raises(UserError, match="no split 'test'"):
        tasks.generate_rows(1, 0, "test")


def test_prose_is_about_as_long_as_asked_and_teaches_every_family():
    documents = tasks.prose(300_000, 0)
    text = " ".join(documents)
    assert 300_000 <= len(text) <= 302_000
    assert "{" not in text
    assert "opposite of hot?\ncold\n" in text, "answers are also seen on a line of their own"
    for fact in ("opposite of hot is cold", "lemon is yellow", "One mouse, two mice", "young dog is called a puppy"):
        assert fact in text
    assert text.count("?") > 500


def test_prose_holds_no_instruction_and_no_answer_to_unseen_exercises(everything):
    text = "\n".join(tasks.prose(300_000, 0))
    assert not [row for row in everything if row["instruction"] in text and len(row["instruction"].split()) > 4]
    for split in ("heldout", "evaluation"):
        for row in tasks.generate_rows(tasks.capacity(split), 0, split):
            if row["source"] == "reading" and row["input"] in text:
                pytest.fail(f"the story of an unseen exercise stands in the prose: {row['input']}")
