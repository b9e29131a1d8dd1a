from collections import Counter

import pytest

from gradfiltering.data.sources import Heldout
from gradfiltering.errors import UserError


@pytest.fixture
def paths(numbered, write_rows):
    return write_rows(numbered(40), "a.jsonl"), write_rows([{**row, "source": "own"} for row in numbered(10)], "b.json")


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ({"weight": 3}, {"weight": 1}, (30, 10)),
        ({"weight": 1}, {"weight": 1}, (10, 10)),
        ({"count": 7}, {"count": 2}, (7, 2)),
        ({}, {}, (40, 10)),
        ({"weight": 2}, {"weight": 20}, (1, 10)),
        ({"weight": 1}, {"weight": 4}, (3, 10)),  # 2.5 of the first
    ],
)
def test_weights_counts_or_all_rows(first, second, counts, paths, mixture_source):
    records = mixture_source({"a": {"path": paths[0], **first}, "b": {"path": paths[1], **second}}).load(0)
    found = Counter(records.sources)
    assert (found["a"], found["own"]) == counts, "a row's own source is kept, the name of the mixture's part added"
    assert len({(row["source"], row["n"]) for row in records.rows}) == sum(counts), "no row twice"


def test_order_and_choice_depend_on_the_seed_alone(paths, mixture_source):
    sources = {"a": {"path": paths[0], "count": 10}, "b": {"path": paths[1], "count": 5}}
    first, same, other = (mixture_source(sources).load(seed).rows.to_list() for seed in (0, 0, 1))
    assert first == same != other
    assert len(set(mixture_source(sources, limit=6).load(0).sources)) == 2, "a limit is to leave a mixture"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "a mixture needs sources; give"),
        ({"a": {"weight": 1}}, "source a: .*needs the argument path"),
        ({"a": {"path": "A", "share": 1}}, "source a: .*no argument share"),
        ({"a": {"path": "A", "weight": 0}}, "source a: weight must be a positive number.*got 0"),
        ({"a": {"path": "A", "weight": 1}, "b": {"path": "B", "count": 1}}, "mix weights and counts; give"),
        ({"a": {"path": "A", "weight": 1, "count": 1}}, "mix weights and counts; give"),
        ({"a": {"path": "A", "count": 41}}, r"source a: its count 41 is more than the 40 rows of .*a\.jsonl; give"),
        ({"a": {"path": "A"}, "b": {"path": "C"}}, "source b is of the schema text .*a of alpaca.*bring them"),
    ],
)
def test_bad_mixtures_name_option_and_remedy(sources, message, paths, write_rows, mixture_source):
    files = {"A": paths[0], "B": paths[1], "C": write_rows([{"text": "x"}], "c.jsonl")}
    sources = {name: {**one, "path": files[one["path"]]} if "path" in one else one for name, one in sources.items()}
    with pytest.raises(UserError, match=message):
        mixture_source(sources).load(0)


def test_held_out_rows_are_those_that_each_source_names(paths, mixture_source):
    sources = {"a": {"path": paths[0], "count": 12, "heldout": 5}, "b": {"path": paths[1], "count": 4, "heldout": 2}}
    dataset = mixture_source(sources).load(0)
    assert Counter(dataset.sources) == {"a": 12, "own": 4} and Counter(dataset.heldout_sources) == {"a": 5, "own": 2}
    numbers = [(row["source"], row["n"]) for row in [*dataset.rows.to_list(), *dataset.heldout.to_list()]]
    assert len(set(numbers)) == 23, "no row is in both"
    cut = mixture_source(sources, limit=6).load(0)
    assert cut.rows.to_list() == dataset.rows.to_list()[:6] and cut.heldout.to_list() == dataset.heldout.to_list()


def test_held_out_rows_of_a_source_are_not_among_all_of_its_rows(paths, mixture_source):
    dataset = mixture_source({"a": {"path": paths[0], "heldout": 5}}).load(3)
    assert (len(dataset), len(dataset.heldout)) == (35, 5)
    assert not {row["n"] for row in dataset.rows.to_list()} & {row["n"] for row in dataset.heldout.to_list()}


def test_fields_get_the_names_of_the_other_sources(paths, write_rows, mixture_source):
    quiz = write_rows([{"question": f"Q{n}", "answer": f"A{n}"} for n in range(3)], "quiz.jsonl")
    renamed = {"path": quiz, "rename": {"question": "instruction", "answer": "output"}}
    dataset = mixture_source({"a": {"path": paths[0], "count": 2}, "quiz": {**renamed, "count": 3}}).load(0)
    quiz_rows = [row for row in dataset.rows.to_list() if row["source"] == "quiz"]
    assert sorted((row["instruction"], row["output"]) for row in quiz_rows) == [(f"Q{n}", f"A{n}") for n in range(3)]


def test_a_row_whose_source_is_null_gets_the_name_of_its_source(write_rows, mixture_source):
    rows = [{"instruction": str(n), "output": "x", "source": source} for n, source in enumerate([None, "own", None])]
    dataset = mixture_source({"a": {"path": write_rows(rows, "null.jsonl")}}).load(0)
    assert {row["instruction"]: row["source"] for row in dataset.rows.to_list()} == {"0": "a", "1": "own", "2": "a"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"count": 38, "heldout": 3}, "source a: 3 held-out rows leave too few of the 40 rows"),
        ({"heldout": 40}, "source a: 40 held-out rows leave too few of the 40 rows"),
        ({"rename": {"question": "instruction"}}, "source a has no field 'question' to rename; it has .*instruction"),
        ({"rename": {"n": "x", "input": "x"}}, "source a: two fields would be renamed to the same name"),
        ({"rename": {"n": "output"}}, "source a has a field 'output' already; rename 'n' to another name"),
    ],
)
def test_parts_that_cannot_be_had_are_refused(part, message, paths, mixture_source):
    with pytest.raises(UserError, match=message):
        mixture_source({"a": {"path": paths[0], **part}}).load(0)


def test_rows_are_held_out_by_the_sources_or_by_the_mixture(paths, mixture_source):
    with pytest.raises(UserError, match="so does the mixture; say it once") as refusal:
        mixture_source({"a": {"path": paths[0], "heldout": 2}}, heldout=Heldout(None, 0, 0.1))
    assert refusal.value.arguments == ("heldout.path", "heldout.share")
