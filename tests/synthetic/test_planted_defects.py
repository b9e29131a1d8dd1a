import collections
import copy
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfiltering.errors import UserError
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.synthetic import task_generator as tasks
from gradfiltering.synthetic.planted_defects import DEFECT_KINDS, PlantedDefects

FIELDS = ("instruction", "input")
MIXED = {
    "wrong_answer": 0.1,
    "mismatched_response": 0.1,
    "gibberish": 0.05,
    "truncated": 0.1,
    "duplicate": 0.1,
    "ambiguous": 0.06,
}


def corruption(**shares: float) -> PlantedDefects:
    return PlantedDefects(**{**dict.fromkeys(MIXED, 0.0), **shares})


def plant(rows, truth=None, seed=0, **shares):
    return corruption(**shares).plant(rows, seed, FIELDS, "output", truth)


def made_of(outputs) -> list[dict]:
    return [{"instruction": f"question {i}", "input": "", "output": text, "id": i} for i, text in enumerate(outputs)]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return tasks.generate_rows(400, 3, "train")


@pytest.fixture(scope="module")
def planted(rows):
    return plant(rows, tasks.wrong_answer, **MIXED)


def of_kind(rows, planted, kind):
    spoilt, kinds = planted
    return [(before, after) for before, after, name in zip(rows, spoilt, kinds, strict=True) if name == kind]


def test_counts_are_exact(planted):
    counts = collections.Counter(planted[1])
    assert {kind: counts[kind] for kind in MIXED} == {kind: share_of_count(share, 400) for kind, share in MIXED.items()}
    assert set(counts) == set(DEFECT_KINDS)


def test_ambiguous_count_is_even():
    for count in range(1, 40):
        _, kinds = plant(made_of(f"answer {i}" for i in range(count)), ambiguous=0.3)
        assert kinds.count("ambiguous") % 2 == 0
        assert abs(kinds.count("ambiguous") - 0.3 * count) <= 1


def test_same_seed_same_result_and_other_seed_other_result(rows, planted):
    assert plant(rows, tasks.wrong_answer, **MIXED) == planted
    assert plant(rows, tasks.wrong_answer, seed=1, **MIXED)[1] != planted[1]


def test_input_is_not_mutated(rows):
    before = copy.deepcopy(rows)
    plant(rows, **MIXED)
    assert rows == before


def test_clean_rows_and_unnamed_fields_stay(rows, planted):
    for before, after in of_kind(rows, planted, "clean"):
        assert after == before
    for kind in ("wrong_answer", "mismatched_response", "gibberish", "truncated"):
        for before, after in of_kind(rows, planted, kind):
            assert {**after, "output": before["output"]} == before


def test_wrong_answers_differ(rows, planted):
    assert all(before["output"] != after["output"] for before, after in of_kind(rows, planted, "wrong_answer"))


def test_mismatched_response_is_another_rows(rows, planted):
    responses = {row["output"] for row in rows}
    for before, after in of_kind(rows, planted, "mismatched_response"):
        assert after["output"] != before["output"]
        assert after["output"] in responses


def test_gibberish_is_about_as_long_as_the_response(rows, planted):
    for before, after in of_kind(rows, planted, "gibberish"):
        assert after["output"].strip() and after["output"] != before["output"]
        assert len(after["output"]) <= len(before["output"])
    long = made_of([f"a long sentence with many words, number {i}, goes on and on" for i in range(20)])
    for before, after in of_kind(long, plant(long, gibberish=0.9), "gibberish"):
        assert len(after["output"]) > 0.8 * len(before["output"])


def test_truncated_is_a_proper_prefix(rows, planted):
    for before, after in of_kind(rows, planted, "truncated"):
        assert before["output"].startswith(after["output"])
        assert 0.2 <= len(after["output"]) / len(before["output"]) <= 0.6


def test_duplicate_equals_a_clean_row(rows, planted):
    clean = [before for before, _ in of_kind(rows, planted, "clean")]
    copies = [after for _, after in of_kind(rows, planted, "duplicate")]
    assert all(after in clean for after in copies)
    assert len({str(after) for after in copies}) == len(copies), "each original is copied once while there are enough"


def test_ambiguous_pairs_share_the_prompt_and_differ_in_the_answer(rows, planted):
    pairs = collections.defaultdict(list)
    for _, after in of_kind(rows, planted, "ambiguous"):
        pairs[after["instruction"], after["input"]].append(after["output"])
    assert all(len(outputs) == 2 and outputs[0] != outputs[1] for outputs in pairs.values())


def test_ambiguous_prompt_takes_over_missing_fields():
    rows = [{"instruction": "a", "input": "x", "output": "one"}, {"instruction": "b", "output": "two"}] * 5
    spoilt, kinds = plant(rows, ambiguous=0.8)
    prompts = [
        tuple(row.get(field) for field in FIELDS) for row, kind in zip(spoilt, kinds, strict=True) if kind != "clean"
    ]
    assert set(prompts) <= {("a", "x"), ("b", None)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, it is.", {"No, it is."}),
        ("TRUE", {"FALSE"}),
        ("false", {"true"}),
        ("B", {"A", "C", "D"}),
        ("7", set("12345689")),
        ("٣", set("١٢٤٥٦٧٨٩")),
    ],
)
def test_generic_wrong_answer_keeps_the_form(text, expected):
    spoilt, _ = plant(made_of([text] * 10), wrong_answer=0.9)
    assert {row["output"] for row in spoilt} - {text} <= expected


def test_generic_wrong_answer_spares_the_numbering_of_lists():
    rows = made_of(["1. wash the apples\n2. peel the 12 apples"] * 20)
    for _, after in of_kind(rows, plant(rows, wrong_answer=0.5), "wrong_answer"):
        assert after["output"].startswith("1. wash the apples\n2. peel the ")


