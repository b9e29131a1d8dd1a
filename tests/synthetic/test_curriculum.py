"""The synthetic curriculum: right answers, known kinds, nothing held out that is trained on."""

from collections import Counter

import pytest

from gradfiltering.data.schemas import Columns
from gradfiltering.errors import UserError
from gradfiltering.synthetic.curriculum import FAMILY_NAMES, find_partner, generate_rows
from gradfiltering.synthetic.curriculum_source import CurriculumSource
from gradfiltering.synthetic.task_families import WORDS

COLUMNS = Columns("instruction", "input", "output", None, None, None, None)


def load(seed=0, **changes):
    options = {"rows": 200, "heldout_rows": 42, "composition": 0.1, "rare_format": 0.03, "limit": None}
    return CurriculumSource(**{**options, "template": "plain", "columns": COLUMNS, **changes}).load(seed)


def test_partners_make_one_ring_over_all_words():
    ring = [WORDS[0]]
    while (partner := find_partner(ring[-1])) != ring[0]:
        ring.append(partner)
    assert sorted(ring) == sorted(WORDS)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_answers_follow_from_the_skills(family):
    for row in generate_rows({family: 30}, 0, "train"):
        last_word = row["input"].split(", ")[-1] or next(
            word for word in WORDS if word in row["instruction"].split("of ")[1]
        )
        answers = {
            "partner": find_partner(last_word), "last_word": last_word, "composition": find_partner(last_word),
            "rare_format": f"[{last_word} = {find_partner(last_word)}]",
        }  # fmt: skip
        assert row["output"] == answers[family] and row["source"] == family


def test_kinds_are_planted_in_their_shares_beside_the_rows():
    dataset = load()
    assert Counter(dataset.kinds) == {"clean": 174, "composition": 20, "rare_format": 6}
    assert Counter(dataset.sources) == {"partner": 87, "last_word": 87, "composition": 20, "rare_format": 6}
    expected = ["clean" if source in ("partner", "last_word") else source for source in dataset.sources]
    assert dataset.kinds == expected and "kind" not in dataset.rows.column_names
    assert Counter(dataset.heldout_sources) == {"partner": 11, "last_word": 11, "composition": 10, "rare_format": 10}


def test_no_question_is_both_trained_on_and_held_out():
    questions = [
        {(row["instruction"], row["input"]) for row in part.to_list()}
        for seed in (0, 1)
        for part in (load(seed).rows, load(seed).heldout)
    ]
    assert not (questions[0] | questions[2]) & (questions[1] | questions[3])


def test_rows_depend_on_the_seed_alone_and_a_limit_takes_the_first():
    assert load().rows.to_list() == load().rows.to_list() != load(1).rows.to_list()
    assert load(limit=7).rows.to_list() == load().rows.to_list()[:7] and load(limit=7).kinds == load().kinds[:7]


def test_shares_that_leave_no_skill_are_refused():
    with pytest.raises(UserError, match=r"compositions and the rare format are 1\.1 of the rows"):
        load(composition=0.9, rare_format=0.2)
