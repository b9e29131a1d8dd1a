from collections import Counter

import pytest

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
        ({"a": {"path": "A", "count": 41}}, r"source a: its count 41 is more than the 40 rows of .*a\.jsonl; give"),
        ({"a": {"path": "A"}, "b": {"path": "C"}}, "source b is of the schema text .*a of alpaca.*bring them"),
    ],
)
def test_bad_mixtures_name_option_and_remedy(sources, message, paths, write_rows, mixture_source):
    files = {"A": paths[0], "B": paths[1], "C": write_rows([{"text": "x"}], "c.jsonl")}
    sources = {name: {**one, "path": files[one["path"]]} if "path" in one else one for name, one in sources.items()}
    with pytest.raises(UserError, match=message):
        mixture_source(sources).load(0)