def test_generic_wrong_answer_swaps_about_a_third_of_the_content_words():
    words = np.array([f"{a}{b}word" for a in "bcdfghjk" for b in "aeiou"])
    rng = np.random.default_rng(0)
    rows = made_of([" ".join(rng.permutation(words)[:12]) for _ in range(40)])
    for before, after in of_kind(rows, plant(rows, wrong_answer=0.9), "wrong_answer"):
        pairs = zip(before["output"].split(), after["output"].split(), strict=True)
        assert sum(old != new for old, new in pairs) == 4
        assert set(after["output"].split()) <= set(words)


@pytest.mark.parametrize(
    "outputs",
    [
        ["今天天气很好，我们去公园散步吧。", "北京是首都。", "猫在椅子上睡觉。"],
        ["ฉันชอบกินข้าว", "วันนี้อากาศดีมาก", "แมวนอนหลับ"],
        ["मुझे किताबें पढ़ना पसंद है।", "आज मौसम अच्छा है।", "बिल्ली सो रही है।"],
        ["Größe ist nicht alles.", "Die Straße führt zum Fluss.", "Morgen früh gehen wir los."],
        ["!!", "🙂🙃", "aaa"],
    ],
)
def test_other_languages_and_scripts(outputs):
    rows = made_of(outputs * 10)
    result = plant(rows, **MIXED)
    for kind in ("wrong_answer", "gibberish", "mismatched_response", "truncated"):
        pairs = of_kind(rows, result, kind)
        assert pairs and all(after["output"].strip() and after["output"] != before["output"] for before, after in pairs)


def test_rows_without_a_response_are_left_alone():
    rows = made_of(["", "   ", None, 5] * 10 + ["fine answer", "another answer"] * 30)
    spoilt, kinds = plant(rows, **MIXED)
    assert spoilt[:40] == rows[:40]
    assert set(kinds[:40]) == {"clean"}
    assert len(kinds) - kinds.count("clean") == 51, "shares are of all rows, also where some are no candidates"


def test_one_row():
    assert plant(made_of(["the only answer"]), **MIXED) == (made_of(["the only answer"]), ["clean"])
    spoilt, kinds = plant(made_of(["the only answer"]), wrong_answer=0.9)
    assert kinds == ["wrong_answer"] and spoilt[0]["output"] != "the only answer"
    assert plant([], **MIXED) == ([], [])


@pytest.mark.parametrize(
    ("rows", "shares", "message"),
    [
        (made_of(["same"] * 10), {"mismatched_response": 0.2}, "two different responses"),
        (made_of(["same"]), {"duplicate": 0.9}, "clean row"),
        (made_of(["", "", "", "one"]), {"gibberish": 0.5}, "only 1 of 4"),
        (made_of(["a"] * 10), {"truncated": 0.5}, "truncated=0.5"),
    ],
)
def test_too_little_data_is_explained(rows, shares, message):
    with pytest.raises(UserError, match=message):
        plant(rows, **shares)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "0.1", None, True])
def test_bad_share_is_named(share):
    with pytest.raises(UserError, match="gibberish"):
        corruption(gibberish=share)


def test_too_large_a_sum_is_refused():
    with pytest.raises(UserError, match=r"sum to 0\.95"):
        corruption(gibberish=0.5, duplicate=0.45)
    corruption(**dict.fromkeys(MIXED, 0.15))  # 0.9 but for rounding


def test_active():
    assert not corruption().any_planted
    assert corruption(duplicate=0.01).any_planted


def test_a_truth_that_is_no_mistake_is_a_defect():
    with pytest.raises(RuntimeError, match="the right answer"):
        plant(made_of(["x y"] * 4), lambda row, rng: row["output"], wrong_answer=0.5)


def test_speed():
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}word" for a in "bcdfg" for b in "aeiou" for c in "lmnrst"])
    rows = made_of([" ".join(words[rng.integers(len(words), size=40)]) for _ in range(5200)])
    start = time.process_time()
    plant(rows, **MIXED)
    assert time.process_time() - start < 2, "a tenth of Alpaca should take about 0.1 s"


SHARES = st.fixed_dictionaries({kind: st.floats(0, 0.15) for kind in MIXED})


@settings(max_examples=50, deadline=None)
@given(outputs=st.lists(st.text(max_size=12), max_size=20), shares=SHARES, seed=st.integers(0, 2**31))
def test_plant_holds_its_promises_on_any_text(outputs, shares, seed):
    rows = made_of(outputs)
    before = copy.deepcopy(rows)
    try:
        spoilt, kinds = plant(rows, seed=seed, **shares)
    except UserError:
        return
    assert rows == before
    assert len(spoilt) == len(kinds) == len(rows)
    for kind, share in shares.items():
        expected = 2 * share_of_count(share / 2, len(rows)) if kind == "ambiguous" else share_of_count(share, len(rows))
        assert kinds.count(kind) == expected
    clean = [row for row, kind in zip(rows, kinds, strict=True) if kind == "clean"]
    for old, new, kind in zip(rows, spoilt, kinds, strict=True):
        assert kind == "clean" or old["output"].strip()
        if kind == "clean":
            assert new == old
        elif kind == "duplicate":
            assert new in clean
        elif kind == "truncated":
            assert old["output"].startswith(new["output"]) and 0 < len(new["output"]) < len(old["output"])
        elif kind == "mismatched_response":
            assert new["output"] in outputs and new["output"] != old["output"]
        elif kind != "ambiguous":
            assert new["output"].strip() and new["output"] != old["output"]
