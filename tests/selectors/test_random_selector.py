from gradfiltering.selectors.random import RandomSelector


def test_draws_the_budget_without_replacement_in_ascending_order(ids):
    for seed in range(20):
        chosen = RandomSelector(0.4, None).select(ids, 25, None, seed)
        assert len(chosen) == 10 and chosen == sorted(set(chosen)) and set(chosen) <= set(ids.tolist())


def test_depends_on_the_seed_and_on_no_score(ids, scores):
    selector = RandomSelector(None, 6)
    base = selector.select(ids, 25, None, 0)
    assert selector.select(ids, 25, scores, 0) == base and selector.needs == frozenset()
    assert any(selector.select(ids, 25, None, seed) != base for seed in (1, 2))


def test_every_row_can_be_drawn(ids):
    drawn = {row for seed in range(60) for row in RandomSelector(0.2, None).select(ids, 25, None, seed)}
    assert drawn == set(ids.tolist())
